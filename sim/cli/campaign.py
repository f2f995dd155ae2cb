"""`clustersim campaign`: months of training with failures."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text
from sim.cli._progress import elapsed
from sim.cli._scenario import load, scenario_arguments

TEXT = "months of training: goodput, days, lost hours by cause, with intervals"
EXAMPLES = """clustersim campaign glm5_100k_910b
clustersim campaign glm5_100k_910b --seeds 200
clustersim campaign glm5_100k_910b --horizon '90 days' --set failures.level=high --json
clustersim campaign llama3_405b_16k_h100 --set checkpoint.kind=memory"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser)
    parser.add_argument("--seeds", type=COUNT, help="campaigns that are drawn (default: the scenario's, 20)")
    parser.add_argument("--horizon", help="stop after this time, such as '90 days'")
    parser.add_argument(
        "--trace", metavar="FILE", help="write the campaign's timeline as a Perfetto trace (Chrome JSON)"
    )


def main(args: argparse.Namespace) -> int:
    from sim.spec.phases import describe as describe_phases
    from sim.study.answer import campaign_draws, figures, point, simulated_with
    from sim.study.campaign import campaign_input, campaign_segments
    from sim.study.monte_carlo import draws, figures_with_intervals
    from sim.study.projection import campaign_facts
    from sim.trace.perfetto import write_campaign
    from sim.training.campaign import run

    if args.horizon:
        args.set.append(f"campaign.horizon={json.dumps(args.horizon)}")
    if args.seeds is not None:
        args.set.append(f"campaign.seeds={args.seeds}")
    s = load(args)
    segments = campaign_segments(s)
    inp = campaign_input(s, segments)
    with elapsed("campaigns", quiet=args.json):
        simulated = simulated_with(s, point(s), segments, campaign_draws(s, segments, to_the_end=False))
    result = simulated.campaign
    if args.trace:
        write_campaign(run(inp, seed=result.seed), Path(args.trace))
    answer = figures_with_intervals(simulated, draws(s, simulated=simulated)) if result.finished else figures(simulated)
    facts = answer | campaign_facts(s, result, segments)
    facts["interval_80"] = {
        k: [simulated.share(k, 0.1), simulated.share(k, 0.5), simulated.share(k, 0.9)]
        for k in ("days", "goodput", "interruptions")
    }
    facts["draws"], facts["name"], facts["cluster_chips"] = len(simulated.draws), s.name, s.cluster.num_chips
    facts["checkpoint"], facts["recovery"] = asdict(inp.checkpoint), asdict(inp.recovery)
    facts["failures_per_chip_day"] = inp.failures.per_chip_day
    if args.json:
        print(json_text(facts, indent=1))
    else:
        if s.phases:
            print(describe_phases(s.phases), end="\n\n")
        print(text(facts))
    return 0 if result.finished or s.horizon_s is not None else 1


def _interval(f: dict) -> list[str]:
    """The line that no luck explains: of a campaign that its horizon stops there is none."""
    if "intervals" not in f:
        return []
    low, high = (f["intervals"]["days"][end] for end in ("p5", "p95"))
    return [f"{'':38}   with every uncertain input and the simulator's own error 90%: {low:.4g}–{high:.4g}"]


def text(f: dict) -> str:
    """The campaign as a table."""
    from sim.report import run_phases

    low, _, high = f["interval_80"]["days"]
    g, (fewest, usual, most) = f["interval_80"]["goodput"], f["interval_80"]["interruptions"]
    mtbf = "never" if f["mtbf_hours"] is None or math.isinf(f["mtbf_hours"]) else f"{f['mtbf_hours'] * 60:,.0f} min"
    lines = [
        f["name"],
        "",
        f"{'days':28}{f['days']:>10.2f}   the median of {f['draws']} campaigns; by the luck of their failures alone "
        f"80%: {low:.2f}–{high:.2f}",
        *_interval(f),
        f"{'days without any loss':28}{f['ideal_days']:>10.2f}",
        f"{'goodput':28}{f['goodput']:>10.1%}   80%: {g[0]:.1%}–{g[2]:.1%}; Daly's formula without spares and slow "
        f"servers: {f['expected_goodput']:.1%}",
        f"{'interruptions':28}{usual:>10,.0f}   80%: {fewest:,.0f}–{most:,.0f}; one per {mtbf} "
        f"({f['failures_per_chip_day'] * 1000:.3f} per 1,000 chips and day; a range of GPU clusters, none is published "
        "for Ascend)",
        f"{'checkpoint every':28}{(f['checkpoint_interval_s'] or 0):>9.0f}s   {f['checkpoint']['kind']}, "
        f"{f['checkpoint']['bytes'] / 1e12:.1f} TB",
        f"{'chip-hours held':28}{f['chip_hours']:>10,.0f}   {f['cluster_chips']:,} chips, spares included",
        "",
        "lost hours by cause",
    ]
    lost = [
        f"  {cause:26}{hours:>10.1f}"
        for cause, hours in sorted(f["lost_hours"].items(), key=lambda item: -item[1])
        if hours > 0.05
    ]
    lines += lost or ["  none above three minutes"]
    lines += ["", *run_phases.text(f)]
    if not f["finished"]:
        lines += ["", "not finished within the horizon"]
    top = list(f["failures"].items())[:6]
    if top:
        lines += [
            "",
            "failures: " + ", ".join(f"{name} {n}" for name, n in top) + (", …" if len(f["failures"]) > 6 else ""),
        ]
    return "\n".join(lines)
