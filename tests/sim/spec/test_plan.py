"""Plans: layouts of layers, derived widths, and refusals that say what would do."""

from __future__ import annotations

import pytest

from minglm.errors import InputError
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload, check, stages_with_ends

LLAMA, DSV3, PANGU = load_model("llama3_405b"), load_model("deepseek_v3"), load_model("pangu_ultra_135b")


def test_llama3s_first_and_last_stage_are_one_layer_lighter():
    layers = Plan(tp=8, pp=16, vpp=8).chunk_layers(LLAMA.layers)
    assert layers[0] == layers[-1] == 0 and set(layers[1:-1]) == {1} and sum(layers) == 126


def test_deepseeks_recipe_layout_comes_out():
    # Megatron-Bridge writes it as Et|(tt|)*30mL: embedding and one layer, thirty pairs, MTP and loss alone
    assert Plan(pp=8, vpp=4).chunk_layers(61, 1) == (1, *[2] * 30, 0)
    # and Et*4|(t*4|)*14tmL: fifteen chunks of four, one layer beside MTP and both heads
    assert Plan(pp=16).chunk_layers(61, 1) == Plan(pp=4, vpp=4).chunk_layers(61, 1) == (*[4] * 15, 1)


def test_counts_that_divide_are_even_and_bloom_counts_embedding_and_head_as_layers():
    assert Plan(pp=8, vpp=3).chunk_layers(96) == (4,) * 24
    assert Plan(pp=12).chunk_layers(70) == (5, *[6] * 10, 5)
    assert Plan().chunk_layers(61, 1) == (61,)
    assert Plan(pp=2, stages=(40, 56)).chunk_layers(96) == (40, 56)


@pytest.mark.parametrize(
    "schedule, held",
    [("interleaved", (1, 5)), ("dualpipe", (1, 2)), ("dualpipe-v", (1, 6)), ("zb-v", (1, 6)), ("1f1b", (1,))],
)
def test_chunks_of_a_rank(schedule, held):
    plan = Plan(pp=4, vpp=2 if schedule == "interleaved" else 1, schedule=schedule)
    assert plan.chunks_of_rank(1) == held


def test_derived_widths():
    plan = Plan(tp=2, pp=8, dp=64, ep=64, zero=1)
    assert plan.num_chips == 1024 and plan.expert_dp == 2 and plan.zero_shards == 64 and plan.sp
    assert Plan(dp=16, hsdp=8, zero=3).zero_shards == 8
    assert Plan(dp=4, cp=2).zero_shards == 8
    assert Plan(tp=8, vpp=3, pp=2).schedule == "interleaved"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(tp=3), "does not divide the model's 128 attention heads; use tp=2"),
        (dict(pp=64, vpp=4), "more than the model's 126 layers"),
        (dict(ep=4), "no experts; use ep=1"),
        (dict(cp=3), "does not divide the sequence of 8192; use cp=2"),
        (dict(pp=2, stages=(63,)), "need 2"),
        (dict(pp=2, stages=(63, 62)), "sum to 125: must be the model's 126"),
        (dict(pp=16, vpp=8, dp=2048), "interleaved over pp=16 needs at least 16; use global_batch=32768"),
        (dict(pp=16, schedule="dualpipe", dp=256), "dualpipe over pp=16 needs at least 32"),
        (dict(pp=16, schedule="dualpipe-v", dp=128), "dualpipe-v over pp=16 needs at least 32; use global_batch=4096"),
        (dict(pp=16, schedule="zb-v", dp=128), "zb-v over pp=16 needs at least 31; use global_batch=3968"),
        (dict(dp=3), "not a multiple of dp × micro_batch"),
    ],
)
def test_refusals_say_what_would_do(changes, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        check(Plan(**changes), LLAMA, Workload(2048, 8192))


def test_expert_widths_must_fit():
    with pytest.raises(InputError, match="does not divide the model's 256 experts; use ep=16"):
        check(Plan(ep=48, dp=48), DSV3, Workload(4800, 4096))
    check(Plan(ep=16, dp=48), DSV3, Workload(4800, 4096))  # 32 divides the experts, not the 48 ranks
    with pytest.raises(InputError, match="does not divide tp × cp × dp = 32"):
        check(Plan(ep=64, dp=32), DSV3, Workload(3200, 4096))


def test_a_plan_larger_than_the_inventory_says_the_largest_that_fits():
    with pytest.raises(InputError, match="lower dp to 2 or give 128 chips"):
        check(Plan(tp=8, pp=4, dp=4), LLAMA, Workload(16, 8192), cluster_chips=100)
    check(Plan(tp=8, pp=4, dp=2), LLAMA, Workload(16, 8192), cluster_chips=100)  # a batch of 16 does not divide by 3


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(tp=0), "tp=0"),
        (dict(zero=4), "zero=4"),
        (dict(schedule="1f1bb"), "did you mean '1f1b'"),
        (dict(recompute="ful"), "did you mean 'full'"),
        (dict(dp=True), "dp=True"),
        (dict(recompute_modules=("mla_up",)), "mla_up_proj"),
    ],
)
def test_values_out_of_range_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        Plan(**given)


