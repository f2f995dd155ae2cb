"""The measured tables give back their source rows, interpolate between them, and go on as a roofline beyond."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest

from minglm import datafiles
from sim.cost import measured, measured_network
from sim.cost.kernels import Kernels
from sim.cost.measured import matmul_grid
from sim.cost.operators import Op
from sim.spec.hardware import load_chip

# Rows of the sources as they stand there: (value that the table gives, value of the source).
MATMULS = (
    ("h100", "bfloat16", 1, 128, 128, 2.668),
    ("h100", "bfloat16", 256, 5120, 7168, 33.98),
    ("h100", "bfloat16", 4096, 8192, 8192, 697.7),
    ("h100", "bfloat16", 32768, 16384, 4096, 5309.0),
    ("a100", "bfloat16", 2048, 12288, 12288, 2635.0),
    ("a100", "bfloat16", 8192, 65536, 8192, 34710.0),
    ("b200", "bfloat16", 1024, 4096, 4096, 24.38),
)


@pytest.mark.parametrize(("chip", "dtype", "m", "n", "k", "us"), MATMULS)
def test_matmuls_come_back_as_the_source_has_them(chip, dtype, m, n, k, us):
    assert 1e6 * matmul_grid(chip, dtype).seconds(m, n, k) == pytest.approx(us, rel=1e-3)


@pytest.mark.parametrize(
    ("collective", "members", "size", "us"),
    [
        ("all_gather", 4, 16777216, 66.21),
        ("all_to_all", 8, 1048576, 15.61),
        ("reduce_scatter", 2, 536870912, 1078.0),
        ("all_reduce", 8, 16777216, 121.9),
    ],
)
def test_collectives_come_back_as_the_source_has_them(collective, members, size, us):
    assert 1e6 * measured_network.nccl_s("h100", collective, members, size) == pytest.approx(us, rel=1e-3)


@pytest.mark.parametrize(
    (
        "nodes",
        "mib",
        "gb_per_s",
    ),  # of all that a chip sends, its own node's part included: means of the source's two columns
    [
        (2, 32, (47.78 + 50.66) / 2),
        (2, 2048, (84.53 + 84.59) / 2),
        (4, 64, (44.53 + 44.41) / 2),
        (4, 512, (55.57 + 55.37) / 2),
        (8, 32, (29.13 + 32.32) / 2),
        (8, 256, (45.11 + 45.41) / 2),
        (16, 128, (31.69 + 31.98) / 2),
        (16, 1024, (42.70 + 42.83) / 2),
        (32, 32, (19.79 + 20.33) / 2),
        (32, 2048, (40.94 + 41.22) / 2),
    ],
)
def test_all_to_alls_over_nodes_come_back_as_the_source_has_them(nodes, mib, gb_per_s):
    """One law of the message for all numbers of nodes: within 5% of each."""
    size, chips = mib * 2**20, 8 * nodes
    seconds = size * (1 - 1 / nodes) / 50e9 / measured_network.all_to_all_share(nodes, size / chips)
    assert size / seconds / 1e9 == pytest.approx(gb_per_s, rel=0.05)


def test_shorter_messages_never_go_faster_and_long_ones_reach_most_of_the_line():
    for nodes in (2, 3, 4, 32, 500):  # they rise with the message
        shares = [measured_network.all_to_all_share(nodes, 2.0**i) for i in range(8, 28)]
        assert shares == sorted(shares) and 0.75 < shares[-1] < 0.9
    # not in the table: B300, 4 nodes of 8 ports of 800 Gbps, 64 MiB at 94 GB/s of bus bandwidth (awslabs
    # ep-backend-comparison, RESULTS-p5.md 46793a8)
    per_peer = 2**26 / 32
    assert measured_network.all_to_all_share(4, per_peer) == pytest.approx(94e9 * 32 / 31 * 0.75 / 100e9, rel=0.12)


def test_attention_and_mla_come_back_as_the_source_has_them():
    # H200, lengths of 2,048 and 32,768: the median of two backends' backward over their forward
    ratios = (2.151 / 0.625 + 2.154 / 0.608) / 2, (450.227 / 144.976 + 463.235 / 129.383) / 2
    assert measured.backward_over_forward("h200", 2048) == pytest.approx(ratios[0], rel=1e-3)
    assert measured.backward_over_forward("h200", 32768) == pytest.approx(ratios[1], rel=1e-3)
    assert measured.backward_over_forward("a100", 8192) == pytest.approx(203.312 / 30.868, rel=1e-3)
    # H100, 128 heads, 4,096 tokens: the median of three versions of the fastest kernel took 1,243 us
    flops = 128 * 4096 * 4097 * (192 + 128)
    assert measured.attention_flops_per_s("h100", 4096, 128, 192, 128) == pytest.approx(flops / 1243e-6, rel=0.03)
    # H100, sparse attention of 4,096 new tokens of 8,192
    assert 1e6 * measured.dsa_part_s("h100", "attention", 4096, 8192) == pytest.approx(2013.0, rel=0.02)


# Shapes that the grid does not have as a whole are left out of it and asked for again.
def _without(chip: str, dtype: str, n: int, k: int) -> measured.MatmulGrid:
    grid = matmul_grid(chip, dtype)
    i, j = grid.n_axis.index(n), grid.k_axis.index(k)
    n_axis, k_axis = (tuple(x for x in axis if x != gone) for axis, gone in ((grid.n_axis, n), (grid.k_axis, k)))
    cells = {(a - (a > i), b - (b > j)): line for (a, b), line in grid.cells.items() if a != i and b != j}
    return measured.MatmulGrid(grid.m_axis, n_axis, k_axis, cells, grid.roofs, grid.best)


@pytest.mark.parametrize(
    ("chip", "m", "n", "k"),
    [
        ("h100", 4096, 8192, 8192),
        ("h100", 2048, 5120, 7168),
        ("h100", 128, 4096, 4096),
        ("h100", 16384, 3072, 2048),
        ("h200", 4096, 6144, 4096),
        ("h200", 1024, 7168, 2048),
        ("a100", 4096, 4096, 5120),
        ("a100", 8192, 8192, 12288),
        ("b200", 4096, 5120, 5120),
        ("gb300", 8192, 7168, 4096),
    ],
)
def test_a_shape_left_out_of_the_grid_is_interpolated_to_a_fifth(chip, m, n, k):
    whole, part = matmul_grid(chip, "bfloat16"), _without(chip, "bfloat16", n, k)
    assert n not in part.n_axis and k not in part.k_axis
    assert part.seconds(m, n, k) == pytest.approx(whole.seconds(m, n, k), rel=0.2)


@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_interpolation_misses_by_a_few_percent_on_average(chip):
    whole = matmul_grid(chip, "bfloat16")
    shapes = [(m, n, k) for m in (512, 2048, 8192) for n in (1024, 3584, 5120, 7168) for k in (2048, 4096, 10240)]
    errors = [abs(_without(chip, "bfloat16", n, k).seconds(m, n, k) / whole.seconds(m, n, k) - 1) for m, n, k in shapes]
    assert sum(errors) / len(errors) < (0.11 if chip == "a100" else 0.08)


def test_between_two_sizes_a_collective_takes_a_time_between_theirs():
    low, middle, high = (measured_network.nccl_s("h100", "all_gather", 8, size) for size in (2**22, 1.5 * 2**22, 2**23))
    assert low < middle < high
    # straight in log-log: at the geometric mean the geometric mean
    mean = measured_network.nccl_s("h100", "all_gather", 8, 2**22.5)
    assert mean == pytest.approx(math.sqrt(low * high), rel=1e-6)


def test_beyond_the_grid_the_roofline_goes_on_from_the_edge():
    grid = matmul_grid("h100", "bfloat16")
    edge, beyond = grid.seconds(32768, 8192, 8192), grid.seconds(4 * 32768, 8192, 8192)
    assert beyond == pytest.approx(4 * edge, rel=0.01)  # bound by compute: four times the rows, four times the time
    rate = measured_network.nccl_s("h100", "all_reduce", 8, 2**31) / measured_network.nccl_s(
        "h100", "all_reduce", 8, 2**29
    )
    assert rate == pytest.approx(4.0, rel=0.01)


def test_half_of_the_final_bandwidth_is_reached_at_16_mib_and_latency_is_7_to_25_us():
    final = 2**29 / measured_network.nccl_s("h100", "all_reduce", 8, 2**29)
    assert 2**24 / measured_network.nccl_s("h100", "all_reduce", 8, 2**24) == pytest.approx(final / 2, rel=0.15)
    for chip in ("h100", "b200"):
        assert 7e-6 < measured_network.nccl_s(chip, "all_reduce", 8, 1024) < 26e-6


def test_few_heads_cost_more_than_their_share():
    few, many = (measured.attention_flops_per_s("h100", 2048, heads, 128, 128) for heads in (2, 64))
    assert few < 0.5 * many


def test_imbalance_grows_with_expert_parallelism_as_measured():
    assert measured.imbalance(1) == pytest.approx(1.1, abs=0.1)
    assert 1.3 < measured.imbalance(8) < measured.imbalance(32) < 1.65
    assert measured.imbalance(64) == pytest.approx(1.9, abs=0.1)


def test_routing_costs_a_quarter_of_a_millisecond_whatever_the_batch():
    assert all(0.1e-3 < measured.routing_s(tokens) < 0.45e-3 for tokens in (1, 64, 1024, 4096, 65536))


def test_experts_and_dispatch_are_there_and_grow_with_tokens():
    for tokens in (64, 1024, 8192):
        assert measured.moe_s("h100", "fp8_block", tokens, 256, 8) < measured.moe_s(
            "h100", "fp8_block", 4 * tokens, 256, 8
        )
    one, eight = (measured_network.deepep_s("h100", "dispatch", nodes, 4096) for nodes in (1, 8))
    assert 0 < one < eight
    assert measured.mla_decode_s("h100", 16, 32, 8192) > measured.mla_decode_s("h100", 16, 32, 1024)
    layer = [measured.dsa_layer_s("h100", "prefill", "bfloat16", tp, 1, 8192) for tp in (1, 8)]
    assert layer[0] > layer[1] > 0.2 * layer[0]  # latent projections and indexer are on every rank


def test_an_unmeasured_chip_has_no_table():
    assert matmul_grid("910b2", "bfloat16") is None and measured_network.nccl_s("910b2", "all_reduce", 8, 1e6) is None
    assert measured.attention_flops_per_s("910b2", 4096, 64, 128, 128) is None


def test_the_files_are_those_of_the_checksums():
    for line in datafiles.data("measured", "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split()
        assert hashlib.sha256(datafiles.data("measured", name).read_bytes()).hexdigest() == digest, name


def test_a_long_run_never_beats_a_short_one_and_less_power_lowers_the_clock():
    op = Op("x", "linear", "matmul", 2.0 * 4096**3, 6.0 * 4096**2, 4096, 4096, 4096)
    h100 = load_chip("h100")
    assert Kernels(h100).time(op) >= matmul_grid("h100", "bfloat16").seconds(4096, 4096, 4096) * (1 - 1e-9)
    assert Kernels(h100, scale=0.8).time(op) == pytest.approx(Kernels(h100).time(op) / 0.8)


@pytest.mark.parametrize("chip, dtype", [("gb200", "fp8"), ("gb300", "fp8"), ("h100", "bfloat16")])
def test_a_long_run_holds_what_the_largest_short_ones_hold(chip, dtype):
    """Three in four products of 8,192 and more a side are slower than the rate that no long run passes."""
    grid = matmul_grid(chip, dtype)
    sides = [[x for x in axis if x >= 8192] for axis in (grid.m_axis, grid.n_axis, grid.k_axis)]
    rates = [2 * m * n * k / grid.seconds(m, n, k) for m, n, k in itertools.product(*sides)]
    assert len(rates) > 50 and sum(rate <= grid.held for rate in rates) / len(rates) == pytest.approx(0.75, abs=0.02)
    op = Op("x", "linear", "matmul", 2.0 * 8192 * 28672 * 8192, 0.0, 8192, 28672, 8192, low=dtype == "fp8")
    short, long = (op.flops / Kernels(load_chip(chip), long_run=flag).time(op) for flag in (False, True))
    assert long == pytest.approx(min(short, grid.held))


def test_fp8_matmuls_are_without_the_quantization_that_was_timed_with_them():
    bf16, fp8 = (matmul_grid("h100", dtype).seconds(4096, 4096, 4096) for dtype in ("bfloat16", "fp8"))
    assert 0.4 * bf16 < fp8 < bf16
