"""`clustersim normal`: is my number normal?"""

from __future__ import annotations

import argparse
import math

from minglm.errors import InputError
from minglm.runtime.terminal import json_text
from sim.base.units import parse, show, whole
from sim.cli._progress import elapsed
from sim.cli._scenario import load, scenario_arguments

TEXT = "is my number normal? a measured speed beside its prediction, published runs like it, and what would explain it"
EXAMPLES = """clustersim normal llama3_405b_16k_h100 --measured tflops=400
clustersim normal glm5_100k_910b --measured step_s=5.2
clustersim normal my.yaml --measured tokens_per_s_per_chip=140 --set recompute=full
clustersim normal my.yaml --measured mfu=31% --json
clustersim normal serving_glm5_h200 --measured tpot=30ms"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser)
    parser.add_argument(
        "--measured",
        metavar="QUANTITY=VALUE",
        required=True,
        help="what was measured: step_s, tokens_per_s, tokens_per_s_per_chip, tflops (model FLOPs) or mfu; of a "
        "serving scenario tpot, the time from one output token to the next",
    )


def main(args: argparse.Namespace) -> int:
    from sim.planner.normal import QUANTITIES, normal

    quantity, sign, value = args.measured.partition("=")
    quantity = quantity.strip().lower()
    if quantity == "tpot" and value.strip():
        return _tpot(args, value)
    if not sign or not value.strip():
        raise InputError(f"--measured {args.measured!r}: must be QUANTITY=VALUE, such as {next(iter(QUANTITIES))}=4.1")
    kind = {"step_s": "time", "mfu": "ratio"}.get(quantity, "count")
    scenario = load(args)
    with elapsed("draws", quiet=args.json):
        result = normal(scenario, quantity, parse(value, kind, f"--measured {quantity}", low=-math.inf))
    print(json_text(result, indent=1) if args.json else text(scenario.name, result))
    return 0 if result["normal"] else 1


def _tpot(args: argparse.Namespace, value: str) -> int:
    """Of a serving scenario."""
    from sim.planner.normal_serving import normal

    scenario = _serving(args)
    result = normal(scenario, parse(value, "time", "--measured tpot", low=-math.inf))
    print(json_text(result, indent=1) if args.json else tpot_text(scenario["name"], result))
    return 0 if result["normal"] else 1


def _serving(args: argparse.Namespace) -> dict:
    """The serving scenario with the command line's changes."""
    from sim.scenario.file import set_value
    from sim.serving.scenario import load as load_serving

    for name in ("chip", "seed"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name} {getattr(args, name)}: a serving scenario has no {name} of its own to change; "
                "use --cluster, or --set decode.KEY=VALUE"
            )
    scenario = load_serving(args.scenario)
    if args.model is not None:
        scenario["model"] = args.model
    if args.cluster is not None:
        scenario["decode"] = {**scenario["decode"], "cluster": args.cluster}
    if args.chips is not None:
        scenario["decode"] = {**scenario["decode"], "chips": whole(args.chips, "--chips")}
    for change in args.set:
        scenario = set_value(scenario, change)
    return scenario


def tpot_text(name: str, r: dict) -> str:
    """The answer about a serving scenario for a terminal."""
    own, low, high = (show(seconds, "time") for seconds in (r["predicted"], *r["interval"]))
    verdict = "inside" if r["normal"] else "outside"
    requests, groups = r["in_flight"]["requests_per_group"], r["in_flight"]["groups"]
    lines = [
        name,
        "",
        f"{'measured':16}{show(r['measured'], 'time')} from one output token to the next",
        f"{'predicted':16}{own} with {requests:.1f} requests in flight in each of {groups} groups; "
        f"{r['held']:.0%} of measured engines lie at {low} to {high}",
        f"{'':16}the measured figure is {verdict}, faster than {r['faster_than']:.0%} of them",
        "",
        f"{'measured engines like it':64}{'chip':>8}{'measured':>12}{'predicted':>12}{'error':>8}",
    ]
    lines += [
        f"{x['id'][:63]:64}{x['chip'][:8]:>8}{show(x['measured'], 'time'):>12}{show(x['predicted'], 'time'):>12}"
        f"{x['error']:>+8.0%}  ({x['kind']})"
        for x in r["nearest"]
    ]
    return "\n".join([*lines, *_causes(r["causes"])])


def text(name: str, r: dict) -> str:
    """The answer for a terminal."""
    low, high = r["interval"]
    verdict = "inside" if r["normal"] else "outside"
    lines = [
        name,
        "",
        f"{'measured':16}{r['measured']:.4g} {r['quantity']}: a step of {r['step_s']['measured']:.4g} s",
        f"{'predicted':16}{r['predicted']:.4g}, 90% of draws {low:.4g} to {high:.4g}; the measured figure is "
        f"{verdict}, faster than {r['faster_than']:.0%} of the draws",
        *(["more than the chip's peak: no run is that fast, FLOPs or tokens were counted otherwise"] * r["above_peak"]),
        "",
        f"{'published runs like it':36}{'chip':>8}{'measured':>12}{'predicted':>12}{'error':>8}  quantity",
    ]
    lines += [
        f"{x['id'][:35]:36}{x['chip'][:8]:>8}{x['measured']:>12.4g}{x['predicted']:>12.4g}{x['error']:>+8.0%}  "
        f"{x['quantity']} ({x['kind']})"
        for x in r["nearest"]
    ]
    return "\n".join([*lines, *_causes(r["causes"])])


def _causes(causes: list[dict]) -> list[str]:
    """The ranked causes, a line each."""
    lines = ["", "what would explain the difference, alone", f"{'cause':56}{'needs':>10}{'at most':>10}  unit"]
    for c in causes:
        needs = f"{c['needs']:.3g}" if c["needs"] is not None else "-"
        covers = "" if c["explains"] or c["covers"] <= 0 else f"   covers {c['covers']:.0%} of it"
        lines.append(f"{c['name'][:55]:56}{needs:>10}{c['most']:>10.3g}  {c['unit']}{covers}")
    return lines
