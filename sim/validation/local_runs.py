"""The simulator against the loop that ran on this machine: rates from one run, times of the others predicted.

    clustersim rollouts --run runs/a_sync --run runs/b_april --run runs/c_async

The first run gives the rates, and where a mode has several runs its first one gives what a step of that mode costs beside
(coordination, the other processes of the machine). The rates are those of its `profile.json` where there is one, otherwise of
its log (`trajectories.jsonl`, `events.jsonl`, `metrics.csv`): seconds per token against the requests running and what they read,
by least squares over the logged segments; seconds of an update against its passes and tokens; seconds of a weight sync. Of every
other run only its settings and the lengths of its trajectories are read; its times are predicted and compared.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minglm.errors import InputError
from minglm.rl.policy import Policy, train_load
from sim.base.documents import read_document
from sim.rollout.engine import DecodeCurve
from sim.rollout.lengths import Lengths, read_log
from sim.rollout.simulate import Case, simulate

WARMUP = 2  # updates in which pipelines fill and caches warm
TRUSTED = 20  # logged updates from which on they, and not a profile's, give the trainer's rates


@dataclass(frozen=True)
class Profile:
    """Rates of this machine. `overhead_s`: seconds of a step that nothing else accounts for."""

    curve: DecodeCurve
    prefill_s_per_token: float
    prefill_fixed_s: float
    train_s_per_token: float
    train_fixed_s: float
    weight_sync_s: float
    overhead_s: float = 0.0
    source: str = ""
    train_s_per_square: float = 0.0
    train_s_per_pass: float = 0.0
    kv_offload_s: float = 0.0
    decode_interference: float = 1.0
    train_interference: float = 1.0


def settings_of(run: Path) -> Mapping:
    """The run's settings.

    Raises:
        InputError: not a folder of a run of minglm rl.
    """
    if not (run / "rl.yaml").is_file():
        raise InputError(
            f"{str(run)[:100]}: not a run of minglm rl (no rl.yaml in it); give its folder, such as runs/rl"
        )
    return read_document(run / "rl.yaml")


def measured_step(run: Path) -> tuple[float, int]:
    """(mean seconds of an update after the warm-up, evaluation left out; updates)."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            times = [float(row["time_s"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError):
        raise InputError(f"{run / 'metrics.csv'}: has no readable column time_s; give a finished run") from None
    if len(times) < WARMUP + 2:
        raise InputError(f"{run}: {len(times)} updates; at least {WARMUP + 2} are needed to compare times")
    return (times[-1] - times[WARMUP - 1]) / (len(times) - WARMUP), len(times)


def logged_lengths(run: Path) -> tuple[Lengths, float]:
    """(the finished groups in the order in which they were made, share of groups that the filter kept)."""
    groups: dict[int, list[dict]] = {}
    for row in read_log(run / "trajectories.jsonl"):
        groups.setdefault(int(row["group"] or 0), []).append(row)
    kept = sum(rows[0].get("status", "ready") == "ready" for rows in groups.values()) / len(groups)
    table = tuple(tuple(max(1, r["length"]) for r in groups[i]) for i in sorted(groups))
    return Lengths(groups=table, prompts=tuple(round(groups[i][0]["prompt"]) for i in sorted(groups))), kept


def case_of(run: Path, profile: Profile) -> Case:
    """A run as a case: its settings and lengths, this machine's rates."""
    s = settings_of(run)
    lengths, kept = logged_lengths(run)
    continuous = s["mode"] in ("async", "glm5")
    policy = Policy(
        s["mode"],
        s["prompts_per_batch"],
        s.get("over_sampling"),
        s.get("max_concurrent"),
        s.get("max_staleness", 1),
        s.get("weight_sync_interval", 1),
        s.get("filter_staleness_above"),
    )
    _, updates = measured_step(run)
    return Case(
        policy,
        s["samples_per_prompt"],
        lengths,
        s.get("rollout_workers", 1),
        profile.curve,
        profile.prefill_s_per_token,
        profile.prefill_fixed_s,
        max_running=s.get("max_batch"),
        train_s_per_token=profile.train_s_per_token,
        train_fixed_s=profile.train_fixed_s,
        weight_sync_s=profile.weight_sync_s,
        overhead_s=profile.overhead_s,
        topk=_index_topk(run),
        filter_keep=max(kept, 0.01) if kept < 1 else 1.0,
        reuse_kv_cache=not s.get("recompute_kv_on_weight_sync") if continuous else bool(s.get("reuse_kv_cache")),
        strict=bool(s.get("strict", False)),
        steps=updates,
        warmup=WARMUP,
        train_chips=1,
        name=run.name,
        train_s_per_square=profile.train_s_per_square,
        train_s_per_pass=profile.train_s_per_pass,
        micro_tokens=s.get("micro_tokens"),
        kv_offload_s=profile.kv_offload_s,
        decode_interference=profile.decode_interference,
        train_interference=profile.train_interference,
        share_prompts=True,
    )


