"""MLCommons Chakra execution traces of a step: written for ASTRA-sim and its like, read back and replayed here.

One file per distinct pipeline rank, `PREFIX.N.et`: a length-delimited `GlobalMetadata`, then `Node`s. Beside them
`PREFIX.json`, the communicator groups (name -> file numbers), and `PREFIX.fold.json`, which rank of which replica each
file stands for. A pipeline rank is `chips_per_rank` chips in lock step; what they do among themselves is inside their
compute nodes. Durations are whole microseconds, as the schema has them.

Field numbers and node types: schema/protobuf/et_def.proto of mlcommons/chakra at commit 6dc63e147b9d115286626cc122459e44d9d08401.
Attribute names and their types: the feeder in src/feeder of that repository (dependencies go to `data_deps`, all it reads).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from minglm.errors import InputError
from sim.cost.step_costs import StepCosts
from sim.trace import protobuf
from sim.training.gradients import BUCKETS
from sim.training.jitter import Jitter
from sim.training.step import StepResult, simulate

SCHEMA = "mlcommons/chakra 6dc63e147b9d115286626cc122459e44d9d08401"
VERSION = "0.0.4"
COMP, SEND, RECV, COLL = 4, 5, 6, 7
ALL_REDUCE, ALL_GATHER, ALL_TO_ALL = 0, 2, 6
_ATTRIBUTE = {bool: 27, str: 29, float: 3}  # AttributeProto field by Python type
_INT32, _INT64 = 7, 9
_INT32_NAMES = ("comm_src", "comm_dst", "comm_tag")
MOST_FILES = 4096


@dataclass(slots=True)
class Node:
    """One node of a trace; times in whole microseconds."""

    id: int
    name: str
    type: int
    deps: list[int] = field(default_factory=list)
    start_us: int = 0
    duration_us: int = 0
    attrs: dict[str, int | str | bool | float] = field(default_factory=dict)

    def encode(self) -> bytes:
        out = (
            protobuf.field(1, self.id)
            + protobuf.field(2, self.name)
            + protobuf.field(3, self.type)
            + protobuf.packed(5, self.deps)
        )
        out += protobuf.field(6, self.start_us) + protobuf.field(7, self.duration_us)
        for name, value in self.attrs.items():
            number = _ATTRIBUTE.get(type(value), _INT32 if name in _INT32_NAMES else _INT64)
            out += protobuf.field(10, protobuf.field(1, name) + protobuf.field(number, value))
        return out

    @classmethod
    def decode(cls, data: bytes) -> Node:
        node = cls(0, "", 0)
        for number, value in protobuf.fields(data):
            if number == 1:
                node.id = value
            elif number == 2:
                node.name = value.decode()
            elif number == 3:
                node.type = value
            elif number in (4, 5):
                node.deps += protobuf.unpack(value)
            elif number == 6:
                node.start_us = value
            elif number == 7:
                node.duration_us = value
            elif number == 10:
                parts = dict(protobuf.fields(value))
                name = parts.pop(1, b"").decode()
                for kind, raw in parts.items():
                    if kind == 27:
                        node.attrs[name] = bool(raw)
                    elif kind == 29:
                        node.attrs[name] = raw.decode()
                    elif isinstance(raw, int):
                        node.attrs[name] = raw
        return node


@dataclass(frozen=True, slots=True)
class AllToAll:
    """How the hideable all-to-all of a pass is written.

    bytes: that one rank sends in one pass.
    members: replicas that exchange tokens (the expert-parallel group, of the same pipeline rank).
    weights: share of each member, relative; None for an even exchange, which is one ALL_TO_ALL node. The schema's
        all-to-all is even, so a skewed one is written as a send to and a receive from each other member.
    """

    bytes: float = 0.0
    members: int = 1
    weights: tuple[float, ...] | None = None


class _Recorder:
    def take(self, result, played, costs) -> None:
        self.played = played


class _Rank:
    """Builds the nodes of one rank."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, name: str, kind: int, deps: list[int], start_s: float, seconds: float, **attrs) -> int:
        """Instants are rounded, not lengths: whatever follows one another then adds up without drift."""
        start, end = round(start_s * 1e6), round((start_s + seconds) * 1e6)
        node = Node(len(self.nodes), name, kind, sorted(set(deps)), start, end - start, {"is_cpu_op": False} | attrs)
        self.nodes.append(node)
        return node.id


