"""For generated shapes, lengths and k: the future never changes the past, and every way to compute gives one answer."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.config import ModelConfig
from minglm.model import topk, workspace
from minglm.model.cache import LatentCache
from minglm.model.model import Model

torch.set_num_threads(1)

shapes = st.builds(
    lambda heads, nope, rope, v, kv, index_heads, extra, topk, shared, seed: (
        ModelConfig.named(
            "nano",
            num_attention_heads=heads,
            qk_nope_head_dim=nope,
            qk_rope_head_dim=2 * rope,
            v_head_dim=v,
            kv_lora_rank=kv,
            index_n_heads=index_heads,
            index_head_dim=2 * rope + extra,
            index_topk=topk,
            initializer_range=0.2,
            indexer_types=("full", "shared" if shared else "full", "full"),
            mtp_depth=1,
        ),
        seed,
    ),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 999),
)


def build(shape):
    config, seed = shape
    torch.manual_seed(seed)
    return Model(config).eval(), torch.randint(0, config.vocab_size, (2, 34))


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 33), st.sampled_from(["dense", "warmup", "sparse"]), st.sampled_from([1, 500, 1 << 20]))
def test_changing_the_future_leaves_the_past_unchanged(shape, cut, mode, budget):
    """Also for k larger than what a query sees, and for queries that share a chunk with the future."""
    model, tokens = build(shape)
    other = tokens.clone()
    other[:, cut:] = (other[:, cut:] + 1 + torch.arange(34 - cut)) % model.config.vocab_size
    old, workspace.SCORE_FLOATS = workspace.SCORE_FLOATS, budget
    try:
        with torch.no_grad():
            before, after = model(tokens, mode=mode).logits, model(other, mode=mode).logits
    finally:
        workspace.SCORE_FLOATS = old
    # Matmuls over another set of rows (experts get other tokens) round differently in the last bits only.
    torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before[:, cut:], after[:, cut:], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(shapes, st.lists(st.integers(1, 12), min_size=1, max_size=6), st.sampled_from(["dense", "sparse"]))
def test_the_cache_in_any_pieces_changes_nothing(shape, pieces, mode):
    model, tokens = build(shape)
    cache, outs = LatentCache(model.config, 2, 34), []
    with torch.no_grad():
        whole = model(tokens, mode=mode).logits
        for n in [*pieces, 34]:
            part = tokens[:, cache.length : cache.length + n]
            if part.shape[1]:
                outs.append(model(part, cache=cache, mode=mode).logits)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(1, 33))
def test_documents_in_one_row_are_as_apart_as_two_rows(shape, seam):
    model, tokens = build(shape)
    doc_start = torch.where(torch.arange(34) < seam, 0, seam).expand(2, 34)
    with torch.no_grad():
        for mode in ("dense", "sparse"):
            packed = model(tokens, mode=mode, doc_start=doc_start).logits
            torch.testing.assert_close(
                packed[:, :seam], model(tokens[:, :seam], mode=mode).logits, rtol=1e-3, atol=1e-3
            )
            torch.testing.assert_close(
                packed[:, seam:], model(tokens[:, seam:], mode=mode).logits, rtol=1e-3, atol=1e-3
            )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_top_k_is_a_stable_sort(width, k, levels, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, (6, width), generator=g).float()
    scores[scores == levels] = -torch.inf
    order = torch.sort(scores, dim=-1, descending=True, stable=True)
    want = order.indices[:, :k].masked_fill(order.values[:, :k] == -torch.inf, -1)
    got = topk.topk_lowest(scores, k)
    assert torch.equal(got.sort(-1).values, want.sort(-1).values)
