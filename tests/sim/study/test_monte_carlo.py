"""Distributions keep their shape; intervals follow from them; bad ones are refused in one line."""

import gc
import random
import statistics

import numpy
import pytest

from minglm.errors import InputError
from sim.base.distributions import Triangle, Values, distribution
from sim.base.tape import Number
from sim.scenario.training import load_scenario, resolve
from sim.study.answer import LUCK, base_of, glance, outcomes
from sim.study.monte_carlo import ERROR, FAILURES, fact_inputs, interval, monte_carlo, outcome
from sim.validation.coverage import kind_of, left_out_factors

SMALL = {
    "name": "small",
    "model": "llama3_8b",
    "cluster": "dgx_h100",
    "chips": 32,
    "plan": {"tp": 2, "pp": 2},
    "seq": 4096,
    "global_batch": 64,
    "tokens": "1T",
}


def test_triangle_mean_and_quantiles():
    d, rng = Triangle(1.0, 2.0, 6.0), random.Random(0)
    drawn = [d.draw(rng) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(3.0, abs=0.06) and 1 <= min(drawn) and max(drawn) <= 6
    assert sum(x <= d.quantile(0.25) for x in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    assert Triangle(2.0, 2.0, 2.0).draw(rng) == 2.0


def test_normal_and_units():
    d = distribution({"normal": ["100 W", "5 W"]}, "power")
    drawn = [d.draw(random.Random(i)) for i in range(3000)]
    assert statistics.mean(drawn) == pytest.approx(100, abs=0.5) and statistics.stdev(drawn) == pytest.approx(
        5, abs=0.4
    )
    assert distribution({"low": "1 kW", "mid": "2 kW", "high": "3 kW"}, "power").high == 3000.0


@pytest.mark.parametrize(
    "given, words",
    [
        ({"low": -1, "mid": 1, "high": 2}, "below zero"),
        ({"normal": [1, 1]}, "reaches below zero"),
        ({"normal": [1, -0.1]}, "negative"),
        ({"low": 2, "mid": 1, "high": 3}, "not in order"),
        ({"low": 1, "high": 2}, "low, mid and high"),
        ({"normal": 3}, "must be \\[mean"),
        ([], "empty list"),
        ("wide", "not a distribution"),
        ({"low": "x", "mid": 1, "high": 2}, "low"),
    ],
)
def test_bad_distributions_are_one_line(given, words):
    with pytest.raises(InputError, match=words) as caught:
        distribution(given, "count", "tokens")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 21, 100])
def test_an_interval_has_the_quantiles_between_the_two_nearest_values(count):
    rng = random.Random(count)
    values = [rng.lognormvariate(0.0, 1.0) for _ in range(count)]
    got = interval(values)
    for q in (5, 25, 50, 75, 95):
        assert got[f"p{q}"] == pytest.approx(numpy.percentile(values, q))
    assert got["mean"] == pytest.approx(statistics.fmean(values))
    assert set(interval([3.0, 3.0]).values()) == {3.0}


def test_same_answer_for_any_number_of_processes():
    s = resolve(SMALL)
    one, two = (monte_carlo(s, 120, {"tokens": {"low": "1T", "mid": "1T", "high": "2T"}}, workers=w) for w in (1, 2))
    assert one == two
    assert monte_carlo(s, 1300, workers=1) == monte_carlo(s, 1300, workers=2)
    assert monte_carlo(s, 120, seed=1, workers=1)["intervals"] != monte_carlo(s, 120, seed=2, workers=1)["intervals"]


def test_only_tokens_vary_so_days_follow_them():
    s = resolve(SMALL)
    r = monte_carlo(s, 400, {"tokens": {"low": "1T", "mid": "2T", "high": "3T"}}, facts=False, workers=1)
    per = outcome(s)["days"]
    d = Triangle(1.0, 2.0, 3.0)
    assert r["intervals"]["days"]["p50"] == pytest.approx(2 * per, rel=0.05)
    assert r["intervals"]["days"]["p5"] == pytest.approx(d.quantile(0.05) * per, rel=0.08)
    assert r["intervals"]["step_s"]["p5"] == r["intervals"]["step_s"]["p95"]
    assert [t["name"] for t in r["tornado"]] == ["tokens"] and r["tornado"][0]["high_days"] == pytest.approx(
        d.quantile(0.95) * per, rel=1e-3
    )


def test_tornado_is_widest_first_and_names_every_fact():
    s = load_scenario("llama3_405b_16k_h100")
    r = monte_carlo(s, 60, workers=1)
    swings = [t["days_swing"] for t in r["tornado"]]
    assert swings == sorted(swings, reverse=True) and swings[0] > 0
    names = {t["name"] for t in r["tornado"]}
    assert {ERROR, FAILURES} < names and names == {LUCK, *(i.name for i in fact_inputs(s))}
    i = r["intervals"]["days"]
    assert i["p5"] < i["p50"] < i["p95"] and r["refused"] == 0


def test_each_fact_moves_what_it_should():
    s = load_scenario("llama3_405b_16k_h100")
    base = outcome(s)
    for one in fact_inputs(s):
        if one.name == "rent of a chip":
            got = outcome(s, {one.path: 2 * s.cluster.chip.rent_usd_per_hour.value})
            assert got["rent_usd"] == pytest.approx(2 * base["rent_usd"]) and got["days"] == base["days"]
        if one.name == ERROR:
            assert outcome(s, {one.path: 1.1})["step_s"] == pytest.approx(1.1 * base["step_s"])
        if one.name == "PUE":
            assert outcome(s, {one.path: 2.0})["energy_kwh"] == pytest.approx(
                base["energy_kwh"] * 2.0 / s.cluster.pue.value
            )
        if one.name == "best matmul":
            assert outcome(s, {one.path: 0.8 * one.dist.middle})["step_s"] > base["step_s"]
        if one.name == FAILURES:
            assert outcome(s, {one.path: 10 * one.dist.middle})["goodput"] < base["goodput"]


