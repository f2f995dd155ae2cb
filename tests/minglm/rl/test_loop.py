"""The RL loop in all modes: who trains on what, how stale it may be, that it repeats, and what it refuses.

Most run "inline": the same loop and the same workers in one process, so that a test takes a second.
"""

import dataclasses
import json
import subprocess
import sys

import pytest

from minglm.errors import InputError
from minglm.rl import config as recipes
from minglm.rl import tasks
from minglm.rl.config import Settings
from minglm.rl.log import read_lines
from minglm.rl.messages import RolloutRequest, RolloutsDone, Submit, TrainGroup, TrainSample, UpdateWeights
from minglm.training import checkpoint, metrics

pytestmark = pytest.mark.slow

pytest.importorskip("torch")
SMALL = dict(
    task="sum",
    tail=0.8,
    updates=6,
    prompts_per_batch=2,
    samples_per_prompt=4,
    max_new_tokens=60,
    max_batch=16,
    eval_problems=0,
    checkpoint_every=3,
    dynamic_filter=False,
    seed=3,
)
MODES = {
    "sync": {},
    "one_step_off": {},
    "async": {"max_staleness": 2},
    "april": {"over_sampling": 4},
    "glm5": {"weight_sync_interval": 2, "filter_staleness_above": 2},
}


def run(warm, folder, engine="inline", task=None, **changes):
    from minglm.rl.run import rl

    said = []
    return rl(Settings(**{**SMALL, **changes}), folder, warm, engine=engine, task=task, show=said.append), said


def lines(folder, name):
    return read_lines(folder / f"{name}.jsonl")


def trained(folder):
    return [e["groups"] for e in lines(folder, "events") if e["event"] == "update"]


@pytest.mark.parametrize("engine", ("inline", "local"))
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_whole_groups_once_and_logs_them(warm, tmp_path, mode, engine):
    if engine == "local" and mode in ("one_step_off", "glm5"):
        pytest.skip("the other modes show the processes; the rules are shown inline")
    folder = tmp_path / "run"
    summary, _ = run(warm, folder, engine, mode=mode, **MODES[mode])
    assert summary["updates"] == 6 and summary["trajectories"] == 6 * 2 * 4
    groups = [g for batch in trained(folder) for g in batch]
    assert all(len(batch) == 2 for batch in trained(folder)) and len(set(groups)) == len(groups)
    rows = metrics.read(folder / "metrics.csv")
    assert [r["step"] for r in rows] == list(range(1, 7))
    assert rows[0]["staleness_max"] == 0
    assert all(sum(r[f"staleness_hist_{i}"] for i in range(6)) == pytest.approx(1) for r in rows)
    for t in lines(folder, "trajectories"):
        assert sum(n for _, n in t["versions"]) == t["tokens"] == sum(n for *_, n in t["segments"])
        assert all(start <= end for start, end, _ in t["segments"]) and t["reason"] in ("stop", "length")


class Chance(tasks.Task):
    """A reward that a model that knows nothing earns by luck; every other problem is hopeless."""

    def reward(self, problem, text):
        return float(problem.seed % 4 and len(text) % 2)


def staleness(warm, folder, **changes):
    run(warm, folder, **changes)
    return [int(r["staleness_max"]) for r in metrics.read(folder / "metrics.csv")]


def test_how_stale_a_batch_is_follows_from_the_mode(warm, tmp_path):
    assert staleness(warm, tmp_path / "sync", mode="sync") == [0] * 6
    assert staleness(warm, tmp_path / "one_step_off", mode="one_step_off") == [0, 1, 1, 1, 1, 1]
    assert staleness(warm, tmp_path / "async0", mode="async", max_staleness=0) == [0] * 6
    assert staleness(warm, tmp_path / "async3", mode="async", max_staleness=3) == [
        0,
        1,
        2,
        3,
        3,
        3,
    ]  # inline: as stale as η allows


def test_the_staleness_bound_holds_where_some_answers_are_much_longer(warm, tmp_path, monkeypatch):
    from minglm.rl import worker
    from minglm.rl.transport import InlineWorker

    whole = worker.request_from

    def uneven(request, settings, stop):
        long = int(request.id.split(".")[0]) % 5 == 2
        return whole(request, settings.changed(max_new_tokens=100 if long else 4), stop)

    def trainer_first(workers, timeout_s):  # else a rollout would run to its end before every update
        for one in sorted(workers, key=lambda w: w.name != "trainer"):
            if not any(w.has_reports for w in workers) and one.work():
                return

    monkeypatch.setattr(worker, "request_from", uneven)
    monkeypatch.setattr(InlineWorker, "wait_any", trainer_first)
    rules = dict(mode="async", max_staleness=1, updates=16, max_new_tokens=100, samples_per_prompt=2)
    assert max(staleness(warm, tmp_path / "strict", **rules)) == 1
    assert max(staleness(warm, tmp_path / "loose", strict=False, **rules)) > 1


