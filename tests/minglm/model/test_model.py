"""The whole model: which loss moves which parameter, documents, shared indexers, starting weights, refusals."""

import pytest
import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.model.attention import ForwardContext
from minglm.model.indexer import select_topk
from minglm.model.model import Model
from minglm.model.moe import Router

V = 512


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return Model(ModelConfig.named("nano", **{"initializer_range": 0.1, **changes}))


def batch(B=2, T=50, seed=1):
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(0, V, (B, T + 1), generator=g)
    return row[:, :-1], row[:, 1:].contiguous()


def with_gradient(model):
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def names(model, indexer):
    return {n for n, _ in model.named_parameters() if (".indexer." in n) == indexer}


# ------------------------------------------------------------------ gradients go where they should


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_lm_loss_gives_the_indexer_no_gradient(mode):
    model, (x, y) = make(), batch()
    out = model(x, y, mode=mode)
    (out.lm_loss + out.mtp_loss + out.balance_loss).backward()
    assert with_gradient(model) == names(model, indexer=False)


@pytest.mark.parametrize("mode", ["warmup", "sparse"])
def test_kl_gives_the_model_no_gradient(mode):
    model, (x, y) = make(), batch()
    model(x, y, mode=mode).indexer_kl.backward()
    assert with_gradient(model) == names(model, indexer=True)
    assert {id(p) for p in model.indexer_parameters()} == {id(p) for p in model.parameters() if p.grad is not None}


def test_in_warmup_nothing_but_the_kl_has_a_gradient():
    model, (x, y) = make(), batch()
    out = model(x, y, mode="warmup")
    assert out.indexer_kl.requires_grad and not out.lm_loss.requires_grad and not out.mtp_loss.requires_grad
    dense = model(x, y, mode="dense")
    torch.testing.assert_close(out.lm_loss, dense.lm_loss.detach())


def test_warmup_under_no_grad_has_no_gradient():
    model, (x, y) = make(), batch()
    with torch.no_grad():
        assert not model(x, y, mode="warmup").indexer_kl.requires_grad


def attention_held(model, x):
    """The share of the first layer's dense attention on the 16 keys its indexer chooses, over the share of the best
    16."""
    mla, T = model.layers[0].self_attn, x.shape[1]
    h = model.layers[0].input_layernorm(model.embed_tokens(x))
    ctx = ForwardContext("dense", model.rope_slice(0, T, x.device))
    q, latent = mla.project(h, ctx)
    scores = torch.einsum("bthr,bsr->bhts", mla.absorb(q), latent) * mla.scale
    p = scores.masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf).softmax(-1).mean(1)
    topk_indices = select_topk(*mla.indexer(h, q.compressed, ctx.rope), mla.topk)
    held = p.gather(-1, topk_indices.clamp(min=0)).masked_fill(topk_indices < 0, 0)
    return (held[:, 40:].sum() / p.topk(mla.topk).values[:, 40:].sum()).item()


def test_warmup_brings_the_choice_to_where_attention_looks():
    model, (x, y) = make(initializer_range=0.2, index_n_heads=8, index_head_dim=32), batch(4, 120)
    optimiser = torch.optim.AdamW(model.indexer_parameters(), lr=1e-2)
    first, before = model(x, y, mode="warmup", mtp=False).indexer_kl.item(), attention_held(model, x)
    for _ in range(80):
        loss = model(x, y, mode="warmup", mtp=False).indexer_kl
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.6 * first and attention_held(model, x) > before + 0.2


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_directional_derivative_equals_finite_difference(mode):
    """The hand-written backward passes together, through the whole model, in double precision."""
    model, (x, y) = make().double(), batch(1, 40)

    def loss():
        o = model(x, y, mode=mode)
        return o.lm_loss + o.mtp_loss

    parameters = [p for n, p in model.named_parameters() if ".indexer." not in n]
    grads = torch.autograd.grad(loss(), parameters)
    g = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=g, dtype=torch.float64) * p.detach().abs().mean() for p in parameters]
    want = sum((a * b).sum() for a, b in zip(grads, ways, strict=True)).item()
    values, step = [], 1e-5
    with torch.no_grad():
        for sign in (1, -1):
            for p, w in zip(parameters, ways, strict=True):
                p += sign * step * w
            values.append(loss().item())
            for p, w in zip(parameters, ways, strict=True):
                p -= sign * step * w
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(want, rel=2e-3)


# ------------------------------------------------------------------ what a forward returns


def test_losses_come_with_targets_and_logits_without():
    model, (x, y) = make(), batch()
    out = model(x, y)
    assert out.logits is None and out.lm_loss is not None and out.expert_counts.dtype == torch.int64
    want = F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
    torch.testing.assert_close(out.lm_loss, want, rtol=1e-4, atol=1e-5)
    assert model(x).lm_loss is None and model(x, last_only=True).logits.shape == (2, 1, V)
    assert model(x, y, indexer_loss=False).indexer_kl is None and model(x, y, mtp=False).mtp_loss is None
    torch.testing.assert_close(model(x, last_only=True).logits, model(x).logits[:, -1:], rtol=1e-4, atol=1e-5)


def test_no_token_is_dropped():
    model, (x, y) = make(), batch()
    counts = model(x, y, mtp=False).expert_counts
    assert (counts.sum(-1) == x.numel() * model.config.num_experts_per_tok).all()


def test_k_of_at_least_the_length_equals_dense():
    roomy, x = make(index_topk=50), batch()[0]
    torch.testing.assert_close(roomy(x, mode="sparse").logits, roomy(x, mode="dense").logits, rtol=1e-4, atol=1e-5)
    tight = make(index_topk=16)
    assert not torch.allclose(tight(x, mode="sparse").logits, tight(x, mode="dense").logits, atol=1e-3)


