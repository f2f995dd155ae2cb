"""Chakra execution traces as JSON: what `chakra_jsonizer` makes of an `.et` file, objects one after another.

The first is the metadata, each other one a node, with the names of Protocol Buffers' JSON mapping (`durationMicros`, or
`duration_micros`); 64-bit numbers are written as texts there, enumerations by name.
https://protobuf.dev/programming-guides/json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base.documents import decode_text, read_bytes
from sim.trace.chakra_node import Attribute, Node

_TYPES = "INVALID METADATA MEM_LOAD MEM_STORE COMP COMM_SEND COMM_RECV COMM_COLL STORAGE BATCH CHECKPOINT".split()
_NUMBERS = tuple(f"{kind}val" for kind in ("int32", "int64", "uint32", "uint64", "sint32", "sint64"))
_NUMBERS += ("fixed32val", "fixed64val", "sfixed32val", "sfixed64val")
_FRACTIONS = ("doubleval", "floatval")
_MOST_BYTES = 4 * 2**30


def read(path: Path) -> tuple[str, list[Node]]:
    """(version, nodes) of a file. Raises InputError for a file that is something else, or cut off."""
    data = read_bytes(path, _MOST_BYTES, "give the .et file it was made of")
    objects = list(_objects(decode_text(data, path, "JSON"), path))
    try:
        return str(objects[0].get("version", "")), [_node(one) for one in objects[1:]]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path}: not what chakra_jsonizer makes of an execution trace; give the .et files themselves"
        ) from None


def _objects(text: str, path: Path) -> Iterator[dict[str, Any]]:
    decoder, position = json.JSONDecoder(), 0
    try:
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            one, position = decoder.raw_decode(text, position)
            yield _plain(one)
    except (ValueError, AttributeError, RecursionError):
        raise InputError(
            f"{path}: not JSON from character {position} on; give the .et files, or make it again with chakra_jsonizer"
        ) from None


def _plain(one: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its keys in one spelling: lower case, no underscores."""
    return {key.replace("_", "").lower(): value for key, value in one.items()}


def _node(one: Mapping[str, Any]) -> Node:
    kind = one["type"]
    node = Node(int(one.get("id", 0)), str(one.get("name", "")), 0)
    node.type = _TYPES.index(kind.removesuffix("_NODE")) if isinstance(kind, str) else int(kind)
    node.callers = [int(each) for each in one.get("ctrldeps", ())]
    node.deps = [int(each) for each in one.get("datadeps", ())]
    node.start_us, node.duration_us = int(one.get("starttimemicros", 0)), int(one.get("durationmicros", 0))
    node.inputs = str(one.get("inputs", {}).get("values", "")) if node.type == _TYPES.index("METADATA") else ""
    node.attrs = dict(_attribute(_plain(each)) for each in one.get("attr", ()))
    return node


def _attribute(one: Mapping[str, Any]) -> tuple[str, Attribute]:
    """Name and value; a list, other than of switches, is none that replaying reads."""
    name = str(one["name"])
    for key, value in one.items():
        if key in _NUMBERS:
            return name, int(value)
        if key in _FRACTIONS:
            return name, float(value)
        if key == "boolval":
            return name, bool(value)
        if key == "stringval":
            return name, str(value)
        if key == "boollist":
            return name, tuple(map(bool, value.get("values", ())))
    return name, ""
