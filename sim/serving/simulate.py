"""Requests through a serving fleet: arrivals, queues, continuous batching, prefill/decode disaggregation (SimPy).

A request waits for a prefill, gets its first token when the prefill ends (TTFT), moves its cache to a decode instance
and then receives tokens step by step with whoever else is in the batch (TPOT). Without prefill instances the decode
instances prefill too, a chunk in each step. Step times come from `sim.serving.step_time`, through a table; a test may
pass a clock with fixed times instead. Seeded and deterministic: the same inputs give the same numbers.

    >>> from sim.serving.deployment import Deployment
    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    >>> r = simulate(Fleet(decode=d), ServingWorkload(rate_per_s=0.2, requests=50, prompt=1000, output=200), seed=1)
    >>> r.finished, r.tpot_s["p50"] < 0.02
    (50, True)

Assumptions, kept simple on purpose: requests of an instance spread evenly over its attention groups; a request is
admitted when the cache has room for all of its final context; a step yields the mean number of accepted draft tokens.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import simpy

from sim.serving.clock import Clock, RooflineClock
from sim.serving.deployment import Deployment
from sim.serving.memory import chip_memory
from sim.serving.remedies import require_fit
from sim.serving.workload import RequestLengths, ServingWorkload, number, percentiles

Events = Generator[simpy.Event, Any, None]  # what a SimPy process yields


@dataclass(frozen=True)
class Fleet:
    """Instances. Without `prefill` each decode instance prefills too, `chunk_tokens` per attention group and step."""

    decode: Deployment
    decode_instances: int = 1
    prefill: Deployment | None = None
    prefill_instances: int = 0
    max_batch: int = 256  # requests per attention group
    prefill_batch_tokens: int = 16384  # per attention group
    chunk_tokens: int = 8192
    # cache of one request from a prefill to a decode instance (assumed: a 200 Gb/s port)
    transfer_bytes_per_s: float = 25e9
    mode: str = "hybrid"

    @property
    def chips(self) -> int:
        """Of all instances."""
        return self.decode.chips * self.decode_instances + (
            self.prefill.chips * self.prefill_instances if self.prefill else 0
        )


@dataclass
class Request:
    """One request; times in seconds since the start of the simulation, lengths in tokens."""

    id: int
    prompt: int
    output: int
    cached: int  # of the prompt
    arrive: float
    start: float = 0.0
    first: float = 0.0
    finish: float = 0.0
    left: int = 0  # prompt tokens still to prefill (chunked)


@dataclass(frozen=True)
class ServingResult:
    """What clients saw and what the machines did. Times in seconds; percentiles over requests after the warm-up.

    Token rates count requests that finished between the end of the warm-up and the last arrival.
    """

    finished: int
    duration_s: float
    ttft_s: Mapping[str, float]
    tpot_s: Mapping[str, float]
    e2e_s: Mapping[str, float]
    output_tokens_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s_chip: float
    chips: int
    prefill_busy: float
    decode_busy: float
    mean_in_system: float  # time average of the number of requests in the system
    mean_batch: float  # decode requests in a step, mean over steps, per instance
    steps: int
    saturated: bool
    mode: str
    requests: list[Request] = field(repr=False, default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All but the single requests, JSON-ready."""
        return {k: v for k, v in asdict(self).items() if k != "requests"}


def simulate(
    fleet: Fleet,
    work: ServingWorkload,
    seed: int = 0,
    clocks: tuple[Clock, Clock] | None = None,
    warmup: float = 0.1,
) -> ServingResult:
    """Run every request of `work` through `fleet`.

    clocks: (decode clock, prefill clock) instead of the rooflines; memory is then without limit.
    warmup: share of the first requests that percentiles leave out.

    Raises:
        InputError: a fleet that cannot hold its weights or one request, or a workload that makes no sense.
    """
    work.check()
    for name in ("decode_instances", "max_batch", "prefill_batch_tokens", "chunk_tokens"):
        number(getattr(fleet, name), name, 1)
    if fleet.prefill:
        number(fleet.prefill_instances, "prefill_instances", 1)
    simulation = _Simulation(fleet, work, seed, clocks)
    if clocks is None:
        prompt, output = simulation.prompt.mean, simulation.output.mean
        require_fit(fleet.decode, prompt + output, 1)
        if fleet.prefill:
            require_fit(fleet.prefill, prompt, 1)
    simulation.run()
    return _summary(simulation, warmup)


