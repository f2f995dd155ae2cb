"""Rollout simulator: closed forms, degenerate cases, rates, cases from files, refusals, the command."""

import json
import math
import random
from dataclasses import replace

import pytest

from minglm.errors import InputError
from minglm.rl.modes import Policy
from sim.cli import main
from sim.rollout.decode_curve import DecodeCurve, synchronous_makespan
from sim.rollout.engine import Engine
from sim.rollout.lengths import Lengths, explained_share, from_rows, read_log
from sim.rollout.metrics import compare
from sim.rollout.questions import answer, best_split, fold, over_sampling_that_pays
from sim.rollout.scenario import read
from sim.rollout.simulate import Case, simulate
from sim.rollout.timeline import Signal, Timeline
from sim.rollout.trajectory import Trajectory

CURVE = DecodeCurve(((1, 0.01), (16, 0.02), (64, 0.05)), ((1, 1e-7), (64, 2e-7)))
CASE = Case(
    Policy("sync", prompts_per_batch=16),
    4,
    Lengths.lognormal(500, 4000),
    4,
    CURVE,
    train_s_per_token=2e-4,
    weight_sync_s=1.0,
    steps=4,
)
FILE = {
    "mode": "async",
    "requests": 256,
    "samples_per_prompt": 8,
    "mean": 800,
    "max": 8000,
    "engines": 4,
    "decode": 100,
    "decode_half": 32,
    "train": 5,
    "weight_sync": 0.5,
}


def test_one_engine_takes_the_closed_form_of_a_synchronous_rollout():
    rng = random.Random(0)
    drawn = [n for i in range(16) for n in CASE.lengths.draw_group(rng, 4, i)]
    one = replace(CASE, engines=1, steps=1)
    assert simulate(one).throughput.rollout_s == pytest.approx(synchronous_makespan(drawn, CURVE), rel=1e-12)


def test_closed_form_by_hand():
    curve = DecodeCurve(((1, 1.0), (2, 3.0)))
    assert synchronous_makespan([5, 2], curve) == 2 * 3.0 + 3 * 1.0
    loaded = DecodeCurve(((1, 1.0),), ((1, 0.1),))  # one request, prompt 10: sum of 1 + 0.1 (10 + t), t from 0 to 4
    assert synchronous_makespan([4], loaded, prompt=10) == pytest.approx(4 + 0.1 * (40 + 8))


@pytest.mark.parametrize("same", (Policy("async", 16, max_staleness=0), Policy("april", 16, 16), Policy("april", 16)))
def test_degenerate_modes_equal_synchronous(same):
    sync, other = simulate(CASE), simulate(replace(CASE, policy=same))
    assert other.throughput.step_s == pytest.approx(sync.throughput.step_s, rel=1e-9)
    assert other.staleness.tokens == sync.staleness.tokens == {0: sync.throughput.trained_tokens}


def test_every_token_is_generated_once():
    result = simulate(replace(CASE, steps=3))
    assert result.throughput.generated_tokens == pytest.approx(result.throughput.trained_tokens, rel=1e-9)


def test_staleness_stays_within_the_bound_and_exceeds_it_without():
    tight = simulate(replace(CASE, policy=Policy("async", 16, max_staleness=1), steps=12))
    loose = simulate(replace(CASE, policy=Policy("async", 16, max_staleness=1), steps=12, strict=False))
    assert tight.staleness.max <= 1 < loose.staleness.max
    assert loose.throughput.step_s < tight.throughput.step_s


@pytest.mark.parametrize("parts, longest", [(1, 4), (2, 8), (4, 8)])
def test_short_groups_that_overtake_long_ones_do_not_push_them_beyond_the_bound(parts, longest):
    """Groups of (1, 1, 1) and (1, 1, 4) tokens by turns: the short ones of version 1 end before the long ones of
    version 0."""
    case = Case(
        Policy("async", prompts_per_batch=4, max_staleness=2.0),
        3,
        Lengths(groups=((1, 1, 1), (1, 1, longest)), prompt=1),
        3,
        DecodeCurve(((1, 1.0),)),
        max_running=2,
        train_s_per_token=0.05,
        steps=6,
        parts=parts,
    )
    assert simulate(case).staleness.max == 2
    assert simulate(replace(case, strict=False)).staleness.max > 2


@pytest.mark.parametrize("mode, bound", [("sync", 0), ("one_step_off", 1)])
def test_groups_that_a_filter_leaves_over_are_lost_and_not_trained_later(mode, bound):
    result = simulate(
        replace(
            CASE, policy=Policy(mode, 16), filter_keep=0.6, lengths=Lengths(groups=((9, 9, 9, 9),)), engines=32, steps=8
        )
    )
    assert result.staleness.max == bound and result.counts["surplus"] > 0


