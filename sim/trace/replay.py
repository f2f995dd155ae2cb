"""Replaying Chakra execution traces: when would these nodes have run, given who waits for whom?

Compute and collective nodes take their recorded duration, or what `sim/trace/node_time.py` makes of their bytes and
operations. A stream of a chip, and a thread of its host, runs one compute node at a time. Sends of a rank queue at its
port. A receive ends when the matching send of another file has arrived, or, where that file is not there (its replica
was folded away) or nothing says who sends, after its own recorded duration. A collective starts when all members that
are there have reached it, except an all-to-all, which like a step's takes its own time.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from minglm.errors import InputError
from sim.spec.hardware import Cluster
from sim.trace.chakra import read
from sim.trace.chakra_groups import Groups, groups_of, name_of, read_groups
from sim.trace.chakra_node import COLL, COMP, RECV, SEND, Node
from sim.trace.node_time import peer, timed

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
    found = {number: path for name, number, path in _traces(folder) if name == prefix}
    missing = next((n for n in range(len(found) + 1) if n not in found), 0)
    if missing < len(found) or not found:
        raise InputError(
            f"{folder / prefix}.{missing}.et: no such file; give the folder and prefix of Chakra traces, the files of "
            "all ranks from 0 on"
        )
    files = [read(found[n])[1] for n in range(len(found))]
    result = run(files, read_groups(folder, prefix), cluster)
    if not result.step_us:
        raise InputError(
            f"{folder / prefix}.N.et: no node has a duration, bytes or operations, so nothing takes time; give "
            "traces that were timed"
        )
    return result


def _traces(folder: Path) -> list[tuple[str, int, Path]]:
    """(prefix, number, file) of each trace in a folder: `PREFIX.N.et`, or `PREFIX_N.et` and `PREFIXN.et` of collectors
    that name a rank so; else what chakra_jsonizer made of them, `PREFIX.N.json`."""
    for pattern, suffix in ((r"(.+)\.(\d{1,9})", "et"), (r"(.*?)[-_.]?(\d{1,9})", "et"), (r"(.+)\.(\d{1,9})", "json")):
        matched = ((re.fullmatch(pattern, path.stem), path) for path in sorted(folder.glob(f"*.{suffix}")))
        found = [(match[1], int(match[2]), path) for match, path in matched if match]
        if found:
            return found
    return []


def _only_prefix(folder: Path) -> str:
    prefixes = sorted({name for name, *_ in _traces(folder)})
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


def run(files: list[list[Node]], groups: Mapping[str, list[int]], cluster: Cluster | None = None) -> Replay:
    """Replay the nodes of each file.

    Args:
        groups: the communicators: name → numbers of the files in it; without any, the trace's own.
        cluster: times the nodes without a duration.
    Raises:
        InputError: a node that depends on one that is not there, nodes that never start, or whose time is not known.
    """
    known = groups_of(files, groups)
    replayer = _Replayer([[timed(node, f, known, cluster) for node in file] for f, file in enumerate(files)], known)
    replayer.run()
    started = replayer.ends
    undone = [(f, node) for f, file in enumerate(files) for node in file if node.id not in started[f]]
    if undone:
        first, node = undone[0]
        raise InputError(
            f"{len(undone)} nodes never start, of file {first} node {node.id} {node.name[:40]!r}: a receive without "
            "its send, a collective without a member, or a circle; write all files of one step together"
        )
    return Replay(max((max(ends.values()) for ends in replayer.ends if ends), default=0), replayer.ends)


class _Replayer:
    """Nodes wait for those they depend on; `queue` holds those that are ready as (time, file, node)."""

    def __init__(self, files: list[list[Node]], groups: Groups) -> None:
        self.nodes = [{node.id: node for node in file} for file in files]
        self.groups = groups
        self.ends: list[dict[int, int]] = [{} for _ in files]
        self.children: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self.missing: list[dict[int, int]] = [{} for _ in files]  # dependencies that have not ended
        self.ready: list[dict[int, int]] = [{} for _ in files]  # when the last of the others ended
        self.queue: list[tuple[int, int, int]] = []
        self.ports = [0] * len(files)  # when each file's port is next free
        self.units: dict[tuple[int, object, object], int] = {}  # when each stream or thread of a file is next free
        self.sent: dict[_Message, int] = {}  # arrival
        self.waiting: dict[_Message, tuple[int, int, int]] = {}  # receives that wait for a send
        self.turns: dict[tuple[str, int, int, int], int] = defaultdict(int)
        self.collectives: dict[tuple[str, int], int] = defaultdict(int)
        self.gathering: dict[tuple[str, int], list[tuple[int, int, int]]] = defaultdict(list)
        self.homes = _homes(files)
        for f, file in enumerate(files):
            for node in file:
                self._depend(f, node)

    def _depend(self, f: int, node: Node) -> None:
        needs = [(f if dep in self.nodes[f] else self._home(f, node, dep), dep) for dep in node.deps]
        needs += [(f, caller) for caller in node.callers if caller in self.nodes[f]]
        self.missing[f][node.id] = len(needs)
        for need in needs:
            self.children[need].append((f, node.id))
        if not needs:
            heapq.heappush(self.queue, (0, f, node.id))

    def _home(self, f: int, node: Node, dep: int) -> int:
        """The other file that a dependency is in."""
        if dep not in self.homes:
            raise InputError(
                f"file {f}: node {node.id} depends on {dep}, which is not there; give the files of all ranks, or write "
                "the trace again"
            )
        return self.homes[dep]

    def run(self) -> None:
        """Until no node is ready any more."""
        while self.queue:
            now, f, k = heapq.heappop(self.queue)
            node = self.nodes[f][k]
            if node.attrs.get("all_to_all"):
                self._finish(f, k, now + node.duration_us)
            elif node.type == SEND:
                self._send(now, f, node)
            elif node.type == RECV and peer(node, "comm_src") in range(len(self.nodes)):
                self._receive(now, f, node)
            elif node.type == COLL:
                self._collective(now, f, node)
            elif node.type == COMP:
                self._compute(now, f, node)
            else:
                self._finish(f, k, now + node.duration_us)

    def _compute(self, now: int, f: int, node: Node) -> None:
        host = bool(node.attrs.get("is_cpu_op"))
        unit = (f, host, node.attrs.get("tid" if host else "stream"))
        end = self.units[unit] = max(self.units.get(unit, 0), now) + node.duration_us
        self._finish(f, node.id, end)

    def _finish(self, f: int, k: int, end: int) -> None:
        self.ends[f][k] = end
        for g, child in self.children.get((f, k), ()):
            self.ready[g][child] = max(self.ready[g].get(child, 0), end)
            self.missing[g][child] -= 1
            if not self.missing[g][child]:
                heapq.heappush(self.queue, (self.ready[g][child], g, child))

    def _send(self, now: int, f: int, node: Node) -> None:
        arrived = self.ports[f] = max(self.ports[f], now) + node.duration_us
        target = peer(node, "comm_dst")
        message = self._message("send", f, -1 if target is None else target, peer(node, "comm_tag") or 0)
        self.sent[message] = arrived
        self._finish(f, node.id, arrived)
        if message in self.waiting:
            since, receiver, k = self.waiting.pop(message)
            self._finish(receiver, k, max(since, arrived))

    def _receive(self, now: int, f: int, node: Node) -> None:
        message = self._message("receive", peer(node, "comm_src") or 0, f, peer(node, "comm_tag") or 0)
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
        group, members = name_of(node), self.groups.present(node)
        meeting = (group, self.collectives[group, f])
        self.collectives[group, f] += 1
        self.gathering[meeting].append((now, f, node.id))
        if len(self.gathering[meeting]) == len(members):
            begin = max(reached for reached, *_ in self.gathering[meeting])
            for _, member, k in self.gathering.pop(meeting):
                self._finish(member, k, begin + self.nodes[member][k].duration_us)


def _homes(files: list[list[Node]]) -> dict[int, int]:
    """Number of the file that each node is in, where no two files number alike (chakra's generator counts on from file
    to file); else nothing, for a number that is not in its own file may be any other's.

    Raises:
        InputError: a file with two nodes of one number.
    """
    for f, file in enumerate(files):
        number, times = next(iter(Counter(node.id for node in file).most_common(1)), (0, 0))
        if times > 1:
            raise InputError(f"file {f}: {times} nodes have the number {number}; number each node once")
    homes = {node.id: f for f, file in enumerate(files) for node in file}
    return homes if len(homes) == sum(map(len, files)) else {}
