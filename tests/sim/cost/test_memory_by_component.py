"""Memory by component: counts that add up, schedules' micro-batches in flight, refusals with changes that fit."""

from __future__ import annotations

import dataclasses
import re

import pytest

from minglm.errors import InputError
from sim.cost import memory
from sim.cost.parameters import rank_params
from sim.cost.stacks import load_stack
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload

LLAMA, GPT, DSV3 = load_model("llama3_8b"), load_model("gpt3_175b"), load_model("deepseek_v3")
WORK = Workload(512, 8192)


def test_weights_of_all_ranks_add_up_to_the_model():
    for model, plan in ((LLAMA, Plan(pp=4, dp=2)), (GPT, Plan(tp=8, pp=8)), (DSV3, Plan(pp=16, dp=64, ep=64))):
        params = rank_params(model, plan, model.vocab, mtp=False)
        total = sum(base * plan.tp + expert * plan.ep for base, expert in params)
        extra = (
            model.vocab * model.hidden if model.tied and plan.pp > 1 else 0
        )  # a tied head has its copy on the last stage
        assert total - extra == pytest.approx(model.total_params(), rel=4e-3)


def test_adam_in_mixed_precision_takes_eighteen_bytes_a_parameter():
    found = memory.peak(LLAMA, Plan(dp=8), WORK)
    each = (found.weights + found.gradients + found.optimizer) / sum(rank_params(LLAMA, Plan(dp=8), LLAMA.vocab)[0])
    assert each == pytest.approx(18.0, rel=0.01)


def test_zero_divides_states_then_gradients_and_weights():
    plain, one, three = (memory.peak(LLAMA, Plan(dp=8, zero=z), WORK) for z in (0, 1, 3))
    assert one.optimizer == pytest.approx(plain.optimizer / 8) and one.weights == plain.weights
    assert three.weights + three.gradients + three.optimizer == pytest.approx(
        16 / 8 * sum(rank_params(LLAMA, Plan(dp=8), LLAMA.vocab)[0]), rel=0.01
    )


@pytest.mark.parametrize(
    "schedule, vpp, rank, expected",
    [
        ("gpipe", 1, 0, [32]),
        ("1f1b", 1, 0, [8]),
        ("1f1b", 1, 7, [1]),
        ("zb-h1", 1, 3, [5]),
        ("interleaved", 3, 7, [(2 * 8 + 1) / 3] * 3),
    ],
)
def test_micro_batches_in_flight(schedule, vpp, rank, expected):
    assert memory.in_flight(Plan(pp=8, vpp=vpp, schedule=schedule), rank, 32) == pytest.approx(expected)


def test_recomputation_keeps_less_and_selective_lies_between():
    sizes = [
        memory.peak(GPT, Plan(tp=8, pp=8, recompute=r), Workload(64, 2048), stack="megatron-lm-2022-05").activations
        for r in ("none", "selective", "full")
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_the_recompute_papers_175b_fits_with_selective_and_not_without():
    # arXiv 2205.05198 Fig. 1: the 175B model at TP8 PP8 is over 80 GB without recomputation and under it with
    def total(recompute, sp):
        plan = Plan(tp=8, pp=8, vpp=3, recompute=recompute, sp=sp)
        return memory.peak(GPT, plan, Workload(64, 2048), "fp16", "megatron-lm-2022-05").total_bytes

    assert total("none", False) > 80 * 2**30
    assert total("selective", True) < 80 * 2**30 and total("full", False) < 80 * 2**30


def test_a_model_that_does_not_fit_is_refused_with_changes_that_do():
    cluster = load_cluster("dgx_h100")
    with pytest.raises(InputError) as found:
        memory.check_fits(load_model("llama3_70b"), cluster, Plan(tp=1, dp=64, zero=1), WORK)
    text = str(found.value)
    assert re.search(r"needs [\d.]+ GiB .* [\d.]+ GiB over", text) and text.count(" or ") == 2
    assert (
        memory.check_fits(load_model("llama3_70b"), cluster, Plan(dp=64, zero=3, recompute="full"), WORK).total_bytes
        < 80 * 2**30
    )


def test_components_add_up():
    found = memory.peak(DSV3, Plan(pp=16, dp=64, ep=64, zero=1), Workload(1024, 4096))
    assert found.total_bytes == pytest.approx(sum(found.breakdown().values()))
    assert min(found.breakdown().values()) >= 0


@pytest.mark.parametrize(
    "modules, rows, gates",
    [
        ((), 0, 0),
        (("norm",), 2, 0),  # what attention and the router read
        (("moe_act",), 3, 0),  # what the experts' second matrix reads: 8 rows of 1,536
        (("moe",), 8 + 6 + 3 + 8, 2),  # rows as sent, both halves of the gated width, their product, rows to come back
        (("norm", "moe"), 2 + 8 + 6 + 3 + 8, 2),
        (("core_attn",), 0, 0),  # flash attention keeps no scores
        (("mlp",), 0, 0),  # no dense layer
    ],
)
def test_small_parts_that_run_again_keep_nothing_inside(modules, rows, gates):
    """Qwen3-235B, one sequence of 4,096: a row is 4,096 values; gates are fp32, one of 128 experts."""
    model, plan = load_model("qwen3_235b_a22b"), Plan(micro_batch=1, recompute_modules=modules)
    held, alone, whole = memory.layer_activations(
        model, plan, Workload(1, 4096, imbalance=1.0), load_stack("generic"), "moe"
    )
    assert held == alone and whole - held == pytest.approx(4096 * (rows * 4096 * 2 + gates * 128 * 4), abs=1)


def test_latent_attention_built_up_again_keeps_neither_queries_nor_keys():
    """DeepSeek-V3: 128 heads of 192 for queries and keys and of 128 for values, beside a log-sum that stays small."""
    plan = Plan(micro_batch=1, recompute_modules=("mla_up_proj",))
    held, _, whole = memory.layer_activations(DSV3, plan, Workload(1, 4096), load_stack("generic"), "dense")
    assert whole - held == pytest.approx(4096 * 128 * (192 + 192 + 128) * 2, rel=0.01)


def test_a_run_that_recomputes_its_experts_fits_where_it_ran():
    """Qwen3-235B on 256 H800 of 80 GB, TP1 PP32 VPP3 EP8: it ran (alibaba/Pai-Megatron-Patch issue 658)."""
    work = Workload(2048, 4096, imbalance=1.0)
    plan = Plan(dp=8, pp=32, vpp=3, ep=8, schedule="interleaved", micro_batch=1, zero=1)
    model = load_model("qwen3_235b_a22b")
    less = dataclasses.replace(plan, recompute_modules=("norm", "moe"))
    whole, short = (memory.peak(model, p, work, stack="megatron-lm-2024") for p in (plan, less))
    assert short.total_bytes / 2**30 < 79.2 < whole.total_bytes / 2**30
    assert short.buffers - whole.buffers == pytest.approx(4096 * (27 * 4096 * 2 + 2 * 128 * 4), rel=0.01)
