"""`clustersim report`: one self-contained page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.errors import InputError
from minglm.runtime.terminal import json_text

TEXT = "write one self-contained HTML page for a run folder"
EXAMPLES = """clustersim run glm5_100k_910b && clustersim report runs/glm5_100k_910b
clustersim report runs/demo"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a folder of `clustersim run`, or of `minglm demo`")
    parser.add_argument("--json", action="store_true", help="for machines: the path of the page")


def main(args: argparse.Namespace) -> int:
    from sim.base.documents import read_document

    folder = Path(args.folder)
    if not folder.is_dir():
        raise InputError(f"{str(folder)[:100]}: no such folder; make one with clustersim run or minglm demo")
    if (folder / "demo.json").exists():
        from sim.report.demo import build

        page = build(folder)
    else:
        if not (folder / "metrics.json").exists():
            raise InputError(f"{folder}: holds no metrics.json; make it with clustersim run SCENARIO --out {folder}")
        from sim.report.projection import write_page

        metrics = read_document(folder / "metrics.json")
        if not isinstance(metrics, dict) or "step" not in metrics or "days" not in metrics:
            raise InputError(
                f"{folder}/metrics.json: not a projection; make it again with clustersim run SCENARIO --out {folder}"
            )
        page = write_page(metrics, folder / "report.html")
    print(json_text({"report": str(page)}) if args.json else f"written: {page}")
    return 0
