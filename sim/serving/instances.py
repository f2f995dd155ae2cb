"""Instances of a serving fleet as SimPy processes: prompts that are prefilled together, steps of a running batch.

A decode instance goes from change to change: while nobody comes or goes, its next steps are one event, their time the
sum of steps whose context grows by a token each (straight between the first and the last, over a fifth of growth at
most). An arrival ends the run of steps at the end of the step that it falls into.
"""

from __future__ import annotations

import functools
import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import simpy

from sim.serving.clock import Clock

Events = Generator[simpy.Event, Any, None]  # what a SimPy process yields
GROWTH = 0.2  # of the mean context within one run of steps: a step's time bends less than 0.2% from a straight line
LEAST_RUN = 16  # steps of a run all the same


@dataclass(slots=True)
class Request:
    """One request; times in seconds since the start of the simulation as its client sees them, lengths in tokens."""

    id: int
    prompt: int
    output: int
    cached: int  # of the prompt
    arrive: float
    start: float = 0.0
    first: float = 0.0
    finish: float = 0.0
    left: int = 0  # prompt tokens still to prefill (chunked)
    back_s: float = 0.0  # from the engine's token to the client's

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.first - self.arrive

    @property
    def tpot_s(self) -> float:
        """Seconds from one token to the next; 0 of a single one."""
        return (self.finish - self.first) / (self.output - 1) if self.output > 1 else 0.0


class Limits(NamedTuple):
    """Of one decode instance, over all its attention groups."""

    requests: int
    chunk_tokens: int
    kv_tokens: float


class Busy:
    """What the machines did: seconds by kind of work, steps, requests in them."""

    def __init__(self) -> None:
        self.seconds = {"prefill": 0.0, "decode": 0.0}
        self.steps = self.batch_sum = 0


class Instance(ABC):
    """What prefill and decode instances have in common: a queue of prompts, and sleep while there is nothing to do."""

    def __init__(self, env: simpy.Environment, busy: Busy, finish: Callable[[Request], None]):
        self.env, self.busy, self.finish = env, busy, finish
        self.queue: deque[Request] = deque()
        self.queued_tokens = 0  # prompt tokens queued or being prefilled
        self.requests = 0  # in the instance, whatever for
        self.changed: Callable[[], None] = _nothing  # its load is another one now
        self._wake = env.event()

    def enqueue(self, request: Request) -> None:
        """A prompt to prefill."""
        self.queued_tokens += request.left
        self.requests += 1
        self.queue.append(request)
        self.changed()
        self.ring()

    def ring(self) -> None:
        """Wake the instance up, if it sleeps."""
        if not self._wake.triggered:
            self._wake.succeed()

    def sleep(self) -> simpy.Event:
        """The event to wait for until somebody rings."""
        self._wake = self.env.event()
        return self._wake

    @abstractmethod
    def process(self) -> Events:
        """The instance's life as a SimPy process."""


class PrefillInstance(Instance):
    """Prefills as many queued prompts together as `batch_tokens` allows, then hands their caches on.

    least_pass_s: seconds that the host needs to issue a pass.
    """

    def __init__(
        self,
        env: simpy.Environment,
        busy: Busy,
        finish: Callable[[Request], None],
        clock: Clock,
        batch_tokens: int,
        hand_on: Callable[[Request], None],
        least_pass_s: float = 0.0,
    ):
        super().__init__(env, busy, finish)
        self.clock, self.batch_tokens, self.hand_on, self.least_pass_s = clock, batch_tokens, hand_on, least_pass_s

    def process(self) -> Events:
        """Batch after batch."""
        queue = self.queue
        while True:
            while not queue:
                yield self.sleep()
            batch = [queue.popleft()]
            tokens = batch[0].left
            while queue and tokens + queue[0].left <= self.batch_tokens:
                batch.append(queue.popleft())
                tokens += batch[-1].left
            for request in batch:
                request.start = self.env.now
            n = len(batch)
            time = self.clock.prefill_s(n, sum(r.prompt for r in batch) / n, sum(r.cached for r in batch) / n)
            time = max(time, self.least_pass_s)
            self.busy.seconds["prefill"] += time
            yield self.env.timeout(time)
            self.queued_tokens -= tokens
            self.requests -= n
            self.changed()
            for request in batch:
                request.first, request.left = self.env.now + request.back_s, 0
                if request.output == 1:
                    self.finish(request)
                else:
                    self.hand_on(request)


