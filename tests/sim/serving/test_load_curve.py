"""Latencies against load: the capacity by hand, what grows with load, the goodput and the command."""

import json

import pytest

from sim.cli.main import main
from sim.serving.deployment import Deployment
from sim.serving.load_curve import KEPT, capacity_per_s, load_curve
from sim.serving.simulate import Fleet
from sim.serving.step_time import decode_step, prefill
from sim.serving.workload import ServingWorkload

D = Deployment.of("llama3_70b", "dgx_h100", 4, attention_tp=4, precision="fp8", stack="vllm")
WORK = ServingWorkload(rate_per_s=1.0, prompt=1024, output=128)


def test_the_capacity_is_a_full_batch_and_its_prompts():
    fleet = Fleet(decode=D, max_batch=16)
    stay_s = 128 * decode_step(D, 16, 1024 + 64).total_s
    by_hand = 1 / (stay_s / 16 + prefill(D, 1024, 0, 8).total_s / 8)
    assert capacity_per_s(fleet, WORK) == (pytest.approx(by_hand), pytest.approx(stay_s))
    twice, _ = capacity_per_s(Fleet(decode=D, decode_instances=2, max_batch=16), WORK)
    assert twice == pytest.approx(2 * by_hand)


def test_latencies_grow_with_load_and_the_goodput_is_the_last_that_keeps():
    fleet = Fleet(decode=D, max_batch=16)
    curve = load_curve(fleet, WORK, tpot_s=0.016, loads=(0.1, 0.5, 0.9))
    calm, half, full = curve["rows"]
    assert calm["tpot_p50_s"] < half["tpot_p50_s"] < full["tpot_p50_s"] and calm["ttft_p95_s"] < full["ttft_p95_s"]
    assert half["output_tokens_per_s"] == pytest.approx(128 * half["rate_per_s"], rel=0.15)
    good = [r["rate_per_s"] for r in curve["rows"] if r["kept"] >= KEPT]
    assert curve["goodput_per_s"] == max(good) and len(good) < 3
    free = load_curve(fleet, WORK, loads=(0.1,))
    assert free["goodput_per_s"] is None and free["rows"][0]["kept"] is None
    assert load_curve(fleet, WORK, ttft_s=1e-4, loads=(0.1,))["goodput_per_s"] == 0.0


def test_the_command_draws_the_curve(capsys):
    flags = (
        "--model llama3_70b --cluster dgx_h100 --chips 4 --precision fp8 --stack vllm --output 64 --load-curve".split()
    )
    assert main(["serving", *flags, "--ttft", "1s", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rows"]) == 7 and 0 < told["goodput_per_s"] <= told["capacity_per_s"]
    assert main(["serving", *flags, "--rate", "2"]) == 2
    assert "--load-curve reads" in capsys.readouterr().err
