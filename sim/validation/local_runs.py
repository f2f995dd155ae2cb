"""The simulator against the loop that ran on this machine: rates from one run, times of the others predicted.

    clustersim rollouts --run runs/a_sync --run runs/b_april --run runs/c_async

The first run gives the rates, and where a mode has several runs its first one gives what a step of that mode costs
beside (coordination, the other processes of the machine). The rates are those of its `profile.json` where there is
one, otherwise of its log (`trajectories.jsonl`, `events.jsonl`, `metrics.csv`): seconds per token against the requests
running and what they read, by least squares over the logged segments; seconds of an update against its passes and
tokens; seconds of a weight sync. Of every other run only its settings and the lengths of its trajectories are read;
its times are predicted and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minglm.rl.modes import Policy
from sim.rollout.case import Case
from sim.rollout.lengths import Lengths, read_log
from sim.rollout.simulate import simulate
from sim.validation.local_profile import WARMUP, Profile, index_topk, measured_profile, measured_step, settings_of


@dataclass(frozen=True)
class PredictedRun:
    """One run, measured and predicted."""

    run: str
    mode: str
    kind: str  # "calibration": it gave rates; "holdout"
    updates: int
    trajectories: int  # of an update
    mean_length: float
    measured: float  # s a step
    predicted: float

    def to_dict(self) -> dict[str, Any]:
        """With the relative error."""
        return vars(self) | {"error": self.predicted / self.measured - 1.0}


def logged_lengths(run: Path) -> tuple[Lengths, float]:
    """(the finished groups in the order in which they were made, share of groups that the filter kept)."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in read_log(run / "trajectories.jsonl"):
        groups.setdefault(int(row["group"] or 0), []).append(row)
    in_order = [groups[i] for i in sorted(groups)]
    kept = sum(rows[0].get("status", "ready") == "ready" for rows in in_order) / len(groups)
    table = tuple(tuple(max(1, row["length"]) for row in rows) for rows in in_order)
    return Lengths(groups=table, prompts=tuple(round(rows[0]["prompt"]) for rows in in_order)), kept


def case_of(run: Path, profile: Profile) -> Case:
    """A run as a case: its settings and lengths, this machine's rates."""
    s = settings_of(run)
    lengths, kept = logged_lengths(run)
    policy = Policy(
        mode=s["mode"],
        prompts_per_batch=s["prompts_per_batch"],
        over_sampling=s.get("over_sampling"),
        max_concurrent=s.get("max_concurrent"),
        max_staleness=s.get("max_staleness", 1),
        weight_sync_interval=s.get("weight_sync_interval", 1),
        filter_staleness_above=s.get("filter_staleness_above"),
    )
    reuses_cache = not s.get("recompute_kv_on_weight_sync") if policy.continuous else bool(s.get("reuse_kv_cache"))
    _, updates = measured_step(run)
    return Case(
        policy=policy,
        samples_per_prompt=s["samples_per_prompt"],
        lengths=lengths,
        engines=s.get("rollout_workers", 1),
        curve=profile.curve,
        prefill_s_per_token=profile.prefill_s_per_token,
        prefill_fixed_s=profile.prefill_fixed_s,
        max_running=s.get("max_batch"),
        train_s_per_token=profile.update.s_per_token,
        train_fixed_s=profile.update.fixed_s,
        weight_sync_s=profile.weight_sync_s,
        overhead_s=profile.overhead_s,
        topk=index_topk(run),
        filter_keep=max(kept, 0.01) if kept < 1 else 1.0,
        reuse_kv_cache=reuses_cache,
        strict=bool(s.get("strict", False)),
        steps=updates,
        warmup=WARMUP,
        train_chips=1,
        name=run.name,
        train_s_per_square=profile.update.s_per_square,
        train_s_per_pass=profile.update.s_per_pass,
        micro_tokens=s.get("micro_tokens"),
        kv_offload_s=profile.kv_offload_s,
        decode_interference=profile.decode_interference,
        train_interference=profile.train_interference,
        share_prompts=True,
    )


def profile_of(run: Path) -> Profile:
    """Rates of this machine from `profile.json` or from the log of a run, with this run's overhead."""
    return with_overhead(run, measured_profile(run))


def with_overhead(run: Path, profile: Profile) -> Profile:
    """The profile with the seconds a step that make the simulation of this run as long as the run was; 0 where it is
    longer."""
    measured, _ = measured_step(run)
    case, low, high = case_of(run, profile), 0.0, measured  # its log is read once
    if simulate(replace(case, overhead_s=0.0)).throughput.step_s >= measured:
        return replace(profile, overhead_s=0.0)
    while high - low > 1e-4 * measured:
        middle = (low + high) / 2
        if simulate(replace(case, overhead_s=middle)).throughput.step_s < measured:
            low = middle
        else:
            high = middle
    return replace(profile, overhead_s=high)


