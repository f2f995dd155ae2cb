"""Is my curve normal? Loss curves of five seeds with a band, recorded, and a learner's own curve drawn into it.

`data/reference/curves.csv` has a row for every ten steps of a run: the mean loss of each seed over these steps, nats.
`python -m minglm.course.record_curves` records it again. Runs: "pretrain", stage 1 of notebook learn/05; "build", the
loop of notebook learn/build_4 with minglm's own model and optimiser.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles, plots
from minglm.errors import InputError, nearest
from minglm.evals.statistics import t_quantile

EVERY = 10  # steps that a row averages over
# A further seed lies inside with a probability of 99% at each point, if seeds are normally distributed: the prediction
# interval from as many as were recorded.
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Band:
    """Of one run: the last step of each window, the mean of the seeds there, and the interval for a further seed."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    def outside(self, losses: Sequence[float]) -> list[int]:
        """The steps at which a curve (one loss a step, as far as it goes) lies outside the band."""
        means = windows(losses)
        return [
            s for s, v, low, high in zip(self.steps, means, self.low, self.high, strict=False) if not low <= v <= high
        ]


def windows(losses: Sequence[float]) -> list[float]:
    """Means over `EVERY` steps each; a rest at the end is left out.

    >>> windows([2.0] * 10 + [1.0] * 12)
    [2.0, 1.0]
    """
    return [statistics.mean(losses[i : i + EVERY]) for i in range(0, len(losses) - EVERY + 1, EVERY)]


def recorded() -> Path:
    """The file of the recorded curves."""
    return datafiles.data("reference", "curves.csv")


def band(run: str, path: Path | None = None) -> Band:
    """The recorded band of a run.

    Raises:
        InputError: no such run in the file.
    """
    path = path or recorded()
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mine = [r for r in rows if r["run"] == run]
    if not mine:
        names = sorted({r["run"] for r in rows})
        raise InputError(f"run {run!r}: not one of {', '.join(names)}{nearest(run, names)}; see {path.name}")
    steps, mean, low, high = [], [], [], []
    for r in mine:
        values = [float(v) for key, v in r.items() if key.startswith("seed_")]
        middle, spread = statistics.mean(values), statistics.stdev(values)
        reach = t_quantile(len(values) - 1, CONFIDENCE) * spread * (1 + 1 / len(values)) ** 0.5
        steps.append(int(r["step"]))
        mean.append(middle)
        low.append(middle - reach)
        high.append(middle + reach)
    return Band(steps, mean, low, high)


def beside_the_band(run: str, curves: Mapping[str, Sequence[float]]) -> tuple[Any, str]:
    """The recorded band with curves drawn in, one loss a step each, and in words which of them leave it."""
    known = band(run)
    fig = plots.figure("Is my curve normal?", "step", "loss (nats per token)")
    plots.line(fig, known.steps, known.mean, "five seeds, recorded", 0, band=(known.low, known.high))
    words = []
    for i, (name, losses) in enumerate(curves.items(), 1):
        means = windows(losses)
        plots.line(fig, known.steps[: len(means)], means, name, i)
        seen = min(len(means), len(known.steps))
        left = len(known.outside(losses))
        words.append(f"{name}: outside at {left} of {seen} points" if seen else f"{name}: shorter than {EVERY} steps")
    return fig, (
        f"Line chart with a band, each point a mean over {EVERY} steps. The band is where a further seed lies 99 times "
        f"in a hundred at each point. {'; '.join(words)}."
    )
