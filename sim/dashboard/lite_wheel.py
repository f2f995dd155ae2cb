"""The project as a wheel for a browser: what runs without torch, numpy, PyYAML and pydantic, with its data files as
JSON.

The data files keep their names (`h100.yaml`): JSON is YAML, so the same loaders read them with PyYAML and without
(`sim.base.documents`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

from minglm import __version__, atomic, datafiles
from minglm.errors import InputError
from sim.base.documents import read_document

MINGLM = (
    "__init__.py",
    "atomic.py",
    "config.py",
    "config_file.py",
    "datafiles.py",
    "errors.py",
    "numbers.py",
    "plots.py",
    "settings.py",
    "sizes.py",
    "weights.py",
    "course/__init__.py",
    "course/notebook.py",
    "evals/__init__.py",
    "evals/statistics.py",
    "runtime/__init__.py",
    "runtime/ray.py",
    "runtime/run_folder.py",
    "runtime/run_lock.py",
    "runtime/switch.py",
    "rl/__init__.py",
    "rl/modes.py",
)
DATA = (
    "chips",
    "clusters",
    "measured",
    "models",
    "published_runs",
    "scenarios",
    "serving",
    "currency_and_carbon.yaml",
    "huggingface_defaults.json",
    "stacks.yaml",
    "fitted.yaml",
    "left_out.yaml",
)
VERSION = __version__
NAME = f"minglm-{VERSION}-py3-none-any.whl"


def sources() -> dict[str, bytes]:
    """Path in the wheel → contents."""
    ours, theirs = (datafiles.package(name) for name in ("sim", "minglm"))
    out = {
        f"sim/{p.relative_to(ours).as_posix()}": p.read_bytes()
        for p in sorted([*ours.rglob("*.py"), *ours.glob("*/static/*")])
    }
    out |= {f"minglm/{name}": (theirs / name).read_bytes() for name in MINGLM}
    for name in DATA:
        place = datafiles.data(name)
        for p in (
            [place]
            if place.is_file()
            else sorted(q for q in place.rglob("*") if q.suffix in (".yaml", ".json", ".csv", ".gz"))
        ):
            inside = f"minglm/_data/{p.relative_to(datafiles.data()).as_posix()}"
            out[inside] = as_json(p) if p.suffix == ".yaml" else p.read_bytes()
    return out


def as_json(path: Path) -> bytes:
    """A YAML file's content as JSON."""
    return (json.dumps(read_document(path), ensure_ascii=False) + "\n").encode()


def build(folder: Path) -> Path:
    """Write the wheel; the same sources give the same bytes.

    Raises:
        InputError: a data file that is not YAML, or the folder cannot be written.
    """
    files = sources()
    info = f"minglm-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: minglm\nVersion: {VERSION}\n".encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sim.dashboard.lite_wheel\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.opened(path, binary=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
            for name, data in files.items():
                z.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror or err}); give another folder") from None
    return path
