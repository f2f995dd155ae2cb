"""One rollout engine: continuous batching as a rate that changes only when somebody comes or goes.

Every running request gets one token per step, so the engine has one *token clock* v: it advances at 1/τ(b, kv) with b
requests running and kv cached tokens in all. A request that starts at v₀ with r tokens to go ends when the clock shows
v₀ + r: a heap of end marks, one event per completion and none per token. Between two events b is fixed and kv grows by
b per tick, so x ticks take a·x + c·x²/2 seconds with a = τ now and c = b·slope: solved in closed form.

Assumptions: a prefill stops decoding for its own time; a request is admitted while its cache fits, and when the cache
is full the youngest is put back and prefilled again later (what vLLM does); a weight sync pauses the engine.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from minglm.errors import InputError

FULL, SELECTION = -1.0, -2.0  # what happens next where it is no request's end: the cache is full; selection sets in


@dataclass(frozen=True)
class DecodeCurve:
    """Seconds that one token of every running request takes: τ(b, kv) = base(b) + slope(b) · kv.

    points: (requests running, seconds); straight lines between, and beyond the last with its last slope.
    slopes: (requests running, seconds per cached token of the whole engine); empty where the cache costs nothing.
    beyond: (requests running, seconds more) while the longest request has more keys than sparse attention reads.
    contexts: (tokens of the longest request, seconds more for each one running) then: all rows are as wide as the
        longest.
    """

    points: tuple[tuple[float, float], ...]
    slopes: tuple[tuple[float, float], ...] = ()
    beyond: tuple[tuple[float, float], ...] = ()
    contexts: tuple[tuple[float, float], ...] = ()
    _base: list[float] = field(default_factory=list, init=False, repr=False, compare=False)
    _slope: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("decode: no points; give at least one [requests running, seconds per token]")
        for name, pairs, least in (("decode", self.points, 0.0), ("decode slope", self.slopes, -1.0)):
            last = 0.0
            for b, s in pairs:
                if not (math.isfinite(b) and math.isfinite(s) and b > last and s > least and s >= 0):
                    raise InputError(
                        f"{name}: point [{b:g}, {s:g}]: batches must grow from above 0 and seconds be positive; sort "
                        "and check the list"
                    )
                last = b

    def base(self, b: int) -> float:
        """Seconds of a step with `b` running and nothing cached."""
        table = self._base
        while len(table) <= b:
            table.append(_interpolate(self.points, len(table)))
        return table[b]

    def slope(self, b: int) -> float:
        """Seconds of a step per cached token of the whole engine, with `b` running."""
        if not self.slopes:
            return 0.0
        table = self._slope
        while len(table) <= b:
            table.append(max(0.0, _interpolate(self.slopes, len(table))))
        return table[b]

    def beyond_topk(self, b: int, longest: float = 0.0) -> float:
        """Seconds of a step more once keys are selected, with `b` running and so many tokens in the longest."""
        return (_interpolate(self.beyond, b) if self.beyond else 0.0) + (
            b * _interpolate(self.contexts, longest) if self.contexts else 0.0
        )

    def seconds(self, b: int, kv: float = 0.0) -> float:
        """τ(b, kv)."""
        return self.base(b) + self.slope(b) * kv

    def tokens_per_s(self, b: int, kv: float = 0.0) -> float:
        """Of one request."""
        return b / self.seconds(b, kv)

    def times(self, factor: float) -> DecodeCurve:
        """The same curve, `factor` slower."""
        return DecodeCurve(
            *(
                tuple((b, s * factor) for b, s in pairs)
                for pairs in (self.points, self.slopes, self.beyond, self.contexts)
            )
        )


def _interpolate(points: Sequence[tuple[float, float]], b: float) -> float:
    if b <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (b0, s0), (b1, s1) in itertools.pairwise(points):
        if b <= b1:
            return s0 + (s1 - s0) * (b - b0) / (b1 - b0)
    (b0, s0), (b1, s1) = points[-2:]
    return max(s1, s1 + (s1 - s0) * (b - b1) / (b1 - b0))


def synchronous_makespan(lengths: Iterable[float], curve: DecodeCurve, prompt: float = 0.0) -> float:
    """Seconds of one engine that starts all requests at once and takes no more: T = Σ_j τ(j) (L_j − L_{j+1}), lengths
    falling, with the cache's growth integrated (TailSieve's closed form)."""
    order = [*sorted(lengths, reverse=True), 0.0]
    total = 0.0
    for j in range(len(order) - 1, 0, -1):  # j requests run from token order[j] to order[j - 1]
        x = order[j - 1] - order[j]
        kv = j * (prompt + order[j])
        total += (curve.base(j) + curve.slope(j) * kv) * x + curve.slope(j) * j * x * x / 2
    return total


class Trajectory:
    """One sample. `done` counts tokens that an interruption kept; `segments` say which weights sampled how many."""

    __slots__ = ("admitted", "done", "first_mark", "group", "length", "origin", "prompt", "segments")

    def __init__(self, group, length: int, prompt: int):
        self.group, self.length, self.prompt, self.done = group, length, prompt, 0
        self.origin, self.first_mark, self.admitted = 0.0, 0, 0
        self.segments: list[tuple[int, int]] = []


class Engine:
    """The state of one engine and its arithmetic; `sim.rollout.simulate` owns the events."""

    __slots__ = (
        "blocked",
        "busy_s",
        "chunk",
        "curve",
        "heap",
        "held",
        "id",
        "kv",
        "kv_limit",
        "kv_offload_s",
        "marks",
        "max_running",
        "n",
        "order",
        "preemptions",
        "prefill_fixed_s",
        "prefill_s",
        "queue",
        "reprefilled",
        "resume",
        "reuse_kv_cache",
        "serial",
        "share",
        "slow",
        "t",
        "target",
        "timer",
        "tokens",
        "topk",
        "v",
    )

    def __init__(  # noqa: PLR0913 each is a measured rate or a limit; callers give them by name
        self,
        id: int,
        curve: DecodeCurve,
        prefill_s: float = 0.0,
        prefill_fixed_s: float = 0.0,
        kv_limit: float | None = None,
        max_running: int | None = None,
        reuse_kv_cache: bool = False,
        topk: float | None = None,
        share_prompts: bool = False,
        kv_offload_s: float = 0.0,
        chunk: int | None = None,
    ):
        self.chunk = chunk or 1 << 60  # tokens after which a request may go elsewhere, its cache with it
        self.topk = topk or math.inf  # context of the longest request from which on a step costs `beyond` more
        self.id, self.curve, self.prefill_s, self.prefill_fixed_s = id, curve, prefill_s, prefill_fixed_s
        self.kv_limit, self.max_running = kv_limit or math.inf, max_running or 1 << 60
        self.reuse_kv_cache, self.share, self.kv_offload_s = reuse_kv_cache, share_prompts, kv_offload_s
        self.slow = 1.0  # times its usual seconds, while another process has part of the machine
        self.v = self.t = self.resume = 0.0  # token clock; time it was read; decoding goes on from `resume`
        self.heap: list[tuple[float, int, Trajectory]] = []
        self.queue: deque[Trajectory] = deque()
        self.kv, self.n, self.serial, self.timer = 0.0, 0, 0, 0
        self.marks: list[tuple[float, int]] = [(0.0, 0)]  # (token clock, weight version from there on)
        self.order: list[tuple[int, Trajectory]] = []  # by admission, those that left included
        self.busy_s = self.tokens = 0.0
        self.blocked = self.held = False  # blocked: the cache was full; held: no admission before a weight sync
        self.reprefilled = self.preemptions = 0
        self.target = 0.0

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.n + len(self.queue)

    # ---- the token clock
    def advance(self, now: float) -> None:
        """Bring clock, cache and counters to `now`. No completion may lie in between."""
        n = self.n
        if n:
            self.busy_s += now - self.t
            start = self.t if self.t > self.resume else self.resume
            left = now - start
            if left > 0.0:
                a = self._seconds(n)
                c = self.curve.slope(n) * n * self.slow
                x = left / a if c <= 0.0 else 2.0 * left / (a + math.sqrt(a * a + 2.0 * c * left))
                self._tick(x)
        self.t = now

    def _longest(self) -> float:
        """Tokens of the longest running request, prompt included."""
        return self.v + max((t.prompt - t.origin for serial, t in self.order if serial == t.admitted), default=-self.v)

    def _until_selection(self) -> float:
        """Ticks until the longest running request has more than `topk` keys; 0 from then on."""
        return max(0.0, self.topk - self._longest() - 1e-9)

    def _seconds(self, n: int) -> float:
        """Seconds of a tick now."""
        now = self.curve.base(n) + self.curve.slope(n) * self.kv
        if self.topk < math.inf and (longest := self._longest()) >= self.topk - 1e-9:
            now += self.curve.beyond_topk(n, longest)  # until the next event; contexts grow little in between
        return now * self.slow

    def _tick(self, x: float) -> None:
        self.v += x
        self.kv += self.n * x
        self.tokens += self.n * x

    def next_event(self, now: float) -> float | None:
        """When the first request ends, or the cache is full; None while nothing runs. The engine must be at `now`."""
        n = self.n
        if not n:
            return None
        heap = self.heap
        while heap[0][1] != heap[0][2].admitted:  # put back when the cache was full
            heapq.heappop(heap)
        x = heap[0][0] - self.v
        full = (self.kv_limit - self.kv) / n
        if full < x and n > 1:
            x = full if full > 0.0 else 0.0
            self.target = FULL
        else:
            self.target = heap[0][0]
        if self.topk < math.inf and 0.0 < (until := self._until_selection()) < x:
            x, self.target = until, SELECTION
        a = self._seconds(n)
        dt = a * x + self.curve.slope(n) * n * self.slow * x * x / 2.0
        return (now if now > self.resume else self.resume) + dt

    def fire(self, now: float) -> list[Trajectory]:
        """The planned event happens: the requests that end, or none when the cache was full and the youngest went
        back."""
        n = self.n
        self.busy_s += now - self.t
        self.t = now
        if self.target == SELECTION:
            self._tick(self._until_selection() + 2e-9)
            return []
        if self.target == FULL:
            self._tick(max(0.0, (self.kv_limit - self.kv) / n))
            self._preempt()
            return []
        self._tick(self.target - self.v)
        self.v = self.target  # no rounding builds up
        ended = []
        heap = self.heap
        while heap and heap[0][0] <= self.target:
            _, serial, trajectory = heapq.heappop(heap)
            if serial == trajectory.admitted:
                self._leave(trajectory, min(trajectory.length, trajectory.done + self.chunk))
                ended.append(trajectory)
        self.blocked = False
        return ended

    def _leave(self, trajectory: Trajectory, done: int) -> None:
        """Take a request out of the batch; its tokens are booked on the versions that sampled them."""
        marks, last = self.marks, trajectory.done
        if done > last:
            if trajectory.first_mark == len(marks) - 1:
                trajectory.segments.append((marks[-1][1], done - last))
            else:
                for i in range(trajectory.first_mark, len(marks)):
                    end = (
                        done
                        if i + 1 == len(marks)
                        else min(done, max(last, math.floor(marks[i + 1][0] - trajectory.origin + 1e-9)))
                    )
                    if end > last:
                        trajectory.segments.append((marks[i][1], end - last))
                        last = end
        trajectory.done, trajectory.admitted = done, 0
        self.n -= 1
        self.kv = self.kv - trajectory.prompt - done if self.n else 0.0

    def _preempt(self) -> None:
        serial, trajectory = self.order.pop()
        while serial != trajectory.admitted:
            serial, trajectory = self.order.pop()
        self._leave(trajectory, self._progress(trajectory))
        self.kv = max(0.0, self.kv)
        trajectory.admitted = -1  # its cache is gone, whatever `reuse_kv_cache` says
        self.queue.appendleft(trajectory)
        self.blocked = True
        self.preemptions += 1

    def _progress(self, trajectory: Trajectory) -> int:
        return max(trajectory.done, min(trajectory.length, math.floor(self.v - trajectory.origin + 1e-9)))

    # ---- who comes
    def admit(self, now: float) -> int:
        """Start queued requests while they fit; the engine must be at `now`. Returns how many."""
        if self.blocked or self.held:
            return 0
        queue, count, called, read = self.queue, 0, False, set()
        if not self.n:
            self.order.clear()
        while queue and self.n < self.max_running:
            trajectory = queue[0]
            need = trajectory.prompt + trajectory.done
            if self.n and self.kv + need + 1 > self.kv_limit:  # as vLLM: no room is held for what is yet to come
                break
            queue.popleft()
            kept = trajectory.done and self.reuse_kv_cache and trajectory.admitted >= 0
            if kept and self.kv_offload_s:
                self.resume = (self.resume if self.resume > now else now) + self.kv_offload_s
            if not kept:
                self.reprefilled += trajectory.done
                cost = self.prefill_fixed_s + self.prefill_s * need
                if self.share:
                    if called:  # one call for all that come together
                        cost -= self.prefill_fixed_s
                    if not trajectory.done and trajectory.group in read:
                        cost = 0.0  # its siblings' prompt is the same: their cache is copied
                    called = True
                    read.add(trajectory.group)
                if cost:
                    self.resume = (self.resume if self.resume > now else now) + cost
            self.n += 1
            self.kv += need
            self.serial += 1
            trajectory.admitted = self.serial
            trajectory.origin = self.v - trajectory.done
            trajectory.first_mark = len(self.marks) - 1
            until = min(trajectory.length, trajectory.done + self.chunk)
            heapq.heappush(self.heap, (trajectory.origin + until, self.serial, trajectory))
            self.order.append((self.serial, trajectory))
            count += 1
        return count

    # ---- what the trainer does to it
    def sync_weights(self, now: float, version: int, pause_s: float) -> None:
        """New weights: running requests pause, and are prefilled again unless the cache is kept. The engine must be at
        `now`."""
        if self.n:
            self.marks.append((self.v, version))
            start = self.resume if self.resume > now else now
            again = 0.0
            if not self.reuse_kv_cache:
                again = self.n * self.prefill_fixed_s + self.prefill_s * self.kv
                self.reprefilled += round(self.kv)
            self.resume = start + pause_s + again
        else:
            self.marks = [(self.v, version)]

    def abort(self, now: float) -> list[Trajectory]:
        """Stop everything; the unfinished requests with what they have."""
        stopped = [trajectory for serial, trajectory in self.order if serial == trajectory.admitted]
        for trajectory in stopped:
            self._leave(trajectory, self._progress(trajectory))
        stopped += self.queue
        self.heap.clear()
        self.order.clear()
        self.queue.clear()
        self.kv, self.resume, self.blocked = 0.0, now, False
        return stopped
