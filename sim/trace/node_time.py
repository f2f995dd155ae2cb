"""How long a node of a Chakra trace takes: as recorded, else what a cluster makes of its bytes and operations."""

from __future__ import annotations

import dataclasses
import math

from minglm.errors import InputError
from sim.base.fields import shorten
from sim.cost import collectives
from sim.spec.hardware import Cluster
from sim.trace.chakra_groups import Groups, name_of
from sim.trace.chakra_node import COLL, COMP, LOAD, RECV, SEND, STORE, Node

# Chakra's collective types (schema/protobuf/et_def.proto) as `sim.cost.collectives` names them; a reduce to one rank
# takes what a broadcast from it does, a gather or scatter what an all-gather does: one port sees all but its own part.
_COLLECTIVES = {0: "all_reduce", 1: "broadcast", 2: "all_gather", 3: "all_gather", 4: "all_gather", 5: "broadcast"}
_COLLECTIVES |= {6: "all_to_all", 7: "reduce_scatter", 8: "reduce_scatter"}
_GIVES_A_PART = (2, 3)  # `comm_size` is what one rank gives, a part of the whole
_SCALAR = 64  # bytes; a norm or a flag, whose time a trace may leave at nothing


def timed(node: Node, file: int, groups: Groups, cluster: Cluster | None) -> Node:
    """The node with a duration: its own, else what the cluster makes of its bytes and operations.

    Raises:
        InputError: bytes or operations whose time nothing says.
    """
    size, operations = _bytes(node), amount(node, "num_ops") if node.type == COMP else 0.0
    here = range(groups.files)
    if node.type == COLL and groups.files > 1 and file not in groups.of(node):
        raise InputError(
            f"file {file}: node {node.id} {node.name[:40]!r} is of group {name_of(node)[:40]!r}, whose ranks "
            f"{shorten(groups.of(node))} are without it; mend PREFIX.json"
        )
    moves = node.type in (COLL, SEND, LOAD, STORE) and size > _SCALAR
    moves = moves or (node.type == COMP and bool(operations or size))
    moves = moves or (node.type == RECV and size > _SCALAR and peer(node, "comm_src") not in here)
    if node.duration_us or not moves:
        return node
    which = f"file {file}: node {node.id} {node.name[:40]!r}"
    if node.type in (LOAD, STORE):
        raise InputError(
            f"{which} moves {size:,.0f} bytes to or from another memory, whose rate nothing says; give it a "
            "duration_micros"
        )
    if cluster is None:
        what = f"{operations:,.0f} operations" if operations else f"{size:,.0f} bytes"
        raise InputError(f"{which} has {what} and no duration; give --cluster dgx_h100, or another, to time it")
    if node.type == COMP:
        chip = cluster.chip
        seconds = max(operations / chip.peak("bf16").value, size / chip.memory_bytes_per_s.value)
    elif node.type == COLL:
        seconds = _collective_s(node, which, size, groups, cluster)
    else:  # a send, or a receive whose sender's file is not there
        other = peer(node, "comm_dst" if node.type == SEND else "comm_src")
        if other is None:
            end = "comm_dst" if node.type == SEND else "comm_src"
            raise InputError(f"{which} has {size:,.0f} bytes and neither a duration nor a {end}; give it one of them")
        seconds = collectives.p2p(cluster, size, max(1, abs(other - file)))
    return dataclasses.replace(node, duration_us=max(1, round(seconds * 1e6))) if seconds else node


def _collective_s(node: Node, which: str, size: float, groups: Groups, cluster: Cluster) -> float:
    number = int(amount(node, "comm_type"))
    kind = _COLLECTIVES.get(number)
    if kind is None:
        raise InputError(
            f"{which} is a collective of type {node.attrs.get('comm_type')}, which is not timed; give it a "
            "duration_micros"
        )
    name, dimensions = name_of(node), node.attrs.get("involved_dim", ())
    if not name and isinstance(dimensions, tuple) and not all(dimensions):
        raise InputError(
            f"{which} spans some dimensions of its writer's network (involved_dim), which the trace does not give; "
            "give traces that name groups (pg_name), or have durations"
        )
    members = groups.of(node)
    if len(members) < 2:
        if name in groups.ranks:
            return 0.0  # a group of one moves nothing
        raise InputError(
            f"{which} is a collective of {size:,.0f} bytes in a trace of one file; write its ranks into PREFIX.json, "
            f'such as {{"{name or 0}": [0, 1, 2, 3]}}, or add the other files'
        )
    stride = max(1, (max(members) - min(members)) // (len(members) - 1))
    whole = size * len(members) if number in _GIVES_A_PART else size
    return collectives.time(kind, whole, collectives.place(cluster, len(members), stride))


def _bytes(node: Node) -> float:
    """What a node reads, writes or sends."""
    if node.type in (COMP, LOAD, STORE):
        return amount(node, "tensor_size") or amount(node, "tensor_bytes")
    return amount(node, "comm_size")


def amount(node: Node, name: str) -> float:
    """An attribute that is a number, or a text of one; 0 where it is missing or something else.

    Raises:
        InputError: a negative number, or one that is not finite.
    """
    value = node.attrs.get(name, 0)
    try:
        found = 0.0 if isinstance(value, tuple) else float(value)
    except ValueError:
        return 0.0
    if not 0 <= found < math.inf:
        raise InputError(f"node {node.id} {node.name[:40]!r}: {name} is {found:g}; it must be 0 or more")
    return found


def peer(node: Node, name: str) -> int | None:
    """The rank that a message goes to or comes from; None where the node does not say, as PyTorch's do not.

    Raises:
        InputError: something else than a whole number.
    """
    value = node.attrs.get(name)
    if value is not None and not isinstance(value, int):
        raise InputError(f"node {node.id}: {name} is {value!r}, not a whole number; write the trace again")
    return value
