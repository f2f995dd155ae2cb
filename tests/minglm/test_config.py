"""The configuration: its arithmetic against modules that are really built, its rules, its Hugging Face form."""

import json

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.model.model import Model
from minglm.sizes import NAMED_SIZES


def built(config):
    with torch.device("meta"):
        return Model(config)


def size(module):
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())


@pytest.mark.parametrize("name", NAMED_SIZES)
def test_arithmetic_equals_the_built_model_part_by_part(name):
    config, model = ModelConfig.named(name), built(ModelConfig.named(name))
    assert size(model) == config.num_params(mtp=True)
    assert size(model) - size(model.mtp) == config.num_params()
    parts = dict.fromkeys(config.params_breakdown(), 0)
    for key, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        kind = (
            "mtp"
            if key.startswith("mtp.")
            else "embedding"
            if key.startswith("embed")
            else "head"
            if key.startswith("lm_head")
            else "indexer"
            if ".indexer." in key
            else "attention"
            if ".self_attn." in key
            else "routed_experts"
            if ".mlp.experts." in key
            else "shared_experts"
            if ".shared_experts." in key
            else "router_bias"
            if key.endswith("e_score_correction_bias")
            else "router"
            if ".mlp.gate." in key
            else "dense_ffn"
            if ".mlp." in key
            else "final_norm"
            if key == "norm.weight"
            else "norms"
        )
        parts[kind] += tensor.numel()
    assert parts == config.params_breakdown()


def test_glm5_counts_are_the_published_ones():
    config = ModelConfig.named("glm5")
    assert config.num_params() == 743_911_218_432 and config.num_params(mtp=True) == 753_864_139_008
    assert round(config.num_active_params() / 1e9, 2) == 40.83
    assert config.kv_cache_bytes_per_token("bf16") == 89_856
    assert config.indexer_cache_bytes_per_token("bf16") == 19_968


def test_shared_indexers_are_counted_once():
    kinds = ("full", "shared", "shared")
    config = ModelConfig.named("nano", indexer_types=kinds)
    assert size(built(config)) == config.num_params(mtp=True) < ModelConfig.named("nano").num_params(mtp=True)


@pytest.mark.parametrize("seq", [16, 40, 130])
@pytest.mark.parametrize("name", ["nano", "mini"])
def test_forward_flops_equal_a_count_of_the_running_model(name, seq):
    """Torch's own counter on the real forward. Attention is counted apart: the model works on absorbed, gathered keys
    and on whole chunks, the formula on the keys that a query reads."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig.named(name)
    model, tokens = Model(config), torch.randint(0, config.vocab_size, (1, seq))
    want = config.flops_breakdown(seq, sparse=False)["linear"] * seq
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens, mode="dense")
    counts = counter.get_flop_counts()["Global"]
    got = sum(v for op, v in counts.items() if "mm" in str(op) and "bmm" not in str(op))
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hiden_size": 4}, "did you mean 'hidden_size'"),
        ({"num_experts_per_tok": 9}, "n_routed_experts=8"),
        ({"qk_rope_head_dim": 7}, "even"),
        ({"index_topk": 0}, "at least 1"),
        ({"index_head_dim": 4}, "qk_rope_head_dim"),
        ({"num_nextn_predict_layers": 2}, "0 or 1"),
        ({"first_k_dense_replace": 4}, "num_hidden_layers=3"),
        ({"indexer_types": ["shared", "full", "full"]}, "first layer"),
        ({"indexer_types": ["full", "ful", "full"]}, "did you mean 'full'"),
        ({"hidden_size": 64.0}, "whole number"),
        ({"rope_theta": float("nan")}, "positive finite"),
    ],
)
def test_bad_values_are_refused_with_a_remedy(changes, says):
    with pytest.raises(InputError) as err:
        ModelConfig.named("nano", **changes)
    assert says in str(err.value) and "\n" not in str(err.value)


def test_unknown_size_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'glm5'"):
        ModelConfig.named("glm-5")


@pytest.mark.parametrize("name", NAMED_SIZES)
def test_hf_and_dict_round_trips(name, tmp_path):
    config = ModelConfig.named(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(tmp_path) == config


def test_hf_config_of_another_computation_is_refused(tmp_path):
    raw = ModelConfig.named("nano").to_hf()
    for key, value, says in [
        ("n_group", 4, "n_group"),
        ("hidden_act", "gelu", "silu"),
        ("model_type", "llama", "glm_moe_dsa"),
        ("rope_parameters", {"rope_type": "yarn"}, "yarn"),
        ("index_topkk", 3, "index_topk"),
    ]:
        with pytest.raises(InputError, match=says):
            ModelConfig.from_hf({**raw, key: value})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        ModelConfig.from_hf(tmp_path)
