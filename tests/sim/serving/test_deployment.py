"""What fits: bytes counted by hand, refusals with changes that do fit."""

import pytest

from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.serving.cache import index_row_bytes, kv_bytes_per_token, kv_row_bytes
from sim.serving.deployment import Deployment
from sim.serving.formats import FORMATS
from sim.serving.memory import GIB, chip_memory, shortfall, weight_bytes
from sim.serving.remedies import remedies, require_fit
from sim.spec.model_loader import load_model


def test_cache_bytes_of_glm5_are_the_published_ones():
    glm5 = load_model("glm5")
    assert kv_row_bytes(glm5, "bf16") == 2 * 576 and kv_row_bytes(glm5, "fp8") == 656  # FlashMLA README
    assert index_row_bytes(glm5, "fp8") == 132 and index_row_bytes(glm5, "bf16") == 256
    assert kv_bytes_per_token(glm5, "bf16") == 109_824 and kv_bytes_per_token(glm5, "fp8") == 61_464
    config = ModelConfig.named("glm5")
    assert kv_bytes_per_token(glm5, "bf16") == config.kv_cache_bytes_per_token(
        "bf16"
    ) + config.indexer_cache_bytes_per_token("bf16")
    assert kv_bytes_per_token(glm5, "fp8") * 202_752 / GIB == pytest.approx(11.61, abs=0.01)


def test_weights_by_hand():
    glm5 = load_model("glm5")
    experts = 75 * 256 * 3 * 6144 * 2048
    whole = weight_bytes(glm5, "bf16", mtp=False)
    assert whole["experts"] == 2 * experts
    assert sum(whole.values()) == pytest.approx(2 * glm5.total_params(), rel=1e-6)
    with_mtp = weight_bytes(glm5, "bf16", mtp=True)
    assert sum(with_mtp.values()) == pytest.approx(2 * glm5.total_params(mtp=True), rel=1e-6)
    assert weight_bytes(glm5, "w4a8", mtp=False)["experts"] == pytest.approx(experts * (0.5 + 2 / 256))
    fp8 = sum(weight_bytes(glm5, "fp8", mtp=False).values())
    assert fp8 == pytest.approx(
        glm5.total_params() * 1.0, rel=0.01
    )  # about a byte a weight; the bf16 parts add half a percent


def test_chips_share_experts_and_groups_repeat_the_rest():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=2, kv="fp8")
    whole, m = weight_bytes(d.model, "fp8", mtp=False), chip_memory(d)
    assert m.parts["experts"] == pytest.approx(whole["experts"] / 8)
    latents = 78 * (6144 * 2048 + 6144 * 576) * (1 + 4 / 16384)  # on every chip: one head wide
    indexers = 78 * (2048 * 32 * 128 + 6144 * 128 + 6144 * 32) * (1 + 4 / 16384)
    assert m.parts["dense"] == pytest.approx((whole["dense"] + latents + indexers) / 2)
    assert m.kv_tokens == pytest.approx(m.free_bytes / 61_464) and m.free_bytes < m.usable_bytes - m.weights_bytes
    assert chip_memory(d.with_changes(drafts=3)).kv_bytes_per_token == pytest.approx(
        61_464 * 79 / 78
    )  # the MTP layer keeps a cache too
    llama = chip_memory(Deployment.of("llama3_70b", "dgx_h100", chips=8, attention_tp=8, kv="bf16"))
    assert llama.kv_bytes_per_token == pytest.approx(80 * 2 * 8 * 128 * 2 / 8)  # GQA heads are cut; a latent is not


def test_fp8_glm5_needs_eight_h200_and_not_h100():
    assert shortfall(Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8"), 202_752, 2) == 0
    assert shortfall(Deployment.of("glm5", "dgx_h200", chips=4, attention_tp=4, kv="fp8")) > 50 * GIB
    assert shortfall(Deployment.of("glm5", "dgx_h100", chips=8, attention_tp=8, kv="fp8")) > 10 * GIB
    assert shortfall(Deployment.of("glm5", "dgx_b200", chips=8, attention_tp=8, kv="fp8"), 202_752, 5) == 0
    assert (
        shortfall(Deployment.of("glm5", "cloudmatrix384", chips=16, attention_tp=16, precision="w4a8")) == 0
    )  # one Atlas A3 node


def test_a_refusal_says_by_how_much_and_three_changes_that_fit():
    d = Deployment.of("glm5", "dgx_h100", chips=8, attention_tp=8)
    with pytest.raises(InputError) as refusal:
        require_fit(d, 8192, 1)
    text = str(refusal.value)
    over = shortfall(d, 8192, 1) / GIB
    assert f"{over:.1f} GiB a chip over" in text and "\n" not in text
    found = remedies(d, 8192, 1)
    assert len(found) == 3 and all(f"({i}) {r.text}" in text for i, r in enumerate(found, 1))
    for r in found:
        assert shortfall(r.deployment, r.context, r.requests) == 0, r.text
    assert require_fit(found[0].deployment, 8192, 1).kv_tokens >= 8192


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"chips": 0}, "chips=0"),
        ({"chips": 8, "attention_tp": 3}, "must divide the 8 chips of a stage"),
        ({"chips": 8, "precision": "fp9"}, "did you mean 'fp8'"),
        ({"chips": 8, "kv": "int2"}, "kv 'int2'"),
        ({"chips": 8, "drafts": 17}, "drafts=17"),
        ({"chips": 8, "acceptance": 1.5}, "acceptance=1.5"),
        ({"chips": 8, "drafts": 1, "accept_length": 3.0}, "yields 1 to 2"),
        ({"chips": 8, "memory_share": 0.0}, "memory_share"),
        ({"chips": 6, "attention_tp": 6}, "must divide the 64 heads"),
    ],
)
def test_bad_deployments_are_refused_in_one_line(bad, says):
    with pytest.raises(InputError) as refusal:
        Deployment.of("glm5", "dgx_h200", **bad)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_drafts_need_a_module_and_set_tokens_per_step():
    with pytest.raises(InputError, match="no multi-token-prediction module"):
        Deployment.of("llama3_70b", "dgx_h100", chips=8, drafts=1)
    d = Deployment.of("glm5", "dgx_h200", chips=8, drafts=3, acceptance=0.7)
    assert d.tokens_per_step == pytest.approx(1 + 0.7 + 0.49 + 0.343)
    assert d.with_changes(accept_length=2.76).tokens_per_step == 2.76
    known = {"bf16", "fp8", "w8a8", "w4a8", "nvfp4", "nvfp4-mlp", "mxfp4", "awq", "w4a16-experts", "int8"}
    assert known == set(FORMATS)


def test_whole_experts_need_experts():
    for model, given in (("llama3_70b", True), ("glm5", 1)):
        with pytest.raises(InputError, match="whole_experts=.*must be true or false") as refusal:
            Deployment.of(model, "dgx_h200", chips=8, whole_experts=given)
        remedy = str(refusal.value).rsplit("use ", 1)[1] == "true or false"
        assert Deployment.of(model, "dgx_h200", chips=8, whole_experts=remedy).whole_experts is remedy
