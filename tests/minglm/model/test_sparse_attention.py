"""The indexer's choice and the attention over it, against slow references; where gradients may and may not go."""

import pytest
import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.model import indexer, indexer_loss
from minglm.model import sparse_attention as sparse
from minglm.model.indexer import Indexer, index_scores, select_topk
from minglm.model.indexer_loss import dense_kl, topk_kl
from minglm.model.layers import rope_table
from minglm.model.sparse_attention import masked_reference, sparse_attention
from minglm.runtime.switch import VARIABLE

B, T, H, R, L, Hi, Di, k = 2, 40, 3, 10, 6, 2, 4, 5
NOPE, DV = 5, 7


def inputs(seed=0, T=T, ties=False):
    g = torch.Generator().manual_seed(seed)
    q, keys, w = (
        torch.randn(B, T, Hi, Di, generator=g),
        torch.randn(B, T, Di, generator=g),
        torch.randn(B, T, Hi, generator=g),
    )
    return (q.round(), keys.round(), w.round()) if ties else (q, keys, w)


def attention_inputs(seed=1, B=B, T=T, S=T, **kind):
    """q_nope, q_rope, latent, up_k, up_v of an attention layer."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, NOPE), (B, T, H, R - L), (B, S, R), (H, NOPE, L), (H, DV, L))
    return [torch.randn(*s, generator=g, **kind) for s in shapes]


def slow_choice(q, keys, w, topk, doc_start=None):
    """Sort every query's visible scores, highest first, lowest position first among equals."""
    rows = []
    for b in range(q.shape[0]):
        scores = index_scores(q[b], keys[b], w[b])
        for t in range(q.shape[1]):
            lo = 0 if doc_start is None else int(doc_start[b, t])
            order = sorted(range(lo, t + 1), key=lambda s: (-scores[t, s].item(), s))
            rows.append(frozenset(order[:topk]))
    return rows


def as_sets(topk_indices):
    return [frozenset(v for v in row if v >= 0) for row in topk_indices.flatten(0, 1).tolist()]


# ------------------------------------------------------------------ choosing


def test_index_scores_are_the_formula():
    q, keys, w = inputs()
    want = sum(w[0, :, j, None] * F.relu(q[0, :, j] @ keys[0].T) for j in range(Hi))
    torch.testing.assert_close(index_scores(q[0], keys[0], w[0]), want)


def test_scores_of_half_precision_are_summed_over_heads_in_fp32():
    q, keys, w = inputs()
    half_q, half_keys = q[0].bfloat16(), keys[0].bfloat16()
    got = index_scores(half_q, half_keys, w[0])
    dots = torch.stack([(half_q[:, j] @ half_keys.T).float() for j in range(Hi)], 1)  # products as the chip rounds them
    want = torch.einsum("nh,nhs->ns", w[0].double(), dots.double().relu())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 200, 1 << 20])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("topk", [1, 5, 39])
def test_choice_equals_sorting_whatever_the_chunks(monkeypatch, budget, ties, topk):
    monkeypatch.setattr(indexer, "SCORE_FLOATS", budget)
    monkeypatch.setenv(VARIABLE, "0")
    q, keys, w = inputs(ties=ties)
    doc_start = torch.where(torch.arange(T) < 22, 0, 22).expand(B, T)
    assert as_sets(select_topk(q, keys, w, topk)) == slow_choice(q, keys, w, topk)
    assert as_sets(select_topk(q, keys, w, topk, 0, doc_start)) == slow_choice(q, keys, w, topk, doc_start)


def test_every_key_is_read_when_there_are_no_more_than_k():
    q, keys, w = inputs()
    assert select_topk(q, keys, w, T) is None and select_topk(q, keys, w, T - 1) is not None


def test_choice_continues_after_cached_keys():
    """Queries that come later, with an offset, choose as they would have in one go."""
    q, keys, w = inputs()
    whole = as_sets(select_topk(q, keys, w, k))
    late = select_topk(q[:, 30:], keys, w[:, 30:], k, offset=30)
    assert as_sets(late) == whole[30:40] + whole[70:80]


# ------------------------------------------------------------------ the future stays unseen


def past_changes(chooser) -> bool:
    """Whether changing the last tokens' keys changes what earlier queries read: must be False for a causal chooser."""
    q, keys, w = inputs()
    q_nope, q_rope, latent, *up = attention_inputs(9)
    cut = 3  # fewer visible keys than k: where leaks hide
    before = sparse_attention(q_nope, q_rope, latent, *up, chooser(q, keys, w), 0.3)[0][:, :cut]
    keys, latent = keys.clone(), latent.clone()
    keys[:, cut:], latent[:, cut:] = 7 * keys[:, cut:].flip(1), -latent[:, cut:]
    after = sparse_attention(q_nope, q_rope, latent, *up, chooser(q, keys, w), 0.3)[0][:, :cut]
    return not torch.equal(before, after)


def test_choice_leaks_nothing_from_the_future():
    assert not past_changes(lambda q, keys, w: select_topk(q, keys, w, k))


def test_the_check_catches_the_large_negative_number_leak():
    """Negative control. Filling the future with -1e9 and taking the top k reads the future where k > visible."""

    def leaky(q, keys, w):
        scores = torch.stack([index_scores(q[b], keys[b], w[b]) for b in range(B)])
        future = torch.ones(T, T).triu(1).bool()
        return scores.masked_fill(future, -1e9).topk(k, -1).indices

    assert past_changes(leaky)


# ------------------------------------------------------------------ sparse attention = masked dense attention


