"""A schedule compiled for simulation: for each piece of a rank's work, what it waits for, what it lets go, how long it
takes.

Every input of every piece of work has a slot: the activation that stage s waits for in micro-batch i, and the gradient
it waits for on the way back. A slot holds the time of arrival once it is known. Slot 0 is the beginning: always there.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields

from minglm.errors import InputError
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.training import schedules
from sim.training.schedules import Op


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of one piece of work, compute and hideable communication apart, forward and backward apart."""

    forward_s: float = 0.0
    forward_comm_s: float = 0.0
    backward_s: float = 0.0
    backward_comm_s: float = 0.0

    def seconds(
        self, noise: float = 1.0, forward_load: float = 1.0, backward_load: float = 1.0, expert_share: float = 0.0
    ) -> float:
        """Length of the work. Alone, nothing hides: compute and communication add up. Together (FB), the two run on two
        streams, compute and network: no shorter than either stream, nor than either pass alone."""
        fc = noise * self.forward_s * (1.0 + expert_share * (forward_load - 1.0))
        bc = noise * self.backward_s * (1.0 + expert_share * (backward_load - 1.0))
        fm, bm = self.forward_comm_s * forward_load, self.backward_comm_s * backward_load
        if not (self.forward_s or self.forward_comm_s) or not (self.backward_s or self.backward_comm_s):
            return fc + fm + bc + bm
        return max(fc + bc, fm + bm, fc + fm, bc + bm)

    @property
    def compute_s(self) -> float:
        """Forward and backward, without communication."""
        return self.forward_s + self.backward_s


@dataclass(slots=True)
class Program:
    """One rank's work. `rows[i]` = (need, need2, out, far, out2, far2): slots waited for, slots filled at the end, and
    whether the filled slot lies on another rank (a transfer) or here; 0 stands for none."""

    ops: list[Op]
    rows: list[tuple[int, int, int, bool, int, bool]]
    work: list[Work]
    seconds: list[float] = field(default_factory=list)
    hideable: bool = False  # some of the work is communication, which chip noise leaves alone


