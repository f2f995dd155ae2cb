"""Replaying Chakra execution traces: when would these nodes have run, given who waits for whom?

Compute and collective nodes take their recorded duration; where none is recorded but bytes or operations are, as in
traces made for other simulators, a cluster's fabric and chip time them, and without a cluster they are refused. Sends
of a rank queue at its port. A receive ends when the matching send of another file has arrived, or, where that file is
not there (its replica was folded away), after its own recorded duration. A collective starts when all members that are
there have reached it, except an all-to-all, which like a step's takes its own time.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from minglm.errors import InputError
from sim.cost import collectives
from sim.spec.hardware import Cluster
from sim.trace.chakra import read
from sim.trace.chakra_node import COLL, COMP, RECV, SEND, Node

_Message: TypeAlias = tuple[int, int, int, int]  # sending file, receiving file, tag, how many-th of these


@dataclass(slots=True)
class Replay:
    """When everything ended, microseconds."""

    step_us: int
    ends_us: list[dict[int, int]]  # per file: node -> end

    @property
    def step_s(self) -> float:
        """When the last node ended, seconds."""
        return self.step_us / 1e6


# Chakra's collective types (schema/protobuf/et_def.proto) as `sim.cost.collectives` names them; a reduce to one rank
# takes what a broadcast from it does.
_COLLECTIVES = {0: "all_reduce", 1: "broadcast", 2: "all_gather", 5: "broadcast", 6: "all_to_all", 7: "reduce_scatter"}
_SCALAR = 64  # bytes; a norm or a flag, whose time a trace may leave at nothing


def replay(folder: str | Path, prefix: str | None = None, cluster: Cluster | None = None) -> Replay:
    """Replay all `PREFIX.N.et` of a folder, N from 0.

    Args:
        prefix: may be left out where the folder has traces of one prefix.
        cluster: times the nodes without a duration; file N stands for its chip N.
    Raises:
        InputError: no file, a bad one, traces that wait in a circle, or nodes whose time is not known.
    """
    folder = Path(folder)
    prefix = prefix or _only_prefix(folder)
    numbers = sorted(n for name, n in _traces(folder) if name == prefix)
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next(n for n in range(len(numbers) + 1) if n not in numbers)
        raise InputError(f"{folder / prefix}.{missing}.et: no such file; give the folder and prefix of Chakra traces")
    files = [read(folder / f"{prefix}.{n}.et")[1] for n in numbers]
    result = run(files, _read_groups(folder / f"{prefix}.json"), cluster)
    if not result.step_us:
        raise InputError(
            f"{folder / prefix}.N.et: no node has a duration, bytes or operations, so nothing takes time; give "
            "traces that were timed"
        )
    return result


def _traces(folder: Path) -> list[tuple[str, int]]:
    """(prefix, number) of each trace in a folder."""
    found = (re.fullmatch(r"(.+)\.(\d{1,9})\.et", path.name) for path in folder.glob("*.et"))
    return [(match[1], int(match[2])) for match in found if match]


def _only_prefix(folder: Path) -> str:
    prefixes = sorted({name for name, _ in _traces(folder)})
    if not prefixes:
        profile = next((path for path in folder.glob("*.json*") if path.suffix in (".json", ".gz")), None)
        remedy = "give the folder of Chakra traces"
        if profile is not None:  # PyTorch's profiler, its execution trace observer
            remedy = f"make them of {profile.name} with chakra_converter (mlcommons/chakra), and give their folder"
            remedy += ", or give it to --profile"
        raise InputError(f"{folder}: no PREFIX.N.et in it; {remedy}")
    if len(prefixes) > 1:
        raise InputError(f"{folder}: traces of {', '.join(prefixes[:5])}; give one of them as --prefix {prefixes[0]}")
    return prefixes[0]


def _read_groups(path: Path) -> dict[str, list[int]]:
    """Communicator groups of a trace: name → numbers of files; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [int(member) for member in members] for name, members in groups.items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: not communicator groups; it must be {{name: [numbers of files]}}") from None


