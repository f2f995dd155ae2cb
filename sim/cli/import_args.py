"""`clustersim import-args`: the arguments of another tool's launch as a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text

TEXT = "a launch of Megatron, NeMo, MindFormers, DeepSpeed, torchtitan or a Trainer as a scenario, nothing left unsaid"
EXAMPLES = """clustersim import-args pretrain_gpt.sh --out mine.yaml        (then: clustersim run mine.yaml)
clustersim import-args pretrain_gpt.sh --define NNODES=16 --cluster dgx_h200
clustersim import-args finetune_llama3_8b.yaml               (MindFormers)
clustersim import-args ds_config.json --model llama3_8b --set seq=4096
clustersim import-args llama3_70b.toml --chips 256 --json    (torchtitan)
clustersim import-args llama3_full_sft.yaml --chips 8        (LLaMA-Factory, Axolotl)"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a launch script, or a file of arguments")
    parser.add_argument(
        "--format",
        choices=("megatron", "mindformers", "deepspeed", "torchtitan", "nemo", "trainer"),
        help="whose arguments they are (default: by the file)",
    )
    parser.add_argument("--model", help="where the file names none: a name, a Hugging Face config.json, a YAML")
    parser.add_argument("--cluster", help="a name in data/clusters (default: dgx_h100; MindFormers: atlas_800t_a2)")
    parser.add_argument("--chips", type=COUNT, help="where the file does not say how many")
    parser.add_argument(
        "--define",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable that a script takes from outside",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ARGUMENT", help="pass over an argument that is refused"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one value, such as plan.tp=4"
    )
    parser.add_argument("--out", metavar="FILE", help="write the scenario there (default: print it)")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    from minglm import atomic
    from sim.scenario.launch.read import as_yaml, read_launch, scenario_of

    launch = read_launch(args.file, args.format, args.define, args.ignore)
    document = scenario_of(
        launch, Path(args.file).stem, model=args.model, cluster=args.cluster, chips=args.chips, changes=args.set
    )
    text = as_yaml(document, launch)
    if args.out:
        atomic.write_text(Path(args.out), text)
    if args.json:
        print(json_text({"scenario": document, "mapped": launch.mapped, "ignored": launch.ignored}, indent=1))
    elif args.out:
        print(
            f"{args.out}: {len(launch.mapped)} arguments mapped, {len(launch.ignored)} ignored "
            f"(clustersim run {args.out})"
        )
    else:
        print(text, end="")
    return 0
