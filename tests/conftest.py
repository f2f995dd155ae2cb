"""What tests of several folders share: generated examples, checkpoints made once, who runs beside whom, what was
skipped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker a core: more threads would only wait for each other

import minglm  # noqa: F401  sets how threads wait, before any test loads torch
from minglm.runtime import loopback

loopback.bypass_proxy()  # tests ask servers on this machine

try:
    from hypothesis import settings
except ImportError:  # the environment of tests/mindspore_twin
    pass
else:
    # The same examples on every run, on every machine; `make soak` looks for new ones and prints its seed.
    settings.register_profile("calm", derandomize=True, database=None, deadline=None)
    settings.register_profile("soak", database=None, deadline=None, print_blob=True)
    settings.load_profile("soak" if os.environ.get("MINGLM_SOAK") else "calm")


SLOW_FOLDERS = {"browser", "notebooks", "wheel"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What is slow begins, so that no worker is left with it alone at the end.

    For `--dist loadgroup`: tests that share a fixture of their module stay together, so that one worker makes it, once.
    """
    for item in items:
        if SLOW_FOLDERS.intersection(item.path.relative_to(item.config.rootpath).parts):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(item.config.rootpath).as_posix()))


def _shares_a_fixture(item) -> bool:
    fixtures = getattr(item, "_fixtureinfo", None)
    return fixtures is not None and any(f[-1].scope in ("module", "class") for f in fixtures.name2fixturedefs.values())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test draws the same numbers, alone or after others, in whatever worker."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


RUNS = Path(__file__).resolve().parents[1] / "runs"


@pytest.fixture(scope="session", autouse=True)
def own_runs_folder(tmp_path_factory):
    """What a command keeps without being told where goes to a folder of this session, not among the user's runs."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINGLM_RUNS", str(place))
        yield


def pytest_sessionstart(session):
    session.runs_before = _kept(RUNS)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Tests leave the user's runs as they found them."""
    if hasattr(session.config, "workerinput") or not hasattr(session, "runs_before"):
        return
    touched = sorted({Path(path).parts[0] for path, _ in _kept(RUNS) ^ session.runs_before})
    if touched:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(
            f"\n{RUNS}: changed while tests ran: {', '.join(touched)}. If nothing else wrote there, a test did: "
            "what it keeps goes through minglm.datafiles.runs, so that MINGLM_RUNS moves it",
            red=True,
        )


def _kept(folder: Path) -> set[tuple[str, int]]:
    """(path, time of the last change) of every file below a folder."""
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another program's, gone since it was listed
            if path.is_file():
                found.add((path.relative_to(folder).as_posix(), path.stat().st_mtime_ns))
    return found


def pytest_terminal_summary(terminalreporter):
    """How many tests were skipped, and why, in a line a reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        r.longrepr[2].removeprefix("Skipped: ") if isinstance(r.longrepr, tuple) else str(r.longrepr) for r in reports
    )
    if reasons:
        terminalreporter.section(f"{len(reports)} skipped")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4}  {reason}")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: the folder that `make(folder)` filled, by the first worker that asks; the others wait
    for it."""
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder_of(name, make):
        folder, done = root / "made_once" / name, root / "made_once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def small_checkpoint(made_once):
    """Three steps of `ci_pretrain`: a run folder that can be served."""
    torch = pytest.importorskip("torch")
    from minglm.training import recipe
    from minglm.training.loop import train

    torch.set_num_threads(1)
    return made_once(
        "small_checkpoint",
        lambda folder: train(recipe.load("ci_pretrain", {"steps": 3}), folder, None, progress=False, device="cpu"),
    )


@pytest.fixture(scope="session")
def nano_demo(made_once):
    """The demo of size nano, killed three times on its way and gone on with. Its stages are only read."""
    return made_once("nano_demo", _killed_and_finished)


def _killed_and_finished(folder):
    argv = [sys.executable, "-m", "minglm", "demo", "--size", "nano", "--run", str(folder), "--quiet"]
    for wait_for in ("pretrain/metrics.csv", "sparse/metrics.csv", "rl_sync/metrics.csv"):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (folder / wait_for).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="session")
def warm(made_once):
    """Three steps of a warm start on the task sum: a tiny checkpoint that an RL run can start from."""
    pytest.importorskip("torch")
    from minglm.rl.warm_start import WarmStart, warm_start

    small = dict(
        hidden_size=32, num_hidden_layers=2, n_routed_experts=4, moe_intermediate_size=16, max_position_embeddings=160
    )
    recipe = WarmStart(task="sum", tail=0.5, steps=3, batch_size=2, seq_len=64, longest=40, model=small)
    return made_once("warm", lambda folder: warm_start(recipe, folder))
