"""Where files lie: in a checkout beside the packages, in an installation inside; an empty catalogue is refused."""

from pathlib import Path

import pytest

from minglm import datafiles
from minglm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The module as it finds itself in an installation."""
    monkeypatch.setattr(datafiles, "_PACKAGE", tmp_path / "minglm")
    datafiles.root.cache_clear()
    monkeypatch.delenv("MINGLM_RUNS", raising=False)
    yield tmp_path / "minglm"
    datafiles.root.cache_clear()


def test_a_checkout_has_its_folders_beside_the_packages(monkeypatch):
    assert (
        datafiles.root() == ROOT
        and datafiles.data("chips", "h100.yaml").is_file()
        and datafiles.notebooks("plan", "planner.ipynb").is_file()
    )
    assert (datafiles.package("sim") / "cli" / "main.py").is_file()
    assert (
        datafiles.shown(datafiles.data("recipes")) == "data/recipes"
        and datafiles.shown(Path("elsewhere/x")) == "elsewhere/x"
    )
    assert datafiles.install_hint("lab") == "pip install -c constraints.txt -e '.[lab]'"
    monkeypatch.delenv("MINGLM_RUNS", raising=False)
    assert datafiles.runs() == ROOT / "runs"
    monkeypatch.setenv("MINGLM_RUNS", "mine")
    assert datafiles.runs() == Path("mine") and datafiles.default_runs() == ROOT / "runs"


def test_an_installation_has_them_inside_and_its_own_advice(installed):
    assert datafiles.root() is None and datafiles.runs() == Path("runs")
    assert (
        datafiles.data("money.yaml") == installed / "_data" / "money.yaml"
        and datafiles.notebooks("learn") == installed / "_notebooks" / "learn"
    )
    assert (
        datafiles.install_hint("lab,dev") == "pip install 'minglm[lab,dev]'"
        and datafiles.install_hint() == "pip install 'minglm'"
    )
    assert datafiles.hint("make demo", "minglm demo") == "minglm demo"
    with pytest.raises(InputError, match="no such folder; install again"):
        datafiles.catalogue("chips", ".yaml")


def test_a_catalogue_is_by_name_and_never_empty(tmp_path):
    for name in ("b.yaml", "a.yaml", "b.json", "c.txt"):
        (tmp_path / name).write_text("")
    assert datafiles.catalogue(tmp_path, ".json", ".yaml") == {"a": tmp_path / "a.yaml", "b": tmp_path / "b.json"}
    assert list(datafiles.catalogue(tmp_path, ".json", ".yaml")) == ["a", "b"]
    with pytest.raises(InputError, match="holds no .csv file; restore it with: git checkout"):
        datafiles.catalogue(tmp_path, ".csv")
    with pytest.raises(InputError, match="no such folder"):
        datafiles.catalogue("chip", ".yaml")


def test_no_other_module_counts_folders_upwards():
    for package in ("minglm", "sim"):
        for path in datafiles.package(package).rglob("*.py"):
            assert path.name == "datafiles.py" or "parents[" not in path.read_text(encoding="utf-8"), (
                f"{path}: ask minglm.datafiles"
            )
