"""Collectives: textbook costs, the 910B's n−1 links, tiers, oversubscription."""

from __future__ import annotations

import pytest

from minglm.errors import InputError
from sim.cost import collectives
from sim.cost.collectives import CONSTANTS, place, time
from sim.spec.hardware import cluster_from, load_cluster

START = CONSTANTS["launch_s"][0]
DGX, ATLAS = load_cluster("dgx_a100"), load_cluster("atlas_800t_a2")


def flat(n: int = 8, over: float = 1.0, latency: str = "0 s") -> object:
    return cluster_from(
        {
            "name": "flat",
            "chip": "a100",
            "chips_per_node": n,
            "chips": 4 * n,
            "tiers": [
                {
                    "name": "in",
                    "topology": "switch",
                    "size": n,
                    "bytes_per_s": "100 GB/s",
                    "efficiency": 1.0,
                    "latency_s": latency,
                },
                {
                    "name": "out",
                    "topology": "clos",
                    "size": 4 * n,
                    "bytes_per_s": "25 GB/s",
                    "efficiency": 1.0,
                    "latency_s": latency,
                    "oversubscription": over,
                },
            ],
        }
    )


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ring_costs_are_the_textbooks(n):
    size, levels = 1e9, place(flat(), n)
    assert time("all_reduce", size, levels, "ring") - START == pytest.approx(2 * (n - 1) / n * size / 100e9)
    for kind in ("all_gather", "reduce_scatter"):
        assert time(kind, size, levels, "ring") - START == pytest.approx((n - 1) / n * size / 100e9)


def test_ring_latency_counts_its_steps_and_a_tree_its_depth():
    levels = place(flat(latency="10 us"), 8)
    assert time("all_reduce", 8, levels, "ring") - START == pytest.approx(2 * 7 * 10e-6, rel=1e-3)
    assert time("all_reduce", 8, levels, "tree") - START == pytest.approx(2 * 3 * 10e-6, rel=1e-3)
    assert time("all_reduce", 8, levels) == min(
        time("all_reduce", 8, levels, a) for a in ("ring", "tree", "hierarchical")
    )


@pytest.mark.parametrize("n", [2, 4, 8])
def test_a_group_in_the_hccs_mesh_uses_n_minus_one_of_seven_links(n):
    tier = ATLAS.tiers[0]
    level = place(ATLAS, n)[0]
    assert level.bytes_per_s == pytest.approx(tier.bytes_per_s.value * tier.efficiency.value * (n - 1) / 7)
    # so reducing over 2 chips takes far longer than its share of 8 would suggest
    pair, all_eight = (time("all_reduce", 1e9, place(ATLAS, k), "ring") for k in (2, 8))
    assert pair > 3 * all_eight


def test_groups_are_placed_from_the_inside_out():
    assert [lv.fan for lv in place(DGX, 8)] == [8]
    assert [lv.fan for lv in place(DGX, 32)] == [8, 4]
    assert [lv.fan for lv in place(DGX, 16, stride=4)] == [2, 8]
    assert [lv.fan for lv in place(DGX, 16, stride=8)] == [16]
    assert place(DGX, 1) == ()
    assert time("all_reduce", 1e9, ()) == 0.0


def test_all_ports_of_a_node_carry_a_ring_that_leaves_it():
    # 8 chips a node and a port each: the outer tier sees 8 × 25 GB/s against 100 GB/s inside
    inside, across = place(flat(), 8), place(flat(), 32)
    assert time("all_reduce", 1e9, across, "ring") - START == pytest.approx(2 * 31 / 32 * 1e9 / 100e9)
    assert time("all_reduce", 1e9, across, "hierarchical") > time("all_reduce", 1e9, inside, "hierarchical")


def test_oversubscription_slows_what_leaves_the_node():
    free, tight = place(flat(), 32, stride=8), place(flat(over=7.0), 32, stride=8)
    assert time("all_gather", 1e9, tight, "ring") - START == pytest.approx(
        7 * (time("all_gather", 1e9, free, "ring") - START)
    )


