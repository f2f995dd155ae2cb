"""Requests through a serving fleet: arrivals, queues, continuous batching, prefill/decode disaggregation (SimPy).

A request waits for a prefill, gets its first token when the prefill ends (TTFT), moves its cache to a decode instance and
then receives tokens step by step with whoever else is in the batch (TPOT). Without prefill instances the decode
instances prefill too, a chunk in each step. Step times come from `sim.serving.step_time`, through a table; a test may pass a
clock with fixed times instead. Seeded and deterministic: the same inputs give the same numbers.

    >>> from sim.serving.deployment import Deployment
    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    >>> r = simulate(Fleet(decode=d), ServingWorkload(rate_per_s=0.2, requests=50, prompt=1000, output=200), seed=1)
    >>> r.finished, r.tpot_s["p50"] < 0.02
    (50, True)

Assumptions, kept simple on purpose: requests of an instance spread evenly over its attention groups; a request is admitted
when the cache has room for all of its final context; a step yields the mean number of accepted draft tokens.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import simpy

from sim.serving.clock import RooflineClock
from sim.serving.deployment import Deployment, memory, require_fit
from sim.serving.workload import RequestLengths, ServingWorkload, number, percentiles


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
    transfer_bytes_per_s: float = (
        25e9  # cache from a prefill to a decode instance, one request (assumed: a 200 Gb/s port)
    )
    mode: str = "hybrid"

    @property
    def chips(self) -> int:
        return self.decode.chips * self.decode_instances + (
            self.prefill.chips * self.prefill_instances if self.prefill else 0
        )


@dataclass
class Request:
    """One request; times in seconds. Slots keep ten thousand of them small."""

    id: int
    prompt: int
    output: int
    cached: int
    arrive: float
    start: float = 0.0
    first: float = 0.0
    finish: float = 0.0
    left: int = 0  # prompt tokens still to prefill (chunked)


@dataclass(frozen=True)
class ServingResult:
    """What the users saw and what the machines did. Times in seconds; percentiles over requests after the warm-up.

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

    def to_dict(self) -> dict:
        out = {k: v for k, v in asdict(self).items() if k != "requests"}
        return out