class DecodeInstance(Instance):
    """Steps of a running batch. Without prefill instances, a chunk of the queued prompts goes before each step.

    poll_steps: steps between two looks at new requests. steps_back: steps until a token is with its client.
    least_pass_s: seconds that the host needs to issue a step with prompts in it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        busy: Busy,
        finish: Callable[[Request], None],
        clocks: tuple[Clock, Clock],
        limits: Limits,
        poll_steps: int = 1,
        steps_back: float = 0.0,
        least_pass_s: float = 0.0,
    ):
        super().__init__(env, busy, finish)
        self.decode_clock, self.prefill_clock = clocks
        self.limits, self.poll_steps, self.steps_back = limits, poll_steps, steps_back
        self.least_pass_s = least_pass_s
        self.tokens_per_step = self.decode_clock.tokens_per_step
        self.ready: deque[Request] = deque()  # prefilled elsewhere, their caches here
        self.filling: deque[Request] = deque()  # admitted, prompt not finished
        self.due: list[tuple[int, int, Request]] = []  # heap of (step at which it ends, id, request)
        self.active = 0  # being decoded
        self.context = 0.0  # cached tokens of the active ones
        self.reserved = 0  # tokens of the admitted ones at their end
        self.step = 0

    def receive(self, request: Request) -> None:
        """A request whose prompt was prefilled elsewhere."""
        self.requests += 1
        self.ready.append(request)
        self.changed()
        self.ring()

    def process(self) -> Events:
        """Admit, prefill a chunk with a step, or decode until somebody comes or goes; let go who is done."""
        while True:
            self._admit()
            if self.filling:
                yield from self._mixed_step()
            elif self.active:
                yield from self._run_of_steps()
            else:
                yield self.sleep()

    # ---- who comes
    def _fits(self, request: Request) -> bool:
        """A place in the batch, and room in the cache for all of the request's final context."""
        return (
            self.active + len(self.filling) < self.limits.requests
            and self.reserved + request.prompt + request.output <= self.limits.kv_tokens
        )

    def _looks(self) -> bool:
        """Whether the engine looks at new requests after this step: at once while it has nothing else to do."""
        return self.step % self.poll_steps == 0 or not (self.active or self.filling)

    def _admit(self) -> None:
        if not self._looks():
            return
        while self.ready and self._fits(self.ready[0]):
            request = self.ready.popleft()
            self.reserved += request.prompt + request.output
            self._start_decoding(request)
        while self.queue and self._fits(self.queue[0]):
            request = self.queue.popleft()
            self.reserved += request.prompt + request.output
            request.start = self.env.now
            self.filling.append(request)

    def _start_decoding(self, request: Request) -> None:
        self.active, self.context = self.active + 1, self.context + request.prompt
        heapq.heappush(self.due, (self.step + steps_of(request, self.tokens_per_step), request.id, request))

    # ---- steps
    def _mixed_step(self) -> Events:
        """A chunk of prompts and, where somebody decodes, a step."""
        work_s, prefilled = self._prefill_chunk()
        decoded, decode_s = self.active, self._step_s(self.context) if self.active else 0.0
        prefill_s = max(work_s, self.least_pass_s - decode_s)
        self.busy.seconds["prefill"] += prefill_s
        if decoded:
            self._book(1, decode_s)
        yield self.env.timeout(prefill_s + decode_s)
        if decoded:
            self._finish_steps(1)
        else:
            self.step += 1
        if self.steps_back and prefilled:
            running = decode_s or self.decode_clock.decode_s(1, prefilled[-1].prompt)
            for request in prefilled:
                request.back_s = self.steps_back * running
        for request in prefilled:
            request.first = self.env.now + request.back_s
            if request.output == 1:
                self._leave(request)
            else:
                self._start_decoding(request)

    def _prefill_chunk(self) -> tuple[float, list[Request]]:
        """Seconds of the next chunk of prompts, and the requests whose prompt it ends."""
        tokens = count = prompt_tokens = cached_tokens = 0
        finished = []
        while self.filling and tokens < self.limits.chunk_tokens:
            request = self.filling[0]
            new = min(request.left, self.limits.chunk_tokens - tokens)
            past = request.prompt - request.left
            request.left -= new
            tokens, count = tokens + new, count + 1
            prompt_tokens, cached_tokens = prompt_tokens + past + new, cached_tokens + past
            if request.left:
                break
            finished.append(self.filling.popleft())
        time = self.prefill_clock.prefill_s(count, prompt_tokens / count, cached_tokens / count)
        self.queued_tokens -= tokens
        return time, finished

    def _run_of_steps(self) -> Events:
        """Steps until the next request is done, or until the end of the step in which somebody came."""
        steps = self.due[0][0] - self.step
        grown = self.tokens_per_step * self.active  # of the context, by a step
        steps = min(steps, max(LEAST_RUN, int(GROWTH * self.context / grown)))
        waiting = self.ready[0] if self.ready else self.queue[0] if self.queue else None
        if waiting is not None and self._fits(waiting):  # the engine has not looked at it yet
            steps = min(steps, self._until_look(1))
        first_s = self._step_s(self.context)
        more_s = (self._step_s(self.context + (steps - 1) * grown) - first_s) / (steps - 1) if steps > 1 else 0.0

        def seconds(n: int) -> float:
            return n * first_s + more_s * (n * (n - 1) / 2)

        began, taken = self.env.now, steps
        if steps == 1:
            yield self.env.timeout(first_s)
        else:
            wake, end = self.sleep(), self.env.timeout(seconds(steps))

            def done(_: simpy.Event) -> None:
                if not wake.triggered:
                    wake.succeed()

            end.callbacks.append(done)
            yield wake
            if not end.processed:  # somebody came: to the end of this step, or of the steps until the engine looks
                passed = self.env.now - began
                low, high = 1, steps
                while low < high:
                    middle = (low + high) // 2
                    low, high = (low, middle) if seconds(middle) >= passed else (middle + 1, high)
                taken = min(steps, self._until_look(low))
                yield self.env.timeout(max(0.0, began + seconds(taken) - self.env.now))
        self._book(taken, seconds(taken))
        self._finish_steps(taken)

    def _until_look(self, steps: int) -> int:
        """The first number of steps from `steps` on after which the engine looks at new requests."""
        return steps + -(self.step + steps) % self.poll_steps

    def _step_s(self, context: float) -> float:
        """Seconds of a step of what is active, with so many cached tokens in all."""
        return self.decode_clock.decode_s(self.active, context / self.active)

    def _book(self, steps: int, seconds: float) -> None:
        busy = self.busy
        busy.seconds["decode"] += seconds
        busy.steps += steps
        busy.batch_sum += steps * self.active

    def _finish_steps(self, steps: int) -> None:
        self.step += steps
        self.context += steps * self.active * self.tokens_per_step
        while self.due and self.due[0][0] <= self.step:
            request = heapq.heappop(self.due)[2]
            self.active -= 1
            self.context -= request.prompt + steps_of(request, self.tokens_per_step) * self.tokens_per_step
            self._leave(request)

    def _leave(self, request: Request) -> None:
        self.reserved -= request.prompt + request.output
        self.requests -= 1
        self.changed()
        self.finish(request)


def steps_of(request: Request, tokens_per_step: float) -> int:
    """Decode steps that a request needs after its first token."""
    return max(1, math.ceil((request.output - 1) / tokens_per_step - 1e-9))


def _nothing() -> None:
    """What an instance does about its load while nobody asks."""


Kind = TypeVar("Kind", bound=Instance)


class LeastLoaded(Generic[Kind]):
    """The instance with the least load, the first of several, in the time of a heap: entries of old loads are dropped.

    load: of an instance; whoever changes it calls the instance's `changed`.
    """

    def __init__(self, instances: Sequence[Kind], load: Callable[[Kind], int]):
        self.instances, self.load = instances, load
        self._heap = [(0, i) for i in range(len(instances))]
        for i, instance in enumerate(instances):
            instance.changed = functools.partial(self._push, i)

    def _push(self, i: int) -> None:
        heapq.heappush(self._heap, (self.load(self.instances[i]), i))

    def take(self) -> Kind:
        """The instance with the least load now."""
        while True:
            load, i = self._heap[0]
            if load == self.load(self.instances[i]):
                return self.instances[i]
            heapq.heappop(self._heap)
