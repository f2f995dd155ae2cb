"""The nodes of one pipeline rank: its ops, transfers, all-to-alls, gradient reduction and what follows the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minglm.errors import InputError
from sim.cost.step_costs import StepCosts
from sim.trace.chakra_node import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, COLL, COMP, RECV, SEND, Attribute, Node
from sim.training.gradients import BUCKETS
from sim.training.program import Program
from sim.training.replica import Replica
from sim.training.schedules import Op
from sim.training.step import StepResult


@dataclass(frozen=True, slots=True)
class AllToAll:
    """How the hideable all-to-all of a pass is written.

    bytes: that one rank sends in one pass.
    members: replicas that exchange tokens (the expert-parallel group, of the same pipeline rank).
    weights: share of each member, relative; None for an even all-to-all, which is one ALL_TO_ALL node. The schema's
        all-to-all is even, so a skewed one is written as a send to and a receive from each other member.
    """

    bytes: float = 0.0
    members: int = 1
    weights: tuple[float, ...] | None = None


class Transfers:
    """Which rank fills each slot of a step's programs, and which reads it."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.sender: dict[int, int] = {}
        self.receiver: dict[int, int] = {}
        for rank, program in enumerate(programs):
            for need, need2, out, _, out2, _ in program.rows:
                self.sender[out] = self.sender[out2] = rank
                self.receiver[need] = self.receiver[need2] = rank


