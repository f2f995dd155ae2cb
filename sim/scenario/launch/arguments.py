"""The arguments of a launch by name: each is taken once and said what it became; what is left is ignored or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minglm.errors import InputError, one_line
from sim.base.fields import shorten
from sim.base.units import parse, whole

# A part of a name that says: this changes the step's time or its memory.
MATTERS = re.compile(
    r"parallel|layer|hidden|heads|expert|moe|recompute|checkpoint-activ|overlap|offload|fsdp|zero|precision|fp8|fp4|"
    r"attention|window|seq|batch|pipeline|stage|mtp|fusion|fused|swiglu|ffn|quant|swap|shard|dispatch|graph|micro"
)
_LENGTHS = ("seq", "max_seq", "hidden", "ffn", "moe_ffn")  # scenario keys that count in 1,024s


@dataclass
class Launch:
    """What a launch says of a run, under the keys of a scenario.

    run: model, micro_batch, global_batch, seq, precision, recompute, schedule, stack … of a scenario. steps: optimiser
    steps. mapped: argument → what it became. ignored: arguments that change neither time nor memory. notes: what had
    to be assumed.
    """

    format: str
    run: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    chips: int | None = None
    cluster: str = "dgx_h100"
    steps: int | None = None
    samples: int | None = None
    mapped: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Arguments:
    """Arguments by name, with a record of what has been taken.

    Args:
        values: name → value; a flag without a value is True.
        where: begins every message.
        dash: what stands before a name in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str, dash: str = "") -> None:
        self.values, self.where, self.dash = dict(values), where, dash
        self.became: dict[str, str] = {}

    def has(self, *names: str) -> bool:
        """Whether one of the names is given."""
        return any(self.values.get(name) is not None for name in names)

    def _found(self, names: tuple[str, ...], becomes: str) -> tuple[str, Any]:
        given = [name for name in names if self.values.get(name) is not None]
        for name in names:
            if name in self.values:
                self.became[name] = becomes
        return (given[-1], self.values[given[-1]]) if given else ("", None)

    def whole(self, *names: str, becomes: str, low: int = 0) -> int | None:
        """A whole number, None where no name is given.

        Raises:
            InputError: something else.
        """
        name, value = self._found(names, becomes)
        kind = "length" if becomes.rpartition(".")[2] in _LENGTHS else "count"
        return None if value is None else whole(self._plain(name, value), self.label(name), low, 10**15, kind)

    def number(self, *names: str, becomes: str) -> float | None:
        """A number, None where no name is given."""
        name, value = self._found(names, becomes)
        return (
            None if value is None else parse(self._plain(name, value), "count", self.label(name), low=-1e30, high=1e30)
        )

    def text(self, *names: str, becomes: str) -> str | None:
        """A text, None where no name is given."""
        name, value = self._found(names, becomes)
        return None if value is None else str(self._plain(name, value)).strip()

    def flag(self, *names: str, becomes: str) -> bool:
        """Whether it is on: a flag that stands there, or true; off where no name is given."""
        name, value = self._found(names, becomes)
        if value is None or isinstance(value, bool):
            return bool(value)
        text = str(value).strip().lower()
        if text not in ("true", "false", "1", "0"):
            raise InputError(f"{self.label(name)} {shorten(value)}: must be true or false")
        return text in ("true", "1")

    def raw(self, *names: str, becomes: str) -> Any:
        """The value as it is, None where no name is given."""
        return self._found(names, becomes)[1]

    def choice(self, *names: str, table: Mapping[str, Any], becomes: str) -> Any:
        """What the table says of the value; None where no name is given.

        Raises:
            InputError: a value that the table lacks: the simulator does not know it.
        """
        name, value = self._found(names, becomes)
        if value is None:
            return None
        text = str(self._plain(name, value)).strip().lower()
        if text not in table:
            raise InputError(
                f"{self.label(name)} {shorten(text)}: not simulated; use one of {', '.join(table)}, or leave it out "
                f"with --ignore {one_line(name, 60)}"
            )
        return table[text]

    def label(self, name: str) -> str:
        """How a message names an argument."""
        return f"{self.where}: {self.dash}{one_line(name, 60)}"

    def _plain(self, name: str, value: Any) -> Any:
        """A single value; what a shell would have put in is refused."""
        if isinstance(value, (list, tuple)):
            if len(value) != 1:
                raise InputError(f"{self.label(name)} {shorten(value)}: must be one value")
            value = value[0]
        if value is True:
            raise InputError(f"{self.label(name)}: has no value; give one")
        if isinstance(value, str) and (found := re.search(r"\$\{?(\w+)|\$\(", value)):
            name_of = found[1] or "VALUE"
            raise InputError(
                f"{self.label(name)} {shorten(value)}: is set outside the file; give it with --define {name_of}=…"
            )
        return value

    def finish(self, launch: Launch, ignored: re.Pattern[str]) -> None:
        """Book what was taken and what is left.

        Raises:
            InputError: an argument is left that changes time or memory.
        """
        for name in self.values:
            if name in self.became:
                launch.mapped[self.dash + name] = self.became[name]
            elif self.values[name] is None or ignored.search(name) or not MATTERS.search(name.replace("_", "-")):
                launch.ignored.append(self.dash + name)
            else:
                raise InputError(
                    f"{self.label(name)} {shorten(self.values[name])}: changes time or memory, and no scenario key "
                    f"says it; leave it out with --ignore {one_line(name, 60)} where that does no harm"
                )
