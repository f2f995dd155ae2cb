"""Kill the workers of an RL run, and the run itself, and give it rewards and weights that are wrong: nothing finished
is lost, nothing hangs, and what was lost is counted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minglm.errors import InputError
from minglm.rl import tasks
from minglm.rl.config import Settings
from minglm.rl.log import Journal, read_lines
from minglm.rl.messages import UpdateWeights, WeightsLoaded, WeightsRefused
from minglm.training import metrics

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]
SMALL = dict(
    task="sum",
    tail=0.8,
    updates=6,
    prompts_per_batch=2,
    samples_per_prompt=4,
    max_new_tokens=60,
    max_batch=16,
    eval_problems=0,
    checkpoint_every=2,
    dynamic_filter=False,
    seed=3,
)


def run(settings: Settings, folder: Path, warm: Path, task=None, **more) -> tuple[dict, list[str]]:
    from minglm.rl.run import rl

    said: list[str] = []
    return rl(settings, folder, warm, task=task, show=said.append, **more), said


def events(folder: Path, kind: str) -> list[dict]:
    return [e for e in read_lines(folder / "events.jsonl") if e["event"] == kind]


def kill_when(folder: Path, worker: str, ready) -> threading.Thread:
    """SIGKILL a worker's process once `ready()` holds, from the outside, as a machine would."""

    def watch() -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            try:
                if ready():
                    os.kill([e["pid"] for e in events(folder, "started") if e["worker"] == worker][-1], signal.SIGKILL)
                    return
            except (OSError, IndexError, ValueError):
                pass
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def trained_groups(folder: Path) -> list[int]:
    return [g for e in events(folder, "update") for g in e["groups"]]


class Luck(tasks.Task):
    """A reward that a model that knows nothing earns by luck, so that there is something to learn."""

    def reward(self, problem, text):
        return float(len(text) % 2)


LUCK = Luck("sum", "luck", 0.8)


@pytest.mark.parametrize("mode", ("sync", "april"))
def test_a_killed_rollout_worker_costs_its_running_requests_and_nothing_else(warm, tmp_path, mode):
    settings = Settings(mode=mode, **SMALL, **({"over_sampling": 4} if mode == "april" else {}))
    folder = tmp_path / "run"

    def finished():
        return len(list(folder.glob("journal_*.jsonl"))) and any(
            p.stat().st_size for p in folder.glob("journal_*.jsonl")
        )

    killer = kill_when(folder, "rollout0", finished)
    summary, said = run(settings, folder, warm)
    killer.join(1)
    assert summary["restarts"] == 1 and summary["updates"] == 6
    groups = trained_groups(folder)
    assert len(groups) == len(set(groups)) == 12  # nothing lost, nothing trained twice
    (lost,) = events(folder, "lost")
    assert lost["requeued"] == summary["requeued"]
    assert any("started again" in line and "rollout0" in line for line in said)
    rows = read_lines(folder / "trajectories.jsonl")
    assert all(len(r["segments"]) >= 1 and sum(n for _, n in r["versions"]) == r["tokens"] for r in rows)


def test_a_killed_trainer_repeats_its_updates_on_the_same_batches(warm, tmp_path):
    settings = Settings(mode="sync", **SMALL)
    straight, _ = run(settings, tmp_path / "straight", warm, task=LUCK)
    folder = tmp_path / "killed"
    killer = kill_when(
        folder, "trainer", lambda: len(metrics.read(folder / "metrics.csv")) >= 3
    )  # after update 3, saved at 2
    summary, _ = run(settings, folder, warm, task=LUCK)
    killer.join(1)
    assert summary["restarts"] == 1 and straight["restarts"] == 0
    assert sorted(trained_groups(folder)) == list(range(12))

    # The same batches: every trajectory has the undisturbed run's length and reward. Not always the same bits of
    # weights: how many sequences are decoded together depends on when requests arrive, and that may change a
    # log-probability's last bit.
    def trained(run_dir: Path) -> dict:
        return {
            (r["group"], r["sample"]): (r["tokens"], r["reward"])
            for r in read_lines(run_dir / "trajectories.jsonl")
            if r["status"] == "ready"
        }

    one, two = trained(tmp_path / "straight"), trained(folder)
    assert len(one) == 48 and one.keys() == two.keys()
    assert all(one[k] == two[k] for k in one if k[0] < 6)  # up to the batch that was in training when it was killed


