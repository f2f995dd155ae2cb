"""One count of parameters:
ModelConfig, ModelSpec, what plans put on their chips, and the tensors of the built model agree.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm import weights
from minglm.config import ModelConfig
from minglm.model.model import Model
from sim.cost.parameters import rank_params
from sim.serving.formats import FORMATS
from sim.serving.memory import weight_bytes
from sim.spec.model import from_config
from sim.spec.plan import Plan


@st.composite
def configs(draw):
    """A small model of any shape that the class allows."""
    number = lambda low, high, step=1: draw(st.integers(low, high)) * step  # noqa: E731
    layers = number(2, 6)
    kinds = ["full", *(draw(st.sampled_from(["full", "shared"])) for _ in range(layers - 1))]
    experts = number(2, 8)
    return ModelConfig.named(
        "nano",
        vocab_size=number(1, 8, 128),
        hidden_size=number(1, 6, 16),
        num_hidden_layers=layers,
        first_k_dense_replace=number(0, layers - 1),
        intermediate_size=number(1, 6, 32),
        num_attention_heads=number(1, 4, 2),
        q_lora_rank=number(1, 4, 16),
        kv_lora_rank=number(1, 4, 8),
        qk_nope_head_dim=number(1, 3, 8),
        qk_rope_head_dim=number(1, 2, 4),
        v_head_dim=number(1, 3, 8),
        index_n_heads=number(1, 4),
        index_head_dim=number(2, 4, 4),
        indexer_types=tuple(kinds),
        n_routed_experts=experts,
        num_experts_per_tok=number(1, min(4, experts)),
        n_shared_experts=number(1, 2),
        moe_intermediate_size=number(1, 4, 16),
        num_nextn_predict_layers=number(0, 1),
        mtp_depth=number(1, 3),
    )


@settings(deadline=None, max_examples=60)
@given(configs())
def test_the_config_and_the_spec_count_alike(config):
    spec = from_config(config)
    parts = config.params_breakdown()
    assert {k: v for k, v in spec.params().items() if k != "positions"} == parts
    assert spec.active_params() == config.num_active_params()
    for seq in (1, 64, 1000):
        for sparse in (True, False):
            assert spec.flops_breakdown(seq, sparse=sparse) == pytest.approx(config.flops_breakdown(seq, sparse))
            for mtp in (True, False):
                flops = config.train_flops_per_token(seq, sparse, mtp)
                assert spec.train_flops_per_token(seq, sparse=sparse, mtp=mtp) == pytest.approx(flops, rel=1e-12)
    balance = parts["router_bias"] + spec.mtp_modules * spec.experts  # a buffer of training
    assert sum(weight_bytes(spec, "bf16").values()) == 2 * (config.num_params(mtp=True) - balance)
    assert FORMATS["bf16"].dense_bytes == FORMATS["bf16"].expert_bytes == 2


@settings(deadline=None, max_examples=60)
@given(configs(), st.data())
def test_the_chips_of_a_plan_hold_the_model(config, data):
    spec = from_config(config)
    pp = data.draw(st.integers(1, config.num_hidden_layers))
    ep = data.draw(st.sampled_from([n for n in (1, 2, 4) if config.n_routed_experts % n == 0]))
    held = rank_params(spec, Plan(pp=pp, ep=ep, dp=ep), spec.vocab)
    # left out of a layer: the norm of the indexer's keys and the router's balance bias; of MTP also its own three
    # norms, and its layer has the average of the other layers' indexers
    indexer = config.indexer_weights()
    share = config.num_full_indexers / config.num_hidden_layers
    left_out = config.num_full_indexers * (weights.total_params(indexer) - weights.matmul_params(indexer))
    left_out += config.num_moe_layers * config.n_routed_experts
    if config.num_nextn_predict_layers:
        left_out += weights.total_params(indexer) - share * weights.matmul_params(indexer)
        left_out += config.n_routed_experts + 3 * config.hidden_size
    assert sum(base + ep * expert for base, expert in held) + left_out == pytest.approx(config.num_params(mtp=True))


@settings(deadline=None, max_examples=12)
@given(configs())
def test_the_built_model_holds_what_is_counted(config):
    with torch.device("meta"):
        model = Model(config)
    built = sum(t.numel() for t in model.parameters())
    built += sum(t.numel() for name, t in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert built == config.num_params(mtp=True)
    shapes = {name: tuple(t.shape) for name, t in model.named_parameters()}
    for prefix, rows in (("", config.attention_weights()), ("indexer.", config.indexer_weights())):
        for weight in rows:
            name = f"layers.0.self_attn.{prefix}{weight.name}" + ("" if "." in weight.name else ".weight")
            assert shapes[name] == weight.shape[::-1], name  # torch keeps (outputs, inputs)
