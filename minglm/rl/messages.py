"""What coordinator and workers of an RL run say to each other: one frozen dataclass a message. Torch-free.

Commands go to a worker, reports come back. Between processes a message travels as a plain dict (`to_wire`): its class's
name under "type", then its fields, made of numbers, texts, lists and dicts and of nothing else, so no transport has to
carry code. `from_wire` builds the class again and checks it: what is unknown, incomplete or of the wrong type raises
`MessageError`; nothing is dropped.

    trainer   Hello → TrainerReady          Train → StepDone                      PublishWeights → WeightsPublished
              Evaluate → EvaluationDone     SaveCheckpoint → CheckpointSaved
    rollout   Submit → RolloutsDone …       Abort → RolloutsAborted
              UpdateWeights → WeightsLoaded or WeightsRefused
    both      Stop                          Started, Heartbeat and Failed come unasked

    >>> from_wire(to_wire(WeightsLoaded(version=3, seconds=0.5)), REPORTS)
    WeightsLoaded(version=3, seconds=0.5)
    >>> from_wire({"type": "WeightsLoded", "version": 3}, REPORTS)
    Traceback (most recent call last):
    minglm.rl.messages.MessageError: message 'WeightsLoded': unknown (did you mean 'WeightsLoaded'?)
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeVar

from minglm.errors import nearest

Wire: TypeAlias = dict[str, Any]
Routes: TypeAlias = list[list[list[int]]]  # (response tokens, MoE layers, K): experts chosen
_M = TypeVar("_M")


class MessageError(RuntimeError):
    """A message that is unknown, incomplete or of the wrong type: coordinator and worker are not of one version."""


# ---------------------------------------------------------------------- parts of messages


@dataclass(frozen=True)
class RolloutRequest:
    """A sample to decode; with tokens, one to resume. The lists have one entry per response token."""

    id: str  # "group.sample"
    prompt: list[int]
    seed: int
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    routes: Routes | None = None


@dataclass(frozen=True)
class RolloutResult:
    """What has come of a request so far; `reason` is None while it is unfinished, then "stop" or "length"."""

    id: str
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    reason: str | None
    routes: Routes | None = None


@dataclass(frozen=True)
class TrainSample:
    """A finished sample as the trainer reads it. The lists have one entry per response token."""

    tokens: list[int]
    logprobs: list[float]  # under the weights that sampled each token
    versions: list[int]  # of those weights
    reward: float
    routes: Routes | None = None


@dataclass(frozen=True)
class TrainGroup:
    """A prompt with all its samples."""

    prompt: list[int]
    samples: tuple[TrainSample, ...]


@dataclass(frozen=True)
class Progress:
    """Work of a rollout worker since its last report."""

    busy_s: float  # seconds in decode steps
    slot_s: float  # the same, times the sequences that were decoded
    tokens: int
    running: int  # sequences being decoded now


# ---------------------------------------------------------------------- commands: coordinator → worker


@dataclass(frozen=True)
class Stop:
    """End."""


@dataclass(frozen=True)
class Hello:
    """Ask the trainer where it stands."""


@dataclass(frozen=True)
class Train:
    """One update."""

    update: int  # its number, from 1
    version: int  # of the weights it starts from
    sync_version: int | None  # publish the new weights as this version; None: keep them
    reset_optimizer: bool
    groups: tuple[TrainGroup, ...]


@dataclass(frozen=True)
class PublishWeights:
    """Write the weights for the rollout once more."""

    version: int


@dataclass(frozen=True)
class Evaluate:
    """Respond to held-out prompts, once sampled and once greedily."""

    prompts: list[list[int]]
    max_len: int  # positions, prompt and response together
    stop: list[int]


@dataclass(frozen=True)
class SaveCheckpoint:
    """Save model, optimiser and the coordinator's own state."""

    state: dict[str, Any]


@dataclass(frozen=True)
class Submit:
    """Decode these."""

    requests: tuple[RolloutRequest, ...]


@dataclass(frozen=True)
class Abort:
    """Stop all requests and give them back."""


@dataclass(frozen=True)
class UpdateWeights:
    """Load a weights file between two decode steps."""

    path: str
    version: int
    config: dict[str, Any]  # of the model
    max_len: int


# ---------------------------------------------------------------------- reports: worker → coordinator


@dataclass(frozen=True)
class Started:
    """The worker's process is up."""


@dataclass(frozen=True)
class Heartbeat:
    """The worker lives; from a rollout worker with what it did."""

    progress: Progress | None = None


@dataclass(frozen=True)
class Failed:
    """The worker's last words."""

    reason: str
    fatal: bool  # a restart would meet the same reason again
    traceback: str = ""


