"""`minglm doctor`: is this machine ready, how fast is it, and what to do where it is not.

Each check is one row: name, state ("ok", "note" or "problem"), what was found, what to do. Only a problem makes the
command fail; a note is something that a part of the project would like and the rest does without.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime import compiled, extras, machine

BASE = ("simpy", "yaml", "pydantic", "tqdm", "plotly")
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
NEED_MEMORY_GIB, NEED_DISK_GIB = 2.0, 1.0  # what the demo takes at most, with room to spare


@dataclass(frozen=True)
class Check:
    """One row of the report: `state` is "ok", "note" or "problem"; `remedy` says what to do, empty when ok."""

    name: str
    state: str
    found: str
    remedy: str = ""


def examine(measure: bool = True) -> list[Check]:
    """All checks in the order they are printed. `measure` False leaves out the matmul rates (about two seconds)."""
    checks = [_python(), *_packages(), _data(), _memory(), _disk()]
    if importlib.util.find_spec("torch"):
        checks += [_torch(), _compiler()]
        if measure:
            checks += [_matmul()]
    checks += [_browser()]
    return checks


def _python() -> Check:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11):
        return Check(
            "python",
            "problem",
            found,
            "install Python 3.11 or newer"
            + datafiles.hint(" and call `make PYTHON=python3.11 demo`", ", then minglm into it"),
        )
    return Check("python", "ok", found)


def _packages() -> list[Check]:
    out = []
    missing = extras.missing(BASE)
    out.append(
        Check("base packages", "problem", f"missing {', '.join(missing)}", datafiles.install_hint())
        if missing
        else Check("base packages", "ok", ", ".join(BASE))
    )
    for extra, packages in extras.EXTRAS.items():
        missing = extras.missing(packages)
        if missing:
            out.append(
                Check(
                    f"extra {extra}",
                    "problem" if extra == "train" else "note",
                    f"missing {', '.join(missing)}",
                    datafiles.install_hint(extra) + (" (needed to train)" if extra == "train" else ""),
                )
            )
        else:
            out.append(Check(f"extra {extra}", "ok", ", ".join(f"{p} {_version(p)}" for p in packages)))
    return out


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _data() -> Check:
    try:
        counts = ", ".join(
            f"{len(datafiles.catalogue(folder, '.yaml', '.json'))} {folder}"
            for folder in ("chips", "clusters", "models", "scenarios", "recipes")
        )
    except InputError as err:
        return Check("data", "problem", *map(str.strip, str(err).rsplit(";", 1)))
    return Check("data", "ok", f"{counts} in {datafiles.where()}")


def _memory() -> Check:
    free, total = machine.available_memory_bytes() / 2**30, machine.total_memory_bytes() / 2**30
    found = f"{free:.1f} GiB free of {total:.1f} GiB"
    if free < NEED_MEMORY_GIB:
        return Check(
            "memory",
            "problem",
            found,
            f"close programs until {NEED_MEMORY_GIB:.0f} GiB are free, or train the recipes ci_*",
        )
    return Check("memory", "ok", found)


def _disk() -> Check:
    free = machine.free_disk_bytes(Path.cwd()) / 2**30
    found = f"{free:.1f} GiB free here"
    if free < NEED_DISK_GIB:
        return Check("disk", "problem", found, f"free {NEED_DISK_GIB:.0f} GiB, or work on another disk")
    return Check("disk", "ok", found)


def _torch() -> Check:
    import torch

    device = machine.default_device()
    found = (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores of "
        f"{machine.cpu_name()}, device {device}"
    )
    if (os.cpu_count() or 1) > 1 and torch.get_num_threads() == 1:
        return Check("torch", "note", found, "OMP_NUM_THREADS=1 is set: unset it to train on all cores")
    return Check("torch", "ok", found)


def _compiler() -> Check:
    compiler = compiled.compiler()
    if compiler is None:
        remedy = "torch decodes and indexes, several times slower; install gcc or clang"
        return Check("C compiler", "note", "none that can be used", remedy)
    found = f"{compiler}: decoding and the indexer are compiled on first use, MINGLM_FAST=0 leaves it out"
    return Check("C compiler", "ok", found)


def _matmul() -> Check:
    device = machine.default_device()
    rates = {d: machine.matmul_flops_per_s(d, device) / 1e9 for d in ("fp32", "bf16")}
    found = f"fp32 {rates['fp32']:.0f} GFLOP/s, bf16 {rates['bf16']:.0f} GFLOP/s measured; training computes in fp32"
    if rates["fp32"] < 20:
        return Check("matmul", "note", found, "slow machine: expect the demo to take longer than ten minutes")
    return Check("matmul", "ok", found)


def _browser() -> Check:
    path = os.environ.get("CHROMIUM") or next((p for c in _CHROMIUM if (p := shutil.which(c))), None)
    if path and Path(path).exists():
        return Check("chromium", "ok", path)
    return Check(
        "chromium",
        "note",
        "not found",
        "only the browser tests want it: apt install chromium, or set CHROMIUM to its path",
    )


def report(checks: list[Check], colour: bool = False) -> str:
    """The checks as text and, at the end, what to do next."""
    marks = {"ok": ("ok", "32"), "note": ("note", "33"), "problem": ("PROBLEM", "31")}
    width, lines = max(len(c.name) for c in checks), []
    for check in checks:
        word, code = marks[check.state]
        mark = f"\033[{code}m{word:<7}\033[0m" if colour else f"{word:<7}"
        lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<7}  {'':<{width}}  → {check.remedy}")
    problems = [c for c in checks if c.state == "problem"]
    lines.append("")
    lines.append(
        f"{len(problems)} to mend before training: {', '.join(c.name for c in problems)}"
        if problems
        else f"Ready. Next: {datafiles.hint('make demo', 'minglm demo, or minglm course my-course for the notebooks')}"
    )
    return "\n".join(lines)


def as_json(checks: list[Check]) -> dict:
    """For machines: `ready` (no problem), and `checks` with name, state, found and remedy."""
    return {"ready": all(c.state != "problem" for c in checks), "checks": [asdict(c) for c in checks]}
