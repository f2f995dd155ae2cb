"""The written memory of a run: counters, and the files of `minglm.rl.log`. Torch-free."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from minglm import atomic
from minglm.rl.config import Settings
from minglm.rl.data_source import Group, Sample
from minglm.rl.log import COLUMNS, EVAL_COLUMNS, STALENESS_BINS, Journal, JsonLines
from minglm.rl.messages import Progress, StepDone, WeightsLoaded, WeightsRefused
from minglm.rl.rewards import RewardManager
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


@dataclass
class Counters:
    """What a run counts from its first moment to its last; a checkpoint holds it. Tokens are response tokens."""

    trajectories: int = 0  # trained on
    generated: int = 0  # tokens
    trained_tokens: int = 0
    wasted_tokens: int = 0
    filtered_stale_groups: int = 0
    aborted_groups: int = 0
    weight_sync_refusals: int = 0
    lost_tokens: int = 0  # with workers that died
    requeued: int = 0  # requests that started again for that reason
    undone: int = 0  # samples that a resumed run could not use
    recovered: int = 0  # and those that it could
    first_pass: float | None = None  # held-out pass@1 before the first update
    last_pass: float | None = None
    last_eval: int | None = None  # update
    eval_s: float = 0.0


@dataclass
class RowCounters:
    """What one row of metrics.csv counts."""

    began: float
    generated: int  # `Counters.generated` at its beginning
    trajectories: int
    busy_s: float = 0.0
    slot_s: float = 0.0
    weight_sync_s: float = 0.0
    eval_s: float = 0.0


@dataclass(frozen=True)
class BatchRecord:
    """The batch in training."""

    groups: list[int]
    began: float
    columns: dict[str, float]


def staleness_columns(samples: Sequence[Sample], version: int) -> dict[str, float]:
    """Mean, maximum and histogram (shares of tokens) of how many versions behind `version` each token was sampled."""
    histogram = Counter(version - v for s in samples for v in s.versions)
    total = max(1, sum(histogram.values()))
    last = STALENESS_BINS - 1
    bins = [histogram.get(i, 0) for i in range(last)] + [sum(n for k, n in histogram.items() if k >= last)]
    return {
        "staleness_mean": sum(k * n for k, n in histogram.items()) / total,
        "staleness_max": max(histogram, default=0),
        **{f"staleness_hist_{i}": n / total for i, n in enumerate(bins)},
    }


class MetricsRecorder:
    """Times are seconds since the run began; a resumed run goes on counting where its checkpoint was."""

    def __init__(
        self, settings: Settings, run_dir: Path, state: dict[str, Any] | None, show: Callable[[str], None]
    ) -> None:
        self.settings, self.dir, self.show = settings, run_dir, show
        run_dir.mkdir(parents=True, exist_ok=True)
        counts = dict(state["counts"]) if state else {}
        self._origin = time.monotonic() - counts.pop("offset", 0.0)
        self.count = Counters(**counts)
        step: int = state["updates"] if state else 0
        self.metrics = CsvLog(run_dir / "metrics.csv", COLUMNS, step)
        self.evals = CsvLog(run_dir / "evals.csv", EVAL_COLUMNS, step + 1 if state else 0)
        self.events, self.trajectories = JsonLines(run_dir / "events.jsonl"), JsonLines(run_dir / "trajectories.jsonl")
        self._saved_steps = [step]
        # The journal of a resumed run is read by `recover` before it is written anew.
        self.journal: Journal | None = None if state else Journal(run_dir, 0)
        self._batch: BatchRecord | None = None
        self.event("resumed" if state else "begun", update=step)
        self._row = self._new_row()

    def _new_row(self) -> RowCounters:
        return RowCounters(self.now(), self.count.generated, self.count.trajectories)

    def now(self) -> float:
        """Seconds since the run began, resumed ones together."""
        return round(time.monotonic() - self._origin, 4)

    def counts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self.count) | {"offset": self.now()}

    def event(self, kind: str, **values: Any) -> None:
        """A line of events.jsonl."""
        self.events.write(event=kind, at_s=self.now(), **values)

    # ------------------------------------------------------------------ rollout

    def rollout(self, progress: Progress) -> None:
        """What a rollout worker did since its last report."""
        self._row.busy_s += progress.busy_s
        self._row.slot_s += progress.slot_s

    def finished(self, group: int, sample: int, record: Sample) -> None:
        """A sample has finished: into the journal, which a kill cannot take."""
        if self.journal is not None:
            self.journal.write(group, sample, record.to_dict())

    def completed(self, group: Group, status: str, rewards: RewardManager) -> None:
        """A group is complete and has been scored (`RewardManager.score`)."""
        for k, s in enumerate(group.samples):
            self.trajectories.write(
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
            self.show(f"{rewards.last_error}: group dropped ({rewards.reward_errors} so far)")
            self.event("reward_error", group=group.index, why=rewards.last_error)

    def wasted(self, groups: Sequence[Group]) -> None:
        """These groups are lost."""
        self.count.wasted_tokens += sum(group.response_tokens for group in groups)

    def aborted(self, groups: Sequence[Group], kept: bool) -> None:
        """These groups were stopped unfinished; `kept` for the next round, or lost."""
        self.count.aborted_groups += len(groups)
        if not kept:
            self.wasted(groups)
        tokens = sum(group.response_tokens for group in groups)
        self.event("aborted", groups=[g.index for g in groups], tokens=tokens, kept=kept)

    def filtered_stale(self, group: Group) -> None:
        """This group is too old to train on."""
        self.count.filtered_stale_groups += 1
        self.wasted([group])
        self.event("filtered_stale", group=group.index, oldest_version=group.oldest_version)

    # ------------------------------------------------------------------ training

    def training(self, batch: Sequence[Group], version: int) -> None:
        """An update on this batch begins, from weights of this version."""
        samples = [s for g in batch for s in g.samples]
        lengths = [len(s.tokens) for s in samples]
        spread = [statistics.pstdev(g.rewards()) for g in batch]
        columns = {
            "reward": statistics.fmean(r for g in batch for r in g.rewards()),
            "length_mean": statistics.fmean(lengths),
            "length_max": max(lengths),
            **staleness_columns(samples, version),
            "advantage_std": statistics.fmean(spread),
        }
        self.count.trajectories += len(samples)
        self._batch = BatchRecord([g.index for g in batch], self.now(), columns)

    def trained(self, report: StepDone, version: int, rewards: RewardManager, restarts: int) -> None:
        """The update is done; `version` is that of the newest weights now. Writes a row of metrics.csv."""
        assert self._batch is not None, "an update ends that did not begin"
        now, count, row, batch = self.now(), self.count, self._row, self._batch
        elapsed = max(1e-9, now - row.began - row.eval_s)
        count.trained_tokens += report.trained_tokens
        self.event(
            "update",
            update=report.update,
            version=version,
            start_s=batch.began,
            end_s=now,
            train_s=report.seconds,
            weight_sync_s=report.weight_sync_s,
            tokens=report.tokens,
            groups=batch.groups,
        )
        slots = row.busy_s * self.settings.max_batch
        columns = {
            "step": report.update,
            "version": version,
            "time_s": now - count.eval_s,
            "trajectories": count.trajectories,
            "trained_tokens": count.trained_tokens,
            **batch.columns,
            **{column: report.stats.get(name) for name, column in STATS.items()},
            "generated_tokens": count.generated,
            "tokens_per_s": (count.generated - row.generated) / elapsed,
            "trajectories_per_s": (count.trajectories - row.trajectories) / elapsed,
            "rollout_s": row.busy_s,
            "train_s": report.seconds,
            "weight_sync_s": report.weight_sync_s + row.weight_sync_s,
            "eval_s": row.eval_s,
            "rollout_idle": max(0.0, 1 - row.busy_s / elapsed / self.settings.rollout_workers),
            "trainer_idle": max(0.0, 1 - (report.seconds + report.weight_sync_s) / elapsed),
            "slot_idle_frac": 1 - row.slot_s / slots if slots else None,
            "wasted_tokens": count.wasted_tokens,
            "filtered_zero_variance": rewards.filtered_zero_variance,
            "filtered_stale": count.filtered_stale_groups,
            "reward_errors": rewards.reward_errors,
            "aborted_groups": count.aborted_groups,
            "restarts": restarts,
            "weight_sync_refusals": count.weight_sync_refusals,
        }
        self.metrics.write(columns)
        self._row = self._new_row()
        self.show(
            f"update {report.update}: reward {columns['reward']:.3f}, {columns['trajectories_per_s']:.1f} "
            "trajectories/s, "
            f"{columns['tokens_per_s']:.0f} tokens/s, staleness {columns['staleness_mean']:.2f} "
            f"(max {columns['staleness_max']}), rollout idle {columns['rollout_idle']:.0%}, train "
            f"{report.seconds:.2f} s"
        )

    def weights_loaded(self, worker: str, report: WeightsLoaded) -> None:
        """A rollout worker has new weights."""
        self._row.weight_sync_s += report.seconds
        self.event("weight_sync", worker=worker, version=report.version, seconds=report.seconds)

    def weights_refused(self, worker: str, report: WeightsRefused) -> None:
        """A rollout worker could not read a weights file."""
        self.count.weight_sync_refusals += 1
        self.show(f"{worker}: refused weights, {report.reason}")
        self.event("weight_sync_refused", worker=worker, version=report.version, why=report.reason)

    def evaluated(self, update: int, pass_at_1: float, greedy: float, seconds: float) -> None:
        """Held-out pass@1 after so many updates, one sample and greedily. Writes a row of evals.csv."""
        count = self.count
        count.last_pass, count.last_eval = pass_at_1, update
        count.first_pass = pass_at_1 if count.first_pass is None else count.first_pass
        count.eval_s += seconds
        self._row.eval_s += seconds
        self.evals.write(
            {
                "step": update,
                "time_s": self.now() - count.eval_s,
                "trajectories": count.trajectories,
                "pass_at_1": pass_at_1,
                "greedy": greedy,
            }
        )
        self.event("evaluated", update=update, pass_at_1=pass_at_1, greedy=greedy, seconds=seconds)
        self.show(f"update {update}: held-out pass@1 {pass_at_1:.1%}, greedy {greedy:.1%} ({seconds:.1f} s)")

    # ------------------------------------------------------------------ faults and checkpoints

    def fault(self, worker: str, reason: str, lost_tokens: int, requeued: int) -> None:
        """A worker was lost and has been started again."""
        self.count.lost_tokens += lost_tokens
        self.count.wasted_tokens += lost_tokens
        self.count.requeued += requeued
        self.event("lost", worker=worker, why=reason, lost_tokens=lost_tokens, requeued=requeued)
        cost = (
            f"; {requeued} requests start again, about {lost_tokens} tokens lost"
            if requeued or lost_tokens
            else "; it resumes from its checkpoint"
        )
        self.show(f"{worker}: {reason}, started again{cost}")

    def before_checkpoint(self, step: int) -> None:
        """What was counted is on the disk before the checkpoint that holds the counters."""
        self.metrics.flush_to_disk()
        self._saved_steps = [*self._saved_steps[-1:], step]
        if self.journal is not None:
            self.journal.roll(step, keep_from=self._saved_steps[0])

    def recover(self, step: int, version: int, done: set[int]) -> dict[tuple[int, int], Sample]:
        """(group, sample) → samples that finished after the checkpoint and that its weights may use; what later weights
        sampled is counted as undone.

        Args:
            step, version: of the checkpoint. done: groups that the checkpoint holds complete.
        """
        usable: dict[tuple[int, int], Sample] = {}
        later = set()
        for line in Journal.replay(self.dir, step):
            key, sample = (line["group"], line["sample"]), Sample(**line["record"])
            if line["group"] in done:
                continue
            if max(sample.versions, default=0) > version:
                later.add(key)
            else:
                usable[key] = sample
        self.journal = Journal.rewritten(
            self.dir, step, [{"group": g, "sample": k, "record": s.to_dict()} for (g, k), s in usable.items()]
        )
        undone = len(later - set(usable))
        self.count.undone += undone
        self.count.recovered += len(usable)
        self.event("recovered", samples=len(usable), undone=undone)
        self.show(
            f"resumed at update {step}: {len(usable)} finished samples recovered, {undone} from later weights start "
            "again"
        )
        return usable

    def summary(self, updates: int, rewards: RewardManager, restarts: int) -> dict[str, Any]:
        """What `minglm rl` prints and writes to summary.json."""
        rows, count = read(self.dir / "metrics.csv"), self.count
        seconds = rows[-1]["time_s"] if rows else 0.0
        out = {
            "run_dir": str(self.dir),
            "mode": self.settings.mode,
            "task": self.settings.task,
            "objective": self.settings.objective,
            "updates": updates,
            "trajectories": count.trajectories,
            "seconds": seconds,
            "pass_at_1_before": count.first_pass,
            "pass_at_1": count.last_pass,
            "reward": rows[-1]["reward"] if rows else None,
            "trajectories_per_s": count.trajectories / seconds if seconds else None,
            "tokens_per_s": count.generated / seconds if seconds else None,
            "generated_tokens": count.generated,
            "trained_tokens": count.trained_tokens,
            "wasted_tokens": count.wasted_tokens,
            "filtered_zero_variance": rewards.filtered_zero_variance,
            "filtered_stale": count.filtered_stale_groups,
            "reward_errors": rewards.reward_errors,
            "aborted_groups": count.aborted_groups,
            "restarts": restarts,
            "requeued": count.requeued,
            "lost_tokens": count.lost_tokens,
            "recovered": count.recovered,
            "undone": count.undone,
            "weight_sync_refusals": count.weight_sync_refusals,
            "solved": rewards.solved,
        }
        atomic.write_json(self.dir / "summary.json", out)
        return out

    def close(self) -> None:
        """Close all files."""
        for file in (self.metrics, self.evals, self.events, self.trajectories, self.journal):
            if file is not None:
                file.close()
