"""Everything that months of training depend on: segments, chips, failures, checkpoints, recovery."""

from __future__ import annotations

from dataclasses import dataclass, field

from minglm.errors import InputError
from sim.base.units import DAY_S
from sim.spec.phases import RunSegment
from sim.training.checkpoints import Checkpoint
from sim.training.failures import FailureModel, Recovery, SlowServers


@dataclass(frozen=True, slots=True)
class CampaignInput:
    """Everything a campaign depends on.

    segments: stretches of equal steps in order (`sim.spec.phases.segments` or `choose_plans`).
    cluster_chips: all there are; what a segment's plan does not use is spare.
    slow: servers that turn slow; None for none.
    horizon_s: stop here even if tokens are left (a 90-day stress case; ten years otherwise).
    max_failures: stop after so many; a job that fails faster than it restarts would never end.
    """

    segments: tuple[RunSegment, ...]
    cluster_chips: int
    failures: FailureModel = field(default_factory=FailureModel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    recovery: Recovery = field(default_factory=Recovery)
    slow: SlowServers | None = field(default_factory=SlowServers)
    chips_per_server: int = 8
    horizon_s: float = 3650 * DAY_S
    max_failures: int = 200_000

    def __post_init__(self) -> None:
        if not self.segments:
            raise InputError(
                "segments=(): a campaign needs at least one phase; give a schedule such as sim.spec.phases.GLM5"
            )
        for name in ("cluster_chips", "chips_per_server", "max_failures"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")
        most = max(self.segments, key=lambda segment: segment.throughput.num_chips)
        if most.throughput.num_chips > self.cluster_chips:
            raise InputError(
                f"phase {most.phase!r} plans {most.throughput.num_chips:,} chips: more than the cluster's "
                f"{self.cluster_chips:,}; use fewer "
                "replicas or a larger cluster"
            )
        if not 0 < self.horizon_s < float("inf"):
            raise InputError(
                f"horizon_s={self.horizon_s!r}: must be a positive finite number; leave it out for ten years"
            )
