"""What comes out of a rollout simulation. Units: seconds and tokens; shares are of time or of tokens, as named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Step:
    """One update, or one group of `parts` updates between weight syncs."""

    end_s: float
    wait_s: float  # the trainer waited for groups
    train_s: float
    weight_sync_s: float
    tokens: int  # response tokens trained
    stale_share: float  # of them, sampled by older weights
    staleness_max: int  # versions, of the oldest token


@dataclass(frozen=True)
class Throughput:
    """Rates of a run."""

    step_s: float
    rollout_s: float  # sync and april: first submission to last accepted group, mean; otherwise step_s
    generated_tokens: float
    tokens_per_s: float  # generated
    trained_tokens: int
    trained_tokens_per_s: float
    trained_trajectories: int


@dataclass(frozen=True)
class Utilisation:
    """How much of the machines stood idle."""

    idle_share: float  # of all chips
    rollout_idle: float  # engines without a request (colocated: of the rollout phase)
    trainer_idle: float  # separate trainer without work
    tail_share: float  # of the rollout phases, time in which only their last tenth of trajectories was still to end
    mean_running: float  # requests in an engine, while any runs


@dataclass(frozen=True)
class Staleness:
    """How old what was trained on was, in weight versions."""

    tokens: Mapping[int, int]  # versions behind → trained tokens
    max: int  # versions behind, of the oldest trained token
    oldest: Mapping[int, int]  # versions behind of its oldest token → trajectories
    max_span: int  # versions that one trained trajectory spans

    @property
    def stale_share(self) -> float:
        """Of the trained tokens, those sampled by older weights; 0 where nothing was trained."""
        total = sum(self.tokens.values())
        return 1.0 - self.tokens.get(0, 0) / total if total else 0.0


@dataclass(frozen=True)
class Waste:
    """Work that nothing was trained on, or that was done twice."""

    tokens: Mapping[str, int]  # of groups that were filtered, too_stale or surplus
    reprefilled_tokens: int
    preemptions: int


@dataclass(frozen=True)
class Result:
    """What a run did, after the warm-up."""

    name: str
    mode: str
    seconds: float
    chips: int
    steps: tuple[Step, ...]
    throughput: Throughput
    utilisation: Utilisation
    staleness: Staleness
    waste: Waste
    # Trajectories of the whole run: submitted = trained + filtered + too_stale + surplus + waiting + buffered +
    # running.
    counts: Mapping[str, int]
    watched: tuple[tuple[tuple[float, int], ...], ...] = field(repr=False, default=())  # per engine: (second, running)
    trainer_spans: tuple[tuple[str, float, float], ...] = field(repr=False, default=())  # (kind, start, end)

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping of plain values, as `clustersim rollouts --json` prints it."""

        def by_text(histogram: Mapping[int, int]) -> dict[str, int]:
            return {str(versions): count for versions, count in sorted(histogram.items())}

        return {
            "name": self.name,
            "mode": self.mode,
            "seconds": self.seconds,
            **asdict(self.throughput),
            **asdict(self.utilisation),
            "staleness": by_text(self.staleness.tokens),
            "staleness_max": self.staleness.max,
            "oldest_staleness": by_text(self.staleness.oldest),
            "max_span": self.staleness.max_span,
            "wasted": dict(self.waste.tokens),
            "reprefilled_tokens": self.waste.reprefilled_tokens,
            "preemptions": self.waste.preemptions,
            "counts": dict(self.counts),
            "chips": self.chips,
            "steps": [asdict(step) for step in self.steps],
        }
