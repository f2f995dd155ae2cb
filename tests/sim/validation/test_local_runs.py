"""The simulator against logs of runs: rates are found again from a log that the simulator's own arithmetic wrote."""

import csv
import json
import random

import pytest

from minglm.errors import InputError
from minglm.rl.modes import Policy
from sim.cli import main
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.lengths import Lengths
from sim.rollout.simulate import Case, simulate
from sim.validation.local_runs import agree, profile_of

CURVE = DecodeCurve(((1, 0.010), (65, 0.042)))
TRAIN, TOPK = 2e-4, 80
CHOOSING = DecodeCurve(CURVE.points, beyond=((1, 0.0004), (65, 0.026)))


def write_run(folder, mode: str, seed: int, prompts: int, **rules):
    """A run's files as the loop writes them, with times from a simulation at known rates."""
    folder.mkdir()
    rng, drawn = random.Random(seed), Lengths.lognormal(60, 250, sigma=0.8)
    groups = tuple(tuple(drawn.draw_group(rng, 4, i)) for i in range(prompts * 40))
    policy = Policy(mode, prompts, rules.get("over_sampling"), max_staleness=rules.get("max_staleness", 1))
    topk = rules.get("topk")
    curve = CHOOSING if topk else CURVE
    if topk:
        (folder / "config.json").write_text(json.dumps({"index_topk": topk}))
    case = Case(
        policy,
        4,
        Lengths(groups=groups),
        1,
        curve,
        topk=topk,
        train_s_per_token=TRAIN,
        weight_sync_s=0.05,
        overhead_s=rules.get("overhead", 0.2),
        steps=12,
        strict=False,
        reuse_kv_cache=mode == "async",
    )
    result = simulate(case)
    settings = {
        "mode": mode,
        "prompts_per_batch": prompts,
        "samples_per_prompt": 4,
        "over_sampling": rules.get("over_sampling"),
        "max_staleness": rules.get("max_staleness", 1),
        "max_batch": 512,
    }
    (folder / "rl.yaml").write_text(json.dumps(settings))
    with (folder / "metrics.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["step", "time_s"])
        out.writerows((i + 1, s.end_s) for i, s in enumerate(result.steps))
    start, rows = 0.0, []
    for k, step in enumerate(result.steps):
        batch = groups[k * prompts : (k + 1) * prompts]
        for i, group in enumerate(batch):
            for n in group:
                # a synchronous step by hand: when the request of n tokens ends
                order, end, last = sorted(x for g in batch for x in g), 0.0, 0
                for j, x in enumerate(order):
                    end += curve.base(len(order) - j) * (min(x, n) - last)
                    end += curve.beyond_topk(len(order) - j) * max(0, min(x, n) - max(last, topk or 1e9))
                    last = min(x, n)
                    if x >= n:
                        break
                rows.append(
                    {
                        "group": k * prompts + i,
                        "tokens": n,
                        "prompt_tokens": 0,
                        "status": "ready",
                        "segments": [[start, start + end, n]],
                    }
                )
        start = step.end_s
    (folder / "trajectories.jsonl").write_text("\n".join(map(json.dumps, rows)))
    events = [
        {"event": "update", "tokens": s.tokens, "train_s": TRAIN * s.tokens, "weight_sync_s": 0.0} for s in result.steps
    ]
    (folder / "events.jsonl").write_text(
        "\n".join(map(json.dumps, [*events, {"event": "weight_sync", "seconds": 0.05}]))
    )
    return folder


def test_rates_are_found_in_a_log(tmp_path):
    found = profile_of(write_run(tmp_path / "sync", "sync", 0, 8))
    assert found.curve.seconds(1) == pytest.approx(0.010, rel=0.05) and found.curve.seconds(33) == pytest.approx(
        CURVE.seconds(33), rel=0.05
    )
    assert found.update.s_per_token == pytest.approx(TRAIN, rel=1e-6) and found.weight_sync_s == pytest.approx(0.05)
    assert found.overhead_s == pytest.approx(0.2, abs=0.05)


def test_a_slower_curve_is_slower_in_all_its_parts():
    slow = CHOOSING.times(2.0)
    assert slow.seconds(33) == pytest.approx(2 * CHOOSING.seconds(33)) and slow.beyond_topk(33) == pytest.approx(
        2 * CHOOSING.beyond_topk(33)
    )


def test_what_choosing_keys_costs_is_found_too_and_predicts_other_modes(tmp_path):
    runs = [
        write_run(tmp_path / "rates", "sync", 0, 8, topk=TOPK),
        write_run(tmp_path / "sync", "sync", 1, 12, topk=TOPK),
        write_run(tmp_path / "april", "april", 2, 12, over_sampling=24, topk=TOPK),
    ]
    found = profile_of(runs[0])
    assert found.curve.beyond_topk(33) == pytest.approx(CHOOSING.beyond_topk(33), rel=0.15) and found.curve.seconds(
        33
    ) == pytest.approx(CURVE.seconds(33), rel=0.1)
    report = agree(runs)
    assert all(abs(r["error"]) < 0.06 for r in report["rows"]), report["rows"]


def test_other_modes_and_sizes_are_predicted(tmp_path):
    runs = [
        write_run(tmp_path / "profile", "sync", 0, 8),
        write_run(tmp_path / "sync", "sync", 1, 12),
        write_run(tmp_path / "april", "april", 1, 12, over_sampling=24),
        write_run(tmp_path / "async", "async", 1, 12, max_staleness=2),
    ]
    report = agree(runs)
    assert [r["kind"] for r in report["rows"]] == ["calibration", "holdout", "holdout", "holdout"]
    assert all(abs(r["error"]) < 0.10 for r in report["rows"]), report["rows"]
    assert all(abs(g["error"]) < 0.10 for g in report["gains"]) and {g["mode"] for g in report["gains"]} == {
        "april",
        "async",
    }


def test_profile_file_goes_first(tmp_path):
    run = write_run(tmp_path / "sync", "sync", 0, 8)
    given = {
        "decode_step_s": [[1, 0.5], [8, 0.6]],
        "prefill_s_per_token": 0.0,
        "prefill_fixed_s": 0.0,
        "train_s_per_token": 1e-3,
        "train_fixed_s": 0.1,
        "weight_sync_s": 0.2,
    }
    (run / "profile.json").write_text(json.dumps(given))
    assert profile_of(run).curve.seconds(1) == 0.5
    (run / "profile.json").write_text(json.dumps({k: v for k, v in given.items() if k != "decode_step_s"}))
    with pytest.raises(InputError, match="decode_step_s"):
        profile_of(run)


def test_command(tmp_path, capsys):
    run = write_run(tmp_path / "sync", "sync", 0, 8)
    assert main.main(["rollouts", "--run", str(run)]) == 0
    assert "gave the rates" in capsys.readouterr().out
    assert main.main(["rollouts", "--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_mode_with_two_runs_brings_its_own_overhead(tmp_path):
    """Asynchronous steps that cost half a second more beside: unknown from the synchronous run, known from the first of
    two."""
    first = write_run(tmp_path / "rates", "sync", 0, 8)
    slow = [
        write_run(tmp_path / f"async{i}", "async", i, prompts, max_staleness=1, overhead=0.7)
        for i, prompts in ((1, 8), (2, 12))
    ]
    alone = agree([first, slow[1]])["rows"][1]
    taught = agree([first, *slow])["rows"]
    assert [r["kind"] for r in taught] == ["calibration", "calibration", "holdout"]
    assert alone["error"] < -0.1 and abs(taught[2]["error"]) < abs(alone["error"]) / 2