def test_all_to_all_is_bound_by_the_network_and_copies_per_node_relieve_it():
    levels = place(flat(), 32)
    size = 1e9
    plain = time("all_to_all", size, levels)
    share = 54.0 * (1 - 8 / 32) / 50 / 0.9  # NCCL over 4 nodes with ports of 50 GB/s: 54 GB/s from 1 GiB a chip on
    assert plain - START == pytest.approx(size * (1 - 8 / 32) / 25e9 / share, rel=0.05)
    shorter = time("all_to_all", size / 64, levels)
    assert shorter > 1.3 * plain / 64
    assert time("all_to_all", size, levels, dedup=0.4) < 0.6 * plain


def test_an_all_to_all_of_a_step_gains_nothing_by_a_wider_port():
    size, b200, b300 = 1e8, load_cluster("dgx_b200"), load_cluster("dgx_b300")
    assert b300.tiers[1].bytes_per_s.value == 2 * b200.tiers[1].bytes_per_s.value
    narrow, wide = (time("all_to_all", size, place(c, 64, tables=True)) for c in (b200, b300))
    # GPT-OSS with experts over 64 chips, Megatron-Bridge 26.02: 8,047 tokens/s a chip on B200 and 8,359 on B300
    assert wide == pytest.approx(narrow, rel=0.05)
    assert time("all_gather", size, place(b300, 64, 8)) < 0.7 * time("all_gather", size, place(b200, 64, 8))


def test_sharers_divide_a_port():
    assert place(DGX, 16, 8, sharers=4)[0].bytes_per_s == pytest.approx(place(DGX, 16, 8)[0].bytes_per_s / 4)


def test_p2p_takes_the_innermost_tier_that_holds_both():
    near, far = collectives.p2p(DGX, 1e8, 1), collectives.p2p(DGX, 1e8, 8)
    assert far > 5 * near
    assert collectives.p2p(DGX, 0, 8) == 0.0


def test_halving_doubling_moves_as_much_as_a_ring():
    levels = place(flat(), 8)
    assert time("all_reduce", 1e9, levels, "halving-doubling") == pytest.approx(time("all_reduce", 1e9, levels, "ring"))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'all_reduce'"):
        time("allreduce", 1.0, place(DGX, 8))
    with pytest.raises(InputError, match="did you mean 'ring'"):
        time("all_reduce", 1.0, place(DGX, 8), "rings")
    with pytest.raises(InputError, match="pairwise"):
        time("all_reduce", 1.0, place(DGX, 8), "pairwise")


def test_a_ring_has_one_hop_less_than_ranks_and_only_one_of_each_node_leaves_it():
    cluster = load_cluster("atlas_800t_a2")
    inner, outer = place(cluster, 4096)
    hops = outer.fan * (inner.fan - 1) * inner.latency_s + (outer.fan - 1) * outer.latency_s
    assert outer.fan * (inner.fan - 1) + outer.fan - 1 == 4095
    empty = time("broadcast", 1e-9, (inner, outer), algorithm="ring")
    assert empty == pytest.approx(hops + CONSTANTS["launch_s"][0], rel=1e-6)


@pytest.mark.parametrize("cluster, n", [("dgx_a100", 8), ("dgx_a100", 32), ("dgx_h100", 64), ("atlas_800t_a2", 16)])
@pytest.mark.parametrize("algorithm", ["ring", "hierarchical", "auto"])
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(cluster, n, algorithm):
    """Of a large buffer, over one tier and over two."""
    levels, size = place(load_cluster(cluster), n), 4e9
    both = time("reduce_scatter", size, levels, algorithm) + time("all_gather", size, levels, algorithm)
    assert time("all_reduce", size, levels, algorithm) == pytest.approx(both, rel=0.02)
