"""A model whose matrices are stored quantised and multiplied in the format's own way.

`pack` replaces modules of a `Model`; what reads a `weight` (the absorbed attention, the decoder's folded matrices) gets
it dequantised by the same function that training used. Memory holds codes and scales; a dequantised matrix lives as
long as its multiplication, except in a `Decoder`, which folds its own copies. Experts are shared out to the threads.

Shapes: N tokens, E experts, K chosen, C hidden, F expert width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.errors import InputError
from minglm.model import compiled_experts
from minglm.model.model import Model
from minglm.model.moe import Experts, by_expert, gated, parts
from minglm.model.threads import parallel_for
from minglm.quant.formats import Spec
from minglm.quant.scheme import Scheme


class PackedLinear(nn.Module):
    """x @ weightᵀ with a quantised weight (O, I); its parts are buffers named by the format."""

    def __init__(self, scheme: Scheme, out_features: int, in_features: int, device: torch.device | str | None = None):
        super().__init__()
        self.scheme, self.out_features, self.in_features = scheme, out_features, in_features
        for part, (shape, dtype) in scheme.shapes(out_features, in_features).items():
            self.register_buffer(part, torch.empty(shape, dtype=dtype, device=device))

    def fill(self, weight: Tensor) -> PackedLinear:
        """Quantise a weight (O, I) into the parts."""
        for part, tensor in zip(self.scheme.parts, self.scheme.quantize(weight), strict=True):
            self.register_buffer(part, tensor)
        return self

    def quantised_parts(self) -> tuple[Tensor, ...]:
        """The tensors that stand for the weight, in the order of the format's `parts`."""
        return tuple(getattr(self, part) for part in self.scheme.parts)

    @property
    def weight(self) -> Tensor:
        """(O, I) fp32."""
        return self.scheme.dequantize(*self.quantised_parts())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        return self.scheme.linear(x, *self.quantised_parts())


class PackedExperts(nn.Module):
    """The routed experts' three stacks, quantised; `gate_up_proj` and `down_proj` read as in `moe.Experts`."""

    STACKS = ("gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        scheme: Scheme,
        experts: int,
        hidden: int,
        width: int,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.scheme = scheme
        for stack in self.STACKS:
            rows, columns = (hidden, width) if stack == "down_proj" else (width, hidden)
            for part, (shape, dtype) in scheme.shapes(rows, columns).items():
                self.register_buffer(f"{stack}_{part}", torch.empty((experts, *shape), dtype=dtype, device=device))

    def fill(self, gate_up: Tensor, down: Tensor) -> PackedExperts:
        """Quantise gate and up (E, 2F, C) and down (E, C, F) into the parts."""
        for stack, weight in zip(self.STACKS, (*gate_up.chunk(2, 1), down), strict=True):
            for part, tensor in zip(self.scheme.parts, self.scheme.quantize(weight), strict=True):
                self.register_buffer(f"{stack}_{part}", tensor)
        return self

    def quantised_parts(self, stack: str) -> list[Tensor]:
        """The tensors (E, …) that stand for one of the `STACKS`."""
        return [getattr(self, f"{stack}_{part}") for part in self.scheme.parts]

    @property
    def gate_up_proj(self) -> Tensor:
        """(E, 2F, C) fp32."""
        return torch.cat(
            [self.scheme.dequantize(*self.quantised_parts(stack)) for stack in ("gate_proj", "up_proj")], 1
        )

    @property
    def down_proj(self) -> Tensor:
        """(E, C, F) fp32."""
        return self.scheme.dequantize(*self.quantised_parts("down_proj"))

    @torch.no_grad()
    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C), chosen (N, K), gates (N, K) → output (N, C) and tokens per expert (E,) int64."""
        experts = len(self.quantised_parts("down_proj")[0])
        token, gates, place, counts = by_expert(chosen, gates.to(x.dtype), experts)
        rows = self.scheme.inputs(x)  # rounded once for all experts
        width = sum(self.quantised_parts(stack)[0].shape[1] for stack in ("gate_proj", "up_proj"))
        inner, out = x.new_empty(token.numel(), width), x.new_empty(token.numel(), x.shape[-1])  # (N·K, 2F), (N·K, C)

        if compiled_experts.fits(x, gates):
            read = rows[0] if len(rows) == 1 else rows[0] * rows[1]  # whole numbers times their scale

            def whole(share: Sequence[tuple[int, slice]]) -> None:
                for e, part in share:
                    matrices = [self.scheme.dequantize(*matrix) for matrix in self.gate_and_up(e)]
                    both = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
                    down = self.scheme.dequantize(*self.one_expert("down_proj", e))
                    compiled_experts.one((both, down), part, self.scheme.rounding, x=read, **held)

            held = dict(gate=gates, token=token, inner=inner, out=out)
            parallel_for(whole, parts(counts), x.device)
            return F.embedding_bag(place, out, mode="sum"), counts

        rows = tuple(part.index_select(0, token) for part in rows)

        def read_both(share: Sequence[tuple[int, slice]]) -> None:
            for e, part in share:
                read = tuple(r[part] for r in rows)
                torch.cat([self.scheme.product(read, *matrix) for matrix in self.gate_and_up(e)], -1, out=inner[part])

        parallel_for(read_both, parts(counts), x.device)
        hidden = self.scheme.inputs(gated(inner, gates))

        def read_down(share: Sequence[tuple[int, slice]]) -> None:
            for e, part in share:
                out[part] = self.scheme.product(tuple(h[part] for h in hidden), *self.one_expert("down_proj", e))

        parallel_for(read_down, parts(counts), x.device)
        return F.embedding_bag(place, out, mode="sum"), counts

    def gate_and_up(self, expert: int) -> list[list[Tensor]]:
        """Parts of both matrices: of one that holds the rows of both, as training has it, where the format can."""
        both = [self.one_expert(stack, expert) for stack in ("gate_proj", "up_proj")]
        return [[torch.cat(pair) for pair in zip(*both, strict=True)]] if self.scheme.rows_apart else both

    def one_expert(self, stack: str, expert: int) -> list[Tensor]:
        """Parts of one expert's matrix."""
        return [part[expert] for part in self.quantised_parts(stack)]


