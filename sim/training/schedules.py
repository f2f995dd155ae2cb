"""Pipeline schedules as pure functions: in which order a rank does its forwards and backwards.

A schedule knows nothing of time. `orders` gives each pipeline rank its list of work; `sim/training/step.py` runs it on
the clock.

Words. P ranks (stages of hardware), m micro-batches, v chunks (virtual stages) per rank. Kinds of work:
    F   forward of one chunk for one micro-batch
    B   full backward: gradient of the activations, then of the weights
    I   gradient of the activations only: what the previous stage waits for
    W   gradient of the weights only: nobody waits for it, so it fills gaps
    FB  a forward and a full backward of *different* micro-batches run together, each hiding the other's all-to-all

Sources: GPipe (arXiv 1811.06965); 1F1B and interleaved 1F1B (arXiv 2104.04473 §2.2); ZB-H1 and ZB-V (arXiv 2401.10241,
2405.15362); DualPipe (arXiv 2412.19437 §3.2.1) and its V-shaped variant, steps as in the authors' public release.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from minglm.errors import InputError, nearest
from sim.spec.plan import SCHEDULES

# Chunks that one rank holds under each schedule; None leaves the number free.
CHUNKS = {"gpipe": 1, "1f1b": 1, "interleaved": None, "zb-h1": 1, "zb-v": 2, "dualpipe": 2, "dualpipe-v": 2}
_V_SHAPED = ("zb-v", "dualpipe-v")


class Op(NamedTuple):
    """One piece of work of a rank. For `FB`, `micro_batch` and `chunk` are the forward's, `b_*` the backward's."""

    kind: str
    micro_batch: int
    chunk: int
    b_micro_batch: int = -1
    b_chunk: int = -1


class Chain(NamedTuple):
    """The way of a micro-batch through the ranks: (rank, chunk) of each model stage, and the micro-batches that take
    it."""

    stages: tuple[tuple[int, int], ...]
    micro_batches: range


def check(schedule: str, ranks: int, micro_batches: int, chunks: int) -> None:
    """Raise InputError where the schedule cannot run so; the message says what would."""
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r}: not one of {', '.join(SCHEDULES)}{nearest(schedule, SCHEDULES)}")
    for name, value in (("ranks", ranks), ("micro_batches", micro_batches), ("chunks", chunks)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")
    if (want := CHUNKS[schedule]) is not None and chunks != want:
        raise InputError(
            f"chunks={chunks}: schedule {schedule} holds {want} per rank; set {want} virtual stage(s), or choose "
            "'interleaved' for another number"
        )
    if schedule == "interleaved" and chunks < 2:
        raise InputError(
            "chunks=1: interleaving needs at least 2 virtual stages per rank; set 2 or more, or choose '1f1b'"
        )
    if schedule == "interleaved" and micro_batches < ranks:
        raise InputError(
            f"micro_batches={micro_batches}: interleaved 1F1B needs at least as many as the {ranks} pipeline ranks; "
            f"use {ranks} or more, fewer ranks, or '1f1b'"
        )
    if schedule == "dualpipe" and ranks % 2:
        raise InputError(
            f"ranks={ranks}: DualPipe feeds the pipeline from both ends and needs an even number; use {ranks + 1} "
            "or 'dualpipe-v'"
        )
    if schedule == "dualpipe" and micro_batches % 2:
        raise InputError(
            f"micro_batches={micro_batches}: DualPipe sends half from each end and needs an even number; use "
            f"{micro_batches + 1}"
        )
    if schedule in ("dualpipe", "dualpipe-v") and micro_batches < 2 * ranks:
        raise InputError(
            f"micro_batches={micro_batches}: {schedule} needs at least 2 for each of the {ranks} pipeline ranks; use "
            f"{2 * ranks} or more, fewer ranks, or 'zb-h1'"
        )
    if schedule == "zb-v" and micro_batches < 2 * ranks - 1:
        raise InputError(
            f"micro_batches={micro_batches}: zb-v needs at least 2·ranks−1 = {2 * ranks - 1}; use that many, fewer "
            "ranks, or 'zb-h1'"
        )


def orders(schedule: str, ranks: int, micro_batches: int, chunks: int = 1) -> list[list[Op]]:
    """Each rank's work in order, for one training step.

    Returns a list of `ranks` lists of `Op`. Under 'dualpipe' micro-batches 0…m/2−1 enter at rank 0 through chunk 0, the
    rest at the last rank through chunk 1.
    Raises InputError for a schedule that cannot run with these numbers.
    """
    check(schedule, ranks, micro_batches, chunks)
    return [list(order) for order in _orders(schedule, ranks, micro_batches, chunks)]


@lru_cache(maxsize=64)
def _orders(schedule: str, ranks: int, micro_batches: int, chunks: int) -> tuple[tuple[Op, ...], ...]:
    make = {
        "gpipe": _gpipe,
        "1f1b": _one_f_one_b,
        "interleaved": _interleaved,
        "zb-h1": _zb_h1,
        "zb-v": _zb_v,
        "dualpipe": _dualpipe,
        "dualpipe-v": _dualpipe_v,
    }[schedule]
    return tuple(tuple(make(rank, ranks, micro_batches, chunks)) for rank in range(ranks))


def chains(schedule: str, ranks: int, micro_batches: int, chunks: int = 1) -> list[Chain]:
    """Through which (rank, chunk) each micro-batch passes, in model order."""
    check(schedule, ranks, micro_batches, chunks)
    down, everything = [(r, 0) for r in range(ranks)], range(micro_batches)
    up = [(r, 1) for r in reversed(range(ranks))]
    if schedule == "dualpipe":
        half = micro_batches // 2
        return [Chain(tuple(down), range(half)), Chain(tuple(up), range(half, micro_batches))]
    if schedule in _V_SHAPED:
        return [Chain(tuple(down + up), everything)]
    return [Chain(tuple((r, c) for c in range(chunks) for r in range(ranks)), everything)]


def _gpipe(rank: int, P: int, m: int, v: int) -> list[Op]:
    """All forwards, then all backwards in reverse (the last activations are the freshest)."""
    return [Op("F", i, 0) for i in range(m)] + [Op("B", i, 0) for i in reversed(range(m))]


def _one_f_one_b(rank: int, P: int, m: int, v: int) -> list[Op]:
    """Fill the pipeline below, then one forward, one backward: at most P − rank micro-batches are held."""
    warm = min(P - rank - 1, m)
    order = [Op("F", i, 0) for i in range(warm)]
    for i in range(warm, m):
        order += [Op("F", i, 0), Op("B", i - warm, 0)]
    return order + [Op("B", i, 0) for i in range(m - warm, m)]


def group_size(ranks: int, micro_batches: int) -> int:
    """How many micro-batches visit a chunk before the rank turns to the next one: the smallest number of at least
    `ranks` that leaves no remainder thinner than the pipeline (with m divisible by P this is P, the published
    schedule)."""
    return next(g for g in range(ranks, micro_batches + 1) if micro_batches % g == 0 or micro_batches % g >= ranks)


def _interleaved(rank: int, P: int, m: int, v: int) -> list[Op]:
    g = group_size(P, m)
    visits = [(i, c) for lo in range(0, m, g) for c in range(v) for i in range(lo, min(lo + g, m))]
    back = [(i, v - 1 - c) for i, c in visits]
    # Two hops per rank still ahead, because a micro-batch comes back through this rank once per chunk.
    warm = min((P - rank - 1) * 2 + (v - 1) * g, m * v)
    order = [Op("F", *visits[k]) for k in range(warm)]
    for k in range(warm, m * v):
        order += [Op("F", *visits[k]), Op("B", *back[k - warm])]
    return order + [Op("B", *back[k]) for k in range(m * v - warm, m * v)]


def _zb_h1(rank: int, P: int, m: int, v: int) -> list[Op]:
    """1F1B with the weight gradient of micro-batch i done `rank` backwards late: later ranks free their successors'
    wait, and the postponed W fill the drain. No rank holds more than P micro-batches, as in 1F1B's first rank."""
    order = []
    for op in _one_f_one_b(rank, P, m, v):
        if op.kind == "F":
            order.append(op)
            continue
        order.append(Op("I", op.micro_batch, 0))
        if op.micro_batch >= rank:
            order.append(Op("W", op.micro_batch - rank, 0))
    return order + [Op("W", i, 0) for i in range(max(0, m - rank), m)]


