"""Rollout simulator on generated cases: nothing is lost, bounds hold, more engines are not slower."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.rl.modes import Policy
from sim.rollout.decode_curve import DecodeCurve, synchronous_makespan
from sim.rollout.lengths import Lengths
from sim.rollout.simulate import Case, simulate

GROUPS = st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3).map(tuple), min_size=2, max_size=12).map(tuple)
CURVES = st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 0.2), st.floats(0.0, 0.01)).map(
    lambda x: DecodeCurve(((1, x[0]), (65, x[0] + 64 * x[1])), ((1, x[2]),) if x[2] else ())
)
BATCH = 4
POLICIES = st.one_of(
    st.just(Policy("sync", BATCH)),
    st.just(Policy("one_step_off", BATCH)),
    st.integers(BATCH, 12).map(lambda n: Policy("april", BATCH, n)),
    st.tuples(st.integers(0, 6), st.sampled_from((None, 2, 5))).map(
        lambda x: Policy("async", BATCH, max_staleness=x[0] / 2, max_concurrent=x[1])
    ),
    st.integers(1, 3).map(lambda k: Policy("glm5", BATCH, weight_sync_interval=k, filter_staleness_above=3)),
)


@st.composite
def cases(draw, policies=POLICIES):
    return Case(
        draw(policies),
        3,
        Lengths(groups=draw(GROUPS), prompt=draw(st.integers(0, 20))),
        draw(st.integers(1, 4)),
        draw(CURVES),
        prefill_s_per_token=draw(st.sampled_from((0.0, 0.01))),
        kv_limit=draw(st.sampled_from((None, 90.0, 400.0))),
        max_running=draw(st.sampled_from((None, 2))),
        train_s_per_token=draw(st.floats(0, 0.05)),
        weight_sync_s=draw(st.floats(0, 2)),
        filter_keep=draw(st.sampled_from((1.0, 0.6))),
        interruptible=draw(st.booleans()),
        reuse_kv_cache=draw(st.booleans()),
        steps=4,
    )


@given(cases())
@settings(deadline=None, max_examples=150)
def test_every_trajectory_is_trained_waiting_buffered_running_or_counted_as_waste(case):
    result = simulate(case)
    assert result.counts["submitted"] == sum(n for k, n in result.counts.items() if k != "submitted")
    assert result.throughput.trained_trajectories == 4 * BATCH * 3 == result.counts["trained"]
    assert sum(result.staleness.tokens.values()) == result.throughput.trained_tokens
    assert 0 <= result.utilisation.rollout_idle <= 1 and 0 <= result.utilisation.tail_share <= 1 and result.seconds >= 0


BOUND = {
    "sync": lambda p: 0,
    "one_step_off": lambda p: 1,
    "async": lambda p: -(-p.max_staleness // 1),
    "april": lambda p: float("inf"),
    "glm5": lambda p: p.filter_staleness_above,
}


@given(cases(), st.sampled_from((1, 2, 4)), st.integers(3, 12))
@settings(deadline=None, max_examples=150)
def test_staleness_never_exceeds_what_the_mode_promises(case, parts, steps):
    case = replace(case, parts=parts if case.policy.mode == "async" else 1, steps=steps)
    assert simulate(case).staleness.max <= BOUND[case.policy.mode](case.policy)


@given(cases(st.just(Policy("sync", BATCH))), st.integers(2, 4))
@settings(deadline=None, max_examples=100)
def test_splitting_every_engine_is_never_slower_in_sync(case, times):
    case = replace(case, filter_keep=1.0, kv_limit=None, max_running=None)
    assert simulate(replace(case, engines=case.engines * times)).throughput.step_s <= simulate(
        case
    ).throughput.step_s * (1 + 1e-9)


@given(cases(st.just(Policy("sync", BATCH))))
@settings(deadline=None, max_examples=60)
def test_degenerate_modes_equal_sync(case):
    case = replace(case, interruptible=True)
    expected = simulate(case).throughput.step_s
    assert (
        abs(simulate(replace(case, policy=Policy("async", BATCH, max_staleness=0))).throughput.step_s - expected)
        <= 1e-9 * expected
        or case.filter_keep < 1
    )
    assert (
        abs(simulate(replace(case, policy=Policy("april", BATCH, BATCH))).throughput.step_s - expected)
        <= 1e-9 * expected
        or case.filter_keep < 1
    )


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), CURVES, st.integers(0, 50))
@settings(deadline=None, max_examples=100)
def test_makespan_equals_the_sum_over_the_sorted_lengths(lengths, curve, prompt):
    case = Case(Policy("sync", 1), len(lengths), Lengths(groups=(tuple(lengths),), prompt=prompt), 1, curve, steps=1)
    expected = synchronous_makespan(lengths, curve, prompt)
    assert abs(simulate(case).throughput.rollout_s - expected) <= 1e-9 * expected
