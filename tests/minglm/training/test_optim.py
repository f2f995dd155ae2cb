"""Muon against the float64 polar factor, batched against one by one, per head against split by hand; AdamW against
torch."""

import math
from itertools import pairwise

import pytest
import torch

from minglm.config import ModelConfig
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE
from minglm.training.optim import (
    NS_EXACT,
    MuonAdamW,
    cosine_with_warmup,
    orthogonalize,
    split_rule,
    uses_muon,
)

CONFIG = ModelConfig.named("nano")
SHAPES = [(16, 16), (48, 16), (16, 48), (64, 100), (5, 3, 24, 40)]


def polar(matrices: torch.Tensor) -> torch.Tensor:
    """U·Vᵀ from a float64 singular value decomposition: the oracle."""
    u, _, vt = torch.linalg.svd(matrices.double(), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", SHAPES)
def test_five_steps_bring_singular_values_near_one_and_keep_the_singular_vectors(shape):
    torch.manual_seed(0)
    m = torch.randn(shape)
    out = orthogonalize(m).double()
    # in the basis of the input's singular vectors the result is diagonal with entries in the known band
    u, s, vt = torch.linalg.svd(m.double(), full_matrices=False)
    core = u.mT @ out @ vt.mT
    diagonal = core.diagonal(dim1=-2, dim2=-1)
    assert (core - torch.diag_embed(diagonal)).abs().max() < 1e-4
    well = s / s.norm(dim=-1, keepdim=True) > 0.02  # five steps lift what is not nearly zero to begin with
    assert diagonal[well].min() > 0.6 and diagonal.max() < 1.3
    assert (out - polar(m)).norm() / polar(m).norm() < 0.35


@pytest.mark.parametrize("shape", SHAPES)
def test_converged_variant_is_the_polar_factor(shape):
    torch.manual_seed(1)
    m = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(orthogonalize(m, steps=40, coefficients=NS_EXACT), polar(m), atol=1e-9)


def test_batched_equals_one_by_one_and_zero_stays_zero():
    torch.manual_seed(2)
    m = torch.randn(7, 24, 40)
    assert torch.allclose(orthogonalize(m), torch.stack([orthogonalize(x) for x in m]), atol=1e-5)
    assert not orthogonalize(torch.zeros(3, 4)).any()


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (70, 64, 96), (70, 96, 64), (9, 16, 640), (3, 5, 7), (2, 19, 33), (1, 320, 320)]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_both_ways_of_the_iteration_are_the_formula(shape, threads, monkeypatch):
    torch.manual_seed(5)
    m = torch.randn(shape)
    before, right, results = m.clone(), orthogonalize(m.double()), []
    torch.set_num_threads(threads)
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        results.append(orthogonalize(m))
        assert torch.allclose(results[-1].double(), right, atol=1e-5) and torch.equal(m, before)
    if compiled.compiler() and shape != (1, 320, 320):  # which is too large for a core's cache, so one way serves both
        assert not torch.equal(*results)
    assert orthogonalize(m.transpose(1, 2)).shape == m.transpose(1, 2).shape


def test_scale_of_the_gradient_does_not_matter():
    torch.manual_seed(3)
    m = torch.randn(20, 30)
    assert torch.allclose(orthogonalize(m), orthogonalize(m * 1e-3), atol=1e-3)


def _one_step(name: str, shape: tuple[int, ...], **options):
    torch.manual_seed(4)
    p = torch.nn.Parameter(torch.randn(shape) * 0.02)
    before, p.grad = p.detach().clone(), torch.randn(shape)
    optimizer = MuonAdamW([(name, p)], CONFIG, lr=0.01, weight_decay=0.0, **options)
    optimizer.step()
    return p.detach() - before, p.grad


@pytest.mark.parametrize(
    "name, heights",
    [
        ("layers.0.self_attn.q_b_proj.weight", [CONFIG.qk_head_dim] * CONFIG.num_attention_heads),
        (
            "layers.0.self_attn.kv_b_proj.weight",
            [CONFIG.qk_nope_head_dim, CONFIG.v_head_dim] * CONFIG.num_attention_heads,
        ),
    ],
)
def test_up_projections_are_orthogonalised_per_head(name, heights):
    shape = (sum(heights), 32)
    moved, grad = _one_step(name, shape)
    # Nesterov on the first step only rescales the gradient, which orthogonalisation ignores
    expected = torch.cat(
        [-0.01 * 0.2 * math.sqrt(max(part.shape)) * orthogonalize(part) for part in grad.split(heights)]
    )
    assert torch.allclose(moved, expected, atol=1e-5)
    whole = -0.01 * 0.2 * math.sqrt(max(shape)) * orthogonalize(grad)
    assert (moved - whole).norm() > 0.1 * whole.norm(), "negative control: the split must matter"


