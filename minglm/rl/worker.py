"""The rollout process: an engine that decodes what it is sent and takes new weights as they come.

Commands: Submit, Abort, UpdateWeights. Reports: RolloutsDone, RolloutsAborted, WeightsLoaded, WeightsRefused,
    Heartbeat.

A weights file says its version inside; one whose version is not the announced one, or not newer than what is loaded, is
refused and the old weights stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from minglm import atomic
from minglm.config import ModelConfig
from minglm.inference.engine import Engine
from minglm.inference.request import Request
from minglm.model.model import Model
from minglm.rl.config import Settings
from minglm.rl.messages import (
    Abort,
    Command,
    Heartbeat,
    Progress,
    Report,
    RolloutRequest,
    RolloutResult,
    RolloutsAborted,
    RolloutsDone,
    Submit,
    UpdateWeights,
    WeightsLoaded,
    WeightsRefused,
    unexpected,
)

REPORT_S = 0.5  # between two reports of tokens and time, which tell the coordinator what a kill cost


class RolloutWorker:
    """Runs one engine.

    Args:
        settings: `Settings.to_dict()`. stop: tokens that end a response. heartbeat: called during long work.
    """

    def __init__(self, settings: dict[str, Any], stop: list[int], heartbeat: Callable[[], None] = lambda: None) -> None:
        self.settings, self.stop, self.heartbeat = Settings.from_dict(settings), stop, heartbeat
        torch.set_num_threads(self.settings.threads)
        self.engine: Engine | None = None
        self.early: list[RolloutRequest] = []  # came before the first weights
        self.busy_s = self.slot_s = 0.0
        self.tokens = 0
        self.reported = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether requests run or wait."""
        return self.engine is not None and bool(self.engine.running or self.engine.waiting)

    def handle(self, command: Command) -> Iterator[Report]:
        """Obey a command; `Submit` is answered later, by `step`."""
        match command:
            case Submit(requests=requests):
                self._submit(requests)
            case Abort():
                yield RolloutsAborted(self._abort(), self._progress())
            case UpdateWeights():
                yield self._update_weights(command)
            case _:
                raise unexpected(command, "a rollout worker")

    def _submit(self, requests: tuple[RolloutRequest, ...] | list[RolloutRequest]) -> None:
        if self.engine is None:
            self.early += requests
            return
        for request in requests:
            self.engine.submit(request_from(request, self.settings, self.stop))

    def _abort(self) -> tuple[RolloutResult, ...]:
        early, self.early = self.early, []
        if self.engine is not None:
            return tuple(result_of(request) for request in self.engine.abort())
        return tuple(RolloutResult(r.id, r.tokens, r.logprobs, r.versions, None, r.routes) for r in early)

    def _update_weights(self, command: UpdateWeights) -> Report:
        started, version = time.perf_counter(), command.version
        try:
            weights = read_weights(Path(command.path), version, self.engine.version if self.engine else -1)
        except (OSError, ValueError) as err:  # missing, torn, stale: keep what is loaded and say so
            return WeightsRefused(version, str(err))
        if self.engine is None:
            s = self.settings
            model = Model(ModelConfig.from_dict(command.config)).eval()
            model.load_state_dict(weights)
            self.engine = Engine(
                model,
                max_batch=s.max_batch,
                max_len=command.max_len,
                mode="sparse",
                speculate=s.speculate,
                record_routes=s.routing_replay,
                reuse_kv_cache=s.reuse_kv_cache,
                recompute_kv_on_weight_sync=s.recompute_kv_on_weight_sync,
            )
        self.engine.update_weights(weights, version)
        early, self.early = self.early, []
        self._submit(early)
        return WeightsLoaded(version, time.perf_counter() - started)

    def step(self) -> Iterator[Report]:
        """One step of the engine; reports what finished, and every `REPORT_S` what was done."""
        assert self.engine is not None, "busy without an engine"
        started, before = time.perf_counter(), self.engine.stats.decoded
        finished = self.engine.step()
        step_s, decoded = time.perf_counter() - started, self.engine.stats.decoded - before
        self.busy_s += step_s
        self.slot_s += step_s * decoded  # each running request makes one token in a step
        self.tokens += decoded
        if finished:
            yield RolloutsDone(tuple(result_of(request) for request in finished), self._progress())
        elif time.monotonic() - self.reported > REPORT_S:
            yield Heartbeat(self._progress())

    def _progress(self) -> Progress:
        self.reported = time.monotonic()
        out = Progress(self.busy_s, self.slot_s, self.tokens, self.engine.running if self.engine else 0)
        self.busy_s, self.slot_s, self.tokens = 0.0, 0.0, 0
        return out


def read_weights(path: Path, version: int, loaded: int) -> dict[str, torch.Tensor]:
    """Tensors of a weights file.

    Args:
        version: the one that was announced. loaded: the one that is in use; -1 for none.

    Raises:
        ValueError: it is of another version than announced, or not newer than `loaded`. OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            inside = int((file.metadata() or {}).get("version", -1))
            if inside != version:
                raise ValueError(f"{path.name} holds version {inside}, announced was {version}")
            if version <= loaded:
                raise ValueError(f"{path.name} is stale: version {loaded} is loaded already")
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as err:
        raise ValueError(f"{path.name}: not readable ({err})") from None


def write_weights(path: Path, tensors: dict[str, torch.Tensor], version: int) -> None:
    """Write a weights file aside, then rename it into place."""
    from safetensors.torch import save_file

    whole = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    with atomic.beside(path) as place:
        save_file(whole, place, {"version": str(version)})


def request_from(request: RolloutRequest, settings: Settings, stop: list[int]) -> Request:
    """The engine's request of what the coordinator sends."""
    return Request(
        id=request.id,
        prompt=request.prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=request.seed,
        stop=tuple(stop),
        tokens=list(request.tokens),
        logprobs=list(request.logprobs),
        versions=list(request.versions),
        routes=None if request.routes is None else [torch.tensor(r, dtype=torch.int16) for r in request.routes],
    )


def result_of(request: Request) -> RolloutResult:
    """What the coordinator keeps of an engine's request."""
    return RolloutResult(
        id=request.id,
        tokens=list(request.tokens),
        logprobs=list(request.logprobs),
        versions=list(request.versions),
        reason=request.reason if request.reason in ("stop", "length") else None,
        routes=None if request.routes is None else [r.tolist() for r in request.routes],
    )
