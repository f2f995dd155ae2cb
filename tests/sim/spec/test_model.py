"""Parameter counts equal the published totals, ModelConfig's arithmetic and models built by transformers."""

import json

import pytest

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.sizes import NAMED_SIZES
from sim.spec.dimensions import from_dimensions
from sim.spec.huggingface import FAMILIES, from_hf
from sim.spec.model import from_config
from sim.spec.model_loader import list_models, load_model

PUBLISHED = {  # exact counts of the released checkpoints (embedding and head included, MTP left out)
    "glm5": 743_911_218_432,
    "deepseek_v3": 671_026_419_200,
    "llama3_405b": 405_853_388_800,
    "llama3_70b": 70_553_706_496,
    "llama3_8b": 8_030_261_248,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_8b": 8_190_735_360,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gpt2": 124_439_808,
    "gpt_oss_120b": 116_829_156_672,
    "kimi_k2": 1_026_408_232_448,
}
NAMED = {
    "gpt3_175b": 175,
    "pangu_ultra_135b": 135,
    "pangu_ultra_moe_718b": 718,
    "bloom_176b": 176.25,
    "recompute_22b": 22,
    "recompute_530b": 530,
    "recompute_1t": 1008,
    "megatron_1_7b": 1.7,
    "megatron_39_1b": 39.1,
    "megatron_145_6b": 145.6,
    "megatron_1008b": 1008,
    "pangu_pro_moe_72b": 72,
    "glm_130b": 130,
    "palm_540b": 540.35,
    "deepseek_v2": 236,
    "qwen2_57b_a14b": 57.4,
    "internlm_65b": 65,
}
ACTIVE = {
    "glm5": 40.83,
    "deepseek_v3": 36.6,
    "mixtral_8x7b": 12.75,
    "pangu_ultra_moe_718b": 39,
    "qwen3_30b_a3b": 3.0,
    "qwen3_235b_a22b": 21.6,
}


@pytest.mark.parametrize("name, count", PUBLISHED.items())
def test_exact_published_totals(name, count):
    assert load_model(name).total_params() == count


@pytest.mark.parametrize("name, billions", NAMED.items())
def test_named_totals(name, billions):
    assert load_model(name).total_params() / 1e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize("name, billions", ACTIVE.items())
def test_active(name, billions):
    assert load_model(name).active_params() / 1e9 == pytest.approx(billions, rel=0.02)


def test_glm5_2_with_mtp():
    m = load_model("glm5_2")
    assert m.total_params(mtp=True) / 1e9 == pytest.approx(753.330, abs=0.001) and m.indexer_full_layers == 21


@pytest.mark.parametrize("size", list(NAMED_SIZES))
def test_equal_to_model_config(size):
    config = ModelConfig.named(size)
    spec = from_config(config)
    assert spec.total_params() == config.num_params() and spec.total_params(mtp=True) == config.num_params(mtp=True)
    assert spec.active_params() == config.num_active_params()
    assert spec.kv_bytes_per_token() == config.kv_cache_bytes_per_token("bf16")
    assert spec.kv_bytes_per_token(indexer=True) - spec.kv_bytes_per_token() == config.indexer_cache_bytes_per_token(
        "bf16"
    )
    for seq in (16, 300, 4096):
        for sparse in (True, False):
            assert spec.flops_breakdown(seq, sparse=sparse) == pytest.approx(config.flops_breakdown(seq, sparse))
            assert spec.train_flops_per_token(seq, sparse=sparse, mtp=True) == pytest.approx(
                config.train_flops_per_token(seq, sparse, mtp=True), rel=1e-3
            )


def test_the_toys_file_and_the_named_size_are_one_model():
    assert load_model("glm5").params() == from_config(ModelConfig.named("glm5")).params()
    assert ModelConfig.from_hf(datafiles.data("models", "glm5.json")) == ModelConfig.named("glm5")


