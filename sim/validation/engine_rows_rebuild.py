"""The table of measured engines and the intervals, remade: `python -m sim.validation.engine_rows_rebuild FOLDER`.

FOLDER holds `SOURCE` of ai-dynamo/aiconfigurator 095f58a51 (`data/serving/NOTICE`), checked against its sha256. Closed
loops on one deployment are kept whole (mode `agg`); of disaggregated ones (`disagg`) those whose decoding batch is
printed, with the widths of the decoding side: a token of theirs is a decode step alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError
from sim.cost.measured_rebuild import read_source
from sim.serving.error import interval_text
from sim.validation.engine_summary import measured_intervals

SOURCE = "aic_silicon_sample.csv.gz"
SHA256 = "0c710de6d49c96f24299b00fa71264da8df9b3d137f263d26e2e51a040374e3b"
COLUMNS = (
    "model",
    "chip",
    "engine",
    "version",
    "precision",
    "mode",
    "prompt",
    "output",
    "concurrency",
    "in_flight",
    "tp",
    "dp",
    "ep",
    "ttft_ms",
    "tpot_ms",
    "date",
    "harness",
)

Row = Mapping[str, str]


def _whole(text: str) -> int:
    """A width: '8.0' → 8; nothing and 0 are 1."""
    return int(float(text or 1)) or 1


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""


def lines(rows: Iterator[Row]) -> Iterator[tuple[str, ...]]:
    """The rows of the table, in the columns of `COLUMNS`."""
    for r in rows:
        side = "" if r["mode"] == "agg" else "decode_"
        batch = r[f"{side}batch_size"]
        if not batch:
            continue
        origin = r["silicon_data_source"]
        widths = (_whole(r[f"{side}{name}"]) for name in ("tp_size", "attention_dp_size", "moe_ep_size"))
        yield (
            r["model_path"].rsplit("/", 1)[-1],
            r["system"].removesuffix("_sxm"),
            r["backend"],
            r["backend_version"],
            r["precision"] or "bf16",
            r["mode"],
            r["isl"],
            r["osl"],
            str(int(float(batch))),
            _found(r"silicon_concurrency=(\d+)", origin),
            *map(str, widths),
            str(round(float(r["silicon_ttft_ms"]), 2)) if r["silicon_ttft_ms"] else "",
            str(round(float(r["silicon_tpot_ms"]), 3)),
            _found(r"measured=(\d{4}-\d\d-\d\d)", origin),
            "aiconfigurator" if "auto-gap-analysis" in origin else "inferencemax",
        )


def table_text(rows: Iterator[Row]) -> str:
    """The table as CSV, its lines in the order of their text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS, *sorted(lines(rows))])
    return out.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Remake the table from the folder of the source that is given, then the intervals from the table."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1:
        print("usage: python -m sim.validation.engine_rows_rebuild FOLDER_OF_THE_SOURCE", file=sys.stderr)
        return 2
    place = datafiles.data("serving")
    try:
        text = table_text(read_source(Path(argv[0]), SOURCE, SHA256))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    atomic.write_bytes(place / "engines.csv.gz", gzip.compress(text.encode(), 9, mtime=0))
    intervals = measured_intervals()  # reads the table that was just written
    atomic.write_text(place / "intervals.yaml", interval_text(intervals))
    print(f"{len(text.splitlines()) - 1} rows, {len(intervals)} intervals")
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
