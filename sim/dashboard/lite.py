"""The planner page as a site that runs in a browser with nothing installed: `python -m sim.dashboard.lite` builds it
into runs/lite.

Python itself comes as WebAssembly (npm `pyodide`), the packages as pure wheels from PyPI; both are fetched once into
runs/.lite and then served from the site, which asks nothing of any other machine. The wheels' hashes in Pyodide's lock
file are those of the files that are served, and what is not served is not in the lock file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError, Parser
from minglm.runtime import run_folder
from sim.dashboard import lite_wheel
from sim.report.html import static_text

PYODIDE = "314.0.6"
CORE = ("pyodide.mjs", "pyodide.js", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "package.json")
NOTEBOOKS = ("plan/planner.ipynb", "plan/compare_two_clusters.ipynb", "plan/write_the_report.ipynb")
# Wheels that Pyodide does not list, of the versions installed here: name → what it needs, and what it is imported as.
OURS = {
    "plotly": (("narwhals", "packaging"), "plotly"),
    "ipywidgets": (("comm", "ipython", "traitlets"), "ipywidgets"),
    "comm": (("traitlets",), "comm"),
    "simpy": ((), "simpy"),
}
# Of Pyodide's own list: the package manager, the shell of the kernel, and what ours need.
THEIRS = ("micropip", "packaging", "ipython", "jedi", "traitlets", "narwhals", "typing-extensions", "tqdm")
CODE = "from sim.dashboard.page import open_page; page = open_page()"
KERNEL = "@jupyterlite/pyodide-kernel-extension:kernel"


def fetch_pyodide(cache: Path) -> Path:
    """The unpacked npm package, fetched once.

    Raises:
        InputError: npm is missing, or the package cannot be had.
    """
    place = cache / f"pyodide-{PYODIDE}"
    if not (place / "package" / "pyodide-lock.json").is_file():
        if shutil.which("npm") is None:
            raise InputError(
                "npm is not installed, and Python for the browser comes as the npm package pyodide; install "
                "Node.js, then build again"
            )
        place.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", f"pyodide@{PYODIDE}", "--silent"],
            cwd=place,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise InputError(
                f"the npm package pyodide@{PYODIDE} cannot be had ({_last(done.stderr)}); connect to a network "
                "once, then build again"
            )
        with tarfile.open(next(place.glob("pyodide-*.tgz"))) as tar:
            tar.extractall(place, filter="data")
    return place / "package"


def closure(lock: dict, names=THEIRS) -> dict[str, str]:
    """Name → version of what `names` need, by the lock file. Compiled packages are refused: none is needed."""
    out, waiting = {}, list(names)
    while waiting:
        name = _flat(waiting.pop())
        if name in out or name in OURS:
            continue
        entry = lock["packages"].get(name)
        if entry is None:
            raise InputError(
                f"package {name}: not in the lock file of pyodide {PYODIDE}; add it to OURS in sim/dashboard/lite.py"
            )
        if "-none-any" not in entry["file_name"]:
            raise InputError(f"package {name}: {entry['file_name']} is compiled; only pure wheels are served")
        out[name] = entry["version"]
        waiting += entry["depends"]
    return out


def fetch_wheels(lock: dict, cache: Path) -> dict[str, Path]:
    """Name → wheel of everything the kernel and the page need, fetched once with pip."""
    place = cache / "wheels"
    place.mkdir(parents=True, exist_ok=True)
    wanted = closure(lock)
    for name in OURS:
        try:
            wanted[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"{name} is not installed; {datafiles.install_hint('lab,dev')}, then build again"
            ) from None
    wheels = {name: _wheel(place, name, version) for name, version in wanted.items()}
    missing = [f"{name}=={wanted[name]}" for name, path in wheels.items() if path is None]
    if missing:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--python-version=3.14",
                "--implementation=py",
                "--abi=none",
                "--platform=any",
                "-d",
                str(place),
                *missing,
            ],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise InputError(
                f"wheels {', '.join(missing)} cannot be had ({_last(done.stderr)}); connect to a package index "
                "once, then build again"
            )
        wheels = {name: _wheel(place, name, version) for name, version in wanted.items()}
    lost = [name for name, path in wheels.items() if path is None]
    if lost:
        raise InputError(
            f"no pure wheel of {', '.join(lost)} was fetched into {place}; remove the folder and build again"
        )
    return {name: path for name, path in wheels.items() if path is not None}


def _flat(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _wheel(place: Path, name: str, version: str) -> Path | None:
    return next(
        (p for p in place.glob("*.whl") if _flat(p.name.split("-")[0]) == name and p.name.split("-")[1] == version),
        None,
    )


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no reason given"


def lock_file(lock: dict, wheels: dict[str, Path], project: Path) -> dict:
    """Pyodide's lock file with only what is served, each with the hash of the file that is served."""

    def entry(name: str, path: Path, depends, imports, version: str) -> dict:
        return {
            "name": name,
            "version": version,
            "file_name": path.name,
            "install_dir": "site",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "package_type": "package",
            "imports": list(imports),
            "depends": [_flat(d) for d in depends if _flat(d) in wheels],
            "unvendored_tests": False,
        }

    packages = {}
    for name, path in wheels.items():
        if name in OURS:
            needs, imported = OURS[name]
            packages[name] = entry(name, path, needs, (imported,), path.name.split("-")[1])
        else:
            old = lock["packages"][name]
            packages[name] = entry(name, path, old["depends"], old["imports"], old["version"])
    packages["minglm"] = {
        **entry("minglm", project, (), ("sim", "minglm"), lite_wheel.VERSION),
        "depends": ["plotly", "ipywidgets", "simpy", "tqdm"],
    }
    return {**lock, "packages": packages}