def test_fresh_data_of_the_same_engine_has_ratio_one_and_no_mismatch(warm, tmp_path):
    run(warm, tmp_path / "run", mode="sync", objective="bypass", task=Chance("sum", "luck", 0.8))
    for row in metrics.read(tmp_path / "run" / "metrics.csv"):
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-4) and row["mismatch"] < 1e-4 and abs(row["kl"]) < 1e-6


def test_april_resumes_partial_trajectories_with_several_versions(warm, tmp_path):
    folder = tmp_path / "run"
    summary, _ = run(warm, folder, "local", mode="april", over_sampling=6, updates=8)
    assert summary["aborted_groups"] > 0 and summary["wasted_tokens"] == 0
    resumed = [t for t in lines(folder, "trajectories") if len(t["segments"]) > 1]
    assert resumed and any(len(t["versions"]) > 1 for t in resumed)


def test_inline_runs_repeat_bit_for_bit_and_resume_to_the_same_weights(warm, tmp_path):
    one, two, whole = (tmp_path / name for name in ("one", "two", "whole"))
    luck = Chance("sum", "luck", 0.8)
    run(warm, one, mode="sync", updates=6, task=luck)
    run(warm, two, mode="sync", updates=3, task=luck)  # stops at 3, then goes on
    run(warm, two, mode="sync", updates=6, task=luck)
    run(warm, whole, mode="sync", updates=6, task=luck)
    a, b, c = (checkpoint.latest(f).model for f in (one, two, whole))
    assert all((a[k] == c[k]).all() for k in a)
    start = checkpoint.latest(warm).model
    assert any((a[k] != start[k]).any() for k in a)
    assert all((a[k] == b[k]).all() for k in a)
    assert [r["step"] for r in metrics.read(two / "metrics.csv")] == [1, 2, 3, 4, 5, 6]


def test_what_rl_must_not_move_is_not_moved(warm, tmp_path):
    run(warm, tmp_path / "run", mode="sync", objective="tis", minibatches=2, task=Chance("sum", "luck", 0.8))
    before, after = checkpoint.latest(warm).model, checkpoint.latest(tmp_path / "run").model
    frozen = [k for k in before if ".indexer." in k or k.startswith("mtp.") or "e_score_correction_bias" in k]
    assert frozen and all((before[k] == after[k]).all() for k in frozen)
    assert any((before[k] != after[k]).any() for k in before)


def test_routing_replay_makes_the_trainer_choose_what_the_rollout_chose(warm, tmp_path):
    import torch

    from minglm.model.moe import Router
    from minglm.rl.trainer import Trainer
    from minglm.rl.worker import RolloutWorker, write_weights

    found, settings = checkpoint.latest(warm), Settings(**{**SMALL, "routing_replay": True}).to_dict()
    write_weights(tmp_path / "w.safetensors", found.model, 1)
    worker = RolloutWorker(settings, stop=[1])
    list(worker.handle(UpdateWeights(str(tmp_path / "w.safetensors"), 1, found.config.to_dict(), max_len=100)))
    prompt = [0, 4, 30, 40, 5]
    list(worker.handle(Submit((RolloutRequest("0.0", prompt, seed=1, tokens=[], logprobs=[], versions=[]),))))
    done = []
    while worker.busy:
        done += [r for report in worker.step() if isinstance(report, RolloutsDone) for r in report.requests]
    routes = done[0].routes
    assert len(routes) == len(done[0].tokens)
    trainer = Trainer(settings, str(tmp_path / "run"), str(warm))
    seen = []
    reverse = [[list(reversed(layer)) for layer in token] for token in routes]
    other = [[[(e + 1) % 4 for e in layer] for layer in token] for token in routes]
    for recorded in (routes, reverse, other):
        samples = (
            TrainSample(done[0].tokens, done[0].logprobs, done[0].versions, reward, recorded) for reward in (0.0, 1.0)
        )
        rows = trainer._rows([TrainGroup(prompt, tuple(samples))], 1)
        with torch.no_grad():
            seen.append(trainer.logprobs(trainer._micro(rows)[0])[0][0, len(prompt) - 1 :])
    assert torch.allclose(seen[0], torch.tensor(done[0].logprobs), atol=1e-4)  # replayed: what the rollout had
    assert torch.allclose(seen[0], seen[1], atol=1e-5) and not torch.allclose(seen[0], seen[2], atol=1e-3)
    assert all("forward" not in m.__dict__ for m in trainer.model.modules() if isinstance(m, Router))


