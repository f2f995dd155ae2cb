"""`minglm train` in several processes: one curve, checkpoints for any number of processes, a killed process, wrong
numbers."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes import start_ranks

torch = pytest.importorskip("torch")

from minglm.training import checkpoint, metrics  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        not torch.distributed.is_available() or sys.platform == "win32", reason="torch without gloo here"
    ),
]
STEPS = 8
CURVE = (
    "loss",
    "lm_loss",
    "mtp_loss",
    "balance_loss",
    "val_loss",
    "grad_norm",
    "load_entropy",
    "load_max_over_mean",
    "dropped_tokens",
)


def command(run: Path, **changes) -> list[str]:
    settings = {"steps": STEPS, "checkpoint_every": 2, "val_every": 4, **changes}
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
        *(x for k, v in settings.items() for x in ("--set", f"{k}={v}")),
    ]


def together(world: int, run: Path, plan: str = "", **changes) -> list[subprocess.Popen]:
    processes = start_ranks(world, command(run, **changes), MINGLM_PARALLEL=plan)
    for p in processes:
        p.out, p.err = p.communicate(timeout=600)
    return processes


def same_curve(ours: Path, theirs: Path) -> None:
    a, b = metrics.read(ours / "metrics.csv"), metrics.read(theirs / "metrics.csv")
    assert [r["step"] for r in a] == [r["step"] for r in b] == list(range(1, STEPS + 1)), "no step twice, none missing"
    for x, y in zip(a, b, strict=False):
        for key in CURVE:
            assert x[key] == y[key] or abs(x[key] - y[key]) < 1e-5, (x["step"], key, x[key], y[key])


def same_weights(ours: Path, theirs: Path, tolerance: float) -> None:
    a, b = checkpoint.latest(ours), checkpoint.latest(theirs)
    assert a.step == b.step and a.model.keys() == b.model.keys() and a.optimizer.keys() == b.optimizer.keys()
    for name, t in {**a.model, **a.optimizer}.items():
        other = {**b.model, **b.optimizer}[name]
        assert t.shape == other.shape and (t.double() - other.double()).abs().max() <= tolerance, name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    done = subprocess.run(command(run), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, one of which is killed in the middle; then the same command again."""
    for _ in range(3):  # a machine that others use may look away until it has ended
        run = tmp_path_factory.mktemp("pair") / "run"
        processes = start_ranks(2, command(run))
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not any((run / "checkpoints").glob("step_*")):
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGKILL)
        _, err = processes[0].communicate(timeout=600)  # far less than a collective would wait by itself
        processes[1].communicate()
        after = len(metrics.read(run / "metrics.csv"))
        if after < STEPS:
            break
    return run, processes[0].returncode, err, after, together(2, run)


def test_a_killed_process_ends_the_others_with_one_line(two):
    _run, code, err, _, _ = two
    lines = [line for line in err.splitlines() if line.startswith("process 0 of 2: lost another process")]
    assert code == 1 and len(lines) == 1 and "last checkpoint" in lines[0] and "Traceback" not in err, err


def test_the_same_command_goes_on_and_ends_where_one_process_ends(one, two):
    run, _, _, after, again = two
    assert [p.returncode for p in again] == [0, 0], [p.err for p in again]
    assert again[0].out.count("\n") == 1 and not again[1].out, "one process speaks"
    assert after < STEPS, "it was killed before the end"
    same_curve(run, one)
    same_weights(run, one, 1e-4)


def test_a_checkpoint_loads_at_another_number_of_processes_and_in_one(one, two, tmp_path):
    import shutil

    run, expected = two[0], checkpoint.latest(two[0])
    assert len(list(expected.path.glob("shard-*.safetensors"))) == 2 and not list(expected.path.glob("*.distcp"))
    # four processes, split otherwise, take two more steps from it; so does one process
    runs = {}
    for name in ("four", "single"):
        runs[name] = tmp_path / name / "run"
        shutil.copytree(two[0], runs[name])
        shutil.copytree(two[0].parent / "data", tmp_path / name / "data")
        for late in sorted((runs[name] / "checkpoints").iterdir())[-1:]:
            shutil.rmtree(late)  # go on from the one before the last
    four = together(4, runs["four"], "ep=2 tp=2")
    assert not any(p.returncode for p in four), [p.err for p in four]
    alone = subprocess.run(command(runs["single"]), capture_output=True, text=True, timeout=600)
    assert alone.returncode == 0, alone.stderr
    assert len(list(checkpoint.latest(runs["four"]).path.glob("shard-*.safetensors"))) == 4
    for name in runs:
        same_curve(runs[name], one)
        same_weights(runs[name], run, 1e-4)
    # and nothing changes on the way into a single process's files
    single = checkpoint.read(
        checkpoint.save(tmp_path / "converted", expected.step, expected.config, expected.model, expected.optimizer)
    )
    assert (single.path / "model.safetensors").is_file() and single.step == expected.step
    assert all(torch.equal(t, single.model[n]) for n, t in expected.model.items())
    assert all(torch.equal(t, single.optimizer[n]) for n, t in expected.optimizer.items())


def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used(two, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(two[0], run)
    shard = sorted(sorted((run / "checkpoints").iterdir())[-1].glob("shard-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    said: list[str] = []
    found = checkpoint.latest(run, said.append)
    assert found.step == STEPS - 2 and len(said) == 1 and str(shard) in said[0]


def test_wrong_numbers_are_refused_once_with_exit_code_2(tmp_path):
    processes = together(2, tmp_path / "run", "ep=3")
    assert [p.returncode for p in processes] == [2, 2]
    assert processes[0].err.count("\n") == 1 and "--nproc-per-node 3" in processes[0].err and not processes[1].err