def profile_of(run: Path) -> Profile:
    """Rates of this machine from `profile.json` or from the log of a run."""
    if (run / "profile.json").is_file():
        given = read_document(run / "profile.json")
        try:
            points = tuple((float(b), float(s)) for b, s in sorted(given["decode_step_s"]))
            slower = dict(sorted((float(b), float(s)) for b, s in given.get("decode_choosing_s", ())))
            beyond = (
                tuple((b, max(0.0, slower[b] - s)) for b, s in points) if all(b in slower for b, _ in points) else ()
            )
            most, topk = points[-1][0], _index_topk(run) or 0
            wide = (
                [(float(n), float(s)) for n, s in sorted(given.get("decode_by_context_s", ())) if n >= topk]
                if beyond
                else []
            )
            contexts = tuple((n, max(0.0, s - wide[0][1]) / most) for n, s in wide)
            found = Profile(
                DecodeCurve(points, beyond=beyond, contexts=contexts),
                *(float(given.get(k, 0.0)) for k in ("prefill_s_per_token", "prefill_fixed_s")),
                float(given["train_s_per_token"]),
                *(float(given.get(k, 0.0)) for k in ("train_fixed_s", "weight_sync_s")),
                source="profile.json",
                train_s_per_square=float(given.get("train_s_per_square", 0.0)),
                train_s_per_pass=float(given.get("train_s_per_pass", 0.0)),
                kv_offload_s=float(given.get("kv_offload_s", 0.0)),
                **{k: max(1.0, float(given.get(k, 1.0))) for k in ("decode_interference", "train_interference")},
            )
        except (KeyError, TypeError, ValueError) as err:
            raise InputError(
                f"{run / 'profile.json'}: {err} is missing or not a number; needs decode_step_s, train_s_per_token and more"
            ) from None
    else:
        found = _from_log(run)
    if (
        found.source == "profile.json" and len(updates := _updates(run)) >= TRUSTED
    ):  # many real updates beat a few made-up ones
        fixed, per_pass, rate, square = _train_from_log(run, read_log(run / "trajectories.jsonl"), updates)
        found = replace(
            found,
            train_fixed_s=fixed,
            train_s_per_pass=per_pass,
            train_s_per_token=rate,
            train_s_per_square=square,
            source="profile.json, updates from the log",
        )
    return with_overhead(run, found)


def with_overhead(run: Path, profile: Profile) -> Profile:
    """The profile with the seconds a step that make the simulation of this run as long as the run was; 0 where it is longer."""
    measured, _ = measured_step(run)
    case, low, high = case_of(run, profile), 0.0, measured  # its log is read once
    if simulate(replace(case, overhead_s=0.0)).step_s >= measured:
        return replace(profile, overhead_s=0.0)
    while high - low > 1e-4 * measured:
        middle = (low + high) / 2
        if simulate(replace(case, overhead_s=middle)).step_s < measured:
            low = middle
        else:
            high = middle
    return replace(profile, overhead_s=high)


