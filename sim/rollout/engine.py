"""One rollout engine: continuous batching as a rate that changes only when somebody comes or goes.

Every running request gets one token per step, so the engine has one *token clock* v: it advances at 1/τ(b, kv) with b
requests running and kv cached tokens in all. A request that starts at v₀ with r tokens to go ends when the clock shows
v₀ + r: sorted end marks, one event per completion and none per token. Between two events b is fixed and kv grows by
b per tick, so x ticks take a·x + c·x²/2 seconds with a = τ now and c = b·slope: solved in closed form.

Assumptions: a prefill stops decoding for its own time; a request is admitted while its cache fits, and when the cache
is full the youngest is put back and prefilled again later (what vLLM does); a weight sync pauses the engine.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque

from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.trajectory import PUT_BACK, Trajectory, progress

WATERMARK = 0.01  # published: vLLM admits a request while this share of the cache stays free; nothing else is held back
FULL, SELECTION = -1.0, -2.0  # what happens next where it is no request's end: the cache is full; selection sets in


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
        "one_by_one",
        "preemptions",
        "prefill_fixed_s",
        "prefill_s",
        "queue",
        "reprefilled",
        "resume",
        "reuse_kv_cache",
        "running",
        "running_s",
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
        # Who runs next hangs on more than cache and end marks: such engines are small, or stop at every chunk
        self.one_by_one = bool(topk or share_prompts or kv_offload_s or chunk)
        self.slow = 1.0  # times its usual seconds, while another process has part of the machine
        self.v = self.t = self.resume = 0.0  # token clock; time it was read; decoding goes on from `resume`
        # Who runs, and the token clock at their ends, the next first
        self.ending: list[Trajectory] = []
        self.end_marks: list[float] = []
        self.queue: deque[Trajectory] = deque()
        self.kv, self.n, self.timer = 0.0, 0, 0
        self.marks: list[tuple[float, int]] = [(0.0, 0)]  # (token clock, weight version from there on)
        self.running: dict[Trajectory, None] = {}  # the youngest last
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
        return self.v + max((t.prompt - t.origin for t in self.running), default=-self.v)

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
        base, slope, growth = self.curve.up_to(n)
        ahead, youngest_first = self.ahead, reversed(self.running)
        x, self.target = end - v, end
        while (full := (limit - kv) / n) < x and n > 1:
            x = full if full > 0.0 else 0.0
            youngest = next(youngest_first)
            if youngest is first or self.topk < math.inf:  # what comes next hangs on who is left: an event of its own
                self.target = FULL
                break
            now = (now if now > resume else resume) + (base[n] + slope[n] * kv + growth[n] * x) * x * slow
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
        a = base[n] + slope[n] * kv if self.topk == math.inf else self._seconds(n, kv) / slow
        return (now if now > resume else resume) + (a + growth[n] * x) * x * slow

    def run_on(self, until: float) -> list[tuple[float, Trajectory]]:  # noqa: C901 a call costs as much as an event
        """All that happens before `until` on an engine that nobody touches till then: who ends, and when.

        What `next_event`, `fire` and `admit` do one at a time, in one loop that keeps the engine's state at hand: most
        of a large run is spent here. Afterwards its next event is not before `until`, or there is none. An engine with
        events of other kinds (`one_by_one`) stays where it is.
        """
        ended: list[tuple[float, Trajectory]] = []
        if self.one_by_one or not self.n:
            return ended
        self.ahead.clear()
        n, kv, v, t, resume = self.n, self.kv, self.v, self.t, self.resume
        began, running_s, tokens, reprefilled, put_back = t, self.running_s, self.tokens, self.reprefilled, 0
        queue, ending, end_marks, running = self.queue, self.ending, self.end_marks, self.running
        base, slope, growth = self.curve.up_to(n + len(queue))
        slow, limit, blocked, max_running = self.slow, self.kv_limit, self.blocked, 0 if self.held else self.max_running
        fits, prefill_s, prefill_fixed_s = (1.0 - WATERMARK) * limit, self.prefill_s, self.prefill_fixed_s
        reuse, mark, version = self.reuse_kv_cache, len(self.marks) - 1, self.marks[-1][1]
        while n:
            end = end_marks[0]
            x, full = end - v, (limit - kv) / n
            is_full = full < x and n > 1
            if is_full:
                x = full if full > 0.0 else 0.0
            due = (t if t > resume else resume) + (base[n] + slope[n] * kv + growth[n] * x) * x * slow
            if due >= until:
                break
            running_s += n * (due - t)
            t = due
            made = n * x
            tokens += made
            if is_full:  # the youngest is put back
                v += x
                trajectory = running.popitem()[0]
                done = int(v - trajectory.origin + 1e-9)
                if done < trajectory.done:
                    done = trajectory.done
                elif done > trajectory.length:
                    done = trajectory.length
                kv += made - (trajectory.prompt + done)
                if kv < 0.0:
                    kv = 0.0
                place = (
                    bisect_right(end_marks, trajectory.origin + trajectory.length) - 1
                )  # of those who end together it came last
                del ending[place], end_marks[place]
                if done > trajectory.done:
                    if trajectory.first_mark != mark:
                        self._book_tokens(trajectory, done)
                    elif trajectory.done and trajectory.sampled_by != version:
                        trajectory.book(done, version)
                    else:  # as `book`, without its call
                        trajectory.done, trajectory.sampled_by = done, version
                trajectory.first_mark = PUT_BACK
                queue.appendleft(trajectory)
                n -= 1
                put_back += 1
                blocked = True
                continue
            v = end  # no rounding builds up
            kv += made
            while end_marks and end_marks[0] <= v:
                del end_marks[0]
                trajectory = ending.pop(0)
                length = trajectory.length
                if length > trajectory.done:
                    if trajectory.first_mark != mark:
                        self._book_tokens(trajectory, length)
                    elif trajectory.done and trajectory.sampled_by != version:
                        trajectory.book(length, version)
                    else:
                        trajectory.done, trajectory.sampled_by = length, version
                del running[trajectory]
                n -= 1
                kv -= trajectory.prompt + length
                ended.append((t, trajectory))
            if not n:
                kv = 0.0
            blocked = False
            while queue and n < max_running:
                trajectory = queue[0]
                done = trajectory.done
                need = trajectory.prompt + done
                if n and kv + need > fits:
                    break
                queue.popleft()
                if not (done and reuse and trajectory.first_mark != PUT_BACK):
                    reprefilled += done
                    cost = prefill_fixed_s + prefill_s * need
                    if cost:
                        resume = (resume if resume > t else t) + cost
                n += 1
                kv += need
                trajectory.origin = origin = v - done
                trajectory.first_mark = mark
                end = origin + trajectory.length
                place = bisect_right(end_marks, end)
                end_marks.insert(place, end)
                ending.insert(place, trajectory)
                running[trajectory] = None
        self.n, self.kv, self.v, self.t, self.resume, self.blocked = n, kv, v, t, resume, blocked
        self.busy_s += t - began
        self.running_s, self.tokens, self.reprefilled = running_s, tokens, reprefilled
        self.preemptions += put_back
        return ended

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
            youngest = next(reversed(self.running))
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
        del self.running[trajectory]
        self.n -= 1
        self.kv = self.kv - trajectory.prompt - done if self.n else 0.0

    def _book_tokens(self, trajectory: Trajectory, done: int) -> None:
        """A request's tokens up to `done`, on the versions that sampled them."""
        marks = self.marks
        for i in range(trajectory.first_mark, len(marks)):
            end = done
            if i + 1 < len(marks):
                end = min(done, math.floor(marks[i + 1][0] - trajectory.origin + 1e-9))
            if end > trajectory.done:
                trajectory.book(end, marks[i][1])

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
            end = youngest.origin + min(youngest.done + self.chunk, youngest.length)
            place = bisect_right(end_marks, end) - 1  # of those who end together it came last
            del ending[place], end_marks[place]
            running.popitem()
            if done > youngest.done:
                self._book_tokens(youngest, done)
            youngest.first_mark = PUT_BACK
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
        called, read = False, set()
        v, ending, end_marks, running = self.v, self.ending, self.end_marks, self.running
        mark, chunk = len(self.marks) - 1, self.chunk
        n, kv, resume, max_running = self.n, self.kv, self.resume, self.max_running
        fits = (1.0 - WATERMARK) * self.kv_limit
        reuse, share, offload_s = self.reuse_kv_cache, self.share, self.kv_offload_s
        prefill_s, prefill_fixed_s = self.prefill_s, self.prefill_fixed_s
        while queue and n < max_running:
            trajectory = queue[0]
            done = trajectory.done
            need = trajectory.prompt + done
            if n and kv + need > fits:
                break
            queue.popleft()
            kept = done and reuse and trajectory.first_mark != PUT_BACK
            if kept and offload_s:
                resume = (resume if resume > now else now) + offload_s
            if not kept:
                self.reprefilled += done
                cost = prefill_fixed_s + prefill_s * need
                if share:
                    if called:  # one call for all that come together
                        cost -= prefill_fixed_s
                    if not done and trajectory.group in read:
                        cost = 0.0  # its siblings' prompt is the same: their cache is copied
                    called = True
                    read.add(trajectory.group)
                if cost:
                    resume = (resume if resume > now else now) + cost
            n += 1
            kv += need
            trajectory.origin = origin = v - done
            trajectory.first_mark = mark
            last = done + chunk
            end = origin + (last if last < trajectory.length else trajectory.length)
            place = bisect_right(end_marks, end)
            end_marks.insert(place, end)
            ending.insert(place, trajectory)
            running[trajectory] = None
        count = n - self.n
        self.n, self.kv, self.resume = n, kv, resume
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
        stopped = list(self.running)
        for trajectory in stopped:
            self._leave(trajectory, progress(trajectory, self.v))
        stopped += self.queue
        self.ending.clear()
        del self.end_marks[:]
        self.queue.clear()
        self.kv, self.resume, self.blocked = 0.0, now, False
        self.ahead.clear()
        return stopped
