"""The thread that turns the engine, and what stands between it and the event loop.

The engine is touched by this thread alone. Handlers leave tickets in an inbox and get their tokens back through an asyncio
queue; a slow reader holds up nobody, and its unread tokens are bounded by its own limit of new tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field

from minglm.inference.engine import Engine, Request
from minglm.serving.metrics import Metrics

QUIET_S, GATHER_S = (
    0.002,
    0.03,
)  # an engine at rest starts when nobody has come for so long, and after so long in any case


@dataclass(eq=False)
class Ticket:
    """One sequence asked for. The driver puts (tokens, log-probabilities, reason or None) into `out`; reasons are
    "stop", "length", "timeout" or "failed". With `whole` it does so once, at the end."""

    request: Request
    loop: asyncio.AbstractEventLoop
    deadline: float
    whole: bool = False
    first: bool = True  # no token has come yet
    out: asyncio.Queue = field(default_factory=asyncio.Queue)
    sent: int = 0
    asked_at: float = field(default_factory=time.monotonic)

    def tell(self, tokens: list[int], logprobs: list[float], reason: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is listening
            self.loop.call_soon_threadsafe(self.out.put_nowait, (tokens, logprobs, reason))


class Driver(threading.Thread):
    """Runs an engine until `close`."""

    def __init__(self, engine: Engine, metrics: Metrics):
        super().__init__(name="engine", daemon=True)
        self.engine, self.metrics = engine, metrics
        self.tickets: dict[str, Ticket] = {}
        self.failure: str | None = None
        self._inbox: deque = deque()  # (what, ticket), appended by handlers, taken by the thread
        self._wake = threading.Event()
        self._closing = False

    # ------------------------------------------------------------------ called by handlers

    def submit(
        self,
        prompt: list[int],
        limit: int,
        *,
        temperature: float,
        top_p: float,
        seed: int,
        stop: tuple[int, ...],
        timeout_s: float,
        whole: bool = False,
    ) -> Ticket:
        """Queue a sequence. The engine checks it again; what it refuses ends as "failed".

        whole: nobody looks at it before its end, so the event loop is not woken for each token.
        """
        request = Request(uuid.uuid4().hex, prompt, limit, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
        ticket = Ticket(request, asyncio.get_running_loop(), time.monotonic() + timeout_s, whole)
        self._inbox.append(("submit", ticket))
        self._wake.set()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this one any more."""
        self._inbox.append(("cancel", ticket))
        self._wake.set()

    @property
    def load(self) -> int:
        """Sequences running, waiting, or on their way in."""
        return len(self.tickets) + len(self._inbox)

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        try:
            while not self._closing:
                self._read_inbox()
                if not self.tickets:
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
            for ticket in list(self.tickets.values()):
                ticket.tell([], [], "failed")
            self.tickets.clear()

    def _gather(self) -> None:
        """From rest, let those who come together begin together: one prompt is read in about as fast as sixteen at once."""
        end, here = time.monotonic() + GATHER_S, -1
        while self._inbox and len(self._inbox) > here and time.monotonic() < end:
            here = len(self._inbox)
            time.sleep(QUIET_S)

    def _read_inbox(self) -> None:
        while self._inbox:
            what, ticket = self._inbox.popleft()
            if what == "submit":
                try:
                    self.engine.submit(ticket.request)
                    self.tickets[ticket.request.id] = ticket
                except ValueError as err:  # InputError is one
                    ticket.request.reason = str(err)
                    ticket.tell([], [], "failed")
            elif self.tickets.pop(ticket.request.id, None) is not None:
                self.engine.abort([ticket.request.id])
                self.metrics.cancelled.inc()

    def _deliver(self, finished: list[Request]) -> None:
        ended = {r.id for r in finished}
        now, late = time.monotonic(), []
        said: dict[asyncio.AbstractEventLoop, list] = {}
        for name, ticket in list(self.tickets.items()):
            r = ticket.request
            reason = r.reason if name in ended else None
            if reason is None and now > ticket.deadline:
                late.append(name)
                reason = "timeout"
            if ticket.first and r.tokens:
                ticket.first = False
                self.metrics.first_token.observe(now - ticket.asked_at)
            if reason or (not ticket.whole and len(r.tokens) > ticket.sent):
                said.setdefault(ticket.loop, []).append(
                    (ticket.out, (r.tokens[ticket.sent :], r.logprobs[ticket.sent :], reason))
                )
                ticket.sent = len(r.tokens)
            if reason:
                del self.tickets[name]
                self.metrics.finished.labels(reason).inc()
                self.metrics.duration.observe(now - ticket.asked_at)
        for loop, words in said.items():  # one call a step wakes the loop, not one for each sequence
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is listening
                loop.call_soon_threadsafe(_put_all, words)
        if late:
            self.engine.abort(late)


def _put_all(words: list[tuple[asyncio.Queue, tuple]]) -> None:
    for out, word in words:
        out.put_nowait(word)