def _from_log(run: Path) -> Profile:
    rows = read_log(run / "trajectories.jsonl")
    spans = []  # (start, end, tokens made, context before)
    for row in rows:
        context = row["prompt"]
        for a, b, n in row.get("segments") or ():
            if b is not None and n and n > 0 and b > a:
                spans.append((a, b, n, context))
                context += n
    if len(spans) < 20:
        raise InputError(
            f"{run}: {len(spans)} logged segments; at least 20 are needed for a decode curve, or a profile.json"
        )
    spans.sort()
    starts, ends = sorted(a for a, *_ in spans), sorted(b for _, b, *_ in spans)
    marks = sorted({*starts, *ends})
    running = [bisect_right(starts, x) - bisect_right(ends, x) for x in marks]
    topk = _index_topk(run) or float("inf")
    found = [0.0, 1.0, 0.0, 0.0]  # seconds a request; a token; for each one running, and when keys are chosen
    for _ in range(8):  # a token sees the batch of its own time: the mean over tokens, which the rates themselves weigh
        ticks, seen, chosen, here, coming = [0.0], [0.0], [0.0], [], iter([*spans, (float("inf"), 0.0, 0, 0)])
        following = next(coming)
        for x, y, b in zip(marks, marks[1:], running):
            at = ticks[-1]
            here = [(end, lead) for end, lead in here if end > x]
            while following[0] <= x:
                here.append((following[1], following[3] - at))
                following = next(coming)
            chooses = at + max((lead for _, lead in here), default=-at) >= topk  # the longest has so many keys: all pay
            passed = (y - x) / max(found[1] + b * (found[2] + found[3] * chooses), 1e-9)
            ticks.append(at + passed)
            seen.append(seen[-1] + passed * b)
            chosen.append(chosen[-1] + passed * b * chooses)
        points = []
        for a, b, n, _ in spans:
            i, j = bisect_left(marks, a), bisect_left(marks, b)
            share = n / (ticks[j] - ticks[i])
            points.append(((1.0, float(n), share * (seen[j] - seen[i]), share * (chosen[j] - chosen[i])), b - a))
        found = _not_negative(points)
    fixed, alone, more, choosing = found
    most = max(2, round(max(x[2] / x[1] for x, _ in points)))
    curve = DecodeCurve(
        ((1.0, alone + more), (float(most), alone + more * most)),
        beyond=((1.0, choosing), (float(most), choosing * most)),
    )
    updates = _updates(run)
    if len(updates) < 2:
        raise InputError(f"{run}: fewer than 3 updates in events.jsonl; give a longer run")
    fixed_s, per_pass, rate, square = _train_from_log(run, rows, updates)
    pushes = [e["seconds"] for e in logged_events(run, "weight_sync")] or [0.0]
    push = sum(pushes) / len(pushes) + sum(u.get("weight_sync_s", 0.0) for u in updates) / len(updates)
    return Profile(
        curve,
        0.0,
        fixed / max(1, most),
        rate,
        fixed_s,
        push,
        source="log",
        train_s_per_square=square,
        train_s_per_pass=per_pass,
    )


def _updates(run: Path) -> list[dict]:
    """The logged updates but the first, which warms caches."""
    return logged_events(run, "update")[1:] if (run / "events.jsonl").is_file() else []


def _train_from_log(
    run: Path, rows: Sequence[Mapping], updates: Sequence[Mapping]
) -> tuple[float, float, float, float]:
    """Seconds of an update: (fixed, of a pass, of a token, of a token squared), by least squares over the logged updates."""
    lengths: dict[int, list[int]] = {}
    for row in rows:
        lengths.setdefault(int(row["group"] or 0), []).append(round(row["prompt"] + row["length"]))
    micro, points = settings_of(run).get("micro_tokens"), []
    for update in updates:
        batch = [n for i in update.get("groups", ()) for n in lengths.get(i, ())]
        passes, padded, squares = train_load(batch, micro) if batch else (0, update["tokens"], 0)
        points.append(((1.0, float(passes), float(padded), float(squares)), update["train_s"]))
    return tuple(_not_negative(points))


def logged_events(run: Path, kind: str) -> list[dict]:
    """Lines of one kind in a run's events.jsonl."""
    try:
        with (run / "events.jsonl").open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError):
        raise InputError(f"{run / 'events.jsonl'}: cannot be read; give a run of minglm rl") from None
    return [e for e in found if e.get("event") == kind]


def _index_topk(run: Path) -> int | None:
    """Keys that the run's model reads; None where it does not say."""
    try:
        return json.loads((run / "config.json").read_text(encoding="utf-8")).get("index_topk")
    except (OSError, ValueError):
        return None


