"""The experts of a layer, compiled (`experts.c` beside this file): a CPU, fp32.

`minglm.model.moe` says the same in torch; it is what runs elsewhere. There each product waits for all threads; here an
expert is one thread's own from its tokens to its gradients, and threads meet once a layer.

Shapes: N tokens, K choices each, C hidden, E experts, F expert width, n = N·K choices, sorted by expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from minglm.model import native
from minglm.model.threads import parallel_for

SOURCE = Path(__file__).with_name("experts.c")
AS_IT_IS = (0, 0)  # no rounding between the two products
_ROUNDING = ("rounding", "tile")
_ARRAYS = (
    *("x", "gate_up", "down", "gate", "token", "inner", "out"),
    *("d_out", "d_rows", "d_gate_up", "d_down", "d_gate"),
)


class _Experts(ctypes.Structure):
    _fields_ = [*((n, ctypes.c_int64) for n in ("C", "F", *_ROUNDING)), *((n, ctypes.c_void_p) for n in _ARRAYS)]


def fits(*tensors: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, *tensors)


def _run(name: str, parts: Sequence[tuple[int, slice]], rounding: tuple[int, int], **held: Tensor) -> None:
    """Call a function of the code on experts, (expert, its choices) each; those with most work are begun first."""
    code, (_, C, F) = native.code(SOURCE), held["down"].shape
    what = _Experts(
        C=C, F=F, **dict(zip(_ROUNDING, rounding, strict=True)), **{n: native.address(held.get(n)) for n in _ARRAYS}
    )

    def work(share: Sequence[tuple[int, slice]]) -> int:
        table = native.table([(e, choices.start, choices.stop) for e, choices in share])
        return getattr(code, name)(ctypes.byref(what), native.address(table), ctypes.c_int64(len(share)))

    largest_first = sorted(parts, key=lambda part: part[1].start - part[1].stop)
    if any(parallel_for(work, largest_first, held["x"].device)):
        raise MemoryError(f"experts of {C} × {F}: no room for the rows between two products")


def one(matrices: tuple[Tensor, Tensor], choices: slice, rounding: tuple[int, int], **held: Tensor) -> None:
    """One expert's matrices (2F, C) and (C, F) on its own choices, into its rows of `inner` (n, 2F) and `out` (n, C).

    rounding: of what the second matrix multiplies, (0, 0) for none, (8, tile) to e4m3, (1, 0) to whole numbers.
    held: x, gate and token as in `experts`, inner and out."""
    gate_up, down = matrices
    _run("forward", [(0, choices)], rounding, gate_up=gate_up, down=down.unsqueeze(0), **held)


class _GroupedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate_up, down, gate, token, place, parts):
        held = dict(x=x.contiguous(), gate_up=gate_up.contiguous(), down=down.contiguous(), gate=gate.contiguous())
        held |= dict(token=token.contiguous(), inner=x.new_empty(len(token), gate_up.shape[1]))
        out = x.new_empty(len(token), x.shape[1])
        _run("forward", parts, AS_IT_IS, **held, out=out)
        ctx.save_for_backward(*held.values(), place)
        ctx.names, ctx.parts = tuple(held), parts
        return functional.embedding_bag(place, out, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        *tensors, place = ctx.saved_tensors
        held = dict(zip(ctx.names, tensors, strict=True))
        made = {f"d_{name}": torch.empty_like(held[name]) for name in ("gate_up", "down", "gate")}
        chosen = {e for e, _ in ctx.parts}
        for e in set(range(len(held["down"]))) - chosen:
            made["d_gate_up"][e], made["d_down"][e] = 0.0, 0.0
        d_rows = grad.new_empty(len(held["token"]), grad.shape[1])
        _run("backward", ctx.parts, AS_IT_IS, **held, **made, d_out=grad.contiguous(), d_rows=d_rows)
        d_x = functional.embedding_bag(place, d_rows, mode="sum")
        return d_x, *made.values(), None, None, None


def experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate: Tensor,
    token: Tensor,
    place: Tensor,
    parts: Sequence[tuple[int, slice]],
) -> Tensor:
    """x (N, C), gate_up (E, 2F, C), down (E, C, F) and what `by_expert` and `parts` of `minglm.model.moe` say of the
    choices (gate (n, 1), token (n,), place (N, K)) → each token through its experts, weighted and summed, (N, C)."""
    return _GroupedSwiGLU.apply(x, gate_up, down, gate, token, place, parts)