class _Simulation:
    """The instances of one simulation, its requests, and what is counted on the way."""

    def __init__(self, fleet: Fleet, work: ServingWorkload, seed: int, clocks: tuple[Clock, Clock] | None):
        self.fleet, self.work, self.rng = fleet, work, random.Random(seed)
        self.prompt, self.output = RequestLengths.of(work.prompt, "prompt"), RequestLengths.of(work.output, "output")
        self.env = simpy.Environment()
        decode_clock, prefill_clock = clocks or (
            RooflineClock(fleet.decode, fleet.mode),
            RooflineClock(fleet.prefill or fleet.decode, fleet.mode),
        )
        memory = chip_memory(fleet.decode)
        self.longest = int(memory.kv_tokens) if clocks is None else 10**9  # tokens of one request at most
        kv_tokens = memory.kv_tokens * fleet.decode.groups if clocks is None else math.inf
        self.decoders = [
            _DecodeInstance(self, decode_clock, prefill_clock, kv_tokens) for _ in range(fleet.decode_instances)
        ]
        self.prefillers = (
            [_PrefillInstance(self, fleet.prefill, prefill_clock) for _ in range(fleet.prefill_instances)]
            if fleet.prefill
            else []
        )
        self.busy = {"prefill": 0.0, "decode": 0.0}
        self.steps = self.batch_sum = 0
        self.done: list[Request] = []
        self.submitted = 0
        self.in_system, self.area, self._changed_at = 0, 0.0, 0.0

    def run(self) -> None:
        """Until every request has finished."""
        for instance in (*self.prefillers, *self.decoders):
            self.env.process(instance.process())
        self.env.process(self._source())
        self.env.run()

    def _source(self) -> Events:
        if self.work.rate_per_s is None:
            for _ in range(min(self.work.concurrency or 0, self.work.requests)):
                self._submit()
            return
        gap = 1.0 / self.work.rate_per_s
        for _ in range(self.work.requests):
            yield self.env.timeout(self.rng.expovariate(1.0 / gap) if self.work.arrivals == "poisson" else gap)
            self._submit()

    def _submit(self) -> None:
        """A new request, to the instance with the fewest prompt tokens before it."""
        prompt = self.prompt.draw(self.rng, self.longest - 1)
        output = self.output.draw(self.rng, max(1, self.longest - prompt))
        cached = min(int(prompt * self.work.cached_share), prompt - 1)
        request = Request(self.submitted, prompt, output, cached, self.env.now, left=prompt - cached)
        self.submitted += 1
        self.change_in_system(+1)
        entrances: Sequence[_Instance] = self.prefillers or self.decoders
        min(entrances, key=lambda instance: instance.queued_tokens).enqueue(request)

    def finish(self, request: Request) -> None:
        """The request's last token is out; in a closed loop the next one follows."""
        request.finish = self.env.now
        self.done.append(request)
        self.change_in_system(-1)
        if self.work.concurrency and self.submitted < self.work.requests:
            self._submit()

    def transfer(self, request: Request, seconds: float) -> None:
        """The request's cache moves to the decode instance with the fewest requests; it is there after `seconds`."""
        arrival = self.env.timeout(seconds, request)
        arrival.callbacks.append(
            lambda event: min(self.decoders, key=lambda instance: instance.requests).receive(event.value)
        )

    def change_in_system(self, change: int) -> None:
        """Count requests over time, for their average."""
        now = self.env.now
        self.area += self.in_system * (now - self._changed_at)
        self._changed_at, self.in_system = now, self.in_system + change


