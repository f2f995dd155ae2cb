"""`clustersim normal`: is my number normal?"""

from __future__ import annotations

import argparse

from minglm.errors import InputError
from minglm.runtime.terminal import json_text
from sim.base.units import whole
from sim.cli._progress import elapsed
from sim.cli._scenario import load, scenario_arguments

TEXT = "is my number normal? a measured speed beside its prediction, published runs like it, and what would explain it"
EXAMPLES = """clustersim normal llama3_405b_16k_h100 --measured tflops=400
clustersim normal glm5_100k_910b --measured step_s=5.2
clustersim normal my.yaml --measured tokens_per_s_per_chip=140 --set recompute=full
clustersim normal my.yaml --measured mfu=31% --json
clustersim normal --model llama3_70b --chip h100 --chips 512 --set plan.tp=8 --measured mfu=38%
clustersim normal serving_glm5_h200 --measured tpot=30ms"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser, required=False)
    parser.add_argument(
        "--measured",
        metavar="QUANTITY=VALUE",
        required=True,
        help="what was measured: step_s, tokens_per_s, tokens_per_s_per_chip, tflops (model FLOPs) or mfu; of a "
        "serving scenario tpot, the time from one output token to the next",
    )


def main(args: argparse.Namespace) -> int:
    from sim.planner import normal_serving, normal_words
    from sim.planner.normal import normal

    quantity, measured = normal_words.read_measured(args.measured)
    if quantity == normal_words.TPOT:
        scenario = _serving(args)
        result = normal_serving.normal(scenario, measured)
        words = normal_words.tpot_text(scenario["name"], result)
    else:
        s = load(args)
        with elapsed("draws", quiet=args.json):
            result = normal(s, quantity, measured)
        words = normal_words.text(normal_words.title(s), result)
    print(json_text(result, indent=1) if args.json else words)
    return 0 if result["normal"] else 1


def _serving(args: argparse.Namespace) -> dict:
    """The serving scenario with the command line's changes."""
    from sim.planner.normal_serving import load_changed

    for name in ("chip", "seed"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name} {getattr(args, name)}: a serving scenario has no {name} of its own to change; "
                "use --cluster, or --set decode.KEY=VALUE"
            )
    if args.scenario is None:
        raise InputError("--measured tpot: is of a serving scenario; name one, such as serving_glm5_h200")
    chips = None if args.chips is None else whole(args.chips, "--chips")
    replaced = {"model": args.model, "decode.cluster": args.cluster, "decode.chips": chips}
    return load_changed(args.scenario, args.set, replaced)
