"""Plants one fault at a time in a copy of the code and runs the tests beside it: those that pass have not seen it.

    python -m tests.mutants [PART]     the table of tests/mutants/planted.py; PART: a piece of a file name
    python -m tests.mutants --automatic [--each 8] [--seed 0] [--log FILE] [PART]     a sample of all small changes

Exit code 1 where a fault lives. The process loads torch once and forks for each fault, so that one takes seconds.
"""

import argparse
import contextlib
import csv
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mutants.automatic import CORE, sample
from tests.mutants.planted import PLANTED

ROOT = Path(__file__).parents[2]
MOST_BYTES = 16 * 2**30
LIMIT_S = 120.0  # of one fault's tests; what loops without end is seen
WHOLE_LIMIT_S = 600.0  # of the tests before any fault, on a busy machine too
COPIED = ("minglm", "sim", "tests", "data", "notebooks", "pyproject.toml")


def run_tests(folder: Path, tests: str, log: Path, limit_s: float = LIMIT_S) -> int | None:
    """pytest's exit code in a forked process that imports the copy; None where it took too long."""
    child = os.fork()
    if not child:
        code = 70
        with contextlib.suppress(BaseException):
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))  # a change may ask for any amount
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            os.chdir(folder)
            for name in [n for n in sys.modules if n.partition(".")[0] in ("tests", "minglm", "sim")]:
                del sys.modules[name]
            sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
            sys.dont_write_bytecode = True
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # of what a changed C file compiles to
            import pytest

            quiet = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line"]
            code = int(pytest.main([*quiet, *tests.split()]))
        os._exit(code)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def copy_of_the_code(folder: Path) -> None:
    """What the tests need, without what was built."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy(ROOT / name, folder / name)


def prepare() -> None:
    """Load what every forked process needs and no fault is in."""
    import hypothesis  # noqa: F401
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import torch._dynamo
    import yaml  # noqa: F401

    with contextlib.suppress(ImportError):
        import transformers  # noqa: F401

    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads


def automatic(part: str, each: int, seed: int, log_file: Path | None) -> int:
    """Try a sample of all small changes; the score of each file, and a line for each change that lives."""
    prepare()
    rows: list[tuple[str, int, str, bool]] = []
    with tempfile.TemporaryDirectory() as place:
        folder, log = Path(place), Path(place) / "log"
        copy_of_the_code(folder)
        chosen = sample(part, each, seed, lambda file: (ROOT / file).read_text(encoding="utf-8"))
        whole_s: dict[str, float] = {}
        for tests in dict.fromkeys(fault.tests for fault, _ in chosen):
            began = time.monotonic()
            if run_tests(folder, tests, log, WHOLE_LIMIT_S) != 0:
                print(f"{tests}: fails without a change, so it shows nothing\n{log.read_text()[-2000:]}")
                return 2
            whole_s[tests] = time.monotonic() - began
        for fault, change in chosen:
            path = folder / fault.file
            path.write_text(fault.new, encoding="utf-8")
            seen = run_tests(folder, fault.tests, log, 20 + 5 * whole_s[fault.tests]) != 0
            path.write_text(fault.old, encoding="utf-8")
            rows.append((fault.file, change.line, change.words, seen))
            if not seen:
                print(f"{fault.file}:{change.line}: lives: {change.words}", flush=True)
            if log_file is not None:
                write_log(log_file, rows, seed)
    total, seen_of = Counter(row[0] for row in rows), Counter(row[0] for row in rows if row[3])
    for file, count in total.items():
        print(f"{file}: {seen_of[file]} of {count} seen")
    print(f"{sum(seen_of.values())} of {len(rows)} changes seen, seed {seed}")
    return 0


def write_log(path: Path, rows: list[tuple[str, int, str, bool]], seed: int) -> None:
    """The log as CSV: a line for each change, in the order of the files; files not tried now keep their lines."""
    tried, kept = {row[0] for row in rows}, []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[1] not in tried and row[1] in CORE]
    kept += [[str(seed), name, str(line), words, "yes" if seen else "no"] for name, line, words, seen in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("seed", "file", "line", "change", "seen"))
        out.writerows(sorted(kept, key=lambda row: row[1]))


def planted(part: str) -> int:
    """Try the table; says which faults live, which rows no longer fit the code, and the score of each file."""
    prepare()
    chosen = [fault for fault in PLANTED if part in fault.file]
    lives, gone = Counter(), []
    with tempfile.TemporaryDirectory() as place:
        folder, log = Path(place), Path(place) / "log"
        copy_of_the_code(folder)
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            if run_tests(folder, tests, log) != 0:
                print(f"{tests}: fails without a fault, so it shows nothing\n{log.read_text()[-2000:]}")
                return 2
        for fault in chosen:
            path = folder / fault.file
            whole = path.read_text(encoding="utf-8")
            if whole.count(fault.old) != 1:
                gone.append(fault)
                print(f"{fault.file}: {fault.old!r} stands there {whole.count(fault.old)} times", flush=True)
                continue
            path.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
            code = run_tests(folder, fault.tests, log)
            path.write_text(whole, encoding="utf-8")
            if code == 0:
                lives[fault.file] += 1
                print(f"{fault.file}: lives: {fault.old!r} -> {fault.new!r}", flush=True)
    for file, count in Counter(fault.file for fault in chosen).items():
        print(f"{file}: {count - lives[file]} of {count} seen")
    print(f"{len(chosen) - sum(lives.values()) - len(gone)} of {len(chosen)} faults seen, {len(gone)} rows out of date")
    return 1 if lives or gone else 0


def main() -> int:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    p.add_argument("part", nargs="?", default="")
    p.add_argument("--automatic", action="store_true", help="a sample of all small changes of the core files")
    p.add_argument("--each", type=int, default=8, help="changes of a file")
    p.add_argument("--seed", type=int, default=0, help="of the sample")
    p.add_argument("--log", type=Path, help="CSV with a line for each change")
    args = p.parse_args()
    return automatic(args.part, args.each, args.seed, args.log) if args.automatic else planted(args.part)


if __name__ == "__main__":
    sys.exit(main())