@pytest.mark.parametrize(("recompute", "goes"), [("none", True), ("full", True), ("selective", False)])
def test_activations_wait_in_the_host_with_all_or_no_recomputation(recompute, goes):
    if goes:
        assert Plan(activation_offload=True, recompute=recompute).activation_offload
        return
    with pytest.raises(InputError, match=f"recompute={recompute} is not simulated; set recompute=full"):
        Plan(activation_offload=True, recompute=recompute)


def test_unknown_keys_name_the_nearest():
    with pytest.raises(InputError, match="did you mean 'micro_batch'"):
        Plan.from_dict({"micro_batchs": 2})


def test_every_layout_holds_every_layer_once():
    for mtp in (0, 1, 2):
        for n in range(1, 17):
            for layers in range(n, 100, 3):
                chunks = Plan(pp=n).chunk_layers(layers, mtp)
                assert len(chunks) == n and sum(chunks) == layers and min(chunks) >= 0, (layers, n, mtp)
                inner = chunks[1:-1]
                assert not inner or max(inner) - min(inner) <= 1, (layers, n, mtp)


def test_what_is_left_over_goes_to_the_middle():
    # 33 layers, embedding and head are 35 units over 4: 8 each and 3 more, the first three
    assert Plan(pp=4).chunk_layers(33) == (8, 9, 9, 7)
    assert Plan(pp=5).chunk_layers(31) == (5, 7, 7, 7, 5)  # 33 units: 6 each and 3 more, the middle three


def test_a_plan_of_too_many_replicas_is_told_how_many_fit():
    with pytest.raises(InputError, match="lower dp to 1"):
        check(Plan(tp=8, dp=2), LLAMA, Workload(2, 4096), 8)


def test_no_chunk_has_fewer_than_no_layers():
    """Small models with deep prediction modules, whose last chunk holds more than its share before any layer."""
    for layers in range(1, 9):
        for pp in range(1, layers + 1):
            for depth in range(4):
                for ahead in range(min(pp, 2)):
                    dealt = Plan(pp=pp, mtp_before_head=ahead).chunk_layers(layers, depth)
                    assert min(dealt) >= 0 and sum(dealt) == layers and len(dealt) == pp, (layers, pp, depth, ahead)
    assert Plan(pp=2).chunk_layers(3, 3) == (3, 0)  # by hand: a last chunk with three depths and the head has no room


def test_first_and_last_rank_may_hold_other_numbers_of_layers():
    assert stages_with_ends(61, 4, 1, 13, 16) == (13, 16, 16, 16)
    assert stages_with_ends(62, 4, 2, 14, None) == (7, 8, 8, 8, 7, 8, 8, 8)  # chunk i lies on rank i mod 4
    assert stages_with_ends(32, 1, 1, 32, None) == (32,)


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "first", "last", "end", "fits"),
    [
        (61, 4, 1, 14, None, "first", 13),
        (32, 4, 1, 7, None, "first", 8),
        (62, 4, 2, 15, None, "first", 14),
        (32, 1, 1, 30, None, "first", 32),
        (30, 4, 1, None, 8, "last", 9),
        (61, 4, 1, 13, 15, "first", 12),
    ],
)
def test_ends_that_leave_unequal_parts_are_told_the_nearest_that_does_not(layers, pp, vpp, first, last, end, fits):
    with pytest.raises(InputError, match=f"do not split.*use decoder_{end}_pipeline_num_layers={fits},"):
        stages_with_ends(layers, pp, vpp, first, last)
    ends = (fits, last) if end == "first" else (first, fits)
    assert sum(stages_with_ends(layers, pp, vpp, *ends)) == layers


def test_three_layers_over_eight_chunks_have_no_such_split():
    with pytest.raises(InputError, match="do not split.*; give stages"):
        stages_with_ends(3, 4, 2, 1, None)