SMALL = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
    "head_dim": 32,
}
EXTRA = {  # families without a file in data/models, in miniature
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "gpt_neox": {"model_type": "gpt_neox", "num_key_value_heads": 4, "head_dim": 16},
    "gemma": {"model_type": "gemma"},
    "gemma2": {"model_type": "gemma2"},
    "gemma3_text": {"model_type": "gemma3_text"},
    "glm4": {"model_type": "glm4", "pad_token_id": 0},
    "llama4_text": {"model_type": "llama4_text", "num_local_experts": 4, "intermediate_size_mlp": 128},
    "llama4-mixed": {"model_type": "llama4_text", "num_local_experts": 4, "interleave_moe_layer_step": 3},
    "minimax_m2": {"model_type": "minimax_m2", "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {"model_type": "ministral"},
    "olmo2": {"model_type": "olmo2", "head_dim": 16},
    "olmo3": {"model_type": "olmo3", "head_dim": 16},
    "smollm3": {"model_type": "smollm3", "head_dim": 16, "pad_token_id": 0},
    "granite": {"model_type": "granite", "head_dim": 16, "mlp_bias": True},
    "starcoder2": {"model_type": "starcoder2", "head_dim": 16},
    "dots1": {
        "model_type": "dots1",
        "head_dim": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
    },
    "seed_oss": {"model_type": "seed_oss"},
    "ernie4_5": {"model_type": "ernie4_5", "use_bias": True},
    "phi3": {"model_type": "phi3", "head_dim": 16, "pad_token_id": 0},
    "glm4_moe_lite": {
        "model_type": "glm4_moe_lite",
        "head_dim": 4,  # the class reads it as the width of the rotary part
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3_moe-mixed": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [0],
        "decoder_sparse_step": 1,
    },
}
FILES = list(datafiles.catalogue("models", ".json"))


@pytest.mark.parametrize("name", [*FILES, *EXTRA])
def test_count_equals_the_model_that_transformers_builds(name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    if name in EXTRA:
        raw = {**SMALL, **EXTRA[name]}
        if raw["model_type"] in ("qwen2", "gpt_neox"):
            raw.pop("head_dim")
    else:
        raw = json.loads(datafiles.data("models", f"{name}.json").read_text())
        raw.pop("source", None)
    spec = from_hf(raw, name)
    if raw["model_type"] == "kimi_k2":
        raw["model_type"] = "deepseek_v3"  # transformers knows Kimi K2 by the class it shares
    raw.pop("quantization_config", None)  # says how weights are stored, not how many there are
    config = transformers.AutoConfig.for_model(**raw)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    built = sum(p.numel() for p in model.parameters())
    assert spec.total_params() - spec.params()["router_bias"] == built


def test_supported_families_are_the_documented_ones():
    assert set(FAMILIES) >= {
        "deepseek_v3",
        "deepseek_v2",
        "deepseek_v32",
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen2_moe",
        "qwen3_moe",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "glm4_moe",
    }


def test_plain_dimensions():
    gpt3 = from_dimensions({"layers": 96, "hidden": 12288, "heads": 96, "vocab": 50257})
    assert (
        gpt3.total_params() / 1e9 == pytest.approx(175, rel=0.01)
        and not gpt3.gated_ffn
        and "gated_ffn = false" in gpt3.source
    )
    llama = from_dimensions(
        {
            "num_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_query_groups": 8,
            "ffn_hidden_size": 14336,
            "vocab_size": 128256,
        }
    )
    assert llama.total_params() == PUBLISHED["llama3_8b"]
    moe = from_dimensions(
        {
            "layers": 32,
            "hidden": 4096,
            "heads": 32,
            "kv_heads": 8,
            "ffn": 14336,
            "vocab": 32000,
            "experts": 8,
            "top_k": 2,
        }
    )
    assert moe.total_params() == PUBLISHED["mixtral_8x7b"]


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"layers": 2}, "has no 'hidden'"),
        ({"layers": 2, "hidden": 64, "heads": 3}, "does not divide"),
        ({"layer": 2}, "did you mean 'layers'"),
        ({"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 3}, "must divide heads"),
        ({"layers": 2, "hidden": 64, "heads": 4, "experts": 4, "top_k": 8}, "cannot choose more"),
        ({"layers": 1e12, "hidden": 64, "heads": 4}, "larger than"),
        ({"layers": -2, "hidden": 64, "heads": 4}, "below 0"),
        ({"layers": 2, "hidden": 64, "heads": 4, "gated": "yes"}, "true or false"),
        ({"layers": 2, "num_layers": 3, "hidden": 64, "heads": 4}, "twice"),
        ({"model_type": "llamma"}, "did you mean 'llama'"),
        ({"model_type": None}, "not a supported family"),
    ],
)
def test_bad_model_is_refused_in_words(bad, words):
    with pytest.raises(InputError) as caught:
        load_model(bad)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_name():
    with pytest.raises(InputError, match="did you mean 'mixtral_8x7b'"):
        load_model("mixtral-8x8b")
    assert load_model("GLM-5").total_params() == PUBLISHED["glm5"] and {"glm5", "deepseek_v3", "mini"} <= set(
        list_models()
    )


def test_window_and_index_cap_what_is_read():
    m = load_model("gpt_oss_120b")
    assert m.keys_read(8192) < (8192 + 1) / 2 and m.keys_read(64) == 32.5
    g = load_model("glm5")
    assert g.keys_read(131072) < 2048 and g.keys_read(131072, sparse=False) == (131072 + 1) / 2