class _Counted:
    """Builds an order by naming kinds and chunks only; the micro-batch is the next one of that kind on that chunk.
    W takes the oldest activation gradient whose weight gradient is still owed."""

    def __init__(self, first: tuple[int, int] = (0, 0)):
        self.order: list[Op] = []
        self.f, self.b = list(first), list(first)
        self.owed: list[tuple[int, int]] = []  # (micro-batch, chunk)

    def forward(self, c: int) -> None:
        self.order.append(Op("F", self.f[c], c))
        self.f[c] += 1

    def backward(self, c: int, split: bool = False) -> None:
        self.order.append(Op("I" if split else "B", self.b[c], c))
        if split:
            self.owed.append((self.b[c], c))
        self.b[c] += 1

    def weight(self, c: int | None = None) -> None:
        k = 0 if c is None else next(k for k, (_, chunk) in enumerate(self.owed) if chunk == c)
        self.order.append(Op("W", *self.owed.pop(k)))

    def both(self, f: int, b: int) -> None:
        self.order.append(Op("FB", self.f[f], f, self.b[b], b))
        self.f[f] += 1
        self.b[b] += 1


def _zb_v(rank: int, P: int, m: int, v: int) -> list[Op]:
    """Chunk 0 goes down the ranks, chunk 1 comes back up: the last rank turns around at once, so W always fits."""
    o = _Counted()
    for _ in range(2 * (P - rank) - 1):
        o.forward(0)
    for _ in range(rank):
        o.forward(1)
        o.forward(0)
    for _ in range(P - rank):
        o.forward(1)
        o.backward(1, split=True)
        o.weight(1)
    while o.f[1] < o.f[0] or o.f[0] < m:
        if o.f[0] < m:
            o.forward(0)
        o.backward(0, split=True)
        o.weight(0)
        o.forward(1)
        o.backward(1, split=True)
        o.weight(1)
    for _ in range(rank):
        o.backward(0, split=True)
        o.backward(1, split=True)
    for _ in range(P - rank):
        o.backward(0, split=True)
        o.weight(0)
    for c in (1, 0):
        while any(chunk == c for _, chunk in o.owed):
            o.weight(c)
    return o.order


