"""Muon for matrices, AdamW for everything else, as GLM-5 trains.

Muon replaces a matrix's momentum by (nearly) its nearest orthogonal matrix, found by five Newton–Schulz steps. GLM-5
adds "Muon split": the MLA up-projections are cut per head and every head is orthogonalised alone (report arXiv
2602.15763 §2.1). Experts are stacked tensors, so each expert is a matrix of its own and all of them go through one
batched iteration.

Settings from the GLM-4.5 report §2.4, which GLM-5 inherits: momentum 0.95 with Nesterov, 5 steps, update RMS 0.2,
weight decay 0.1; embedding, head, norms, biases and router by AdamW. Iteration coefficients: K. Jordan, "Muon" (2024);
update scale 0.2·sqrt(max(m, n)): Moonlight (arXiv 2502.16982), which gives Muon the update size of AdamW.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Set

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.model.threads import parallel_for
from minglm.training import compiled_muon

# A quintic that pushes singular values in (0, 1] quickly to about [0.7, 1.2], not exactly to 1: fast beats exact here.
NS_FAST = (3.4445, -4.7750, 2.0315)
# The Newton–Schulz quintic with an exact fixed point at 1: slower, and converges to the polar factor.
NS_EXACT = (15 / 8, -10 / 8, 3 / 8)


def orthogonalize(
    matrices: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = NS_FAST, eps: float = 1e-7
) -> Tensor:
    """Approximate polar factor U·Vᵀ of each matrix U·S·Vᵀ of a batch (..., m, n), same shape and dtype.

    A zero matrix gives zeros. With `NS_EXACT` and enough steps it converges to the polar factor.
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # wide: the Gram matrix is the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + eps)  # Frobenius ≥ spectral, so singular values are in [0, 1]
    if compiled_muon.fits(x):
        x = compiled_muon.iterate(x, steps, coefficients)
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def split_rule(name: str, shape: tuple[int, ...], config: ModelConfig) -> list[tuple[int, int]] | None:
    """Row blocks (start, end) of a matrix that Muon orthogonalises one by one; None for the whole matrix.

    Per head for `q_b_proj` and, key and value part apart, for `kv_b_proj`;
    gate and up part apart where a tensor fuses them.
    """
    rows, H = shape[-2], config.num_attention_heads
    if "q_b_proj" in name:
        return _blocks([config.qk_head_dim] * H)
    if "kv_b_proj" in name:
        return _blocks([config.qk_nope_head_dim, config.v_head_dim] * H)
    if "gate_up_proj" in name:
        return _blocks([rows // 2, rows - rows // 2])
    return None


def _blocks(heights: list[int]) -> list[tuple[int, int]]:
    edges = [0]
    for height in heights:
        edges.append(edges[-1] + height)
    return list(itertools.pairwise(edges))


def uses_muon(name: str, parameter: Tensor) -> bool:
    """Matrices and stacks of matrices, except embedding, head and router (GLM-4.5 report §2.4;
    router as in Moonlight)."""
    if parameter.ndim < 2:
        return False
    if any(part in name for part in ("embed_tokens", "lm_head", "embedding", "norm", "bias")):
        return False
    return not name.endswith(("gate.weight", "router.weight"))


class MuonAdamW:
    """One optimiser for a whole model.

    Args:
        named: (name, parameter) pairs; names decide which rule applies (`uses_muon`, `split_rule`).
        config: head widths for the split.
        lr: learning rate of the matrices. adam_lr: of all else; default the same, since Muon's update has AdamW's size.
        weight_decay: decoupled, on matrices and embeddings; norms and biases have none.
        muon: False leaves the matrices to AdamW too.

    State is a flat dict of tensors (`state_dict`), so that it is stored as safetensors.
    """

    def __init__(  # noqa: PLR0913  (settings, by keyword)
        self,
        named: Iterable[tuple[str, Tensor]],
        config: ModelConfig,
        lr: float = 2e-3,
        adam_lr: float | None = None,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        muon: bool = True,
    ) -> None:
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.muon = {n: p for n, p in self.parameters.items() if muon and uses_muon(n, p)}
        self.adam = {n: p for n, p in self.parameters.items() if n not in self.muon}
        self.adam_matrices = {n for n, p in self.adam.items() if uses_muon(n, p)}  # none where Muon has them
        self.splits = {n: split_rule(n, tuple(p.shape), config) for n, p in self.muon.items()}
        self.lr, self.adam_lr = lr, lr if adam_lr is None else adam_lr
        self.momentum, self.betas, self.eps = momentum, betas, eps
        self.weight_decay, self.ns_steps, self.steps = weight_decay, ns_steps, 0
        self.momenta = {n: torch.zeros_like(p) for n, p in self.muon.items()}
        self.first = {n: torch.zeros_like(p) for n, p in self.adam.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.adam.items()}

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Apply the gradients; `scale` multiplies both learning rates (the schedule). A parameter without a gradient is
        left alone, weight decay included."""
        self.steps += 1
        self._muon_step(self.lr * scale)
        self._adam_step(self.adam_matrices, self.lr * scale)
        self._adam_step(self.adam.keys() - self.adam_matrices, self.adam_lr * scale)

    def _muon_step(self, lr: float) -> None:
        """All matrices that have a gradient; each thread has tensors of its own, those with most numbers first."""
        live = sorted((n for n, p in self.muon.items() if p.grad is not None), key=lambda n: -self.muon[n].numel())
        if live:
            parallel_for(lambda names: self._muon_share(names, lr), live, self.muon[live[0]].device)

    def _muon_share(self, names: Iterable[str], lr: float) -> None:
        updates = {}
        for name in names:
            p, buffer = self.muon[name], self.momenta[name]
            assert p.grad is not None
            buffer.lerp_(p.grad, 1 - self.momentum)
            updates[name] = p.grad.lerp(buffer, self.momentum)  # Nesterov
            p.mul_(1 - lr * self.weight_decay)
        self._directions(updates, lr)
        for name, update in updates.items():
            self.muon[name].add_(update)

    def _directions(self, updates: dict[str, Tensor], lr: float) -> None:
        """Turn each update into the step to take, in place: orthogonalised, scaled, with its sign."""
        # Blocks of equal shape go through one batched iteration.
        groups: dict[tuple[int, int], list[Tensor]] = {}
        for name, update in updates.items():
            for start, end in self.splits[name] or [(0, update.shape[-2])]:
                piece = update[..., start:end, :]
                groups.setdefault((piece.shape[-2], piece.shape[-1]), []).append(piece)
        for (m, n), pieces in groups.items():
            stack = torch.cat([piece.reshape(-1, m, n) for piece in pieces])
            stack = orthogonalize(stack, self.ns_steps).mul_(-lr * 0.2 * math.sqrt(max(m, n)))
            start = 0
            for piece in pieces:
                count = piece.numel() // (m * n)
                piece.copy_(stack[start : start + count].view(piece.shape))
                start += count

    def _adam_step(self, names: Set[str], lr: float) -> None:
        live = {n: p.grad for n, p in self.adam.items() if n in names and p.grad is not None}
        if not live:
            return
        b1, b2 = self.betas
        params, grads = [self.adam[n] for n in live], list(live.values())
        first, second = [self.first[n] for n in live], [self.second[n] for n in live]
        torch._foreach_lerp_(first, grads, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, grads, grads, 1 - b2)
        denominators = torch._foreach_sqrt(second)  # noqa: SLF001  (torch's own optimisers call it so)
        torch._foreach_div_(denominators, math.sqrt(1 - b2**self.steps))
        torch._foreach_add_(denominators, self.eps)
        decayed = [p for p in params if p.ndim >= 2]
        if decayed:
            torch._foreach_mul_(decayed, 1 - lr * self.weight_decay)
        torch._foreach_addcdiv_(params, first, denominators, -lr / (1 - b1**self.steps))

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def clip_grad_norm(self, limit: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most `limit`; returns the norm before that."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not grads:
            return torch.zeros(())
        norms = torch._foreach_norm(grads)  # noqa: SLF001  (as above)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Flat name → tensor: `momentum.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, and the step count."""
        out = {"steps": torch.tensor([self.steps], dtype=torch.int64)}
        for kind, tensors in self._kinds().items():
            out |= {f"{kind}.{name}": t for name, t in tensors.items()}
        return out

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` gave. Raises ValueError for the state of another model."""
        expected = self.state_dict()
        if expected.keys() != state.keys():
            name = sorted(expected.keys() ^ state.keys())[0]
            raise ValueError(f"optimiser state does not fit the model: {name}")
        for kind, tensors in self._kinds().items():
            for name, t in tensors.items():
                t.copy_(state[f"{kind}.{name}"])
        self.steps = int(state["steps"])

    def _kinds(self) -> dict[str, dict[str, Tensor]]:
        return {"momentum": self.momenta, "exp_avg": self.first, "exp_avg_sq": self.second}


def cosine_with_warmup(step: int, steps: int, warmup: int, final_fraction: float) -> float:
    """Learning-rate factor at `step` (from 0): linear from 1/warmup to 1,
    then a half cosine down to `final_fraction`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
