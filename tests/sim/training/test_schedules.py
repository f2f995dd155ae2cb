"""Schedules against their published bubbles, and the rules every order must keep."""

from __future__ import annotations

from collections import Counter

import pytest

from minglm.errors import InputError
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.training import schedules
from sim.training.step import simulate


def even(ranks: int, micro_batches: int, chunks: int = 1, F: float = 1.0, B: float = 1.0, W: float = 1.0) -> StepCosts:
    """A step of equal stages and nothing but compute; a rank's work for one micro-batch is F + B + W."""
    chunk = ChunkCost(F / chunks, B / chunks, W / chunks)
    return StepCosts(
        chunks=((chunk,) * chunks,) * ranks,
        micro_batches=micro_batches,
        p2p_s=0.0,
        p2p_bytes=0.0,
        grad_reduce_s=0.0,
        param_gather_s=0.0,
        overlap_grad_reduce=False,
        optimizer_s=0.0,
    )


@pytest.mark.parametrize("ranks, m", [(2, 2), (4, 8), (4, 7), (8, 16), (16, 20), (5, 3)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_bubble_of_gpipe_and_1f1b(schedule, ranks, m):
    result = simulate(even(ranks, m), schedule)
    assert result.bubble_overhead == pytest.approx((ranks - 1) / m)
    assert result.step_s == pytest.approx(3.0 * (m + ranks - 1))


@pytest.mark.parametrize("ranks, m, v", [(2, 4, 2), (4, 8, 3), (8, 16, 6), (8, 24, 2)])
def test_bubble_of_interleaved(ranks, m, v):
    assert simulate(even(ranks, m, v), "interleaved").bubble_overhead == pytest.approx((ranks - 1) / (m * v))


def test_pangu_ultra_bubble():
    """Pangu Ultra 135B reports 30.45% without and 6.8% with interleaving: 8 ranks, 16 micro-batches, 6 chunks."""
    assert simulate(even(8, 16), "1f1b").bubble_fraction == pytest.approx(0.3045, abs=1e-3)
    assert simulate(even(8, 16, 6), "interleaved").bubble_fraction == pytest.approx(0.068, abs=1e-3)


@pytest.mark.parametrize("ranks, m", [(4, 6), (16, 20), (8, 20)])
def test_interleaved_with_micro_batches_that_do_not_divide(ranks, m):
    """A remainder thinner than the pipeline joins the group before it: slower than the ideal, never slower than
    1F1B."""
    ideal = (ranks - 1) / (m * 2)
    assert ideal - 1e-9 <= simulate(even(ranks, m, 2), "interleaved").bubble_overhead <= (ranks - 1) / m


@pytest.mark.parametrize(
    "ranks, m, F, B, W", [(4, 8, 1, 1, 1), (8, 20, 1, 1.1, 0.9), (16, 32, 1, 1.2, 0.8), (3, 9, 2, 2, 2)]
)
def test_bubble_of_zero_bubble_h1(ranks, m, F, B, W):
    """ZB-H1 (arXiv 2401.10241 §2.2): (p−1)(F + B − W), against (p−1)(F + B + W) of 1F1B."""
    idle = simulate(even(ranks, m, F=F, B=B, W=W), "zb-h1").step_s - m * (F + B + W)
    assert idle == pytest.approx((ranks - 1) * (F + B - W))


@pytest.mark.parametrize("ranks, m", [(2, 4), (4, 8), (8, 16), (5, 12)])
def test_zero_bubble_v_waits_only_for_the_pipeline_to_fill(ranks, m):
    """With F = B = W a rank idles only until its first micro-batch has come down: (p−1) forwards of half a rank's
    work."""
    assert simulate(even(ranks, m, 2), "zb-v").step_s - 3 * m == pytest.approx((ranks - 1) / 2)


@pytest.mark.parametrize("ranks, m", [(2, 4), (4, 8), (8, 16), (8, 22), (16, 40)])
def test_bubble_of_dualpipe(ranks, m):
    """DualPipe (arXiv 2412.19437 Table 2): (p/2 − 1)(F&B + B − 3W); with nothing to hide F&B is F + B + W."""
    F, B_input, W = 1.0, 1.0, 1.0  # B of the paper is the backward for inputs and weights: B_input + W
    idle = simulate(even(ranks, m, F=F, B=B_input, W=W), "dualpipe").step_s - m * (F + B_input + W)
    assert idle == pytest.approx((ranks / 2 - 1) * ((F + B_input + W) + (B_input + W) - 3 * W))


@pytest.mark.parametrize("ranks, m", [(2, 4), (4, 8), (5, 13), (8, 16)])
def test_bubble_of_dualpipe_v(ranks, m):
    """DualPipe-V runs DualPipe's order for 2p half-sized stages on p ranks: (p − 1)(F&B + B − 3W) of half-sized
    passes."""
    idle = simulate(even(ranks, m, 2), "dualpipe-v").step_s - 3 * m
    assert idle == pytest.approx((ranks - 1) * (3 + 2 - 3) / 2)


def test_dualpipe_hides_all_to_all():
    """With all-to-all as long as compute, DualPipe hides it in all but the ramps; 1F1B pays all of it."""

    def costs(chunks):
        c = ChunkCost(
            2.0 / chunks, 2.0 / chunks, 1.0 / chunks, forward_comm_s=1.0 / chunks, backward_comm_s=1.0 / chunks
        )
        return StepCosts(((c,) * chunks,) * 4, 64, 0, 0, 0, 0, False, 0)

    plain, dual, dual_v = (simulate(costs(n), s) for n, s in ((1, "1f1b"), (1, "dualpipe"), (2, "dualpipe-v")))
    assert plain.exposed_comm_s == pytest.approx(64 * 2.0)
    assert dual.exposed_comm_s < 0.2 * plain.exposed_comm_s and dual_v.exposed_comm_s < 0.2 * plain.exposed_comm_s
    assert 64 * 3.0 < dual.step_s < 0.75 * plain.step_s and 64 * 3.0 < dual_v.step_s < 0.75 * plain.step_s


@pytest.mark.parametrize(
    "schedule, ranks, m, v",
    [
        ("gpipe", 3, 5, 1),
        ("1f1b", 4, 3, 1),
        ("interleaved", 4, 10, 3),
        ("zb-h1", 4, 2, 1),
        ("zb-v", 4, 9, 2),
        ("dualpipe", 6, 14, 2),
        ("dualpipe-v", 3, 11, 2),
    ],
)
def test_every_pass_exactly_once(schedule, ranks, m, v):
    for rank, order in enumerate(schedules.orders(schedule, ranks, m, v)):
        forwards, inputs, weights = Counter(), Counter(), Counter()
        for op in order:
            if op.kind in ("F", "FB"):
                forwards[op.micro_batch, op.chunk] += 1
            if op.kind in ("B", "I", "FB"):
                key = (op.b_micro_batch, op.b_chunk) if op.kind == "FB" else (op.micro_batch, op.chunk)
                assert forwards[key] == 1, f"rank {rank}: backward of {key} before its forward"
                inputs[key] += 1
                weights[key] += op.kind != "I"
            if op.kind == "W":
                assert inputs[op.micro_batch, op.chunk] == 1
                weights[op.micro_batch, op.chunk] += 1
        expected = {
            (i, c)
            for chain in schedules.chains(schedule, ranks, m, v)
            for r, c in chain.stages
            if r == rank
            for i in chain.micro_batches
        }
        assert forwards == inputs == weights == Counter(expected)


@pytest.mark.parametrize("schedule, most", [("1f1b", lambda P, r: P - r), ("zb-h1", lambda P, r: P)])
def test_micro_batches_held(schedule, most):
    """How many micro-batches a rank holds decides its memory: P − rank in 1F1B, never above P in ZB-H1."""
    for rank, order in enumerate(schedules.orders(schedule, 6, 24, 1)):
        held = peak = 0
        for op in order:
            held += {"F": 1, "B": -1, "W": -1, "I": 0}[op.kind]
            peak = max(peak, held)
        assert peak == most(6, rank)


@pytest.mark.parametrize(
    "schedule, ranks, m, v, words",
    [
        ("1f1bb", 4, 8, 1, "did you mean '1f1b'"),
        ("interleaved", 8, 6, 2, "use 8 or more"),
        ("interleaved", 8, 8, 1, "at least 2 virtual stages"),
        ("dualpipe", 5, 20, 2, "even number"),
        ("dualpipe", 4, 9, 2, "use 10"),
        ("dualpipe", 16, 20, 2, "use 32 or more"),
        ("dualpipe-v", 4, 8, 1, "set 2 virtual"),
        ("zb-v", 8, 8, 2, "2·ranks−1 = 15"),
        ("1f1b", 4, 8, 2, "choose 'interleaved'"),
        ("1f1b", 0, 8, 1, "ranks=0"),
        ("1f1b", 4, True, 1, "micro_batches=True"),
    ],
)
def test_refusals_say_what_would_do(schedule, ranks, m, v, words):
    with pytest.raises(InputError) as err:
        schedules.orders(schedule, ranks, m, v)
    assert words in str(err.value) and "\n" not in str(err.value)


@pytest.mark.parametrize("ranks, m, chunks", [(2, 4, 2), (4, 8, 2), (4, 16, 3), (8, 16, 4), (8, 8, 2)])
def test_warm_up_of_interleaving_is_megatrons(ranks, m, chunks):
    """(p − r − 1)·2 + (v − 1)·p forwards before the first forward that a backward follows (Megatron-LM)."""
    for rank, order in enumerate(schedules.orders("interleaved", ranks, m, chunks)):
        kinds = [op.kind for op in order]
        warm_up = min((ranks - rank - 1) * 2 + (chunks - 1) * ranks, m * chunks)
        assert kinds.index("B") == min(warm_up + 1, m * chunks)
        assert kinds[warm_up : 2 * m * chunks - warm_up] == ["F", "B"] * (m * chunks - warm_up)
        assert kinds[2 * m * chunks - warm_up :] == ["B"] * warm_up


@pytest.mark.parametrize("ranks, m", [(2, 1), (4, 3), (4, 8), (8, 20)])
def test_warm_up_of_1f1b_fills_the_pipeline_below(ranks, m):
    for rank, order in enumerate(schedules.orders("1f1b", ranks, m)):
        kinds = [op.kind for op in order]
        warm_up = min(ranks - rank - 1, m)
        assert kinds == ["F"] * warm_up + ["F", "B"] * (m - warm_up) + ["B"] * warm_up