@pytest.mark.parametrize("mode", ["dense", "warmup", "sparse"])
def test_packed_documents_give_the_losses_of_separate_ones(mode):
    """Two documents in one row, targets ignored at the seam: as if they had been two rows."""
    model, (x, y) = make(mtp_depth=2), batch(1, 60)
    y = y.clone()
    y[0, 24] = y[0, -1] = -100
    doc_start = torch.where(torch.arange(60) < 25, 0, 25).unsqueeze(0)
    packed = model(x, y, mode=mode, doc_start=doc_start)
    apart = [model(x[:, s], y[:, s], mode=mode) for s in (slice(0, 25), slice(25, 60))]

    def weigh(name, counts):
        return sum(getattr(o, name) * n for o, n in zip(apart, counts, strict=True)) / sum(counts)

    torch.testing.assert_close(packed.lm_loss, weigh("lm_loss", (24, 34)), rtol=1e-4, atol=1e-5)
    if mode == "dense":
        logits = model(x, mode=mode, doc_start=doc_start).logits
        torch.testing.assert_close(logits[:, 25:], model(x[:, 25:], mode=mode).logits, rtol=1e-4, atol=1e-4)


def test_shared_layers_reuse_the_choice_of_the_full_one():
    model = make(indexer_types=("full", "shared", "shared"), num_nextn_predict_layers=0)
    x, y = batch()
    assert model.layers[1].self_attn.indexer is None and len(model.indexer_parameters()) == 5
    out = model(x, y)
    (out.lm_loss + out.indexer_kl).backward()
    assert with_gradient(model) == {n for n, _ in model.named_parameters()}
    # Turning the one indexer around changes what the layers after it read.
    logits = model(x).logits
    with torch.no_grad():
        model.layers[0].self_attn.indexer.weights_proj.weight.neg_()
    assert not torch.allclose(model(x).logits, logits, atol=1e-3)


def test_same_seed_same_losses_bit_for_bit():
    runs = []
    for _ in range(2):
        model, (x, y) = make(), batch()
        out = model(x, y)
        (out.lm_loss + out.indexer_kl).backward()
        runs.append((out.lm_loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert runs[0][0] == runs[1][0] and all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("mode", ["dense", "warmup", "sparse"])
def test_half_precision_runs_close_to_full(mode):
    """bf16 weights: losses near those of fp32, gradients finite, and decoding works."""
    from minglm.inference.generate import generate

    model, (x, y) = make(), batch()
    full = model(x, y, mode=mode)
    half = model.bfloat16()(x, y, mode=mode)
    assert half.lm_loss.item() == pytest.approx(full.lm_loss.item(), rel=0.02)
    (
        half.indexer_kl
        if mode == "warmup"
        else half.lm_loss + half.mtp_loss + (half.indexer_kl if mode == "sparse" else 0)
    ).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    assert len(generate(model.eval(), [[1] * 30, [2]], 4, mode="dense" if mode == "dense" else "sparse").tokens[0]) == 4


def test_it_learns():
    """A fixed batch is learnt by heart in all modes that train the model."""
    for mode in ("dense", "sparse"):
        model, (x, y) = make(initializer_range=0.02), batch(4, 60)
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            out = model(x, y, mode=mode, mtp=False)
            optimiser.zero_grad()
            (out.lm_loss + (out.indexer_kl if mode == "sparse" else 0)).backward()
            optimiser.step()
        assert out.lm_loss.item() < 1.5, mode


# ------------------------------------------------------------------ starting weights, router bias, refusals


def test_weights_start_as_the_table_says():
    model = make(initializer_range=0.05)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            assert p.std().item() == pytest.approx(0.05, rel=0.2), name
            assert abs(p.mean().item()) < 0.01, name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
    assert all((b == 0).all() for b in model.buffers())


def test_bias_update_moves_each_router_by_its_own_row():
    model, (x, y) = make(), batch()
    counts = model(x, y).expert_counts
    model.update_router_bias(counts, 0.25)
    biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
    assert len(biases) == counts.shape[0]
    for bias, row in zip(biases, counts, strict=True):
        assert torch.equal(bias, 0.25 * torch.sign(row.float().mean() - row))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: m(x, mode="sparce"), "did you mean 'sparse'"),
        (lambda m, x: m(torch.full_like(x, V)), "outside the vocabulary"),
        (lambda m, x: m(-x - 1), "outside the vocabulary"),
        (lambda m, x: m(x, x[:, 1:]), "targets of shape"),
        (lambda m, x: m(x, doc_start=x[0]), "doc_start of shape"),
        (lambda m, x: m(x.repeat(1, 11)), "max_position_embeddings=512"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says):
    model, (x, _) = make(), batch()
    with pytest.raises(InputError) as err:
        call(model, x)
    assert says in str(err.value) and "\n" not in str(err.value)


def test_a_pass_without_the_mtp_module_moves_the_other_routers_alone():
    model = make()
    tokens, targets = batch()
    counts = model(tokens, targets, mtp=False).expert_counts
    routers = [m for m in model.modules() if isinstance(m, Router)]
    assert len(counts) == len(routers) - 1
    before = [r.e_score_correction_bias.clone() for r in routers]
    model.update_router_bias(counts, 0.01)
    moved = [not torch.equal(r.e_score_correction_bias, b) for r, b in zip(routers, before, strict=True)]
    assert moved == [True] * len(counts) + [False]
