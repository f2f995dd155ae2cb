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
from dataclasses import dataclass
from pathlib import Path

from minglm.errors import InputError
from sim.trace.chakra import read
from sim.trace.chakra_node import COLL, RECV, SEND, Node


@dataclass(slots=True)
class Replay:
    """When everything ended, microseconds."""

    step_us: int
    ends_us: list[dict[int, int]]  # per file: node -> end

    @property
    def step_s(self) -> float:
        return self.step_us / 1e6


def replay(folder, prefix: str = "step") -> Replay:
    """Replay all `PREFIX.N.et` of a folder, N from 0. Raises InputError for bad files and for traces that wait in a
    circle."""
    folder, files = Path(folder), []
    while (folder / f"{prefix}.{len(files)}.et").exists():
        files.append(read(folder / f"{prefix}.{len(files)}.et")[1])
    if not files:
        raise InputError(f"{folder / prefix}.0.et: no such file; give the folder and prefix of Chakra traces")
    group_file = folder / f"{prefix}.json"
    groups = json.loads(group_file.read_text(encoding="utf-8")) if group_file.exists() else {}
    return run(files, {name: members for name, members in groups.items()})


def run(files: list[list[Node]], groups: dict[str, list[int]]) -> Replay:
    nodes = [{n.id: n for n in file} for file in files]
    children: list[dict[int, list[int]]] = [defaultdict(list) for _ in files]
    missing: list[dict[int, int]] = [{} for _ in files]
    ready: list[dict[int, int]] = [{} for _ in files]
    queue: list[tuple[int, int, int]] = []  # (time, file, node)
    for f, file in enumerate(files):
        for n in file:
            missing[f][n.id] = len(n.deps)
            for dep in n.deps:
                if dep not in nodes[f]:
                    raise InputError(
                        f"file {f}: node {n.id} depends on {dep}, which is not there; write the trace again"
                    )
                children[f][dep].append(n.id)
            if not n.deps:
                heapq.heappush(queue, (0, f, n.id))
    sent: dict[tuple[int, int, int, int], int] = {}  # (src, dst, tag, turn) -> arrival
    turns: dict[tuple, int] = defaultdict(int)
    waiting: dict[tuple, tuple[int, int, int]] = {}  # receives that wait for a send
    port = [0] * len(files)
    gathering: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
    collectives: dict[tuple, int] = defaultdict(int)
    ends: list[dict[int, int]] = [{} for _ in files]

    def finish(f: int, node: int, at: int) -> None:
        ends[f][node] = at
        for child in children[f][node]:
            ready[f][child] = max(ready[f].get(child, 0), at)
            missing[f][child] -= 1
            if not missing[f][child]:
                heapq.heappush(queue, (ready[f][child], f, child))

    while queue:
        now, f, k = heapq.heappop(queue)
        n, own = nodes[f][k], nodes[f][k].duration_us
        if n.type == SEND and not n.attrs.get("all_to_all"):
            arrived = port[f] = max(port[f], now) + own
            key = _turn(turns, "s", f, n.attrs["comm_dst"], n.attrs["comm_tag"])
            sent[key] = arrived
            finish(f, k, arrived)
            if key in waiting:
                at, g, r = waiting.pop(key)
                finish(g, r, max(at, arrived))
        elif n.type == RECV and not n.attrs.get("all_to_all") and n.attrs["comm_src"] < len(files):
            key = _turn(turns, "r", n.attrs["comm_src"], f, n.attrs["comm_tag"])
            if key in sent:
                finish(f, k, max(now, sent[key]))
            else:
                waiting[key] = (now, f, k)
        elif n.type == COLL and not n.attrs.get("all_to_all"):
            name = n.attrs.get("pg_name", "")
            members = [m for m in groups.get(name, [f]) if m < len(files)]
            # The i-th collective of a group on one member meets the i-th on the others.
            key = (name, collectives[f, name])
            collectives[f, name] += 1
            gathering[key].append((now, f, k))
            if len(gathering[key]) == len(members):
                begin = max(at for at, *_ in gathering[key])
                for _, g, r in gathering.pop(key):
                    finish(g, r, begin + nodes[g][r].duration_us)
        else:
            finish(f, k, now + own)
    undone = sum(map(len, nodes)) - sum(map(len, ends))
    if undone:
        raise InputError(
            f"{undone} nodes never start: a receive without its send, a collective without a member, or a circle; "
            "write "
            "all files of one step together"
        )
    return Replay(max((max(e.values()) for e in ends if e), default=0), ends)


def _turn(turns: dict, side: str, src: int, dst: int, tag: int) -> tuple[int, int, int, int]:
    """Messages between two ranks with one tag match in order."""
    n = turns[side, src, dst, tag]
    turns[side, src, dst, tag] = n + 1
    return (src, dst, tag, n)