def _dual(o: _Counted, a: int, b: int, ahead: int, behind: int, main: int, meets: bool) -> list[Op]:
    """The eight steps that DualPipe and DualPipe-V share. `a` is the chunk whose forward starts here, `b` the other;
    `ahead` ranks lie between this one and the middle (the turn), `behind` is its own depth plus one."""
    for _ in range(2 * ahead):
        o.forward(a)
    for _ in range(behind):
        o.forward(a)
        o.forward(b)
    for _ in range(ahead):
        o.backward(b, split=True)
        o.weight()
        o.forward(b)
    for i in range(main):
        if i == 0 and meets:  # the backward here waits for the forward just sent: nothing to overlap yet
            o.forward(a)
            o.backward(b)
        else:
            o.both(a, b)
        o.both(b, a)
    for _ in range(ahead):
        o.backward(b)
        o.both(b, a)
    split = False
    for i in range(behind):  # in the second half weight gradients are put off to fill the end
        split = split or (i == behind // 2 and behind % 2 == 0)
        o.backward(b, split)
        split = split or i == behind // 2
        o.backward(a, split)
    for _ in range(ahead):
        o.weight()
        o.backward(a, split=True)
    while o.owed:
        o.weight()
    return o.order


def _dualpipe(rank: int, P: int, m: int, v: int) -> list[Op]:
    depth, half = min(rank, P - 1 - rank), P // 2
    first, second = (0, 1) if rank < half else (1, 0)  # the direction whose entrance is nearer
    o = _Counted((0, m // 2))
    return _dual(o, first, second, half - depth - 1, depth + 1, m // 2 - P + depth + 1, depth == half - 1)


def _dualpipe_v(rank: int, P: int, m: int, v: int) -> list[Op]:
    return _dual(_Counted(), 0, 1, P - rank - 1, rank + 1, m - 2 * P + rank + 1, rank == P - 1)
