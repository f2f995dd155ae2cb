"""Weights and logits shared with transformers' `GlmMoeDsaForCausalLM`, in both directions, with k < S; and bad folders.

transformers leaves ties among equal indexer scores to torch.topk, where ours go to the lowest position. With sixteen
indexer heads an exact tie (all heads at or below zero) at the edge of the choice is rare; each test here checks that it
has none.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.generate import generate
from minglm.interop.huggingface import export_hf, import_hf
from minglm.model import attention
from minglm.model.indexer import causal_mask, index_scores
from minglm.model.model import Model

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
LENGTH, TOLERANCE = 80, 1e-4
VARIANTS = {
    "plain": {},
    "no-mtp": {"num_nextn_predict_layers": 0},
    "shared-indexer": {"indexer_types": ("full", "shared", "full")},
    "wide-values": {"v_head_dim": 32, "index_topk": 5},
    "one-key": {"index_topk": 1},
    "no-shared-expert": {"n_shared_experts": 0},
    "odd-latent": {"kv_lora_rank": 17},
}


def make(**changes):
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano", **{"initializer_range": 0.15, "index_n_heads": 16, **changes})).eval()
    for p in model.parameters():  # norms that are not all one
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
    for b in model.buffers():  # a bias that changes choices
        b.normal_(0, 0.1)
    return model


def theirs(folder, **options):
    return transformers.GlmMoeDsaForCausalLM.from_pretrained(
        folder, **{"attn_implementation": "eager", **options}
    ).eval()


@pytest.fixture(autouse=True)
def no_ties(monkeypatch):
    """Fail when a query's last chosen and first left-out scores are equal: the comparison would be a matter of luck."""
    real = attention.select_topk

    def checked(q, k, w, topk, offset=0, doc_start=None):
        assert doc_start is None
        for row in zip(q, k, w, strict=True):
            if k.shape[1] > topk:
                seen = causal_mask(q.shape[1], offset, k.shape[1], None, q.device)
                with torch.no_grad():
                    scores = index_scores(*row)
                top = scores.masked_fill(~seen, -torch.inf).topk(topk + 1, -1).values
                tied = (top[:, -2] == top[:, -1]) & (top[:, -1] > -torch.inf)
                assert not tied.any(), "the test data holds a tie"
        return real(q, k, w, topk, offset, doc_start)

    monkeypatch.setattr(attention, "select_topk", checked)


TOKENS = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_export_gives_the_same_logits(tmp_path, variant, implementation):
    model = make(**VARIANTS[variant])
    hf = theirs(export_hf(model, tmp_path), attn_implementation=implementation)
    with torch.no_grad():
        ours, want, dense = model(TOKENS).logits, hf(TOKENS).logits, model(TOKENS, mode="dense").logits
    assert (ours - want).abs().max() <= TOLERANCE
    assert (dense - want).abs().max() > 0.1, "sparsity must matter, or this test shows nothing"


@pytest.mark.parametrize("variant", VARIANTS)
def test_import_gives_the_same_logits(tmp_path, variant):
    """A checkpoint that transformers made and saved itself."""
    config = make(**VARIANTS[variant]).config
    torch.manual_seed(3)
    hf = transformers.GlmMoeDsaForCausalLM(
        transformers.GlmMoeDsaConfig(**config.to_hf(), attn_implementation="eager")
    ).eval()
    for b in hf.buffers():
        if b.shape == (config.n_routed_experts,):
            b.normal_(0, 0.1)
    hf.save_pretrained(tmp_path)
    model = import_hf(tmp_path)
    assert model.mtp is None and not model.training
    with torch.no_grad():
        assert (model(TOKENS).logits - hf(TOKENS).logits).abs().max() <= TOLERANCE


def test_export_then_import_is_the_same_model_with_mtp(tmp_path):
    model = make()
    again = import_hf(export_hf(model, tmp_path))
    assert again.config == model.config
    for (n, a), (m, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert n == m and torch.equal(a, b), n


def test_decoding_with_the_cache_gives_the_same_logits_and_tokens(tmp_path):
    from minglm.model.cache import LatentCache

    model = make()
    hf = theirs(export_hf(model, tmp_path))
    cache, past = LatentCache(model.config, 2, LENGTH), transformers.DynamicCache(config=hf.config)
    with torch.no_grad():
        for part in (TOKENS[:, :50], *TOKENS[:, 50:].split(1, 1)):
            ours = model(part, cache=cache).logits
            want = hf(part, past_key_values=past, use_cache=True).logits
            assert (ours - want).abs().max() <= TOLERANCE
    ids = hf.generate(
        TOKENS[:, :40], attention_mask=torch.ones(2, 40), max_new_tokens=30, do_sample=False, eos_token_id=None
    )
    assert generate(model, TOKENS[:, :40], 30).tokens == ids[:, 40:].tolist()


def test_gradients_of_the_loss_agree(tmp_path):
    model = make(num_nextn_predict_layers=0)
    hf = theirs(export_hf(model, tmp_path))
    model(TOKENS[:, :-1], TOKENS[:, 1:].contiguous()).lm_loss.backward()
    hf(TOKENS, labels=TOKENS).loss.backward()
    got = dict(model.named_parameters())
    for name, p in hf.named_parameters():
        ours = got[name.removeprefix("model.")]
        if p.grad is None:
            assert ".indexer." in name and ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_weights_travel(tmp_path):
    model = make(num_nextn_predict_layers=0)
    folder = export_hf(model.bfloat16(), tmp_path)
    again = import_hf(folder)
    assert again.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.float())


# ------------------------------------------------------------------ folders that cannot be read


@pytest.fixture
def folder(tmp_path):
    return export_hf(make(), tmp_path)


def refused(folder, *says):
    with pytest.raises(InputError) as err:
        import_hf(folder)
    for word in (*says, str(folder)):
        assert word in str(err.value), str(err.value)
    assert "\n" not in str(err.value)


def edit(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_tensor_is_named(folder):
    edit(folder, lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    refused(folder, "model.layers.1.mlp.experts.3.up_proj.weight", "missing")


def test_extra_tensor_is_named(folder):
    edit(folder, lambda t: t.update({"model.layers.9.q.weight": torch.ones(2)}))
    refused(folder, "model.layers.9.q.weight", "no place")


def test_wrong_shape_is_named(folder):
    edit(folder, lambda t: t.update({"model.norm.weight": torch.ones(3)}))
    refused(folder, "model.norm.weight", "[3]", "[64]")


@pytest.mark.parametrize("keep", [0, 7, 500, 0.5, 0.999])
def test_truncated_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    refused(folder, "model.safetensors", "truncated")


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no such file", "model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no such file", "config.json")


def test_config_of_another_size_is_caught(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    refused(folder, "has shape", "config.json calls for")


def test_sharded_checkpoints_are_read(folder):
    tensors = load_file(folder / "model.safetensors")
    whole = import_hf(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    again = import_hf(folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors", "no such file")
