"""Bad input, said kindly: one line that gives the value, the rule and the remedy; the command exits with code 2.

Both console scripts catch `InputError` at the top and print it as a single line without a traceback.
Torch-free, so that `sim/` uses it too.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

LONGEST = 1000  # characters of a message: a value may be a whole file


class InputError(ValueError):
    """What the user gave cannot be used. The message states the value, the rule and the remedy, in one line.

    Of a message longer than `LONGEST` the middle is left out: what was given begins it, the remedy ends it.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 3 :]}")


def one_line(text: str, longest: int = 200) -> str:
    """Foreign `text` as one printable line of at most `longest` characters; what cannot be printed is escaped as in a
    Python string (line ends, control signs, halves of surrogate pairs), what is cut off shows as "…"."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)' for the known name closest to `word`, or '' when none is close."""
    match = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


class Parser(argparse.ArgumentParser):
    """argparse with its errors in our manner."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with."""
        one_line = " ".join(message.split())  # what was given may hold line ends
        raise InputError(f"{self.prog}: {one_line}; see {self.prog} --help")


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `json.loads(object_pairs_hook=)`: of a key that stands twice one value would be lost.

    Raises:
        ValueError: such a key.
    """
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"{twice[:60]!r} stands twice in one object")
    return out