def test_a_killed_run_resumes_with_its_data_and_its_finished_samples(warm, tmp_path):
    folder = tmp_path / "run"
    settings = {**SMALL, "mode": "async", "max_staleness": 2, "updates": 8}
    command = [
        sys.executable,
        "-m",
        "minglm",
        "rl",
        "--run",
        str(folder),
        "--init-from",
        str(warm),
        "--json",
        *[part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if (folder / "metrics.csv").is_file() and len(metrics.read(folder / "metrics.csv")) >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    children = [e["pid"] for e in events(folder, "started")]
    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert summary["updates"] == 8 and summary["trajectories"] == 8 * 8
    assert [row["step"] for row in metrics.read(folder / "metrics.csv")] == list(range(1, 9))
    assert "resumed at update" in resumed.stderr
    for pid in children:  # the orphans have noticed and gone
        end = time.monotonic() + 120
        while time.monotonic() < end and _lives(pid):
            time.sleep(0.05)
        assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ProcessLookupError):
        return False


class Broken(tasks.Task):
    """A task whose reward fails now and then, as a learner's own might."""

    def __init__(self, how: str, every: int) -> None:
        super().__init__("sum", "breaks", 0.8)
        self.__dict__.update(how=how, every=every, calls=0)  # frozen otherwise

    def reward(self, problem, text):
        self.__dict__["calls"] += 1
        if self.calls % self.every == 0:
            if self.how == "raises":
                raise RuntimeError("the checker\nfell over")
            return float("nan")
        return super().reward(problem, text)


@pytest.mark.parametrize("how", ("raises", "nan"))
def test_a_reward_that_fails_costs_its_group_and_is_named(warm, tmp_path, how):
    summary, said = run(
        Settings(mode="async", **{**SMALL, "updates": 2}), tmp_path / "run", warm, task=Broken(how, every=7)
    )
    assert summary["updates"] == 2 and summary["reward_errors"] >= 1
    assert summary["wasted_tokens"] > 0
    (line, *_) = [x for x in said if "reward of task sum" in x]
    told = {"raises": r"RuntimeError: the checker\nfell over", "nan": "gave nan"}  # the line break shown, not made
    assert told[how] in line and "\n" not in line


def test_a_reward_that_always_fails_stops_the_run_in_one_line(warm, tmp_path):
    with pytest.raises(InputError, match="max_reward_errors=3; mend the reward function") as error:
        run(
            Settings(mode="sync", **{**SMALL, "max_reward_errors": 3}),
            tmp_path / "run",
            warm,
            task=Broken("raises", every=1),
        )
    assert "\n" not in str(error.value)


def test_a_stale_or_torn_weights_file_is_refused(warm, tmp_path):
    from minglm.rl.worker import RolloutWorker, write_weights
    from minglm.training.checkpoint import latest

    found = latest(warm)
    worker = RolloutWorker(Settings(**SMALL).to_dict(), stop=[1])
    good, torn = tmp_path / "version_00000002.safetensors", tmp_path / "torn.safetensors"
    write_weights(good, found.model, 2)
    torn.write_bytes(good.read_bytes()[:1000])

    def update(path, version):
        (report,) = worker.handle(UpdateWeights(str(path), version, found.config.to_dict(), max_len=160))
        return report

    assert "holds version 2, announced was 3" in update(good, 3).reason
    assert isinstance(update(good, 2), WeightsLoaded) and worker.engine.version == 2
    assert "stale: version 2 is loaded" in update(good, 2).reason
    assert "not readable" in update(torn, 3).reason
    assert isinstance(update(tmp_path / "missing.safetensors", 3), WeightsRefused) and worker.engine.version == 2


def test_journal_forgets_nothing_younger_than_its_checkpoint_and_no_torn_line(tmp_path):
    journal = Journal(tmp_path, 0)
    journal.write(0, 0, {"tokens": [1]})
    journal.roll(2, keep_from=0)
    journal.write(1, 0, {"tokens": [2]})
    journal.roll(4, keep_from=2)
    journal.write(2, 1, {"tokens": [3]})
    journal.close()
    with open(tmp_path / "journal_00000004.jsonl", "a") as file:
        file.write('{"group": 3, "sam')
    assert [line["group"] for line in Journal.replay(tmp_path, 2)] == [1, 2]
    assert [line["group"] for line in Journal.replay(tmp_path, 4)] == [2]
    again = Journal.rewritten(tmp_path, 2, Journal.replay(tmp_path, 2)[:1])
    again.close()
    assert [line["group"] for line in Journal.replay(tmp_path, 0)] == [1]


def test_a_worker_that_falls_silent_is_replaced(warm, tmp_path):
    folder = tmp_path / "run"

    def stop() -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if (folder / "metrics.csv").is_file() and len(metrics.read(folder / "metrics.csv")) >= 1:
                os.kill([e["pid"] for e in events(folder, "started") if e["worker"] == "rollout0"][-1], signal.SIGSTOP)
                return
            time.sleep(0.01)

    threading.Thread(target=stop, daemon=True).start()
    summary, said = run(Settings(mode="sync", **{**SMALL, "updates": 5, "stall_s": 5.0}), folder, warm)
    assert summary["updates"] == 5 and summary["restarts"] >= 1  # on a busy machine another may be silent for so long
    assert any("silent for" in line for line in said)
