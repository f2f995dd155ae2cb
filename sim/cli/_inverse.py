"""`clustersim plan` turned round: budgets, deadlines, growth, failures, the cheapest of several machines."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minglm import atomic
from minglm.errors import InputError
from minglm.runtime.terminal import json_text

if TYPE_CHECKING:
    from sim.planner.question import Question

SEVERAL = ("cheapest", "break-even")  # questions about more than one machine


def is_inverse(args: argparse.Namespace) -> bool:
    """Whether anything but the best plan is asked for."""
    return args.ask != "plan" or args.budget is not None or args.deadline is not None


def asked(args: argparse.Namespace, q: Question) -> int:
    """Answer what --ask, --budget and --deadline ask of a question."""
    from sim.planner import inverse, inverse_words
    from sim.planner.planner import solved
    from sim.scenario.training import resolve
    from sim.study.answer import simulate

    budget, deadline = _terms(args)
    if args.ask == "growth":
        return _told(args, inverse.growth(q), inverse_words.growth_text)
    if deadline is None:
        raise InputError(f"--{'budget' if budget else 'ask ' + args.ask}: needs a deadline; add --deadline '90 days'")
    if args.ask == "failures":
        simulated = simulate(resolve(solved(q)))
        return _told(args, inverse.failures(simulated.scenario, simulated, deadline), inverse_words.failures_text)
    if budget is not None:
        return _told(args, inverse.buys(q, budget, deadline), inverse_words.buys_text)
    return _told(args, inverse.within(q, deadline), inverse_words.within_text)


def _terms(args: argparse.Namespace) -> tuple[float | None, float | None]:
    """--budget and --deadline, read; one that --ask has no use for is refused."""
    unused = {"growth": ("budget", "deadline"), "break-even": ("budget", "deadline")}.get(args.ask, ())
    for name in unused:
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: --ask {args.ask} does not use it; leave it out")
    if args.ask in ("failures", "cheapest") and args.budget is not None:
        raise InputError(f"--budget: --ask {args.ask} does not use it; leave it out, or leave out --ask")
    from sim.planner import inverse

    return (
        None if args.budget is None else inverse.budget_usd(args.budget, "--budget"),
        None if args.deadline is None else inverse.deadline_s(args.deadline, "--deadline"),
    )


def machines(args: argparse.Namespace, asked_of: Callable[..., Question]) -> int:
    """Answer a question about several machines: all that --chip and --cluster name, separated by commas.

    asked_of: the question on one machine, with its chip and cluster as keywords.
    """
    from sim.planner import inverse, inverse_words

    _, deadline = _terms(args)
    chips, clusters = (
        [n.strip() for n in str(getattr(args, key) or "").split(",") if n.strip()] for key in ("chip", "cluster")
    )
    named = [*({"chip": n} for n in chips), *({"cluster": n} for n in clusters)]
    if len(chips) and len(clusters) == 1:  # one kind of node with several chips in it
        named = [{"chip": n, "cluster": clusters[0]} for n in chips]
    twice = next((a for a, b in itertools.combinations(named, 2) if a == b), None)
    if twice is not None:
        raise InputError(f"--ask {args.ask}: {next(iter(twice.values()))!r} is named twice; name each machine once")
    least, most = (2, 2) if args.ask == "break-even" else (2, len(named))
    if not least <= len(named) <= most:
        raise InputError(
            f"--ask {args.ask}: needs {'two' if most == 2 else 'several'} chips or clusters; give for example "
            f"--chip h100,910b{'' if args.ask == 'break-even' else ',b200'}"
        )
    questions = [asked_of(**machine) for machine in named]
    if args.ask == "break-even":
        return _told(args, inverse.break_even(*questions), inverse_words.break_even_text)
    return _told(args, {"rows": inverse.cheapest(questions, deadline)}, inverse_words.cheapest_text)


def _told(args: argparse.Namespace, result: dict[str, Any], words: Callable[[dict], str]) -> int:
    if args.out:
        _write(result, Path(args.out))
    print(json_text(result, indent=1) if args.json else words(result))
    return 0


def _write(result: dict[str, Any], folder: Path) -> None:
    """answer.json, and answer.csv with its rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / "answer.json", result)
        rows = result.get("rows", [result])
        columns = tuple(dict.fromkeys(key for row in rows for key, value in row.items() if _is_cell(value)))
        atomic.write_csv(folder / "answer.csv", [{key: row.get(key, "") for key in columns} for row in rows], columns)
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written ({err.strerror or err}); give another folder") from None


def _is_cell(value: object) -> bool:
    return not isinstance(value, (dict, list))
