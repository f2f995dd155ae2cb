"""Checks of the sheet to scale/05: MTBF from a log, Young and Daly, a replay, the best interval."""

import math
from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake

LOG = [3.0, 10.5, 11.0, 30.25, 47.0]
MONTH = [11.2, 30.5, 31.1, 62.0, 88.4, 140.9, 141.3, 200.0, 263.7, 301.5, 388.0, 402.2, 455.1, 520.6, 700.4]


def _mtbf(log, hours, chips, asked, how=""):
    if not log:
        return math.inf
    if how == "gaps":
        return log[-1] / len(log) * chips / asked
    return hours / len(log) * (asked / chips if how == "up" else chips / asked)


def _intervals(save, mean, how=""):
    young = (2.0 * save * mean) ** 0.5
    if how == "no two":
        young = (save * mean) ** 0.5
    ratio = save / (2.0 * mean)
    if ratio >= 1 and how != "no limit":
        return [young, mean]
    daly = young * (1.0 + ratio**0.5 / 3.0 + ratio / 9.0) - (0.0 if how == "with save" else save)
    return [young, daly]


def _pair(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


def _replay(log, hours, every, save, restart, wrong=""):
    """One state after the other, as it happens."""
    failures, now, safe, unsafe = iter([*log, math.inf]), 0.0, 0.0, 0.0
    failure = next(failures)
    state, left = "work", every
    while now < hours:
        step = min(left, failure - now, hours - now)
        now += step
        left -= step
        if state == "work":
            unsafe += step
        if now >= hours and failure > now and not (state == "save" and left <= 1e-12):
            break
        if now >= failure:
            unsafe = unsafe if wrong == "keeps" else 0.0
            failure = next(failures)
            state, left = ("restart", restart) if wrong != "no restart" else ("work", every)
        elif left <= 1e-12:
            if state == "work":
                state, left = "save", save
                if wrong == "before the save":
                    safe, unsafe = safe + unsafe, 0.0
            else:
                if state == "save":
                    safe, unsafe = safe + unsafe, 0.0
                state, left = "work", every
    return safe + (0.0 if wrong == "not the rest" else unsafe)


def _replay_cases():
    return [
        (LOG, 60.0, 4.0, 0.5, 1.0),
        (MONTH, 720.0, 2.3, 0.1, 0.5),
        ([], 10.0, 3.0, 0.5, 1.0),
        ([1.0, 1.5], 5.0, 1.0, 0.25, 1.0),
        ([4.1], 9.0, 4.0, 0.5, 0.3),
        ([3.33], 12.5, 1.0, 0.25, 3.0),
        ([1.97, 2.4, 3.72, 4.27], 5.0, 1.5, 0.5, 3.0),  # the restarts reach beyond the end
    ]


def _best(candidates, log, hours, save, restart, pick="most"):
    worth = {every: round(_replay(log, hours, every, save, restart), 9) for every in candidates}
    if pick == "young":
        wanted = math.sqrt(2 * save * hours / max(1, len(log)))
        return min(candidates, key=lambda every: abs(every - wanted))
    top = [every for every in candidates if worth[every] == max(worth.values())]
    return max(top) if pick == "most" else min(top)


EXERCISES = [
    Exercise(
        "scale_05.mtbf",
        _mtbf,
        lambda: [
            (LOG, 60.0, 1024, 1024),
            (LOG, 60.0, 1024, 4096),
            ([], 60.0, 8, 8),
            (MONTH, 720.0, 2000, 100),
            ([0.94, 5.35, 5.93], 7.0, 3, 2),  # nothing divides
        ],
        (
            Mistake(
                partial(_mtbf, how="gaps"), "Count the time after the last failure, too: hours watched by failures."
            ),
            Mistake(
                partial(_mtbf, how="up"), "More chips fail more often: four times the chips, a quarter of the time."
            ),
        ),
        "hours / len(log), times chips / asked; math.inf for an empty log.",
        hints=(
            "Two numbers: how long was watched, and how often it failed.",
            "Failures per hour grow with the chips, so the time between them shrinks.",
            "hours / len(log) · chips / asked.",
        ),
    ),
    Exercise(
        "scale_05.intervals",
        _intervals,
        lambda: [(0.1, 40.0), (0.01, 3.0), (1.0, 0.4), (2.0, 1.0), (0.5, 1.0), (1.0, 0.7)],
        (
            Mistake(partial(_intervals, how="no two"), "Under Young's root stands 2 · save · MTBF."),
            Mistake(partial(_intervals, how="with save"), "Daly's formula ends with − save."),
            Mistake(partial(_intervals, how="no limit"), "Where save is at least twice the MTBF, Daly's is the MTBF."),
        ),
        "Young √(2·save·mean); Daly young·(1 + x/3 + x²/9) − save with x = √(save/(2·mean)); mean where save ≥ 2·mean.",
        use=_pair,
        hints=(
            "Both share the root.",
            "x is small when saving is quick beside the MTBF; then Daly's is nearly Young's minus save.",
            "if save >= 2 * mean: return young, mean.",
        ),
    ),
    Exercise(
        "scale_05.replay",
        _replay,
        _replay_cases,
        (
            Mistake(
                partial(_replay, wrong="keeps"), "A failure loses what was done since the last finished checkpoint."
            ),
            Mistake(partial(_replay, wrong="no restart"), "After a failure `restart` hours pass before work goes on."),
            Mistake(
                partial(_replay, wrong="before the save"),
                "A checkpoint counts when it is finished, not when it begins.",
            ),
            Mistake(
                partial(_replay, wrong="not the rest"),
                "What has been done since the last checkpoint counts at the end.",
            ),
        ),
        "Between failures whole periods of every + save fit, each with `every` hours; the last stretch adds its rest.",
        hints=(
            "Cut the month at its failures and treat each stretch alone.",
            "A stretch begins `restart` after its failure; whole periods of every + save fit in, each worth `every`.",
            "In the last stretch, add min(what is left after whole periods, every): work that nothing undoes any more.",
        ),
    ),
    Exercise(
        "scale_05.best",
        _best,
        lambda: [
            ([0.25, 0.5, 1.0, 2.0, 4.0, 8.0], MONTH, 720.0, 0.1, 0.5),
            ([1.0, 3.0, 5.0, 20.0], LOG, 60.0, 0.5, 1.0),
            ([30.0, 40.0, 20.0], LOG, 60.0, 0.5, 1.0),
            ([0.7, 1.5, 0.3, 0.5], [0.09, 6.26, 6.61, 8.11], 12.5, 0.25, 1.25),
        ],
        (
            Mistake(partial(_best, pick="young"), "That is the candidate next to Young's; ask the log instead."),
            Mistake(partial(_best, pick="short"), "Where several are worth the same, take the longest."),
        ),
        "max over the candidates, by (replay, the candidate itself).",
        hints=(
            "One replay for each candidate.",
            "max with a key; a key may be a pair.",
            "max(candidates, key=lambda every: (replay(...), every)).",
        ),
    ),
]
