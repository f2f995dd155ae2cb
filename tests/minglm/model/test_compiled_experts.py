"""Experts in compiled code against torch's own differentiation in double precision."""

import contextlib
import ctypes

import pytest
import torch
import torch.nn.functional as F

from minglm.model import compiled_experts, moe, native
from minglm.quant.fp8 import Fp8
from minglm.quant.int4 import Int4
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE


def activation(inner, gate):
    """What the code makes of what lies between an expert's two products."""
    hidden = inner.new_empty(len(inner), inner.shape[1] // 2)
    code, sizes = native.code(compiled_experts.SOURCE), map(ctypes.c_long, hidden.shape)
    code.swiglu(native.address(inner), native.address(gate), *sizes, native.address(hidden))
    return hidden


@contextlib.contextmanager
def threads_of_torch(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


@pytest.mark.parametrize("shape", [(1000, 96), (3, 5), (0, 8), (1, 1)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_activation_is_the_formula(shape, threads):
    n, width = shape
    g = torch.Generator().manual_seed(n)
    inner, gate = 4 * torch.randn(n, 2 * width, generator=g), torch.rand(n, 1, generator=g)
    doubled = [t.double() for t in (inner, gate)]
    want = F.silu(doubled[0][:, :width]) * doubled[0][:, width:] * doubled[1]
    with threads_of_torch(threads):
        found = activation(inner, gate)
    torch.testing.assert_close(found, want.float(), rtol=1e-4, atol=1e-4)


def test_very_large_and_lost_numbers():
    inner = torch.tensor([[200.0, 1.0], [-200.0, 1.0], [torch.nan, 1.0], [1.0, torch.inf]])
    found = activation(inner, torch.ones(4, 1)).flatten()
    assert found[0] == 200 and found[1].abs() < 1e-30 and found[2].isnan() and found[3] == torch.inf


def _formula(x, gate_up, down, gates, chosen):
    """Each token through each of its experts, one after the other."""
    out = []
    for n in range(len(x)):
        total = torch.zeros_like(x[0])
        for k, e in enumerate(chosen[n].tolist()):
            g, u = (gate_up[e] @ x[n]).chunk(2)
            total = total + gates[n, k] * (down[e] @ (F.silu(g) * u))
        out.append(total)
    return torch.stack(out)


# tokens, hidden, experts, expert width, choices: odd numbers everywhere; whole blocks; more rows than one goes through
@pytest.mark.parametrize(
    "sizes", [(50, 13, 4, 7, 2), (12, 32, 3, 16, 1), (230, 24, 2, 40, 1), (1, 1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("threads", [1, 3])
def test_values_and_gradients_are_those_of_the_formula(sizes, threads, monkeypatch):
    N, C, E, width, K = sizes
    g = torch.Generator().manual_seed(N)
    shapes = ((N, C), (E, 2 * width, C), (E, C, width), (N, K))
    leaves = [torch.randn(s, generator=g) for s in shapes]
    # where there are more experts than one chooses, nobody chose the last
    chosen = torch.rand(N, max(K, E - 1), generator=g).topk(K).indices
    doubled = [t.double().requires_grad_() for t in leaves]
    want = _formula(*doubled, chosen)
    right = [want.detach(), *torch.autograd.grad(want.square().sum(), doubled)]
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        assert compiled_experts.fits(*leaves) == (value == "1")
        mine = [t.clone().requires_grad_() for t in leaves]
        with threads_of_torch(threads):
            out, counts = moe.grouped_swiglu(*mine, chosen)
            found = [out, *torch.autograd.grad(out.square().sum(), mine)]
        assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=E).tolist()
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_bits_do_not_hang_on_the_threads():
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g) for s in ((300, 16), (8, 24, 16), (8, 16, 12), (300, 2))]
    chosen = torch.rand(300, 8, generator=g).topk(2).indices
    found = []
    for threads in (1, 2, 3):
        mine = [t.clone().requires_grad_() for t in leaves]
        with threads_of_torch(threads):
            out, _ = moe.grouped_swiglu(*mine, chosen)
            found.append([out, *torch.autograd.grad(out.square().sum(), mine)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize(
    "scheme", [Int4(group=4), Int4(group=4, int8_inputs=True), Fp8(block=5), Fp8(block=64)], ids=repr
)
@pytest.mark.parametrize("rows", [3, 40])  # one dot after another, and in blocks
def test_what_a_format_rounds_is_rounded_between_the_products(scheme, rows, monkeypatch):
    g = torch.Generator().manual_seed(rows)
    x, gate = torch.randn(rows, 12, generator=g), torch.rand(rows, 1, generator=g)
    gate_up, down = torch.randn(16, 12, generator=g), torch.randn(12, 8, generator=g)
    inner, out = torch.full((rows + 2, 16), 7.0), torch.full((rows + 2, 12), 7.0)
    held = dict(x=x, gate=gate, token=torch.arange(rows).flip(0), inner=inner, out=out)
    compiled_experts.one((gate_up, down), slice(0, rows), scheme.rounding, **held)
    monkeypatch.setenv(VARIABLE, "0")
    rounded = scheme.inputs(moe.gated(x.flip(0) @ gate_up.T, gate))
    read = rounded[0] if len(rounded) == 1 else rounded[0] * rounded[1]
    assert torch.equal(read, moe.gated(x.flip(0) @ gate_up.T, gate)) == (scheme.rounding == (0, 0))
    # a number on the border between two codes may fall on either side: hardly any row has one
    assert (inner[rows:] == 7).all() and (out[rows:] == 7).all(), "rows of somebody else's"
    wrong = (out[:rows] - read @ down.T).abs().amax(-1) > 1e-4
    assert wrong.float().mean() < 0.1
