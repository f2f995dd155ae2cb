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


# ---------------------------------------------------------------------- which layers run an indexer


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        ({}, "FFFFFFFFF"),
        ({"index_topk_freq": 1}, "FFFFFFFFF"),
        ({"index_topk_freq": 3}, "FFSSFSSFS"),  # offset 2: layers 0 and 1, then every third from 1
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, "FFFSSSFSS"),  # layers 0 to 2, then every fourth from 2
        ({"index_topk_freq": 2, "index_skip_topk_offset": 0}, "SFSFSFSFS"),
        ({"index_topk_pattern": "FSSFSFSSS"}, "FSSFSFSSS"),
        ({"index_topk_pattern": "FSSFSFSSS", "index_topk_freq": 2}, "FSSFSFSSS"),  # the pattern goes before
        ({"index_topk_pattern": ["full", "shared"] + ["full"] * 7}, "FSFFFFFFF"),
    ],
)
def test_layers_with_an_indexer_by_frequency_and_pattern(keys, want):
    """Written out by hand, and as transformers' own class reads the same keys where it is installed."""
    raw = {k: v for k, v in ModelConfig.named("nano", num_hidden_layers=9).to_hf().items() if k != "indexer_types"}
    letters = {"full": "F", "shared": "S"}
    if want.startswith("S"):  # whose choice would it share?
        with pytest.raises(InputError, match=r"indexer_types\[0\]"):
            ModelConfig.from_hf({**raw, **keys})
    else:
        assert "".join(letters[k] for k in ModelConfig.from_hf({**raw, **keys}).indexer_types) == want
    if (theirs := getattr(pytest.importorskip("transformers"), "GlmMoeDsaConfig", None)) is not None:
        assert "".join(letters[k] for k in theirs(num_hidden_layers=9, **keys).indexer_types) == want


# ---------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("seq", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("sparse", [True, False])
def test_attention_flops_are_counted_key_by_key(seq, sparse):
    """Every query adds what it reads: t + 1 keys, at most index_topk when sparse; the indexer scores all t + 1."""
    config = ModelConfig.named("nano", indexer_types=("full", "shared", "full"), v_head_dim=20)
    assert config.index_topk == 16
    attention = indexer = 0
    for t in range(seq):
        for kind in config.indexer_types:
            read = min(t + 1, 16) if sparse else t + 1
            attention += 2 * config.num_attention_heads * (16 + 8) * read  # scores: widths nope and rope
            attention += 2 * config.num_attention_heads * 20 * read  # values
            if sparse and kind == "full":
                indexer += (
                    2 * config.index_n_heads * (config.index_head_dim + 1) * (t + 1)
                )  # q·k, and the head's weight
    got = config.flops_breakdown(seq, sparse)
    assert got["attention"] * seq == pytest.approx(attention, rel=1e-12)
    assert got["indexer"] * seq == pytest.approx(indexer, rel=1e-12)


def test_training_flops_are_three_forwards_and_the_module_runs_once_for_each_depth():
    """By hand from the weights of the built model: every matrix is 2 FLOPs a value, an expert only where it is
    chosen, the module's own head matmul included."""
    config = ModelConfig.named("nano", mtp_depth=2)
    model, seq = built(config), 64

    def matmul(module, prefix):
        chosen = config.num_experts_per_tok / config.n_routed_experts
        return sum(
            p.numel() * (chosen if ".experts." in n and ".shared_experts." not in n else 1)
            for n, p in module.named_parameters(prefix)
            if p.ndim > 1 and "embed_tokens" not in n
        )

    main = sum(matmul(layer, f"layers.{i}") for i, layer in enumerate(model.layers)) + model.lm_head.weight.numel()
    one = config.flops_breakdown(seq)
    assert one["linear"] == pytest.approx(2 * main, rel=1e-12)
    assert config.train_flops_per_token(seq) == pytest.approx(3 * sum(one.values()), rel=1e-12)
    read = (one["attention"] + one["indexer"]) / config.num_hidden_layers
    module = 2 * (matmul(model.mtp, "mtp") + model.lm_head.weight.numel()) + read
    got = config.train_flops_per_token(seq, mtp=True) - config.train_flops_per_token(seq)
    assert got == pytest.approx(3 * 2 * module, rel=1e-12)
    without = ModelConfig.named("nano", num_nextn_predict_layers=0)
    assert without.train_flops_per_token(seq, mtp=True) == without.train_flops_per_token(seq)


def test_cache_bytes_by_hand():
    config = ModelConfig.named("nano", indexer_types=("full", "shared", "full"))
    assert config.kv_cache_bytes_per_token("fp32") == (16 + 8) * 4 * 3
    assert config.indexer_cache_bytes_per_token("bf16") == 16 * 2 * 2, "a shared layer keeps no indexer keys"
