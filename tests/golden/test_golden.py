"""Golden outputs: what the commands print is what is stored, so that code can be moved without changing an answer.

    python -m pytest tests/golden               figures of the simulator to 1e-12, loss curves of the toy to 1e-6
    python -m pytest tests/golden --update      store what is printed now; read the difference before committing it
    python -m pytest tests/golden --exact       bit for bit, with the toy's weights and its RL. For a refactor: --update
                                                on the commit before it, then --exact after it, on one machine

Keys, texts, counts and the length of lists are always compared as they are. Nothing here imports a module of the
packages: a command is run as `python -m` runs it, so that a move of modules needs no change here.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
import math
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from tests.golden.cases import CASES, Case, prepare

OUTPUTS = Path(__file__).parent / "outputs"
MAX_LINES = 40
MASK = "<masked>"
# What differs from one run or installation to the next, as CASE.PATH. Keys stay, values are masked.
VOLATILE = (
    r"(run|plan)_\w+\.versions\.[^.]+",  # of Python and of packages
    r"run_\w+\.step\.wall_s",  # of simulating
    r"plan_\w+\.(.*\.)?(cpu_s|cached)",  # of a search
    r"claims\.seconds",  # of recomputing the claims
    # of the toy: what a clock said
    r"toy_(curves|weights)\.(printed\[\d+\]|files\..*\.csv)\.(tokens_per_s|mfu)(\[\d+\])?",
    r"toy_rl\.(printed\[\d+\]|files\..*\.csv)\.(\w+_s|seconds|\w+_idle|slot_idle_frac)(\[\d+\])?",
)
# Where a text names a place in the code, the folders on the way do not count: `sim/stacks.py` and `sim.rules.total`
# become `<module>` and `sim…total`.
SOURCE_FILE, DOTTED = (
    r"\b(?:sim|minglm)(?:/\w+)*/\w+\.py\b",
    r"\b(sim|minglm)\.(?:[a-z_]\w*\.)*([a-z_]\w*)\b(?!\.ya?ml)",
)
PACKAGES = {"clustersim": "sim", "minglm": "minglm"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c.name == "validate_rollouts" else []) for c in CASES],
    ids=lambda case: case.name,
)
def test_output_is_the_stored_one(case: Case, request, tmp_path, monkeypatch):
    update = request.config.getoption("--update", default=False)
    exact = request.config.getoption("--exact", default=False)
    if case.exact_only and not (exact or update):
        pytest.skip("holds on one kind of CPU only; --exact checks it")
    if case.uses_torch:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    prepare(case, tmp_path)
    output = observe(case, tmp_path)
    stored_at = OUTPUTS / f"{case.name}.{'json' if case.is_json else 'txt'}"
    if update:
        stored_at.write_text(as_text(output), encoding="utf-8")
        return
    assert stored_at.is_file(), f"{stored_at} is not there; python -m pytest tests/golden --update writes it"
    stored = stored_at.read_text(encoding="utf-8")
    if case.is_json:
        lines = list(
            differences(json.loads(stored), json.loads(as_text(output)), 0.0 if exact else case.tolerance, exact)
        )
    else:
        before, after = (words(text) if case.help else text.splitlines() for text in (stored, output))
        lines = list(difflib.unified_diff(before, after, "stored", "now", lineterm="", n=1))
    if lines:
        more = [f"… and {len(lines) - MAX_LINES} more lines"] if len(lines) > MAX_LINES else []
        pytest.fail(
            "\n".join(
                [
                    f"{case.name} differs from tests/golden/outputs/{stored_at.name}:",
                    *lines[:MAX_LINES],
                    *more,
                    f"If this is meant: python -m pytest tests/golden --update -k {case.name}, and name the change "
                    "in the commit.",
                ]
            ),
            pytrace=False,
        )


def test_no_stored_file_without_a_case():
    assert {path.stem for path in OUTPUTS.iterdir()} == {case.name for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


# ---------------------------------------------------------------------- running a case


def observe(case: Case, folder: Path):
    """What the commands print, and the files that are asked for: a tree for JSON, else a text."""
    printed = {}
    for command in case.commands:
        code, out, err = call(command, repeatable(case.float64) if case.uses_torch else contextlib.nullcontext())
        assert code == case.exit_code, f"{command}: exit code {code}\n{err}"
        printed[command] = json.loads(out) if case.is_json else out + (err if case.exit_code else "")
    if not case.is_json:
        if len(printed) == 1:
            return next(iter(printed.values()))
        return "\n".join(f"$ {command}\n{text}" for command, text in printed.items())
    files = {
        str(path.relative_to(folder)): summary(path)
        for pattern in case.files
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    if case.files:
        assert files, f"no file {case.files}"
        return mask({"printed": list(printed.values()), "files": files}, case.name)
    return mask(next(iter(printed.values())) if len(printed) == 1 else list(printed.values()), case.name)


def call(command: str, state: contextlib.AbstractContextManager) -> tuple[int, str, str]:
    """Run a command line in this process as `python -m PACKAGE`: (exit code, standard output, standard error)."""
    program, *argv = shlex.split(command)
    out, err = io.StringIO(), io.StringIO()
    before, code = sys.argv, 0
    sys.argv = [program, *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), state:
            runpy.run_module(PACKAGES[program], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return code, placeless(out.getvalue()), placeless(err.getvalue())


def placeless(text: str) -> str:
    return re.sub(DOTTED, r"\1…\2", re.sub(SOURCE_FILE, "<module>", text))


@contextlib.contextmanager
def repeatable(float64: bool):
    """torch on one thread, so that sums have one order whatever the number of cores; in double precision if asked."""
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def summary(path: Path):
    """A file as it is stored: the columns of a CSV; of a trace its length, its sums and its first events; else its
    hash."""
    data = path.read_bytes()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
        return {name: [None if row[name] == "" else json.loads(row[name]) for row in rows] for name in rows[0]}
    if path.suffix == ".json" and "traceEvents" in (tree := json.loads(data)):
        events = tree["traceEvents"]
        total = {key: math.fsum(event[key] for event in events if key in event) for key in ("ts", "dur")}
        return {"events": len(events), "sum": total, "first": events[:60], "sha256": hashlib.sha256(data).hexdigest()}
    return {"sha256": hashlib.sha256(data).hexdigest()}


def mask(tree, path: str):
    """The tree with the values of volatile keys replaced."""
    if isinstance(tree, dict):
        return {key: mask(value, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list):
        return [mask(value, f"{path}[{index}]") for index, value in enumerate(tree)]
    return MASK if any(re.fullmatch(pattern, path) for pattern in VOLATILE) else tree


def as_text(output) -> str:
    return output if isinstance(output, str) else json.dumps(output, indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------- comparing


def differences(stored, now, tolerance: float, exact: bool, path: str = ""):
    """Lines that name each place where two trees differ; floats within the relative tolerance are equal."""
    here = path or "the whole"
    if isinstance(stored, dict) and isinstance(now, dict):
        for key in sorted(stored.keys() ^ now.keys()):
            yield (
                f"{'-' if key in stored else '+'} {path + '.' if path else ''}{key}: "
                f"{shown((stored if key in stored else now)[key])}"
            )
        if exact and (a := list(stored)) != (b := list(now)) and set(a) == set(b):
            yield f"  {here}: order of the keys: {a} now {b}"
        for key in (k for k in stored if k in now):
            if key == "sha256" and not exact:
                continue
            yield from differences(stored[key], now[key], tolerance, exact, f"{path}.{key}" if path else key)
    elif isinstance(stored, list) and isinstance(now, list):
        if len(stored) != len(now):
            yield f"  {here}: {len(stored)} items, now {len(now)}"
        for index, (a, b) in enumerate(zip(stored, now, strict=False)):
            yield from differences(a, b, tolerance, exact, f"{path}[{index}]")
    elif not same(stored, now, tolerance):
        apart = (
            f"   ({now / stored - 1:+.3g} relative)"
            if number(stored) and number(now) and stored and math.isfinite(now / stored)
            else ""
        )
        yield f"- {here}: {shown(stored)}"
        yield f"+ {here}: {shown(now)}{apart}"


def number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(a, b, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (
            a == b
            or (math.isnan(a) and math.isnan(b))
            or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
        )
    return type(a) is type(b) and a == b


def shown(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:159] + "…"


def words(text: str) -> list[str]:
    """A help text an option a line: where argparse breaks its lines differs between Pythons."""
    text = re.sub(r"-\s+", "-", " ".join(text.split()))
    return re.split(r"\s(?=\[?--?[a-z]|\$ )", text)
