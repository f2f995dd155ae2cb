"""MLA: the two ways to compute it agree, padding changes nothing, documents stay apart, the cache changes nothing."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.model import attention
from minglm.model.attention import MLA, ForwardContext
from minglm.model.cache import LatentCache
from minglm.model.layers import rope_table

CONFIG = ModelConfig.named("nano")


def layer(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    mla = MLA(config, 0)
    for p in mla.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.3)
    return mla


def run(mla, x, mode="dense", **ctx):
    rope = rope_table(256, mla.qk_rope_head_dim, 1e4)
    offset = ctx.get("offset", 0)
    return mla(x, ForwardContext(mode, rope[offset : offset + x.shape[1]], **ctx))[0]


def plain(mla, x, doc_start=None):
    """MLA written head by head with an explicit mask."""
    T, rope = x.shape[1], rope_table(256, mla.qk_rope_head_dim, 1e4)
    from minglm.model.layers import apply_rope

    q = mla.q_b_proj(mla.q_a_layernorm(mla.q_a_proj(x))).view(*x.shape[:2], mla.num_heads, -1)
    kv = mla.kv_a_proj_with_mqa(x)
    k_rope = apply_rope(kv[..., mla.kv_lora_rank :], rope[:T])
    up = mla.kv_b_proj(mla.kv_a_layernorm(kv[..., : mla.kv_lora_rank])).view(*x.shape[:2], mla.num_heads, -1)
    seen = torch.ones(T, T).tril().bool().expand(x.shape[0], T, T)
    if doc_start is not None:
        seen = seen & (torch.arange(T) >= doc_start.unsqueeze(-1))
    heads = []
    for h in range(mla.num_heads):
        qh = torch.cat(
            (q[:, :, h, : mla.qk_nope_head_dim], apply_rope(q[:, :, h, mla.qk_nope_head_dim :], rope[:T])), -1
        )
        kh = torch.cat((up[:, :, h, : mla.qk_nope_head_dim], k_rope), -1)
        a = (qh @ kh.transpose(1, 2) * mla.scale).masked_fill(~seen, -torch.inf).softmax(-1)
        heads.append(a @ up[:, :, h, mla.qk_nope_head_dim :])
    return mla.o_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("changes", [{}, {"v_head_dim": 40}, {"v_head_dim": 24}])
def test_expanded_equals_the_plain_formula(changes):
    """Value heads narrower than, wider than and as wide as the keys: the padding must not show."""
    mla = layer(ModelConfig.named("nano", **changes))
    x = torch.randn(2, 21, CONFIG.hidden_size)
    torch.testing.assert_close(run(mla, x), plain(mla, x), rtol=1e-4, atol=1e-4)


def test_absorbed_equals_expanded():
    mla = layer()
    x = torch.randn(2, 21, CONFIG.hidden_size)
    ctx = ForwardContext("dense", rope_table(21, mla.qk_rope_head_dim, 1e4))
    q, latent = mla.project(x, ctx)
    torch.testing.assert_close(mla.absorbed(q, latent, ctx), mla.dense(q, latent, ctx), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_documents_are_isolated(mode):
    """A document in the middle of a row attends as it would alone."""
    mla = layer()
    x = torch.randn(1, 60, CONFIG.hidden_size)
    doc_start = torch.where(torch.arange(60) < 23, 0, 23).unsqueeze(0)
    got = run(mla, x, mode, doc_start=doc_start)
    torch.testing.assert_close(got[:, :23], run(mla, x[:, :23], mode), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[:, 23:], run(mla, x[:, 23:], mode), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[:, 23:], run(mla, x, mode)[:, 23:], atol=1e-2)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("pieces", [[60], [1] * 60, [20, 1, 1, 38], [16, 1, 43]])
def test_cache_in_any_pieces_changes_nothing(mode, pieces):
    mla = layer()
    x = torch.randn(2, 60, CONFIG.hidden_size)
    cache, done, outs = LatentCache(CONFIG, 2, 60), 0, []
    for n in pieces:
        outs.append(run(mla, x[:, done : done + n], mode, cache=cache, offset=done))
        cache.advance(n)
        done += n
    torch.testing.assert_close(torch.cat(outs, 1), run(mla, x, mode), rtol=1e-4, atol=1e-4)


def test_sparse_with_room_for_all_keys_is_dense():
    x = torch.randn(2, 40, CONFIG.hidden_size)
    few, many = layer(), layer(ModelConfig.named("nano", index_topk=39))
    roomy = layer(ModelConfig.named("nano", index_topk=40))
    torch.testing.assert_close(run(roomy, x, "sparse"), run(few, x, "dense"), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(few, x, "sparse"), run(few, x, "dense"), atol=1e-2)
    # k = 39 < S = 40: only the last query leaves one key out
    torch.testing.assert_close(run(many, x, "sparse")[:, :39], run(few, x, "dense")[:, :39], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("documents", [False, True])
def test_masking_what_was_not_chosen_equals_gathering_what_was(monkeypatch, documents):
    """Up to a few times index_topk keys the layer masks, beyond that it gathers: the same values and gradients."""
    mla, T = layer(), 2 * CONFIG.index_topk
    x = torch.randn(2, T, CONFIG.hidden_size, requires_grad=True)
    doc_start = torch.tensor([[0] * 10 + [10] * (T - 10), [0] * T]) if documents else None
    leaves = [x, *(p for n, p in mla.named_parameters() if "indexer" not in n)]
    got, want, calls = [], [], []
    gather = attention.sparse_attention
    monkeypatch.setattr("minglm.model.attention.sparse_attention", lambda *args: calls.append(1) or gather(*args))
    for out, until in ((got, 2), (want, 0)):
        assert not calls
        monkeypatch.setattr("minglm.model.attention.DENSE_MASK_UNTIL", until)
        y = run(mla, x, "sparse", doc_start=doc_start)
        out += [y, *torch.autograd.grad(y.square().sum(), leaves)]
    assert len(calls) == 1
    assert not torch.allclose(got[0], run(mla, x, "dense", doc_start=doc_start), atol=1e-3), (
        "the choice must leave keys out"
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