def agree(runs: Sequence[str | Path]) -> dict[str, Any]:
    """Measured, predicted and error of the mean step of every run, and of the gain of each mode over sync.

    Raises:
        InputError: a folder that is not a finished run.
    """
    folders = [Path(r) for r in runs]
    profile = profile_of(folders[0])
    modes: list[str] = [settings_of(folder)["mode"] for folder in folders]
    repeated = [modes.index(mode) for mode in dict.fromkeys(modes) if modes.count(mode) > 1]
    firsts = {0: profile} | {i: with_overhead(folders[i], profile) for i in repeated if i}
    of_mode = {modes[i]: p for i, p in firsts.items()}
    rows = [
        _predicted(folder, of_mode.get(mode, profile), "calibration" if i in firsts else "holdout")
        for i, (folder, mode) in enumerate(zip(folders, modes, strict=True))
    ]
    return {
        "profile": _profile_values(folders[0].name, profile, of_mode),
        "rows": [row.to_dict() for row in rows],
        "gains": _gains(rows),
    }


def _predicted(run: Path, profile: Profile, kind: str) -> PredictedRun:
    measured, updates = measured_step(run)
    case = case_of(run, profile)
    return PredictedRun(
        run=run.name,
        mode=case.policy.mode,
        kind=kind,
        updates=updates,
        trajectories=case.policy.prompts_per_batch * case.samples_per_prompt,
        mean_length=case.lengths.mean(),
        measured=measured,
        predicted=simulate(case).throughput.step_s,
    )


def _gains(rows: Sequence[PredictedRun]) -> list[dict[str, Any]]:
    """Of every predicted run of another mode over sync, with batches of one size; the errors are differences."""
    synchronous = [row for row in rows if row.mode == "sync"]
    sync = next((row for row in synchronous if row.kind == "holdout"), next(iter(synchronous), None))
    gains = []
    for row in rows:
        if sync is None or row.mode == "sync" or row.kind == "calibration" or row.trajectories != sync.trajectories:
            continue
        measured, predicted = sync.measured / row.measured - 1.0, sync.predicted / row.predicted - 1.0
        gains.append(
            {
                "run": row.run,
                "mode": row.mode,
                "over": sync.run,
                "measured": measured,
                "predicted": predicted,
                "error": predicted - measured,
            }
        )
    return gains


def _profile_values(run: str, profile: Profile, of_mode: Mapping[str, Profile]) -> dict[str, Any]:
    curve = profile.curve
    return {
        "from": run,
        "source": profile.source,
        "decode_s": [[b, s] for b, s in curve.points],
        "beyond_s": [[b, s] for b, s in curve.beyond] or [[1, 0.0]],
        "train_s_per_token": profile.update.s_per_token,
        "train_fixed_s": profile.update.fixed_s,
        "train_s_per_square": profile.update.s_per_square,
        "train_s_per_pass": profile.update.s_per_pass,
        "kv_offload_s": profile.kv_offload_s,
        "decode_interference": profile.decode_interference,
        "train_interference": profile.train_interference,
        "overheads": {mode: p.overhead_s for mode, p in of_mode.items()},
        "weight_sync_s": profile.weight_sync_s,
        "overhead_s": profile.overhead_s,
    }


def table_text(report: Mapping[str, Any]) -> str:
    """The report as aligned text."""
    p = report["profile"]
    lines = [
        f"rates from {p['from']} ({p['source']}): a token takes "
        + ", ".join(f"{1e3 * s:.3g} ms with {b:g} running" for b, s in p["decode_s"])
        + f", {1e3 * p['beyond_s'][-1][1]:.3g} ms more once keys are selected"
        + f"; update {p['train_fixed_s']:.3g} s + {1e3 * p['train_s_per_pass']:.3g} ms a pass "
        + f"+ {1e6 * p['train_s_per_token']:.3g} µs a token, padding included, "
        + f"+ {1e9 * p['train_s_per_square']:.3g} ns times the squared length of each row; "
        + f"weight sync {1e3 * p['weight_sync_s']:.3g} ms; overhead of a step: "
        + ", ".join(f"{s:.3g} s ({m})" for m, s in p["overheads"].items()),
        "",
        f"{'run':28} {'mode':12} {'updates':>8} {'mean length':>12} {'measured s':>11} {'predicted s':>12} "
        f"{'error':>8}",
    ]
    lines += [
        f"{r['run'][:28]:28} {r['mode']:12} {r['updates']:>8} {r['mean_length']:>12.1f} {r['measured']:>11.3f} "
        f"{r['predicted']:>12.3f} {100 * r['error']:>+7.1f}%"
        + ("  (gave the rates)" if r["kind"] == "calibration" else "")
        for r in report["rows"]
    ]
    lines += [
        f"gain of {g['mode']} over {g['over']}: measured {100 * g['measured']:+.0f}%, "
        f"predicted {100 * g['predicted']:+.0f}%, error {100 * g['error']:+.0f} points"
        for g in report["gains"]
    ]
    return "\n".join(lines)
