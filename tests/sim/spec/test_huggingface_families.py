"""Counts of every family equal the model that `transformers` builds, switches of the family thrown one by one."""

import pytest

from minglm.errors import InputError
from sim.spec.huggingface import FAMILIES, from_hf
from sim.spec.huggingface_config import _SAME_CLASS
from sim.spec.huggingface_hub_code import HUB_CODE
from sim.spec.model_loader import load_model

PLAIN = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 5, "vocab_size": 257}
GROUPED = PLAIN | {"num_key_value_heads": 2, "intermediate_size": 160, "max_position_embeddings": 64}
WIDE = GROUPED | {"head_dim": 24}  # heads wider together than the stream
GPT = {"n_embd": 96, "n_head": 6, "n_layer": 5, "vocab_size": 257}
MPT = {"d_model": 96, "n_heads": 6, "n_layers": 5, "vocab_size": 257}
LATENT = GROUPED | {"num_key_value_heads": 6, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8}
LATENT |= {"qk_rope_head_dim": 4}
OPT = PLAIN | {"ffn_dim": 160, "max_position_embeddings": 64, "word_embed_proj_dim": 96}
SMALL_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
ERNIE = GROUPED | {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32}
BIASED = {"attention_bias": True}
LLAMA4 = GROUPED | {"head_dim": 16, "intermediate_size_mlp": 200, "num_local_experts": 4, "num_hidden_layers": 6}
QWEN_MOE = GROUPED | SMALL_EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
DEEPSEEK_MOE = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32}
DEEPSEEK_MOE |= {"first_k_dense_replace": 2, "num_experts_per_tok": 2, "n_shared_experts": 1}
CASES = {
    "glm": [WIDE, WIDE | {"attention_bias": False}],
    "ministral3": [WIDE],
    "olmo": [GROUPED, GROUPED | BIASED | {"tie_word_embeddings": True}],
    "internlm3": [WIDE],
    "phi": [GROUPED],
    "cohere": [GROUPED, GROUPED | BIASED | {"use_qk_norm": True, "tie_word_embeddings": False}],
    "cohere2": [GROUPED, GROUPED | {"sliding_window_pattern": 2}],
    "cwm": [WIDE, WIDE | {"num_hidden_layers": 8}, WIDE | {"num_hidden_layers": 6}],
    "exaone4": [GROUPED, GROUPED | {"sliding_window_pattern": 3}],
    "arcee": [WIDE, WIDE | BIASED | {"mlp_bias": True}],
    "apertus": [GROUPED],
    "nemotron": [WIDE, WIDE | BIASED | {"mlp_bias": True}],
    "helium": [GROUPED | {"head_dim": 16}],
    "iquestcoder": [WIDE],
    "hunyuan_v1_dense": [WIDE, WIDE | BIASED],
    "stablelm": [
        GROUPED,
        GROUPED | {"use_qkv_bias": True, "qk_layernorm": True},
        GROUPED | {"use_parallel_residual": True},
    ],
    "opt": [OPT, OPT | {"enable_bias": False}],
    "bloom": [{"hidden_size": 96, "n_head": 6, "n_layer": 5, "vocab_size": 257}],
    "falcon": [
        PLAIN,
        PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2},
        PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
        PLAIN | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ],
    "gptj": [GPT | {"rotary_dim": 8}, GPT | {"rotary_dim": 8, "n_inner": 100}],
    "codegen": [GPT | {"rotary_dim": 8}, GPT | {"rotary_dim": 8, "n_inner": 100}],
    "gpt-sw3": [GPT | {"n_positions": 64}],
    "gpt_bigcode": [GPT | {"n_positions": 64}, GPT | {"n_positions": 64, "multi_query": False}],
    "mpt": [MPT],
    "gpt_neo": [
        {"hidden_size": 96, "num_heads": 6, "num_layers": 4, "vocab_size": 257, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 2]]},
    ],
    "minicpm3": [LATENT],
    "youtu": [LATENT | {"v_head_dim": 12}],
    "solar_open": [WIDE | {"n_routed_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}],
    "phimoe": [
        GROUPED | {"num_local_experts": 4},
        GROUPED | BIASED | {"num_local_experts": 4, "lm_head_bias": True},
    ],
    "olmoe": [GROUPED | SMALL_EXPERTS],
    "flex_olmo": [GROUPED | SMALL_EXPERTS],
    "granitemoe": [
        GROUPED | {"num_local_experts": 4},
        GROUPED | BIASED | {"num_local_experts": 4, "tie_word_embeddings": True},
    ],
    "granitemoeshared": [
        GROUPED | {"num_local_experts": 4, "shared_intermediate_size": 48},
        GROUPED | {"num_local_experts": 0, "shared_intermediate_size": 48},
    ],
    "ernie4_5_moe": [
        ERNIE | {"moe_layer_start_index": 1, "moe_layer_end_index": 4},
        ERNIE | {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "tie_word_embeddings": False},
        ERNIE | {"moe_layer_start_index": 2, "moe_layer_interval": 2, "moe_num_shared_experts": 0},
    ],
    "hunyuan_v1_moe": [WIDE | {"num_experts": 4, "moe_topk": 2}],
    "exaone_moe": [GROUPED | SMALL_EXPERTS | {"moe_intermediate_size": 32}],
    "hy_v3": [WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32}],
    "llama4_text": [
        LLAMA4 | {"interleave_moe_layer_step": 2},
        LLAMA4 | {"interleave_moe_layer_step": 1, "no_rope_layer_interval": 2},
        LLAMA4 | {"moe_layers": [1, 3, 5]} | BIASED,
    ],
    "qwen2_moe": [QWEN_MOE, QWEN_MOE | {"decoder_sparse_step": 2}, QWEN_MOE | {"mlp_only_layers": [0, 3]}],
    "qwen3_moe": [QWEN_MOE | {"head_dim": 24}, QWEN_MOE | {"head_dim": 24} | BIASED],
    "mixtral": [GROUPED | {"num_local_experts": 4}],
    "gpt_oss": [GROUPED | {"head_dim": 16, "num_local_experts": 4, "sliding_window": 32}],
    "glm4_moe": [WIDE | DEEPSEEK_MOE, WIDE | DEEPSEEK_MOE | BIASED | {"use_qk_norm": True}],
    "deepseek_v3": [LATENT | {"v_head_dim": 12} | DEEPSEEK_MOE],
    "gemma2": [WIDE, WIDE | {"num_hidden_layers": 4}],
    "gemma3_text": [WIDE | {"num_hidden_layers": 12}],
    "olmo2": [GROUPED],
    "bitnet": [GROUPED, GROUPED | {"tie_word_embeddings": True}],
    "hyperclovax": [WIDE, WIDE | BIASED | {"mlp_bias": True, "use_post_norm": False}],
    "jais2": [GROUPED | {"head_dim": 16}, GROUPED | {"head_dim": 16, "attention_bias": False, "mlp_bias": False}],
    "nanochat": [GROUPED, GROUPED | {"attention_bias": True}],
    "vaultgemma": [WIDE, WIDE | {"num_hidden_layers": 4}],
    "persimmon": [PLAIN | {"intermediate_size": 160}, PLAIN | {"intermediate_size": 160, "qk_layernorm": False}],
    "granite_swa": [GROUPED, GROUPED | BIASED | {"mlp_bias": True, "num_hidden_layers": 8}],
    "granitemoe_swa": [
        GROUPED | {"num_local_experts": 4},
        GROUPED | {"num_local_experts": 4, "shared_intermediate_size": 48, "num_hidden_layers": 9},
    ],
    "mellum": [
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32},
        WIDE
        | {"num_local_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "attention_bias": True}
        | {"mlp_layer_types": ["dense", *["sparse"] * 4]}
        | {"layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention"]},
    ],
    "axk1": [
        LATENT | {"v_head_dim": 12, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32},
        LATENT
        | {"v_head_dim": 12, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32}
        | {"mlp_layer_types": ["dense", "dense", *["sparse"] * 3]},
    ],
    "aria_text": [GROUPED | {"moe_num_experts": 4}, GROUPED | {"moe_num_experts": 4, "moe_num_shared_experts": 1}],
    "kolibri1": [
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32, "layer_types": ["full_attention"] * 5},
    ],
    "flint": [
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32, "mlp_only_layers": [1], "num_hidden_layers": 8},
        WIDE | SMALL_EXPERTS | {"moe_intermediate_size": 32, "mlp_only_layers": []},
    ],
    "dbrx": [
        MPT | {"attn_config": {"rope_theta": 1e4}, "ffn_config": {"hidden_size": 96}},
        MPT
        | {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 96},
        },
    ],
}