class RankNodes:
    """Builds the nodes of one rank of one replica.

    first_file: number of the file of the replica's rank 0; grad_bytes: what one rank reduces.
    """

    def __init__(
        self,
        result: StepResult,
        replica: Replica,
        rank: int,
        first_file: int,
        costs: StepCosts,
        transfers: Transfers,
        all_to_all: AllToAll,
        grad_bytes: float,
    ) -> None:
        self.result, self.replica, self.rank, self.first_file = result, replica, rank, first_file
        self.costs, self.transfers, self.all_to_all, self.grad_bytes = costs, transfers, all_to_all, grad_bytes
        self.program, self.ranks = result.programs[rank], len(result.programs)
        self.nodes: list[Node] = []
        self.before: list[int] = []  # nodes that the next op waits for
        self.buckets: list[tuple[float, list[int]]] = []  # (when a bucket of gradients is ready, nodes that make it)

    def build(self) -> list[Node]:
        """All nodes of the rank."""
        last = {
            (op.b_chunk if op.kind == "FB" else op.chunk): k
            for k, op in enumerate(self.program.ops)
            if op.kind in ("B", "W", "FB")
        }
        gradients_done = set(last.values())
        for k, (start, end) in enumerate(self.replica.spans(self.rank, self.program)):
            overlaps = self.costs.overlap_grad_reduce and self.costs.grad_reduce_s and k in gradients_done
            received = self._receives(k)
            self._op(k, start, end, received, parts=BUCKETS if overlaps else 1)
            self._sends(k)
        self._after_pipeline(self._gradient_reduction())
        return self.nodes

    def _add(
        self, name: str, kind: int, deps: Sequence[int], start_s: float, seconds: float, **attrs: Attribute
    ) -> int:
        """Instants are rounded, not lengths: whatever follows one another then adds up without drift."""
        start, end = round(start_s * 1e6), round((start_s + seconds) * 1e6)
        node = Node(len(self.nodes), name, kind, sorted(set(deps)), start, end - start, {"is_cpu_op": False} | attrs)
        self.nodes.append(node)
        return node.id

    def _receives(self, k: int) -> list[int]:
        need, need2, *_ = self.program.rows[k]
        sender = self.transfers.sender
        return [
            self._transfer("receive", RECV, [], slot, sender[slot], self.rank)
            for slot in (need, need2)
            if slot and sender[slot] != self.rank
        ]

    def _sends(self, k: int) -> None:
        _, _, out, far, out2, far2 = self.program.rows[k]
        for slot, is_far in ((out, far), (out2, far2)):
            if slot and is_far:
                self._transfer("send", SEND, self.before, slot, self.rank, self.transfers.receiver[slot])

    def _transfer(self, name: str, kind: int, deps: Sequence[int], slot: int, sender: int, receiver: int) -> int:
        return self._add(
            f"{name} {slot}",
            kind,
            deps,
            self.replica.slots[slot] - self.costs.p2p_s,
            self.costs.p2p_s,
            comm_size=int(self.costs.p2p_bytes),
            comm_src=self.first_file + sender,
            comm_dst=self.first_file + receiver,
            comm_tag=slot,
        )

    def _op(self, k: int, start: float, end: float, received: list[int], parts: int) -> None:
        """One op, in as many parts as it completes buckets of gradients, and its all-to-all after or beside it."""
        op, work, seconds = self.program.ops[k], self.program.work[k], self.replica.seconds[self.rank][k]
        comm_s = work.forward_comm_s + work.backward_comm_s
        compute_s = max(0.0, seconds - comm_s) if op.kind != "FB" else min(work.compute_s, seconds)
        together = bool(comm_s) and op.kind == "FB"
        deps = [*self.before, *received]
        beside = self._all_to_all(deps, start, seconds) if together else []
        length = end - start if (together and parts > 1) or not comm_s else compute_s
        for part in range(parts):  # a bucket of gradients is ready when its part of the pass is done
            begin = start + (end - start) * part / parts
            name = _label(op) if parts == 1 else f"{_label(op)} part {part}"
            deps = [self._add(name, COMP, deps, begin, length / parts)]
            if comm_s and not together:
                deps = self._all_to_all(deps, begin + length / parts, (end - start - length) / parts)
            if parts > 1:
                self.buckets.append((start + (end - start) * (part + 1) / parts, deps))
        self.before = deps + beside

    def _all_to_all(self, deps: Sequence[int], start: float, seconds: float) -> list[int]:
        """The all-to-all of one pass: one node when even, a send and a receive per other member when skewed."""
        weights, size = self.all_to_all.weights, self.all_to_all.bytes
        if weights is None:
            attrs: dict[str, Attribute] = {
                "comm_type": ALL_TO_ALL,
                "comm_size": int(size),
                "pg_name": str(1 + self.ranks + self.rank),
            }
            return [self._add("all-to-all", COLL, deps, start, seconds, **attrs, all_to_all=True)]
        if len(weights) != self.all_to_all.members or min(weights) < 0 or not sum(weights):
            raise InputError(
                f"all-to-all weights {weights!r}: one share of at least 0 for each of the {self.all_to_all.members} "
                "members, not all 0; give as many as there are members"
            )
        total, top, own = sum(weights), max(weights), self.first_file + self.rank
        ends = []
        for member, weight in enumerate(weights):
            peer, share = member * self.ranks + self.rank, seconds * weight / top
            if peer != own:
                for name, kind, source, target in (("to", SEND, own, peer), ("from", RECV, peer, own)):
                    ends.append(
                        self._add(
                            f"all-to-all {name} {member}",
                            kind,
                            deps,
                            start,
                            share,
                            comm_size=int(size * weight / total),
                            comm_src=source,
                            comm_dst=target,
                            comm_tag=-1 & 0x7FFFFFFF,
                            all_to_all=True,
                        )
                    )
            elif weight == top:  # the busiest member is this one: its own work sets the pace
                ends.append(self._add("all-to-all, own tokens", COMP, deps, start, share, all_to_all=True))
        return ends

    def _gradient_reduction(self) -> list[int]:
        """Bucket by bucket where it overlaps, else in one after the last op; the nodes that end it."""
        seconds = self.costs.grad_reduce_s
        if not seconds:
            return []
        buckets = sorted(self.buckets) or [(self.replica.ends[self.rank][-1], self.before)]
        chain: list[int] = []
        free = 0.0
        for ready_s, nodes in buckets:
            free = max(free, ready_s)
            chain = [
                self._add(
                    "gradient reduction",
                    COLL,
                    chain + nodes,
                    free,
                    seconds / len(buckets),
                    comm_type=ALL_REDUCE,
                    comm_size=int(self.grad_bytes / len(buckets)),
                    pg_name=str(1 + self.rank),
                )
            ]
            free += seconds / len(buckets)
        return chain

    def _after_pipeline(self, chain: list[int]) -> None:
        """Gradient norm over all ranks, optimiser, parameter gather, host."""
        start = self.result.pipeline_s + self.result.grad_exposed_s
        deps = chain + self.before
        norm: dict[str, Attribute] = {"comm_type": ALL_REDUCE, "comm_size": 4, "pg_name": "0"}
        chain = [self._add("gradient norm", COLL, deps, start, 0.0, **norm)]
        gather: dict[str, Attribute] = {
            "comm_type": ALL_GATHER,
            "comm_size": int(self.grad_bytes / self.result.replicas),  # what one rank gives
            "pg_name": str(1 + self.rank),
        }
        attrs: dict[str, Attribute]
        for name, kind, seconds, attrs in (
            ("optimiser", COMP, self.costs.optimizer_s, {}),
            ("parameter gather", COLL, self.costs.param_gather_s, gather),
            ("host", COMP, self.costs.fixed_s, {}),
        ):
            if seconds:
                chain = [self._add(name, kind, chain, start, seconds, **attrs)]
                start += seconds


def _label(op: Op) -> str:
    label = f"{op.kind} micro-batch {op.micro_batch} chunk {op.chunk}"
    return label if op.kind != "FB" else f"{label} | micro-batch {op.b_micro_batch} chunk {op.b_chunk}"
