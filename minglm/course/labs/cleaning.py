"""What cleaning and mixing do to a model: equal steps on a crawl as it is, cleaned, and with as much dropped by chance.

`data/reference/data_lab.csv` has a row for each (experiment, text, seed); `python -m minglm.course.labs.record data`
makes it again. Every text is trained on for the same number of steps from the same first weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles, plots
from minglm.course.labs import text, toy
from minglm.data.tiny_world.documents import MIXTURE
from minglm.errors import InputError
from minglm.evals.statistics import mean_interval
from minglm.records import read_rows

SEEDS, STEPS, ROWS, LENGTH = (0, 1, 2), 100, 8, 64
RATE = 0.02
CRAWL = 1500  # pages
CONTROL = "control: as many gone by chance"
COLUMNS = ("experiment", "text", "seed", "pages", "loss", "floor")
Pages = list[text.Page]

_SHORT = {kind: share for kind, share in MIXTURE.items() if kind != "story"}
MIXTURES: dict[str, Mapping[str, float]] = {
    "the language's own": MIXTURE,
    "every kind alike": dict.fromkeys(MIXTURE, 1.0),
    "no stories": _SHORT,
}


def _copies(seed: int) -> dict[str, Pages]:
    crawl = text.with_copies(CRAWL, seed)
    clean = text.near(crawl)
    return {
        "as crawled": crawl,
        "same texts once": text.exact(crawl),
        "near copies gone": clean,
        CONTROL: text.dropped_at_random(crawl, len(clean), seed),
    }


def _junk(seed: int) -> dict[str, Pages]:
    crawl = text.with_junk(CRAWL, seed)
    clean = text.filtered(crawl, seed)
    return {
        "as crawled": crawl,
        "filtered": clean,
        CONTROL: text.dropped_at_random(crawl, len(clean), seed),
        "bound: junk known and gone": [page for page in crawl if not page.damage],
    }


def _mixtures(seed: int) -> dict[str, Pages]:
    return {name: text.pages(CRAWL, seed, mixture) for name, mixture in MIXTURES.items()}


EXPERIMENTS: dict[str, Callable[[int], dict[str, Pages]]] = {"copies": _copies, "junk": _junk, "mixture": _mixtures}
FIRST = {"copies": "as crawled", "junk": "as crawled", "mixture": "the language's own"}  # what others are compared with


def trained_loss(chosen: Pages, seed: int, steps: int = STEPS) -> float:
    """Loss on unseen text after so many steps on these pages, nats per token."""
    batches = text.batches(chosen, ROWS, LENGTH, seed)
    trained = toy.train(toy.config(), batches, steps, toy.Setting(lr=RATE, adam_lr=RATE), seed)
    return toy.unseen_loss(trained.model)


def recorded() -> Path:
    """The file of the recorded trainings."""
    return datafiles.data("reference", "data_lab.csv")


@dataclass(frozen=True)
class Effect:
    """Of one text: the mean loss over seeds, and the mean difference from the first text of its experiment, paired by
    seed, with its 95% interval (Student's t)."""

    text: str
    loss: float
    difference: float
    low: float
    high: float


def paired(mine: list[float], first: list[float]) -> tuple[float, float, float]:
    """Mean difference and its 95% interval.

    >>> paired([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    (1.0, 1.0, 1.0)
    """
    mean, half = mean_interval([a - b for a, b in zip(mine, first, strict=True)])
    return mean, mean - half, mean + half


def _row(line: dict[str, str]) -> tuple[str, str, int, float]:
    return line["experiment"], line["text"], int(line["seed"]), float(line["loss"])


def losses(experiment: str, path: Path | None = None) -> dict[str, dict[int, float]]:
    """{text: {seed: loss}} of an experiment's recorded trainings, in nats a token.

    Raises:
        InputError: no such file or experiment.
    """
    found: dict[str, dict[int, float]] = {}
    for name, title, seed, loss in read_rows(path or recorded(), _row, "minglm.course.labs.record"):
        if name == experiment:
            found.setdefault(title, {})[seed] = loss
    if not found:
        raise InputError(f"experiment {experiment!r}: not one of {', '.join(EXPERIMENTS)}")
    return found


def effects(experiment: str, path: Path | None = None) -> list[Effect]:
    """The recorded effects of an experiment, in the order of its texts; refuses what `losses` refuses."""
    found = losses(experiment, path)
    first = found[FIRST[experiment]]
    out = []
    for name, by_seed in found.items():
        seeds = sorted(by_seed)
        same = paired([by_seed[s] for s in seeds], [first[s] for s in seeds])
        out.append(Effect(name, statistics.mean(by_seed.values()), *same))
    return out


def chart(experiment: str, path: Path | None = None) -> tuple[Any, str]:
    """Differences from the first text of the experiment, with intervals."""
    found = effects(experiment, path)
    names = [e.text for e in found]
    fig = plots.figure(f"{experiment}: what it changes", "loss on unseen text, difference (nats)", "")
    fig.add_scatter(
        x=[e.difference for e in found],
        y=names,
        mode="markers",
        marker={"size": 11, "color": plots.COLOURS[0]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [e.high - e.difference for e in found],
            "arrayminus": [e.difference - e.low for e in found],
        },
    )
    fig.add_vline(x=0, line_width=1)
    fig.update_yaxes(autorange="reversed")
    words = "; ".join(f"{e.text} {e.difference:+.2f} ({e.low:+.2f} to {e.high:+.2f})" for e in found[1:])
    return fig, (
        f"Points with 95% intervals, differences from {names[0]!r} (mean loss {found[0].loss:.2f}) paired by seed: "
        f"{words}."
    )
