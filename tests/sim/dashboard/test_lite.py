"""The site for a browser: its wheel runs without torch, numpy, PyYAML and pydantic, and its lock file names what is
served."""

import ast
import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.dashboard import lite, lite_wheel

PROGRAM = """
import sys
for name in ("torch", "numpy", "yaml", "pydantic", "pydantic_core", "transformers"):
    sys.modules[name] = None                     # importing it fails, as in the browser
# an editable installation answers for every module of its packages, those that the wheel lacks as well
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path.insert(0, sys.argv[1])
import sim
assert sim.__file__.startswith(sys.argv[1]), sim.__file__
from sim.dashboard import controls, files, state
assert controls.choices("model") and controls.choices("machine")  # every file of the two is read
a = state.answer({"model": "glm5", "machine": "chip:h100", "chips": "20k", "rent_usd_per_hour": "2-3"})
path = files.save(a, "from a browser")
values, keep, name = files.load(path)
assert state.answer(values, keep).row == a.row
state.simulated_step(a)
files.result_of(a, 10)
import json
print(json.dumps({"sentence": state.sentence(a), "row": a.row}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return lite_wheel.build(tmp_path_factory.mktemp("wheel"))


def test_data_files_are_json_under_their_own_names(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        assert (
            "minglm/_data/chips/h100.yaml" in names
            and "minglm/_data/models/glm5.json" in names
            and "sim/dashboard/page.py" in names
        )
        assert {"sim/dashboard/static/page.css", "sim/report/static/report.css"} <= set(names)
        assert not any(
            n.startswith("minglm/")
            and "torch" in z.read(n).decode()
            and "import torch\n" in z.read(n).decode().split("def ")[0]
            for n in names
            if n.endswith(".py")
        )
        assert "minglm/_data/measured/matmul.csv.gz" in names
        for name in names:
            if name.startswith("minglm/_data/") and not name.endswith((".csv", ".csv.gz")):
                json.loads(z.read(name))


def _imported(code: bytes) -> set[str]:
    """Modules that a file's first level imports; of `from a import b` both a and a.b, of which one may be no module."""
    found = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in ("minglm", "sim")}


def test_every_module_that_the_page_imports_is_in_the_wheel():
    """Found by reading, not by importing: the page needs ipywidgets, and a checkout would lend what the wheel lacks."""
    served, seen, waiting = lite_wheel.sources(), set(), {"sim.dashboard.page"}
    while waiting:
        name = waiting.pop()
        path = name.replace(".", "/")
        stands = [datafiles.package(name.split(".")[0]).parent / f"{path}{end}" for end in (".py", "/__init__.py")]
        for place, end in zip(stands, (".py", "/__init__.py"), strict=True):
            if place.is_file():
                assert path + end in served, f"{path + end} is imported and not in the wheel"
                waiting |= _imported(served[path + end]) - seen
        seen.add(name)
    assert "minglm.numbers" in seen


def test_the_same_sources_give_the_same_bytes(wheel, tmp_path):
    assert lite_wheel.build(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_wheel_answers_without_what_a_browser_lacks_and_says_the_same(wheel, tmp_path):
    from sim.dashboard import state

    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as z:
        z.extractall(place)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(place)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={"MINGLM_RUNS": str(tmp_path / "runs"), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, here = (
        json.loads(done.stdout),
        state.answer({"model": "glm5", "machine": "chip:h100", "chips": "20k", "rent_usd_per_hour": "2-3"}),
    )
    assert said["sentence"] == state.sentence(here)
    assert said["row"]["days"] == pytest.approx(here.row["days"])


def test_the_lock_file_lists_what_is_served_with_its_hash(wheel, tmp_path):
    files = {}
    for name in ("micropip", "plotly"):
        files[name] = tmp_path / f"{name}-1.0-py3-none-any.whl"
        files[name].write_bytes(name.encode())
    lock = {
        "info": {"python": "3.14"},
        "packages": {
            "micropip": {"depends": ["gone"], "imports": ["micropip"], "version": "1.0", "file_name": "x"},
            "numpy": {},
        },
    }
    made = lite.lock_file(lock, files, wheel)["packages"]
    assert set(made) == {"micropip", "plotly", "minglm"} and made["micropip"]["depends"] == []
    assert (
        made["plotly"]["sha256"] == hashlib.sha256(b"plotly").hexdigest()
        and made["minglm"]["file_name"] == lite_wheel.NAME
    )


def test_what_a_package_needs_is_followed_and_compiled_ones_are_refused():
    def entry(file, *depends):
        return {"file_name": file, "version": "1", "depends": list(depends)}

    lock = {
        "packages": {
            "a": entry("a-1-py3-none-any.whl", "b_c"),
            "b-c": entry("b-1-py3-none-any.whl"),
            "d": entry("d-1-cp314-wasm32.whl"),
        }
    }
    assert lite.closure(lock, ["a"]) == {"a": "1", "b-c": "1"}
    for names, words in ((["d"], "compiled"), (["zz"], "not in the lock file")):
        with pytest.raises(InputError, match=words):
            lite.closure(lock, names)


def test_no_npm_is_one_line(capsys, monkeypatch, tmp_path):
    pytest.importorskip("jupyterlite_core", reason="jupyterlite-core is missing: pip install -e '.[dev]'")
    monkeypatch.setattr(lite.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="npm is not installed"):
        lite.fetch_pyodide(tmp_path)
