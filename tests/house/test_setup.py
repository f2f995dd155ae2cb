"""The project's own promises: light imports, one way to run the tests, environments in step, nothing of the workshop
left in."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git clone")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize(
    "module",
    [
        "minglm",
        "sim",
        "minglm.config",
        "minglm.cli.main",
        "minglm.data.corpus",
        "minglm.training.recipe",
        "minglm.runtime.doctor",
        "minglm.tools.bench",
    ],
)
def test_importing_draws_neither_torch_nor_numpy(module):
    code = f"import sys, {module}; bad = {{'torch', 'numpy', 'tokenizers'}} & set(sys.modules); assert not bad, bad"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_in_minglm_imports_sim():
    for path in (ROOT / "minglm").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) sim\b", path.read_text(encoding="utf-8"), re.M), path


def test_ci_runs_exactly_make_test():
    lines = [x.strip() for x in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    assert lines[-1] == "make test"
    assert not [x for x in lines[:-1] if re.search(r"\b(make|pytest|python3?|pip)\b", x)], (
        "whatever else there is, make does"
    )


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    "user, apt_get, says",
    [("0", "exit 0", ""), ("0", "exit 1", "could not be installed"), ("7", "exit 0", "no rights")],
)
def test_ci_goes_on_without_a_browser(tmp_path, user, apt_get, says):
    """`make` and what looks for Chromium are stubs; nothing is installed."""
    for name, body in {"make": 'echo "make $*"', "apt-get": apt_get, "id": f"echo {user}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "sh", "env", "dirname", "timeout"):
        (tmp_path / name).symlink_to(shutil.which(name))
    run = subprocess.run([ROOT / ".ci" / "run"], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert run.returncode == 0 and not run.stderr, run.stderr
    first, _, last = run.stdout.rstrip().rpartition("\n")
    assert last == "make test" and says in first and first.count("\n") == 0 and bool(first) == bool(says)


def test_environment_for_conda_is_in_step_with_pyproject():
    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == project["name"]
    assert f"python {project['requires-python']}" in conda["dependencies"]
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    extras = next(re.search(r"\.\[(.+)\]", line).group(1).split(",") for line in pip if line.startswith("-e"))
    assert set(extras) <= set(project["optional-dependencies"]) and {"train", "lab", "dev"} <= set(extras)
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-e '.[{','.join(extras)}]'" in make, "conda and make install the same extras"
    assert any("constraints.txt" in line for line in pip) and "-c constraints.txt" in make


def test_every_direct_dependency_is_pinned_and_its_pin_allowed():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    wanted = [*project["dependencies"], *(d for ds in project["optional-dependencies"].values() for d in ds)]
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.name.lower() in pins, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_base_install_needs_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [d for d in project["dependencies"] if d.startswith(("torch", "numpy"))]


def test_no_path_of_a_workshop_in_any_tracked_file():
    words = ["/" + "work/", ".." + "/shared", "/" + "tmp/brief"]
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for word in words:
            assert word not in text, f"{path.relative_to(ROOT)} contains {word!r}"


def test_files_stay_small():
    for path in tracked():
        if path.suffix == ".py":
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 800, f"{path.relative_to(ROOT)} has {lines} lines: one file is one concept"
    assert not [p for p in tracked() if p.name == "utils.py"]


@pytest.mark.parametrize(
    "given,kept", [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_how_threads_wait_is_set_before_torch_and_a_user_s_choice_is_kept(given, kept):
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    done = subprocess.run(
        [sys.executable, "-c", "import minglm, os; print(os.environ.get('GOMP_SPINCOUNT'))"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.stdout.strip() == str(kept)


def test_tests_of_a_group_stay_on_one_worker(tmp_path):
    """Where they do not, nothing fails: tests that must not run beside each other would, and fixtures be made twice."""
    pytest.importorskip("xdist", reason="pytest-xdist is missing: pip install -e '.[dev]'")
    text = (
        "import pytest\n@pytest.mark.xdist_group('g')\n@pytest.mark.parametrize('i', range(6))\ndef test_one(i, "
        "worker_id):\n    print('ran on', worker_id)\n"
    )
    (tmp_path / "test_group.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-rP", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-n", "2", "--dist", "loadgroup", "test_group.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert sorted(set(re.findall(r"ran on (\w+)", done.stdout))) in (["gw0"], ["gw1"]), done.stdout


@pytest.mark.parametrize("place,code", [("datafiles.runs('mine')", 0), ("datafiles.root() / 'runs' / 'mine'", 1)])
def test_a_test_that_writes_into_the_user_s_runs_is_told(place, code, tmp_path):
    """The conftest of all tests, in a checkout with a run that is the user's."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "report.html").write_text("mine", encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    text = (
        "from pathlib import Path\nfrom minglm import datafiles\n"
        f"datafiles.root = lambda: Path({str(tmp_path)!r})\n"
        f"def test_one():\n    place = {place}\n    place.mkdir(parents=True)\n    (place / 'x').touch()\n"
    )
    (tmp_path / "tests" / "test_one.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", "-p", "no:xdist", "tests"]
    own = {k: v for k, v in os.environ.items() if k not in ("MINGLM_RUNS", "PYTEST_XDIST_WORKER")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**own, "PYTHONPATH": str(ROOT)})
    assert done.returncode == code, done.stdout + done.stderr
    assert ("changed while tests ran: mine." in done.stdout) == bool(code) and "1 passed" in done.stdout


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_every_pin_accepts_every_python_that_we_name(python):
    """Debian 12 has 3.11.2. Read from what is installed; a pin that another version stands for is not judged here."""
    from packaging.specifiers import SpecifierSet

    pins = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    judged, refused = 0, []
    for name, version in pins.items():
        try:
            meta = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if meta["Version"] == version and (asked := meta.get("Requires-Python")):
            judged += 1
            if not SpecifierSet(asked).contains(python):
                refused.append(f"{name}=={version} needs {asked}")
    assert judged > 100 and not refused, refused