def test_april_removes_the_tail_and_async_the_waiting():
    sync, april = (
        simulate(replace(CASE, steps=8)),
        simulate(replace(CASE, policy=Policy("april", 16, 32), steps=8, warmup=2)),
    )
    free = simulate(replace(CASE, policy=Policy("async", 16, max_staleness=3), steps=8, warmup=2))
    assert (
        april.throughput.rollout_s < 0.8 * sync.throughput.rollout_s
        and april.utilisation.tail_share < sync.utilisation.tail_share
    )
    assert free.throughput.trained_tokens_per_s > 1.2 * sync.throughput.trained_tokens_per_s
    assert (
        april.waste.reprefilled_tokens > 0
        and simulate(replace(CASE, policy=Policy("april", 16, 32), reuse_kv_cache=True)).waste.reprefilled_tokens == 0
    )


def test_a_push_that_cannot_interrupt_waits_for_the_longest():
    case = replace(CASE, policy=Policy("async", 16, max_staleness=2), steps=6, warmup=2, strict=False)
    assert simulate(replace(case, interruptible=False)).throughput.step_s > simulate(case).throughput.step_s
    assert simulate(replace(case, interruptible=False)).staleness.max_span == 0


@pytest.mark.parametrize("mode", ("sync", "async", "april", "one_step_off"))
@pytest.mark.parametrize("kept, prefill_s", ((False, 1e-5), (True, 0.0)))
def test_preemptions_without_events_are_those_with_an_event_each(mode, kept, prefill_s):
    """An engine whose keys are selected one day takes a full cache as an event; here that day never comes. Tokens and
    seconds are summed in other pieces, so they agree to rounding only."""
    case = replace(
        CASE, policy=Policy(mode, 16), engines=1, kv_limit=4000.0, prefill_s_per_token=prefill_s, reuse_kv_cache=kept
    )
    batched, one_by_one = simulate(case), simulate(replace(case, topk=1e12))
    assert batched.waste.preemptions == one_by_one.waste.preemptions > 8
    assert batched.staleness == one_by_one.staleness and batched.counts == one_by_one.counts
    assert batched.seconds == pytest.approx(one_by_one.seconds, rel=1e-12)
    assert batched.throughput.generated_tokens == pytest.approx(one_by_one.throughput.generated_tokens, rel=1e-12)
    for name in ("rollout_idle", "tail_share", "mean_running"):
        assert getattr(batched.utilisation, name) == pytest.approx(getattr(one_by_one.utilisation, name), rel=1e-9)


def test_cache_limit_makes_requests_wait_and_loses_none():
    free, tight = simulate(CASE), simulate(replace(CASE, kv_limit=6000.0))
    assert (
        tight.throughput.rollout_s > free.throughput.rollout_s
        and tight.throughput.trained_tokens == free.throughput.trained_tokens
        and tight.waste.preemptions > 0
    )


def test_timeline_goes_by_time_and_then_by_who_was_first():
    timeline, seen = Timeline(), []
    signal = Signal()

    def process():
        yield 1.0
        seen.append(("process", timeline.now))
        yield signal
        seen.append(("signal", timeline.now))

    def note(name, _):
        seen.append((name, timeline.now))
        if name == "late":
            signal.give()

    for name, at_s in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        timeline.at(at_s, note, name)
    assert timeline.run(process())
    assert seen == [("first", 1.0), ("second", 1.0), ("process", 1.0), ("late", 2.0), ("signal", 2.0)]


def test_timeline_says_that_nothing_is_due_any_more():
    timeline = Timeline()
    assert not timeline.run(iter([Signal()]))


def test_filter_wastes_what_it_drops():
    result = simulate(replace(CASE, filter_keep=0.5, steps=6))
    assert result.waste.tokens["filtered"] > 0 and result.counts["filtered"] > 0
    assert result.counts["submitted"] == sum(n for k, n in result.counts.items() if k != "submitted")


def test_glm5_drops_what_is_too_stale():
    result = simulate(
        replace(CASE, policy=Policy("glm5", 16, weight_sync_interval=1, filter_staleness_above=0), steps=6)
    )
    assert result.counts["too_stale"] > 0 and result.staleness.max == 0


def test_aborted_request_books_its_tokens_by_version():
    engine = Engine(0, DecodeCurve(((1, 1.0),)), reuse_kv_cache=True)
    group = type("G", (), {})()
    t = Trajectory(group, 10, 0)
    engine.queue.append(t)
    engine.advance(0.0)
    engine.admit(0.0)
    engine.advance(3.0)
    engine.sync_weights(3.0, 1, 0.0)
    engine.advance(7.5)
    assert engine.abort(7.5) == [t] and t.segments == [(0, 3), (1, 4)] and t.done == 7


