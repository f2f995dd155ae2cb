"""Training that knows of the rounding (QAT): forward and backward see the weights that inference will see.

The master weights are taken out of the model before the forward and put back before the update. The gradient with
respect to the rounded weight is used for the master weight unchanged, the straight-through estimator (Bengio et al.
2013, arXiv 1308.3432); nothing is clipped, because the scale covers the largest weight of every group. No module, name
or checkpoint differs from ordinary training, and the rounding is `Int4.fake_quantize`,
whose last step is the one that inference uses.
"""

from __future__ import annotations

import torch

from minglm.model.model import Model
from minglm.model.moe import Experts
from minglm.quant.formats import Spec
from minglm.quant.modules import quantised_modules, refuse_packed
from minglm.quant.scheme import Scheme


class FakeQuant:
    """Swaps a model's matrices for rounded ones and back: `on`, `off`, or a `with` block.
    With `spec` None it does nothing.

    Raises:
        InputError: the model is quantised already, or a group does not fit a width.
    """

    def __init__(self, model: Model, spec: Spec | None) -> None:
        refuse_packed(model)
        # parameter, format, whether gate and up share it
        self.items: list[tuple[torch.Tensor, Scheme, bool]] = []
        self.masters: list[torch.Tensor] = []
        for _, module, scheme in quantised_modules(model, spec) if spec else ():
            if isinstance(module, Experts):
                self.items += [(module.gate_up_proj, scheme, True), (module.down_proj, scheme, False)]
            else:
                self.items.append((module.weight, scheme, False))
        for parameter, scheme, fused in self.items:
            rows, width = parameter.shape[-2:]
            scheme.shapes(rows // (1 + fused), width)

    @torch.no_grad()
    def on(self) -> None:
        """Rounded weights in. A second call changes nothing."""
        if self.masters:
            return
        self.masters = [parameter.data for parameter, _, _ in self.items]
        for (parameter, scheme, fused), master in zip(self.items, self.masters, strict=True):
            halves = master.chunk(2, -2) if fused else (master,)
            parameter.data = torch.cat([scheme.fake_quantize(half) for half in halves], -2).to(master.dtype)

    def off(self) -> None:
        """Master weights back; gradients stay. A second call changes nothing."""
        for (parameter, _, _), master in zip(self.items, self.masters, strict=False):  # no masters while off
            parameter.data = master
        self.masters = []

    def __enter__(self) -> FakeQuant:
        self.on()
        return self

    def __exit__(self, *_) -> None:
        self.off()