def stage(cache: Path) -> Path:
    """The folder that JupyterLite builds from: Pyodide with its wheels, the notebooks and the settings."""
    package = fetch_pyodide(cache)
    lock = json.loads((package / "pyodide-lock.json").read_text(encoding="utf-8"))
    wheels, staged = fetch_wheels(lock, cache), cache / "stage"
    run_folder.refuse_foreign(staged, "stage")
    shutil.rmtree(staged, ignore_errors=True)  # of the cache, remade each time
    run_folder.claim(staged, "stage")
    static = staged / "static" / "pyodide"
    static.mkdir(parents=True)
    project = lite_wheel.build(static)
    for name in CORE:
        atomic.copy(package / name, static / name)
    for path in wheels.values():
        atomic.copy(path, static / path.name)
    atomic.write_json(static / "pyodide-lock.json", lock_file(lock, wheels, project), indent=None)
    (staged / "files").mkdir()
    for name in NOTEBOOKS:
        if datafiles.notebooks(name).is_file():
            atomic.copy(datafiles.notebooks(name), staged / "files" / Path(name).name)
    settings = {
        KERNEL: {
            "disablePyPIFallback": True,
            "loadPyodideOptions": {"packages": ["micropip", "minglm", "ipython", "jedi"]},
        }
    }
    config = {
        "appName": "The planner",
        "litePluginSettings": settings,
        "disabledExtensions": ["@voila-dashboards/jupyterlab-preview"],
    }
    atomic.write_json(staged / "jupyter-lite.json", {"jupyter-lite-schema-version": 0, "jupyter-config-data": config})
    return staged


def page(site: Path) -> Path:
    """planner.html: the page alone, without a notebook around it."""
    query = urllib.parse.urlencode(
        {
            "kernel": "python",
            "toolbar": 0,
            "execute": 1,
            "hideCodeInput": 1,
            "showBanner": 0,
            "promptCellPosition": "bottom",
            "code": CODE,
        }
    )
    path = site / "planner.html"
    atomic.write_text(path, static_text("sim.dashboard", "lite.html").replace("QUERY", query.replace("&", "&amp;")))
    return path


def build(site: Path | None = None) -> Path:
    """Build the site (default runs/lite); returns planner.html.

    Raises:
        InputError: something to build from is missing, or JupyterLite refuses.
    """
    try:
        import jupyterlite_core  # noqa: F401
        import jupyterlite_pyodide_kernel  # noqa: F401
    except ImportError as err:
        raise InputError(f"{err.name} is not installed; {datafiles.install_hint('dev')}, then build again") from None
    site, staged = site or datafiles.runs("lite"), stage(datafiles.runs(".lite"))
    run_folder.set_aside(site, "site")
    with run_folder.writing(site, "site", "make lite"):
        _run_jupyterlite(staged, site)
    return page(site)


def _run_jupyterlite(staged: Path, site: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jupyterlite_core",
            "build",
            "--lite-dir",
            str(staged),
            "--output-dir",
            str(site),
            "--contents",
            str(staged / "files"),
            "--no-sourcemaps",
            "--apps",
            "lab",
            "--apps",
            "repl",
            "--apps",
            "notebooks",
            "--apps",
            "tree",
        ],
        cwd=staged,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode or not (site / "jupyter-lite.json").is_file():
        raise InputError(
            f"JupyterLite did not build ({_last(done.stderr or done.stdout)}); run jupyter lite build in {staged} to "
            "see why"
        )
    run_folder.claim(site, "site")  # it empties the folder first


def main(argv: Sequence[str] | None = None) -> int:
    """Build the site; the exit code."""
    parser = Parser(
        prog="python -m sim.dashboard.lite",
        description="Build the planner page as a site that needs nothing but a browser.",
    )
    parser.add_argument("--out", type=Path, help="folder of the site (default runs/lite)")
    args = parser.parse_args(argv)
    try:
        site = (args.out or datafiles.runs("lite")).resolve()
        page_path = build(site)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    size = sum(p.stat().st_size for p in site.rglob("*") if p.is_file())
    print(
        f"{page_path}: {size / 1e6:.0f} MB\nserve it: {sys.executable} -m http.server --bind 127.0.0.1 -d {site} "
        "8000, then open http://127.0.0.1:8000/planner.html"
    )
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
