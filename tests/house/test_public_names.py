"""The packages' tables of contents: every public name loads, and importing the packages stays light."""

import subprocess
import sys

import pytest

import minglm
import sim


@pytest.mark.parametrize("package", [minglm, sim], ids=lambda p: p.__name__)
def test_every_public_name_loads(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in package.__doc__, f"{name}: not in the docstring's list"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        package.nothing_of_the_kind  # noqa: B018


def test_importing_loads_no_room():
    code = (
        "import sys, minglm, sim\n"
        "loaded = {m for m in sys.modules if m.startswith(('minglm.', 'sim.'))}\n"
        "assert not loaded, loaded\n"
        "from sim import Plan, load_model, project\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