class _Simulation:
    """The processes of one simulation."""

    def __init__(self, fleet: Fleet, work: ServingWorkload, seed: int, clocks: tuple | None):
        self.fleet, self.work, self.rng = fleet, work, random.Random(seed)
        self.env = simpy.Environment()
        self.decode_clock, self.prefill_clock = clocks or (
            RooflineClock(fleet.decode, fleet.mode),
            RooflineClock(fleet.prefill or fleet.decode, fleet.mode),
        )
        n_decode = fleet.decode_instances
        self.waiting = [deque() for _ in range(fleet.prefill_instances if fleet.prefill else n_decode)]
        self.load = [0] * len(self.waiting)  # tokens queued or being prefilled
        self.ready = [deque() for _ in range(n_decode)]
        self.in_decode = [0] * n_decode
        self.wake_prefill = [self.env.event() for _ in self.waiting]
        self.wake_decode = [self.env.event() for _ in range(n_decode)]
        self.busy = {"prefill": 0.0, "decode": 0.0}
        self.steps = self.batch_sum = 0
        self.done: list[Request] = []
        self.in_system, self.area, self.last = 0, 0.0, 0.0
        m = memory(fleet.decode)
        self.kv_room = m.kv_tokens * fleet.decode.groups
        self.kv_token_bytes = m.kv_bytes_per_token * (
            1 if fleet.decode.model.attention == "mla" else fleet.decode.attention_tp
        )
        self.longest = int(m.kv_tokens)
        self.prompt, self.output = RequestLengths.of(work.prompt, "prompt"), RequestLengths.of(work.output, "output")
        self.made = 0

    # ---- accounting
    def _count(self, change: int) -> None:
        now = self.env.now
        self.area += self.in_system * (now - self.last)
        self.last, self.in_system = now, self.in_system + change

    def _new(self) -> None:
        prompt = self.prompt.draw(self.rng, self.longest - 1)
        output = self.output.draw(self.rng, max(1, self.longest - prompt))
        cached = min(int(prompt * self.work.cached_share), prompt - 1)
        request = Request(self.made, prompt, output, cached, self.env.now, left=prompt - cached)
        self.made += 1
        self._count(+1)
        i = min(range(len(self.load)), key=lambda k: (self.load[k], k))
        self.load[i] += prompt - cached
        self.waiting[i].append(request)
        _ring(self.wake_prefill[i])
        if not self.fleet.prefill:
            _ring(self.wake_decode[i])

    def _finish(self, request: Request) -> None:
        request.finish = self.env.now
        self.done.append(request)
        self._count(-1)
        if self.work.concurrency and self.made < self.work.requests:
            self._new()

    # ---- processes
    def source(self):
        if self.work.concurrency:
            for _ in range(min(self.work.concurrency, self.work.requests)):
                self._new()
            return
        gap = 1.0 / self.work.rate_per_s
        for _ in range(self.work.requests):
            yield self.env.timeout(self.rng.expovariate(1.0 / gap) if self.work.arrivals == "poisson" else gap)
            self._new()

    def prefiller(self, i: int):
        env, queue, fleet = self.env, self.waiting[i], self.fleet
        limit = fleet.prefill_batch_tokens * fleet.prefill.groups
        while True:
            while not queue:
                self.wake_prefill[i] = env.event()
                yield self.wake_prefill[i]
            batch = [queue.popleft()]
            tokens = batch[0].left
            while queue and tokens + queue[0].left <= limit:
                batch.append(queue.popleft())
                tokens += batch[-1].left
            for request in batch:
                request.start = env.now
            n = len(batch)
            time = self.prefill_clock.prefill_s(n, sum(r.prompt for r in batch) / n, sum(r.cached for r in batch) / n)
            self.busy["prefill"] += time
            yield env.timeout(time)
            self.load[i] -= tokens
            for request in batch:
                request.first, request.left = env.now, 0
                if request.output == 1:
                    self._finish(request)
                else:
                    move = request.prompt * self.kv_token_bytes / fleet.transfer_bytes_per_s
                    env.timeout(move, request).callbacks.append(self._arrive_decode)

    def _arrive_decode(self, event) -> None:
        request = event.value
        i = min(range(len(self.ready)), key=lambda k: (self.in_decode[k], k))
        self.in_decode[i] += 1
        self.ready[i].append(request)
        _ring(self.wake_decode[i])

    def decoder(self, i: int):
        env, fleet, clock = self.env, self.fleet, self.decode_clock
        ready, waiting = self.ready[i], self.waiting[i] if not fleet.prefill else deque()
        most, per_step = fleet.max_batch * fleet.decode.groups, clock.tokens_per_step
        chunk_limit = fleet.chunk_tokens * fleet.decode.groups
        active, context, reserved, step = 0, 0.0, 0, 0
        due: list[tuple[int, int, Request]] = []  # (step at which it ends, id, request)
        filling: deque[Request] = deque()  # admitted, prompt not finished
        while True:
            while (
                ready and active + len(filling) < most and reserved + ready[0].prompt + ready[0].output <= self.kv_room
            ):
                request = ready.popleft()
                reserved += request.prompt + request.output
                active, context = active + 1, context + request.prompt
                heapq.heappush(due, (step + _steps(request, per_step), request.id, request))
            while (
                waiting
                and active + len(filling) < most
                and reserved + waiting[0].prompt + waiting[0].output <= self.kv_room
            ):
                request = waiting.popleft()
                reserved += request.prompt + request.output
                request.start = env.now
                filling.append(request)
            if not active and not filling:
                self.wake_decode[i] = env.event()
                yield self.wake_decode[i]
                continue
            time, finished_prompts = 0.0, []
            if filling:
                part, count, prompt, cached = 0, 0, 0, 0
                while filling and part < chunk_limit:
                    request = filling[0]
                    take = min(request.left, chunk_limit - part)
                    past = request.prompt - request.left
                    request.left -= take
                    part, count, prompt, cached = part + take, count + 1, prompt + past + take, cached + past
                    if request.left:
                        break
                    finished_prompts.append(filling.popleft())
                time = self.prefill_clock.prefill_s(count, prompt / count, cached / count)
                self.busy["prefill"] += time
                self.load[i] -= part
            if active:
                decode_time = clock.decode_s(active, context / active)
                self.busy["decode"] += decode_time
                time += decode_time
                self.steps += 1
                self.batch_sum += active
            yield env.timeout(time)
            if active:
                step += 1
                context += active * per_step
                while due and due[0][0] <= step:
                    request = heapq.heappop(due)[2]
                    active -= 1
                    reserved -= request.prompt + request.output
                    context -= request.prompt + _steps(request, per_step) * per_step
                    self.in_decode[i] -= 1
                    self._finish(request)
            for request in finished_prompts:
                request.first = env.now
                if request.output == 1:
                    reserved -= request.prompt + request.output
                    self._finish(request)
                else:
                    active, context = active + 1, context + request.prompt
                    self.in_decode[i] += 1
                    heapq.heappush(due, (step + _steps(request, per_step), request.id, request))