@pytest.mark.parametrize("family, config", [(family, config) for family, all_of in CASES.items() for config in all_of])
def test_count_and_windows_are_those_of_the_class(family, config):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    raw = {"model_type": family, **config}
    spec = from_hf(raw)
    theirs = transformers.AutoConfig.for_model(**raw)
    if (getattr(theirs, "pad_token_id", None) or 0) >= theirs.vocab_size:
        theirs.pad_token_id = None
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    built = sum(p.numel() for name, p in model.named_parameters() if "e_score_correction_bias" not in name)
    assert spec.total_params() - spec.params()["router_bias"] == built
    kinds = getattr(theirs, "layer_types", None) or getattr(theirs, "attention_layers", None) or []
    assert spec.window_layers == sum(kind in ("sliding_attention", "chunked_attention", "local") for kind in kinds)


# Language models of vision wrappers, which transformers builds without a head of their own.
IN_WRAPPERS = {
    "glm4v_text": ("Glm4vTextModel", GROUPED | {"head_dim": 16}),
    "hunyuan_vl_text": ("HunYuanVLTextModel", WIDE),
    "paddleocr_vl_text": ("PaddleOCRTextModel", WIDE),
    "granite_docling_text": ("GraniteDoclingTextModel", GROUPED),
    "mistral4": ("Mistral4Model", LATENT | {"v_head_dim": 12} | DEEPSEEK_MOE),
}


