"""Sizing to a latency target, and the answers on memory, speed, margin and long contexts."""

import pytest

from minglm.errors import InputError
from sim.serving import sizing
from sim.serving.calibration import fitted, rows
from sim.serving.margin import margin, margins
from sim.serving.memory import chip_memory, shortfall
from sim.serving.options import Target, evaluate, measured
from sim.serving.questions import ask, fits, long_context, speed
from sim.serving.sizing import check_by_simulation, size
from sim.serving.step_time import tpot


@pytest.fixture(scope="module")
def chat():
    return size("glm5", Target(4096, 512, 2.0, 0.03), ["dgx_h200", "dgx_b200"], most=16, verify=40)


def test_every_option_meets_the_target_and_fits(chat):
    assert len(chat.options) > 10 and chat.tried > len(chat.options)
    for o in chat.options:
        assert o.tpot_s <= 0.03 and o.ttft_s <= 2.0
        assert shortfall(o.decode, 4096 + 512, o.batch) == 0
        assert o.mode in ("hybrid", "measured")
        if o.layout == "disaggregated":
            assert o.tpot_s == pytest.approx(tpot(o.decode, o.batch, 4096 + 256))


def test_smallest_is_smallest_and_cheapest_is_cheapest(chat):
    assert chat.smallest.chips == min(o.chips for o in chat.options) == 8
    assert chat.cheapest.usd_per_request == min(o.usd_per_request for o in chat.options)
    assert sum(chat.refused.values()) + len(chat.options) == chat.tried


def test_sharing_an_instance_costs_tpot(chat):
    d = fitted(chat.smallest.decode)
    apart, together = evaluate(d, chat.target), evaluate(d, chat.target, shared=True)
    assert together.batch <= apart.batch and together.chips == d.chips and apart.chips == 2 * d.chips


@pytest.mark.parametrize("which", ["smallest", "cheapest"])
def test_the_event_simulation_confirms_the_size(chat, which):
    option = getattr(chat, which)
    seen = check_by_simulation(option, chat.target)
    assert seen == option.simulated and option.kept
    assert seen["keeps_tpot"] and seen["keeps_ttft"] and not seen["saturated"]


def test_a_rate_buys_instances():
    few = size("glm5", Target(4096, 512, 2.0, 0.05, rate_per_s=2), ["dgx_h200"], most=8).smallest
    many = size("glm5", Target(4096, 512, 2.0, 0.05, rate_per_s=40), ["dgx_h200"], most=8).smallest
    assert many.chips > few.chips


def test_a_slower_target_is_never_dearer():
    costs = [
        size("glm5", Target(4096, 512, 2.0, t), ["dgx_h200"], most=8).cheapest.usd_per_request
        for t in (0.02, 0.03, 0.05, 0.1)
    ]
    assert costs == sorted(costs, reverse=True)


def test_roofline_mode_is_a_bound_and_says_so():
    hybrid, bound = (
        size("glm5", Target(4096, 512, 2.0, 0.05), ["dgx_h200"], mode, most=8).cheapest
        for mode in ("hybrid", "roofline")
    )
    assert bound.mode == "roofline" and bound.usd_per_request < hybrid.usd_per_request


def test_a_published_row_is_used_where_it_applies():
    found = size("deepseek_v3", Target(2048, 256, 3.0, 0.05), ["cloudmatrix384"], most=320, rent=2.0)
    seen = [o for o in found.options if o.mode == "measured"]
    assert seen and {o.measured_row for o in seen} == {"cm384-decode-50ms-2k"}
    assert all(o.decode_tokens_per_s_chip == 2360 / 2 for o in seen)
    row = next(r for r in rows() if r["id"] == "cm384-decode-15ms")
    rate, name = measured(seen[0].decode.model, seen[0].decode.cluster.chip, row["context"], 0.0150)
    assert (rate, name) == (538 / 2, "cm384-decode-15ms")
    assert measured(seen[0].decode.model, seen[0].decode.cluster.chip, 50_000, 0.05) is None


def test_no_feasible_size_says_what_comes_nearest():
    with pytest.raises(InputError) as refusal:
        size("glm5", Target(8192, 1024, 2.0, 1e-4), ["dgx_h200"], most=8)
    text = str(refusal.value)
    assert "no deployment of glm5" in text and "nearest: glm5" in text and "TPOT" in text and "\n" not in text


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"prompt": 0}, "prompt=0"),
        ({"tpot_s": 0}, "tpot=0"),
        ({"rate_per_s": -1}, "rate=-1"),
        ({"cached_share": 1}, "cached_share=1"),
    ],
)
def test_bad_targets(bad, says):
    with pytest.raises(InputError) as refusal:
        Target(**{"prompt": 100, "output": 10, **bad}).check()
    assert says in str(refusal.value)


# ------------------------------------------------------------------ answers


def test_which_nodes_hold_fp8_glm5():
    r = fits()
    by_chip = {row["chip"]: row for row in r["rows"]}
    assert by_chip["H200"]["chips"] == 8 and by_chip["H100"]["chips"] == 16 and by_chip["B200"]["chips"] == 8
    assert by_chip["H200"]["next_smaller"]["chips"] == 4 and by_chip["H200"]["next_smaller"]["over_gib_per_chip"] > 50
    assert by_chip["H200"]["contexts"][202752] == 2
    assert "8 × H200" in r["answer"] and r["mode"].startswith("memory")
    quarter = {row["chip"]: row["chips"] for row in fits(precision="w4a8")["rows"]}
    assert quarter["H200"] == 4 and quarter["910C-die"] == 8


def test_72_tokens_per_second_needs_drafts_in_the_model_and_in_the_field():
    r = speed(target_tps=72.5)
    none, most = r["rows"][0], r["rows"][-1]
    assert none["drafts"] == 0 and none["tokens_per_s_batch_1"] < 72.5 < none["roofline_batch_1"]
    assert most["tokens_per_s_batch_1"] > 72.5 and most["largest_batch"] >= 4
    assert none["band_batch_1"][0] < none["tokens_per_s_batch_1"] < none["band_batch_1"][1]
    assert "with multi-token prediction, not without" in r["answer"]
    assert "No:" in speed(target_tps=5000)["answer"]
    rates = list(most["at_batch"].values())
    assert rates == sorted(rates, reverse=True)


def test_margin_is_arithmetic_and_its_interval_holds_the_likely_case():
    r = margin(most=8, rent=2.0)
    row = r["rows"][0]
    assert row["p5"] < row["p50"] < row["p95"] < 1
    x = {k: v["range"][1] for k, v in r["ranges"].items()}
    usd_in, usd_out = r["usd_per_million"]["input"], r["usd_per_million"]["output"]
    spent = usd_out + x["input_per_output"] * (1 - x["cache_hit"]) * usd_in
    earned = 3.20 + x["input_per_output"] * 1.00 * (1 - x["cache_hit"] + x["cache_hit"] * x["cached_price_share"])
    assert row["likely"] == pytest.approx(1 - spent / earned)
    assert row["moves_most"] in r["ranges"]
    cheaper = r["rows"][1]
    assert (cheaper["input_price"], cheaper["output_price"]) == (0.80, 2.56) and cheaper["likely"] < row["likely"]
    for k in r["ranges"]:
        assert r["ranges"][k]["label"] and r["ranges"][k]["source"]
    assert margin(most=8, rent=2.0) == r  # seeded
    assert margin(most=8, rent=4.0)["rows"][0]["likely"] < row["likely"]


def test_a_million_tokens_cost_their_chip_seconds_at_half_of_the_full_rate(chat):
    """An option's chip-seconds are at 80% of its throughput; a bill's at the share used over a day, half of it."""
    option = chat.cheapest
    usd = margin("glm5", option.decode.cluster, option=option, rent=2.0, samples=100)["usd_per_million"]
    assert usd["input"] == pytest.approx(1e6 * option.chip_seconds_input * 0.8 / 0.5 * 2.0 / 3600)
    assert usd["output"] == pytest.approx(1e6 * option.chip_seconds_output * 0.8 / 0.5 * 2.0 / 3600)


def test_fast_streams_on_one_node_leave_less_than_slow_ones_on_many():
    r = margins(samples=200)
    assert [case["assumptions"][0].split("; ")[1].split(",")[0] for case in r["cases"].values()] == [
        "TPOT 50 ms",  # 20 tokens/s
        "TPOT 14 ms",  # 72.5
    ]
    slow, fast = (case["rows"][0]["likely"] for case in r["cases"].values())
    assert fast < slow


def test_a_long_context_in_bytes_time_and_money():
    r = long_context()
    short, long, _, dense = r["rows"]
    assert long["kv_gib"]["bf16"] == pytest.approx(20.74, abs=0.01) and long["kv_gib"]["fp8"] == pytest.approx(
        11.61, abs=0.01
    )
    assert long["fit_on_instance"] == 3  # 37.7 GiB beside the weights of SGLang's 0.904 of a chip, 11.6 a context
    assert long["prefill_s"] > 40 * short["prefill_s"] and dense["prefill_s"] > long["prefill_s"]
    assert long["usd"] > short["usd"] and "indexer" in long["prefill_parts"]
    with pytest.raises(InputError, match="reads at most"):
        long_context(context=300_000)


def test_questions_by_name():
    assert ask("fits", precision="bf16")["rows"]
    with pytest.raises(InputError, match="must be one of"):
        ask("weather")
    with pytest.raises(InputError, match="has no rent"):
        margin(cluster="cloudmatrix384", most=16)


def test_memory_of_an_option_is_that_of_its_deployment(chat):
    assert chip_memory(chat.smallest.decode).requests(4608) >= chat.smallest.batch


def test_what_comes_nearest_is_judged_by_one_request(monkeypatch):
    asked = []
    monkeypatch.setattr(sizing, "tpot", lambda d, requests, *rest: asked.append(requests) or 0.5)
    monkeypatch.setattr(sizing, "ttft", lambda d, target, prompts, *rest: asked.append(prompts) or 3.0)
    with pytest.raises(InputError, match=r"TPOT 500\.0 ms at batch 1, TTFT 3\.00 s for one prompt"):
        size("glm5", Target(8192, 1024, 2.0, 1e-4), ["dgx_h200"], most=8)
    assert asked and set(asked) == {1}


def test_an_option_is_checked_with_four_times_the_requests_in_flight(chat, monkeypatch):
    """Little's law: rate × time of a request; at least 400 and at most what is allowed."""
    option, seen = chat.options[0], []
    target = Target(2048, 256, 2.0, 0.05)

    def simulated(fleet, work, **rest):
        seen.append(work)
        raise InputError("enough")

    monkeypatch.setattr(sizing, "simulate", simulated)
    for most in (20_000, 450):
        with pytest.raises(InputError, match="enough"):
            sizing.check_by_simulation(option, target, most=most)
        flight = seen[-1].rate_per_s * (target.ttft_s + target.output * option.tpot_s)
        assert seen[-1].requests == int(min(most, max(400, 4 * flight)))
    assert 4 * flight > 450, "the bounds do not decide the first"