class _Instance:
    """What prefill and decode instances have in common: a queue of prompts, and sleep while there is nothing to do."""

    def __init__(self, simulation: _Simulation):
        self.simulation, self.env = simulation, simulation.env
        self.queue: deque[Request] = deque()
        self.queued_tokens = 0  # prompt tokens queued or being prefilled
        self._wake = self.env.event()

    def enqueue(self, request: Request) -> None:
        """A prompt to prefill."""
        self.queued_tokens += request.left
        self.queue.append(request)
        self.ring()

    def ring(self) -> None:
        """Wake the instance up, if it sleeps."""
        if not self._wake.triggered:
            self._wake.succeed()

    def sleep(self) -> simpy.Event:
        """The event to wait for until somebody rings."""
        self._wake = self.env.event()
        return self._wake

    def process(self) -> Events:
        """The instance's life as a SimPy process."""
        raise NotImplementedError


class _PrefillInstance(_Instance):
    """Prefills as many queued prompts together as `prefill_batch_tokens` allows, then hands their caches on."""

    def __init__(self, simulation: _Simulation, deployment: Deployment, clock: Clock):
        super().__init__(simulation)
        fleet = simulation.fleet
        self.clock = clock
        self.batch_tokens = fleet.prefill_batch_tokens * deployment.groups
        kv_bytes = chip_memory(fleet.decode).kv_bytes_per_token
        if fleet.decode.model.attention != "mla":  # a latent is whole on each chip, heads are cut
            kv_bytes *= fleet.decode.attention_tp
        self.kv_bytes_per_token, self.transfer_bytes_per_s = kv_bytes, fleet.transfer_bytes_per_s

    def process(self) -> Events:
        """Batch after batch."""
        simulation, queue = self.simulation, self.queue
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
            simulation.busy["prefill"] += time
            yield self.env.timeout(time)
            self.queued_tokens -= tokens
            for request in batch:
                request.first, request.left = self.env.now, 0
                if request.output == 1:
                    simulation.finish(request)
                else:
                    simulation.transfer(request, request.prompt * self.kv_bytes_per_token / self.transfer_bytes_per_s)


class _DecodeInstance(_Instance):
    """Steps of a running batch. Without prefill instances, a chunk of the queued prompts goes before each step."""

    def __init__(self, simulation: _Simulation, decode_clock: Clock, prefill_clock: Clock, kv_tokens: float):
        super().__init__(simulation)
        fleet = simulation.fleet
        self.decode_clock, self.prefill_clock, self.kv_tokens = decode_clock, prefill_clock, kv_tokens
        self.tokens_per_step = decode_clock.tokens_per_step
        self.max_requests = fleet.max_batch * fleet.decode.groups
        self.chunk_tokens = fleet.chunk_tokens * fleet.decode.groups
        self.ready: deque[Request] = deque()  # prefilled elsewhere, their caches here
        self.filling: deque[Request] = deque()  # admitted, prompt not finished
        self.due: list[tuple[int, int, Request]] = []  # heap of (step at which it ends, id, request)
        self.requests = 0  # ready or being decoded
        self.active = 0  # being decoded
        self.context = 0.0  # cached tokens of the active ones
        self.reserved = 0  # tokens of the admitted ones at their end
        self.step = 0

    def receive(self, request: Request) -> None:
        """A request whose prompt was prefilled elsewhere."""
        self.requests += 1
        self.ready.append(request)
        self.ring()

    def process(self) -> Events:
        """Step after step: admit, prefill a chunk, decode a step, let go who is done."""
        while True:
            self._admit()
            if not self.active and not self.filling:
                yield self.sleep()
                continue
            prefill_s, prefilled = self._prefill_chunk() if self.filling else (0.0, [])
            decoded, decode_s = self.active, self._decode() if self.active else 0.0
            yield self.env.timeout(prefill_s + decode_s)
            if decoded:
                self._finish_step(decoded)
            for request in prefilled:
                request.first = self.env.now
                if request.output == 1:
                    self.reserved -= request.prompt + request.output
                    self.simulation.finish(request)
                else:
                    self.requests += 1
                    self._start_decoding(request)

    def _fits(self, request: Request) -> bool:
        """A place in the batch, and room in the cache for all of the request's final context."""
        return (
            self.active + len(self.filling) < self.max_requests
            and self.reserved + request.prompt + request.output <= self.kv_tokens
        )

    def _admit(self) -> None:
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
        heapq.heappush(self.due, (self.step + _steps(request, self.tokens_per_step), request.id, request))

    def _prefill_chunk(self) -> tuple[float, list[Request]]:
        """Seconds of the next chunk of prompts, and the requests whose prompt it ends."""
        tokens = count = prompt_tokens = cached_tokens = 0
        finished = []
        while self.filling and tokens < self.chunk_tokens:
            request = self.filling[0]
            new = min(request.left, self.chunk_tokens - tokens)
            past = request.prompt - request.left
            request.left -= new
            tokens, count = tokens + new, count + 1
            prompt_tokens, cached_tokens = prompt_tokens + past + new, cached_tokens + past
            if request.left:
                break
            finished.append(self.filling.popleft())
        time = self.prefill_clock.prefill_s(count, prompt_tokens / count, cached_tokens / count)
        self.simulation.busy["prefill"] += time
        self.queued_tokens -= tokens
        return time, finished

    def _decode(self) -> float:
        """Seconds of the step of what is active now."""
        simulation = self.simulation
        time = self.decode_clock.decode_s(self.active, self.context / self.active)
        simulation.busy["decode"] += time
        simulation.steps += 1
        simulation.batch_sum += self.active
        return time

    def _finish_step(self, decoded: int) -> None:
        self.step += 1
        self.context += decoded * self.tokens_per_step
        while self.due and self.due[0][0] <= self.step:
            request = heapq.heappop(self.due)[2]
            self.active -= 1
            self.reserved -= request.prompt + request.output
            self.context -= request.prompt + _steps(request, self.tokens_per_step) * self.tokens_per_step
            self.requests -= 1
            self.simulation.finish(request)


