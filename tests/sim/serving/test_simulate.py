"""The event simulation against closed forms: D/D/1, M/D/1, Little's law, a closed loop; determinism and limits."""

import dataclasses

import pytest

from minglm.errors import InputError
from sim.serving import instances
from sim.serving.clock import RooflineClock
from sim.serving.deployment import Deployment
from sim.serving.first_token import together_s, unqueued_s
from sim.serving.simulate import Fleet, simulate
from sim.serving.step_time import decode_step, prefill
from sim.serving.workload import RequestLengths, ServingWorkload, percentiles


class Fixed:
    """Constant times: one prompt takes `prefill`, each step takes `step`, and yields `tokens` tokens."""

    def __init__(self, prefill=0.1, step=0.02, tokens=1.0):
        self.prefill, self.step, self.tokens_per_step = prefill, step, tokens

    def decode_s(self, active, context):
        return self.step

    def prefill_s(self, prompts, prompt, cached):
        return self.prefill * prompts


D = Deployment.of("deepseek_v3", "h800_deepseek", chips=128, stack="deepseek-inhouse")
P = Deployment.of("deepseek_v3", "h800_deepseek", chips=32, stack="deepseek-inhouse")


def one_by_one(prompt=1000, **more):
    """A prefill instance that takes one prompt at a time (its token limit is one prompt) and a wide decode instance."""
    prefill_deployment = P.with_changes(chips=32, attention_tp=32)
    return Fleet(
        decode=D,
        prefill=prefill_deployment,
        prefill_instances=1,
        prefill_batch_tokens=prompt,
        transfer_bytes_per_s=1e30,
        **more,
    )


def test_deterministic_arrivals_slower_than_service_never_wait():
    clock = Fixed(prefill=0.1, step=0.02)
    r = simulate(
        one_by_one(),
        ServingWorkload(rate_per_s=5, requests=200, prompt=1000, output=11, arrivals="even"),
        clocks=(clock, clock),
    )
    assert r.ttft_s["p99"] == pytest.approx(0.1) and r.ttft_s["mean"] == pytest.approx(0.1)
    # alone in the decode instance: 10 steps after the first token
    assert r.tpot_s["mean"] == pytest.approx(0.02) and r.e2e_s["mean"] == pytest.approx(0.1 + 10 * 0.02)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_poisson_arrivals_wait_as_m_d_1_says(load):
    service = 0.1
    clock = Fixed(prefill=service)
    r = simulate(
        one_by_one(),
        ServingWorkload(rate_per_s=load / service, requests=40_000, prompt=1000, output=1),
        seed=3,
        clocks=(clock, clock),
    )
    wait = load * service / (2 * (1 - load))  # Pollaczek-Khinchine for constant service
    assert r.ttft_s["mean"] - service == pytest.approx(wait, rel=0.08)
    assert r.prefill_busy == pytest.approx(load, rel=0.03)


def test_littles_law_holds_exactly():
    clock = Fixed(prefill=0.05, step=0.01)
    r = simulate(
        one_by_one(max_batch=2),
        ServingWorkload(rate_per_s=15, requests=3000, prompt=RequestLengths(900, 0.5), output=RequestLengths(60, 0.8)),
        seed=1,
        clocks=(clock, clock),
    )
    waits = sum(q.finish - q.arrive for q in r.requests) / r.finished
    rate = r.finished / r.duration_s
    # the time average runs from the first arrival to the last departure, and so do the sojourns
    assert r.mean_in_system == pytest.approx(rate * waits, rel=1e-9)


def test_a_closed_loop_without_prefill_time_turns_over_as_arithmetic_says():
    clock = Fixed(prefill=1e-9, step=0.02)
    users, output = 16, 101
    r = simulate(
        one_by_one(),
        ServingWorkload(concurrency=users, requests=1600, prompt=1000, output=output),
        clocks=(clock, clock),
    )
    assert r.output_tokens_per_s == pytest.approx(users * output / ((output - 1) * 0.02), rel=0.02)
    assert r.mean_batch == pytest.approx(users, rel=0.02)


def test_drafts_shorten_a_request_by_tokens_per_step():
    work = ServingWorkload(rate_per_s=0.25, requests=50, prompt=1000, output=101, arrivals="even")
    plain, drafted = (simulate(one_by_one(), work, clocks=(c, c)) for c in (Fixed(), Fixed(tokens=2.5)))
    assert drafted.tpot_s["mean"] == pytest.approx(plain.tpot_s["mean"] / 2.5)


def test_the_batch_never_exceeds_its_limit_and_everybody_finishes():
    clock = Fixed(prefill=0.001, step=0.02)
    r = simulate(
        one_by_one(max_batch=1),
        ServingWorkload(rate_per_s=2000, requests=2000, prompt=1000, output=40),
        clocks=(clock, clock),
    )
    assert r.finished == 2000 and r.mean_batch <= D.groups
    for q in r.requests:
        assert q.arrive <= q.start <= q.first <= q.finish