def validate(costs: StepCosts) -> None:
    """Refuse costs that no step can have: negative, NaN or infinite times, uneven chunks."""
    counts = {len(chunks) for chunks in costs.chunks}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            f"chunks per rank {sorted(counts)}: every pipeline rank needs the same number, at least 1; pad with "
            "zero-cost chunks"
        )
    for name in ("p2p_s", "p2p_bytes", "grad_reduce_s", "param_gather_s", "optimizer_s", "fixed_s"):
        _time(name, getattr(costs, name))
    for rank, chunks in enumerate(costs.chunks):
        for v, chunk in enumerate(chunks):
            for f in fields(ChunkCost):
                _time(f"rank {rank} chunk {v} {f.name}", getattr(chunk, f.name))
            if chunk.forward_comm_s > chunk.forward_s or chunk.backward_comm_s > chunk.backward_input_s:
                raise InputError(
                    f"rank {rank} chunk {v}: hideable communication "
                    f"{chunk.forward_comm_s:g}/{chunk.backward_comm_s:g} s "
                    f"exceeds the pass it is part of, {chunk.forward_s:g}/{chunk.backward_input_s:g} s; include it "
                    "there"
                )
    for name in ("replicas", "chips_per_rank"):
        value = getattr(costs, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")


def _time(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name}={value!r}: must be a finite number of at least 0; check the cost that produced it")


def cost_table(costs: StepCosts, schedule: str) -> tuple[tuple[ChunkCost, ...], ...]:
    """chunks[rank][chunk] as the schedule holds them. DualPipe keeps two copies of the model: given one chunk per rank,
    the second copy of rank r is stage P−1−r."""
    if schedule == "dualpipe" and len(costs.chunks[0]) == 1:
        return tuple((own[0], costs.chunks[-1 - r][0]) for r, own in enumerate(costs.chunks))
    return costs.chunks


KEPT = 40_000  # forwards of a step whose wiring is kept for the next of the same shape: about 20 MB


@dataclass(frozen=True, slots=True)
class _Wiring:
    """What programs of one schedule have in common, whatever the work costs: never changed once made."""

    ops: list[list[Op]]
    rows: list[list[tuple[int, int, int, bool, int, bool]]]
    pieces: list[
        list[tuple[str, int, int]]
    ]  # of each rank its (kind, chunk, chunk of the backward): what costs the same
    piece_of: list[list[int]]  # of each rank which of them each op is
    size: int
    chains: list[schedules.Chain]


@functools.lru_cache(maxsize=8)
def _kept_wiring(schedule: str, P: int, m: int, v: int) -> _Wiring:
    return _wiring(schedule, P, m, v)


def _wiring(schedule: str, P: int, m: int, v: int) -> _Wiring:
    """Slots of every op of P ranks with v chunks each, m micro-batches."""
    orders = schedules.orders(schedule, P, m, v)
    chains = schedules.chains(schedule, P, m, v)
    position: dict[tuple[int, int], tuple[int, int]] = {}  # (rank, chunk) -> (chain, stage)
    base, size = [], 1
    for c, chain in enumerate(chains):
        base.append(size - chain.micro_batches.start)
        size += 2 * len(chain.stages) * len(chain.micro_batches)
        position |= {place: (c, s) for s, place in enumerate(chain.stages)}

    def slot(c: int, s: int, i: int, back: bool) -> int:
        stages, n = len(chains[c].stages), len(chains[c].micro_batches)
        return base[c] + (back * stages + s) * n + i

    def forward(rank: int, chunk: int) -> tuple[int, int, int, bool]:
        """Of micro-batch i: waits for slot need + step · i, fills out + i, on another rank or not."""
        c, s = position[rank, chunk]
        stages = chains[c].stages
        need, step = (slot(c, s, 0, False), 1) if s else (0, 0)
        if s + 1 == len(stages):
            return need, step, slot(c, s, 0, True), False  # the loss: gradient starts here
        return need, step, slot(c, s + 1, 0, False), stages[s + 1][0] != rank

    def backward(rank: int, chunk: int) -> tuple[int, int, int, bool]:
        """Of micro-batch i: waits for slot need + i, fills out + step · i, on another rank or not."""
        c, s = position[rank, chunk]
        out, step = (slot(c, s - 1, 0, True), 1) if s else (0, 0)
        return slot(c, s, 0, True), out, step, bool(s) and chains[c].stages[s - 1][0] != rank

    wired: list[list[tuple[int, int, int, bool, int, bool]]] = []
    pieces: list[list[tuple[str, int, int]]] = []
    piece_of: list[list[int]] = []
    for rank, order in enumerate(orders):
        there = {chunk: forward(rank, chunk) for of, chunk in position if of == rank}
        back = {chunk: backward(rank, chunk) for of, chunk in position if of == rank}
        rows: list[tuple[int, int, int, bool, int, bool]] = []
        places: dict[tuple[str, int, int], int] = {}
        own = []
        for kind, i, chunk, b_i, b_chunk in order:
            if kind == "F":
                need, step, out, far = there[chunk]
                rows.append((need + step * i, 0, out + i, far, 0, False))
            elif kind == "W":
                rows.append(_NOTHING)
            elif kind == "FB":
                need, step, out, far = there[chunk]
                need2, out2, step2, far2 = back[b_chunk]
                rows.append((need + step * i, need2 + b_i, out + i, far, out2 + step2 * b_i, far2))
            else:
                need, out, step, far = back[chunk]
                rows.append((need + i, 0, out + step * i, far, 0, False))
            own.append(places.setdefault((kind, chunk, b_chunk), len(places)))
        wired.append(rows)
        pieces.append(list(places))
        piece_of.append(own)
    return _Wiring(orders, wired, pieces, piece_of, size, chains)


_NOTHING = (0, 0, 0, False, 0, False)  # waits for nothing, fills nothing


def _work(kind: str, cost: ChunkCost, back: ChunkCost) -> Work:
    """One piece of work of a chunk; `back` is the chunk whose backward runs beside a forward (FB)."""
    F, Fm = cost.forward_s - cost.forward_comm_s, cost.forward_comm_s
    if kind == "F":
        return Work(F, Fm)
    if kind == "W":
        return Work(backward_s=cost.backward_weight_s)
    if kind == "FB":
        return Work(F, Fm, back.backward_s - back.backward_comm_s, back.backward_comm_s)
    whole = cost.backward_s if kind == "B" else cost.backward_input_s
    return Work(backward_s=whole - cost.backward_comm_s, backward_comm_s=cost.backward_comm_s)


def compile_programs(costs: StepCosts, schedule: str) -> tuple[list[Program], int, list[schedules.Chain]]:
    """Programs of all ranks, the number of slots, and the chains. Raises InputError for costs or schedule."""
    validate(costs)
    table = cost_table(costs, schedule)
    P, m, v = len(table), costs.micro_batches, len(table[0])
    wiring = (_kept_wiring if P * m * v <= KEPT else _wiring)(schedule, P, m, v)
    programs = []
    for rank, chunks in enumerate(table):
        of = [_work(kind, chunks[chunk], chunks[b_chunk]) for kind, chunk, b_chunk in wiring.pieces[rank]]
        seconds, places = [work.seconds() for work in of], wiring.piece_of[rank]
        hideable = any(w.forward_comm_s or w.backward_comm_s for w in of)
        work, lengths = [of[k] for k in places], [seconds[k] for k in places]
        programs.append(Program(wiring.ops[rank], wiring.rows[rank], work, lengths, hideable))
    return programs, wiring.size, wiring.chains


def last_gradients(program: Program) -> list[int]:
    """For each chunk of a rank, the index of the op after which its gradients are complete."""
    last: dict[int, int] = {}
    for k, op in enumerate(program.ops):
        if op.kind in "BW":
            last[op.chunk] = k
        elif op.kind == "FB":
            last[op.b_chunk] = k
    return [last[c] for c in sorted(last)]
