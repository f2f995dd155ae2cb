"""Requests through a serving fleet: arrivals, queues, continuous batching, prefill/decode disaggregation (SimPy).

A request waits for a prefill, gets its first token when the prefill ends (TTFT), moves its cache to a decode instance
and then receives tokens step by step with whoever else is in the batch (TPOT). Without prefill instances the decode
instances prefill too, a chunk in each step. Step times come from `sim.serving.step_time`, through a table; a test may
pass a clock with fixed times instead. Around them stands what the host adds to a first token
(`sim.serving.first_token`). Seeded and deterministic: the same inputs give the same numbers.

    >>> from sim.serving.deployment import Deployment
    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    >>> r = simulate(Fleet(decode=d), ServingWorkload(rate_per_s=0.2, requests=50, prompt=1000, output=200), seed=1)
    >>> r.finished, r.tpot_s["p50"] < 0.02
    (50, True)

Assumptions, kept simple on purpose: requests of an instance spread evenly over its attention groups; a request is
admitted when the cache has room for all of its final context; a step yields the mean number of accepted draft tokens.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import simpy

from sim.serving.clock import Clock, RooflineClock
from sim.serving.deployment import Deployment
from sim.serving.first_token import front_s, steps_back
from sim.serving.instances import Busy, DecodeInstance, Events, LeastLoaded, Limits, PrefillInstance, Request
from sim.serving.memory import chip_memory
from sim.serving.remedies import require_fit
from sim.serving.step_time import least_pass_s
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
    # cache of one request from a prefill to a decode instance (assumed: a 200 Gb/s port)
    transfer_bytes_per_s: float = 25e9
    mode: str = "hybrid"

    @property
    def chips(self) -> int:
        """Of all instances."""
        return self.decode.chips * self.decode_instances + (
            self.prefill.chips * self.prefill_instances if self.prefill else 0
        )


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
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "requests"}
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}


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
        self.env, self.busy = simpy.Environment(), Busy()
        decode, measured = fleet.decode, clocks is not None or fleet.mode != "hybrid"
        # the host's share of a first token; fixed clocks and rooflines know none
        self.entrance = None if measured else (fleet.prefill or decode).stack
        both = clocks or (RooflineClock(decode, fleet.mode), RooflineClock(fleet.prefill or decode, fleet.mode))
        memory = chip_memory(decode)
        self.longest = int(memory.kv_tokens) if clocks is None else 10**9  # tokens of one request at most
        limits = Limits(
            fleet.max_batch * decode.groups,
            fleet.chunk_tokens * decode.groups,
            memory.kv_tokens * decode.groups if clocks is None else math.inf,
        )
        polls, back = (1, 0.0) if measured else (int(decode.stack["poll_steps"]), steps_back(decode.stack))
        least_s = [0.0 if measured else least_pass_s(d) for d in (decode, fleet.prefill or decode)]
        self.decoders = [
            DecodeInstance(self.env, self.busy, self._leave, both, limits, polls, back, least_s[0])
            for _ in range(fleet.decode_instances)
        ]
        self._decoding = LeastLoaded(self.decoders, lambda instance: instance.requests)
        self._entrances: LeastLoaded[Any] = self._decoding
        self.prefillers: list[PrefillInstance] = []
        if fleet.prefill:
            kv_bytes = memory.kv_bytes_per_token
            if decode.model.attention != "mla":  # a latent is whole on each chip, heads are cut
                kv_bytes *= decode.attention_tp
            self.transfer_s = kv_bytes / fleet.transfer_bytes_per_s  # of a token's cache
            tokens = fleet.prefill_batch_tokens * fleet.prefill.groups
            self.prefillers = [
                PrefillInstance(self.env, self.busy, self._leave, both[1], tokens, self._transfer, least_s[1])
                for _ in range(fleet.prefill_instances)
            ]
            self._entrances = LeastLoaded(self.prefillers, lambda instance: instance.queued_tokens)
        self.done: list[Request] = []
        self.submitted = 0

    def run(self) -> None:
        """Until every request has finished."""
        for instance in (*self.prefillers, *self.decoders):
            self.env.process(instance.process())
        self.env.process(self._source())
        collecting = gc.isenabled()
        gc.disable()  # requests live as long as the run: collecting them again and again is quadratic
        try:
            self.env.run()
        finally:
            if collecting:
                gc.enable()

    def _source(self) -> Events:
        """Requests to the engines' queues, in the order in which they get there."""
        if self.work.rate_per_s is None:
            for _ in range(min(self.work.concurrency or 0, self.work.requests)):
                self._submit()
            return
        coming = []
        for now in self.work.arrival_times(self.rng):
            request = self._draw(now)
            coming.append((now + self._front_s(request), request.id, request))
        for at, _, request in sorted(coming):
            yield self.env.timeout(at - self.env.now)
            self._enqueue(request)

    def _draw(self, now: float) -> Request:
        prompt = self.prompt.draw(self.rng, self.longest - 1)
        output = self.output.draw(self.rng, max(1, self.longest - prompt))
        cached = min(int(prompt * self.work.cached_share), prompt - 1)
        self.submitted += 1
        return Request(self.submitted - 1, prompt, output, cached, now, left=prompt - cached)

    def _front_s(self, request: Request) -> float:
        return front_s(self.entrance, request.prompt) if self.entrance else 0.0

    def _submit(self) -> None:
        """A new request of a closed loop: over the host to an engine's queue."""
        request = self._draw(self.env.now)
        after(self.env, self._front_s(request), lambda: self._enqueue(request))

    def _enqueue(self, request: Request) -> None:
        """To the prefill instance with the fewest prompt tokens before it, or the instance with the fewest requests."""
        self._entrances.take().enqueue(request)

    def _transfer(self, request: Request) -> None:
        """The request's cache moves to the decode instance with the fewest requests, which then has it."""
        after(self.env, request.prompt * self.transfer_s, lambda: self._decoding.take().receive(request))

    def _leave(self, request: Request) -> None:
        """The request's last token is on its way; in a closed loop the next request follows it."""
        request.finish = self.env.now + request.back_s
        self.done.append(request)
        if self.work.concurrency and self.submitted < self.work.requests:
            after(self.env, request.back_s, self._follow)

    def _follow(self) -> None:
        if self.submitted < self.work.requests:
            self._submit()


