"""What one RL run is: mode, task, objective, sizes, limits. Checked before anything starts; torch-free.

Every key is a field below with its meaning, default and unit; files in data/recipes/rl change some of them, the command
line changes some more. PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from minglm.rl.modes import MODES, Policy
from minglm.settings import MOST_SEED, BaseSettings, nonzero, read_yaml, setting, whole_numbers

# As in minglm.rl.objectives, which needs torch; a test compares the two.
OBJECTIVE_NAMES = ("grpo", "naive", "bypass", "decoupled_ppo", "tis", "icepop", "double_sided_mask", "cross_stage")
CLIP_NAMES = ("low", "high", "tis_low", "tis_high", "beta", "mask_low", "mask_high", "average")
SEED_ROOM = 1 << 20  # draws of one group's samples never meet those of the next


def untruncated(value: float) -> float:
    """A check: nothing is cut off the distribution that is sampled from.

    The trainer's log-probabilities are of the whole softmax. Those of a rollout with top_p < 1 are renormalised over
    the tokens kept: every ratio of the two would be off on fresh data, and which tokens are kept differs between
    versions of the weights.
    """
    if value != 1:
        raise ValueError(
            "must be 1: the trainer's log-probabilities are of the whole distribution, and ratios would be off; "
            "lower temperature instead"
        )
    return value


@dataclass(frozen=True)
class Settings(BaseSettings):
    """One RL run. Raises InputError for any value that breaks a rule."""

    KIND = "RL"

    mode: str = setting("sync", "who runs when: " + ", ".join(MODES))
    task: str = setting("sum", "a task of minglm.rl.tasks")
    tail: float | None = setting(
        None,
        "spread of the solutions' lengths (σ of the logarithm); null for the task's own long tail, 0 for none",
        "",
        0.0,
        3.0,
    )
    difficulty: list[int] = setting(
        None, "difficulties that problems are drawn from, evenly; null for [1]", check=whole_numbers
    )
    objective: str = setting("grpo", "an objective of minglm.rl.objectives")
    objective_args: dict = setting(
        {}, "bounds of the objective (minglm.rl.objectives.Clip), e.g. {high: 0.28, tis_high: 2.0}"
    )
    updates: int = setting(60, "updates in all", "updates", 1)
    # ---- what a batch is
    prompts_per_batch: int = setting(8, "complete groups that make a training batch", "groups", 1)
    samples_per_prompt: int = setting(8, "samples of one prompt", "samples", 2)
    over_sampling: int | None = setting(
        None, "april: groups submitted at a time; null for prompts_per_batch", "groups", 1
    )
    max_concurrent: int | None = setting(None, "groups in flight at most; null for the mode's own limit", "groups", 1)
    max_staleness: float = setting(
        1.0,
        "async: batches that may be started ahead of the one in training (AReaL: max_head_offpolicyness); a fraction "
        "is allowed",
        "batches",
        0.0,
    )
    strict: bool = setting(
        True,
        "async: an update waits for groups in flight that it would leave more than max_staleness versions old when "
        "trained, and takes the oldest first; false: first come, first trained",
    )
    weight_sync_interval: int = setting(1, "glm5: updates between two weight syncs", "updates", 1)
    filter_staleness_above: int | None = setting(
        None, "glm5: drop a group whose oldest token is more versions behind", "versions", 0
    )
    dynamic_filter: bool = setting(True, "drop groups whose rewards are all equal, and roll out others instead")
    # ---- rollout
    max_new_tokens: int = setting(128, "longest response", "tokens", 1)
    temperature: float = setting(1.0, "of sampling; the trainer divides by it too", "", 0.01)
    top_p: float = setting(
        1.0, "1: RL samples the whole distribution, which the trainer's log-probabilities are of", check=untruncated
    )
    max_batch: int = setting(128, "sequences that one rollout worker decodes at once", "sequences", 1)
    rollout_workers: int = setting(1, "rollout processes", "processes", 1)
    reuse_kv_cache: bool = setting(
        False, "keep an aborted request's KV cache for when it is resumed, instead of prefilling it again"
    )
    recompute_kv_on_weight_sync: bool = setting(
        False, "prefill running requests again under new weights, instead of going on with their KV cache"
    )
    speculate: int = setting(0, "tokens drafted by the MTP module in each step", "tokens", 0)
    routing_replay: bool = setting(False, "train with the experts that the rollout chose")
    # ---- update
    lr: float = setting(0.0005, "learning rate", "", 0.0, check=nonzero)
    muon: bool = setting(
        False,
        "Muon for matrices as in pre-training; its steps have one size however noisy the gradient, too much for few "
        "rewards",
    )
    weight_decay: float = setting(0.0, "decoupled weight decay", "", 0.0)
    clip: float = setting(1.0, "largest norm of the gradient", "", 0.0, check=nonzero)
    minibatches: int = setting(1, "optimiser steps that share one batch", "steps", 1)
    micro_tokens: int = setting(4096, "tokens in one forward pass of the trainer, padding included", "tokens", 16)
    mask_off_policy: bool = setting(
        False, "count tokens of the newest version only (slime's mask for partial rollouts)"
    )
    # ---- the run
    eval_every: int = setting(20, "held-out pass@1 every so many updates; 0 at start and end only", "updates", 0)
    eval_problems: int = setting(200, "held-out problems; 0 for none", "problems", 0)
    checkpoint_every: int = setting(10, "checkpoint every so many updates", "updates", 1)
    seed: int = setting(0, "of the order of problems and of every draw", "", 0, MOST_SEED)
    threads: int = setting(1, "threads of each process", "threads", 1)
    # ---- bounds
    stall_s: float = setting(120.0, "a worker that says nothing for so long is killed and started again", "s", 0.5)
    max_restarts: int = setting(5, "restarts of workers in one run before it stops", "restarts", 0)
    max_reward_errors: int = setting(20, "groups lost to a failing reward function before the run stops", "groups", 0)
    max_drops: int = setting(
        400, "groups in a row with equal rewards before the run stops: nothing left to learn", "groups", 1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVE_NAMES:
            raise InputError(
                f"objective {self.objective!r}: not one of "
                f"{', '.join(OBJECTIVE_NAMES)}{nearest(self.objective, OBJECTIVE_NAMES)}"
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

    def sample_seed(self, group: int, sample: int) -> int:
        """The seed of a sample's draws: the same in every mode, whoever rolls it out and however often."""
        return (self.seed * 1_000_003 + group) * SEED_ROOM + sample


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
    return Settings.from_dict({**{k: v for k, v in read(name).items() if k != "warm_start"}, **(changes or {})})
