"""What a run writes down: every trajectory, every event, every update; and the journal that a kill cannot take.
Torch-free.

    metrics.csv          one row an update, `COLUMNS`
    evals.csv            held-out pass@1, one sample at the run's temperature, and greedy, after so many updates; time_s
                         without the evaluations themselves
    trajectories.jsonl   one line a trajectory, when its group is complete: task's difficulty, lengths, times, versions,
                         reward
    events.jsonl         training, weight syncs, aborts, filtered groups, faults, with start_s and end_s; with the
                         above, a timeline
    journal_*.jsonl      finished samples with their tokens since the checkpoint of that number, for a resumed run

Times are seconds since the run began, kept across resumptions.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from minglm import atomic

STALENESS_BINS = 6  # staleness_hist_0 … staleness_hist_4, and staleness_hist_5 for five and more
COLUMNS = (
    "step",
    "version",
    "time_s",
    "trajectories",
    "trained_tokens",
    "reward",
    "loss",
    "grad_norm",
    "entropy",
    "ratio_mean",
    "ratio_max",
    "clip_frac",
    "mask_frac",
    "kl",
    "mismatch",
    "advantage_std",
    "length_mean",
    "length_max",
    "staleness_mean",
    "staleness_max",
    *(f"staleness_hist_{i}" for i in range(STALENESS_BINS)),
    "generated_tokens",
    "tokens_per_s",
    "trajectories_per_s",
    "rollout_s",
    "train_s",
    "weight_sync_s",
    "eval_s",
    "rollout_idle",
    "trainer_idle",
    "slot_idle_frac",
    "wasted_tokens",
    "filtered_zero_variance",
    "filtered_stale",
    "reward_errors",
    "aborted_groups",
    "restarts",
    "weight_sync_refusals",
)
EVAL_COLUMNS = ("step", "time_s", "trajectories", "pass_at_1", "greedy")
TIMED = (
    "time_s",
    "tokens_per_s",
    "trajectories_per_s",
    "rollout_s",
    "train_s",
    "weight_sync_s",
    "eval_s",
    "rollout_idle",
    "trainer_idle",
    "slot_idle_frac",
)


class JsonLines:
    """Append-only file of JSON objects, one write each."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, atomic.appending(path)

    def write(self, **values) -> None:
        """One line."""
        self._file.write(json.dumps(values, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict]:
    """All whole lines of a JSON-lines file; none where it is missing. What a disk damaged is left out, and said."""
    if not path.is_file():
        return []
    rows, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line end is torn
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        rows += [row] if isinstance(row, dict) else []
        damaged += not isinstance(row, dict) and bool(line.strip())
    if damaged:
        print(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} left out", file=sys.stderr)
    return rows


class Journal:
    """Finished samples since the last checkpoint. A new file begins at each checkpoint; `replay` reads all that are
    younger."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._lines = JsonLines(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"journal_{step:08d}.jsonl"

    def write(self, group: int, sample: int, record: dict) -> None:
        """A sample has finished; `record` is its `Sample.to_dict`."""
        self._lines.write(group=group, sample=sample, record=record)

    def roll(self, step: int, keep_from: int) -> None:
        """Begin the file of checkpoint `step`; files older than checkpoint `keep_from` go."""
        self._lines.close()
        self._lines = JsonLines(self._path(step))
        for number, path in _numbered(self.folder):
            if number < keep_from:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    @classmethod
    def rewritten(cls, folder: Path, step: int, lines: list[dict]) -> Journal:
        """The journal of a resumed run: what it still can use, and nothing of the updates that were lost."""
        final = folder / f"journal_{step:08d}.jsonl"
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        atomic.write_text(final, text, durable=True)
        for number, path in _numbered(folder):
            if number > step:
                path.unlink(missing_ok=True)
        return cls(folder, step)

    @staticmethod
    def replay(folder: Path, step: int) -> list[dict]:
        """Lines written since the checkpoint of `step`."""
        return [line for number, path in _numbered(folder) if number >= step for line in read_lines(path)]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Our journals in order, by their exact names: another file beside them is somebody's own."""
    names = ((re.fullmatch(r"journal_(\d{8,})\.jsonl", p.name), p) for p in folder.glob("journal_*.jsonl"))
    return sorted((int(match[1]), path) for match, path in names if match)