@pytest.mark.parametrize("budget", [1, 300, 1 << 18])
@pytest.mark.parametrize("ragged", [False, True])
def test_sparse_attention_equals_masked_dense_in_values_and_gradients(monkeypatch, budget, ragged):
    monkeypatch.setattr(sparse, "GATHER_FLOATS", budget)
    g = torch.Generator().manual_seed(1)
    leaves = [t.requires_grad_() for t in attention_inputs()]
    topk_indices = (
        select_topk(*inputs(), k)
        if ragged
        else torch.stack([torch.randperm(T, generator=g)[:k] for _ in range(B * T)]).view(B, T, k)
    )
    got, p = sparse_attention(*leaves, topk_indices, 0.4, want_p=True)
    want = masked_reference(*leaves, topk_indices, 0.4)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.sum(-1), torch.ones(B, T))
    assert (p[topk_indices < 0] == 0).all() and not p.requires_grad
    d = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, leaves, d), torch.autograd.grad(want, leaves, d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_sparse_attention_gradient_in_double_precision():
    leaves = [t.requires_grad_() for t in attention_inputs(B=1, T=6, S=6, dtype=torch.float64)]
    topk_indices = torch.tensor([[[0, -1], [0, 1], [2, 0], [1, 3], [4, 0], [5, 2]]])
    assert torch.autograd.gradcheck(lambda *t: sparse_attention(*t, topk_indices, 0.5)[0], leaves)


# ------------------------------------------------------------------ the indexer's loss


@pytest.mark.parametrize("fast", ["0", "1"])
def test_topk_kl_is_the_formula_in_value_and_gradient(monkeypatch, fast):
    monkeypatch.setenv(VARIABLE, fast)
    leaves = [t.requires_grad_() for t in inputs()]
    topk_indices = select_topk(*inputs(), k)
    p = torch.rand(B, T, k, generator=torch.Generator().manual_seed(3)).masked_fill(topk_indices < 0, 0)
    p = p / p.sum(-1, keepdim=True)
    q, keys, w = leaves
    scores = torch.stack(
        [(w[b].unsqueeze(-1) * F.relu(torch.einsum("thd,sd->ths", q[b], keys[b]))).sum(1) for b in range(B)]
    )
    chosen = scores.gather(-1, topk_indices.clamp(min=0)).masked_fill(topk_indices < 0, -torch.inf).log_softmax(-1)
    want = (torch.xlogy(p, p) - torch.where(p > 0, p * chosen, 0)).sum() / (B * T)
    got = topk_kl(q, keys, w, topk_indices, p)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(2 * got, leaves), torch.autograd.grad(2 * want, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("budget", [1, 1000, 1 << 20])
def test_dense_kl_is_the_formula_in_value_and_gradient(monkeypatch, documents, budget):
    monkeypatch.setattr(indexer_loss, "SCORE_FLOATS", budget)
    leaves = [t.requires_grad_() for t in inputs()]
    q, keys, w = leaves
    g = torch.Generator().manual_seed(4)
    attn_q, attn_k = torch.randn(B, T, H, R, generator=g), torch.randn(B, T, H, R, generator=g)
    doc_start = torch.where(torch.arange(T) < 15, 0, 15).expand(B, T) if documents else None
    seen = torch.ones(T, T).tril().bool().expand(B, T, T)
    if documents:
        seen = seen & (torch.arange(T) >= doc_start.unsqueeze(-1))
    p = (
        (torch.einsum("bthd,bshd->bhts", attn_q, attn_k) * 0.3)
        .masked_fill(~seen[:, None], -torch.inf)
        .softmax(-1)
        .mean(1)
    )
    scores = (w.unsqueeze(-1) * F.relu(torch.einsum("bthd,bsd->bths", q, keys))).sum(2)
    log_q = scores.masked_fill(~seen, -torch.inf).log_softmax(-1)
    want = (torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0)).sum() / (B * T)
    got = dense_kl(q, keys, w, attn_q, attn_k, 0.3, doc_start)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(2 * got, leaves), torch.autograd.grad(2 * want, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_topk_kl_is_zero_where_the_indexer_already_agrees():
    q, keys, w = inputs()
    topk_indices = select_topk(q, keys, w, k)
    scores = torch.stack([index_scores(q[b], keys[b], w[b]) for b in range(B)])
    p = scores.gather(-1, topk_indices.clamp(min=0)).masked_fill(topk_indices < 0, -torch.inf).softmax(-1)
    assert topk_kl(q, keys, w, topk_indices, p).item() == pytest.approx(0, abs=1e-6)


def test_indexer_learns_a_target_from_the_kl():
    """A few steps on the KL bring the indexer to attend where a fixed attention looks."""
    torch.manual_seed(0)
    config = ModelConfig.named("nano")
    indexer = Indexer(config)
    x, q_latent = torch.randn(1, 64, config.hidden_size), torch.randn(1, 64, config.q_lora_rank)
    attn_q, attn_k = torch.randn(1, 64, 2, 8), torch.randn(1, 64, 2, 8)
    optimiser = torch.optim.AdamW(indexer.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = dense_kl(*indexer(x, q_latent, rope_table(64, config.qk_rope_head_dim, 1e4)), attn_q, attn_k, 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_compute_falls_with_k():
    """Counted, not timed: FLOPs of the attention over the choice are proportional to k and do not depend on S."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(S, topk):
        topk_indices = torch.randint(0, S, (1, 64, topk))
        with FlopCounterMode(display=False) as counter:
            sparse_attention(*attention_inputs(B=1, T=64, S=S), topk_indices, 1.0)
        return counter.get_total_flops()

    fixed = 2 * flops(1000, 16) - flops(1000, 32)  # absorbing the query and expanding the values
    assert fixed == 64 * 2 * H * L * (NOPE + DV)
    assert flops(1000, 16) - fixed == 64 * 2 * H * 16 * (R + L) == flops(4000, 16) - fixed