def write(
    costs: StepCosts,
    schedule: str,
    folder,
    prefix: str = "step",
    *,
    replicas: int = 1,
    fold: bool = True,
    jitter: Jitter | None = None,
    seed: int = 0,
    all_to_all: AllToAll | None = None,
    grad_bytes: float = 0.0,
) -> StepResult:
    """Play a step and write it as Chakra traces; returns the step's result.

    Identical replicas are written once (`fold`), which `PREFIX.fold.json` says. `grad_bytes` is what one rank reduces.
    Raises InputError where there would be over 4,096 files: noise makes every replica distinct.
    """
    folder, recorder = Path(folder), _Recorder()
    result = simulate(costs, schedule, replicas=replicas, fold=fold, jitter=jitter, seed=seed, recorder=recorder)
    played, P = recorder.played, len(result.programs)
    if len(played) * P > MOST_FILES:
        raise InputError(
            f"{len(played)} distinct replicas of {P} ranks: {len(played) * P} trace files are more than {MOST_FILES}; leave "
            "out the noise or play fewer replicas"
        )
    folder.mkdir(parents=True, exist_ok=True)
    groups = {"0": list(range(len(played) * P))}
    for rank in range(P):
        groups[str(1 + rank)] = groups[str(1 + P + rank)] = [k * P + rank for k in range(len(played))]  # data, experts
    fold_map = []
    for k, replica in enumerate(played):
        for rank in range(P):
            nodes = _rank_nodes(result, replica, rank, k * P, costs, all_to_all or AllToAll(), grad_bytes)
            metadata = protobuf.field(1, VERSION) + protobuf.field(
                2, protobuf.field(1, "schema") + protobuf.field(29, SCHEMA)
            )
            (folder / f"{prefix}.{k * P + rank}.et").write_bytes(
                protobuf.delimited([metadata] + [n.encode() for n in nodes])
            )
            fold_map.append({"file": k * P + rank, "replica": replica.index, "rank": rank})
    (folder / f"{prefix}.json").write_text(json.dumps(groups))
    (folder / f"{prefix}.fold.json").write_text(
        json.dumps(
            {
                "schema": SCHEMA,
                "schedule": schedule,
                "replicas": replicas,
                "written_replicas": len(played),
                "ranks": P,
                "chips_per_rank": costs.chips_per_rank,
                "files": fold_map,
            }
        )
    )
    return result


def _rank_nodes(
    result: StepResult, replica, rank: int, first_file: int, costs: StepCosts, exchange: AllToAll, grad_bytes: float
) -> list[Node]:
    out, program, me, P = _Rank(), result.programs[rank], first_file + rank, len(result.programs)
    owner = {}  # slot -> rank that fills it
    for r, p in enumerate(result.programs):
        for row in p.rows:
            owner[row[2]] = owner[row[4]] = r
    taker = {need: r for r, p in enumerate(result.programs) for row in p.rows for need in row[:2]}
    last = {}
    for k, op in enumerate(program.ops):
        if op.kind in ("B", "W", "FB"):
            last[op.b_chunk if op.kind == "FB" else op.chunk] = k
    gradients_done = set(last.values())
    before, buckets = [], []
    for k, (op, row, work, (start, end)) in enumerate(
        zip(program.ops, program.rows, program.work, replica.spans(rank, program))
    ):
        need, need2, dst, far, dst2, far2 = row
        deps = list(before)
        for slot in (need, need2):
            if slot and owner[slot] != rank:
                deps.append(
                    out.add(
                        f"receive {slot}",
                        RECV,
                        [],
                        replica.slots[slot] - costs.p2p_s,
                        costs.p2p_s,
                        comm_size=int(costs.p2p_bytes),
                        comm_src=first_file + owner[slot],
                        comm_dst=me,
                        comm_tag=slot,
                    )
                )
        comm_s = work.forward_comm_s + work.backward_comm_s
        seconds = replica.seconds[rank][k]
        compute_s = max(0.0, seconds - comm_s) if op.kind != "FB" else min(work.compute_s, seconds)
        label = f"{op.kind} micro-batch {op.micro_batch} chunk {op.chunk}" + (
            f" | micro-batch {op.b_micro_batch} chunk {op.b_chunk}" if op.kind == "FB" else ""
        )
        parts = BUCKETS if k in gradients_done and costs.overlap_grad_reduce and costs.grad_reduce_s else 1
        together = bool(comm_s) and op.kind == "FB"
        ends = _exchange(out, exchange, deps, start, seconds, first_file, rank, P) if together else []
        length = end - start if together and parts > 1 else compute_s if comm_s else end - start
        for part in range(parts):  # a bucket of gradients is ready when its part of the pass is done
            begin = start + (end - start) * part / parts
            node = out.add(label if parts == 1 else f"{label} part {part}", COMP, deps, begin, length / parts)
            deps = [node]
            if comm_s and not together:
                deps = _exchange(
                    out, exchange, deps, begin + length / parts, (end - start - length) / parts, first_file, rank, P
                )
            if parts > 1:
                buckets.append((start + (end - start) * (part + 1) / parts, deps))
        before = deps + ends
        for slot, is_far in ((dst, far), (dst2, far2)):
            if slot and is_far:
                out.add(
                    f"send {slot}",
                    SEND,
                    before,
                    replica.slots[slot] - costs.p2p_s,
                    costs.p2p_s,
                    comm_size=int(costs.p2p_bytes),
                    comm_src=me,
                    comm_dst=first_file + taker[slot],
                    comm_tag=slot,
                )
    end = replica.ends[rank][-1]
    chain: list[int] = []
    if buckets:
        each = costs.grad_reduce_s / len(buckets)
        free = 0.0
        for at, nodes in sorted(buckets):
            free = max(free, at)
            chain = [
                out.add(
                    "gradient reduction",
                    COLL,
                    chain + nodes,
                    free,
                    each,
                    comm_type=ALL_REDUCE,
                    comm_size=int(grad_bytes / len(buckets)),
                    pg_name=str(1 + rank),
                )
            ]
            free += each
    elif costs.grad_reduce_s:
        chain = [
            out.add(
                "gradient reduction",
                COLL,
                before,
                end,
                costs.grad_reduce_s,
                comm_type=ALL_REDUCE,
                comm_size=int(grad_bytes),
                pg_name=str(1 + rank),
            )
        ]
    after = result.pipeline_s + result.grad_exposed_s
    chain = [out.add("gradient norm", COLL, chain + before, after, 0.0, comm_type=ALL_REDUCE, comm_size=4, pg_name="0")]
    for name, kind, seconds, attrs in (
        ("optimiser", COMP, costs.optimizer_s, {}),
        (
            "parameter gather",
            COLL,
            costs.param_gather_s,
            dict(comm_type=ALL_GATHER, comm_size=int(grad_bytes), pg_name=str(1 + rank)),
        ),
        ("host", COMP, costs.fixed_s, {}),
    ):
        if seconds:
            chain = [out.add(name, kind, chain, after, seconds, **attrs)]
            after += seconds
    return out.nodes


