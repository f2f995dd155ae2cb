"""Figures of `minglm.rl.abstention` over seeds: before and after, and how they move with what is counted and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from minglm.records import numbers, read_rows
from minglm.rl import abstention_world as hw
from minglm.rl.abstention_world import Counts

Row: TypeAlias = dict[str, Any]  # of a table of figures
THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
TARGET_RATE, ALLOWED_LOSS = 0.34, 0.05  # the article's figure; accuracy on known facts may fall by so much


def read_csv(path: Path) -> list[Row]:
    """Rows of a file of `minglm.rl.abstention.write_csv`, numbers as numbers."""
    return read_rows(path, numbers, "minglm.cli.hallucination")


def find(
    figures: list[Row], stage: str, prompt: str = "plain", questions: str = "all", threshold: float = 0.0
) -> list[Row]:
    """The rows of one setting, a row per seed."""
    return [
        r
        for r in figures
        if (r["stage"], r["prompt"], r["questions"], r["threshold"]) == (stage, prompt, questions, threshold)
    ]


def pooled(rows: Sequence[dict]) -> Counts:
    """Counts of several rows together."""
    return sum((Counts(r["correct"], r["partial"], r["incorrect"], r["abstained"]) for r in rows), Counts())


def summary(figures: list[Row]) -> dict:
    """Per seed before and after, and how the pooled figure moves with definition, prompt and threshold."""
    seeds = []
    for before, after, known, known_after in zip(
        find(figures, "before"),
        find(figures, "after"),
        find(figures, "before", questions="known"),
        find(figures, "after", questions="known"),
        strict=True,
    ):
        seeds.append(
            {
                "seed": before["seed"],
                "rate_before": before["hallucination_rate"],
                "rate_after": after["hallucination_rate"],
                "known_before": known["accuracy"],
                "known_after": known_after["accuracy"],
                "index_before": before["index"],
                "index_after": after["index"],
            }
        )
    stages = ("before", "after")
    return {
        "reached": all(
            s["rate_after"] <= TARGET_RATE and s["known_before"] - s["known_after"] <= ALLOWED_LOSS for s in seeds
        ),
        "seeds": seeds,
        "definitions": {stage: pooled(find(figures, stage)).definitions() for stage in stages},
        "questions": {
            stage: {
                kind: pooled(find(figures, stage, questions=kind)).hallucination_rate for kind in ("all", *hw.KINDS)
            }
            for stage in stages
        },
        "prompts": {
            stage: {
                p: {
                    "rate": pooled(find(figures, stage, p)).hallucination_rate,
                    "known": pooled(find(figures, stage, p, "known")).accuracy,
                }
                for p in hw.PROMPTS
            }
            for stage in stages
        },
        "thresholds": {
            stage: [
                {
                    "threshold": t,
                    "rate": pooled(find(figures, stage, threshold=t)).hallucination_rate,
                    "known": pooled(find(figures, stage, questions="known", threshold=t)).accuracy,
                    "index": pooled(find(figures, stage, threshold=t)).index,
                }
                for t in THRESHOLDS
            ]
            for stage in stages
        },
    }


def render(out: dict) -> str:
    """The summary in words and tables."""
    lines = [
        "seed   hallucination rate     right on known facts    index",
        "       before    after       before    after        before  after",
    ]
    for s in out["seeds"]:
        lines.append(
            f"{s['seed']:<6} {s['rate_before']:6.1%}   {s['rate_after']:6.1%}       {s['known_before']:6.1%}   "
            f"{s['known_after']:6.1%}"
            f"       {s['index_before']:6.1f} {s['index_after']:6.1f}"
        )
    lines += ["", f"{'the same answers, other definitions':38} before   after"]
    lines += [
        f"  {name:36} {out['definitions']['before'][name]:6.1%}  {out['definitions']['after'][name]:6.1%}"
        for name in out["definitions"]["before"]
    ]
    lines += ["", f"{'other prompts: rate, right on known':38} before           after"]
    lines += [
        f"  {p:36} "
        + "   ".join(
            f"{out['prompts'][stage][p]['rate']:6.1%} {out['prompts'][stage][p]['known']:6.1%}"
            for stage in ("before", "after")
        )
        for p in hw.PROMPTS
    ]
    lines += ["", f"{'answers below a confidence withheld':38} before           after"]
    lines += [
        f"  below {a['threshold']:<30} {a['rate']:6.1%} {a['known']:6.1%}   {b['rate']:6.1%} {b['known']:6.1%}"
        for a, b in zip(out["thresholds"]["before"], out["thresholds"]["after"], strict=True)
    ]
    return "\n".join(lines)
