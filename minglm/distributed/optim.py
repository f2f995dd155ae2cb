"""Muon and AdamW on shards.

AdamW works value by value, so each process updates its shard. Newton–Schulz needs whole matrices. Experts are whole on
the process that holds them, because FSDP2 cuts a stack of experts between experts. Every other matrix is gathered on
one process, its owner, orthogonalised there once, and the rows of the result are sent back: two all-to-alls a step, and
no matrix is worked on twice in a group. Owners are dealt out so that all have about the same work. A matrix whose
columns are split over tp is joined over tp by each owner. Up-projections are split by head in Muon as in tensor
parallelism, so these need no exchange over tp.

Shapes: m rows and n columns of a matrix; a process holds ⌈m/processes⌉ rows, the last ones fewer or none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from minglm.config import ModelConfig
from minglm.distributed.mesh import Mesh
from minglm.training.optim import MuonAdamW


class ShardedMuonAdamW(MuonAdamW):
    """`minglm.training.optim.MuonAdamW` for the parameters of a `ShardedModel`; same rules, same arguments.

    Args:
        named: (name, parameter), DTensors as FSDP2 left them. shapes: name → shape of the whole parameter.
    """

    def __init__(self, named, shapes: dict[str, torch.Size], mesh: Mesh, config: ModelConfig, *args, **options) -> None:
        self.mesh, self.shapes = mesh, shapes
        self.sharded = {name: p for name, p in named if p.requires_grad}
        local = [(name, p.detach().to_local().requires_grad_()) for name, p in self.sharded.items()]  # the same memory
        super().__init__(
            local, replace(config, num_attention_heads=config.num_attention_heads // mesh.dims.tp), *args, **options
        )
        self.n, self.me = dist.get_world_size(mesh.data), dist.get_rank(mesh.data)
        self.owner = self._deal({n: self._rows_and_columns(n) for n, p in self.muon.items() if p.ndim == 2})

    def _rows_and_columns(self, name: str) -> tuple[int, int]:
        """Shape of the matrix that this process's data group holds together: of its own heads only."""
        shape, axis = list(self.shapes[name]), self.mesh.tp_axis(name)
        if axis is not None:
            shape[axis] //= self.mesh.dims.tp
        rows, columns = shape
        return rows, columns

    def _deal(self, matrices: dict[str, tuple[int, int]]) -> dict[str, int]:
        """Matrix → owner: the most costly first, each to whoever has least to do."""
        load, owner = [0] * self.n, {}
        for name, (m, n) in sorted(matrices.items(), key=lambda item: -item[1][0] * item[1][1] * min(item[1])):
            owner[name] = load.index(min(load))
            load[owner[name]] += m * n * min(m, n)
        return {name: owner[name] for name in matrices}

    def _part(self, m: int, rank: int) -> slice:
        """Rows of an m-row matrix that FSDP2 gives to a rank of the data group."""
        each = -(-m // self.n)
        return slice(min(m, rank * each), min(m, (rank + 1) * each))

    def _muon_step(self, lr: float) -> None:
        """All matrices on one thread: processes meet in between."""
        self._muon_share([n for n, p in self.muon.items() if p.grad is not None], lr)

    def _directions(self, updates: dict[str, Tensor], lr: float) -> None:
        split = [name for name in updates if name in self.owner]
        whole = self._gather(split, updates)
        joined = {name: self._join_columns(name, matrix) for name, matrix in whole.items()}
        super()._directions({**{n: u for n, u in updates.items() if n not in self.owner}, **joined}, lr)
        self._scatter(split, updates, {name: self._cut_columns(name, matrix) for name, matrix in joined.items()})

    def _gather(self, names: list[str], updates: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every process's rows to the owners; returns the matrices that this process owns."""
        send = [[updates[n].flatten() for n in names if self.owner[n] == o] for o in range(self.n)]
        mine = {n: self._rows_and_columns(n) for n in names if self.owner[n] == self.me}
        sizes = [[self._size(shape, r) for shape in mine.values()] for r in range(self.n)]
        received = self._swap(send, sizes)
        return {
            name: torch.cat([received[r][i].view(-1, shape[1]) for r in range(self.n)])
            for i, (name, shape) in enumerate(mine.items())
        }

    def _scatter(self, names: list[str], updates: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        """The opposite: rows of the owners' results into every process's updates."""
        send = [[matrix[self._part(len(matrix), r)].flatten() for matrix in whole.values()] for r in range(self.n)]
        wanted = [[n for n in names if self.owner[n] == o] for o in range(self.n)]
        received = self._swap(send, [[updates[n].numel() for n in group] for group in wanted])
        for group, pieces in zip(wanted, received, strict=True):
            for name, piece in zip(group, pieces, strict=True):
                updates[name].copy_(piece.view_as(updates[name]))

    def _size(self, shape: tuple[int, int], rank: int) -> int:
        part = self._part(shape[0], rank)
        return (part.stop - part.start) * shape[1]

    def _swap(self, send: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:
        """send[r] are flat tensors for process r; returns, for each process, flat tensors of `sizes`."""
        like = next(iter(self.parameters.values()))
        flat = torch.cat([t for tensors in send for t in tensors] or [like.new_empty(0)])
        out = flat.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(
            out,
            flat,
            [sum(s) for s in sizes],
            [sum(t.numel() for t in tensors) for tensors in send],
            group=self.mesh.data,
        )
        parts = out.split([sum(s) for s in sizes])
        return [list(part.split(s)) if s else [] for part, s in zip(parts, sizes, strict=True)]

    def _join_columns(self, name: str, matrix: Tensor) -> Tensor:
        tp = self.mesh.dims.tp
        if tp == 1 or self.mesh.tp_axis(name) != 1:
            return matrix
        parts = [torch.empty_like(matrix) for _ in range(tp)]
        dist.all_gather(parts, matrix.contiguous(), group=self.mesh.tp_group)
        return torch.cat(parts, 1)

    def _cut_columns(self, name: str, matrix: Tensor) -> Tensor:
        tp = self.mesh.dims.tp
        return matrix.chunk(tp, 1)[self.mesh.tp] if tp > 1 and self.mesh.tp_axis(name) == 1 else matrix

    # ------------------------------------------------------------------ gradients

    def _collect(self) -> None:
        for name, p in self.sharded.items():
            self.parameters[name].grad = None if p.grad is None else p.grad.to_local()

    def step(self, scale: float = 1.0) -> None:
        """As in one process; the gradients are those that FSDP2 left on this process's shards."""
        self._collect()
        super().step(scale)

    def zero_grad(self) -> None:
        """Drop the gradients of the shards and of what FSDP2 holds."""
        super().zero_grad()
        for p in self.sharded.values():
            p.grad = None

    @torch.no_grad()
    def clip_grad_norm(self, limit: float) -> Tensor:
        """As in one process: the norm is that of all gradients on all processes, each value counted once."""
        self._collect()
        square = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for name, p in self.parameters.items():
            if p.grad is not None:
                copies = 1 if self.mesh.tp_axis(name) is not None else self.mesh.dims.tp
                square += torch.linalg.vector_norm(p.grad.double()).square() / copies
        dist.all_reduce(square)
        norm = square.sqrt().to(torch.float32)
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm
