"""The wheel, as somebody has it who only wrote `pip install minglm`: no checkout, no extras, another folder.

Built from a copy of the sources and installed without a network into a folder of its own, which comes first on the
path; the base dependencies are those of this environment, and what belongs to the extras cannot be imported.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minglm.runtime import extras

pytest.importorskip("setuptools", reason="setuptools is missing: pip install -e '.[dev]'")
ROOT = Path(__file__).resolve().parents[2]
EXTRAS = sorted(
    {package for packages in extras.EXTRAS.values() for package in packages}
    | {"voila", "fastapi", "uvicorn", "prometheus_client"} - {"pytest"}
)
NOT_FOR_USE = {".svg", ".png", ".toml"}  # pictures of the README, the settings of ruff
CASE = (
    "mode: april\nrequests: 32\ngroup_size: 8\nmean_length: 400\nmax_length: 1638\ninstances: 2\nchips_each: 2\n"
    "chip: h100\nmodel: qwen3_8b\nover_sampling: 2\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build/ of the checkout gets into it."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("minglm", "sim", "data", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    _pip("wheel", str(copy), "--no-deps", "--no-build-isolation", "-w", str(out))
    return next(out.glob("minglm-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder that it is installed into."""
    folder = tmp_path_factory.mktemp("site")
    _pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


@pytest.fixture(scope="module")
def base(site, tmp_path_factory):
    """The folder whose sitecustomize hides the extras."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n")
    return folder


@pytest.fixture
def call(site, base, tmp_path, monkeypatch):
    """Call an installed command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.delenv("MINGLM_RUNS", raising=False)

    def run(command: str, *arguments: str, extras: bool = False, cwd: Path = tmp_path) -> tuple[int, str, str]:
        program = [sys.executable] if command == "python" else [shutil.which(command, path=str(site / "bin"))]
        path = os.pathsep.join(map(str, ([] if extras else [base]) + [site]))
        done = subprocess.run(
            [*program, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-index", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_holds_the_data_the_notebooks_and_one_version(wheel):
    from minglm import __version__

    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
    assert wheel.name == f"minglm-{__version__}-py3-none-any.whl" and {"minglm/py.typed", "sim/py.typed"} <= names
    for top in ("data", "notebooks"):
        here = [p.relative_to(ROOT / top) for p in (ROOT / top).rglob("*") if p.is_file()]
        here = [p for p in here if p.suffix not in NOT_FOR_USE and not any(part[0] == "." for part in p.parts)]
        assert len(here) > 60 and not [n for n in here if f"minglm/_{top}/{n.as_posix()}" not in names]
    code = {p.relative_to(ROOT).as_posix() for kind in "ch" for p in (ROOT / "minglm").rglob(f"*.{kind}")}
    assert len(code) >= 4 and not code - names
    assert not [n for n in names if n.split("/")[0] in ("data", "notebooks", "tests") or "__pycache__" in n]


def test_what_is_imported_is_the_installation(call, site):
    program = (
        "import minglm, sim; from minglm import datafiles; print(minglm.__file__); print(sim.__file__); "
        "print(datafiles.root())\n"
        "try:\n    import torch\nexcept ImportError: print('base')"
    )
    code, out, err = call("python", "-c", program)
    assert code == 0, err
    assert out.split() == [str(site / "minglm" / "__init__.py"), str(site / "sim" / "__init__.py"), "None", "base"]


def test_a_projection_is_that_of_the_checkout(call):
    from sim.study.projection import project_file

    code, out, err = call("clustersim", "run", "glm5_100k_910b", "--json")
    assert code == 0, err
    said, here = json.loads(out), project_file(ROOT / "data" / "scenarios" / "glm5_100k_910b.yaml")
    assert (
        said["days"] == json.loads(json.dumps(here["days"]))
        and said["versions"]["minglm"] == here["versions"]["minglm"]
    )


@pytest.mark.parametrize(
    "command, code, words",
    [
        ("clustersim --version", 0, "clustersim 0."),
        ("minglm --version", 0, "minglm 0."),
        ("clustersim plan --model llama3_8b --cluster dgx_h100 --chips 8", 0, "TP1 PP1 DP8"),
        ("clustersim campaign glm5_mini_smoke", 0, "goodput"),
        ("clustersim rollouts case.yaml", 0, "320 trained, 32 buffered"),
        ("clustersim serving serving_glm5_h200", 0, "GLM-5 FP8 on 8 x H200"),
        ("clustersim validate --no-cross", 0, "bloom-176b"),
        ("clustersim claims", 0, "total-params             reproduced"),
        ("clustersim trace glm5_mini_smoke", 0, "written: step.json"),
        (
            "clustersim dashboard --no-browser",
            2,
            "voila is not installed, and the page is served by it; pip install 'minglm[lab]'",
        ),
        ("minglm doctor", 1, "pip install 'minglm[train]' (needed to train)"),
        ("minglm doctor", 1, "19 chips, 16 clusters"),
        ("minglm train ci_pretrain --print-config", 0, "stage: pretrain"),
        ("minglm train ci_pretrain", 2, "pip install 'minglm[train]'"),
        ("minglm rl --print-config", 0, "mode: sync"),
        ("minglm rl", 2, "pip install 'minglm[train]'"),
        ("minglm workshop contents", 0, "[learn/00_start_here](learn/00_start_here.ipynb)"),
        ("minglm lab", 2, "pip install 'minglm[train,lab]'"),
        ("minglm bench", 2, "run from a clone of the repository"),
    ],
)
def test_a_command_works_or_names_the_extra(call, tmp_path, command, code, words):
    (tmp_path / "case.yaml").write_text(CASE)
    found, out, err = call(*command.split())
    assert (found, words in out + err) == (code, True), (out[-1500:], err[-1500:])
    assert "Traceback" not in err and (code != 2 or len(err.splitlines()) == 1)
    assert "constraints.txt" not in out + err and "make demo" not in out + err, "advice for a checkout"


def test_the_course_is_copied_and_says_what_next(call, tmp_path):
    code, out, err = call("minglm", "course", "mine")
    assert code == 0, err
    assert "files written" in out and "pip install 'minglm[train,lab]'" in out and "cd mine, and minglm lab" in out
    assert (tmp_path / "mine" / "learn" / "00_start_here.ipynb").is_file() and (
        tmp_path / "mine" / "workshop" / "exercises" / "02_mla.ipynb"
    ).is_file()
    code, out, err = call("minglm", "course", ".")
    assert code == 2 and "is not empty and holds no course" in err and len(err.splitlines()) == 1


def test_with_the_extra_it_trains_and_keeps_runs_in_the_course(call, tmp_path):
    pytest.importorskip("torch")
    call("minglm", "course", "mine")
    learn = tmp_path / "mine" / "learn"
    code, out, err = call(
        "minglm", "train", "ci_pretrain", "--set", "steps=2", "--json", "--run", "../runs/two", extras=True, cwd=learn
    )
    assert code == 0 and json.loads(out)["step"] == 2, err
    program = (
        "from minglm.course import notebook; from minglm.course.workshop import checkpoints; "
        "print(notebook.runs('x')); print(checkpoints.demo())"
    )
    code, out, err = call("python", "-c", program, extras=True, cwd=learn)
    assert code == 0 and out.split() == [
        str(tmp_path / "mine" / "runs" / "x"),
        str(tmp_path / "mine" / "runs" / "demo"),
    ], err