@pytest.mark.parametrize("family", IN_WRAPPERS)
def test_count_of_a_language_model_in_a_wrapper_is_its_class_s(family):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    name, config = IN_WRAPPERS[family]
    theirs = transformers.AutoConfig.for_model(family, **config, pad_token_id=None)
    module = type(theirs).__module__.replace("configuration_", "modeling_")
    with torch.device("meta"):
        model = getattr(__import__(module, fromlist=[name]), name)(theirs)
    ours = from_hf({"model_type": family, **config})
    head = 0 if ours.tied else ours.vocab * ours.hidden
    assert ours.total_params() - head == sum(p.numel() for p in model.parameters())


# Families whose code lies beside their weights, by keys that only they have; weights by the sums of their shapes.
BY_HAND = [
    # Ling-lite: 28 × (attention 2 × 2,048² + 2 × 2,048 × 512, 66 experts and a router), two embeddings of 126,464
    (
        {"model_type": "bailing_moe", "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16}
        | {"num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 5632, "moe_intermediate_size": 1408}
        | {"num_experts": 64, "num_shared_experts": 2, "num_experts_per_tok": 6, "vocab_size": 126464},
        28 * (2 * 2048**2 + 2 * 2048 * 512 + 66 * 3 * 2048 * 1408 + 64 * 2048 + 2 * 2048) + 2 * 126464 * 2048 + 2048,
    ),
    # EXAONE 3.5 7.8B: its layers as num_layers
    (
        {"model_type": "exaone", "hidden_size": 4096, "num_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 102400},
        32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 102400 * 4096 + 4096,
    ),
    # MiMo 7B: Qwen 2 without its prediction module
    (
        {"model_type": "mimo", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 11008, "vocab_size": 151680},
        36 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 11008 + 6144 + 2 * 4096) + 2 * 151680 * 4096 + 4096,
    ),
    # Yi 34B of 2023, under its own name and with the makers' capital letter
    (
        {"model_type": "Yi", "hidden_size": 7168, "num_hidden_layers": 60, "num_attention_heads": 56}
        | {"num_key_value_heads": 8, "intermediate_size": 20480, "vocab_size": 64000},
        60 * (2 * 7168**2 + 2 * 7168 * 1024 + 3 * 7168 * 20480 + 2 * 7168) + 2 * 64000 * 7168 + 7168,
    ),
    # InternLM 7B: biases around attention
    (
        {"model_type": "internlm", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"bias": True, "intermediate_size": 11008, "vocab_size": 103168},
        32 * (4 * (4096**2 + 4096) + 3 * 4096 * 11008 + 2 * 4096) + 2 * 103168 * 4096 + 4096,
    ),
    # Orion 14B: norms with a bias
    (
        {"model_type": "orion", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}
        | {"num_key_value_heads": 40, "intermediate_size": 15360, "vocab_size": 84608},
        40 * (4 * 5120**2 + 3 * 5120 * 15360 + 4 * 5120) + 2 * 84608 * 5120 + 2 * 5120,
    ),
    # Falcon 40B and 7B as first published; the head is the embedding
    (
        {"model_type": "RefinedWeb", "hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8}
        | {"bias": False, "parallel_attn": True, "vocab_size": 65024},
        60 * (2 * 8192**2 + 2 * 8192 * 512 + 8 * 8192**2 + 4 * 8192) + 65024 * 8192 + 2 * 8192,
    ),
    (
        {"model_type": "RefinedWebModel", "hidden_size": 4544, "n_layer": 32, "n_head": 71, "multi_query": True}
        | {"bias": False, "parallel_attn": True, "vocab_size": 65024},
        32 * (2 * 4544**2 + 2 * 4544 * 64 + 8 * 4544**2 + 2 * 4544) + 65024 * 4544 + 2 * 4544,
    ),
    # openPangu Embedded 7B: biases around attention
    (
        {"model_type": "PanguEmbedded", "hidden_size": 4096, "num_hidden_layers": 34, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "bias": True, "intermediate_size": 12800, "vocab_size": 153376},
        34 * (2 * 4096**2 + 2 * 4096 * 1024 + 2 * (4096 + 1024) + 3 * 4096 * 12800 + 2 * 4096)
        + 2 * 153376 * 4096
        + 4096,
    ),
    # Pangu Pro MoE, 72B: 64 experts in groups, a shared one, a scale of each expert
    (
        {"model_type": "PanguProMoE", "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40}
        | {"num_key_value_heads": 8, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1344}
        | {"shared_expert_intermediate_size": 5376, "vocab_size": 153376},
        48 * (2 * 5120**2 + 2 * 5120 * 1024 + 2 * (5120 + 1024) + 65 * 64 + 2 * 5120 - 64 * 64)
        + 48 * (3 * 5120 * (64 * 1344 + 5376) + 64 * 5120)
        + 2 * 153376 * 5120
        + 5120,
    ),
    # openPangu Ultra MoE, 718B: latent attention under its own names, four norms a layer
    (
        {"model_type": "pangu_ultra_moe", "hidden_size": 7680, "num_hidden_layers": 61, "num_attention_heads": 128}
        | {"attention_q_lora_dim": 1536, "attention_kv_lora_dim": 512, "attention_qk_dim": 128}
        | {"attention_qk_rope_dim": 64, "attention_v_dim": 128, "intermediate_size": 18432, "num_dense_layers": 3}
        | {"moe_intermediate_size": 2048, "num_routed_experts": 256, "num_shared_experts": 1}
        | {"num_experts_per_tok": 8, "num_mtp_layers": 1, "sandwich_norm": True, "vocab_size": 153600},
        61 * (7680 * 1536 + 1536 + 1536 * 128 * 192 + 7680 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7680 + 4 * 7680)
        + 3 * 3 * 7680 * 18432
        + 58 * (257 * 3 * 7680 * 2048 + 256 * 7680)
        + 2 * 153600 * 7680
        + 7680,
    ),
    # Jais 13B: GPT-2 with SwiGLU and distances in place of positions
    (
        {"model_type": "jais", "n_embd": 5120, "n_layer": 40, "n_head": 40, "n_inner": 13653, "vocab_size": 84992}
        | {"activation_function": "swiglu", "position_embedding_type": "alibi"},
        40 * (4 * (5120**2 + 5120) + 3 * 5120 * 13653 + 2 * 13653 + 5120 + 4 * 5120) + 84992 * 5120 + 2 * 5120,
    ),
    # DeepSeek-VL2's smallest language model: no latent attention
    (
        {"model_type": "deepseek_v2", "use_mla": False, "kv_lora_rank": None, "hidden_size": 1280}
        | {"num_hidden_layers": 12, "num_attention_heads": 10, "num_key_value_heads": 10, "intermediate_size": 6848}
        | {"moe_intermediate_size": 896, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6}
        | {"first_k_dense_replace": 1, "vocab_size": 129280},
        12 * (4 * 1280**2 + 2 * 1280)
        + 3 * 1280 * 6848
        + 11 * (66 * 3 * 1280 * 896 + 64 * 1280)
        + 2 * 129280 * 1280
        + 1280,
    ),
]


@pytest.mark.parametrize("config, weights", BY_HAND)
def test_weights_by_hand_where_there_is_no_class(config, weights):
    assert from_hf(config).total_params() == weights


# Families whose files may say which layers have a window: in transformers, by the class that it names for such files
# (Ministral for Mistral), or in the engines that serve them.
IN_EVERY_LAYER = ("mistral", "ministral3", "phi3", "starcoder2", "mixtral", "phimoe")
IN_LISTED_LAYERS = ("ministral", "qwen2", "qwen3", "qwen2_moe", "qwen2_vl_text", "smollm3", "olmo3", "dots1", "cohere2")
LISTED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
SWITCHED_ON = WIDE | {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2}
SWITCHED_ON |= {"num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize("family", (*IN_EVERY_LAYER, *IN_LISTED_LAYERS))
def test_windows_are_the_class_s_own_and_those_that_the_file_lists(family):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(family, **SWITCHED_ON)
    plain = from_hf({"model_type": family, **SWITCHED_ON})
    every = family in IN_EVERY_LAYER
    assert every == (getattr(theirs, "layer_types", None) is None)
    assert plain.window_layers == (5 if every else theirs.layer_types.count("sliding_attention"))
    listed = from_hf({"model_type": family, **SWITCHED_ON, "layer_types": LISTED})
    assert (listed.window, listed.window_layers) == (theirs.sliding_window, 3)
    assert from_hf({"model_type": family, **SWITCHED_ON, "layer_types": ["full_attention"] * 5}).window_layers == 0


# of transformers: code beside the weights
WITHOUT_A_CLASS = ("internlm2", "baichuan", "chatglm", "deepseek", "qwen", "minicpm", "exaone", "mimo")
WITHOUT_A_CLASS += ("bailing_moe", "bailing_moe_v2", *(set(HUB_CODE) - set(_SAME_CLASS)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_window_is_no_window(family):
    """A window of null, as many published configs say it; a family whose window has another key keeps its own."""
    needs = {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": 99, "hidden_size": 96}
    needs |= {"num_hidden_layers": 2, "num_attention_heads": 6} if family in WITHOUT_A_CLASS else {}
    needs |= {"num_experts_per_tok": 6} if family == "deepseek_v2" else {}
    small = SMALL_EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    needs |= small if family.startswith(("bailing", "pangu")) else {}
    if family == "pangu_ultra_moe":
        needs |= {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    if family == "granitemoehybrid":
        needs["layer_types"] = ["attention"] * 32
    spec = from_hf({"model_type": family, **needs, "sliding_window": None})
    assert spec.window_layers == {"llama4_text": 36, "gpt_neo": 12}.get(family, 0)
    assert bool(spec.window) == (spec.window_layers > 0)


@pytest.mark.parametrize(
    "keys, window, layers",
    [
        ({}, 8192, 36),  # three layers of four attend within chunks
        ({"no_rope_layer_interval": 0}, 8192, 48),  # none attends to all
        ({"no_rope_layer_interval": 6}, 8192, 40),
        ({"attention_chunk_size": None}, 0, 0),
    ],
)
def test_chunks_of_llama_4(keys, window, layers):
    spec = from_hf({"model_type": "llama4_text", **keys})
    assert (spec.window, spec.window_layers) == (window, layers)


@pytest.mark.parametrize("step, only, dense", [(1, [], 0), (2, [], 3), (3, [], 4), (2, [1], 4), (1, [0, 3], 2)])
def test_experts_in_every_step_of_qwen(step, only, dense):
    """Of five layers the second and fourth have experts at a step of two, the third at a step of three."""
    raw = {"model_type": "qwen2_moe", "num_hidden_layers": 5, "decoder_sparse_step": step, "mlp_only_layers": only}
    assert from_hf(raw).dense_layers == dense


def test_a_window_that_is_used_and_null_is_none():
    assert from_hf({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": None}).window_layers == 0


def test_qwens_windows_begin_at_once_where_nothing_says_when():
    spec = from_hf({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": None})
    assert spec.window_layers == spec.layers == 32


def test_lists_of_one_value_a_layer_are_that_value_and_others_are_refused():
    raw = {"model_type": "hunyuan_v1_moe", **WIDE, "num_experts": 4, "moe_topk": [2] * 5, "num_shared_expert": [1] * 5}
    assert from_hf(raw).experts_per_token == 2
    with pytest.raises(InputError, match="moe_topk: differs by layer"):
        from_hf(raw | {"moe_topk": [2, 2, 2, 2, 3]})


@pytest.mark.parametrize(
    "config, words",
    [
        ({"model_type": "hunyuan_v1_moe", **WIDE, "use_cla": True}, "shared by layers"),
        ({"model_type": "phi", **GROUPED, "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "opt", **OPT, "word_embed_proj_dim": 48}, "word_embed_proj_dim"),
        ({"model_type": "ernie4_5_moe", **ERNIE, "use_bias": True}, "use_bias"),
        ({"model_type": "granitemoehybrid", **GROUPED, "layer_types": ["mamba", "attention"]}, "Mamba"),
        ({"model_type": "granitemoehybrid", **GROUPED}, "Mamba"),
        ({"model_type": "rwkv", "attention_hidden_size": 64}, "RWKV"),
        ({"model_type": "zaya", "layer_types": ["hybrid"]}, "Mamba"),
        (
            {"model_type": "mllama", "text_config": {"model_type": "x", "cross_attention_layers": [3]}},
            "cross-attention",
        ),
        ({"model_type": "openelm", "ffn_multipliers": [1.0, 2.0]}, "different widths"),
        ({"model_type": "step3_text", "share_q_dim": 2048}, "a shared factor"),
        ({"model_type": "step3p5", "attention_other_setting": {"num_attention_heads": 96}}, "heads of their own"),
        ({"model_type": "deci", "num_key_value_heads_per_layer": [4, 2]}, "heads of their own"),
        ({"model_type": "arctic", "parallel_attn_mlp_res": True}, "beside its experts"),
        ({"model_type": "bailing_moe_linear", "layer_group_size": 5, "group_norm_size": 4}, "linear attention"),
        ({"model_type": "ernie4_5_moe_vl", "moe_num_experts": [64, 64]}, "experts of two kinds"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"]}, "linear attention"),
        ({"model_type": "llama", "layer_types": ["mamba"] * 32}, "Mamba"),
        ({"model_type": "olmo3", "num_hidden_layers": 8, "layer_types": ["full_attention"] * 3}, "lists 3 of"),
    ],
)
def test_what_a_family_has_and_the_simulator_has_not_is_said(config, words):
    with pytest.raises(InputError) as refusal:
        from_hf(config)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [["llama"], {"a": 1}, 1, None, [["global"], 2]])
def test_a_model_type_that_is_no_text_is_refused(kind):
    with pytest.raises(InputError, match="not a supported family"):
        from_hf({"model_type": kind, "hidden_size": 64})


@pytest.mark.parametrize("garbage", ["x", [1], [[1]], {"a": 1}, 1.5, True, 3])
@pytest.mark.parametrize(
    "key",
    ["quantization_config", "attn_config", "ffn_config", "sliding_window_pattern", "layer_types", "mlp_only_layers"],
)
@pytest.mark.parametrize("family", ["dbrx", "mpt", "exaone4", "cohere2", "granitemoehybrid", "qwen3_moe"])
def test_no_key_of_another_type_is_a_traceback(family, key, garbage):
    try:
        from_hf({"model_type": family, key: garbage})
    except InputError as refusal:
        assert "\n" not in str(refusal)


def test_what_a_count_of_weights_does_not_show():
    """Experts that a token is sent to, and what the indexer keeps, are the class's where a file leaves them out."""
    assert from_hf({"model_type": "dbrx", **MPT, "attn_config": {}, "ffn_config": {}}).experts_per_token == 1
    assert from_hf({"model_type": "qwen2_moe", **QWEN_MOE, "num_experts_per_tok": None}).experts_per_token == 4
    assert from_hf({"model_type": "qwen2_moe", **QWEN_MOE}).shared_experts == 1
    sparse = from_hf({"model_type": "deepseek_v32", **LATENT, "v_head_dim": 12, **DEEPSEEK_MOE, "index_topk": None})
    assert (sparse.index_topk, sparse.index_heads, sparse.index_dim) == (2048, 64, 128)


@pytest.mark.parametrize("said, tied", [("false", False), ("true", True), (" False", False), (0, False), (1, True)])
def test_a_switch_written_as_text_is_that_switch(said, tied):
    assert from_hf({"model_type": "llama", "tie_word_embeddings": said}).tied is tied


@pytest.mark.parametrize("said", ["maybe", "", [True], 2, 0.5, {"a": 1}])
def test_a_switch_that_is_neither_is_refused(said):
    with pytest.raises(InputError, match="tie_word_embeddings=.*: must be true or false"):
        from_hf({"model_type": "llama", "tie_word_embeddings": said})


def test_a_list_of_layers_that_goes_on_for_prediction_modules():
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    spec = from_hf({"model_type": "olmo3", "num_hidden_layers": 4, "layer_types": [*kinds, "sliding_attention"]})
    assert spec.window_layers == 3


LLAMA = {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-5}
DEEPSEEK = {"vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61}
DEEPSEEK |= {"n_dense_layers": 3, "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1}
DEEPSEEK |= {"n_activated_experts": 8, "n_expert_groups": 8, "n_limited_groups": 4, "q_lora_rank": 1536}
DEEPSEEK |= {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


@pytest.mark.parametrize(
    "params, weights, window",
    [
        (LLAMA | {"multiple_of": 256, "vocab_size": -1}, 6_738_415_616, 0),  # Llama 1 and 2, 7B
        (
            LLAMA | {"n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3, "multiple_of": 1024},
            8_030_261_248,  # Llama 3, 8B
            0,
        ),
        (
            LLAMA
            | {"n_kv_heads": 8, "head_dim": 128, "hidden_dim": 14336, "vocab_size": 32000, "sliding_window": 4096},
            7_241_732_096,  # Mistral 7B
            32,
        ),
        (
            LLAMA
            | {"n_kv_heads": 8, "head_dim": 128, "hidden_dim": 14336, "vocab_size": 32000}
            | {"moe": {"num_experts_per_tok": 2, "num_experts": 8}},
            46_702_792_704,  # Mixtral 8x7B
            0,
        ),
        (DEEPSEEK, 671_026_419_200, 0),
        (DEEPSEEK | {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}, 671_877_944_064, 0),
    ],
    ids=["llama2", "llama3", "mistral", "mixtral", "deepseek_v3", "deepseek_v3.2"],
)
def test_the_makers_own_params_are_the_model(params, weights, window):
    """Weights as the same models' Hugging Face pages count them."""
    spec = load_model(params)
    assert (spec.total_params(), spec.window_layers) == (weights, window)
    with pytest.raises(InputError, match="params.json multiple_of"):
        load_model(LLAMA | {"multiple_of": "x"})
    with pytest.raises(InputError, match="ffn_dim_multiplier='x': must be a number"):
        load_model(LLAMA | {"ffn_dim_multiplier": "x"})


def test_latent_attention_and_experts_as_mistral_nests_them():
    """Mistral Large 3: DeepSeek-V3's layers with 128 experts of 4,096 and a vocabulary of 131,072."""
    moe = {"num_experts": 128, "num_experts_per_tok": 4, "num_shared_experts": 1, "expert_hidden_dim": 4096}
    nested = ("inter_dim", "moe_inter_dim", "n_routed_experts", "n_shared_experts", "n_activated_experts")
    params = {key: value for key, value in DEEPSEEK.items() if key not in (*nested, "n_dense_layers")}
    params |= {"vocab_size": 131072, "hidden_dim": 16384, "moe": {**moe, "first_k_dense_replace": 3}}
    ours, theirs = load_model(params), load_model(DEEPSEEK)
    moved = 58 * (3 * 7168 * (129 * 4096 - 257 * 2048) - 128 * 7168 - 128)
    moved += 3 * 3 * 7168 * (16384 - 18432) + 2 * (131072 - 129280) * 7168
    assert ours.total_params() - theirs.total_params() == moved
    assert (ours.experts, ours.experts_per_token, ours.dense_layers) == (128, 4, 3)
