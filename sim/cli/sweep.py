"""`clustersim sweep`: a scenario over a grid of fields, or over what is uncertain about it."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError
from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text
from minglm.settings import uncommented
from sim.base import parallel_map
from sim.base.documents import parse_text
from sim.base.units import show
from sim.cli._progress import progress_bar
from sim.cli._scenario import load, load_open, scenario_arguments

TEXT = "vary any field of a scenario: a grid, or Monte Carlo with intervals and a tornado"
EXAMPLES = """clustersim sweep glm5_100k_910b --vary plan.tp=[4,8] --vary global_tokens=[32M,64M,128M] --out runs/tp.csv
clustersim sweep glm5_100k_910b --samples 10000
clustersim sweep glm5_100k_910b --samples 2000 --vary "tokens={low: 27T, mid: 28.5T, high: 30T}" \
--vary "pue={low: 1.1, mid: 1.2, high: 1.4}"
clustersim sweep llama3_405b_16k_h100 --vary chips=[8192,16384] --set plan.dp=null --engine ray"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser)
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="a list such as [4, 8] (grid), or with --samples also {low, mid, high} or {normal: [mean, sd]}; may be "
        "repeated",
    )
    parser.add_argument(
        "--samples", type=COUNT, help="Monte Carlo with so many samples over the facts' ranges and --vary"
    )
    parser.add_argument(
        "--no-hardware-facts", action="store_true", help="with --samples: hold the hardware facts, draw --vary alone"
    )
    parser.add_argument("--engine", default="local", help="local (this machine's cores) | ray")
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="with --engine ray: the cluster (default: RAY_ADDRESS, else one on this machine)",
    )
    parser.add_argument("--workers", type=COUNT, help="processes (default: all cores)")
    parser.add_argument("--out", help="grid: the .csv (gone on with when it exists) or .parquet; Monte Carlo: a .json")


def varied_fields(args: argparse.Namespace) -> dict:
    """--vary as {field: values}; a top-level price may be named without its section."""
    from sim.scenario.fields import PRICES

    fields = {}
    for text in args.vary:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name:
            raise InputError(f"--vary {text!r}: must be FIELD=VALUES, such as --vary plan.tp=[4,8]")
        if name in PRICES:
            name = f"prices.{name}"
        values = parse_text(uncommented(value), f"--vary {name}")
        fields[name] = values if isinstance(values, (list, dict)) else [values]
    return fields


def main(args: argparse.Namespace) -> int:
    parallel_map.check(args.engine)
    if args.ray_address and args.engine != "ray":
        raise InputError(f"--ray-address {args.ray_address}: needs --engine ray")
    result: dict | list[dict]
    result, table = _monte_carlo(args) if args.samples is not None else _grid(args)
    reasons = [row["reason"] for row in result] if isinstance(result, list) else []
    if reasons and all(reasons) and len(set(reasons)) == 1:  # nothing that varies is at fault: the scenario is
        raise InputError(reasons[0])
    print(json_text(result, indent=1) if args.json else table)
    return 1 if reasons and all(reasons) else 0


def _monte_carlo(args: argparse.Namespace) -> tuple[dict, str]:
    from sim.study.monte_carlo import monte_carlo

    fields, scenario = varied_fields(args), load(args)
    with progress_bar("samples", quiet=args.json) as report:
        done = 0

        def count(samples: int) -> None:
            nonlocal done
            done += samples
            report(done, args.samples)

        result = monte_carlo(
            scenario,
            args.samples,
            fields,
            facts=not args.no_hardware_facts,
            seed=scenario.seed,
            engine=args.engine,
            workers=args.workers,
            progress=count,
            address=args.ray_address,
        )
    if args.out:
        atomic.write_json(args.out, result, ensure_ascii=False)
    return result, _uncertain(result)


def _grid(args: argparse.Namespace) -> tuple[list[dict], str]:
    from sim.planner.planner import complete
    from sim.study.sweep import grid, sweep

    fields, document = varied_fields(args), load_open(args)
    size = len(grid(fields))
    with progress_bar("points", quiet=args.json) as report:
        done = 0

        def count(points: int) -> None:
            nonlocal done
            done += points
            report(done, size)

        rows = sweep(
            document,
            fields,
            Path(args.out) if args.out else None,
            engine=args.engine,
            workers=args.workers,
            progress=count,
            address=args.ray_address,
            complete=complete,
        )
    return rows, _table(rows, list(fields))


def _table(rows: list[dict], fields: list[str]) -> str:
    lines = [
        "".join(f"{f[-22:]:>24}" for f in fields)
        + f"{'step':>10}{'tokens/s':>12}{'GiB':>8}{'days':>9}{'rent':>11}{'own':>11}"
    ]
    for r in rows:
        point = "".join(f"{str(r[f])[:22]:>24}" for f in fields)
        if r["reason"]:
            lines.append(f"{point}   {r['reason']}")
        else:
            money = "".join(
                f"{show(r[k], 'money') if r.get(k) not in (None, '') else '-':>11}" for k in ("rent_usd", "own_usd")
            )
            lines.append(
                f"{point}{r['step_s']:>9.3g}s{r['tokens_per_s']:>12,.0f}{r['memory_gib']:>8.1f}{r['days']:>9.3g}{money}"
            )
    return "\n".join(lines)


def _uncertain(r: dict) -> str:
    lines = [
        f"{r['name']}: {r['plan']}, {r['samples']:,} samples"
        + (f", {r['refused']:,} could not run ({r['reason']})" if r["refused"] else ""),
        "",
        f"{'':16}{'5%':>14}{'median':>14}{'95%':>14}{'centre':>14}",
    ]
    for name, i in r["intervals"].items():
        columns = (i["p5"], i["p50"], i["p95"], r["centre"].get(name, float("nan")))
        lines.append(f"{name:16}" + "".join(f"{value:>14,.4g}" for value in columns))
    lines += ["", f"{'what moves the days':32}{'at its 5%':>12}{'at its 95%':>12}{'swing':>9}"]
    for t in r["tornado"][:12]:
        ends = "".join(f"{t[k]:>12.4g}" if k in t else f"{'-':>12}" for k in ("low_days", "high_days"))
        lines.append(f"{t['name'][:31]:32}{ends}{t['days_swing']:>9.3g}")
    return "\n".join(lines)