def test_equal_rewards_are_dropped_refilled_and_end_the_run_when_nothing_else_comes(warm, tmp_path):
    class Same(tasks.Task):
        def reward(self, problem, text):
            return 1.0

    summary, _ = run(
        warm, tmp_path / "run", mode="async", dynamic_filter=True, max_drops=30, task=Same("sum", "always right", 0.8)
    )
    assert (
        summary["updates"] == 0
        and summary["filtered_zero_variance"] >= 30
        and "the task is solved" in summary["solved"]
    )


def test_the_filter_keeps_only_groups_that_teach(warm, tmp_path):
    summary, _ = run(
        warm,
        tmp_path / "run",
        mode="april",
        over_sampling=4,
        dynamic_filter=True,
        updates=4,
        task=Chance("sum", "luck", 0.8),
    )
    assert summary["updates"] == 4 and summary["filtered_zero_variance"] > 0 and summary["wasted_tokens"] > 0
    assert all(r["advantage_std"] > 0 for r in metrics.read(tmp_path / "run" / "metrics.csv"))


BAD = {
    "mode": ("sink", "did you mean 'sync'"),
    "max_staleness": (-1, "must be a number of at least 0|must be at least 0"),
    "samples_per_prompt": (1, "at least 2"),
    "difficulty": ([], "whole numbers of at least 1"),
    "over_sampling": (1, "at least 2|only april"),
    "temperature": (0, "at least 0.01"),
    "top_p": (0.8, "must be 1.*lower temperature"),
    "objective": ("grop", "did you mean 'grpo'"),
    "objective_args": ({"hgh": 1}, "did you mean 'high'"),
}


@pytest.mark.parametrize("key", BAD)
def test_settings_that_cannot_be_are_refused_in_one_line(key):
    value, message = BAD[key]
    with pytest.raises(InputError, match=message) as error:
        Settings(**{**SMALL, key: value})
    assert "\n" not in str(error.value)


def test_runs_that_cannot_be_are_refused(warm, tmp_path):
    with pytest.raises(InputError, match="max_position_embeddings=160; lower max_new_tokens"):
        run(warm, tmp_path / "long", max_new_tokens=159)
    with pytest.raises(InputError, match="no checkpoint there"):
        run(tmp_path / "nowhere", tmp_path / "a")
    run(warm, tmp_path / "mine", updates=1)
    with pytest.raises(InputError, match="made with lr=0.0005, now lr=0.5; use --overwrite"):
        run(warm, tmp_path / "mine", updates=1, lr=0.5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty, and carries no minglm-run.json"):
        run(warm, tmp_path / "other")

    class Mute(tasks.Task):
        def problem(self, seed, difficulty=1):
            return dataclasses.replace(super().problem(seed, difficulty), prompt=" ")

    with pytest.raises(InputError, match="its prompt is empty"):
        run(warm, tmp_path / "mute", task=Mute("sum", "says nothing", 0.8))


def test_recipes_are_settings_and_their_warm_start_is_known():
    from minglm.rl.warm_start import WarmStart

    assert recipes.names()
    for name in recipes.names():
        values = recipes.read(name)
        if warm := values.pop("warm_start", None):
            WarmStart(**{"task": values["task"], **warm})
        assert Settings.from_dict(Settings.from_dict(values).to_dict()) == recipes.load(name)


def test_names_of_objectives_and_bounds_are_those_of_the_objectives():
    from minglm.rl.objectives import OBJECTIVES, Clip

    assert recipes.OBJECTIVE_NAMES == tuple(OBJECTIVES) and recipes.CLIP_NAMES == tuple(
        f.name for f in dataclasses.fields(Clip)
    )


def test_the_coordinator_needs_no_torch():
    code = "import minglm.rl.run, minglm.cli.rl, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    (
        ["--mode", "aprl"],
        ["--max-staleness", "-1"],
        ["no_such_recipe"],
        ["--engine", "slurm", "--init-from", "x"],
        ["--difficulty", "one"],
        ["--set", "lr=fast"],
    ),
)
def test_bad_input_on_the_command_line_is_one_line_and_code_2(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minglm", "rl", "--run", str(tmp_path / "r"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and not done.stdout, done.stderr


@pytest.mark.xdist_group("ray")
def test_the_same_run_on_ray(warm, tmp_path):
    pytest.importorskip("ray")
    code = (
        "import sys, json; from minglm.rl.config import Settings; from minglm.rl.run import rl\n"
        "print(json.dumps(rl(Settings.from_dict(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3], engine='ray')))"
    )
    values = {**SMALL, "mode": "april", "over_sampling": 4, "updates": 3}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(values), str(tmp_path / "run"), str(warm)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["trajectories"] == 3 * 8
    assert [len(batch) for batch in trained(tmp_path / "run")] == [2, 2, 2]
