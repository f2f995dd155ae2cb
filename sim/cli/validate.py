"""`clustersim validate`: predictions beside measurements."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime.terminal import json_text

TEXT = "how wrong are we? predict measured runs and show the error"
EXAMPLES = f"""clustersim validate
clustersim validate my_runs.yaml                   (schema: {datafiles.where("published_runs", "schema.json")})
clustersim validate {datafiles.where("published_runs", "held_out", "megatron_bridge.yaml")}
clustersim validate measured.csv                   (single-node iterations: GPUs, batch, sizes, ms)
clustersim validate --serving --summary            (latencies of inference engines, by model, chip and engine)
clustersim validate --rollouts                     (speeds of published RL systems)
clustersim validate --rollouts --summary           (their errors by family, framework and quantity; coverage)
clustersim validate --plans                        (is the plan found as fast as people's? minutes; --only NAME)
clustersim validate --summary                      (each stack predicted without its own rows; worst groups)
clustersim validate --coverage                     (how often the 50% and 80% intervals hold)
clustersim validate --html runs/errors.html        (the error page)
clustersim validate --local                        (the toy's training here, from runs/probe/chip.yaml alone)
clustersim validate --json
clustersim validate --figure errors.html"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", help="rows of your own (YAML, JSON or CSV); all published rows without it")
    parser.add_argument(
        "--serving", action="store_true", help="the published serving rows instead (data/serving/published.yaml)"
    )
    parser.add_argument(
        "--rollouts", action="store_true", help="the published rollout rows instead (data/rollouts/published.yaml)"
    )
    parser.add_argument(
        "--plans",
        action="store_true",
        help="is the plan found at least as fast as the one that people used? every shipped scenario and published "
        "run; exit code 1 when one is slower",
    )
    parser.add_argument("--only", help="with --plans: only names that contain this text")
    parser.add_argument("--out", metavar="FILE", help="with --plans: also a CSV file")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="errors by group with groups left out, and the coverage; with --serving or --rollouts those of their rows",
    )
    parser.add_argument(
        "--coverage", action="store_true", help="how often the 50%% and 80%% intervals hold a left-out row, by kind"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="the error page: left-out errors by kind, chip and year, the ten worst, coverage"
    )
    parser.add_argument(
        "--local",
        metavar="CHIP",
        nargs="?",
        const="",
        help="this machine's own toy training, predicted from minglm probe's chip file (default runs/probe/chip.yaml)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--figure", metavar="FILE", help="write the error table as a figure (.html, .svg, or .png with kaleido)"
    )
    parser.add_argument(
        "--cross",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="cross-validate: refit every scalar without the row (default for the published rows)",
    )


def main(args: argparse.Namespace) -> int:
    _read_words(args)
    if args.plans:
        return _plans(args)
    _check_flags(args)
    if args.serving:
        from sim.validation import engine_summary
        from sim.validation import serving as serving_validate

        if args.summary:
            result = engine_summary.summary()
            print(json_text(result, indent=1) if args.json else engine_summary.summary_text(result))
            return compared(result)
        report = serving_validate.validate()
        print(json_text(report, indent=1) if args.json else serving_validate.table_text(report))
        return compared(report)
    if args.rollouts:
        from sim.validation import rollout, rollout_summary

        if args.summary:
            result = rollout_summary.summary()
            print(json_text(result, indent=1) if args.json else rollout_summary.summary_text(result))
            return compared(result)
        report = rollout.validate()
        print(json_text(report, indent=1) if args.json else rollout.table_text(report))
        return compared(report)
    if args.html:
        from sim.report import errors

        written = str(errors.write(Path(args.html)))
        print(json_text({"written": written}) if args.json else f"wrote {written}")
        return 0
    if args.local is not None:
        from sim.validation import local_toy

        report = local_toy.compare(args.local or None)
        print(json_text(report, indent=1) if args.json else local_toy.text(report))
        return 0
    if args.summary or args.coverage:
        return _left_out(args)
    from sim.validation import figures, training

    result = training.run(args.files or None, cross=args.cross)
    if args.json:
        print(json_text(result, indent=1))
    else:
        print(figures.format_table(result))
    if args.figure:
        if Path(args.figure).suffix == ".svg":
            figures.static_figure(result, Path(args.figure))
        else:
            from sim.report.projection import write_figure

            write_figure(figures.figure(result), Path(args.figure))
    return compared(result)


def _read_words(args: argparse.Namespace) -> None:
    """`validate serving` and `validate rollouts` mean their flags, where no file is called so."""
    for name in ("serving", "rollouts"):
        if args.files == [name] and not Path(name).exists():
            setattr(args, name, True)
            args.files = []


def _check_flags(args: argparse.Namespace) -> None:
    shipped = ("serving", "rollouts", "summary", "coverage", "html", "local")
    unread = [name for name in shipped if getattr(args, name) not in (None, False)]
    if args.files and unread:
        raise InputError(f"{args.files[0]}: --{unread[0]} reads the shipped rows alone; leave out the file or the flag")
    for name in ("only", "out"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: belongs to --plans; add --plans, or leave it out")


def _plans(args: argparse.Namespace) -> int:
    from sim.cli._progress import progress_bar
    from sim.planner.published import compare_all, write

    with progress_bar("plans", quiet=args.json) as report:
        rows = compare_all(report, lambda name: not args.only or args.only in name)
    if not rows:
        raise InputError(f"--only {args.only!r}: no scenario or published run has it in its name; leave it out")
    if args.out:
        write(rows, Path(args.out))
    if args.json:
        print(json_text([row.to_dict() for row in rows], indent=1))
        return 1 if any(row.slower for row in rows) else 0
    print(f"{'run':40}{'their plan':40}{'step':>10}{'best':>10}{'faster':>8}  the plan found")
    for row in rows:
        if row.reason:
            print(f"{row.name[:39]:40}{row.theirs[:39]:40}{row.reason[:90]}")
            continue
        gain = row.theirs_s / row.best_s - 1
        mark = "SLOWER " if row.slower else ""
        print(
            f"{row.name[:39]:40}{row.theirs[:39]:40}{row.theirs_s:>9.4g}s{row.best_s:>9.4g}s{gain:>+8.1%}  "
            f"{mark}{row.best}"
        )
    slower = [row.name for row in rows if row.slower]
    print(
        f"\n{sum(not row.reason for row in rows)} compared, {len(slower)} slower than the people's plan"
        + (f": {', '.join(slower)}" if slower else "")
    )
    return 1 if slower else 0


def _left_out(args: argparse.Namespace) -> int:
    from sim.validation import summary

    result = summary.summary()
    if args.json:
        print(json_text(result if args.summary else result["coverage"], indent=1))
    else:
        print(summary.summary_text(result) if args.summary else summary.coverage_text(result["coverage"]))
    return 0


def compared(report: dict) -> int:
    """The exit code: 1 when no row was compared, for then no error was found because nothing was measured."""
    if report["rows"]:
        return 0
    print(
        "no row was compared: nothing is validated by this; see clustersim validate --help for the files that it reads",
        file=sys.stderr,
    )
    return 1
