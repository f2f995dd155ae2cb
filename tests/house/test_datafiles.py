"""Where files lie: in a checkout beside the packages, in an installation inside; an empty catalogue is refused."""

import ast
import re
import sys
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
    assert datafiles.root() is None
    assert (
        datafiles.data("currency_and_carbon.yaml") == installed / "_data" / "currency_and_carbon.yaml"
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


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folders of a Linux user")
def test_an_installation_writes_to_the_users_data_and_says_so_once(installed, tmp_path, monkeypatch, capsys):
    """A hub of many users on one installation: each in their own home, never in the package or where a command ran."""
    monkeypatch.chdir(tmp_path)
    datafiles._say_once.cache_clear()
    for user in ("ada", "grace"):
        (tmp_path / user).mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / user))
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        assert datafiles.runs("demo") == tmp_path / user / ".local" / "share" / "minglm" / "runs" / "demo"
        datafiles.runs()
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and f"{user}/.local/share/minglm/runs" in said.err
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert datafiles.runs() == tmp_path / "data" / "minglm" / "runs"
    monkeypatch.setenv("MINGLM_RUNS", "~/mine")
    assert datafiles.runs("x") == tmp_path / "grace" / "mine" / "x"
    assert not installed.exists()


def test_a_course_keeps_its_own_runs(installed, tmp_path, monkeypatch):
    (tmp_path / "course" / "learn").mkdir(parents=True)
    (tmp_path / "course" / datafiles.COURSE_NOTE).write_text("{}")
    monkeypatch.chdir(tmp_path / "course" / "learn")
    assert datafiles.runs("x") == tmp_path / "course" / "runs" / "x"


def test_a_place_of_somebody_else_is_passed_over_and_none_at_all_is_one_line(tmp_path, monkeypatch):
    """One checkout for a whole class, read by all and written by its owner."""
    allowed = [tmp_path / "home"]
    monkeypatch.setattr(datafiles, "_writable", lambda p: any(p.is_relative_to(a) for a in allowed))
    monkeypatch.setattr(datafiles, "user_data", lambda: tmp_path / "home" / "minglm")
    monkeypatch.delenv("MINGLM_RUNS", raising=False)
    assert datafiles.runs() == tmp_path / "home" / "minglm" / "runs"
    allowed.clear()
    with pytest.raises(InputError, match="set MINGLM_RUNS to a folder that can"):
        datafiles.runs()
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))  # the remedy
    assert datafiles.runs() == tmp_path


def test_what_can_be_written_is_known_before_it_is_there(tmp_path):
    assert datafiles._writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    assert not datafiles._writable(tmp_path / "file" / "b")


def test_no_module_names_the_folder_of_runs_itself():
    """Every command and every notebook's helper asks `datafiles.runs`."""
    odd = []
    for path in sorted(p for package in ("minglm", "sim") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            places = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Path", "pathlib.Path"):
                places = node.args[:1]
            elif isinstance(node, ast.keyword) and node.arg == "default":
                places = [node.value]
            odd += [f"{path}:{p.lineno}" for p in places if re.match(r"['\"]runs\b", ast.unparse(p))]
    assert [o for o in odd if "datafiles.py" not in o] == []
