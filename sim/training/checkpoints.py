"""What a checkpoint costs, when the next one should be, and what Young and Daly expect of a job that fails.

Three kinds. `sync` stops training until storage has everything. `async` stops only to copy the state to host memory and
writes from there while training goes on; it counts once written. `memory` keeps the copy in the host memory of
neighbours, where it counts at once for most failures; every so often one goes to storage in the background for the
rest.

Sources: Young 1974; Daly 2006 (higher-order optimum); ByteRobust (arXiv 2509.16293): in-memory checkpoints block
training 0.01–0.04 s a step; storage of large runs delivers 50–200 GB/s in practice, Llama 3's Tectonic 2 TB/s
sustained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minglm.errors import InputError, nearest
from sim.base.tape import call, most
from sim.training.failures import check_number

KINDS = ("sync", "async", "memory")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How the job saves itself.

    bytes: one checkpoint of the whole job.
    write_bytes_per_s, read_bytes_per_s: storage, shared by the whole job.
    host_bytes_per_s: from one chip to its host's memory (async).
    memory_stall_s: how long an in-memory checkpoint blocks training.
    memory_survival: share of failures after which the neighbours' copies are usable (assumed).
    storage_every: with `memory`, each how many-th checkpoint is also written to storage; None: as often as storage
        allows.
    interval_s: training time between checkpoints; None: Daly's optimum for each stretch of the campaign.
    """

    kind: str = "async"
    bytes: float = 0.0
    write_bytes_per_s: float = 100e9
    read_bytes_per_s: float = 200e9
    host_bytes_per_s: float = 10e9
    memory_stall_s: float = 0.04
    memory_survival: float = 0.95
    storage_every: int | None = None
    interval_s: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"checkpoint kind {self.kind!r}: not one of {', '.join(KINDS)}{nearest(self.kind, KINDS)}")
        check_number("checkpoint bytes", self.bytes, 0.0)
        for name in ("write_bytes_per_s", "read_bytes_per_s", "host_bytes_per_s"):
            check_number(name, getattr(self, name), 1.0)
        check_number("memory_stall_s", self.memory_stall_s, 0.0)
        check_number("memory_survival", self.memory_survival, 0.0)
        if self.memory_survival > 1.0:
            raise InputError(
                f"memory_survival={self.memory_survival!r}: is a share of failures; give a number from 0 to 1"
            )
        if self.interval_s is not None:
            check_number("checkpoint interval_s", self.interval_s, 1e-3)
        if self.storage_every is not None and (not isinstance(self.storage_every, int) or self.storage_every < 1):
            raise InputError(
                f"storage_every={self.storage_every!r}: must be a whole number of at least 1; leave it out to write as "
                "often as storage allows"
            )

    @property
    def write_s(self) -> float:
        """From the copy being made until storage has it."""
        return self.bytes / self.write_bytes_per_s

    def load_s(self, num_chips: int, from_memory: bool = False) -> float:
        """Reading a checkpoint back: from storage, or from the host memory of neighbours."""
        return self.bytes / (num_chips * self.host_bytes_per_s) if from_memory else self.read_s

    def stall_s(self, num_chips: int) -> float:
        """How long training stands still for one checkpoint."""
        if self.kind == "sync":
            return self.write_s
        return self.memory_stall_s if self.kind == "memory" else self.bytes / (num_chips * self.host_bytes_per_s)

    def plan_change_s(self, restart_s: float) -> float:
        """From a run's last checkpoint with one plan to its first step with another: storage has all of it, processes
        start anew (`restart_s`) and read the shards of the new plan, which no neighbour's memory holds."""
        return self.delay_s + restart_s + self.read_s

    @property
    def read_s(self) -> float:
        """Reading all of it from storage."""
        return self.bytes / self.read_bytes_per_s

    @property
    def delay_s(self) -> float:
        """From the end of the stall until storage has the checkpoint."""
        return 0.0 if self.kind == "sync" else self.write_s

    def steps_between(self, step_s: float, num_chips: int, mtbf_s: float) -> int:
        """Steps from one checkpoint to the next: the given interval or Daly's, and never faster than storage can write
        (in-memory ones may be: see `every`)."""
        wanted = self.interval_s if self.interval_s is not None else daly(self.stall_s(num_chips), mtbf_s)
        if self.kind == "async":
            wanted = most(wanted, self.write_s)
        return most(1, math.ceil(1e9) if wanted == math.inf else round(wanted / step_s))

    def every(self, period_s: float) -> int:
        """Each how many-th checkpoint goes to storage, when one is made every `period_s`."""
        if self.kind != "memory":
            return 1
        return max(self.storage_every or 1, math.ceil(self.write_s / period_s) if period_s else 1)


def young(stall_s: float, mtbf_s: float) -> float:
    """Young's interval between checkpoints, seconds of work: √(2 · stall · MTBF)."""
    return call(math.sqrt, 2.0 * stall_s * mtbf_s)


def daly(stall_s: float, mtbf_s: float) -> float:
    """Daly's higher-order interval, seconds of work; the MTBF itself when a checkpoint takes over twice that."""
    if mtbf_s == math.inf or stall_s >= 2.0 * mtbf_s:
        return mtbf_s
    ratio = call(math.sqrt, stall_s / (2.0 * mtbf_s))
    return young(stall_s, mtbf_s) * (1.0 + ratio / 3.0 + ratio * ratio / 9.0) - stall_s


def expected_goodput(work_s: float, stall_s: float, restart_s: float, mtbf_s: float, delay_s: float = 0.0) -> float:
    """Share of time that is first-time work: Daly's exact expectation for exponential failures, which may also strike
    during restarts and checkpoints: τ / (M e^{R/M} (e^{(τ+δ)/M} − 1)).

    `delay_s`: a checkpoint that counts only so long after it was taken adds that much lost work to each failure.
    """
    if mtbf_s == math.inf:
        return work_s / (work_s + stall_s)
    try:
        segment = mtbf_s * call(math.exp, restart_s / mtbf_s) * call(math.expm1, (work_s + stall_s) / mtbf_s)
    except OverflowError:
        return 0.0
    return work_s / (segment * (1.0 + delay_s / mtbf_s)) if segment else 1.0
