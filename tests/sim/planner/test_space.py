"""What a search may try: widths, pipelines and replicas, by the rules they come from."""

from dataclasses import replace

import pytest

from minglm.errors import InputError
from sim.planner.space import _pipelines, default_space, enough_micro_batches, every, replicas
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.training.schedules import CHUNKS, check

NODES = replace(load_cluster("dgx_h100"), num_chips=64)


def space_of(model, **fixed):
    return default_space(load_model(model), NODES, 4096, 512, fixed=fixed)


def test_pipelines_are_up_to_ten_powers_of_two_and_what_divides_the_layers():
    """Llama 3 8B has 32 layers, and 34 units with the embedding and the head: 17 divides those alone."""
    assert space_of("llama3_8b").pp == (*range(1, 11), 16, 17, 32)


def test_prediction_depths_count_as_layers_of_a_pipeline_where_they_are_trained():
    """DeepSeek-V3 has 61 layers, 63 units with the ends and 64 with its prediction depth; on 64 chips 61 fit."""
    model, most = load_model("deepseek_v3"), 61
    with_depth, without = (default_space(model, NODES, 4096, 512, mtp=mtp).pp for mtp in (True, False))
    for units, found in (({61, 63, 64}, with_depth), ({61, 63}, without)):
        powers = {1, 2, 4, 8, 16, 32}
        dividing = {p for p in range(1, most + 1) if any(n % p == 0 for n in units)}
        assert set(found) == {*range(1, 11), *powers, *dividing}
    assert 21 in without and 12 not in without


def test_chunks_are_tried_as_far_as_the_layers_and_the_ends_go():
    """Two stages of 6 layers with an embedding and a head are 8 units: 2 to 4 chunks a stage, none of one stage."""
    small = replace(load_model("llama3_8b"), layers=6)
    assert _pipelines(small, ("interleaved",), [2]) == [("interleaved", v) for v in (2, 3, 4)]
    assert _pipelines(small, ("interleaved",), [1]) == []


def test_tensor_widths_divide_the_node_and_the_heads_or_share_keys():
    """Qwen2.5-like heads: 28 and 4 KV heads on nodes of eight: 8 does not divide the heads."""
    model = replace(load_model("llama3_8b"), heads=28, kv_heads=4, head_dim=128)
    assert default_space(model, NODES, 4096, 512).tp == (1, 2, 4)
    assert space_of("llama3_8b").tp == (1, 2, 4, 8)


@pytest.mark.parametrize("cluster, widest", [("gb200_nvl72", 4), ("cloudmatrix384", 16), ("dgx_h100", 8)])
def test_a_wide_domain_does_not_widen_tensor_parallelism_beyond_a_node(cluster, widest):
    """72 GPUs share NVLink in machines of 4, 384 dies in machines of 16: tensor parallelism stays in the machine."""
    found = default_space(load_model("llama3_405b"), replace(load_cluster(cluster), num_chips=1152), 4096, 1152)
    assert max(found.tp) == widest


def test_a_pinned_width_takes_the_nearest_batch_of_at_least_one_micro_batch():
    space = replace(space_of("llama3_8b"), dp=(8,), tolerance=0.4)
    assert replicas(space, 8, 1, 64, 1) == [(8, 8)]
    assert replicas(space, 3, 1, 64, 1) == [(8, 8)]
    assert replicas(space, 21, 1, 64, 1) == [(8, 24)]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipe-v"])
def test_the_rule_of_micro_batches_is_the_schedules_own(schedule):
    for pp in (2, 4, 6):
        for m in range(1, 16):
            try:
                check(schedule, pp, m, CHUNKS[schedule] or 2)
                runs = True
            except InputError:
                runs = False
            assert enough_micro_batches(schedule, pp, m) == runs, (schedule, pp, m)


def test_every_candidate_fills_the_chips_and_its_experts_fit_its_replicas():
    model = load_model("mixtral_8x7b")
    fixed = {"pp": [1, 2], "tp": [1, 2], "cp": [1, 2], "micro_batch": [1], "recompute": ["full"], "schedule": ["1f1b"]}
    space = default_space(model, NODES, 4096, 512, fixed=fixed)
    found = list(every(space, model, 64, 512))
    assert {(c.tp, c.cp, c.pp) for c in found} == {(t, c, p) for t in (1, 2) for c in (1, 2) for p in (1, 2)}
    assert {c.ep for c in found} >= {1, 2, 4, 8}
    for c in found:
        assert c.tp * c.cp * c.pp * c.dp <= 64 and c.batch % (c.dp * c.micro_batch) == 0
        assert c.tp * c.cp * c.dp % (c.ep * c.etp) == 0  # the experts' ranks are those of one stage
    assert max(c.tp * c.cp * c.pp * c.dp for c in found) == 64


@pytest.mark.parametrize(
    ("pp", "chunks"), [([1], set()), ([1, 2], {2, 3}), ([1, 2, 3], {2, 3}), ([3], {2}), ([8], set())]
)
def test_chunks_hold_a_layer_each_embedding_and_head_being_two(pp, chunks):
    """Four layers with both ends make six: two ranks have chunks of one in threes, three ranks in twos."""
    model = replace(load_model("llama3_8b"), layers=4)
    assert {v for schedule, v in _pipelines(model, ("interleaved",), pp)} == chunks