def test_each_expert_is_a_matrix_of_its_own_and_gate_and_up_are_apart():
    moved, grad = _one_step("layers.1.mlp.experts.gate_up_proj", (8, 64, 32))
    for e in range(8):
        for half in (slice(0, 32), slice(32, 64)):
            assert torch.allclose(moved[e, half], -0.01 * 0.2 * math.sqrt(32) * orthogonalize(grad[e, half]), atol=1e-5)


def test_update_has_the_size_of_adamw_whatever_the_shape():
    for shape in ((64, 64), (256, 64), (64, 256)):
        moved, _ = _one_step("layers.0.self_attn.o_proj.weight", shape)
        rms = moved.pow(2).mean().sqrt() / 0.01
        assert 0.12 < rms < 0.25, "0.2·sqrt(max(m, n)) aims at a root mean square of 0.2"


def test_threads_share_the_matrices_out_and_each_is_moved_once():
    """Three steps on two threads, against one thread: momentum, decay and update of every matrix."""
    rows = CONFIG.qk_head_dim * CONFIG.num_attention_heads
    shapes = {"a": (8, 24, 16), "b": (40, 16), "c": (16, 16), "d": (24, 16), "q_b_proj": (rows, 16)}
    moved = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            named = {f"layers.0.{n}.weight": torch.nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
            optimizer = MuonAdamW(named.items(), CONFIG, lr=0.01)
            for _ in range(3):
                for p in named.values():
                    p.grad = torch.randn(p.shape)
                optimizer.step()
            moved[threads] = [p.detach().clone() for p in (*named.values(), *optimizer.momenta.values())]
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(moved[1], moved[2], strict=True))