def test_shared_instances_prefill_between_steps():
    """One instance does both: decoding is slower than alone; the first token still comes at the end of the prefill."""
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    clock = Fixed(prefill=0.2, step=0.02)
    quiet = simulate(
        Fleet(decode=d),
        ServingWorkload(rate_per_s=0.2, requests=40, prompt=1000, output=51, arrivals="even"),
        clocks=(clock, clock),
    )
    assert quiet.ttft_s["mean"] == pytest.approx(0.2) and quiet.tpot_s["mean"] == pytest.approx(0.02)
    busy = simulate(
        Fleet(decode=d),
        ServingWorkload(rate_per_s=2.5, requests=400, prompt=1000, output=51, arrivals="even"),
        clocks=(clock, clock),
    )
    assert busy.tpot_s["mean"] > 1.3 * quiet.tpot_s["mean"]
    assert busy.prefill_busy == pytest.approx(2.5 * 0.2, rel=0.05)


def test_long_prompts_go_in_chunks_so_that_decoding_continues():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    work = ServingWorkload(rate_per_s=0.05, requests=12, prompt=32768, output=4, arrivals="even")
    whole, pieces = (simulate(Fleet(decode=d, chunk_tokens=c), work) for c in (32768, 4096))
    assert whole.finished == pieces.finished == 12
    assert pieces.ttft_s["mean"] >= whole.ttft_s["mean"] * 0.95  # the same work in more launches


def test_cache_room_limits_the_batch():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="bf16", stack="sglang-tp")
    r = simulate(Fleet(decode=d), ServingWorkload(concurrency=64, requests=128, prompt=60_000, output=64), seed=0)
    from sim.serving.memory import chip_memory

    assert r.mean_batch <= chip_memory(d).requests(60_064) and r.finished == 128


def test_same_seed_same_answer_other_seed_another():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    work = ServingWorkload(
        rate_per_s=1.5, requests=300, prompt=RequestLengths(2000, 0.6), output=RequestLengths(200, 0.6)
    )
    a, b, c = (simulate(Fleet(decode=d), work, seed=s) for s in (7, 7, 8))
    assert a.to_dict() == b.to_dict() and [dataclasses.astuple(q) for q in a.requests] == [
        dataclasses.astuple(q) for q in b.requests
    ]
    assert a.to_dict() != c.to_dict()


def test_the_table_of_step_times_agrees_with_the_steps():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", drafts=1, stack="sglang-tp")
    clock = RooflineClock(d)
    for active, context in ((1, 100), (1, 5000), (3, 700), (17, 9000), (60, 2500)):
        assert clock.decode_s(active, context) == pytest.approx(decode_step(d, active, context).total_s, rel=0.03)
    for n, prompt, cached in ((1, 1000, 0), (2, 3000, 1500), (4, 8192, 0)):
        assert clock.prefill_s(n, prompt, cached) == pytest.approx(prefill(d, prompt, cached, n).total_s, rel=0.06)


def test_runs_of_steps_are_the_steps_one_by_one(monkeypatch):
    """Steps that nobody comes or goes in are one event; with runs of one step the same requests, within half a percent:
    an arrival may fall into the step before or after, which moves its first token by a step."""
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    lengths = dict(prompt=RequestLengths(2000, 0.6), output=RequestLengths(200, 0.6))
    work = ServingWorkload(rate_per_s=3.0, requests=150, **lengths)
    runs = simulate(Fleet(decode=d), work, seed=2)
    monkeypatch.setattr(instances, "LEAST_RUN", 1)
    monkeypatch.setattr(instances, "GROWTH", 0.0)
    steps = simulate(Fleet(decode=d), work, seed=2)
    assert steps.steps == pytest.approx(runs.steps, rel=2e-3) and steps.mean_batch > 4
    for ours, exact in ((runs.ttft_s, steps.ttft_s), (runs.tpot_s, steps.tpot_s), (runs.e2e_s, steps.e2e_s)):
        assert ours["mean"] == pytest.approx(exact["mean"], rel=5e-3)
        assert ours["p95"] == pytest.approx(exact["p95"], rel=1e-2)
    clock = Fixed(prefill=0.05, step=0.02)  # with times that do not bend: the same to the digit
    fixed = simulate(Fleet(decode=d), work, seed=2, clocks=(clock, clock))
    monkeypatch.undo()
    again = simulate(Fleet(decode=d), work, seed=2, clocks=(clock, clock))
    assert [(q.first, q.finish) for q in again.requests] == [
        (pytest.approx(q.first), pytest.approx(q.finish)) for q in fixed.requests
    ]


def test_requests_spread_over_the_instances():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    work = ServingWorkload(concurrency=32, requests=64, prompt=500, output=200)
    one, eight = (simulate(Fleet(decode=d, decode_instances=n), work) for n in (1, 8))
    assert eight.mean_batch == pytest.approx(4, rel=0.15) and one.mean_batch == pytest.approx(32, rel=0.15)


