"""The pins of constraints.txt, resolved as another machine would resolve them: `make lock-check`.

It asks the package registry, so `make test` leaves it out; tests/house/test_setup.py reads the pins without a network.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif("MINGLM_LOCK" not in os.environ, reason="asks the package registry: make lock-check")


@pytest.mark.parametrize("python", ["3.11.2", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", ["linux", "aarch64-manylinux_2_28", "macos", "windows"])
def test_every_extra_resolves_to_wheels(platform, python, tmp_path):
    """Every dependency of every extra, its own dependencies too, at its pin and as a wheel: nothing is compiled.

    torch's wheels need macOS 14 on Apple silicon.
    """
    uv = shutil.which("uv", path=Path(sys.executable).parent.as_posix()) or shutil.which("uv")
    assert uv, "uv is missing: make lock-check installs it"
    extras = [word for extra in ("train", "lab", "dist", "dev") for word in ("--extra", extra)]
    asked = ["--python-version", python, "--python-platform", platform, "--only-binary", ":all:"]
    done = subprocess.run(
        [
            uv,
            "pip",
            "compile",
            "pyproject.toml",
            *extras,
            "-c",
            "constraints.txt",
            *asked,
            "-q",
            "-o",
            tmp_path / "out",
        ],
        cwd=ROOT,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    found = [line for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    held = {_name(p) for p in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in p}
    loose = [line.split(" ;")[0] for line in found if _name(line) not in held]
    print(f"{platform}, Python {python}: {len(found)} packages, without a pin: {', '.join(loose) or 'none'}")
    assert "torch==2.13.0" in found and len(found) > 150


def _name(pin: str) -> str:
    """As registries compare names."""
    return re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower()