def _steps(request: Request, tokens_per_step: float) -> int:
    """Decode steps that a request needs after its first token."""
    return max(1, math.ceil((request.output - 1) / tokens_per_step - 1e-9))


def _summary(simulation: _Simulation, warmup: float) -> ServingResult:
    fleet, done = simulation.fleet, sorted(simulation.done, key=lambda r: r.id)
    end = max(r.finish for r in done)
    simulation.change_in_system(0)
    begin = done[0].arrive
    measured = done[int(len(done) * warmup) :] or done
    duration = max(end - begin, 1e-12)
    tpot = [(r.finish - r.first) / (r.output - 1) for r in measured if r.output > 1]
    # Rates over the steady part: end of the warm-up to last arrival; over everything when that is too short.
    since, until = measured[0].arrive, done[-1].arrive
    steady = [r for r in done if since < r.finish <= until]
    if len(steady) < max(10, len(done) // 10):
        steady, since, until = done, begin, end
    span = max(until - since, 1e-12)
    out, inp = sum(r.output for r in steady) / span, sum(r.prompt for r in steady) / span
    prefills = fleet.prefill_instances if fleet.prefill else fleet.decode_instances
    decode_busy = simulation.busy["decode"] / duration / fleet.decode_instances
    prefill_busy = simulation.busy["prefill"] / duration / prefills
    quarter = max(1, len(done) // 4)
    waits = [r.start - r.arrive for r in done]
    early, late = sum(waits[:quarter]) / quarter, sum(waits[-quarter:]) / quarter
    full = max(prefill_busy, decode_busy) if fleet.prefill else prefill_busy + decode_busy
    saturated = simulation.work.rate_per_s is not None and full > 0.9 and late > 3 * early + 1e-9 and late > 1.0
    return ServingResult(
        finished=len(done),
        duration_s=duration,
        ttft_s=percentiles([r.first - r.arrive for r in measured]),
        tpot_s=percentiles(tpot),
        e2e_s=percentiles([r.finish - r.arrive for r in measured]),
        output_tokens_per_s=out,
        input_tokens_per_s=inp,
        output_tokens_per_s_chip=out / fleet.chips,
        chips=fleet.chips,
        prefill_busy=prefill_busy,
        decode_busy=decode_busy,
        mean_in_system=simulation.area / duration,
        mean_batch=simulation.batch_sum / max(simulation.steps, 1),
        steps=simulation.steps,
        saturated=saturated,
        mode=fleet.mode,
        requests=done,
    )