def test_the_simulators_own_error_is_that_of_left_out_stacks_of_the_kind():
    s = resolve(SMALL)
    (error,) = [one for one in fact_inputs(s) if one.name == ERROR]
    kind = kind_of(s.cluster.chip, s.model, s.plan, s.workload.seq, s.precision)
    assert error.dist == Values(left_out_factors(kind)) and min(left_out_factors(kind)) < 1 < max(
        left_out_factors(kind)
    )


def test_samples_that_cannot_run_are_counted():
    r = monte_carlo(resolve(SMALL), 60, {"plan.tp": [2, 3]}, facts=False, workers=1)
    assert r["refused"] > 0 and r["samples"] + r["refused"] == 60 and "does not divide" in r["reason"]


def test_tornado_figure_has_a_bar_for_each_input():
    from sim.study.monte_carlo import tornado_figure

    r = monte_carlo(resolve(SMALL), 10, {"tokens": {"low": "1T", "mid": "2T", "high": "3T"}}, workers=1)
    fig = tornado_figure(r)
    assert len(fig.data) == 2 and "tokens" in fig.data[0].y


def generated(rng):
    """A scenario of any machine, model and plan; it need not fit its memory."""
    tp, pp = rng.choice([1, 2, 4, 8]), rng.choice([1, 2, 4])
    schedules = ["1f1b", "gpipe"] + ["zb-h1", "interleaved", "zb-v", "dualpipe", "dualpipe-v"] * (pp > 1)
    schedule = rng.choice(schedules)
    model = rng.choice(["llama3_8b", "llama2_13b", "mixtral_8x7b", "qwen3_30b_a3b", "glm5"])
    plan = {"tp": tp, "pp": pp, "dp": 8, "vpp": 2 if schedule == "interleaved" else 1}
    if model in ("mixtral_8x7b", "qwen3_30b_a3b", "glm5"):
        plan["ep"] = rng.choice([1, 2, 4, 8])
    recompute = rng.choice(["none", "selective", "full", "selective_ops"])
    options = {"zero": rng.choice([0, 1, 3])}
    if recompute == "full" and rng.random() < 0.3:
        options["activation_offload"] = True
    return {
        "model": model,
        "chip": rng.choice(["h100", "910b", "a100_80", "910b3", "b200", "h20", "mi300x"]),
        "chips": 8 * tp * pp,
        "plan": plan,
        "schedule": schedule,
        "recompute": recompute,
        "seq": rng.choice([2048, 8192]),
        "global_batch": 8 * rng.choice([8, 16]),
        "tokens": 10 ** rng.randint(9, 12),
        "precision": rng.choice(["bf16", "fp8"]),
        "options": options,
        "allow_oom": True,
        "failures": {"level": rng.choice(["low", "mid", "high"])},
    }


def test_draws_that_are_repeated_are_computed_to_the_last_bit():
    """`outcomes` records the answer once; every draw of it is what `outcome` computes, on machines with measured tables
    and without."""
    rng, compared, chips = random.Random(25), 0, set()
    while compared < 24:
        document = generated(rng)
        try:
            s = resolve(document)
            base = base_of(s, glance(s))
        except InputError:
            continue
        rows = [{one.path: one.dist.draw(rng) for one in fact_inputs(s)} for _ in range(6)]
        rows += [{path: value} for path, value in rows[0].items()] + [{}, {(LUCK,): 1.1}]
        assert outcomes(s, rows, base) == [outcome(s, row, base) for row in rows], document
        compared += 1
        chips.add(document["chip"])
    assert len(chips) > 3


def test_most_draws_take_the_course_of_the_scenario(monkeypatch):
    """A draw that takes another one is computed by itself: seldom, or nothing is won."""
    s = load_scenario("glm5_100k_910b")
    base, alone = base_of(s, glance(s)), []
    monkeypatch.setattr("sim.study.answer.outcome", lambda *asked: alone.append(asked) or outcome(*asked))
    rng = random.Random(0)
    rows = [{one.path: one.dist.draw(rng) for one in fact_inputs(s)} for _ in range(200)]
    assert len(outcomes(s, rows, base)) == len(rows)
    assert len(alone) - 1 <= 10  # one is recorded


def test_nothing_moved_is_the_scenarios_own_answer():
    s = load_scenario("llama3_405b_16k_h100")
    base = base_of(s, glance(s))
    assert outcome(s, {}, base)["days"] == base.simulated.campaign.days
    assert outcomes(s, [{(LUCK,): 1.0}], base)[0]["days"] == base.simulated.campaign.days


def test_a_recorded_answer_is_not_kept():
    """The cost model's caches hold numbers of the last tapes, not all that led to them: hundreds of answers in one
    process would fill its memory."""
    s = load_scenario("llama3_405b_16k_h100")
    base = base_of(s, glance(s))
    rows = [{one.path: one.dist.middle for one in fact_inputs(s)}]
    outcomes(s, rows, base)
    gc.collect()
    before = sum(type(one) is Number for one in gc.get_objects())
    for _ in range(5):
        outcomes(s, rows, base)
    gc.collect()
    assert sum(type(one) is Number for one in gc.get_objects()) - before < 5 * 100
