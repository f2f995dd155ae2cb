"""`minglm probe`: measure this machine, and write it as a chip that `clustersim` takes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from minglm.runtime.terminal import json_text

TEXT = "measure this machine as a chip for the simulator"
EXAMPLES = """minglm probe --quick                                (under 3 minutes)
minglm probe                                        (under 10; a minute of it at full load)
torchrun --nproc-per-node 8 -m minglm probe --device npu    (with collectives between chips)
clustersim run glm5_100k_910b --chip runs/probe/chip.yaml
clustersim validate --local                         (the toy's training predicted from the probe alone)"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer shapes and a shorter long run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or npu")
    parser.add_argument(
        "--out", default=None, help="folder (default runs/probe); a probe that was stopped there goes on"
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    from minglm import datafiles
    from minglm.runtime import device as devices
    from minglm.runtime import extras
    from minglm.tools import probe

    extras.require("train")
    folder = Path(args.out) if args.out else datafiles.runs() / "probe"
    device = devices.resolve(args.device)

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    result = probe.run(folder, device, args.quick, tell)
    tell("")
    if int(os.environ.get("RANK", "0")):
        return 0  # the first process tells
    if args.json:
        print(json_text(result, indent=1))
        return 0
    best = {kind: max(row[3] for row in rows) / 1e12 for kind, rows in result["matmul"].items()}
    print(f"{result['name']} ({device}), {result['date']}")
    print("best matmul     " + ", ".join(f"{kind} {rate:.4g} TFLOPS" for kind, rate in best.items()))
    print(f"held            {result['sustained']['share']:.0%} of it in a long run")
    print(f"memory copy     {result['copy']['bytes_per_s'] / 1e9:.1f} GB/s")
    print(f"an operation    {1e6 * result['launch']['forward_s']:.1f} us to issue")
    print(f"storage         {result['storage']['bytes_per_s'] / 1e6:.0f} MB/s")
    print(
        f"collectives     {len(result['collectives'])} readings" + ("" if result["collectives"] else " (one process)")
    )
    print(f"written         {folder / 'chip.yaml'}: clustersim run ... --chip {folder / 'chip.yaml'}")
    return 0
