"""What one quantisation came to, as a row of a CSV and as a table.

`report` is the mapping that `minglm quantize --json` prints: run, format, `before` and `after` of `quantization.sizes`,
and with --eval loss, needle, mismatch and questions.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from minglm import atomic
from minglm.errors import InputError

RECORDED = (
    "run",
    "format",
    "bytes_before",
    "bytes_after",
    "bits_per_weight",
    "loss_before",
    "loss_after",
    "needles_before",
    "needles_after",
    "questions",
    "mean_abs_log_ratio",
    "largest_ratio",
    "masked_share",
    "tokens",
)


def record(report: dict[str, Any], path: Path) -> None:
    """The figures of one evaluation as a row of a CSV; the row of the same run and format is replaced.

    Raises:
        InputError: the file is there and has other columns.
    """
    row = dict(
        zip(
            RECORDED,
            (
                report["run"],
                report["format"],
                report["before"]["bytes"],
                report["after"]["bytes"],
                round(report["after"]["bits_per_weight"], 3),
                *(round(v, 5) for v in report["loss"]),
                *(round(v, 4) for v in report["needle"]),
                report["questions"],
                *(round(report["mismatch"][k], 6) for k in ("mean_abs_log_ratio", "largest_ratio", "masked_share")),
                report["mismatch"]["tokens"],
            ),
            strict=True,
        )
    )
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [r for r in reader if (r.get("run"), r.get("format")) != (row["run"], row["format"])]
            if tuple(reader.fieldnames or ()) != RECORDED:
                raise InputError(f"{path}: not a file that --record wrote; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_csv(path, [*rows, row], RECORDED)


def table(report: dict[str, Any]) -> str:
    """Before and after, aligned."""
    before, after = report["before"], report["after"]
    rows: list[tuple[str, ...]] = [
        ("", "before", report["format"]),
        ("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}"),
        ("bits per weight, all", f"{before['bits_per_weight']:.2f}", f"{after['bits_per_weight']:.2f}"),
        ("bits per weight, quantised matrices", "", f"{after['quantised_bits_per_weight']:.2f}"),
        ("part of the weights quantised", "", f"{after['quantised_weights'] / after['weights']:.1%}"),
    ]
    if "loss" in report:
        rows += [
            ("validation loss, nats per token", *(f"{v:.4f}" for v in report["loss"])),
            (f"needles found, of {report['questions']}", *(f"{v:.1%}" for v in report["needle"])),
        ]
        mismatch = report["mismatch"]
        rows += [
            ("mean |log ratio| of its own rollout's tokens", "", f"{mismatch['mean_abs_log_ratio']:.5f}"),
            ("largest ratio to the unquantised policy", "", f"{mismatch['largest_ratio']:.3f}"),
            ("tokens that IcePop (β = 2) would mask", "", f"{mismatch['masked_share']:.2%} of {mismatch['tokens']}"),
        ]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    return "\n".join(f"{r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}".rstrip() for r in rows)
