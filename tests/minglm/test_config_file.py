"""A published config.json as transformers reads it: other names, older spellings, what is absent, what is refused."""

import json

import pytest

from minglm.config import ModelConfig
from minglm.errors import InputError


def raw(**changes):
    """nano as a published file, without the keys that transformers does not know; None takes a key out."""
    known = ModelConfig.named("nano").to_hf()
    for key in ("mtp_depth", "mtp_normed_hidden", "rope_parameters", "indexer_types"):
        del known[key]
    return {k: v for k, v in {**known, **changes}.items() if v is not None}


THETAS = [
    ({}, 10_000.0),  # transformers' default where no key says one
    ({"rope_theta": 5e5}, 5e5),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 8e6}}, 8e6),
    ({"rope_parameters": {"type": "default", "rope_theta": 8e6}}, 8e6),
    ({"rope_parameters": {"rope_type": "default"}}, 10_000.0),
    ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, 5e5),
    ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5),
    ({"rope_scaling": {"rope_type": "default", "rope_theta": 7e4}, "rope_parameters": {"rope_theta": 8e6}}, 7e4),
]


@pytest.mark.parametrize("keys, theta", THETAS)
def test_theta_is_found_where_transformers_finds_it(keys, theta):
    assert ModelConfig.from_hf(raw(**keys)).rope_theta == theta
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GlmMoeDsaConfig(**json.loads(json.dumps(raw(**keys))))
    assert theirs.rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling of rope_type='yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling of rope_type='linear'"),
        ({"rope_parameters": {"type": "dynamic", "factor": 2.0}}, "rope_parameters of rope_type='dynamic'"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"rope_scaling": "yarn"}, "must be a mapping"),
        ({"rope_theta": "1e6"}, "must be a positive number"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ({"num_local_experts": 4}, "num_local_experts=4 and n_routed_experts=8"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ({"topk_method": "greedy"}, "topk_method='greedy'"),
        ({"rope_interleave": False}, "rope_interleave=False"),
        ({"layer_types": ["indexed_attention", "linear_attention"]}, "'linear_attention' in layer_types"),
        ({"layer_types": "full"}, "in layer_types"),
        ({"eos_token_id": "1"}, "eos_token_id='1': must be the number of a token"),
        ({"eos_token_id": [1, -1]}, "eos_token_id=(1, -1): must be the number of a token"),
        ({"pad_token_id": True}, "pad_token_id=True"),
    ],
)
def test_another_computation_is_refused_by_its_key(keys, words):
    with pytest.raises(InputError) as refusal:
        ModelConfig.from_hf(raw(**keys))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts"])
def test_the_number_of_experts_by_its_other_names(key):
    assert ModelConfig.from_hf(raw(n_routed_experts=None, **{key: 16})).n_routed_experts == 16
    transformers = pytest.importorskip("transformers")
    assert transformers.GlmMoeDsaConfig(**raw(n_routed_experts=None, **{key: 16})).n_routed_experts == 16


def test_no_shared_expert_is_none_or_zero():
    one = ModelConfig.from_hf(raw())
    for none in (
        ModelConfig.from_hf(raw(n_shared_experts=0)),
        ModelConfig.from_hf({**raw(), "n_shared_experts": None}),
    ):
        assert none.n_shared_experts == 0
        expert = 3 * none.hidden_size * none.moe_intermediate_size  # gate, up, down
        assert one.num_params() - none.num_params() == one.num_moe_layers * expert


def test_whole_numbers_of_float_fields_are_written_as_floats():
    out = ModelConfig.named("nano", rope_theta=1_000_000, routed_scaling_factor=1, initializer_range=1).to_hf()
    kinds = {type(out[key]) for key in ("routed_scaling_factor", "initializer_range", "rms_norm_eps")}
    assert kinds == {float} and isinstance(out["rope_parameters"]["rope_theta"], float)
    transformers = pytest.importorskip("transformers")
    transformers.GlmMoeDsaConfig(**out)  # its fields are checked by type


def test_published_checkpoints_have_normed_states_for_the_module_and_ours_say_so():
    assert ModelConfig.from_hf(raw()).mtp_normed_hidden is True
    assert ModelConfig.from_hf(ModelConfig.named("nano").to_hf()).mtp_normed_hidden is False
    with pytest.raises(InputError, match="mtp_normed_hidden"):
        ModelConfig.named("nano", mtp_normed_hidden=1)


@pytest.mark.parametrize("kinds, dense", [("DSS", 1), ("DDS", 2), ("SSS", 0), ("DDD", 3)])
def test_dense_layers_are_counted_where_the_kinds_are_listed(kinds, dense):
    listed = [{"D": "dense", "S": "sparse"}[k] for k in kinds]
    assert ModelConfig.from_hf(raw(mlp_layer_types=listed)).first_k_dense_replace == dense


def test_dense_layers_after_experts_are_refused():
    with pytest.raises(InputError, match="dense layers must come first"):
        ModelConfig.from_hf(raw(mlp_layer_types=["dense", "sparse", "dense"]))


ODD = [1.5, float("nan"), True, "x", [1], [["a"]], {"a": 1}]
LISTED = ["indexer_types", "mlp_layer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("key", [*LISTED, "num_hidden_layers", "rope_scaling", "n_routed_experts"])
def test_a_key_of_another_type_is_one_line(key, odd):
    with pytest.raises(InputError) as refusal:
        ModelConfig.from_hf(raw(index_topk_freq=2) | {key: odd})
    assert "\n" not in str(refusal.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    text = json.dumps(raw())
    path = tmp_path / "config.json"
    path.write_text(text[:-1] + ', "hidden_size": 32}')
    with pytest.raises(InputError, match="'hidden_size' stands twice"):
        ModelConfig.from_hf(path)


@pytest.mark.parametrize("said", [{}, {"num_nextn_predict_layers": None}, {"num_nextn_predict_layers": 0}])
def test_prediction_modules_that_are_absent_or_null_are_none(said):
    published = {k: v for k, v in raw().items() if k != "num_nextn_predict_layers"} | said
    assert ModelConfig.from_hf(published).num_nextn_predict_layers == 0


def test_a_kind_of_layer_that_is_neither_is_refused_beside_known_ones():
    with pytest.raises(InputError, match="must say 'dense' or 'sparse' of each layer"):
        ModelConfig.from_hf(raw(mlp_layer_types=["dense", "linear", "sparse", "sparse"]))
