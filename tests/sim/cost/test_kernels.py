"""Kernel times: bounded by the roofs, true to the measured points, labelled."""

from __future__ import annotations

import dataclasses

import pytest

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.cost.kernels import CONSTANTS, DEFAULT_CORES, Kernels, tile_share
from sim.cost.operators import Op
from sim.cost.stacks import attention_shares
from sim.spec.hardware import chip_from, load_chip

A100, H100, B2 = load_chip("a100"), load_chip("h100"), load_chip("910B2")


def matmul(m, n, k, low=False) -> Op:
    return Op("x", "linear", "matmul", 2.0 * m * n * k, 2.0 * (m * n + n * k + m * k), m, n, k, 1.0, low)


def test_a_large_matmul_nears_the_chips_measured_best_and_never_beats_it():
    for chip in (A100, H100, load_chip("b200")):
        op = matmul(8192, 8192, 8192)
        rate = op.flops / Kernels(chip).time(op)
        assert 0.85 * chip.max_matmul_flops.value < rate <= chip.max_matmul_flops.value


def test_measured_points_of_the_910b2_come_back():
    kernels = Kernels(B2)
    errors = []
    for m, n, k, rate in B2.matmul_points:
        op = matmul(m, n, k)
        errors.append(abs(op.flops / kernels.time(op) / rate - 1))
    assert max(errors) < 0.12 and sum(errors) / len(errors) < 0.03


def test_a_tall_thin_matmul_is_bound_by_memory():
    op = matmul(1, 8192, 8192)
    time = Kernels(A100).time(op)
    assert time >= op.bytes / A100.memory_bytes_per_s.value
    assert op.flops / time < 0.02 * A100.max_matmul_flops.value


def test_one_tile_too_many_costs_a_wave():
    assert (
        tile_share(128 * 108, 128, 8192, 1.0, 108, 0.0)
        > 1.3 * tile_share(128 * 109, 128, 8192, 1.0, 108, 0.0) * 108 / 109 * 0.9
    )
    assert tile_share(64, 64, 64, 1.0, 108, 80.0) < 0.05


def test_fp8_is_faster_where_the_chip_has_it_and_equal_where_not():
    wide, low = matmul(8192, 8192, 8192), matmul(8192, 8192, 8192, low=True)
    assert Kernels(H100).time(low) < 0.65 * Kernels(H100).time(wide)
    assert Kernels(A100).time(low) == pytest.approx(Kernels(A100).time(wide))


def test_an_unknown_chip_has_its_own_figures_and_says_what_is_assumed():
    chip = chip_from(
        {"name": "Novel X1", "peak_flops": "500 TFLOPS", "memory_bytes": "96 GB", "memory_bytes_per_s": "3 TB/s"}
    )
    assert Kernels(chip).cores == DEFAULT_CORES and Kernels(A100).cores == 108 and Kernels(B2).cores == 24
    op = matmul(16384, 16384, 16384)
    assert op.flops / Kernels(chip).time(op) == pytest.approx(500e12 * CONSTANTS["max_matmul_share"][0], rel=0.06)


def test_faster_memory_or_matmuls_never_slow_a_kernel():
    for op in (
        matmul(512, 4096, 4096),
        matmul(64, 64, 65536),
        Op("y", "elementwise", "memory", 0.0, 1e9),
        Op("z", "attention", "attention", 1e12, 1e8, m=4096, k=128),
    ):
        for chip in (A100, B2):
            wide = chip.memory_bytes_per_s
            faster = dataclasses.replace(
                chip, memory_bytes_per_s=Figure(wide.value * 2, wide.low, wide.high * 2, "B/s", "", "assumed")
            )
            best = chip.max_matmul_flops
            plain = dataclasses.replace(chip, matmul_points=())  # measured points describe the chip as it is
            quicker = dataclasses.replace(
                plain, max_matmul_flops=Figure(best.value * 2, best.low, best.high * 2, "FLOP/s", "", "assumed")
            )
            assert Kernels(faster).time(op) <= Kernels(chip).time(op) * (1 + 1e-9)
            assert Kernels(quicker).time(op) <= Kernels(plain).time(op) * (1 + 1e-9)


def test_attention_gains_with_the_number_of_keys():
    kernels = Kernels(A100)
    rates = [1e12 / kernels.time(Op("a", "attention", "attention", 1e12, 1e6, m=s, k=128)) for s in (512, 2048, 16384)]
    assert rates == sorted(rates) and rates[-1] < A100.peak("bf16").value


def test_every_constant_is_labelled():
    assert all(label in ("measured", "published", "assumed") and source for _, label, source in CONSTANTS.values())


def test_attention_kernels_are_chosen_by_vendor_and_unknown_ones_refused():
    assert (B2.attention, H100.attention, A100.attention) == ("npu_fusion", "flash3", "flash2")
    assert attention_shares("flash3", H100)[3] == "published"
    with pytest.raises(InputError, match="did you mean 'flash2'"):
        attention_shares("flash22", A100)


@pytest.mark.parametrize("chip", ["a100", "h100", "b200", "910b", "mi300x"])
def test_streaming_kernels_reach_a_part_of_the_memorys_rate(chip):
    one = load_chip(chip)
    assert 0.6 < Kernels(one).bandwidth / one.memory_bytes_per_s.value < 1.0


def test_a_single_wave_of_the_best_tile_loses_nothing():
    assert tile_share(256, 128, 8192, 1.0, 1, 0.0) == pytest.approx(1.0)
    assert tile_share(256, 128 * 7, 8192, 1.0, 7, 0.0) == pytest.approx(1.0)
    assert tile_share(256, 128, 8192, 3.0, 3, 0.0) == pytest.approx(1.0)  # three in one launch


def test_attention_without_a_table_reaches_half_of_its_share_at_its_half():
    """Keys at which half is reached; a long sequence comes near the whole; narrow heads are slower."""
    chip = dataclasses.replace(A100, tables="", attention_points=())
    kernels = Kernels(chip)
    half = kernels.attention_half

    def rate(m, width=128, backward=False):
        op = Op("x", "attention", "attention", 1e15, 0.0, m, width, width, 1.0, False, 1.0, backward)
        return op.flops / kernels._attention(op)

    assert rate(half) == pytest.approx(0.5 * kernels.attention_forward * kernels.matmul_flops[False])
    assert rate(3 * half) == pytest.approx(1.5 * rate(half))
    assert rate(half, backward=True) / rate(half) == pytest.approx(
        kernels.attention_backward / kernels.attention_forward
    )
    assert rate(half, width=64) == pytest.approx(rate(half) * 0.5**0.4)


@pytest.mark.parametrize(("k", "share"), [(700, 0.62), (1024, 0.80), (2048, 0.95)])
def test_few_tiles_are_split_along_k_where_each_piece_keeps_512(k, share):
    """128 × 128 on four cores: four small tiles at 0.62, two at 0.8 in two pieces each, or one at 0.95 in four."""
    assert tile_share(128, 128, k, 1.0, 4, 0.0) == pytest.approx(share)


def test_a_product_alone_is_not_padded_to_a_tile_of_rows_and_grouped_ones_are():
    kernels = Kernels(A100)
    assert kernels.time(matmul(8, 8192, 8192)) < 0.95 * kernels.time(matmul(64, 8192, 8192))
    few, many = (matmul(m, 8192, 8192)._replace(batch=8.0, flops=16.0 * m * 8192**2) for m in (8, 64))
    assert kernels.time(few) == pytest.approx(kernels.time(many), rel=1e-6)
