"""Published configs are read as `transformers` reads them: absent keys, wrappers, families, and what is refused."""

import json

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.spec.huggingface import _TEXT_OF, FAMILIES, SUPPORTED, from_hf
from sim.spec.huggingface_hub_code import HUB_CODE

SHIPPED = json.loads(datafiles.data("huggingface_defaults.json").read_text())
DEFAULTS = SHIPPED["defaults"]
GEMMA3 = {"model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16}
GEMMA3 |= {"num_hidden_layers": 48, "num_key_value_heads": 8, "sliding_window": 1024}
# What a published file holds, in billions of weights of its language model: counted by the publisher or by hand.
PUBLISHED = [
    ({"model_type": "gemma3", "text_config": GEMMA3, "vision_config": {}}, 11.766),  # Gemma 3 12B, sparse config
    (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
        },
        3.880,  # Gemma 3 4B: heads, key-value heads, width and vocabulary are the class's
    ),
    ({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}, 6.739),  # Llama 7B and pads
    ({"model_type": "llava", "text_config": {"vocab_size": 32064}}, 6.739),  # the wrapper names the family
    ({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}, 107.77),  # Llama 4 Scout is the default
    ({"model_type": "minimax_m2"}, 228.7),
    ({"model_type": "glm4_moe_lite", "first_k_dense_replace": 1}, 29.943),  # GLM-4.7-Flash
    (
        {
            "model_type": "some_vl",
            "tie_word_embeddings": True,  # outside, and it holds
            "text_config": {
                "model_type": "qwen3",
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_hidden_layers": 36,
            },
        },
        4.022,
    ),
]


@pytest.mark.parametrize("config, billions", PUBLISHED)
def test_weights_of_published_configs(config, billions):
    assert from_hf(config).total_params() / 1e9 == pytest.approx(billions, rel=2e-4)


@pytest.mark.parametrize("family", DEFAULTS)
def test_the_shipped_defaults_are_those_of_the_classes(family):
    transformers = pytest.importorskip("transformers")
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES[family]
    classes = getattr(transformers, kind).__mro__
    for key, value in DEFAULTS[family].items():
        declared = next(one.__dict__[key] for one in classes if key in one.__dict__)
        assert value == declared, key


def test_every_claimed_family_has_defaults_or_shares_a_class():
    assert set(DEFAULTS) <= set(FAMILIES)
    assert set(FAMILIES) - set(DEFAULTS) == {
        "kimi_k2",
        "kimi_k25_text",
        "mistral3_text",
        *("internlm2", "baichuan", "chatglm", "deepseek", "qwen", "minicpm"),  # no class: code beside the weights
        *("exaone", "mimo", "bailing_moe", "bailing_moe_v2", *HUB_CODE),
        "gpt-sw3",
        "qwen2_5_omni_text",
        "qwen3_omni_moe_text",
    }


def test_a_wrapper_without_a_text_config_has_its_class_s():
    assert from_hf({"model_type": "gemma3"}).total_params() == from_hf({"model_type": "gemma3_text"}).total_params()


def test_null_says_none_where_absence_says_the_default():
    base = {"model_type": "mistral"}
    assert from_hf(base).window == 4096  # the class's
    assert from_hf({**base, "sliding_window": None}).window_layers == 0
    assert from_hf({"model_type": "llama", "num_attention_heads": 16, "num_key_value_heads": None}).kv_heads == 16


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "config, longest",
    [
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),  # Qwen2.5's page
        (
            {"model_type": "qwen3", "max_position_embeddings": 32768, "rope_parameters": {**YARN, "rope_type": "yarn"}},
            131072,
        ),
        (
            {"model_type": "deepseek_v3", "max_position_embeddings": 163840}
            | {"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}},
            163840,  # its own length is the stretched one
        ),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),  # of the class's 2,048
        (
            {"model_type": "llama", "max_position_embeddings": 131072}
            | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
            131072,
        ),
        (
            {"model_type": "phi3", "max_position_embeddings": 131072}
            | {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}, "original_max_position_embeddings": 4096},
            131072,
        ),
        (
            {"model_type": "gemma3_text", "max_position_embeddings": 131072}
            | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            131072,
        ),
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": None}, 32768),
        (
            {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": "4"}},
            32768,
        ),
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": "yarn"}, 32768),
    ],
)
def test_the_longest_context_of_scaled_positions(config, longest):
    assert from_hf(config).max_seq == longest


def test_layer_types_say_which_layers_have_a_window():
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    spec = from_hf({"model_type": "olmo3", "num_hidden_layers": 8, "layer_types": kinds * 2})
    assert (spec.window, spec.window_layers) == (4096, 6)


