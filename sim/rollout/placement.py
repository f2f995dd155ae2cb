"""Which engine a sample goes to, as frameworks decide it.

    >>> PLACEMENTS
    ('sample', 'group', 'shard', 'divided')

* `sample`: each sample to the engine with the fewest requests (a router that knows every load).
* `group`: all samples of a prompt to one engine, the one with the fewest requests then; they stay.
* `shard`: a batch is cut into as many contiguous parts as there are engines before the first token, and never
  rebalanced: an engine with long answers works on while the others wait.
* `divided`: samples run in chunks of tokens that wait in one buffer for all engines; each goes to the engine with the
  most room in its cache, once it has room for the whole chunk (Seer's divided rollout, `sim.rollout.request_buffer`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.rollout.engine import Engine
from sim.rollout.group import Group
from sim.rollout.trajectory import Trajectory

PLACEMENTS = ("sample", "group", "shard", "divided")


@dataclass(frozen=True)
class Framework:
    """What a framework does where a case does not say otherwise."""

    placement: str
    engine: str  # the serving software on NVIDIA chips
    source: str
    memory_share: float | None = None  # of a chip, for weights and cache while a trainer lives on it too


FRAMEWORKS = {
    "verl": Framework(
        "shard",
        "vllm-sync",
        "verl hybrid engine: a batch is split over data-parallel ranks (DataProto.chunk); vLLM with "
        "gpu_memory_utilization of 0.7 and 0.8 in its recipes (0.5 by default)",
        0.7,
    ),
    "slime": Framework("group", "sglang", "SGLang's cache-aware router sends a prompt's samples where its prefix is"),
    "areal": Framework("sample", "sglang", "AReaL: requests go to the server with the fewest tokens, by request"),
    "openrlhf": Framework("shard", "vllm-sync", "OpenRLHF: prompts are cut over vLLM engines in contiguous parts"),
    "seer": Framework("divided", "vllm-sync", "Seer (arXiv 2511.14617): divided rollout over a global cache pool", 0.7),
    "rollpacker": Framework(
        "group", "vllm-sync", "RollPacker (arXiv 2509.21009): tail batching over a router that keeps groups"
    ),
}


class Placement:
    """Chooses engines; keeps a heap of loads whose stale entries are passed over.

    Loads that fell since the last choice are noted only: between two choices an engine may end thousands of requests.
    """

    def __init__(self, kind: str, engines: Sequence[Engine], prompts_per_batch: int) -> None:
        self.kind, self.engines, self._prompts = kind, engines, prompts_per_batch
        self._loads: list[tuple[int, int]] = []
        self._fell: set[int] = set()  # engines whose load is not in the heap
        self.reset()

    def reset(self) -> None:
        """Every engine is empty."""
        self._loads = [(engine.load, engine.id) for engine in self.engines]
        heapq.heapify(self._loads)
        self._fell.clear()

    def changed(self, engine: Engine) -> None:
        """The load of an engine fell."""
        self._fell.add(engine.id)

    def choose(self, group: Group, samples: Sequence[Trajectory]) -> Iterator[tuple[Engine, Sequence[Trajectory]]]:
        """The engines of these samples of `group`, each with those that go there.

        The caller puts them into its queue before it asks for the next, whose choice hangs on it.
        """
        if not samples:
            return
        if self.kind == "shard":
            count = len(self.engines)
            yield self.engines[group.id % self._prompts * count // self._prompts % count], samples
        elif self.kind == "group":
            if group.engine is None:
                group.engine = self._emptiest().id
            engine = self.engines[group.engine]
            heapq.heappush(self._loads, (engine.load + len(samples), engine.id))
            yield engine, samples
        else:
            for sample in samples:
                yield self._emptiest(), (sample,)

    def _emptiest(self) -> Engine:
        """The engine with the fewest requests, the first of equals; one more is about to be there."""
        if len(self._loads) > 8 * len(self.engines) + 64:
            self.reset()
        loads, engines = self._loads, self.engines
        for i in self._fell:
            heapq.heappush(loads, (engines[i].load, i))
        self._fell.clear()
        while True:
            load, i = loads[0]
            engine = engines[i]
            if engine.n + len(engine.queue) == load:
                break
            heapq.heappop(loads)
            if not loads:
                self.reset()
        heapq.heapreplace(loads, (load + 1, i))
        return engine