def run(files: list[list[Node]], groups: Mapping[str, list[int]], cluster: Cluster | None = None) -> Replay:
    """Replay the nodes of each file.

    Args:
        groups: the communicators: name → numbers of the files in it; without any, all files are one.
        cluster: times the nodes without a duration.
    Raises:
        InputError: a node that depends on one that is not there, nodes that never start, or whose time is not known.
    """
    files = [[_timed(node, f, len(files), groups, cluster) for node in file] for f, file in enumerate(files)]
    replayer = _Replayer(files, groups)
    replayer.run()
    undone = sum(map(len, files)) - sum(map(len, replayer.ends))
    if undone:
        raise InputError(
            f"{undone} nodes never start: a receive without its send, a collective without a member, or a circle; "
            "write all files of one step together"
        )
    return Replay(max((max(ends.values()) for ends in replayer.ends if ends), default=0), replayer.ends)


def _group(node: Node, files: int, groups: Mapping[str, list[int]]) -> list[int]:
    """Numbers of the files that a collective brings together, those that were folded away among them."""
    group = str(node.attrs.get("pg_name", ""))
    if not groups or not group:
        return list(range(files))
    if group not in groups:
        raise InputError(
            f"node {node.id}: group {group[:40]!r} is not among the trace's {', '.join(sorted(groups)[:5])}; add it to "
            "PREFIX.json"
        )
    return groups[group]


def _members(node: Node, files: int, groups: Mapping[str, list[int]]) -> list[int]:
    """Those of a collective's group that are there."""
    return [member for member in _group(node, files, groups) if member < files]


