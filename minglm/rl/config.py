"""What one RL run is: mode, task, objective, sizes, limits. Checked before anything starts; torch-free.

Every key is a field below with its meaning, default and unit; files in data/recipes/rl change some of them, the command
line changes some more. PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from minglm.rl.policy import MODES, Policy
from minglm.training.recipe import _checked, _key, made
from minglm.training.recipe import read as read_yaml

# As in minglm.rl.objectives, which needs torch; a test compares the two.
OBJECTIVE_NAMES = ("grpo", "naive", "bypass", "decoupled_ppo", "tis", "icepop", "double_sided_mask", "cross_stage")
CLIP_NAMES = ("low", "high", "tis_low", "tis_high", "beta", "mask_low", "mask_high", "average")
SEED_ROOM = 1 << 20  # draws of one group's samples never meet those of the next


@dataclass(frozen=True)
class Settings:
    """One RL run. Raises InputError for any value that breaks a rule."""

    mode: str = _key("sync", "who runs when: " + ", ".join(MODES))
    task: str = _key("sum", "a task of minglm.rl.tasks")
    tail: float | None = _key(
        None,
        "spread of the solutions' lengths (σ of the logarithm); null for the task's own long tail, 0 for none",
        "",
        0.0,
        3.0,
    )
    difficulty: list = _key(None, "difficulties that problems are drawn from, evenly; null for [1]")
    objective: str = _key("grpo", "an objective of minglm.rl.objectives")
    objective_args: dict = _key(
        {}, "bounds of the objective (minglm.rl.objectives.Clip), e.g. {high: 0.28, tis_high: 2.0}"
    )
    updates: int = _key(60, "updates in all", "updates", 1)
    # ---- what a batch is
    prompts_per_batch: int = _key(8, "complete groups that make a training batch", "groups", 1)
    samples_per_prompt: int = _key(8, "samples of one prompt", "samples", 2)
    over_sampling: int | None = _key(None, "april: groups submitted at a time; null for prompts_per_batch", "groups", 1)
    max_concurrent: int | None = _key(None, "groups in flight at most; null for the mode's own limit", "groups", 1)
    max_staleness: float = _key(
        1.0,
        "async: batches that may be started ahead of the one in training (AReaL: max_head_offpolicyness); a fraction is allowed",
        "batches",
        0.0,
    )
    strict: bool = _key(
        True,
        "async: an update waits for groups in flight that it would leave more than max_staleness versions old when trained, and takes the oldest first; false: first come, first trained",
    )
    weight_sync_interval: int = _key(1, "glm5: updates between two weight syncs", "updates", 1)
    filter_staleness_above: int | None = _key(
        None, "glm5: drop a group whose oldest token is more versions behind", "versions", 0
    )
    dynamic_filter: bool = _key(True, "drop groups whose rewards are all equal, and roll out others instead")
    # ---- rollout
    max_new_tokens: int = _key(128, "longest answer", "tokens", 1)
    temperature: float = _key(1.0, "of sampling; the trainer divides by it too", "", 0.01)
    top_p: float = _key(1.0, "sample among the likeliest tokens that hold this much probability", "", 0.01, 1.0)
    max_batch: int = _key(128, "sequences that one rollout worker decodes at once", "sequences", 1)
    rollout_workers: int = _key(1, "rollout processes", "processes", 1)
    reuse_kv_cache: bool = _key(
        False, "keep an aborted request's KV cache for when it is resumed, instead of prefilling it again"
    )
    recompute_kv_on_weight_sync: bool = _key(
        False, "prefill running requests again under new weights, instead of going on with their KV cache"
    )
    speculate: int = _key(0, "tokens drafted by the MTP module in each step", "tokens", 0)
    routing_replay: bool = _key(False, "train with the experts that the rollout chose")
    # ---- update
    lr: float = _key(0.0005, "learning rate", "", 0.0)
    muon: bool = _key(
        False,
        "Muon for matrices as in pre-training; its steps have one size however noisy the gradient, too much for few rewards",
    )
    weight_decay: float = _key(0.0, "decoupled weight decay", "", 0.0)
    clip: float = _key(1.0, "largest norm of the gradient", "", 0.0)
    minibatches: int = _key(1, "optimiser steps that share one batch", "steps", 1)
    micro_tokens: int = _key(4096, "tokens in one forward pass of the trainer, padding included", "tokens", 16)
    mask_off_policy: bool = _key(False, "count tokens of the newest version only (slime's mask for partial rollouts)")
    # ---- the run
    eval_every: int = _key(20, "held-out pass@1 every so many updates; 0 at start and end only", "updates", 0)
    eval_problems: int = _key(200, "held-out problems; 0 for none", "problems", 0)
    checkpoint_every: int = _key(10, "checkpoint every so many updates", "updates", 1)
    seed: int = _key(0, "of the order of problems and of every draw", "", 0)
    threads: int = _key(1, "threads of each process", "threads", 1)
    # ---- bounds
    stall_s: float = _key(120.0, "a worker that says nothing for so long is killed and started again", "s", 0.5)
    max_restarts: int = _key(5, "restarts of workers in one run before it stops", "restarts", 0)
    max_reward_errors: int = _key(20, "groups lost to a failing reward function before the run stops", "groups", 0)
    max_drops: int = _key(
        400, "groups in a row with equal rewards before the run stops: nothing left to learn", "groups", 1
    )

    def __post_init__(self) -> None:
        given = [1] if self.difficulty is None else self.difficulty
        given = (
            [given]
            if isinstance(given, int) and not isinstance(given, bool)
            else list(given)
            if isinstance(given, (list, tuple))
            else given
        )
        if (
            not isinstance(given, list)
            or not given
            or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in given)
        ):
            raise InputError(
                f"difficulty={self.difficulty!r}: must be whole numbers of at least 1; for example difficulty: [1, 2, 4]"
            )
        object.__setattr__(self, "difficulty", given)
        for spec in dataclasses.fields(self):
            if spec.name != "difficulty":
                object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        if self.objective not in OBJECTIVE_NAMES:
            raise InputError(
                f"objective {self.objective!r}: not one of {', '.join(OBJECTIVE_NAMES)}{nearest(self.objective, OBJECTIVE_NAMES)}"
            )
        for key in self.objective_args:
            if key not in CLIP_NAMES:
                raise InputError(
                    f"objective_args key {key!r}: not one of {', '.join(CLIP_NAMES)}{nearest(key, CLIP_NAMES)}"
                )
        self.policy()

    def policy(self) -> Policy:
        """The rules of this run's mode; checks mode, max_staleness and the other counts."""
        return Policy(
            self.mode,
            self.prompts_per_batch,
            self.over_sampling,
            self.max_concurrent,
            self.max_staleness,
            self.weight_sync_interval,
            self.filter_staleness_above,
        )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def changed(self, **changes) -> Settings:
        return from_dict({**self.to_dict(), **changes})

    def sample_seed(self, group: int, sample: int) -> int:
        """The seed of a sample's draws: the same in every mode, whoever rolls it out and however often."""
        return (self.seed * 1_000_003 + group) * SEED_ROOM + sample


def from_dict(values: dict) -> Settings:
    """Build settings; an unknown key is refused with the nearest known one."""
    return made(Settings, values, "RL", "minglm/rl/config.py")


def names() -> list[str]:
    """RL recipes that come with the project."""
    return list(datafiles.catalogue("recipes/rl", ".yaml"))


def read(name: str | Path) -> dict:
    """The keys of an RL recipe, by path or by the name of a file in data/recipes/rl, not checked yet.

    Raises:
        InputError: no such recipe, or not YAML.
    """
    return read_yaml(name, datafiles.data("recipes", "rl"), "RL recipe")


def load(name: str | Path, changes: dict | None = None) -> Settings:
    """Read and check an RL recipe without its key `warm_start`; `changes` override its keys."""
    return from_dict({**{k: v for k, v in read(name).items() if k != "warm_start"}, **(changes or {})})
