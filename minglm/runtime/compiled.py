"""C beside the Python that is read: compiled for this machine when it is first wanted, kept in the user's cache.

Where there is no compiler, or it fails, there is no library, and whoever asked computes in torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Nobody reads the processor's flags of what overflowed: without them a choice between two numbers goes eight at a time.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC")
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))  # what a C file may include
SECONDS = 120  # that a compiler may take


@functools.cache
def library(source: Path, *definitions: str) -> ctypes.CDLL | None:
    """The functions of a C file, compiled with `definitions` such as "DOUBLE"; None where that cannot be."""
    command = compiler()
    if command is None:
        return None
    try:
        text = b"".join(file.read_bytes() for file in (source, *HEADERS))
        flags = [*FLAGS, *(f"-D{d}" for d in definitions)]
        made_of = hashlib.sha256(b"\0".join([text, *(s.encode() for s in (*flags, command, _processor()))]))
        place = _cache() / f"{source.stem}-{made_of.hexdigest()[:24]}.so"
        if not place.is_file():
            _compile(command, flags, source, place)
        return ctypes.CDLL(str(place))
    except (OSError, subprocess.SubprocessError):
        return None


def compiler() -> str | None:
    """The C compiler that there is, as a path; None where there is none."""
    if sys.platform in ("win32", "emscripten"):
        return None  # the vectors of the code are those of GCC and Clang
    own = os.environ.get("CC")
    return next((found for name in (own, "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


def _processor() -> str:
    """What a machine can do that another, with the same home folder, may not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def _cache() -> Path:
    """The user's cache; where it cannot be written, a folder for this process alone."""
    base = Path.home() / "Library" / "Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME")
    place = Path(base or Path.home() / ".cache") / "minglm"
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="minglm-"))


def _compile(compiler: str, flags: list[str], source: Path, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        out = Path(folder) / "code.so"
        command = [compiler, *flags, f"-I{Path(__file__).parent}", "-shared", str(source), "-o", str(out), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        out.replace(place)  # whole or not at all, whoever else compiles it now
