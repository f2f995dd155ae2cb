"""Rates of this machine for the simulator, from a run of `minglm rl`: its `profile.json`, or its log."""

from __future__ import annotations

import csv
import itertools
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from minglm.errors import InputError
from minglm.rl.modes import train_load
from sim.base.documents import read_document
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.lengths import read_log

WARMUP = 2  # updates in which pipelines fill and caches warm
TRUSTED = 20  # logged updates from which on they, and not a profile's, give the trainer's rates
ROUNDS = 8  # of the fit of decode rates from a log


@dataclass(frozen=True)
class UpdateRates:
    """Seconds of an update: fixed + per pass · passes + per token · N + per square · Σ n², padding included."""

    fixed_s: float
    s_per_pass: float
    s_per_token: float
    s_per_square: float


@dataclass(frozen=True)
class Profile:
    """Rates of this machine. `overhead_s`: seconds of a step that nothing else accounts for."""

    curve: DecodeCurve
    prefill_s_per_token: float
    prefill_fixed_s: float
    update: UpdateRates
    weight_sync_s: float
    source: str
    overhead_s: float = 0.0
    kv_offload_s: float = 0.0
    decode_interference: float = 1.0
    train_interference: float = 1.0


def settings_of(run: Path) -> Mapping[str, Any]:
    """The run's settings.

    Raises:
        InputError: not a folder of a run of minglm rl.
    """
    if not (run / "rl.yaml").is_file():
        raise InputError(
            f"{str(run)[:100]}: not a run of minglm rl (no rl.yaml in it); give its folder, such as runs/rl"
        )
    return _mapping(run / "rl.yaml")


def _mapping(path: Path) -> Mapping[str, Any]:
    values = read_document(path)
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: holds no mapping; give a run of minglm rl")
    return values