@dataclass(frozen=True)
class TrainerReady:
    """Where the trainer stands: fresh, or at its newest checkpoint."""

    updates: int
    version: int
    config: dict[str, Any]
    weights: str  # path of the file for the rollout
    state: dict[str, Any] | None  # of the coordinator, as it was saved
    hf: dict[str, Any]  # the model's config.json


@dataclass(frozen=True)
class StepDone:
    """An update is done."""

    update: int
    stats: dict[str, float]
    seconds: float  # of the update, without writing the weights
    weights: str | None  # path of the new weights, where they were published
    weight_sync_s: float  # of writing them
    tokens: int  # prompt and response
    trained_tokens: int  # response


@dataclass(frozen=True)
class WeightsPublished:
    """The weights lie at this path."""

    weights: str
    version: int


@dataclass(frozen=True)
class EvaluationDone:
    """Response tokens to each held-out prompt."""

    sampled: list[list[int]]
    greedy: list[list[int]]
    update: int
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint after this many updates is on the disk."""

    updates: int


@dataclass(frozen=True)
class RolloutsDone:
    """Requests that have finished."""

    requests: tuple[RolloutResult, ...]
    progress: Progress


@dataclass(frozen=True)
class RolloutsAborted:
    """Requests given back unfinished."""

    requests: tuple[RolloutResult, ...]
    progress: Progress


@dataclass(frozen=True)
class WeightsLoaded:
    """The engine decodes with this version from now on."""

    version: int
    seconds: float


@dataclass(frozen=True)
class WeightsRefused:
    """The file was missing, torn or of another version; the old weights stay."""

    version: int
    reason: str


TrainerCommand: TypeAlias = Hello | Train | PublishWeights | Evaluate | SaveCheckpoint
RolloutCommand: TypeAlias = Submit | Abort | UpdateWeights
Command: TypeAlias = Stop | TrainerCommand | RolloutCommand
TrainerReport: TypeAlias = TrainerReady | StepDone | WeightsPublished | EvaluationDone | CheckpointSaved
RolloutReport: TypeAlias = RolloutsDone | RolloutsAborted | WeightsLoaded | WeightsRefused
Report: TypeAlias = Started | Heartbeat | Failed | TrainerReport | RolloutReport
COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in typing.get_args(Command)}
REPORTS: dict[str, type[Report]] = {kind.__name__: kind for kind in typing.get_args(Report)}


def unexpected(message: object, receiver: str) -> MessageError:
    """The error for a message that its receiver has no use for."""
    return MessageError(f"message {type(message).__name__!r}: {receiver} does not take it")


# ---------------------------------------------------------------------- encoding


def to_wire(message: Command | Report) -> Wire:
    """The message as a dict of plain values."""
    return {"type": type(message).__name__, **_fields(message)}


def _fields(part: Any) -> Wire:
    return {field.name: _plain(getattr(part, field.name)) for field in dataclasses.fields(part)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_wire(values: object, kinds: Mapping[str, type[_M]]) -> _M:
    """The message that a dict of `to_wire` holds.

    Args:
        kinds: the messages that may come, by name: `COMMANDS` or `REPORTS`.

    Raises:
        MessageError: an unknown type, a missing or unknown field, a value of another type.
    """
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise MessageError(f"message {str(values)[:60]!r}: not a dict with a type; both sides must run one version")
    name = values["type"]
    if name not in kinds:
        raise MessageError(f"message {name[:60]!r}: unknown{nearest(name, kinds)}")
    return _read(kinds[name], {key: value for key, value in values.items() if key != "type"}, f"message {name!r}")


@cache
def _hints(name: str) -> dict[str, Any]:
    return typing.get_type_hints(globals()[name])


def _read(kind: type[_M], values: object, where: str) -> _M:
    if not isinstance(values, dict):
        raise MessageError(f"{where}: {str(values)[:40]!r} is no {kind.__name__}")
    hints = _hints(kind.__name__)
    if unknown := sorted(str(key) for key in values.keys() - hints.keys()):
        raise MessageError(f"{where}: unknown field {unknown[0]!r}{nearest(unknown[0], hints)}")
    required = {f.name for f in dataclasses.fields(typing.cast(Any, kind)) if f.default is dataclasses.MISSING}
    if missing := sorted(required - values.keys()):
        raise MessageError(f"{where}: field {missing[0]!r} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}, {name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value as its annotation says; items of plain lists and dicts are taken as they are."""
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in typing.get_args(hint):
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
        return _value(hint, value, where)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_value(typing.get_args(hint)[0], item, f"{where} {i}") for i, item in enumerate(value))
    elif dataclasses.is_dataclass(hint):
        return _read(typing.cast(type, hint), value, where)
    elif hint is Any or _is(origin or hint, value):
        return value
    name = getattr(origin or hint, "__name__", str(hint))
    raise MessageError(f"{where}: {str(value)[:40]!r} ({type(value).__name__}) is no {name}")


def _is(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
