"""The rollout process: an engine that decodes what it is sent and takes new weights as they come.

    do: submit {requests}, abort, push {path, version, config}     got: finished {requests}, aborted {requests}, pushed, refused

A weights file says its version inside; one whose version is not the announced one, or not newer than what is loaded, is
refused and the old weights stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from minglm.config import ModelConfig
from minglm.inference.engine import Engine, Request
from minglm.model.model import Model

REPORT_S = 0.5  # between two reports of tokens and time, which tell the coordinator what a kill cost


class RolloutWorker:
    """Runs one engine. Requests travel as dicts (`request_from`, `request_to`)."""

    def __init__(self, settings: dict, stop: list[int], beat: Callable[[], None] = lambda: None) -> None:
        torch.set_num_threads(settings["threads"])
        self.settings, self.stop, self.beat = settings, stop, beat
        self.engine: Engine | None = None
        self.before: list[dict] = []  # requests that came before the first weights
        self.busy_s = self.tokens = self.slot_s = 0.0
        self.reported = time.monotonic()

    @property
    def busy(self) -> bool:
        return self.engine is not None and bool(self.engine.running or self.engine.waiting)

    def handle(self, message: dict) -> Iterator[dict]:
        kind = message["do"]
        if kind == "submit":
            for request in message["requests"]:
                self._submit(request) if self.engine else self.before.append(request)
        elif kind == "abort":
            unfinished = [request_to(r) for r in self.engine.abort()] if self.engine else self.before
            self.before = []
            yield {"got": "aborted", "requests": unfinished, **self._report()}
        elif kind == "push":
            yield self._push(message)

    def _submit(self, request: dict) -> None:
        self.engine.submit(request_from(request, self.settings, self.stop))

    def _push(self, message: dict) -> dict:
        started, path, version = time.perf_counter(), Path(message["path"]), message["version"]
        try:
            weights = read_weights(path, version, self.engine.version if self.engine else -1)
        except (OSError, ValueError) as err:  # missing, torn, stale: keep what is loaded and say so
            return {"got": "refused", "version": version, "why": str(err)}
        if self.engine is None:
            s = self.settings
            model = Model(ModelConfig.from_dict(message["config"])).eval()
            model.load_state_dict(weights)
            self.engine = Engine(
                model,
                max_batch=s["max_batch"],
                max_len=message["max_len"],
                mode="sparse",
                speculate=s["speculate"],
                record_routes=s["routing_replay"],
                reuse_kv_cache=s["reuse_kv_cache"],
                recompute_kv_on_weight_sync=s["recompute_kv_on_weight_sync"],
            )
            self.engine.update_weights(weights, version)
            for request in self.before:
                self._submit(request)
            self.before = []
        else:
            self.engine.update_weights(weights, version)
        return {"got": "pushed", "version": version, "seconds": time.perf_counter() - started}

    def step(self) -> Iterator[dict]:
        started, before = time.perf_counter(), self.engine.stats.decoded
        finished = self.engine.step()
        took, made = time.perf_counter() - started, self.engine.stats.decoded - before
        self.busy_s += took
        self.slot_s += took * made  # each running request makes one token in a step
        self.tokens += made
        if finished:
            yield {"got": "finished", "requests": [request_to(r) for r in finished], **self._report()}
        elif time.monotonic() - self.reported > REPORT_S:
            yield {"got": "beat", **self._report()}

    def _report(self) -> dict:
        self.reported = time.monotonic()
        engine = self.engine
        out = {
            "busy_s": self.busy_s,
            "slot_s": self.slot_s,
            "made": self.tokens,
            "running": engine.running if engine else 0,
        }
        self.busy_s, self.slot_s, self.tokens = 0.0, 0.0, 0
        return out


def read_weights(path: Path, version: int, loaded: int) -> dict[str, torch.Tensor]:
    """Tensors of a weights file.

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
    import os

    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    save_file(
        {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, temporary, {"version": str(version)}
    )
    os.replace(temporary, path)


def request_from(values: dict, settings: dict, stop: list[int]) -> Request:
    """An engine's request from what the coordinator sends: id, prompt, seed and, when resumed, the tokens so far."""
    routes = values["routes"]
    return Request(
        id=values["id"],
        prompt=values["prompt"],
        max_new_tokens=settings["max_new_tokens"],
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        seed=values["seed"],
        stop=tuple(stop),
        tokens=list(values["tokens"]),
        logprobs=list(values["logprobs"]),
        versions=list(values["versions"]),
        routes=None if routes is None else [torch.tensor(r, dtype=torch.int16) for r in routes],
    )


def request_to(request: Request) -> dict:
    """What the coordinator keeps of a request; `reason` is None while it is unfinished."""
    return {
        "id": request.id,
        "tokens": list(request.tokens),
        "logprobs": list(request.logprobs),
        "versions": list(request.versions),
        "reason": request.reason if request.reason in ("stop", "length") else None,
        "routes": None if request.routes is None else [r.tolist() for r in request.routes],
    }