def measured_step(run: Path) -> tuple[float, int]:
    """(mean seconds of an update after the warm-up, evaluation left out; updates).

    Raises:
        InputError: no readable metrics.csv, or too few updates in it.
    """
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            times = [float(row["time_s"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError):
        raise InputError(f"{run / 'metrics.csv'}: has no readable column time_s; give a finished run") from None
    if len(times) < WARMUP + 2:
        raise InputError(f"{run}: {len(times)} updates; at least {WARMUP + 2} are needed to compare times")
    return (times[-1] - times[WARMUP - 1]) / (len(times) - WARMUP), len(times)


def logged_events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind in a run's events.jsonl. Raises InputError where it cannot be read."""
    try:
        with (run / "events.jsonl").open(encoding="utf-8") as file:
            events = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError):
        raise InputError(f"{run / 'events.jsonl'}: cannot be read; give a run of minglm rl") from None
    return [e for e in events if e.get("event") == kind]


def index_topk(run: Path) -> int | None:
    """Keys that the run's model reads; None where it does not say."""
    try:
        config: Mapping[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
        topk = config.get("index_topk")
    except (AttributeError, OSError, ValueError):
        return None
    return topk if isinstance(topk, int) else None


def measured_profile(run: Path) -> Profile:
    """Rates from `profile.json` or from the log of a run, without `overhead_s`.

    Raises:
        InputError: a profile without the keys that are needed, or a log too short.
    """
    if not (run / "profile.json").is_file():
        return _from_log(run)
    profile = _from_profile(run)
    updates = _updates(run)
    if len(updates) < TRUSTED:
        return profile
    # Many real updates beat a few synthetic ones.
    rates = _update_rates(run, read_log(run / "trajectories.jsonl"), updates)
    return replace(profile, update=rates, source="profile.json, updates from the log")


# ---------------------------------------------------------------------- profile.json


def _from_profile(run: Path) -> Profile:
    values = _mapping(run / "profile.json")

    def number(key: str, default: float = 0.0) -> float:
        return float(values.get(key, default))

    try:
        return Profile(
            curve=_measured_curve(values, index_topk(run) or 0),
            prefill_s_per_token=number("prefill_s_per_token"),
            prefill_fixed_s=number("prefill_fixed_s"),
            update=UpdateRates(
                number("train_fixed_s"),
                number("train_s_per_pass"),
                float(values["train_s_per_token"]),
                number("train_s_per_square"),
            ),
            weight_sync_s=number("weight_sync_s"),
            source="profile.json",
            kv_offload_s=number("kv_offload_s"),
            decode_interference=max(1.0, number("decode_interference", 1.0)),
            train_interference=max(1.0, number("train_interference", 1.0)),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise InputError(
            f"{run / 'profile.json'}: {err} is missing or not a number; needs decode_step_s, train_s_per_token and more"
        ) from None


def _measured_curve(values: Mapping[str, Any], topk: int) -> DecodeCurve:
    points = tuple((float(b), float(s)) for b, s in sorted(values["decode_step_s"]))
    sparse = {float(b): float(s) for b, s in sorted(values.get("decode_sparse_s", ()))}
    if not all(b in sparse for b, _ in points):
        return DecodeCurve(points, beyond=(), contexts=())
    beyond = tuple((b, max(0.0, sparse[b] - s)) for b, s in points)
    largest = points[-1][0]
    by_context = [(float(n), float(s)) for n, s in sorted(values.get("decode_by_context_s", ())) if n >= topk]
    contexts = tuple((n, max(0.0, s - by_context[0][1]) / largest) for n, s in by_context)
    return DecodeCurve(points, beyond=beyond, contexts=contexts)


# ---------------------------------------------------------------------- a log


class Segment(NamedTuple):
    """A stretch of rollout of one trajectory."""

    start_s: float
    end_s: float
    tokens: int
    context: int  # tokens before it, prompt included


class DecodeRates(NamedTuple):
    """Seconds of a request's start, of a token, and of a token for each request running, before and after keys are
    selected."""

    fixed_s: float
    alone_s: float
    each_s: float
    selecting_s: float


def _from_log(run: Path) -> Profile:
    rows = read_log(run / "trajectories.jsonl")
    segments = _segments(rows)
    if len(segments) < 20:
        raise InputError(
            f"{run}: {len(segments)} logged segments; at least 20 are needed for a decode curve, or a profile.json"
        )
    rates, most = _decode_rates(segments, index_topk(run) or math.inf)
    updates = _updates(run)
    if len(updates) < 2:
        raise InputError(f"{run}: fewer than 3 updates in events.jsonl; give a longer run")
    loads = [e["seconds"] for e in logged_events(run, "weight_sync")] or [0.0]
    writes = [u.get("weight_sync_s", 0.0) for u in updates]
    return Profile(
        curve=DecodeCurve(
            ((1.0, rates.alone_s + rates.each_s), (float(most), rates.alone_s + rates.each_s * most)),
            beyond=((1.0, rates.selecting_s), (float(most), rates.selecting_s * most)),
        ),
        prefill_s_per_token=0.0,
        prefill_fixed_s=rates.fixed_s / max(1, most),
        update=_update_rates(run, rows, updates),
        weight_sync_s=sum(loads) / len(loads) + sum(writes) / len(writes),
        source="log",
    )


def _segments(rows: Sequence[Mapping[str, Any]]) -> list[Segment]:
    segments = []
    for row in rows:
        context = row["prompt"]
        for start, end, tokens in row.get("segments") or ():
            if end is not None and tokens and tokens > 0 and end > start:
                segments.append(Segment(start, end, tokens, context))
                context += tokens
    return sorted(segments)


def _decode_rates(segments: Sequence[Segment], topk: float) -> tuple[DecodeRates, int]:
    """(rates that the segments' seconds ask for, requests running at most).

    A token sees the batch of its own time: the mean over tokens, which the rates themselves weigh, so a few rounds are
    needed.
    """
    starts, ends = sorted(s.start_s for s in segments), sorted(s.end_s for s in segments)
    marks = sorted({*starts, *ends})
    running = [bisect_right(starts, x) - bisect_right(ends, x) for x in marks]
    rates = DecodeRates(0.0, 1.0, 0.0, 0.0)
    points: list[tuple[tuple[float, ...], float]] = []
    for _ in range(ROUNDS):
        clock = list(_token_clock(segments, marks, running, rates, topk))
        points = []
        for segment in segments:
            begin, end = (clock[bisect_left(marks, x)] for x in (segment.start_s, segment.end_s))
            share = segment.tokens / (end.ticks - begin.ticks)
            columns = (
                1.0,
                float(segment.tokens),
                share * (end.running - begin.running),
                share * (end.selecting - begin.selecting),
            )
            points.append((columns, segment.end_s - segment.start_s))
        rates = DecodeRates(*not_negative(points))
    return rates, max(2, round(max(columns[2] / columns[1] for columns, _ in points)))


class Clock(NamedTuple):
    """Sums up to a moment, in ticks of one token for every running request."""

    ticks: float
    running: float  # ticks, times requests running
    selecting: float  # the same while keys are selected


def _token_clock(
    segments: Sequence[Segment], marks: Sequence[float], running: Sequence[int], rates: DecodeRates, topk: float
) -> Iterator[Clock]:
    """The clock at each mark, if these were the rates."""
    clock = Clock(0.0, 0.0, 0.0)
    yield clock
    here: list[tuple[float, float]] = []  # (end, context less the ticks at its start) of the segments that run
    coming = iter([*segments, Segment(math.inf, 0.0, 0, 0)])
    following = next(coming)
    for (begin, end), count in zip(itertools.pairwise(marks), running, strict=False):
        here = [(stop, lead) for stop, lead in here if stop > begin]
        while following.start_s <= begin:
            here.append((following.end_s, following.context - clock.ticks))
            following = next(coming)
        longest = clock.ticks + max((lead for _, lead in here), default=-clock.ticks)
        selects = longest >= topk  # the longest has so many keys: all pay
        ticks = (end - begin) / max(rates.alone_s + count * (rates.each_s + rates.selecting_s * selects), 1e-9)
        clock = Clock(clock.ticks + ticks, clock.running + ticks * count, clock.selecting + ticks * count * selects)
        yield clock


def _updates(run: Path) -> list[dict[str, Any]]:
    """The logged updates but the first, which warms caches."""
    return logged_events(run, "update")[1:] if (run / "events.jsonl").is_file() else []


def _update_rates(run: Path, rows: Sequence[Mapping[str, Any]], updates: Sequence[Mapping[str, Any]]) -> UpdateRates:
    """By least squares over the logged updates."""
    lengths: dict[int, list[int]] = {}
    for row in rows:
        lengths.setdefault(int(row["group"] or 0), []).append(round(row["prompt"] + row["length"]))
    micro_tokens, points = settings_of(run).get("micro_tokens"), []
    for update in updates:
        batch = [n for i in update.get("groups", ()) for n in lengths.get(i, ())]
        passes, padded, squares = train_load(batch, micro_tokens) if batch else (0, update["tokens"], 0)
        points.append(((1.0, float(passes), float(padded), float(squares)), update["train_s"]))
    return UpdateRates(*not_negative(points))


# ---------------------------------------------------------------------- least squares


def not_negative(points: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Coefficients of the columns of (columns, value) by least squares without negative ones: the most negative one is
    left out, until none is."""
    size = len(points[0][0])
    columns = list(range(size))
    while True:
        fit = _least_squares([([x[i] for i in columns], y) for x, y in points])
        lowest = min(range(len(columns)), key=lambda i: fit[i])
        if fit[lowest] >= 0 or len(columns) == 1:
            coefficients = dict(zip(columns, fit, strict=True))
            return [max(0.0, coefficients.get(i, 0.0)) for i in range(size)]
        del columns[lowest]


def _least_squares(points: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Coefficients by normal equations in columns of one scale, solved by elimination with a little ridge."""
    n = len(points[0][0])
    scale = [max(1e-12, sum(x[i] * x[i] for x, _ in points)) ** 0.5 for i in range(n)]
    m = [
        [sum(x[i] * x[j] for x, _ in points) / (scale[i] * scale[j]) + (1e-9 if i == j else 0.0) for j in range(n)]
        + [sum(x[i] * y for x, y in points) / scale[i]]
        for i in range(n)
    ]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        for r in range(n):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [a - factor * b for a, b in zip(m[r], m[i], strict=True)]
    return [m[i][n] / m[i][i] / scale[i] for i in range(n)]
