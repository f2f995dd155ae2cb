"""The experts' activation in compiled code against torch's own differentiation in double precision."""

import pytest
import torch
import torch.nn.functional as F

from minglm.model import compiled_swiglu, moe
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


@pytest.mark.parametrize("shape", [(1000, 96), (3, 5), (0, 8), (1, 1)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_value_and_gradients_are_those_of_the_formula(shape, threads, monkeypatch):
    n, width = shape
    g = torch.Generator().manual_seed(n)
    inner, gate = 4 * torch.randn(n, 2 * width, generator=g), torch.rand(n, 1, generator=g)
    d_hidden = torch.randn(n, width, generator=g)
    doubled = [t.double().requires_grad_() for t in (inner, gate)]
    want = F.silu(doubled[0][:, :width]) * doubled[0][:, width:] * doubled[1]
    d_inner, d_gate = torch.autograd.grad(want, doubled, d_hidden.double())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [compiled_swiglu.gated(inner, gate), *compiled_swiglu.gated_backward(inner, gate, d_hidden)]
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv(VARIABLE, "0")
    readable = [moe.gated(inner, gate), *moe.gated_backward(inner, gate, d_hidden)]
    for mine, plain, right in zip(found, readable, (want, want, d_inner, d_gate), strict=True):
        torch.testing.assert_close(mine, right.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain, right.float(), rtol=1e-4, atol=1e-4)


def test_very_large_and_lost_numbers():
    inner = torch.tensor([[200.0, 1.0], [-200.0, 1.0], [torch.nan, 1.0], [1.0, torch.inf]])
    found = compiled_swiglu.gated(inner, torch.ones(4, 1)).flatten()
    assert found[0] == 200 and found[1].abs() < 1e-30 and found[2].isnan() and found[3] == torch.inf


def test_experts_take_it_and_equal_torch(monkeypatch):
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g) for s in ((50, 12), (4, 10, 12), (4, 12, 5), (50, 2))]
    chosen = torch.rand(50, 3, generator=g).topk(2).indices  # nobody chose the last expert
    found = {}
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        assert compiled_swiglu.fits(*leaves) == (value == "1")
        mine = [t.clone().requires_grad_() for t in leaves]
        out, counts = moe.grouped_swiglu(*mine, chosen)
        found[value] = [out, *torch.autograd.grad(out.square().sum(), mine)]
        assert counts[3] == 0 and not found[value][2][3].any()
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