def _not_negative(points: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Least squares without negative coefficients: the most negative one is left out, until none is."""
    kept, size = list(range(len(points[0][0]))), len(points[0][0])
    while True:
        found = _least_squares([([x[i] for i in kept], y) for x, y in points])
        worst = min(range(len(kept)), key=lambda i: found[i])
        if found[worst] >= 0 or len(kept) == 1:
            return [max(0.0, dict(zip(kept, found)).get(i, 0.0)) for i in range(size)]
        del kept[worst]


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
        at = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[at] = m[at], m[i]
        for r in range(n):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [a - factor * b for a, b in zip(m[r], m[i])]
    return [m[i][n] / m[i][i] / scale[i] for i in range(n)]


def agree(runs: Sequence[str | Path]) -> dict:
    """Measured, predicted and error of the mean step of every run, and of the gain of each mode over sync.

    Raises:
        InputError: a folder that is not a finished run.
    """
    folders = [Path(r) for r in runs]
    profile = profile_of(folders[0])
    modes = [settings_of(folder)["mode"] for folder in folders]
    firsts = {0: profile} | {
        i: with_overhead(folders[i], profile)
        for i in (modes.index(m) for m in dict.fromkeys(modes) if modes.count(m) > 1)
        if i
    }
    own = {modes[i]: p for i, p in firsts.items()}
    rows = []
    for i, folder in enumerate(folders):
        measured, updates = measured_step(folder)
        case = case_of(folder, own.get(modes[i], profile))
        result = simulate(case)
        rows.append(
            {
                "run": folder.name,
                "mode": case.policy.mode,
                "kind": "calibration" if i in firsts else "holdout",
                "updates": updates,
                "trajectories": case.policy.prompts_per_batch * case.samples_per_prompt,
                "mean_length": case.lengths.mean(),
                "measured": measured,
                "predicted": result.step_s,
                "error": result.step_s / measured - 1.0,
            }
        )
    gains = []
    sync = next(
        (r for r in rows if r["mode"] == "sync" and r["kind"] == "holdout"),
        next((r for r in rows if r["mode"] == "sync"), None),
    )
    for row in rows:
        if sync and row["mode"] != "sync" and row["kind"] == "holdout" and row["trajectories"] == sync["trajectories"]:
            m, p = sync["measured"] / row["measured"] - 1.0, sync["predicted"] / row["predicted"] - 1.0
            gains.append(
                {
                    "run": row["run"],
                    "mode": row["mode"],
                    "over": sync["run"],
                    "measured": m,
                    "predicted": p,
                    "error": p - m,
                }
            )
    curve = profile.curve
    return {
        "profile": {
            "from": folders[0].name,
            "source": profile.source,
            "decode_s": [[b, s] for b, s in curve.points],
            "beyond_s": [[b, s] for b, s in curve.beyond] or [[1, 0.0]],
            "train_s_per_token": profile.train_s_per_token,
            "train_fixed_s": profile.train_fixed_s,
            "train_s_per_square": profile.train_s_per_square,
            "train_s_per_pass": profile.train_s_per_pass,
            "kv_offload_s": profile.kv_offload_s,
            "decode_interference": profile.decode_interference,
            "train_interference": profile.train_interference,
            "overheads": {m: p.overhead_s for m, p in own.items()},
            "weight_sync_s": profile.weight_sync_s,
            "overhead_s": profile.overhead_s,
        },
        "rows": rows,
        "gains": gains,
    }


def table_text(report: Mapping) -> str:
    p = report["profile"]
    lines = [
        f"rates from {p['from']} ({p['source']}): a token takes "
        + ", ".join(f"{1e3 * s:.3g} ms with {b:g} running" for b, s in p["decode_s"])
        + f", {1e3 * p['beyond_s'][-1][1]:.3g} ms more once keys are chosen"
        + f"; update {p['train_fixed_s']:.3g} s + {1e3 * p['train_s_per_pass']:.3g} ms a pass + {1e6 * p['train_s_per_token']:.3g} µs a token, padding included, + {1e9 * p['train_s_per_square']:.3g} ns times the squared length of each row; push {1e3 * p['weight_sync_s']:.3g} ms; a step beside: "
        + ", ".join(f"{s:.3g} s ({m})" for m, s in p["overheads"].items()),
        "",
        f"{'run':28} {'mode':6} {'updates':>8} {'mean length':>12} {'measured s':>11} {'predicted s':>12} {'error':>8}",
    ]
    for r in report["rows"]:
        lines.append(
            f"{r['run'][:28]:28} {r['mode']:6} {r['updates']:>8} {r['mean_length']:>12.1f} {r['measured']:>11.3f} {r['predicted']:>12.3f} {100 * r['error']:>+7.1f}%"
            + ("  (gave the rates)" if r["kind"] == "calibration" else "")
        )
    for g in report["gains"]:
        lines.append(
            f"gain of {g['mode']} over {g['over']}: measured {100 * g['measured']:+.0f}%, predicted {100 * g['predicted']:+.0f}%, error {100 * g['error']:+.0f} points"
        )
    return "\n".join(lines)