def test_lengths():
    lengths = Lengths.lognormal(mean=4000, cap=16384, sigma=1.0)
    rng = random.Random(1)
    drawn = [lengths.draw_group(rng, 8) for _ in range(4000)]
    flat = [x for g in drawn for x in g]
    assert sum(flat) / len(flat) == pytest.approx(4000, rel=0.05) and max(flat) <= 16384
    free = Lengths.lognormal(median=1000, sigma=0.8)
    assert explained_share([free.draw_group(rng, 8) for _ in range(2000)]) == pytest.approx(0.65, abs=0.04)
    assert Lengths.lognormal(mean=3000, cap=20000, percentile=(0.99, 15000)).quantile(0.99) == pytest.approx(
        15000, rel=1e-6
    )


@pytest.mark.parametrize("size", (1, 2, 5, 8))
def test_lengths_are_drawn_from_the_numbers_of_pythons_own_gauss(size):
    """Whether a pair of Gaussian numbers is begun or not."""
    lengths, drawn, plain = Lengths.lognormal(median=1000, sigma=0.8, cap=2000), random.Random(3), random.Random(3)
    for _ in range(5):
        common = 0.65**0.5 * plain.gauss(0.0, 1.0)
        by_hand = [1000 * math.exp(0.8 * (common + 0.35**0.5 * plain.gauss(0.0, 1.0))) for _ in range(size)]
        assert lengths.draw_group(drawn, size) == [min(2000, max(1, round(n))) for n in by_hand]