@pytest.mark.parametrize(
    "config, operator",
    [
        ({"model_type": "qwen3_next", "linear_num_key_heads": 16, "full_attention_interval": 4}, "gated delta rule"),
        ({"model_type": "kimi_linear", "linear_attn_config": {"kda_layers": [1]}}, "linear attention"),
        ({"model_type": "bamba", "mamba_d_state": 256}, "Mamba"),
        ({"model_type": "new", "layer_types": ["linear_attention", "full_attention"]}, "linear attention"),
        ({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}}, "gated delta rule"),
        ({"model_type": "mamba2"}, "Mamba"),
        ({"model_type": "afmoe"}, "a gate behind attention"),
        ({"model_type": "t5"}, "an encoder beside its decoder"),
        ({"model_type": "bert", "type_vocab_size": 2}, "attention to both sides"),
        ({"model_type": "mbart-of-mine", "is_encoder_decoder": True}, "an encoder beside its decoder"),
    ],
)
def test_an_operator_that_is_not_modelled_is_named(config, operator):
    with pytest.raises(InputError) as refusal:
        from_hf(config)
    assert operator in str(refusal.value) and "\n" not in str(refusal.value)


def test_operators_that_a_file_leaves_to_its_class_are_the_classes_own():
    transformers = pytest.importorskip("transformers")
    listed = {kind: key for kind, key in SHIPPED["not_modelled"].items() if kind not in ("afmoe", "mimo_v2_flash")}
    for kind, key in listed.items():
        theirs = transformers.AutoConfig.for_model(kind).to_dict()
        kinds = [one for name in ("layer_types", "layers_block_type") for one in theirs.get(name) or ()]
        assert theirs.get(key) or key in kinds, kind


def test_the_language_model_of_a_wrapper_that_leaves_it_unsaid_is_its_class_s():
    transformers = pytest.importorskip("transformers")
    for wrapper, family in _TEXT_OF.items():
        if wrapper in ("llava_llama", "kimi_k25"):  # no class, or one that names DeepSeek's
            continue
        assert transformers.AutoConfig.for_model(wrapper).text_config.model_type == family, wrapper


def test_hints_stay_within_an_architecture():
    with pytest.raises(InputError) as refusal:
        from_hf({"model_type": "llama5_text"})
    assert "did you mean" not in str(refusal.value)
    with pytest.raises(InputError, match="did you mean 'qwen3_moe'"):
        from_hf({"model_type": "Qwen3MoE"})
    assert "qwen3_moe" in SUPPORTED


@pytest.mark.parametrize(
    "kind",
    ["minimax", "gemma3n_text", "ernie4_5_vl_moe", "qwen2_audio", "olmo4", "falcon_h1", "glm6", "mllama", "xglm"],
)
def test_no_hint_leads_to_another_model(kind):
    with pytest.raises(InputError) as refusal:
        from_hf({"model_type": kind, "hidden_size": 64})
    assert "did you mean" not in str(refusal.value)


@pytest.mark.parametrize("typed, meant", [("lama", "llama"), ("qwen3-moe", "qwen3_moe"), ("deepsek_v3", "deepseek_v3")])
def test_a_slip_is_hinted(typed, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        from_hf({"model_type": typed, "hidden_size": 64})


QWEN_VL = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN_VL |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}, **QWEN_VL},  # as first published: side by side
        {"model_type": "qwen2_vl", "vision_config": {}, **QWEN_VL},
        {"model_type": "qwen2_5_vl", "text_config": QWEN_VL},  # the wrapper names the family
        {"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2", **QWEN_VL}},
        {"model_type": "deepseek_vl_v2", "language_config": {"model_type": "qwen2", **QWEN_VL}},
    ],
)
def test_a_language_model_beside_or_inside_a_wrapper_of_any_name(config):
    assert from_hf(config).total_params() / 1e9 == pytest.approx(7.616, rel=1e-4)


@pytest.mark.parametrize(
    "keys, windowed",
    [
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 21}, 7),
        ({"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}, 0),  # as Qwen2.5 says it
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28}, 0),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 30}, 0),
    ],
)
def test_qwens_windows_begin_after_their_first_full_layers(keys, windowed):
    spec = from_hf({"model_type": "qwen2", **QWEN_VL, **keys})
    assert spec.window_layers == windowed and (spec.window == 4096 or not windowed)


@pytest.mark.parametrize("layers, full", [(62, 10), (48, 8), (34, 5), (7, 1), (5, 0)])
def test_every_sixth_layer_of_gemma_3_sees_all(layers, full):
    spec = from_hf({"model_type": "gemma3_text", "num_hidden_layers": layers})
    assert layers - spec.window_layers == full