def _ring(event) -> None:
    if not event.triggered:
        event.succeed()


def _steps(request: Request, per_step: float) -> int:
    """Decode steps that a request needs after its first token."""
    return max(1, math.ceil((request.output - 1) / per_step - 1e-9))


def simulate(
    fleet: Fleet, work: ServingWorkload, seed: int = 0, clocks: tuple | None = None, warmup: float = 0.1
) -> ServingResult:
    """Run every request of `work` through `fleet`.

    clocks: (decode clock, prefill clock) with `decode_s`, `prefill_s` and `tokens_per_step`, instead of the rooflines.
    warmup: share of the first requests that percentiles leave out.
    Raises:
        InputError: a fleet that cannot hold its weights or one request, or a workload that makes no sense.
    """
    work.check()
    for name in ("decode_instances", "max_batch", "prefill_batch_tokens", "chunk_tokens"):
        number(getattr(fleet, name), name, 1)
    if fleet.prefill:
        number(fleet.prefill_instances, "prefill_instances", 1)
    run = _Simulation(fleet, work, seed, clocks)
    if clocks is None:
        for d in filter(None, (fleet.decode, fleet.prefill)):
            require_fit(
                d,
                RequestLengths.of(work.prompt).mean + (RequestLengths.of(work.output).mean if d is fleet.decode else 0),
                1,
            )
    else:
        run.kv_room, run.longest = math.inf, 10**9
    for i in range(len(run.waiting) if fleet.prefill else 0):
        run.env.process(run.prefiller(i))
    for i in range(fleet.decode_instances):
        run.env.process(run.decoder(i))
    run.env.process(run.source())
    run.env.run()
    return _summary(run, warmup)


def _summary(run: _Simulation, warmup: float) -> ServingResult:
    fleet, done = run.fleet, sorted(run.done, key=lambda r: r.id)
    end = max(r.finish for r in done)
    run._count(0)
    begin = done[0].arrive
    kept = done[int(len(done) * warmup) :] or done
    duration = max(end - begin, 1e-12)
    tpot = [(r.finish - r.first) / (r.output - 1) for r in kept if r.output > 1]
    # Rates over the steady part: from the end of the warm-up to the last arrival; over everything when that is too short.
    since, until = kept[0].arrive, done[-1].arrive
    steady = [r for r in done if since < r.finish <= until]
    if len(steady) < max(10, len(done) // 10):
        steady, since, until = done, begin, end
    span = max(until - since, 1e-12)
    out, inp = sum(r.output for r in steady) / span, sum(r.prompt for r in steady) / span
    prefills = fleet.prefill_instances if fleet.prefill else fleet.decode_instances
    decode_busy = run.busy["decode"] / duration / fleet.decode_instances
    prefill_busy = run.busy["prefill"] / duration / prefills
    quarter = max(1, len(done) // 4)
    waits = [r.start - r.arrive for r in done]
    early, late = sum(waits[:quarter]) / quarter, sum(waits[-quarter:]) / quarter
    full = max(prefill_busy, decode_busy) if fleet.prefill else prefill_busy + decode_busy
    saturated = run.work.rate_per_s is not None and full > 0.9 and late > 3 * early + 1e-9 and late > 1.0
    return ServingResult(
        finished=len(done),
        duration_s=duration,
        ttft_s=percentiles([r.first - r.arrive for r in kept]),
        tpot_s=percentiles(tpot),
        e2e_s=percentiles([r.finish - r.arrive for r in kept]),
        output_tokens_per_s=out,
        input_tokens_per_s=inp,
        output_tokens_per_s_chip=out / fleet.chips,
        chips=fleet.chips,
        prefill_busy=prefill_busy,
        decode_busy=decode_busy,
        mean_in_system=run.area / duration,
        mean_batch=run.batch_sum / max(run.steps, 1),
        steps=run.steps,
        saturated=saturated,
        mode=fleet.mode,
        requests=done,
    )
