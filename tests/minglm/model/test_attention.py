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


@pytest.mark.parametrize("tokens", [1, 2, 21])
def test_absorbed_equals_expanded(tokens):
    mla = layer()
    x = torch.randn(2, tokens, CONFIG.hidden_size)
    ctx = ForwardContext("dense", rope_table(tokens, mla.qk_rope_head_dim, 1e4))
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


# ---------------------------------------------------------------------- the indexer beside it


def test_the_indexer_is_its_formula_step_by_step():
    """Queries from the compressed query, keys from the input through a layer norm, rotary pairs turned by hand,
    weights over sqrt(heads) and sqrt(width) (DeepSeek-V3.2-Exp, section 2.1, with the scales of its published code)."""
    config = ModelConfig.named("nano", index_n_heads=3)
    indexer = layer(config).indexer
    torch.nn.init.normal_(indexer.k_norm.weight), torch.nn.init.normal_(indexer.k_norm.bias)
    T, r, D = 9, config.qk_rope_head_dim, config.index_head_dim
    x, compressed = torch.randn(2, T, config.hidden_size), torch.randn(2, T, config.q_lora_rank)
    angles = torch.arange(T)[:, None] / 1e4 ** (torch.arange(0, r, 2) / r)

    def turned(v):  # (…, D), position on axis 1
        c, s = angles.cos(), angles.sin()
        if v.ndim == 4:
            c, s = c.unsqueeze(1), s.unsqueeze(1)
        even, odd = v[..., 0:r:2], v[..., 1:r:2]
        return torch.cat((torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2), v[..., r:]), -1)

    key = x @ indexer.wk.weight.T
    spread = (key - key.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
    key = (key - key.mean(-1, keepdim=True)) / (spread + indexer.k_norm.eps).sqrt()
    q, k, w = indexer(x, compressed, rope_table(T, r, 1e4))
    torch.testing.assert_close(q, turned((compressed @ indexer.wq_b.weight.T).view(2, T, 3, D)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(k, turned(key * indexer.k_norm.weight + indexer.k_norm.bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w, x @ indexer.weights_proj.weight.T / 3**0.5 / D**0.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["sparse", "warmup"])
def test_the_indexers_graph_is_kept_only_for_a_kl_that_is_differentiated(mode, loss, grad):
    """Memory of a graph that nobody reads; in the warm-up the KL has one although nothing around it has."""
    mla, x = layer(), torch.randn(1, 40, CONFIG.hidden_size, requires_grad=True)
    ctx = ForwardContext(mode, rope_table(40, mla.qk_rope_head_dim, 1e4), indexer_loss=loss, indexer_grad=grad)
    with torch.set_grad_enabled(mode != "warmup"):
        q, _ = mla.project(x, ctx)
        index = mla.index(x, q, ctx)
        out, kl, _ = mla(x, ctx)
    assert {t.requires_grad for t in (index.q, index.k, index.w)} == {loss and grad}
    assert out.requires_grad == (mode != "warmup") and (kl is not None) == loss
    if loss:
        assert kl.requires_grad == grad
    if loss and grad:
        kl.backward()
        assert x.grad is None, "the KL moves nothing but the indexer"
        moved = {n for n, p in mla.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert moved == {n for n, _ in mla.named_parameters() if n.startswith("indexer.")}


@pytest.mark.parametrize("mode", ["sparse", "warmup"])
def test_the_kl_is_that_of_the_formula_on_the_layers_own_attention(mode):
    """KL(p ‖ softmax(I)) query by query: p the mean over heads of the dense attention, in the sparse stage on the
    chosen keys alone; the mean over queries, or the given weights."""
    mla, T = layer(ModelConfig.named("nano", index_topk=5)), 24
    x = torch.randn(1, T, CONFIG.hidden_size)
    weights = torch.rand(1, T, dtype=torch.float64)
    for given in (None, weights):
        rope = rope_table(T, mla.qk_rope_head_dim, 1e4)
        ctx = ForwardContext(mode, rope, indexer_loss=True, query_weights=None if given is None else given.float())
        with torch.no_grad():
            _, kl, _ = mla(x, ctx)
            q, latent = mla.project(x, ctx)
            index, keys = mla.index(x, q, ctx), mla.expand(latent)[0]
            logits = torch.einsum("bthd,bshd->bhts", q.joined, keys)[0].double() / CONFIG.qk_head_dim**0.5
            scores = torch.einsum("bth,bhts->bts", index.w, torch.einsum("bthd,bsd->bhts", index.q, index.k).relu())
        total = 0.0
        for t in range(T):
            seen = torch.arange(t + 1)
            if mode == "sparse":
                order = sorted(range(t + 1), key=lambda s: (-float(scores[0, t, s]), s))
                seen = torch.tensor(order[:5])
            p = logits[:, t, seen].softmax(-1).mean(0)
            log_q = scores[0, t, seen].double().log_softmax(-1)
            total += float((p * (p.log() - log_q)).sum()) * (1 / T if given is None else float(given[0, t]))
        assert float(kl) == pytest.approx(total, rel=1e-4)


def test_decoding_folds_the_scales_into_the_matrices():
    """What `AbsorbedLayer` multiplies out, against the layer's own steps: scaled absorbed queries, values through
    o_proj, and the projections of the input with the indexer's weights scaled."""
    from minglm.inference.absorbed import AbsorbedLayer
    from minglm.model.model import Model

    block = Model(CONFIG).layers[1]
    mla = block.self_attn
    for p in mla.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    with torch.no_grad():
        folded = AbsorbedLayer(block)
        x, compressed = torch.randn(1, 1, CONFIG.hidden_size), torch.randn(1, 1, CONFIG.q_lora_rank)
        H, nope, L = CONFIG.num_attention_heads, CONFIG.qk_nope_head_dim, CONFIG.kv_lora_rank
        q = (compressed @ mla.q_b_proj.weight.T).view(H, -1)
        up = mla.kv_b_proj.weight.view(H, nope + CONFIG.v_head_dim, L)
        scaled = q / (nope + CONFIG.qk_rope_head_dim) ** 0.5
        want = torch.stack([torch.cat((scaled[h, :nope] @ up[h, :nope], scaled[h, nope:])) for h in range(H)])
        torch.testing.assert_close((folded.w_q @ compressed.flatten()).view(H, -1), want, rtol=1e-4, atol=1e-4)
        attended = torch.randn(H, L)
        values = torch.cat([up[h, nope:] @ attended[h] for h in range(H)])
        torch.testing.assert_close(folded.w_out @ attended.flatten(), mla.o_proj.weight @ values, rtol=1e-4, atol=1e-4)
        ix = mla.indexer
        parts = [mla.q_a_proj(x), mla.kv_a_proj_with_mqa(x), ix.wk(x)]
        parts.append(ix.weights_proj(x) / ix.heads**0.5 / ix.width**0.5)
        torch.testing.assert_close(folded.w_in @ x.flatten(), torch.cat(parts, -1).flatten(), rtol=1e-4, atol=1e-4)
