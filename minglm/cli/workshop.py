"""`minglm workshop`: what an instructor needs around a class."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime.arguments import COUNT, number
from minglm.runtime.terminal import json_text

TEXT = "for instructors: check the machine, build exercises and checkpoints, collect results, measure"
EXAMPLES = """minglm workshop preflight
minglm workshop build
minglm workshop checkpoints
minglm workshop collect runs/workshop/results
minglm workshop collect --page class.html
minglm workshop timing --write
minglm workshop kernels --count 30
minglm workshop slides
minglm workshop wheelhouse
minglm workshop contents
minglm workshop polls"""


def add(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    p = sub.add_parser("preflight", help="one screen: green, or what to do")
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("build", help="write exercise and solution notebooks from their source")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a file is not what the source gives"
    )
    p = sub.add_parser("collect", help="a table of who has solved what")
    p.add_argument("folder", nargs="?", help="folder of result files (default MINGLM_RESULTS or runs/workshop/results)")
    p.add_argument("--json", action="store_true")
    p.add_argument("--page", type=Path, metavar="FILE", help="write a page for the teacher, anew until Ctrl-C")
    p.add_argument(
        "--every", type=number(minimum=0), default=5.0, help="seconds between two pages, 0 for one page (default 5)"
    )
    p = sub.add_parser("checkpoints", help="train the small results that later notebooks can start from")
    p.add_argument("--out", help="folder (default runs/workshop/checkpoints)")
    p.add_argument("--verify", action="store_true", help="only compare the files with their hashes")
    p = sub.add_parser("timing", help="run every notebook and measure it")
    p.add_argument("--full", action="store_true", help="full length; default is smoke mode")
    p.add_argument(
        "--book", action="store_true", help="full length, as the book built last (`make book`) took; runs nothing"
    )
    p.add_argument("--only", help="only notebooks whose path holds this word")
    p.add_argument(
        "--write", action="store_true", help="write notebooks/workshop/timing.md, or timing_full.md at full length"
    )
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("contents", help="the table of all notebooks: minutes, prerequisites, one sentence each")
    p.add_argument(
        "--write",
        metavar="FILE",
        help="put it into a Markdown file between its <!-- notebooks --> and <!-- /notebooks --> lines",
    )
    p = sub.add_parser("polls", help="every question that a notebook asks before it answers, for a show of hands")
    p.add_argument("--write", action="store_true", help="write notebooks/workshop/polls.md")
    p = sub.add_parser("kernels", help="start so many kernels at once, each with a model, and measure their memory")
    p.add_argument("--count", type=COUNT, default=30)
    p.add_argument("--model", default="mini", help="named size that each kernel trains for a few steps")
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("wheelhouse", help="download every package of the course, for laptops without a network")
    p.add_argument("--out", type=Path, help="folder (default runs/wheelhouse)")
    p.add_argument(
        "--extras", default="train,lab,dist", help="extras of pyproject.toml, with commas (default train,lab,dist)"
    )
    p.add_argument("--platform", help="of the laptops, as pip calls it, such as win_amd64 (default this machine's)")
    p.add_argument("--python", help="version on the laptops, such as 3.12 (default this one)")
    p = sub.add_parser("slides", help="slides of a notebook, one file that opens offline")
    p.add_argument("notebooks", nargs="*", help="notebooks (default: learn/00 to 05 and scale/04, the half day)")
    p.add_argument("--all", action="store_true", help="every notebook of the course")
    p.add_argument(
        "--book",
        action="store_true",
        help="with the full-length results of the book built last, in seconds; default runs each in smoke mode",
    )
    p.add_argument("--deck", action="store_true", help="the half day as slides proper, with notes for the speaker")
    p.add_argument("--out", help="folder (default runs/workshop/slides)")


def main(args: argparse.Namespace) -> int:
    return globals()[f"_{args.action}"](args)


def _preflight(args: argparse.Namespace) -> int:

    from minglm.course.workshop import preflight

    checks = preflight.examine()
    ready = all(c.state != "problem" for c in checks)
    print(
        json_text(preflight.as_json(checks), indent=1) if args.json else preflight.report(checks, sys.stdout.isatty())
    )
    return 0 if ready else 1


def _build(args: argparse.Namespace) -> int:
    from minglm.course.workshop import generator

    changed = generator.build(check_only=args.check)
    for path in changed:
        print(f"{datafiles.shown(path)}: {'differs from its source' if args.check else 'written'}")
    if not changed:
        print(f"{2 * len(generator.sources())} notebooks are what their sources give")
    return 1 if args.check and changed else 0


def _collect(args: argparse.Namespace) -> int:
    from minglm.course.workshop import checking, results, results_page

    where, keys = Path(args.folder) if args.folder else None, list(checking.all_exercises())
    if args.page and args.json:
        raise InputError("--page writes a page and --json prints; keep one")
    if args.page:
        print(f"open {args.page} in a browser" + ("; it loads itself again, Ctrl-C ends it" if args.every else ""))
        with contextlib.suppress(KeyboardInterrupt):
            results_page.keep_writing(where, keys, args.page, args.every)
        return 0
    books = results.collect(where)
    print(json_text(books, indent=1) if args.json else results.table(books, keys))
    return 0


def _checkpoints(args: argparse.Namespace) -> int:
    from minglm.course.workshop import checkpoints

    folder = Path(args.out) if args.out else checkpoints.kept()
    print(checkpoints.report(checkpoints.verify(folder) if args.verify else checkpoints.make(folder), folder))
    return 0


def _timing(args: argparse.Namespace) -> int:

    from minglm.course.workshop import timing

    rows = (
        timing.from_book(datafiles.runs("book"), args.only)
        if args.book
        else timing.measure(full=args.full, only=args.only)
    )
    print(json_text(rows, indent=1) if args.json else timing.table(rows))
    if args.write:
        print(f"{timing.write(rows, args.full or args.book)}: written", file=sys.stderr)
    return 1 if any(r["error"] for r in rows) else 0


def _contents(args: argparse.Namespace) -> int:
    from minglm.course.workshop import contents

    if args.write:
        print(f"{args.write}: {'written' if contents.write(Path(args.write)) else 'in step already'}")
    else:
        print(contents.table())
    return 0


def _polls(args: argparse.Namespace) -> int:
    from minglm.course.workshop import polls

    if args.write:
        print(f"{datafiles.shown(polls.PAGE)}: {'written' if polls.write() else 'in step already'}")
    else:
        print(polls.page())
    return 0


def _kernels(args: argparse.Namespace) -> int:

    from minglm.course.workshop import kernels

    result = kernels.measure(args.count, args.model)
    print(json_text(result, indent=1) if args.json else kernels.report(result))
    return 0 if result["failed"] == 0 else 1


def _wheelhouse(args: argparse.Namespace) -> int:
    from minglm.course.workshop import wheelhouse

    folder = args.out or datafiles.runs("wheelhouse")
    extras = [e.strip() for e in args.extras.split(",") if e.strip()]
    files = wheelhouse.build(folder, extras, args.platform, args.python)
    size = sum(f.stat().st_size for f in files)
    print(f"{datafiles.shown(folder)}: {len(files)} packages, {size / 1e6:,.0f} MB, complete without a network")
    return 0


def _slides(args: argparse.Namespace) -> int:
    from minglm.course.workshop import deck, slides, timing

    if args.deck and (args.notebooks or args.all or args.book):
        raise InputError("--deck: makes its own slides; leave notebooks, --all and --book out")
    if args.deck:
        print(deck.write(Path(args.out) if args.out else datafiles.runs("workshop", "slides")))
        return 0
    chosen = [Path(n) for n in args.notebooks] or (
        timing.notebooks() if args.all else [datafiles.notebooks(f"{n}.ipynb") for n in slides.DEFAULT]
    )
    if args.book:
        chosen = [slides.executed(path) for path in chosen]
    for path in slides.export(chosen, Path(args.out) if args.out else None, execute=not args.book):
        print(path)
    return 0