def after(env: simpy.Environment, seconds: float, act: Callable[[], None]) -> None:
    """Do something after so many seconds, at once where that is none."""
    if seconds <= 0.0:
        act()
        return
    event = env.timeout(seconds)
    event.callbacks.append(lambda _: act())


def _summary(simulation: _Simulation, warmup: float) -> ServingResult:
    fleet, busy, done = simulation.fleet, simulation.busy, sorted(simulation.done, key=lambda r: r.id)
    end = max(r.finish for r in done)
    begin = done[0].arrive
    measured = done[int(len(done) * warmup) :] or done
    duration = max(end - begin, 1e-12)
    tpot = [r.tpot_s for r in measured if r.output > 1]
    # Rates over the steady part: end of the warm-up to last arrival; over everything when that is too short.
    since, until = measured[0].arrive, done[-1].arrive
    steady = [r for r in done if since < r.finish <= until]
    if len(steady) < max(10, len(done) // 10):
        steady, since, until = done, begin, end
    span = max(until - since, 1e-12)
    out, inp = sum(r.output for r in steady) / span, sum(r.prompt for r in steady) / span
    prefills = fleet.prefill_instances if fleet.prefill else fleet.decode_instances
    decode_busy = busy.seconds["decode"] / duration / fleet.decode_instances
    prefill_busy = busy.seconds["prefill"] / duration / prefills
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
        mean_in_system=_in_system(done) / duration,
        mean_batch=busy.batch_sum / max(busy.steps, 1),
        steps=busy.steps,
        saturated=saturated,
        mode=fleet.mode,
        requests=done,
    )


def _in_system(done: list[Request]) -> float:
    """Requests in the system over time: the area under their number, request-seconds."""
    changes = sorted([(r.arrive, 1) for r in done] + [(r.finish, -1) for r in done])
    inside, area, before = 0, 0.0, changes[0][0]
    for at, change in changes:
        area += inside * (at - before)
        inside, before = inside + change, at
    return area
