"""`clustersim compare`: the same training run on several chips, and the price at which one breaks even with another."""

from __future__ import annotations

import argparse

from minglm.errors import InputError
from minglm.runtime.terminal import json_text
from sim.base.units import show
from sim.cli._progress import progress_bar
from sim.cli._question import question_arguments, question_options
from sim.cli._scenario import name_or_mapping
from sim.planner.row_words import dollars, price, with_interval

TEXT = "the same run on several chips: time, chips, money, energy, and the break-even price"
EXAMPLES = """clustersim compare --model glm5 --chips 8192 --tokens 28.5T
clustersim compare --model llama3_70b --chips 1024 --chip 910b,h100,b200 --baseline h100 --tokens 15T
clustersim compare --model glm5 --chips 100000 --batch-tokens 64M --tokens 28.5T --json"""


def add(parser: argparse.ArgumentParser) -> None:
    from sim.planner.compare import CHIPS

    question_arguments(parser)
    parser.add_argument(
        "--chips",
        default="8192",
        help="chips of the cluster, the same number of each; a plan may use fewer (default 8192)",
    )
    parser.add_argument(
        "--chip", default=",".join(CHIPS), help=f"names of chips, comma-separated (default {','.join(CHIPS)})"
    )
    parser.add_argument(
        "--baseline", help="the chip whose cost the others must meet (default h100, or the first named)"
    )


def main(args: argparse.Namespace) -> int:
    from sim.planner.compare import compare

    names = [n.strip() for n in args.chip.split(",") if n.strip()]
    if not names:
        raise InputError("--chip is empty: name at least one chip, such as --chip 910b,h100")
    baseline = args.baseline or ("h100" if "h100" in names else names[0])
    model = name_or_mapping(args.model, "--model")
    with progress_bar("chips", quiet=args.json) as report:
        result = compare(model, args.chips, names, baseline, report, **question_options(args))
    print(json_text(result, indent=1) if args.json else text(result, args))
    return 0 if any("days" in r for r in result["rows"]) else 1


def text(result: dict, args: argparse.Namespace) -> str:
    """The table for a terminal, with 90% intervals in brackets."""
    lines = [
        f"{args.model}, {show(result['tokens'], 'count')} tokens, {args.chips} of each chip; cost for all of them, "
        "those that the best plan leaves as spares too",
        "",
        f"{'chip':10}{'plan':44}{'chips':>8}{'days':>21}{'MFU':>7}{'to rent':>30}{'to own':>30}{'GWh':>8}"
        f"{'break-even':>27}",
    ]
    for r in result["rows"]:
        if "days" not in r:
            lines.append(f"{r['chip']:10}{r['reason']}")
            continue

        rent, own = (with_interval(r, k, dollars) if k in r else "price unknown" for k in ("rent_usd", "own_usd"))
        has_even = r["break_even_usd_per_hour"] is not None
        even = with_interval(r, "break_even_usd_per_hour", price) + "/h" if has_even else "-"
        lines.append(
            f"{r['chip']:10}{r['plan'][:43]:44}{r['chips']:>8,}{with_interval(r, 'days'):>21}{r['mfu']:>7.1%}"
            f"{rent:>30}{own:>30}{r['energy_kwh'] / 1e6:>8.3g}{even:>27}"
        )
    lines += [
        "",
        f"break-even: the rent of a chip-hour at which the run costs what it does on {result['against']}; in brackets "
        "90% of draws of every uncertain input and of the simulator's own error",
        "",
    ]
    for r in result["rows"]:
        for key, name in (("rent_usd_per_hour", "rent"), ("system_price_usd", "system")):
            if r.get(key):
                lines.append(
                    f"  {r['chip']} {name} {show(r[key]['value'], 'money')} [{r[key]['confidence']}] {r[key]['source']}"
                )
    return "\n".join([*lines, "", *(f"  {note}" for note in result["notes"])])