def quantised_modules(model: Model, spec: Spec) -> list[tuple[str, Experts | nn.Linear, Scheme]]:
    """(name, module, number format) for every module that `spec` quantises: nn.Linear and Experts."""
    out: list[tuple[str, Experts | nn.Linear, Scheme]] = []
    for name, module in model.named_modules():
        if isinstance(module, (Experts, nn.Linear)):
            scheme = spec.scheme(f"{name}.weight", isinstance(module, Experts))
            if scheme is not None:
                out.append((name, module, scheme))
    return out


def pack(model: Model, spec: Spec) -> Model:
    """Quantise the model in place and return it: evaluation only, its matrices have no gradient.

    Raises:
        InputError: the model is quantised already, or a group does not fit a width.
    """
    refuse_packed(model)
    todo = quantised_modules(model, spec)
    for name, module, scheme in todo:  # every width is checked before anything is replaced
        for width in _widths(module):
            try:
                scheme.shapes(2, width)
            except InputError as err:
                raise InputError(f"{name}: {err}") from None
    for name, module, scheme in todo:
        twin = packed_twin(module, scheme, "meta")
        if isinstance(twin, PackedExperts) and isinstance(module, Experts):
            twin.fill(module.gate_up_proj, module.down_proj)
        elif isinstance(twin, PackedLinear) and isinstance(module, nn.Linear):
            twin.fill(module.weight)
        _replace(model, name, twin)
    model.quantization = spec
    return model.eval()


def empty_packed(model: Model, spec: Spec, device: torch.device | str | None = None) -> Model:
    """The same, with room for the parts in place of their values; a checkpoint fills them."""
    for name, module, scheme in quantised_modules(model, spec):
        _replace(model, name, packed_twin(module, scheme, device))
    model.quantization = spec
    return model.eval()


def packed_twin(
    module: Experts | nn.Linear, scheme: Scheme, device: torch.device | str | None = None
) -> PackedLinear | PackedExperts:
    """The module that takes this one's place, not filled yet."""
    if isinstance(module, Experts):
        E, C, width = module.down_proj.shape
        return PackedExperts(scheme, E, C, width, device)
    return PackedLinear(scheme, module.out_features, module.in_features, device)


def _widths(module: Experts | nn.Linear) -> tuple[int, ...]:
    if isinstance(module, Experts):
        return module.gate_up_proj.shape[-1], module.down_proj.shape[-1]
    return (module.in_features,)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)


def refuse_packed(model: nn.Module) -> None:
    """InputError for a model that is quantised already."""
    spec = getattr(model, "quantization", None)
    if spec is not None:
        raise InputError(
            f"already quantised to {spec.format}: rounding twice only adds error; start from the run it was made from"
        )
