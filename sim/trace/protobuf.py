"""The little of Protocol Buffers' wire format that execution traces need: varints, strings, doubles, nested messages.

A field is a key (field number × 8 + wire type) and its value; wire type 0 is a varint, 1 eight bytes, 2 a length and
that many bytes, 5 four bytes. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from minglm.errors import InputError

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """A whole number, seven bits a byte, low bits first; negative ones as 64-bit two's complement."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise InputError(
                f"byte {position}: the file ends inside a number or is not an execution trace; write it again"
            )
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def field(number: int, value: int | bool | str | bytes | float) -> bytes:
    """One field; the wire type follows from the Python type (float is a double)."""
    if isinstance(value, float):
        return varint(number << 3 | EIGHT) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(raw)) + raw


def packed(number: int, values: list[int]) -> bytes:
    """A repeated number, packed as proto3 does; nothing for an empty list."""
    return field(number, b"".join(map(varint, values))) if values else b""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message; a value is an int or its raw bytes."""
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        kind = key & 7
        value: int | bytes
        if kind == VARINT:
            value, position = read_varint(data, position)
        else:
            if kind == BYTES:
                size, position = read_varint(data, position)
            elif kind in (EIGHT, FOUR):
                size = 8 if kind == EIGHT else 4
            else:
                raise InputError(f"byte {position}: wire type {kind} is not in use; the file is not an execution trace")
            if position + size > len(data):
                raise InputError(
                    f"byte {position}: a field of {size} bytes runs past the end; the file is cut off: write it again"
                )
            value, position = data[position : position + size], position + size
        yield key >> 3, value


def as_int(value: int | bytes) -> int:
    """The value of a number's field. Raises InputError for bytes."""
    if not isinstance(value, int):
        raise InputError("a number is written as bytes; the file is not an execution trace")
    return value


def as_bytes(value: int | bytes) -> bytes:
    """The value of a string's or a message's field. Raises InputError for a number."""
    if isinstance(value, int):
        raise InputError("a text is written as a number; the file is not an execution trace")
    return value


def unpack(value: int | bytes) -> list[int]:
    """A repeated number, whether packed or single."""
    if isinstance(value, int):
        return [value]
    out, position = [], 0
    while position < len(value):
        number, position = read_varint(value, position)
        out.append(number)
    return out


def delimited(messages: list[bytes]) -> bytes:
    """Messages one after another, each behind its length."""
    return b"".join(varint(len(m)) + m for m in messages)


def split(data: bytes) -> Iterator[bytes]:
    """The messages of `delimited`. Raises InputError where one is cut off."""
    position = 0
    while position < len(data):
        size, position = read_varint(data, position)
        if position + size > len(data):
            raise InputError(
                f"byte {position}: a message of {size} bytes runs past the end; the file is cut off: write it again"
            )
        yield data[position : position + size]
        position += size
