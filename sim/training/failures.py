"""How often something breaks in a training job, what it is, and how long until the job runs again.

No per-chip failure rate of an Ascend cluster is published, so the rates here are those of GPU clusters, as a range; say
so beside any figure made with them.

Sources: Llama 3 (arXiv 2407.21783 Table 5): 419 unexpected interruptions in 54 days on 16,384 GPUs, by component.
FT-HSDP (arXiv 2602.00277): one failure per about 18 minutes near 100,000 GPUs, and 2.3 interruptions per 1,000 servers
and day as the reference of a 32,000-GPU run. MegaScale (arXiv 2402.15627 §6.3): detection within 10 minutes, recovery
within 15, about 0.5% of machines about 10% slow. NCCLX (arXiv 2510.20171): communicator set-up at 96,000 GPUs 265 s,
tuned 24 s.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from minglm.errors import InputError, nearest
from sim.base.checks import is_at_least
from sim.base.units import DAY_S

# component: (interruptions of the 419, whether the server has to be replaced). The second is our reading of each cause.
LLAMA3_COMPONENTS: dict[str, tuple[int, bool]] = {
    "chip": (148, True),
    "HBM": (72, True),
    "software": (54, False),
    "switch or cable": (35, True),
    "host maintenance": (32, True),
    "SRAM": (19, True),
    "chip system processor": (17, True),
    "NIC": (7, True),
    "collective watchdog": (7, False),
    "silent data corruption": (6, True),
    "thermal": (6, True),
    "SSD": (3, True),
    "power supply": (3, True),
    "chassis": (2, True),
    "IO board": (2, True),
    "dependency": (2, False),
    "CPU": (2, True),
    "system memory": (2, True),
}
# Interruptions per chip and day. The three sources disagree; the range is theirs.
RATES_PER_CHIP_DAY = {
    "low": 2.3 / (1000 * 8),  # 2.3 per 1,000 servers of 8
    "mid": 419 / (54 * 16384),  # Llama 3
    "high": DAY_S / (18 * 60) / 100_000,  # one per 18 minutes at 100,000
}


class Failure(NamedTuple):
    """One interruption. `mark` and `luck` are uniform in [0, 1): which chip of the cluster it hits, and whether copies
    in neighbours' memory survive."""

    time_s: float
    component: str
    replaces_server: bool
    mark: float
    luck: float


@dataclass(frozen=True, slots=True)
class FailureModel:
    """Failures as a Poisson process, proportional to the chips.

    per_chip_day: interruptions per chip and day; `FailureModel.named("mid")` takes one of `RATES_PER_CHIP_DAY`.
    components: name -> (weight, whether the server must be replaced).
    """

    per_chip_day: float = RATES_PER_CHIP_DAY["mid"]
    components: tuple[tuple[str, float, bool], ...] = tuple((n, w, r) for n, (w, r) in LLAMA3_COMPONENTS.items())

    def __post_init__(self) -> None:
        check_number("failures per chip and day", self.per_chip_day, 0.0)
        if (
            not self.components
            or any(not math.isfinite(w) or w < 0 for _, w, _ in self.components)
            or not sum(w for _, w, _ in self.components)
        ):
            raise InputError(
                f"failure components {self.components!r}: needs at least one with a positive finite weight; leave it "
                "out for the Llama 3 table"
            )

    @classmethod
    def named(cls, level: str) -> FailureModel:
        """The rate of a level of `RATES_PER_CHIP_DAY`. Raises InputError for another word."""
        if level not in RATES_PER_CHIP_DAY:
            raise InputError(
                f"failure level {level!r}: not one of {', '.join(RATES_PER_CHIP_DAY)}"
                f"{nearest(level, RATES_PER_CHIP_DAY)}"
            )
        return cls(RATES_PER_CHIP_DAY[level])

    def mtbf_s(self, num_chips: int) -> float:
        """Mean time between failures of a job on so many chips, seconds (infinite without failures)."""
        rate = self.per_chip_day * num_chips / DAY_S
        return 1.0 / rate if rate else math.inf

    def stream(self, cluster_chips: int, seed: int, until_s: float = 1e11) -> Iterator[Failure]:
        """Failures of a cluster's chips in order of time, up to `until_s`.

        The stream of a lower rate is a part of the stream of a higher rate with the same seed: the rate is built from
        independent layers, each twice as busy as the one below, the topmost thinned. So two rates can be compared
        failure by failure (common random numbers).
        """
        names = [c[0] for c in self.components]
        replaces = {c[0]: c[2] for c in self.components}
        upto = list(itertools.accumulate(c[1] for c in self.components))
        last = len(names) - 1
        left, layer = self.per_chip_day * cluster_chips / DAY_S, 0
        queue: list[tuple[float, int, float, float, random.Random]] = []  # next time, layer, share kept, rate, dice
        while left > 0:
            full = 1e-10 * 2.0**layer
            rng = random.Random(f"failures {seed} {layer}")
            heapq.heappush(queue, (rng.expovariate(full), layer, min(1.0, left / full), full, rng))
            left, layer = left - full, layer + 1
        while queue:
            time_s, layer, kept_share, full, rng = queue[0]
            if time_s > until_s:
                return
            thin, mark, luck, pick = (
                rng.random(),
                rng.random(),
                rng.random(),
                names[bisect.bisect(upto, rng.random() * upto[-1], 0, last)],
            )
            heapq.heapreplace(queue, (time_s + rng.expovariate(full), layer, kept_share, full, rng))
            if thin < kept_share:
                yield Failure(time_s, pick, replaces[pick], mark, luck)


@dataclass(frozen=True, slots=True)
class Recovery:
    """From a failure to the next training step, seconds. Defaults are assumed, inside MegaScale's bounds (10 and 15
    min).

    detect_s: until the failure is noticed and the server named.
    restart_s: new processes, communicators, compilation; loading the checkpoint comes on top.
    repair_s: until a replaced server is back as a spare.
    elastic: go on without a replica when no spare is left (its share of the batch is left out until it is back);
        otherwise wait for a repaired server.
    """

    detect_s: float = 180.0
    restart_s: float = 300.0
    repair_s: float = 24 * 3600.0
    elastic: bool = True

    def __post_init__(self) -> None:
        for name in ("detect_s", "restart_s", "repair_s"):
            check_number(name, getattr(self, name), 0.0)


@dataclass(frozen=True, slots=True)
class SlowServers:
    """Servers that turn slow without failing. A synchronous job runs at the pace of its slowest server.

    per_server_day: how often a server turns slow; the default spreads MegaScale's 0.5% of machines over 30 days
        (assumed).
    factor: how many times longer a step takes with at least one slow server in the job.
    remove_after_s: until it is found and swapped out, at a checkpoint; None never.
    """

    per_server_day: float = 0.005 / 30
    factor: float = 1.1
    remove_after_s: float | None = 3600.0

    def __post_init__(self) -> None:
        check_number("slow servers per server and day", self.per_server_day, 0.0)
        check_number("slow server factor", self.factor, 1.0)
        if self.remove_after_s is not None:
            check_number("remove_after_s", self.remove_after_s, 0.0)


def check_number(name: str, value: float, least: float) -> None:
    """Refuse what is not a finite number of at least `least`."""
    if not is_at_least(value, least):
        raise InputError(f"{name}={value!r}: must be a finite number of at least {least:g}; give {least:g} or more")