def test_lengths_from_a_log(tmp_path):
    log = tmp_path / "trajectories.jsonl"
    log.write_text(
        "\n".join(
            json.dumps({"group": i // 4, "sample": i % 4, "tokens": 10 + i, "prompt_tokens": 7}) for i in range(64)
        )
    )
    lengths = from_rows(read_log(log))
    assert lengths.values == tuple(range(10, 74)) and lengths.prompt == 7 and lengths.explained > 0.9
    log.write_text("not json\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_log(log)


def test_same_seed_same_numbers():
    a, b = (simulate(replace(CASE, policy=Policy("april", 16, 24), seed=3)) for _ in range(2))
    assert (
        a.to_dict() == b.to_dict()
        and a.throughput.step_s != simulate(replace(CASE, policy=Policy("april", 16, 24), seed=4)).throughput.step_s
    )


def test_a_case_from_a_file_with_published_seconds():
    given = read({**FILE, "published_seconds": 20, "published_speedup": 1.5})
    rows = {r["quantity"]: r for r in compare(given)}
    assert rows["step_s"]["error"] == pytest.approx(rows["step_s"]["predicted"] / 20 - 1)
    assert rows["speedup"]["predicted"] > 1


@pytest.mark.parametrize(
    "change, says",
    [
        ({"staleness": -1}, "negative"),
        ({"max": 100, "prompt": 200}, "smaller than the prompt"),
        ({"engines": 0}, "engines: 0 is below 1"),
        ({"mode": "april", "over_sampling": 0.5}, "at least 1"),
        ({"mean": 9000}, "below the maximum"),
        ({"instancs": 3}, "did you mean"),
        ({"mode": "asinc"}, "did you mean"),
        ({"requests": 250}, "multiple of samples_per_prompt"),
        ({"kv_limit": 50}, "kv_limit"),
        ({"filter_keep": 0}, "filter_keep"),
        ({"decode": -3}, "decode"),
        ({"lengths": "no_such.jsonl"}, "no such file"),
        ({"colocated": True}, "chips of their own"),
        ({"max_context": 10, "prompt": 10, "max": None}, "length cap"),
    ],
)
def test_refusals_are_one_line(change, says):
    with pytest.raises(InputError, match=says) as caught:
        read({k: v for k, v in {**FILE, **change}.items() if v is not None})
    assert "\n" not in str(caught.value)


def test_rates_of_a_chip_and_a_model():
    given = read(
        {
            "mode": "sync",
            "prompts_per_batch": 16,
            "samples_per_prompt": 4,
            "mean": 2000,
            "max": 8000,
            "engines": 2,
            "chips_per_engine": 2,
            "chip": "h100",
            "model": "qwen3_8b",
        }
    )
    one, many = given.case.curve.seconds(1, 2000), given.case.curve.seconds(64, 64 * 2000)
    assert 0.002 < one < many < 64 * one and given.case.kv_limit > 100_000


def test_fold_keeps_the_load_of_an_engine():
    case = replace(CASE, policy=Policy("sync", 64), engines=16, train_chips=32)
    small, k = fold(case, 64)
    assert k == 4 and (small.engines, small.policy.prompts_per_batch, small.train_chips) == (4, 16, 8)
    assert simulate(small).throughput.step_s == pytest.approx(simulate(case).throughput.step_s, rel=0.2)


def test_answers():
    case = replace(CASE, policy=Policy("async", 16, max_staleness=2), train_chips=4, strict=False)
    split = best_split(case)
    assert split["best"]["trained_tokens_per_s"] == max(r["trained_tokens_per_s"] for r in split["rows"])
    over = over_sampling_that_pays(case)
    assert over["rows"][0]["factor"] == 1.0 and over["best"]["factor"] > 1.0


def test_command(tmp_path, capsys):
    path = tmp_path / "case.json"
    path.write_text(json.dumps(FILE | {"published": {"seconds": 20}}))
    assert main.main(["rollouts", str(path)]) == 0
    assert "error" in capsys.readouterr().out
    assert main.main(["rollouts", str(path), "--json", "--mode", "sync"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["mode"] == "sync"
    assert main.main(["rollouts", str(path), "--set", "max_staleness=-2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main.main(["rollouts", str(path), "--downscale"]) == 0 and "folded" in capsys.readouterr().out
    assert main.main(["rollouts"]) == 2


def test_cost_needs_a_chip():
    assert "cost_per_million_trained_tokens" not in answer(FILE)
    cost = answer(
        {
            "mode": "sync",
            "prompts_per_batch": 8,
            "samples_per_prompt": 4,
            "mean": 500,
            "max": 2000,
            "engines": 2,
            "chips_per_engine": 2,
            "chip": "h100",
            "model": "qwen3_8b",
            "train": 5,
        }
    )
    rent = cost["cost_per_million_trained_tokens"]["rent"]
    assert 0 < rent["low"] < rent["value"] < rent["high"]


def test_each_group_has_its_own_prompt():
    """Of two groups with prompts of 10 and 1000 tokens the trainer reads both, whatever their mean is."""
    lengths = Lengths(groups=((5, 5), (7, 7)), prompts=(10, 1000))
    case = Case(
        Policy("sync", prompts_per_batch=1),
        2,
        lengths,
        1,
        DecodeCurve(((1, 0.01),)),
        train_s_per_token=0.001,
        train_s_per_square=1e-6,
        steps=2,
    )
    first, second = (s.train_s for s in simulate(case).steps)
    assert first == pytest.approx(0.001 * 30 + 1e-6 * 2 * 15**2)
    assert second == pytest.approx(0.001 * 2014 + 1e-6 * 2 * 1007**2)


def test_a_shared_prompt_is_read_once():
    curve = DecodeCurve(((1, 0.01),))
    case = Case(
        Policy("sync", prompts_per_batch=3),
        4,
        Lengths(groups=((5,) * 4,), prompts=(100,)),
        1,
        curve,
        prefill_s_per_token=0.001,
        prefill_fixed_s=0.5,
        steps=1,
    )
    alone = simulate(case).seconds
    shared = simulate(replace(case, share_prompts=True)).seconds
    assert alone - shared == pytest.approx(9 * 0.1 + 11 * 0.5)  # 3 of 12 prompts are read, in one call


def test_who_works_beside_another_is_slower():
    """Asynchronous: engine and trainer slow each other down; synchronous, they never meet."""
    lengths = Lengths(groups=((20, 20),))
    case = Case(
        Policy("async", prompts_per_batch=2, max_staleness=1),
        2,
        lengths,
        1,
        DecodeCurve(((1, 0.01),)),
        train_s_per_token=0.005,
        steps=6,
    )
    assert (
        simulate(replace(case, decode_interference=2.0, train_interference=2.0)).seconds > 1.3 * simulate(case).seconds
    )
    alone = replace(case, policy=Policy("sync", prompts_per_batch=2))
    assert simulate(replace(alone, decode_interference=2.0, train_interference=2.0)).seconds == pytest.approx(
        simulate(alone).seconds
    )


def test_the_trainer_works_one_span_after_another_and_stops_with_its_last_step():
    """Nothing is submitted that no step trains on; spans are as long as the steps say and never overlap."""
    result = simulate(CASE)
    assert result.counts["submitted"] == result.counts["trained"] == 4 * 16 * 4
    trained = [(a, b) for kind, a, b in result.trainer_spans if kind == "train"]
    pushed = [(a, b) for kind, a, b in result.trainer_spans if kind == "weight_sync"]
    assert [b - a for a, b in trained] == pytest.approx([step.train_s for step in result.steps])
    assert [b - a for a, b in pushed] == pytest.approx([CASE.weight_sync_s] * len(pushed)) and pushed
    ends = sorted(trained + pushed)
    assert all(b <= c + 1e-9 for (_, b), (c, _) in zip(ends, ends[1:], strict=False))
    assert [b for _, b in trained] == pytest.approx([step.end_s - step.weight_sync_s for step in result.steps])
