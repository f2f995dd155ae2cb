"""One node of a Chakra execution trace, encoded and decoded.

Field numbers and node types: schema/protobuf/et_def.proto of mlcommons/chakra at commit
6dc63e147b9d115286626cc122459e44d9d08401. Attribute names and their types: the feeder in src/feeder of that repository
(dependencies go to `data_deps`, all it reads).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from sim.trace import protobuf

Attribute: TypeAlias = int | str | bool | float | tuple[bool, ...]
METADATA, LOAD, STORE, COMP, SEND, RECV, COLL = 1, 2, 3, 4, 5, 6, 7
ALL_REDUCE, ALL_GATHER, ALL_TO_ALL = 0, 2, 6
_ATTRIBUTE: dict[type, int] = {bool: 27, str: 29, float: 3, tuple: 28}  # AttributeProto field by Python type
_INT32, _INT64 = 7, 9
# Values of other writers: doubles, floats, numbers of fixed width; sint32 and sint64 keep the sign in the lowest bit.
_PACKED = {3: "<d", 5: "<f", 19: "<I", 21: "<Q", 23: "<i", 25: "<q"}
_ZIGZAG = (15, 17)
_INT32_NAMES = ("comm_src", "comm_dst", "comm_tag")


@dataclass(slots=True)
class Node:
    """One node of a trace; times in whole microseconds.

    deps: nodes whose data it takes. callers: nodes that called it (`ctrl_deps`); a converter may have left them out.
    inputs: values that a metadata node was given, as its writer printed them; of other nodes they are not kept.
    """

    id: int
    name: str
    type: int
    deps: list[int] = field(default_factory=list)
    start_us: int = 0
    duration_us: int = 0
    attrs: dict[str, Attribute] = field(default_factory=dict)
    callers: list[int] = field(default_factory=list)
    inputs: str = ""

    def encode(self) -> bytes:
        """The node as a protobuf message."""
        attributes = [
            protobuf.field(10, protobuf.field(1, name) + protobuf.field(_attribute_field(name, value), _plain(value)))
            for name, value in self.attrs.items()
        ]
        return b"".join(
            (
                protobuf.field(1, self.id),
                protobuf.field(2, self.name),
                protobuf.field(3, self.type),
                protobuf.packed(5, self.deps),
                protobuf.field(6, self.start_us),
                protobuf.field(7, self.duration_us),
                *attributes,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Node:
        """A node from its message; fields that replaying does not need are left out.

        Raises:
            InputError: what is no message, or a field of another type than a node's.
        """
        node = cls(0, "", 0)
        for number, value in protobuf.fields(data):
            if number == 1:
                node.id = protobuf.as_int(value)
            elif number == 2:
                node.name = protobuf.as_bytes(value).decode()
            elif number == 3:
                node.type = protobuf.as_int(value)
            elif number == 4:
                node.callers += protobuf.unpack(value)
            elif number == 5:
                node.deps += protobuf.unpack(value)
            elif number == 6:
                node.start_us = protobuf.as_int(value)
            elif number == 7:
                node.duration_us = protobuf.as_int(value)
            elif number == 8 and node.type == METADATA:
                node.inputs = protobuf.as_bytes(dict(protobuf.fields(protobuf.as_bytes(value))).get(1, b"")).decode()
            elif number == 10:
                node.attrs |= _decode_attribute(protobuf.as_bytes(value))
        return node


def _attribute_field(name: str, value: Attribute) -> int:
    return _ATTRIBUTE.get(type(value), _INT32 if name in _INT32_NAMES else _INT64)


def _plain(value: Attribute) -> int | str | bool | float | bytes:
    return protobuf.packed(1, [*map(int, value)]) if isinstance(value, tuple) else value


def _decode_attribute(data: bytes) -> dict[str, Attribute]:
    parts = dict(protobuf.fields(data))
    name = protobuf.as_bytes(parts.pop(1, b"")).decode()
    values: dict[str, Attribute] = {}
    for kind, raw in parts.items():
        if kind == _ATTRIBUTE[bool]:
            values[name] = bool(raw)
        elif kind == _ATTRIBUTE[str]:
            values[name] = protobuf.as_bytes(raw).decode()
        elif kind == _ATTRIBUTE[tuple]:
            listed = dict(protobuf.fields(protobuf.as_bytes(raw))).get(1, b"")
            values[name] = tuple(map(bool, protobuf.unpack(listed)))
        elif kind in _PACKED and not isinstance(raw, int):
            packed = _PACKED[kind]
            if len(raw) == struct.calcsize(packed):
                values[name] = struct.unpack(packed, raw)[0]
        elif isinstance(raw, int):
            values[name] = (raw >> 1) ^ -(raw & 1) if kind in _ZIGZAG else protobuf.as_int(raw)
    return values
