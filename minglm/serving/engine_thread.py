"""The thread that runs the engine, and what stands between it and the event loop.

The engine is touched by this thread alone. Handlers put commands into an inbox and get their tokens back through an
asyncio queue; a slow reader holds up nobody, and its unread tokens are bounded by its own limit of new tokens. (vLLM's
`AsyncLLMEngine` and `RequestOutput` have the same parts.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from minglm.inference.engine import Engine
from minglm.inference.request import Request
from minglm.serving.metrics import Metrics

QUIET_S = 0.002  # an engine at rest starts when nobody has come for so long,
GATHER_S = 0.03  # and after so long in any case


class RequestOutput(NamedTuple):
    """What is new of one sequence. Ends with `finish_reason`: "stop", "length", "timeout" or "failed"."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str | None


@dataclass(eq=False)
class RequestHandle:
    """One submitted sequence; its outputs arrive in `outputs`, with `final_only` a single one at the end.

    Times are those of `time.monotonic`, in seconds.
    """

    request: Request
    loop: asyncio.AbstractEventLoop
    deadline_s: float
    final_only: bool = False
    outputs: asyncio.Queue[RequestOutput] = field(default_factory=asyncio.Queue)
    delivered: int = 0  # tokens put into `outputs` so far
    has_first_token: bool = False
    submitted_at_s: float = field(default_factory=time.monotonic)

    def put(self, output: RequestOutput) -> None:
        """Hand `output` to the event loop; called from the engine's thread."""
        _put_all(self.loop, [(self.outputs, output)])


class EngineThread(threading.Thread):
    """Runs an engine until `close`. `failure` holds the error that ended it, if one did."""

    def __init__(self, engine: Engine, metrics: Metrics):
        super().__init__(name="engine", daemon=True)
        self.engine, self.metrics = engine, metrics
        self.failure: str | None = None
        self._handles: dict[str, RequestHandle] = {}
        # appended by handlers, taken by the thread
        self._inbox: deque[tuple[Literal["submit", "cancel"], RequestHandle]] = deque()
        self._wake = threading.Event()
        self._closing = self._ended = False

    # ------------------------------------------------------------------ called by handlers

    def submit(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        temperature: float,
        top_p: float,
        seed: int,
        stop: tuple[int, ...],
        timeout_s: float,
        final_only: bool = False,
    ) -> RequestHandle:
        """Queue a sequence. The engine checks it again; what it refuses ends as "failed".

        final_only: nobody looks at it before its end, so the event loop is not woken for each token.
        """
        request = Request(
            uuid.uuid4().hex, prompt, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
        )
        handle = RequestHandle(request, asyncio.get_running_loop(), time.monotonic() + timeout_s, final_only)
        self._inbox.append(("submit", handle))
        self._wake.set()
        if self._ended:  # it ended since the caller looked
            self._fail_inbox()
        return handle

    def cancel(self, handle: RequestHandle) -> None:
        """Nobody waits for this one any more."""
        self._inbox.append(("cancel", handle))
        self._wake.set()

    @property
    def load(self) -> int:
        """Sequences running, waiting, or on their way in."""
        return len(self._handles) + len(self._inbox)

    @property
    def stopped(self) -> bool:
        """Whether nothing that is submitted now will be answered."""
        return self.failure is not None or not self.is_alive()

    def close(self) -> None:
        """End after the current step; what still runs ends as "failed"."""
        self._closing = True
        self._wake.set()

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        """The thread's loop: take commands, step, deliver."""
        try:
            while not self._closing:
                self._read_inbox()
                if not self._handles:
                    self._wake.wait(1.0)
                    self._wake.clear()
                    self._gather()
                    continue
                started = time.monotonic()
                finished = self.engine.step()
                self.metrics.step(self.engine, time.monotonic() - started)
                self._deliver(finished)
        except BaseException as err:  # a dead engine must not leave clients waiting
            self.failure = f"{type(err).__name__}: {err}"
            raise
        finally:
            for handle in list(self._handles.values()):
                handle.put(RequestOutput([], [], "failed"))
            self._handles.clear()
            self._ended = True  # from here on who submits finds it, and before it is found below
            self._fail_inbox()

    def _fail_inbox(self) -> None:
        """Answer those who were on their way in when the thread ended; either side may call it."""
        with contextlib.suppress(IndexError):  # empty
            while True:
                command, handle = self._inbox.popleft()
                if command == "submit":
                    handle.put(RequestOutput([], [], "failed"))

    def _gather(self) -> None:
        """From rest, let those who come together begin together: one prefill takes about as long as sixteen at once."""
        end_s, count = time.monotonic() + GATHER_S, -1
        while self._inbox and len(self._inbox) > count and time.monotonic() < end_s:
            count = len(self._inbox)
            time.sleep(QUIET_S)

    def _read_inbox(self) -> None:
        while self._inbox:
            command, handle = self._inbox.popleft()
            if command == "submit":
                try:
                    self.engine.submit(handle.request)
                    self._handles[handle.request.id] = handle
                except ValueError as err:  # InputError is one
                    handle.request.reason = str(err)
                    handle.put(RequestOutput([], [], "failed"))
            elif self._handles.pop(handle.request.id, None) is not None:
                self.engine.abort([handle.request.id])
                self.metrics.cancelled.inc()

    def _deliver(self, finished: list[Request]) -> None:
        """Put each sequence's new tokens into its queue, and end those that are done or past their deadline."""
        finished_ids = {r.id for r in finished}
        now_s, timed_out = time.monotonic(), []
        pending: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[RequestOutput], RequestOutput]]] = {}
        for request_id, handle in list(self._handles.items()):
            r = handle.request
            reason = r.reason if request_id in finished_ids else None
            if reason is None and now_s > handle.deadline_s:
                timed_out.append(request_id)
                reason = "timeout"
            if r.tokens and not handle.has_first_token:
                handle.has_first_token = True
                self.metrics.first_token.observe(now_s - handle.submitted_at_s)
            if reason or (not handle.final_only and len(r.tokens) > handle.delivered):
                output = RequestOutput(r.tokens[handle.delivered :], r.logprobs[handle.delivered :], reason)
                pending.setdefault(handle.loop, []).append((handle.outputs, output))
                handle.delivered = len(r.tokens)
            if reason:
                del self._handles[request_id]
                self.metrics.finished.labels(reason).inc()
                self.metrics.duration.observe(now_s - handle.submitted_at_s)
        for loop, outputs in pending.items():  # one call a step wakes the loop, not one for each sequence
            _put_all(loop, outputs)
        if timed_out:
            self.engine.abort(timed_out)


def _put_all(
    loop: asyncio.AbstractEventLoop, outputs: list[tuple[asyncio.Queue[RequestOutput], RequestOutput]]
) -> None:
    def put() -> None:
        for queue, output in outputs:
            queue.put_nowait(output)

    with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is listening
        loop.call_soon_threadsafe(put)
