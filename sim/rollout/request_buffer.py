"""Divided rollout: samples run in chunks, and wait for each chunk in one buffer for all engines.

A chunk goes to the engine with the most room, and only where the cache has room for the whole of it: for the context
and for as many tokens as the chunk may add. So no cache is ever full in the middle of a chunk, nobody is put back, and
who waits, waits for every engine at once. A sample that ends a chunk goes to the back of the buffer; its cache moves
with it through a pool that all engines share.

Source: Seer (arXiv 2511.14617 v3), section 3.2 and algorithm 2 without knowledge of lengths.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from sim.rollout.engine import WATERMARK, Engine
from sim.rollout.trajectory import Trajectory

CHUNK = 8192  # assumed: tokens of a chunk; Seer names chunks, not their size


class RequestBuffer:
    """Who waits for a chunk, and how many tokens of cache each engine has promised to those it runs."""

    def __init__(self, engines: Sequence[Engine], longest: int) -> None:
        self._engines, self._longest = engines, longest
        self._waiting: deque[Trajectory] = deque()
        self.clear()

    def clear(self) -> None:
        """Nobody waits and every engine is empty."""
        self._waiting.clear()
        self._of: dict[Trajectory, int] = {}  # tokens promised to each that runs
        self._promised = [0] * len(self._engines)
        self._roomiest = [(0, engine.id) for engine in self._engines]  # a heap; entries that changed are passed over

    def add(self, trajectory: Trajectory) -> None:
        """A sample waits for its next chunk."""
        self._waiting.append(trajectory)

    def chunk_ended(self, engine: Engine, trajectory: Trajectory) -> None:
        """The engine has the cache again that it had promised to the chunk."""
        self._promise(engine.id, -self._of.pop(trajectory))

    def hand_out(self) -> Iterator[tuple[Trajectory, Engine]]:
        """Chunks that begin now, in the order of the buffer, each with its engine."""
        while self._waiting:
            trajectory = self._waiting[0]
            # No length is known before it is reached: a chunk may have all its tokens
            need = trajectory.prompt + min(trajectory.done + CHUNK, self._longest)
            engine = self._engines[self._most_room()]
            promised = self._promised[engine.id]
            if engine.load >= engine.max_running or (
                promised and promised + need > (1.0 - WATERMARK) * engine.kv_limit
            ):
                return
            self._of[trajectory] = need
            self._promise(engine.id, need)
            yield self._waiting.popleft(), engine

    def _promise(self, engine: int, tokens: int) -> None:
        self._promised[engine] += tokens
        heapq.heappush(self._roomiest, (self._promised[engine], engine))
        if len(self._roomiest) > 8 * len(self._engines) + 64:
            self._roomiest = [(promised, i) for i, promised in enumerate(self._promised)]
            heapq.heapify(self._roomiest)

    def _most_room(self) -> int:
        """The engine that has promised least: all have the same cache."""
        while self._roomiest[0][0] != self._promised[self._roomiest[0][1]]:
            heapq.heappop(self._roomiest)
        return self._roomiest[0][1]
