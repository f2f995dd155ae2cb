"""The compiled loss of the indexer against torch's own differentiation in double precision."""

import pytest
import torch

from minglm.model import compiled_kl
from minglm.model.indexer_loss import topk_kl
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


def inputs(B, T, Hi, Di, k, S):
    g = torch.Generator().manual_seed(Hi * Di)
    leaves = [torch.randn(s, generator=g) for s in ((B, T, Hi, Di), (B, S, Di), (B, T, Hi))]
    chosen = torch.rand(B, T, S, generator=g).topk(k).indices
    chosen[:, ::3, k // 2 :] = -1
    chosen[:, 1::3, : k // 2] = -1  # empty places may stand anywhere
    p = torch.rand(B, T, k, generator=g).masked_fill(chosen < 0, 0)
    p[:, 2::3, 0] = 0  # and a key may get nothing
    return leaves, chosen, p / p.sum(-1, keepdim=True), torch.rand(B, T, generator=g)


def formula(leaves, chosen, p, weights):
    q, keys, w = leaves
    scores = torch.einsum("bthd,bsd->bths", q, keys).relu().mul(w.unsqueeze(-1)).sum(2)
    rows = scores.gather(-1, chosen.clamp(min=0)).masked_fill(chosen < 0, -torch.inf).log_softmax(-1)
    return ((torch.xlogy(p, p) - torch.where(p > 0, p * rows, 0)).sum(-1) * weights).sum()


@pytest.mark.parametrize("case", [(2, 130, 4, 32, 33, 140), (1, 3, 1, 1, 2, 4), (3, 65, 5, 13, 7, 80)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_value_and_gradients_are_those_of_the_formula(case, threads):
    leaves, chosen, p, weights = inputs(*case)
    doubled = [t.double().requires_grad_() for t in leaves]
    want = formula(doubled, chosen, p.double(), weights.double())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        total, *grads = compiled_kl.kl_and_grads(*leaves, chosen, p, weights, True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(total, want.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(grads, torch.autograd.grad(want, doubled), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


def test_the_loss_takes_it_and_equals_torch(monkeypatch):
    leaves, chosen, p, weights = inputs(2, 70, 4, 16, 9, 80)
    found = {}
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        assert compiled_kl.fits(*leaves, p, weights) == (value == "1")
        mine = [t.clone().requires_grad_() for t in leaves]
        total = topk_kl(*mine, chosen, p, weights)
        found[value] = [total, *torch.autograd.grad(3 * total, mine)]
        with torch.no_grad():
            assert torch.equal(topk_kl(*leaves, chosen, p, weights), total)
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_is_not_hidden(where):
    leaves, chosen, p, weights = inputs(1, 20, 2, 8, 5, 20)
    leaves[where].view(-1)[0] = torch.nan
    chosen[0, 0] = torch.arange(5)
    assert compiled_kl.kl_and_grads(*leaves, chosen, p, weights, True)[0].isnan()