def _timed(node: Node, file: int, files: int, groups: Mapping[str, list[int]], cluster: Cluster | None) -> Node:
    """The node with a duration: its own, else what the cluster makes of its bytes and operations."""
    size, operations = _amount(node, "comm_size"), _amount(node, "num_ops")
    if node.type == COMP:
        size = _amount(node, "tensor_size") or _amount(node, "tensor_bytes")
    moves = (node.type in (COLL, SEND) and size > _SCALAR) or (node.type == COMP and (operations or size))
    source = _whole(node, "comm_src") if node.type == RECV else 0
    moves = moves or (node.type == RECV and size > _SCALAR and not 0 <= source < files)
    if node.duration_us or not moves:
        return node
    if cluster is None:
        what = f"{operations:,.0f} operations" if operations else f"{size:,.0f} bytes"
        raise InputError(
            f"file {file}: node {node.id} {node.name[:40]!r} has {what} and no duration; give --cluster dgx_h100, or "
            "another, to time it"
        )
    if node.type == COMP:
        chip = cluster.chip
        seconds = max(operations / chip.peak("bf16").value, size / chip.memory_bytes_per_s.value)
    elif node.type == SEND:
        seconds = collectives.p2p(cluster, size, max(1, abs(_whole(node, "comm_dst") - file)))
    elif node.type == RECV:  # its sender's file is not there
        seconds = collectives.p2p(cluster, size, max(1, abs(source - file)))
    else:
        kind = _COLLECTIVES.get(int(_amount(node, "comm_type")))
        if kind is None:
            raise InputError(
                f"file {file}: node {node.id} is a collective of type {node.attrs.get('comm_type')}, which is not "
                "timed; give it a duration"
            )
        members = _group(node, files, groups)
        if len(members) < 2:
            if str(node.attrs.get("pg_name", "")) in groups:
                return node  # a group of one moves nothing
            raise InputError(
                f"file {file}: node {node.id} {node.name[:40]!r} is a collective of {size:,.0f} bytes in a trace of "
                'one file; write its group into PREFIX.json, such as {"0": [0, 1, 2, 3]}, and its pg_name, or add the '
                "other files"
            )
        stride = max(1, (max(members) - min(members)) // (len(members) - 1))
        seconds = collectives.time(kind, size, collectives.place(cluster, len(members), stride))
    return dataclasses.replace(node, duration_us=max(1, round(seconds * 1e6)))


def _amount(node: Node, name: str) -> float:
    """An attribute that is a number, or a text of one; 0 where it is missing or something else.

    Raises:
        InputError: a negative number, or one that is not finite.
    """
    value = node.attrs.get(name, 0)
    try:
        amount = float(value)
    except ValueError:
        return 0.0
    if not 0 <= amount < math.inf:
        raise InputError(f"node {node.id} {node.name[:40]!r}: {name} is {amount:g}; it must be 0 or more")
    return amount


class _Replayer:
    """Nodes wait for those they depend on; `queue` holds those that are ready as (time, file, node)."""

    def __init__(self, files: list[list[Node]], groups: Mapping[str, list[int]]) -> None:
        self.nodes = [{node.id: node for node in file} for file in files]
        self.groups = groups
        self.ends: list[dict[int, int]] = [{} for _ in files]
        self.children: list[dict[int, list[int]]] = [defaultdict(list) for _ in files]
        self.missing: list[dict[int, int]] = [{} for _ in files]  # dependencies that have not ended
        self.ready: list[dict[int, int]] = [{} for _ in files]  # when the last of the others ended
        self.queue: list[tuple[int, int, int]] = []
        self.ports = [0] * len(files)  # when each file's port is next free
        self.sent: dict[_Message, int] = {}  # arrival
        self.waiting: dict[_Message, tuple[int, int, int]] = {}  # receives that wait for a send
        self.turns: dict[tuple[str, int, int, int], int] = defaultdict(int)
        self.collectives: dict[tuple[str, int], int] = defaultdict(int)
        self.gathering: dict[tuple[str, int], list[tuple[int, int, int]]] = defaultdict(list)
        for f, file in enumerate(files):
            for node in file:
                self._depend(f, node)

    def _depend(self, f: int, node: Node) -> None:
        self.missing[f][node.id] = len(node.deps)
        for dep in node.deps:
            if dep not in self.nodes[f]:
                raise InputError(
                    f"file {f}: node {node.id} depends on {dep}, which is not there; write the trace again"
                )
            self.children[f][dep].append(node.id)
        if not node.deps:
            heapq.heappush(self.queue, (0, f, node.id))

    def run(self) -> None:
        """Until no node is ready any more."""
        while self.queue:
            now, f, k = heapq.heappop(self.queue)
            node = self.nodes[f][k]
            if node.attrs.get("all_to_all"):
                self._finish(f, k, now + node.duration_us)
            elif node.type == SEND:
                self._send(now, f, node)
            elif node.type == RECV and _whole(node, "comm_src") < len(self.nodes):
                self._receive(now, f, node)
            elif node.type == COLL:
                self._collective(now, f, node)
            else:
                self._finish(f, k, now + node.duration_us)

    def _finish(self, f: int, k: int, end: int) -> None:
        self.ends[f][k] = end
        for child in self.children[f][k]:
            self.ready[f][child] = max(self.ready[f].get(child, 0), end)
            self.missing[f][child] -= 1
            if not self.missing[f][child]:
                heapq.heappush(self.queue, (self.ready[f][child], f, child))

    def _send(self, now: int, f: int, node: Node) -> None:
        arrived = self.ports[f] = max(self.ports[f], now) + node.duration_us
        message = self._message("send", f, _whole(node, "comm_dst"), _whole(node, "comm_tag"))
        self.sent[message] = arrived
        self._finish(f, node.id, arrived)
        if message in self.waiting:
            since, receiver, k = self.waiting.pop(message)
            self._finish(receiver, k, max(since, arrived))

    def _receive(self, now: int, f: int, node: Node) -> None:
        message = self._message("receive", _whole(node, "comm_src"), f, _whole(node, "comm_tag"))
        if message in self.sent:
            self._finish(f, node.id, max(now, self.sent[message]))
        else:
            self.waiting[message] = (now, f, node.id)

    def _message(self, side: str, source: int, target: int, tag: int) -> _Message:
        """Messages between two ranks with one tag match in order."""
        turn = self.turns[side, source, target, tag]
        self.turns[side, source, target, tag] = turn + 1
        return source, target, tag, turn

    def _collective(self, now: int, f: int, node: Node) -> None:
        """The i-th collective of a group on one member meets the i-th on the others."""
        group = str(node.attrs.get("pg_name", ""))
        members = _members(node, len(self.nodes), self.groups)
        meeting = (group, self.collectives[group, f])
        self.collectives[group, f] += 1
        self.gathering[meeting].append((now, f, node.id))
        if len(self.gathering[meeting]) == len(members):
            begin = max(reached for reached, *_ in self.gathering[meeting])
            for _, member, k in self.gathering.pop(meeting):
                self._finish(member, k, begin + self.nodes[member][k].duration_us)


def _whole(node: Node, name: str) -> int:
    """An attribute that is a whole number. Raises InputError where it is missing or something else."""
    value = node.attrs.get(name)
    if not isinstance(value, int):
        raise InputError(f"node {node.id}: {name} is {value!r}, not a whole number; write the trace again")
    return value
