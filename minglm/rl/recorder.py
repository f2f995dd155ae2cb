"""The written memory of a run: counters, and the files of `minglm.rl.log`. Torch-free."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from minglm.rl.config import Settings
from minglm.rl.data_source import Group, Sample
from minglm.rl.log import COLUMNS, EVAL_COLUMNS, STALENESS_BINS, Journal, JsonLines, write_json
from minglm.rl.rewards import Judge
from minglm.training.metrics import CsvLog, read

# Names in the objectives' statistics → columns of metrics.csv.
STATS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "ratio_mean": "ratio_mean",
    "ratio_max": "ratio_max",
    "clip_frac": "clip_frac",
    "mask_frac": "mask_frac",
    "mismatch_kl": "kl",
    "mismatch": "mismatch",
}
COUNTED = (
    "trajectories",
    "generated",
    "wasted_tokens",
    "filtered_stale_groups",
    "aborted_groups",
    "weight_sync_refusals",
    "lost_tokens",
    "requeued",
    "undone",
    "recovered",
    "trained_tokens",
)


class Record:
    """Times are seconds since the run began; a resumed run goes on counting where its checkpoint was."""

    def __init__(self, settings: Settings, run_dir: Path, state: dict | None, show: Callable[[str], None]) -> None:
        self.settings, self.dir, self.show = settings, run_dir, show
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in COUNTED:
            setattr(self, name, 0)
        self.first_pass = self.last_pass = self.last_eval = None
        self.eval_s, self.offset = 0.0, 0.0
        if state:
            for name, value in state["counts"].items():
                setattr(self, name, value)
        self.began = time.monotonic() - self.offset
        step = state["updates"] if state else 0
        self.metrics = CsvLog(run_dir / "metrics.csv", COLUMNS, step)
        self.evals = CsvLog(run_dir / "evals.csv", EVAL_COLUMNS, step + 1 if state else 0)
        self.events, self.lines = JsonLines(run_dir / "events.jsonl"), JsonLines(run_dir / "trajectories.jsonl")
        self.step, self.saved_steps, self.journal = step, [step], None
        if state is None:
            self.journal = Journal(run_dir, 0)
        self.event("resumed" if state else "begun", update=step)
        self._fresh()

    def _fresh(self) -> None:
        """Counters of one row of metrics.csv begin again."""
        self.row_began, self.row_generated, self.row_trajectories = self.now(), self.generated, self.trajectories
        self.busy_s = self.slot_s = self.weight_sync_s = self.row_eval_s = 0.0

    def now(self) -> float:
        return round(time.monotonic() - self.began, 4)

    def counts(self) -> dict:
        names = (*COUNTED, "first_pass", "last_pass", "last_eval", "eval_s")
        return {name: getattr(self, name) for name in names} | {"offset": self.now()}

    def event(self, kind: str, **values) -> None:
        self.events.write(event=kind, at_s=self.now(), **values)

    # ------------------------------------------------------------------ rollout

    def rollout(self, message: dict) -> None:
        self.busy_s += message["busy_s"]
        self.slot_s += message["slot_s"]

    def completed(self, group: Group, status: str, judge: Judge) -> None:
        for k, s in enumerate(group.samples):
            self.lines.write(
                group=group.index,
                sample=k,
                mode=self.settings.mode,
                difficulty=group.difficulty,
                prompt_tokens=len(group.prompt),
                tokens=len(s.tokens),
                segments=s.segments,
                versions=[[v, len(list(run))] for v, run in groupby(s.versions)],
                reason=s.reason,
                reward=s.reward,
                status=status,
            )

        if status != "ready":
            self.wasted([group])
        if status == "error":
            self.show(f"{judge.last_error}: group dropped ({judge.reward_errors} so far)")
            self.event("reward_error", group=group.index, why=judge.last_error)

    def wasted(self, groups: list[Group]) -> None:
        self.wasted_tokens += sum(len(s.tokens) for g in groups for s in g.samples)

    def aborted(self, groups: list[Group], kept: bool) -> None:
        self.aborted_groups += len(groups)
        tokens = sum(len(s.tokens) for g in groups for s in g.samples)
        if not kept:
            self.wasted(groups)
        self.event("aborted", groups=[g.index for g in groups], tokens=tokens, kept=kept)

    def filtered_stale(self, group: Group) -> None:
        self.filtered_stale_groups += 1
        self.wasted([group])
        self.event("filtered_stale", group=group.index, oldest_version=group.oldest_version)

    # ------------------------------------------------------------------ training

    def training(self, batch: list[Group], version: int) -> None:
        samples = [s for g in batch for s in g.samples]
        behind = Counter(version - v for s in samples for v in s.versions)
        total = max(1, sum(behind.values()))
        lengths = [len(s.tokens) for s in samples]
        self.batch = {
            "reward": statistics.fmean(s.reward for s in samples),
            "length_mean": statistics.fmean(lengths),
            "length_max": max(lengths),
            "staleness_mean": sum(k * n for k, n in behind.items()) / total,
            "staleness_max": max(behind, default=0),
            **{
                f"staleness_hist_{i}": (
                    sum(n for k, n in behind.items() if k >= i) if i == STALENESS_BINS - 1 else behind.get(i, 0)
                )
                / total
                for i in range(STALENESS_BINS)
            },
            "advantage_std": statistics.fmean(statistics.pstdev([s.reward for s in g.samples]) for g in batch),
        }
        self.prompts_per_batch, self.train_began, self.trajectories = (
            [g.index for g in batch],
            self.now(),
            self.trajectories + len(samples),
        )

    def trained(self, message: dict, update: int, version: int, judge: Judge, restarts: int) -> None:
        now = self.now()
        took = max(1e-9, now - self.row_began - self.row_eval_s)
        self.trained_tokens += message["trained_tokens"]
        stats = {column: message["stats"].get(name) for name, column in STATS.items()}
        made, trajectories = self.generated - self.row_generated, self.trajectories - self.row_trajectories
        self.event(
            "update",
            update=update,
            version=version,
            start_s=self.train_began,
            end_s=now,
            train_s=message["seconds"],
            weight_sync_s=message["weight_sync_s"],
            tokens=message["tokens"],
            groups=self.prompts_per_batch,
        )
        slots = self.busy_s * self.settings.max_batch
        row = {
            "step": update,
            "version": version,
            "time_s": now - self.eval_s,
            "trajectories": self.trajectories,
            "trained_tokens": self.trained_tokens,
            **self.batch,
            **stats,
            "generated_tokens": self.generated,
            "tokens_per_s": made / took,
            "trajectories_per_s": trajectories / took,
            "rollout_s": self.busy_s,
            "train_s": message["seconds"],
            "weight_sync_s": message["weight_sync_s"] + self.weight_sync_s,
            "eval_s": self.row_eval_s,
            "rollout_idle": max(0.0, 1 - self.busy_s / took / self.settings.rollout_workers),
            "trainer_idle": max(0.0, 1 - (message["seconds"] + message["weight_sync_s"]) / took),
            "slot_idle_frac": 1 - self.slot_s / slots if slots else None,
            "wasted_tokens": self.wasted_tokens,
            "filtered_zero_variance": judge.filtered_zero_variance,
            "filtered_stale": self.filtered_stale_groups,
            "reward_errors": judge.reward_errors,
            "aborted_groups": self.aborted_groups,
            "restarts": restarts,
            "weight_sync_refusals": self.weight_sync_refusals,
        }
        self.metrics.write(row)
        self.row = row
        self._fresh()
        self.show(
            f"update {update}: reward {row['reward']:.3f}, {row['trajectories_per_s']:.1f} trajectories/s, {row['tokens_per_s']:.0f} tokens/s, "
            f"staleness {row['staleness_mean']:.2f} (max {row['staleness_max']}), rollout idle {row['rollout_idle']:.0%}, train {row['train_s']:.2f} s"
        )

    def pushed(self, name: str, message: dict) -> None:
        self.weight_sync_s += message["seconds"]
        self.event("weight_sync", worker=name, version=message["version"], seconds=message["seconds"])

    def refused(self, name: str, message: dict) -> None:
        self.weight_sync_refusals += 1
        self.show(f"{name}: refused weights, {message['why']}")
        self.event("weight_sync_refused", worker=name, version=message["version"], why=message["why"])

    def evaluated(self, update: int, pass_at_1: float, greedy: float, seconds: float) -> None:
        self.last_pass, self.last_eval = pass_at_1, update
        self.first_pass = pass_at_1 if self.first_pass is None else self.first_pass
        self.eval_s += seconds
        self.row_eval_s += seconds
        self.evals.write(
            {
                "step": update,
                "time_s": self.now() - self.eval_s,
                "trajectories": self.trajectories,
                "pass_at_1": pass_at_1,
                "greedy": greedy,
            }
        )
        self.event("evaluated", update=update, pass_at_1=pass_at_1, greedy=greedy, seconds=seconds)
        self.show(f"update {update}: held-out pass@1 {pass_at_1:.1%}, greedy {greedy:.1%} ({seconds:.1f} s)")

    # ------------------------------------------------------------------ faults and checkpoints

    def fault(self, name: str, reason: str, lost_tokens: int, requeued: int) -> None:
        self.lost_tokens += lost_tokens
        self.wasted_tokens += lost_tokens
        self.requeued += requeued
        self.event("lost", worker=name, why=reason, lost_tokens=lost_tokens, requeued=requeued)
        what = (
            f"; {requeued} requests start again, about {lost_tokens} tokens lost"
            if requeued or lost_tokens
            else "; it resumes from its checkpoint"
        )
        self.show(f"{name}: {reason}, started again{what}")

    def before_checkpoint(self, step: int) -> None:
        self.metrics.flush_to_disk()
        self.saved_steps = [*self.saved_steps[-1:], step]
        self.journal.roll(step, keep_from=self.saved_steps[0])

    def recover(self, step: int, version: int, done: set[int]) -> dict[tuple[int, int], Sample]:
        """Samples that finished after the checkpoint and that its weights may use; what later weights sampled is counted as undone."""
        found: dict[tuple[int, int], Sample] = {}
        undone = set()
        for line in Journal.replay(self.dir, step):
            key, sample = (line["group"], line["sample"]), Sample(**line["record"])
            if line["group"] in done:
                continue
            if max(sample.versions, default=0) > version:
                undone.add(key)
            else:
                found[key] = sample
        self.journal = Journal.rewritten(
            self.dir, step, [{"group": g, "sample": k, "record": s.to_dict()} for (g, k), s in found.items()]
        )
        self.undone += len(undone - set(found))
        self.recovered += len(found)
        self.event("recovered", samples=len(found), undone=len(undone - set(found)))
        self.show(
            f"resumed at update {step}: {len(found)} finished samples recovered, {len(undone - set(found))} from later weights start again"
        )
        return found

    def summary(self, updates: int, judge: Judge, restarts: int) -> dict:
        """What `minglm rl` prints and writes to summary.json."""
        rows = read(self.dir / "metrics.csv")
        seconds = rows[-1]["time_s"] if rows else 0.0
        out = {
            "run_dir": str(self.dir),
            "mode": self.settings.mode,
            "task": self.settings.task,
            "objective": self.settings.objective,
            "updates": updates,
            "trajectories": self.trajectories,
            "seconds": seconds,
            "pass_at_1_before": self.first_pass,
            "pass_at_1": self.last_pass,
            "reward": rows[-1]["reward"] if rows else None,
            "trajectories_per_s": self.trajectories / seconds if seconds else None,
            "tokens_per_s": self.generated / seconds if seconds else None,
            "generated_tokens": self.generated,
            "trained_tokens": self.trained_tokens,
            "wasted_tokens": self.wasted_tokens,
            "filtered_zero_variance": judge.filtered_zero_variance,
            "filtered_stale": self.filtered_stale_groups,
            "reward_errors": judge.reward_errors,
            "aborted_groups": self.aborted_groups,
            "restarts": restarts,
            "requeued": self.requeued,
            "lost_tokens": self.lost_tokens,
            "recovered": self.recovered,
            "undone": self.undone,
            "weight_sync_refusals": self.weight_sync_refusals,
            "solved": judge.solved,
        }
        write_json(self.dir / "summary.json", out)
        return out

    def close(self) -> None:
        for file in (self.metrics, self.evals, self.events, self.lines, self.journal):
            if file is not None:
                file.close()
