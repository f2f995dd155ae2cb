"""Your own conversations: a JSON-lines file read line by line, and which of them only validation sees.

One JSON object a line: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}. What
cannot be taught as it stands is refused with its line, the rule and the remedy. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from minglm.errors import InputError

ROLES = ("system", "user", "assistant")
VALIDATION_SHARE = 0.1  # of conversations
Messages = tuple[tuple[str, str], ...]  # (role, text) turns


@dataclass(frozen=True)
class Example:
    """One conversation: (role, text) turns, roles alternating from "user"."""

    task: str
    messages: Messages
    where: str = field(default="", compare=False)  # "FILE line N" of one that was read


def load_jsonl(path: str | Path) -> list[Example]:
    """The conversations of a file. Keys that are not used are named on stderr.

    Raises:
        InputError: not UTF-8, no conversation in it, or a line that breaks a rule: the line, the rule and the remedy.
    """
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror}); give a JSON-lines file of conversations") from None
    except UnicodeDecodeError as err:
        at, byte = raw.count(b"\n", 0, err.start) + 1, raw[err.start]
        raise InputError(f"{path} line {at}: byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8") from None
    out, unused = [], set()
    for number, line in enumerate(text.split("\n"), 1):  # other line ends may stand inside a string
        if not line.strip():
            continue
        where = f"{path} line {number}"
        messages, others = _parse(line, where)
        unused |= others
        out.append(Example("file", messages, where))
    if not out:
        raise InputError(f"{path}: no conversation in it; write one JSON object a line")
    if unused:
        print(f"{path}: keys that are not used: {', '.join(sorted(unused))}"[:300], file=sys.stderr)
    return out


def sha256(path: str | Path) -> str:
    """Hash of a file of conversations as it stands."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _parse(line: str, where: str) -> tuple[Messages, set[str]]:
    """(turns, keys that are not used) of one line."""
    try:
        given = json.loads(line)
        if not isinstance(given["messages"], list) or not given["messages"]:
            raise TypeError
        turns = [(m["role"], m["content"]) for m in given["messages"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f'{where}: must be {{"messages": [{{"role": …, "content": …}}]}} on one line; fix or remove it'
        ) from None
    for n, (role, content) in enumerate(turns, 1):
        if role not in ROLES:
            raise InputError(
                f"{where}: roles must be system, user or assistant, not {str(role)[:40]!r}; fix or remove it"
            )
        if not isinstance(content, str):
            raise InputError(
                f"{where}: content of message {n} is {json.dumps(content)[:40]}, not text; put text in quotes or "
                "remove the line"
            )
        if any("\ud800" <= c <= "\udfff" for c in content):
            raise InputError(f"{where}: content of message {n} holds half a character (\\ud800 to \\udfff); remove it")
    if all(role != "assistant" for role, _ in turns):
        raise InputError(
            f"{where}: no message of the assistant, so nothing to learn; add the answer or remove the line"
        )
    others = {k for k in given if k != "messages"}
    return tuple(turns), others | {
        f"messages.{k}" for m in given["messages"] for k in m if k not in ("role", "content")
    }


# ---------------------------------------------------------------------- unseen conversations


def _hash(messages: Messages) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(messages).encode()).digest()[:8], "big")


def is_validation(messages: Messages) -> bool:
    """Whether only validation sees a conversation: a tenth of all that can be, by the hash of their words."""
    return _hash(messages) < VALIDATION_SHARE * 2**64


def split(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """(training, validation): by `is_validation`; where that leaves one side empty, one conversation is chosen for it.

    Equal conversations are on one side. Of a single one validation has none.
    """
    hashes = sorted({_hash(e.messages) for e in examples})
    held = {h for h in hashes if h < VALIDATION_SHARE * 2**64} or set(hashes[:1])
    if len(held) == len(hashes):
        held.discard(hashes[-1])
    sides = [_hash(e.messages) in held for e in examples]
    return (
        [e for e, out in zip(examples, sides, strict=True) if not out],
        [e for e, out in zip(examples, sides, strict=True) if out],
    )
