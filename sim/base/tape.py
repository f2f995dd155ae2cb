"""A computation recorded once with its inputs open, then repeated for many values of them at once.

    >>> tape = Tape()
    >>> width = tape.input(3.0)
    >>> area = most(width * 2.0, 10.0)
    >>> tape.repeat([area], [[1.0, 6.0]], rows=2)
    [(10.0,), (12.0,)]

Formulas are written for numbers. Given a tape's `Number` in place of one, they leave on the tape every operation that
they do with it, with its own function: what is repeated is the same operations in the same order, so the results are
the same to the last bit, without the search for what to compute. Equal operations are recorded once.

A formula that asks which of two numbers is larger takes another course for other inputs. The tape remembers the answer,
and rows of inputs that answer differently come back as None. `most` and `least` are operations of their own, which hold
for all inputs; so is any pure function that is recorded by `call`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

ROWS = 250  # that are worked on at a time
Step = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and its arguments: numbers of the tape, or constants


class Tape:
    """What was done with its inputs."""

    def __init__(self) -> None:
        self._inputs = 0
        self._steps: list[Step | None] = []  # None: an input
        self._known: dict[Step, Number] = {}
        self._answers: dict[Number, bool] = {}

    def input(self, value: float) -> Any:
        """The next input, for the time being at this value."""
        if self._inputs < len(self._steps):
            raise ValueError("inputs of a tape come before what is done with them")
        self._inputs += 1
        return self._keep(None, value)

    def _keep(self, step: Step | None, value: Any) -> Number:
        self._steps.append(step)
        return Number(self, len(self._steps) - 1, value)

    def record(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Number:
        """The function of these arguments, as the same number where it is known already."""
        step = (function, tuple(arguments))
        known = self._known.get(step)
        if known is None:
            value = function(*(a.value if isinstance(a, Number) else a for a in arguments))
            known = self._known[step] = self._keep(step, value)
        return known

    def answer(self, number: Number) -> bool:
        """Whether the number is true, which the course of the computation hangs on from here."""
        return self._answers.setdefault(number, bool(number.value))

    def repeat(
        self, results: Sequence[Any], columns: Sequence[Sequence[float]], rows: int
    ) -> list[tuple[Any, ...] | None]:
        """The results for each row of inputs, None for a row that takes another course.

        results: numbers of this tape, or constants. columns: of each input its values, one a row.
        """
        program, out = self._program([*(r for r in results if isinstance(r, Number)), *self._answers]), []
        for first in range(0, rows, ROWS):
            some = [column[first : first + ROWS] for column in columns]
            out += self._block(program, results, some, min(ROWS, rows - first))
        return out

    def clear(self) -> None:
        """Forget what was done. Caches of the formulas may keep numbers of a tape: not all that led to them, then."""
        self._steps, self._known, self._answers = [], {}, {}

    def _program(self, wanted: Iterable[Number]) -> list[tuple[int, Step, list[int]]]:
        """What makes these numbers, in order: where a result goes, its step, and which values nobody needs from here
        on."""
        last: dict[int, int] = {number.place: len(self._steps) for number in wanted}
        steps = []
        for place in reversed(range(len(self._steps))):
            step = self._steps[place]
            if place not in last or step is None:
                continue
            done = {a.place for a in step[1] if type(a) is Number and a.place not in last}
            last |= dict.fromkeys(done, place)
            steps.append((place, step, list(done)))
        return steps[::-1]

    def _block(
        self,
        program: list[tuple[int, Step, list[int]]],
        results: Sequence[Any],
        columns: Sequence[Sequence[float]],
        rows: int,
    ) -> list[tuple[Any, ...] | None]:
        of: dict[int, Sequence[Any]] = dict(enumerate(columns))
        try:
            for place, (function, arguments), done in program:
                values = (of[a.place] if type(a) is Number else repeat(a, rows) for a in arguments)
                of[place] = list(map(function, *values))
                for one in done:
                    del of[one]
        except (ArithmeticError, ValueError):  # some row is outside of a function's domain: it takes another course
            if rows == 1:
                return [None]
            half = rows // 2
            first, second = ([column[part] for column in columns] for part in (slice(half), slice(half, None)))
            return [*self._block(program, results, first, half), *self._block(program, results, second, rows - half)]
        same = [True] * rows
        for number, expected in self._answers.items():
            same = [so_far and bool(value) is expected for so_far, value in zip(same, of[number.place], strict=True)]
        out = zip(*(of[r.place] if isinstance(r, Number) else repeat(r, rows) for r in results), strict=True)
        return [row if held else None for row, held in zip(out, same, strict=True)]


def _operation(function: Callable[..., Any], turned: bool = False) -> Any:
    def method(self: Number, other: Any) -> Any:
        return self.tape.record(function, (other, self) if turned else (self, other))

    return method


class Number:
    """A number of a tape: what is done with it is recorded. It has a value, that of the inputs for the time being."""

    __slots__ = ("place", "tape", "value")
    __hash__ = object.__hash__

    def __init__(self, tape: Tape, place: int, value: Any) -> None:
        self.tape, self.place, self.value = tape, place, value

    __add__, __radd__ = _operation(operator.add), _operation(operator.add, turned=True)
    __sub__, __rsub__ = _operation(operator.sub), _operation(operator.sub, turned=True)
    __mul__, __rmul__ = _operation(operator.mul), _operation(operator.mul, turned=True)
    __truediv__, __rtruediv__ = _operation(operator.truediv), _operation(operator.truediv, turned=True)
    __pow__, __rpow__ = _operation(operator.pow), _operation(operator.pow, turned=True)
    __lt__, __le__ = _operation(operator.lt), _operation(operator.le)
    __gt__, __ge__ = _operation(operator.gt), _operation(operator.ge)

    def __eq__(self, other: object) -> Any:
        """A set or a mapping asks for what is the same number: nothing is recorded then."""
        return True if self is other else self.tape.record(operator.eq, (self, other))

    def __round__(self) -> Number:
        return self.tape.record(round, (self,))

    def __format__(self, how: str) -> str:
        """In a text: as it is for the time being."""
        return format(self.value, how)

    def __bool__(self) -> bool:
        return self.tape.answer(self)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A pure function of these arguments: one operation, where one of them is a tape's number."""
    for a in arguments:
        if a.__class__ is Number:
            return a.tape.record(function, arguments)
    return function(*arguments)


def most(*values: Any) -> Any:
    """The largest, as `max`."""
    for value in values:
        if value.__class__ is Number:
            return call(max, *values) if values[1:] else value
    return max(values)


def least(*values: Any) -> Any:
    """The smallest, as `min`."""
    for value in values:
        if value.__class__ is Number:
            return call(min, *values) if values[1:] else value
    return min(values)
