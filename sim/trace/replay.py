"""Replaying Chakra execution traces: when would these nodes have run, given who waits for whom?

Compute and collective nodes take their recorded duration. Sends of a rank queue at its port. A receive ends when the
matching send of another file has arrived, or, where that file is not there (its replica was folded away), after its own
recorded duration. A collective starts when all members that are there have reached it, except an
all-to-all, which like a step's takes its own time.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from minglm.errors import InputError
from sim.trace.chakra import read
from sim.trace.chakra_node import COLL, RECV, SEND, Node

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


def replay(folder: str | Path, prefix: str = "step") -> Replay:
    """Replay all `PREFIX.N.et` of a folder, N from 0.

    Raises:
        InputError: no file, a bad one, or traces that wait in a circle.
    """
    folder = Path(folder)
    files: list[list[Node]] = []
    while (folder / f"{prefix}.{len(files)}.et").exists():
        files.append(read(folder / f"{prefix}.{len(files)}.et")[1])
    if not files:
        raise InputError(f"{folder / prefix}.0.et: no such file; give the folder and prefix of Chakra traces")
    group_file = folder / f"{prefix}.json"
    return run(files, json.loads(group_file.read_text(encoding="utf-8")) if group_file.exists() else {})


def run(files: list[list[Node]], groups: Mapping[str, list[int]]) -> Replay:
    """Replay the nodes of each file; `groups` are the communicators: name -> numbers of the files in it.

    Raises:
        InputError: a node that depends on one that is not there, or nodes that never start.
    """
    replayer = _Replayer(files, groups)
    replayer.run()
    undone = sum(map(len, files)) - sum(map(len, replayer.ends))
    if undone:
        raise InputError(
            f"{undone} nodes never start: a receive without its send, a collective without a member, or a circle; "
            "write all files of one step together"
        )
    return Replay(max((max(ends.values()) for ends in replayer.ends if ends), default=0), replayer.ends)


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
        members = [member for member in self.groups.get(group, [f]) if member < len(self.nodes)]
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
