"""Communicators of Chakra traces: which ranks a collective brings together.

Said by `PREFIX.json` or another JSON beside the traces with `group` in its name (`comm_group.json` of STAGE and
ASTRA-sim), by the metadata nodes that PyTorch's traces have, or, where neither is there, by who names a group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minglm.errors import InputError
from sim.trace.chakra_node import COLL, METADATA, Node


@dataclass(frozen=True)
class Groups:
    """ranks: of each group that something says, those folded away among them; named: files with a node of the group,
    by its name; files: how many there are."""

    ranks: Mapping[str, list[int]]
    named: Mapping[str, list[int]]
    files: int

    def of(self, node: Node) -> list[int]:
        """Ranks that a collective brings together; without a name all there are, which a single group of more ranks
        than files says.

        Raises:
            InputError: its group is none of those that are said.
        """
        name = name_of(node)
        if not name:
            alone = next(iter(self.ranks.values())) if len(self.ranks) == 1 else []
            return alone if max(alone, default=0) >= self.files else list(range(self.files))
        if not self.ranks:
            return self.named[name]
        if name not in self.ranks:
            raise InputError(
                f"node {node.id}: group {name[:40]!r} is not among the trace's {', '.join(sorted(self.ranks)[:5])}; "
                "add it to PREFIX.json"
            )
        return self.ranks[name]

    def present(self, node: Node) -> list[int]:
        """Those of a collective's ranks whose files are there."""
        return [rank for rank in self.of(node) if rank < self.files]


def name_of(node: Node) -> str:
    """The group that a node names; empty where it names none."""
    return str(node.attrs.get("pg_name", ""))


def groups_of(files: list[list[Node]], said: Mapping[str, list[int]]) -> Groups:
    """The groups of a trace: `said` by a file beside it, else by its own metadata nodes or by who names them."""
    named: dict[str, list[int]] = {}
    for number, nodes in enumerate(files):
        for name in {name_of(node) for node in nodes if node.type == COLL}:
            named.setdefault(name, []).append(number)
    ranks = said or {key: list(them) for nodes in files for key, them in _of_metadata(nodes, len(files)).items()}
    return Groups(ranks, named, len(files))


def _of_metadata(nodes: list[Node], files: int) -> dict[str, list[int]]:
    """Groups that PyTorch's `process_group:init` lists; one without ranks is all of them."""
    found: dict[str, list[int]] = {}
    for node in nodes:
        if node.type == METADATA and '"pg_name"' in node.inputs:
            text = node.inputs[node.inputs.find("[{") : node.inputs.rfind("}]") + 2]
            try:
                listed = [(str(one["pg_name"]), [int(rank) for rank in one["ranks"]]) for one in json.loads(text)]
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"node {node.id} {node.name[:40]!r}: lists process groups that cannot be read; write them into "
                    'PREFIX.json, such as {"0": [0, 1, 2, 3]}'
                ) from None
            found |= {name: ranks or list(range(files)) for name, ranks in listed}
    return found


def read_groups(folder: Path, prefix: str) -> dict[str, list[int]]:
    """Groups that a file beside the traces says: name → ranks; empty where there is no such file.

    Raises:
        InputError: a file that is something else, or several of which none has the prefix's name.
    """
    path = folder / f"{prefix}.json"
    if not path.exists():
        others = sorted(other for other in folder.glob("*.json") if "group" in other.stem.lower())
        if len(others) > 1:
            raise InputError(
                f"{folder}: {', '.join(other.name for other in others[:5])} may each be its communicator groups; copy "
                f"the right one to {path.name}"
            )
        if not others:
            return {}
        path = others[0]
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [int(member) for member in members] for name, members in groups.items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: not communicator groups; it must be {{name: [numbers of files]}}") from None
