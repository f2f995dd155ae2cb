"""Checking an answer: the learner's function is called, compared with an independent reference, and told what is wrong.

An exercise knows the mistakes people make. When an answer is wrong, each known mistake is computed on the same inputs;
if one of them gives just what the learner's function gave, its own sentence is shown, else a general one with the
input, the answer and what it should have been. A mistake is also the negative control of its exercise: a check that
lets it pass is a check that cannot fail, and a test says so.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

from minglm.course.workshop import results
from minglm.errors import InputError, nearest

FOLDER = Path(__file__).parent / "checks"


class NotYet(AssertionError):
    """The answer is not right yet; the message says in a sentence why. Jupyter shows the sentence without a
    traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[1mNot yet.\x1b[0m {self}"]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer people give, as a function, and the sentence that helps."""

    answer: Callable
    sentence: str


@dataclass(frozen=True)
class Exercise:
    """What one exercise asks for.

    Args:
        key: "NN.name", NN the number of its notebook.
        reference: the right answer, computed another way than a learner would.
        cases: makes the inputs, a list of argument tuples; the same ones each time.
        mistakes: known wrong answers, tried in order.
        hint: said when the answer is wrong in a way nobody has listed.
        also: further demands: called with the learner's function, raises NotYet; where that function stops, so does it,
            with NotYet.
        hints: three steps, each saying more than the one before; without them see `steps`.
        absolute: how far numbers near zero may differ; more where many roundings add up.
        use: where the answer is a class: makes of it a function of a case's inputs (see `module_output`).
    """

    key: str
    reference: Callable
    cases: Callable[[], Sequence[tuple]]
    mistakes: tuple[Mistake, ...]
    hint: str
    also: Callable[[Callable], None] | None = None
    use: Callable[[Callable], Callable] | None = None
    absolute: float = 1e-6
    hints: tuple[str, ...] = ()

    def steps(self) -> tuple[str, ...]:
        """Its hints: its own or, where it has none, what is often wrong, how it is done, and where it is solved."""
        solved = "A worked solution stands in the folder workshop/solutions."
        return self.hints or (f"Often wrong: {self.mistakes[0].sentence}", self.hint, solved)


@lru_cache(maxsize=1)
def all_exercises() -> dict[str, Exercise]:
    """Key → exercise, from every module in checks/ (each has a list EXERCISES)."""
    out: dict[str, Exercise] = {}
    for path in sorted(FOLDER.glob("[bcps][0-9]*.py")):
        for exercise in importlib.import_module(f"minglm.course.workshop.checks.{path.stem}").EXERCISES:
            if exercise.key in out:
                raise InputError(f"exercise {exercise.key!r}: defined twice; give each its own key")
            out[exercise.key] = exercise
    return out


_HINTS: dict[str, int] = {}  # key → hints given in this kernel


def find(key: str) -> Exercise:
    """The exercise of a key.

    Raises:
        InputError: no such exercise.
    """
    exercises = all_exercises()
    if key not in exercises:
        raise InputError(
            f"exercise {key!r}: not a known one{nearest(key, exercises)}; `minglm exercise list` names them all"
        )
    return exercises[key]


def hint(key: str) -> None:
    """Print the next of an exercise's three hints; after the last it is printed again."""
    steps = find(key).steps()
    given = min(_HINTS.get(key, 0), len(steps) - 1)
    _HINTS[key] = given + 1
    print(f"{key}, hint {given + 1} of {len(steps)}: {steps[given]}")


def check(key: str, answer: Callable, record: bool = True) -> None:
    """Check a learner's function; prints a line when it is right.

    Args:
        key: the exercise, such as "02.causal_attention". answer: the function. record: keep the result for `collect`.

    Raises:
        NotYet: it is not right, with the reason. InputError: no such exercise.
    """
    exercise = find(key)
    try:
        if not callable(answer):
            raise NotYet(
                f"The check wants your function itself, not what it gives ({_short(answer)}): its name, no brackets."
            )
        judge(exercise, answer)
    except NotYet as err:
        if record:
            results.record(key, False, str(err))
        raise
    if record:
        results.record(key, True)
    print(f"{key}: right.")


def judge(exercise: Exercise, answer: Callable) -> None:
    """Raise NotYet unless `answer` is right on every case and meets the further demands."""
    cases = list(exercise.cases())
    arguments = [copy.deepcopy(args) for args in cases]  # one by one: cases may share a tensor
    use, alike = exercise.use or (lambda answer: answer), partial(same, absolute=exercise.absolute)
    got = [_call(use(answer), args) for args in arguments]
    for value in got:
        if isinstance(value, NotYet):
            raise value
    want = [exercise.reference(*copy.deepcopy(args)) for args in cases]
    wrong = [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if not alike(a, b)]
    if not wrong:
        if exercise.also is not None:
            exercise.also(partial(attempt, use(answer)))
        _refuse_changed_arguments(answer, cases, arguments)
        return
    _refuse_blanks(answer, got)
    for mistake in exercise.mistakes:
        if all(
            alike(value, _call(use(mistake.answer), copy.deepcopy(args)))
            for value, args in zip(got, cases, strict=True)
        ):
            raise NotYet(mistake.sentence)
    case, value, right = (values[wrong[0]] for values in (cases, got, want))
    if isinstance(value, Exception):
        hint = "" if isinstance(value, NameError) else exercise.hint
        raise NotYet(f"For {_words(case)} {_stopped(value)} {hint}".rstrip())
    if isinstance(right, Real) and not isinstance(value, Real) and not _is_tensor(value):
        raise NotYet(
            f"For {_words(case)} your answer is {_short(value)}, of type {type(value).__name__}; right is the number "
            f"{_short(right)}. {exercise.hint}"
        )
    shape, right_shape = _shape(value), _shape(right)
    if shape is not None and right_shape is not None and shape != right_shape:
        raise NotYet(f"The result has shape {shape}; it should have shape {right_shape}. {exercise.hint}")
    raise NotYet(
        f"For {_words(case)} your answer is {_short(value)}; right is {_short(right)}{_where(value, right, alike)}. "
        f"{exercise.hint}"
    )


def misfit(module, weights: Mapping[str, Any]) -> str:
    """Why a module cannot take weights of these names and shapes, in a sentence; empty where it can."""
    own = module.state_dict()
    if missing := weights.keys() - own.keys():
        return (
            f"`{type(module).__name__}` has no parameter `{min(missing)}`: weights move by name, so it needs "
            f"{', '.join(f'`{name}`' for name in weights)}."
        )
    if extra := own.keys() - weights.keys():
        return f"`{type(module).__name__}` has a parameter `{min(extra)}` that is not asked for: leave it out."
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            return f"`{name}` has shape {tuple(own[name].shape)}; it should have shape {tuple(tensor.shape)}."
    return ""


def with_weights(answer: Callable, init: tuple, weights: Mapping[str, Any]):
    """A learner's module made with `init` and given `weights` by name; what is made and is no module, as it is.

    Raises:
        NotYet: its parameters have other names or shapes.
    """
    module = answer(*init)
    if hasattr(module, "load_state_dict"):
        if fault := misfit(module, weights):
            raise NotYet(fault)
        module.load_state_dict(dict(weights))
    return module


def module_output(answer: Callable, init: tuple, weights: Mapping[str, Any], *inputs):
    """What the module of `with_weights` gives for inputs."""
    module = with_weights(answer, init, weights)
    return module(*inputs) if hasattr(module, "load_state_dict") else module


def _refuse_changed_arguments(answer: Callable, cases: list, arguments: list) -> None:
    """A right function leaves what it was given as it was."""
    for before, after in zip(cases, arguments, strict=True):
        for name, old, new in zip(_names(answer, len(before)), before, after, strict=False):
            if not same(old, new, 0.0, 0.0):
                raise NotYet(
                    f"The result is right, but your function changed {name}, which its caller still needs. "
                    "Work on a copy (`.clone()` for a tensor, `list(...)` for a list), "
                    "or avoid what writes in place, such as `x /= 2` or `.sort()`."
                )


def _refuse_blanks(answer: Callable, got: list) -> None:
    """An answer that is still to be written, or that returns nothing."""
    for value in got:
        if isinstance(value, NotImplementedError):
            blank = _blank(value)
            if blank is None or set(blank.split(".")) & _own_names(answer):
                raise NotYet(
                    "This one is still to be written: replace the line `raise NotImplementedError()` by your answer."
                )
            raise NotYet(
                f"Your function uses `{blank}`, which is still to be written: "
                "replace its line `raise NotImplementedError()` first."
            )
    if all(value is None for value in got):
        raise NotYet("Your function gives back nothing (None). Does it end with `return ...`?")


def _own_names(answer: Callable) -> set[str]:
    """Names of the frames in which an answer's own blank line may stand: a function, a partial, a module, an object."""
    while isinstance(answer, partial):
        answer = answer.func
    own = getattr(answer, "__name__", None)
    return {own} if own else {"__call__", "forward", "_forward_unimplemented"}


def _call(function: Callable, args: tuple):
    """The function's result, or the exception it raised; what comes one by one (a generator, zip, map) as a list."""
    try:
        value = function(*args)
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("it is async, and nobody waits for it; write def in place of async def")
        return list(value) if isinstance(value, Iterator) else value
    except Exception as err:
        return err
    except SystemExit:  # would end the learner's kernel
        return RuntimeError("it calls sys.exit; give the value back with return")


def _names(function: Callable, count: int) -> list[str]:
    """The arguments as the learner called them."""
    try:
        names = [f"`{name}`" for name in inspect.signature(function).parameters]
    except (TypeError, ValueError):
        names = []
    return (names + ["its input"] * count)[:count]


def _blank(err: NotImplementedError) -> str | None:
    """The function whose blank line raised it."""
    frames = list(traceback.walk_tb(err.__traceback__))
    return frames[-1][0].f_code.co_qualname.rpartition("<locals>.")[2] if frames else None


def same(a, b, rel: float = 1e-4, absolute: float = 1e-6) -> bool:
    """Whether two answers agree: numbers within rounding, containers element by element, NaN equal to NaN."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b)
    if a is None or b is None:
        return a is b
    if _is_tensor(a) or _is_tensor(b):
        import torch

        try:
            a, b = (torch.as_tensor(v) for v in (a, b))
        except (TypeError, ValueError, RuntimeError):
            return False
        if a.shape != b.shape:
            return False
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        return bool(torch.allclose(a.to(wide), b.to(wide), rtol=rel, atol=absolute, equal_nan=True))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, rel, absolute) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], rel, absolute) for k in a)
    if isinstance(a, Real) and isinstance(b, Real):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return math.isclose(a, b, rel_tol=rel, abs_tol=absolute)
    return type(a) is type(b) and bool(a == b)


def _is_tensor(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _shape(value) -> tuple | None:
    return tuple(value.shape) if _is_tensor(value) else None


def attempt(function: Callable, *args):
    """The learner's function called for a further demand; raises NotYet where it stops."""
    try:
        return function(*args)
    except Exception as err:
        raise NotYet(_stopped(err)) from None


def _stopped(err: Exception) -> str:
    first = str(err).strip().split("\n")[0].rstrip(".:")
    return f"your function stopped with {type(err).__name__}: {first or 'no message'}."


def _where(got, want, alike: Callable) -> str:
    """The first place at which tensors differ, alone or in a list: the few numbers shown may be the ones that agree."""
    path: list[int] = []
    while isinstance(got, (list, tuple)) and isinstance(want, (list, tuple)) and len(got) == len(want):
        item = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if not alike(a, b))
        path, got, want = [*path, item], got[item], want[item]
    if not (_is_tensor(got) and _is_tensor(want)) or _shape(got) != _shape(want) or not _shape(want):
        return ""
    index = next(i for i in itertools.product(*map(range, want.shape)) if not alike(got[i], want[i]))
    return f"; the first difference is at {[*path, *index]}: {_short(got[index])}, not {_short(want[index])}"


def _short(value) -> str:
    if _is_tensor(value) and value.ndim:
        text = ", ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in value.flatten().tolist()[:6])
        return f"[{text}{', ...' if math.prod(value.shape) > 6 else ''}] of shape {tuple(value.shape)}"
    if _is_tensor(value):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and any(map(_is_tensor, value)):
        text = ", ".join(f"a tensor {tuple(v.shape)}" if _is_tensor(v) and v.ndim else _short(v) for v in value)
        return f"({text})" if isinstance(value, tuple) else f"[{text}]"
    text = repr(value)
    return text if len(text) <= 90 else text[:87] + "..."


def _words(args: tuple) -> str:
    return (
        "("
        + ", ".join(
            f"a tensor {tuple(v.shape)}" if _is_tensor(v) and math.prod(v.shape) > 4 else _short(v) for v in args
        )
        + ")"
    )
