"""One rollout engine: continuous batching as a rate that changes only when somebody comes or goes.

Every running request gets one token per step, so the engine has one *token clock* v: it advances at 1/τ(b, kv) with b
requests running and kv cached tokens in all. A request that starts at v₀ with r tokens to go ends when the clock shows
v₀ + r: a heap of end marks, one event per completion and none per token. Between two events b is fixed and kv grows by
b per tick, so x ticks take a·x + c·x²/2 seconds with a = τ now and c = b·slope: solved in closed form.

Assumptions: a prefill stops decoding for its own time; a request is admitted while its cache fits, and when the cache
is full the youngest is put back and prefilled again later (what vLLM does); a weight sync pauses the engine.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from minglm.errors import InputError
from sim.rollout.trajectory import Trajectory, progress

WATERMARK = 0.01  # published: vLLM admits a request while this share of the cache stays free; nothing else is held back
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
        return self.up_to(b)[0][b]

    def slope(self, b: int) -> float:
        """Seconds of a step per cached token of the whole engine, with `b` running."""
        return self.up_to(b)[1][b]

    def up_to(self, b: int) -> tuple[Sequence[float], Sequence[float]]:
        """`base` and `slope` as tables whose index is the requests running, at least up to `b`."""
        if b >= len(self._base):
            for i in range(len(self._base), b + 1):
                self._base.append(_interpolate(self.points, i))
                self._slope.append(max(0.0, _interpolate(self.slopes, i)) if self.slopes else 0.0)
        return self._base, self._slope

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


class Engine:
    """The state of one engine and its arithmetic; `sim.rollout.simulate` owns the events."""

    __slots__ = (
        "ahead",
        "blocked",
        "busy_s",
        "chunk",
        "curve",
        "end_marks",
        "ending",
        "held",
        "id",
        "kv",
        "kv_limit",
        "kv_offload_s",
        "marks",
        "max_running",
        "n",
        "preemptions",
        "prefill_fixed_s",
        "prefill_s",
        "queue",
        "reprefilled",
        "resume",
        "reuse_kv_cache",
        "running",
        "running_s",
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
        # Who runs, and the token clock at their ends, the next first: numbers side by side, as a search reads several
        self.ending: list[Trajectory] = []
        self.end_marks = array("d")
        self.queue: deque[Trajectory] = deque()
        self.kv, self.n, self.serial, self.timer = 0.0, 0, 0, 0
        self.marks: list[tuple[float, int]] = [(0.0, 0)]  # (token clock, weight version from there on)
        self.running: dict[int, Trajectory] = {}  # by serial, the youngest last
        self.busy_s = self.running_s = self.tokens = 0.0  # seconds with any running; times how many; tokens made
        # What a full cache does before the planned event: (when, clock and cache then, who is put back, its tokens)
        self.ahead: deque[tuple[float, float, float, Trajectory, int]] = deque()
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
        if self.ahead:
            self._catch_up(now)
        n = self.n
        if n:
            self._book(now)
            start = self.t if self.t > self.resume else self.resume
            left = now - start
            if left > 0.0:
                a = self._seconds(n, self.kv)
                c = self.curve.slope(n) * n * self.slow
                x = left / a if c <= 0.0 else 2.0 * left / (a + math.sqrt(a * a + 2.0 * c * left))
                self._tick(x)
        self.t = now

    def _book(self, now: float) -> None:
        self.busy_s += now - self.t
        self.running_s += self.n * (now - self.t)

    def _longest(self) -> float:
        """Tokens of the longest running request, prompt included."""
        return self.v + max((t.prompt - t.origin for t in self.running.values()), default=-self.v)

    def _until_selection(self) -> float:
        """Ticks until the longest running request has more than `topk` keys; 0 from then on."""
        return max(0.0, self.topk - self._longest() - 1e-9)

    def _seconds(self, n: int, kv: float) -> float:
        """Seconds of a tick with `n` running and `kv` tokens cached."""
        now = self.curve.base(n) + self.curve.slope(n) * kv
        if self.topk < math.inf and (longest := self._longest()) >= self.topk - 1e-9:
            now += self.curve.beyond_topk(n, longest)  # until the next event; contexts grow little in between
        return now * self.slow

    def _tick(self, x: float) -> None:
        self.v += x
        self.kv += self.n * x
        self.tokens += self.n * x

    def next_event(self, now: float) -> float | None:
        """When the next request ends; None while nothing runs. The engine must be at `now`.

        Between two ends a full cache only puts the youngest back, and then the next youngest: when is worked out here
        and kept in `ahead`; the engine catches up when it is looked at. So preemptions cost no events of their own.
        """
        self.ahead.clear()
        n = self.n
        if not n:
            return None
        end, first = self.end_marks[0], self.ending[0]
        v, kv, resume, slow, limit = self.v, self.kv, self.resume, self.slow, self.kv_limit
        base, slope = self.curve.up_to(n)
        ahead, youngest_first = self.ahead, reversed(self.running.values())
        x, self.target = end - v, end
        while (full := (limit - kv) / n) < x and n > 1:
            x = full if full > 0.0 else 0.0
            youngest = next(youngest_first)
            if youngest is first or self.topk < math.inf:  # what comes next hangs on who is left: an event of its own
                self.target = FULL
                break
            c = slope[n]
            due = (now if now > resume else resume) + ((base[n] + c * kv) * slow * x + c * n * slow * x * x / 2.0)
            now += due - now
            v += x
            done = progress(youngest, v)
            kv += n * x - (youngest.prompt + done)
            if kv < 0.0:
                kv = 0.0
            ahead.append((now, v, kv, youngest, done))
            n -= 1
            x = end - v
        if self.topk < math.inf and 0.0 < (until := self._until_selection()) < x:
            x, self.target = until, SELECTION
        a = (base[n] + slope[n] * kv) * slow if self.topk == math.inf else self._seconds(n, kv)
        dt = a * x + slope[n] * n * slow * x * x / 2.0
        return (now if now > resume else resume) + dt

    def fire(self, now: float) -> list[Trajectory]:
        """The planned event happens: the requests that end, or none when the cache was full and the youngest went
        back."""
        if self.ahead:
            self._catch_up(math.inf)
        n, target = self.n, self.target
        self._book(now)
        self.t = now
        if target == SELECTION:
            self._tick(self._until_selection() + 2e-9)
            return []
        if target == FULL:
            x = (self.kv_limit - self.kv) / n
            v = self.v + (x if x > 0.0 else 0.0)
            youngest = next(reversed(self.running.values()))
            done = progress(youngest, v)
            kv = self.kv + n * (v - self.v) - (youngest.prompt + done)
            self.ahead.append((now, v, kv if kv > 0.0 else 0.0, youngest, done))
            self._catch_up(now)
            return []
        self._tick(target - self.v)
        self.v = target  # no rounding builds up
        ended, ending, end_marks, chunk = [], self.ending, self.end_marks, self.chunk
        while end_marks and end_marks[0] <= target:
            del end_marks[0]
            trajectory = ending.pop(0)
            done = trajectory.done + chunk
            self._leave(trajectory, done if done < trajectory.length else trajectory.length)
            ended.append(trajectory)
        self.blocked = False
        return ended

    def _leave(self, trajectory: Trajectory, done: int) -> None:
        """Take a request out of the batch."""
        if done > trajectory.done:
            self._book_tokens(trajectory, done)
        del self.running[trajectory.admitted]
        trajectory.admitted = 0
        self.n -= 1
        self.kv = self.kv - trajectory.prompt - done if self.n else 0.0

    def _book_tokens(self, trajectory: Trajectory, done: int) -> None:
        """A request's tokens up to `done`, on the versions that sampled them."""
        marks, last = self.marks, trajectory.done
        segments = trajectory.segments or []
        trajectory.done = done
        if trajectory.first_mark == len(marks) - 1:
            version = marks[-1][1]
            if not segments:
                trajectory.segments = [(version, done - last)]
            elif segments[-1][0] == version:  # it was put back meanwhile
                segments[-1] = (version, segments[-1][1] + done - last)
            else:
                segments.append((version, done - last))
            return
        for i in range(trajectory.first_mark, len(marks)):
            end = (
                done
                if i + 1 == len(marks)
                else min(done, max(last, math.floor(marks[i + 1][0] - trajectory.origin + 1e-9)))
            )
            if end > last:
                segments.append((marks[i][1], end - last))
                last = end
        trajectory.segments = segments

    def _catch_up(self, now: float) -> None:
        """What the full cache did until `now`: the youngest is put back, and then the next youngest."""
        ahead, ending, end_marks, running, queue = self.ahead, self.ending, self.end_marks, self.running, self.queue
        n, t, v = self.n, self.t, self.v
        while ahead and ahead[0][0] <= now:
            due, clock, kv, youngest, done = ahead.popleft()
            self.busy_s += due - t
            self.running_s += n * (due - t)
            self.tokens += n * (clock - v)
            t, v = due, clock
            place = bisect_right(end_marks, youngest.end) - 1  # of those who end together it came last
            del ending[place], end_marks[place]
            running.popitem()
            if done > youngest.done:
                self._book_tokens(youngest, done)
            youngest.admitted = -1  # its cache is gone, whatever `reuse_kv_cache` says
            queue.appendleft(youngest)
            n -= 1
            self.kv, self.blocked = kv, True
        self.preemptions += self.n - n
        self.n, self.t, self.v = n, t, v

    # ---- who comes
    def admit(self, now: float) -> int:
        """Start queued requests while they fit; the engine must be at `now`. Returns how many."""
        queue = self.queue
        if not queue or self.blocked or self.held:
            return 0
        serial, called, read = self.serial, False, set()
        v, ending, end_marks, running = self.v, self.ending, self.end_marks, self.running
        mark, chunk = len(self.marks) - 1, self.chunk
        n, kv, fits = self.n, self.kv, (1.0 - WATERMARK) * self.kv_limit
        while queue and n < self.max_running:
            trajectory = queue[0]
            done = trajectory.done
            need = trajectory.prompt + done
            if n and kv + need > fits:
                break
            queue.popleft()
            kept = done and self.reuse_kv_cache and trajectory.admitted >= 0
            if kept and self.kv_offload_s:
                self.resume = (self.resume if self.resume > now else now) + self.kv_offload_s
            if not kept:
                self.reprefilled += done
                cost = self.prefill_fixed_s + self.prefill_s * need
                if self.share:
                    if called:  # one call for all that come together
                        cost -= self.prefill_fixed_s
                    if not done and trajectory.group in read:
                        cost = 0.0  # its siblings' prompt is the same: their cache is copied
                    called = True
                    read.add(trajectory.group)
                if cost:
                    self.resume = (self.resume if self.resume > now else now) + cost
            n += 1
            kv += need
            serial += 1
            trajectory.admitted = serial
            trajectory.origin = origin = v - done
            trajectory.first_mark = mark
            last = done + chunk
            trajectory.end = end = origin + (last if last < trajectory.length else trajectory.length)
            place = bisect_right(end_marks, end)
            end_marks.insert(place, end)
            ending.insert(place, trajectory)
            running[serial] = trajectory
        count = n - self.n
        self.n, self.kv, self.serial = n, kv, serial
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
        stopped = list(self.running.values())
        for trajectory in stopped:
            self._leave(trajectory, progress(trajectory, self.v))
        stopped += self.queue
        self.ending.clear()
        del self.end_marks[:]
        self.queue.clear()
        self.kv, self.resume, self.blocked = 0.0, now, False
        self.ahead.clear()
        return stopped
