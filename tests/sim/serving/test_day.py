"""A day of traffic: arrivals that follow the hours, a few instances that stand for all, and what the command prints."""

import json
import random
from dataclasses import replace

import pytest

from minglm.errors import InputError
from sim.cli.main import main
from sim.serving.day import DAY_S, day, pod_of
from sim.serving.deployment import Deployment
from sim.serving.simulate import Fleet, simulate
from sim.serving.workload import RequestLengths, ServingWorkload

NODE = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
LENGTHS = {"prompt": RequestLengths(1000, 0.8), "output": RequestLengths(200, 0.8)}


def test_requests_come_at_the_rate_of_their_stretch():
    work = ServingWorkload(rate_per_s=50.0, stretches=(1, 3, 0, 4), stretch_s=100.0).check()
    times = list(work.arrival_times(random.Random(0)))
    assert times == sorted(times)
    counts = [sum(100 * i <= t < 100 * (i + 1) for t in times) for i in range(4)]
    for count, share in zip(counts, (1, 3, 0, 4), strict=True):
        assert count == pytest.approx(50.0 * share / 2 * 100, abs=4 * (50.0 * share / 2 * 100) ** 0.5)


def test_a_share_dealt_in_turn_is_every_so_manieth_request():
    """The gaps of every eighth arrival of a Poisson stream: mean 1/rate, variance an eighth of a Poisson stream's."""
    rng = random.Random(1)
    dealt = list(ServingWorkload(rate_per_s=2.0, requests=20_000, dealt_over=8.0).arrival_times(rng))
    whole, now = [], 0.0
    for _ in range(160_000):
        now += rng.expovariate(16.0)
        whole.append(now)
    for times in (dealt, whole[7::8]):
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(0.5, rel=0.02)
        assert sum((g - mean) ** 2 for g in gaps) / len(gaps) == pytest.approx(0.25 / 8, rel=0.06)


def test_a_few_instances_stand_for_all():
    """32 instances behind one router, every request simulated, against pods of 8 that stand for them."""
    fleet = Fleet(decode=NODE, decode_instances=32)
    work = ServingWorkload(rate_per_s=32 * 3.0, requests=20_000, **LENGTHS)
    whole = simulate(fleet, work, seed=3)
    folded = day(fleet, work, (1.0,) * 4, seed=3, most=20_000)
    assert folded["pod_instances"] == 2 and folded["stretch_s"] < DAY_S / 4
    assert folded["tpot_p50_s"] == pytest.approx(whole.tpot_s["p50"], rel=0.03)
    assert folded["tpot_p95_s"] == pytest.approx(whole.tpot_s["p95"], rel=0.05)
    assert folded["ttft_p50_s"] == pytest.approx(whole.ttft_s["p50"], rel=0.1)


def test_hours_differ_and_tokens_add_up():
    fleet = Fleet(decode=NODE, decode_instances=1000)
    result = day(fleet, ServingWorkload(rate_per_s=1500.0, **LENGTHS), (1, 3), tpot_s=1.0, most=4_000)
    night, noon = result["hours"]
    assert (night["rate_per_s"], noon["rate_per_s"]) == (750.0, 2250.0)
    assert noon["tpot_p50_s"] > night["tpot_p50_s"] and result["kept"] == night["kept"] == 1.0
    assert result["requests"] == 1500.0 * DAY_S
    assert result["output_tokens"] == pytest.approx(200 * result["requests"], rel=0.1)


def test_an_overloaded_hour_says_that_its_queue_grows():
    fleet = Fleet(decode=NODE, decode_instances=2, max_batch=4)
    result = day(fleet, ServingWorkload(rate_per_s=1.0, **LENGTHS), (1, 30, 1, 1), most=4_000)
    assert [row["queue_grows"] for row in result["hours"]] == [False, True, False, False]


def test_pods_of_a_fleet_that_prefills_elsewhere_keep_its_mix():
    fleet = Fleet(decode=NODE, decode_instances=60, prefill=NODE, prefill_instances=90)
    pod, pods = pod_of(fleet, 1e3, 1e6)
    assert (pod.decode_instances, pod.prefill_instances, pods) == (4, 6, 15.0)
    assert pod_of(replace(fleet, prefill=None), 1e5, 2.5e5)[0].decode_instances == 2


def test_a_day_without_a_rate_is_refused():
    with pytest.raises(InputError, match="give --rate"):
        day(Fleet(decode=NODE), ServingWorkload(concurrency=4))
    with pytest.raises(InputError, match="must not all be 0"):
        day(Fleet(decode=NODE), ServingWorkload(rate_per_s=1.0), (0.0, 0.0))


def test_command(capsys):
    typed = ["serving", "--tp", "8", "--instances", "40", "--rate", "2", "--prompt", "500", "--output", "20"]
    assert main([*typed, "--day", "1", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["instances"] == 40 and result["chips"] == 320 and len(result["hours"]) == 2
    assert result["usd"] == pytest.approx(24 * 320 * result["rent_usd_per_chip_hour"])
    assert main([*typed, "--day", "1", "3"]) == 0
    assert "172,800 requests" in capsys.readouterr().out
    assert main([*typed, "--day", "--load-curve"]) == 2
    assert main([*typed, "--day", "--concurrency", "4"]) == 2


def test_each_side_of_a_split_fleet_is_paid_at_the_rent_of_its_own_chip():
    """The day paid every chip as one that decodes."""
    from sim.serving.scenario import fleet_rent

    decode = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    prefill = Deployment.of("glm5", "dgx_b200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    fleet = Fleet(decode=decode, decode_instances=3, prefill=prefill, prefill_instances=2)
    of_chip, hourly = fleet_rent(fleet, {})
    ours, theirs = (d.cluster.chip.rent_usd_per_hour for d in (decode, prefill))
    assert of_chip == ours and ours.value != theirs.value
    for pick in ("value", "low", "high"):
        assert hourly[pick] == pytest.approx(24 * getattr(ours, pick) + 16 * getattr(theirs, pick))
    assert fleet_rent(fleet, {"rent": "$2/h"})[1] == {"value": 80.0, "low": 80.0, "high": 80.0}