def test_which_parameters_go_where():
    torch_model = pytest.importorskip("minglm.model.model").Model(CONFIG)
    optimizer = MuonAdamW(torch_model.named_parameters(), CONFIG)
    assert all(p.ndim >= 2 for p in optimizer.muon.values())
    adam = {n for n, p in optimizer.adam.items() if p.ndim >= 2}
    assert adam and all(n.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight")) for n in adam), adam
    assert sum("q_b_proj" in n and len(optimizer.splits[n]) == CONFIG.num_attention_heads for n in optimizer.muon) > 0
    assert all(
        split_rule(n, tuple(p.shape), CONFIG) is None or split_rule(n, tuple(p.shape), CONFIG)[-1][1] == p.shape[-2]
        for n, p in optimizer.muon.items()
    )
    assert not uses_muon("layers.0.input_layernorm.weight", torch.zeros(4))


def test_adamw_equals_torch():
    torch.manual_seed(5)
    start = torch.randn(12, 6)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    a = MuonAdamW([("embed_tokens.weight", ours)], CONFIG, lr=0.01, weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(12, 6)
        theirs.grad = ours.grad.clone()
        a.step(), b.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_state_round_trip_continues_identically():
    torch.manual_seed(6)

    def fresh():
        torch.manual_seed(7)
        named = [
            ("layers.0.self_attn.o_proj.weight", torch.nn.Parameter(torch.randn(8, 8))),
            ("norm.weight", torch.nn.Parameter(torch.ones(8))),
        ]
        return named, MuonAdamW(named, CONFIG, lr=0.01)

    grads = [[torch.randn(8, 8), torch.randn(8)] for _ in range(6)]
    named, straight = fresh()
    for pair in grads:
        for (_, p), g in zip(named, pair, strict=True):
            p.grad = g.clone()
        straight.step()
    half, first = fresh()
    for pair in grads[:3]:
        for (_, p), g in zip(half, pair, strict=True):
            p.grad = g.clone()
        first.step()
    state = {k: v.clone() for k, v in first.state_dict().items()}
    second = MuonAdamW(half, CONFIG, lr=0.01)
    second.load_state_dict(state)
    for pair in grads[3:]:
        for (_, p), g in zip(half, pair, strict=True):
            p.grad = g.clone()
        second.step()
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(named, half, strict=True))
    with pytest.raises(ValueError, match="does not fit"):
        second.load_state_dict({"steps": torch.tensor([1])})


def test_clipping_and_missing_gradients():
    p, q = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    optimizer = MuonAdamW([("a.norm.weight", p), ("b.norm.weight", q)], CONFIG, lr=0.1)
    assert float(optimizer.clip_grad_norm(1.0)) == 0.0
    p.grad = torch.full((4,), 10.0)
    assert float(optimizer.clip_grad_norm(1.0)) == pytest.approx(20.0)
    assert float(p.grad.norm()) == pytest.approx(1.0, abs=1e-4)
    optimizer.step()
    assert torch.equal(q.detach(), torch.ones(4)) and not torch.equal(p.detach(), torch.ones(4))


def test_schedule():
    values = [cosine_with_warmup(s, 100, 10, 0.1) for s in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == values[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(values[10:])) and 0.1 <= values[-1] < 0.11
    assert {cosine_with_warmup(s, 50, 0, 1.0) for s in range(50)} == {1.0}


def reference_muon(p, grads, scales, lr, decay, momentum=0.95):
    """Muon as K. Jordan writes it, in float64: momentum, Nesterov's look ahead, five steps, decoupled decay."""
    p, buffer = p.double().clone(), torch.zeros_like(p, dtype=torch.float64)
    for g, scale in zip((g.double() for g in grads), scales, strict=True):
        buffer = momentum * buffer + (1 - momentum) * g
        x = momentum * buffer + (1 - momentum) * g
        x = x / (x.pow(2).sum().sqrt() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        p = p * (1 - lr * scale * decay) - lr * scale * 0.2 * math.sqrt(max(p.shape)) * x
    return p


def test_muon_over_several_steps_is_the_published_rule():
    """Unlike one step, several tell Nesterov from plain momentum, and a schedule tells where the rate is used."""
    torch.manual_seed(8)
    start, scales = torch.randn(6, 10, dtype=torch.float64), (0.25, 1.0, 0.5, 0.75)
    grads = [torch.randn(6, 10, dtype=torch.float64) for _ in scales]
    p = torch.nn.Parameter(start.clone())
    optimizer = MuonAdamW([("layers.0.self_attn.o_proj.weight", p)], CONFIG, lr=0.05, adam_lr=9.0, weight_decay=0.3)
    for g, scale in zip(grads, scales, strict=True):
        p.grad = g.clone()
        optimizer.step(scale)
    torch.testing.assert_close(p.detach(), reference_muon(start, grads, scales, 0.05, 0.3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_adamw_decays_matrices_and_embeddings_and_no_vector(size):
    """Gradients as small as eps show where eps stands."""
    torch.manual_seed(9)
    names = {"embed_tokens.weight": (5, 4), "layers.0.input_layernorm.weight": (4,), "indexer.k_norm.bias": (4,)}
    start = {n: torch.randn(s, dtype=torch.float64) for n, s in names.items()}
    ours, theirs = ({n: torch.nn.Parameter(t.clone()) for n, t in start.items()} for _ in range(2))
    a = MuonAdamW(ours.items(), CONFIG, lr=7.0, adam_lr=0.02, weight_decay=0.4)
    assert not a.muon
    groups = [{"params": [p], "weight_decay": 0.4 * (p.ndim > 1)} for p in theirs.values()]
    b = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), eps=1e-8)
    for scale in (0.5, 1.0, 0.25, 0.75):
        for n in names:
            ours[n].grad = size * torch.randn(names[n], dtype=torch.float64)
            theirs[n].grad = ours[n].grad.clone()
        for group in b.param_groups:
            group["lr"] = 0.02 * scale
        a.step(scale), b.step()
    for n in names:
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-12, atol=1e-12, msg=n)


def test_clipping_is_by_the_joint_norm_and_leaves_small_gradients_alone():
    p, q = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(2, 1))
    optimizer = MuonAdamW([("a.norm.weight", p), ("layers.0.self_attn.o_proj.weight", q)], CONFIG)
    for size, limit in ((1.0, 2.5), (1e-3, 1.0), (1.0, 13.01)):  # 3, 4 and 12 by hand: norm 13
        p.grad, q.grad = torch.tensor([3.0 * size]), torch.tensor([[4.0 * size], [12.0 * size]])
        before = [p.grad.clone(), q.grad.clone()]
        assert float(optimizer.clip_grad_norm(limit)) == pytest.approx(13 * size)
        after = limit / 13 if 13 * size > limit else 1.0
        if after == 1.0:
            assert torch.equal(p.grad, before[0]) and torch.equal(q.grad, before[1])
        assert p.grad.tolist() == pytest.approx([3 * size * after], rel=1e-5)
        assert q.grad.flatten().tolist() == pytest.approx([4 * size * after, 12 * size * after], rel=1e-5)


def test_schedule_by_hand():
    """Warm-up of 4 to the full rate, then a half cosine over the 8 left to a fifth: its middle is 0.6."""
    got = [cosine_with_warmup(s, 12, 4, 0.2) for s in (0, 1, 3, 4, 8, 12, 30)]
    assert got == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.6, 0.2, 0.2])
    assert cosine_with_warmup(6, 12, 4, 0.2) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)


def test_without_muon_matrices_keep_their_own_rate():
    torch.manual_seed(10)
    names = {"embed_tokens.weight": (5, 4), "layers.0.mlp.down_proj.weight": (4, 6), "norm.weight": (4,)}
    start = {n: torch.randn(s, dtype=torch.float64) for n, s in names.items()}
    ours, theirs = ({n: torch.nn.Parameter(t.clone()) for n, t in start.items()} for _ in range(2))
    a = MuonAdamW(ours.items(), CONFIG, lr=0.01, adam_lr=0.04, weight_decay=0.0, muon=False)
    assert not a.muon
    groups = [{"params": [p], "lr": 0.01 if "mlp" in n else 0.04} for n, p in theirs.items()]
    b = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(3):
        for n in names:
            ours[n].grad = torch.randn(names[n], dtype=torch.float64)
            theirs[n].grad = ours[n].grad.clone()
        a.step(), b.step()
    for n in names:
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-12, atol=1e-12, msg=n)
