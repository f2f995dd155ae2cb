"""What must hold for any deployment and load: more is never slower, bounds bound, refusals refuse with ways out, counts
add up."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.serving.deployment import Deployment
from sim.serving.memory import GIB, chip_memory, shortfall
from sim.serving.remedies import remedies, require_fit
from sim.serving.simulate import Fleet, simulate
from sim.serving.step_time import decode_step, flops_per_token, prefill, score_flops_per_token
from sim.serving.workload import RequestLengths, ServingWorkload
from sim.spec.hardware import chip_from, cluster_from

COMMON = settings(max_examples=60)

models = st.sampled_from(["glm5", "deepseek_v3", "glm5_2", "qwen3_235b_a22b", "llama3_70b"])
bases = st.sampled_from(["h100", "h200", "b200", "910b3"])
modes = st.sampled_from(["hybrid", "roofline"])
shapes = st.sampled_from([(8, 8), (8, 1), (8, 4), (16, 1), (64, 1)])


def on(base: str, chips: int, **changed):
    """A cluster of that many chips, some of whose figures are multiplied."""
    chip = chip_from(base)
    figures = {k: getattr(chip, k).value * f for k, f in changed.items() if k != "peak"}
    if "peak" in changed:
        figures["peak_flops"] = {p: f.value * changed["peak"] for p, f in chip.peak_flops.items()}
    nodes = "dgx_h100" if not base.startswith("910") else "atlas_800t_a2"
    return cluster_from(
        {
            "like": nodes,
            "chip": chip_from({"like": base, "name": chip.name, **figures}),
            "chips": 4096,
            "name": f"{base} nodes",
        }
    )


def deployment(model, base, shape, precision="bf16", stack="generic", **changed):
    chips, tp = shape
    return Deployment.of(
        model, on(base, chips, **changed), chips=chips, attention_tp=tp, precision=precision, kv="bf16", stack=stack
    )


@COMMON
@given(
    models,
    bases,
    shapes,
    modes,
    st.integers(1, 200),
    st.integers(0, 100_000),
    st.floats(1.0, 8.0),
    st.integers(16, 20_000),
)
def test_more_bandwidth_is_never_slower(model, base, shape, mode, batch, context, factor, prompt):
    slow, fast = (deployment(model, base, shape, memory_bytes_per_s=f) for f in (1.0, factor))
    assert decode_step(fast, batch, context, mode).total_s <= decode_step(slow, batch, context, mode).total_s * (
        1 + 1e-9
    )
    assert prefill(fast, prompt, 0, 1, mode).total_s <= prefill(slow, prompt, 0, 1, mode).total_s * (1 + 1e-9)


@COMMON
@given(models, bases, shapes, st.integers(1, 200), st.integers(0, 100_000), st.floats(1.0, 8.0))
def test_more_flops_are_never_slower(model, base, shape, batch, context, factor):
    slow, fast = (deployment(model, base, shape, peak=f) for f in (1.0, factor))
    assert decode_step(fast, batch, context, "roofline").total_s <= decode_step(
        slow, batch, context, "roofline"
    ).total_s * (1 + 1e-9)


@COMMON
@given(
    models,
    bases,
    shapes,
    st.integers(1, 500),
    st.integers(1, 150_000),
    st.integers(16, 30_000),
    st.sampled_from(["generic", "deepseek-inhouse", "ascend-a2"]),
)
@example("glm5", "h100", (8, 8), 245, 17_693, 16, "deepseek-inhouse")  # measured at short contexts only
def test_the_roofline_bounds_the_hybrid(model, base, shape, batch, context, prompt, stack):
    d = deployment(model, base, shape, stack=stack)
    assert decode_step(d, batch, context, "roofline").total_s <= decode_step(d, batch, context, "hybrid").total_s
    assert prefill(d, prompt, 0, 1, "roofline").total_s <= prefill(d, prompt, 0, 1, "hybrid").total_s


@COMMON
@given(models, bases, shapes, st.integers(1, 10_000), st.integers(0, 150_000))
def test_no_batch_beats_the_compute_roofline_and_larger_ones_come_closer(model, base, shape, batch, context):
    d = deployment(model, base, shape)
    chip = d.cluster.chip
    scores = chip.peak("fp8" if "fp8" in chip.peak_flops else "bf16").value  # an indexer scores in fp8 where it can
    seconds = flops_per_token(d, context) / chip.peak("bf16").value + score_flops_per_token(d, context) / scores
    bound = d.chips / seconds
    rate = decode_step(d, batch, context, "roofline").tokens_per_s
    assert rate <= bound * (1 + 1e-6)
    assert rate <= decode_step(d, 2 * batch, context, "roofline").tokens_per_s * (1 + 1e-9)


@COMMON
@given(
    models,
    bases,
    st.sampled_from([(4, 4), (8, 8), (8, 1), (16, 2), (2, 2)]),
    st.sampled_from(["bf16", "fp8", "w8a8", "w4a8"]),
    st.sampled_from(["bf16", "fp8"]),
    st.integers(1, 400_000),
    st.integers(0, 64),
)
def test_a_refusal_names_the_excess_and_changes_that_fit(model, base, shape, precision, kv, context, requests):
    d = Deployment.of(model, on(base, shape[0]), chips=shape[0], attention_tp=shape[1], precision=precision, kv=kv)
    over = shortfall(d, context, requests)
    if over <= 0:
        m = require_fit(d, context, requests)
        assert m.weights_bytes + m.kv_bytes_per_token * context * requests <= m.usable_bytes * (1 + 1e-12)
        return
    with pytest.raises(InputError) as refusal:
        require_fit(d, context, requests)
    text = str(refusal.value)
    assert f"{over / GIB:.1f} GiB a chip over" in text and "\n" not in text
    found = remedies(d, context, requests)
    assert all(shortfall(r.deployment, r.context, r.requests) == 0 for r in found)
    assert all(r.text in text for r in found) and len({r.text for r in found}) == len(found)
    assert len(found) == 3  # there is always a way out, and then two more


class Fixed:
    def __init__(self, prefill_s, step, tokens=1.0):
        self._prefill, self._step, self.tokens_per_step = prefill_s, step, tokens

    def decode_s(self, active, context):
        return self._step

    def prefill_s(self, prompts, prompt, cached):
        return self._prefill * prompts


SHARED = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
APART = Deployment.of("glm5", "dgx_h200", chips=16, attention_tp=8, kv="fp8", stack="sglang-ep")


@COMMON
@given(
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 20),
    st.one_of(st.floats(0.2, 50.0), st.integers(1, 40)),
    st.integers(1, 120),
    st.floats(1e-4, 0.5),
    st.floats(1e-4, 0.1),
    st.floats(1.0, 4.0),
    st.integers(1, 300),
    st.floats(0.0, 1.5),
    st.integers(0, 2**31),
)
def test_littles_law_order_and_determinism_for_any_load(
    apart, instances, most, load, requests, prefill_s, step, tokens, output, cv, seed
):
    clock = Fixed(prefill_s, step, tokens)
    fleet = Fleet(
        decode=APART if apart else SHARED,
        decode_instances=instances,
        max_batch=most,
        **({"prefill": APART, "prefill_instances": instances, "transfer_bytes_per_s": 1e12} if apart else {}),
    )
    kind = {"rate_per_s": load} if isinstance(load, float) else {"concurrency": load}
    work = ServingWorkload(requests=requests, prompt=RequestLengths(500, cv), output=RequestLengths(output, cv), **kind)
    one, two = (simulate(fleet, work, seed=seed, clocks=(clock, clock)) for _ in range(2))
    assert one.to_dict() == two.to_dict() and one.finished == requests
    sojourn = sum(q.finish - q.arrive for q in one.requests) / requests
    assert one.mean_in_system == pytest.approx(requests / one.duration_s * sojourn, rel=1e-6)
    for q in one.requests:
        assert q.arrive <= q.start <= q.first <= q.finish and q.left == 0
        if q.output > 1:
            assert q.finish - q.first >= (q.output - 1) / tokens * step * (1 - 1e-9)
    assert one.mean_batch <= most * fleet.decode.groups + 1e-9
    assert one.decode_busy <= 1 + 1e-9 and one.prefill_busy <= 1 + 1e-9


@settings(max_examples=15)
@given(st.floats(0.1, 0.85), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_one_prompt_at_a_time_waits_as_m_d_1_says(load, service, seed):
    clock = Fixed(service, 0.01)
    fleet = Fleet(
        decode=APART,
        prefill=APART.with_changes(attention_tp=16),
        prefill_instances=1,
        prefill_batch_tokens=500,
        transfer_bytes_per_s=1e30,
    )
    r = simulate(
        fleet,
        ServingWorkload(rate_per_s=load / service, requests=12_000, prompt=500, output=1),
        seed=seed,
        clocks=(clock, clock),
    )
    wait = load * service / (2 * (1 - load))
    assert r.ttft_s["mean"] - service == pytest.approx(wait, rel=0.3, abs=0.02 * service)


@COMMON
@given(models, st.sampled_from([(8, 8), (16, 1)]), st.integers(1, 64), st.integers(1, 30_000))
def test_any_fitting_deployment_serves_at_a_finite_pace(model, shape, batch, context):
    d = Deployment.of(model, "dgx_b200", chips=shape[0], attention_tp=shape[1], kv="bf16")
    assume(chip_memory(d).requests(context) >= 1)
    step = decode_step(d, batch, context)
    assert 1e-5 < step.total_s < 10 and min(step.parts.values()) >= 0
