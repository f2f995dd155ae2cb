"""SIGKILL a real `minglm train` at random moments: the resumed run must be the unkilled run, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minglm.training import metrics

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]
STEPS = 24


def command(run: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "minglm",
        "train",
        "ci_pretrain",
        "--run",
        str(run),
        "--json",
        "--device",
        "cpu",
        "--set",
        f"steps={STEPS}",
        "--set",
        "checkpoint_every=5",
        "--set",
        "val_every=7",
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def finish(run: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(run), env=environment(), capture_output=True, text=True, timeout=300)


def lasting(run: Path, name: str) -> list[dict]:
    """Rows of a CSV without the columns that the clock decides."""
    return [{k: v for k, v in row.items() if k not in metrics.TIMED} for row in metrics.read(run / name)]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    done = finish(run)
    assert done.returncode == 0, done.stderr
    return run


def wait_for_rows(process: subprocess.Popen, run: Path, rows: int) -> None:
    """Until metrics.csv has at least so many rows, so that a kill lands inside training and not before it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.csv"
        if path.is_file() and path.read_bytes().count(b"\n") > rows:
            return
        time.sleep(0.005)


def test_killed_runs_end_bit_identical(unkilled, tmp_path):
    rng, run, kills = random.Random(11), tmp_path / "run", 0
    for aim in sorted(rng.sample(range(1, STEPS // 2), 4)):
        process = subprocess.Popen(
            command(run), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_rows(process, run, aim)
        time.sleep(rng.random() * 0.03)  # anywhere: in a step, a validation, a checkpoint
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills, "the machine was too fast for the test to hit it"
    done = finish(run)
    assert done.returncode == 0, done.stderr
    ours, theirs = lasting(run, "metrics.csv"), lasting(unkilled, "metrics.csv")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1)), "no step twice, none missing"
    assert ours == theirs
    assert lasting(run, "expert_load.csv") == lasting(unkilled, "expert_load.csv")
    name = f"checkpoints/step_{STEPS:08d}/model.safetensors"
    assert (run / name).read_bytes() == (unkilled / name).read_bytes(), "weights too"
    assert len(list((run / "checkpoints").iterdir())) == 2, "the last two are kept, nothing half-written stays"


def test_damaged_checkpoint_is_named_and_the_previous_one_used(unkilled, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(unkilled, run)
    shutil.copytree(unkilled.parent / "data", tmp_path / "data")
    newest = sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    done = finish(run)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and str(newest) in done.stderr and "previous one" in done.stderr
    assert lasting(run, "metrics.csv") == lasting(unkilled, "metrics.csv")


def test_ctrl_c_saves_and_says_how_to_go_on(unkilled, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(run), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(process, run, 6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and len(err.strip().splitlines()) == 1 and "state saved" in err, err
    saved = int(sorted((run / "checkpoints").iterdir())[-1].name.removeprefix("step_"))
    assert saved == len(metrics.read(run / "metrics.csv")) < STEPS
    assert finish(run).returncode == 0
    assert lasting(run, "metrics.csv") == lasting(unkilled, "metrics.csv")