def test_a_first_token_waits_for_the_host_and_for_steps_as_the_law_says():
    """Alone: host, its pass, and the steps back; the closed form of `first_token` has half a step more."""
    d = Deployment.of("llama3_70b", "dgx_h200", chips=8, attention_tp=8, precision="fp8", stack="vllm")
    alone = simulate(Fleet(decode=d), ServingWorkload(concurrency=1, requests=10, prompt=4000, output=100))
    step_s = decode_step(d, 1, 4050).total_s
    by_hand = 4000 * 8e-6 + prefill(d, 4000).total_s + 3.0 * step_s
    assert alone.ttft_s["mean"] == pytest.approx(by_hand, rel=0.01)
    # a busy engine with prompts that seldom meet: half a step until it looks, one that is shared, three back
    busy = simulate(Fleet(decode=d), ServingWorkload(rate_per_s=2.0, requests=600, prompt=1000, output=300), seed=1)
    at_work = decode_step(d, max(1.0, busy.mean_batch), 1150).total_s
    assert busy.ttft_s["p50"] == pytest.approx(unqueued_s(d, 1000, at_work), rel=0.1)
    slow = d.with_changes(stack=d.stack.with_changes(poll_steps=30))
    polled = simulate(
        Fleet(decode=slow), ServingWorkload(rate_per_s=2.0, requests=600, prompt=1000, output=300), seed=1
    )
    later = polled.ttft_s["mean"] - busy.ttft_s["mean"]
    assert later == pytest.approx(14.5 * at_work, rel=0.35)  # half of 29 steps more between two looks


def test_a_wave_of_prompts_waits_as_the_sum_of_their_passes():
    d = Deployment.of("llama3_70b", "dgx_h200", chips=8, attention_tp=8, precision="fp8", stack="vllm")
    wave = simulate(Fleet(decode=d), ServingWorkload(concurrency=16, requests=16, prompt=2048, output=400))
    host_s = 2048 * 8e-6 + 3.0 * decode_step(d, 12, 2048).total_s
    assert wave.ttft_s["mean"] == pytest.approx(host_s + together_s(d, 2048, 16, 8192), rel=0.12)


def test_overload_is_called_saturated():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    calm = simulate(
        Fleet(decode=d, max_batch=16), ServingWorkload(rate_per_s=0.3, requests=300, prompt=1000, output=200)
    )
    flood = simulate(
        Fleet(decode=d, max_batch=16), ServingWorkload(rate_per_s=50, requests=600, prompt=1000, output=200)
    )
    assert not calm.saturated and flood.saturated


def test_percentiles_are_nearest_rank():
    p = percentiles([float(i) for i in range(1, 101)])
    assert (p["p50"], p["p90"], p["p99"], p["mean"]) == (50.0, 90.0, 99.0, 50.5)
    assert percentiles([])["p99"] == 0.0


def test_lengths_have_the_mean_they_were_given():
    import random

    rng = random.Random(0)
    drawn = [RequestLengths(1000, 0.5).draw(rng, 10**9) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1000, rel=0.02)
    assert {RequestLengths.of({"low": 3, "high": 5}).draw(rng, 100) for _ in range(200)} == {3, 4, 5}


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: ServingWorkload().check(), "either rate_per_s"),
        (lambda: ServingWorkload(rate_per_s=1, concurrency=2).check(), "either rate_per_s"),
        (lambda: ServingWorkload(rate_per_s=-1).check(), "rate_per_s=-1"),
        (lambda: ServingWorkload(rate_per_s=1, prompt=0).check(), "prompt=0"),
        (lambda: ServingWorkload(rate_per_s=1, arrivals="bursty").check(), "bursty"),
        (lambda: ServingWorkload(rate_per_s=1, cached_share=1.0).check(), "cached_share"),
        (lambda: ServingWorkload(rate_per_s=1, output={"mean": 5, "std": 1}).check(), "unknown key 'std'"),
        (lambda: RequestLengths.of({"low": 9, "high": 3}), "swap them"),
        (lambda: ServingWorkload(rate_per_s=float("nan")).check(), "rate_per_s=nan"),
        (lambda: ServingWorkload(rate_per_s=True).check(), "rate_per_s=True"),
        (
            lambda: simulate(
                Fleet(decode=Deployment.of("glm5", "dgx_h100", chips=8, attention_tp=8)), ServingWorkload(rate_per_s=1)
            ),
            "GiB a chip over",
        ),
        (lambda: simulate(Fleet(decode=D, max_batch=0), ServingWorkload(rate_per_s=1)), "max_batch=0"),
    ],
)
def test_bad_workloads_are_refused_in_one_line(make, says):
    with pytest.raises(InputError) as refusal:
        make()
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
