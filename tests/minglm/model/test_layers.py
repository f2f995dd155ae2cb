"""Norm, rotary position and the chunked head, each against a plain formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from minglm.data.shards import IGNORE
from minglm.model import layers
from minglm.model.layers import RMSNorm, SwiGLU, apply_rope, head_loss, rope_table


def test_rms_norm_is_the_formula_and_differentiates():
    x = torch.randn(3, 5, 16, dtype=torch.float64).float().requires_grad_()
    norm = RMSNorm(16, 1e-5)
    norm.weight.data.normal_(1, 0.2)
    want = x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
    g = torch.randn_like(x)
    got = norm(x)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (x, norm.weight), g), torch.autograd.grad(want, (x, norm.weight), g), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_swiglu_is_the_formula():
    f, x = SwiGLU(8, 12), torch.randn(2, 3, 8, requires_grad=True)
    want = (F.silu(x @ f.gate_proj.weight.T) * (x @ f.up_proj.weight.T)) @ f.down_proj.weight.T
    torch.testing.assert_close(f(x), want)
    g = torch.randn_like(want)
    inputs = (x, *f.parameters())
    for a, b in zip(torch.autograd.grad(f(x), inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rope_turns_pairs_and_scores_depend_on_distance_only():
    table = rope_table(64, 8, 10_000.0)
    x = torch.randn(1, 64, 8)
    turned = apply_rope(x, table)
    angle = 5 / 10_000.0 ** (2 / 8)  # position 5, second pair
    a, b = x[0, 5, 2].item(), x[0, 5, 3].item()
    assert turned[0, 5, 2].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
    assert turned[0, 5, 3].item() == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-5)
    q, k = torch.randn(8), torch.randn(8)

    def at(v, p):
        return apply_rope(v.view(1, 1, 8), table[p : p + 1])[0, 0]

    assert (at(q, 30) @ at(k, 21)).item() == pytest.approx((at(q, 12) @ at(k, 3)).item(), abs=1e-4)
    with_heads = apply_rope(x.view(1, 64, 1, 8).expand(1, 64, 3, 8), table)
    torch.testing.assert_close(with_heads[:, :, 2], turned)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1024])
def test_head_loss_equals_cross_entropy(monkeypatch, chunk):
    monkeypatch.setattr(layers, "HEAD_CHUNK", chunk)
    hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (2, 5))
    targets[0, 1] = targets[1, 4] = IGNORE
    want = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    got = head_loss(hidden, weight, targets)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(3 * got, (hidden, weight)), torch.autograd.grad(3 * want, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_head_loss_with_nothing_to_predict_is_zero():
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    loss = head_loss(hidden, torch.randn(11, 8), torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.abs().max() == 0


@pytest.mark.parametrize("odd", [1, 15, 17])
def test_rope_of_a_single_token_that_begins_at_an_odd_place(odd):
    """One row of a slice counts as contiguous, wherever it begins."""
    table, x = rope_table(3, 8, 1e4), torch.randn(1, 1, odd + 8)
    part = x[..., odd:]
    assert torch.equal(apply_rope(part, table[2:]), apply_rope(part.clone(), table[2:]))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm_without_gradients_is_the_formula_too(eps):
    """Decoding takes another path than training."""
    norm, x = RMSNorm(8, eps), torch.randn(3, 8)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    want = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight
    with torch.no_grad():
        torch.testing.assert_close(norm(x), want)
    torch.testing.assert_close(norm(x), want)
