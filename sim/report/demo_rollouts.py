"""The demo's report on its round of RL: how the long tail of responses went, and how well the simulator foretold it.

Rates come from the log of the synchronous run; the times of APRIL are predicted from its settings and lengths alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minglm import plots
from sim.report.html import Page, table
from sim.rollout.lengths import read_log
from sim.rollout.simulate import simulate
from sim.validation.local_profile import WARMUP, Profile, logged_events, settings_of
from sim.validation.local_runs import agree, case_of, profile_of

SHOWN = 4  # updates in the picture
NAMES = {"sync": "Synchronous", "april": "APRIL"}


def measured_running(run: Path, first: int, last: int) -> tuple[list[float], list[int]]:
    """(seconds, responses being generated) between the ends of two updates of a run, as steps."""
    ends = [e["end_s"] for e in logged_events(run, "update")]
    begin, end = ends[first - 1], ends[min(last, len(ends)) - 1]
    changes = sorted(
        change
        for row in read_log(run / "trajectories.jsonl")
        for a, b, _ in row.get("segments") or ()
        if b is not None
        for change in ((a, 1), (b, -1))
    )
    return _window(changes, begin, end)


def simulated_running(run: Path, profile: Profile, first: int, last: int) -> tuple[list[float], list[int]]:
    """The same for the run's twin in the simulator."""
    result = simulate(replace(case_of(run, profile), watch=1, warmup=0))
    ends, watched = [s.end_s for s in result.steps], result.watched[0]
    changes = [(t, n - before) for (_, before), (t, n) in itertools.pairwise(watched)]
    return _window(changes, ends[first - 1], ends[min(last, len(ends)) - 1])


def _window(changes: Sequence[tuple[float, int]], begin: float, end: float) -> tuple[list[float], list[int]]:
    running, times, counts = sum(n for t, n in changes if t <= begin), [0.0], []
    counts.append(running)
    for t, n in changes:
        if begin < t <= end:
            running += n
            times.append(t - begin)
            counts.append(running)
    return [*times, end - begin], [*counts, running]


def section(page: Page, run_dir: Path) -> None:
    """Add the round of RL in `run_dir` to the page; nothing where the demo was made before there was one."""
    runs = {mode: run_dir / f"rl_{mode}" for mode in NAMES}
    if not all((run / "summary.json").is_file() for run in runs.values()):
        return
    page.heading("Reinforcement learning, and its long tail", "rollouts")
    rules = settings_of(runs["april"])
    factor = (rules["over_sampling"] or rules["prompts_per_batch"]) / rules["prompts_per_batch"]
    page.prose(
        "A smaller model keeps running totals of a few digits, sometimes of eighty: most responses are short and a "
        "few are many times longer. A synchronous "
        f"update waits for the last of them. APRIL starts {factor:g} times the groups that an update needs, stops "
        "when enough are complete, and goes on with "
        "the parts in the next round: work that was begun is kept. The simulator, which simulates rollouts on 100,000 "
        "chips with the same rules, was given this "
        "machine's rates from the synchronous run, and foretold the other."
    )
    report = agree(list(runs.values()))
    rows = [
        [
            NAMES[r["mode"]],
            f"{r['trajectories'] / r['measured']:.0f}",
            f"{r['measured']:.3f}",
            f"{r['predicted']:.3f}",
            "gave the rates" if r["kind"] == "calibration" else f"{100 * r['error']:+.0f}%",
        ]
        for r in report["rows"]
    ]
    page.add(
        table(
            ["mode", "responses trained a second", "seconds an update, measured", "simulated", "error"],
            rows,
            f"Means over the updates after the first {WARMUP}; the error holds the noise of this machine while the "
            "demo ran.",
        )
    )
    for g in report["gains"]:
        page.prose(
            f"{NAMES[g['mode']]} against synchronous: {100 * g['measured']:+.0f}% measured, "
            f"{100 * g['predicted']:+.0f}% simulated."
        )
    profile = profile_of(runs["sync"])
    first = WARMUP + 1
    for mode, run in runs.items():
        fig = plots.figure(
            f"{NAMES[mode]}: responses in flight over {SHOWN} updates", "seconds", "responses being generated"
        )
        for index, (name, curve) in enumerate(
            (
                ("measured", measured_running(run, first, first + SHOWN)),
                ("simulated", simulated_running(run, profile, first, first + SHOWN)),
            )
        ):
            plots.line(fig, *curve, name, index, line_shape="hv")
        page.figure(
            fig,
            f"Responses being generated over {SHOWN} updates of the run ({NAMES[mode]}), measured and simulated; "
            "where the curve lies near "
            "zero for long, everything waits for a few long responses, and where it is at zero, the trainer works.",
        )