def _exchange(
    out: _Rank,
    exchange: AllToAll,
    deps: list[int],
    start: float,
    seconds: float,
    first_file: int,
    rank: int,
    ranks: int,
) -> list[int]:
    """The all-to-all of one pass: one node when even, a send and a receive per other member when skewed."""
    if exchange.weights is None:
        return [
            out.add(
                "all-to-all",
                COLL,
                deps,
                start,
                seconds,
                comm_type=ALL_TO_ALL,
                comm_size=int(exchange.bytes),
                pg_name=str(1 + ranks + rank),
                exchange=True,
            )
        ]
    if len(exchange.weights) != exchange.members or min(exchange.weights) < 0 or not sum(exchange.weights):
        raise InputError(
            f"all-to-all weights {exchange.weights!r}: one share of at least 0 for each of the {exchange.members} members, not "
            "all 0; give as many as there are members"
        )
    total, top = sum(exchange.weights), max(exchange.weights)
    ends = []
    for member, weight in enumerate(exchange.weights):
        peer = member * ranks + rank
        size, share = int(exchange.bytes * weight / total), seconds * weight / top
        if peer != first_file + rank:
            ends.append(
                out.add(
                    f"all-to-all to {member}",
                    SEND,
                    deps,
                    start,
                    share,
                    comm_size=size,
                    comm_src=first_file + rank,
                    comm_dst=peer,
                    comm_tag=-1 & 0x7FFFFFFF,
                    exchange=True,
                )
            )
            ends.append(
                out.add(
                    f"all-to-all from {member}",
                    RECV,
                    deps,
                    start,
                    share,
                    comm_size=size,
                    comm_src=peer,
                    comm_dst=first_file + rank,
                    comm_tag=-1 & 0x7FFFFFFF,
                    exchange=True,
                )
            )
        elif weight == top:  # the busiest member is this one: its own work sets the pace
            ends.append(out.add("all-to-all, own tokens", COMP, deps, start, share))
    return ends


def read(path) -> tuple[str, list[Node]]:
    """(version, nodes) of one `.et` file. Raises InputError for a file that is missing, cut off or something else."""
    path = Path(path)
    try:
        messages = list(protobuf.split(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the prefix of PREFIX.N.et files") from None
    except InputError as err:
        raise InputError(f"{path}: {err}") from None
    if not messages:
        raise InputError(f"{path}: empty; an execution trace begins with its metadata: write it again")
    try:
        version = dict(protobuf.fields(messages[0])).get(1, b"")
        return bytes(version).decode() if not isinstance(version, int) else str(version), [
            Node.decode(m) for m in messages[1:]
        ]
    except (InputError, UnicodeDecodeError, AttributeError, TypeError) as err:
        raise InputError(
            f"{path}: not a Chakra execution trace ({err}); write it with sim.trace.chakra.write"
        ) from None
