"""Rewards and what follows from them: which groups train, which are filtered and why, held-out pass@1. Torch-free.

A reward function is foreign code: it may raise, or return what is no number. Then the group is dropped, counted and
named, and the run stops when that happens too often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from minglm.errors import InputError, one_line
from minglm.rl.config import Settings
from minglm.rl.data_source import Group, ProblemSource
from minglm.rl.tasks import Problem


class RewardTask(ProblemSource, Protocol):
    """A task that can tell right from wrong; `minglm.rl.tasks.Task` is one."""

    def heldout_seed(self, i: int, /) -> int:
        """Seed of the i-th held-out problem."""
        ...

    def reward(self, problem: Problem, text: str, /) -> float:
        """1 for a right response, 0 for a wrong one, or a shade between."""
        ...


class RewardManager:
    """Scores groups with a task's `reward(problem, text)`.

    Args:
        decode: token ids of a response → text as the reward sees it, without special tokens.
    """

    def __init__(self, settings: Settings, task: RewardTask, decode: Callable[[list[int]], str]) -> None:
        self.settings, self.task, self.decode = settings, task, decode
        self.filtered_zero_variance = self.reward_errors = 0  # groups
        self.filtered_in_a_row = 0
        self.last_error, self.last_rewards = "", [0.0]
        difficulties = settings.difficulty
        self.held_out = [
            task.problem(task.heldout_seed(i), difficulties[i % len(difficulties)])
            for i in range(settings.eval_problems)
        ]

    def counts(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"filtered_zero_variance": self.filtered_zero_variance, "reward_errors": self.reward_errors}

    def restore(self, counts: dict[str, int]) -> None:
        """Go on counting from a checkpoint's `counts`."""
        self.filtered_zero_variance, self.reward_errors = counts["filtered_zero_variance"], counts["reward_errors"]

    def score(self, group: Group) -> str:
        """Fill in the samples' rewards. Returns the group's status: "ready", "zero_variance" (filtered: all rewards are
        equal, so no advantage differs from 0) or "error" (the reward function failed).

        Raises:
            InputError: more groups lost to the reward function than max_reward_errors.
        """
        rewards = []
        for k, sample in enumerate(group.samples):
            reward, problem = self._reward(group.problem, sample.tokens)
            if problem:
                self._failed(f"reward of task {self.settings.task} {problem} (group {group.index}, sample {k})")
                return "error"
            rewards.append(reward)
        for sample, reward in zip(group.samples, rewards, strict=True):
            sample.reward = reward
        self.last_rewards = rewards
        if self.settings.dynamic_filter and max(rewards) == min(rewards):
            self.filtered_zero_variance += 1
            self.filtered_in_a_row += 1
            return "zero_variance"
        self.filtered_in_a_row = 0
        return "ready"

    def _reward(self, problem: Problem, tokens: list[int]) -> tuple[float, str]:
        """(reward, what went wrong or "")."""
        try:
            reward = float(self.task.reward(problem, self.decode(tokens)))
        except Exception as err:
            return 0.0, f"raised {type(err).__name__}: {one_line(str(err))}"
        return reward, "" if math.isfinite(reward) else f"gave {reward}"

    def _failed(self, error: str) -> None:
        self.reward_errors += 1
        self.last_error = error
        if self.reward_errors > self.settings.max_reward_errors:
            raise InputError(
                f"{error}; {self.reward_errors} groups lost so, "
                f"max_reward_errors={self.settings.max_reward_errors}; mend the reward function"
            )

    @property
    def solved(self) -> str | None:
        """Why there is nothing left to learn, in one line; None while there is."""
        if self.filtered_in_a_row < self.settings.max_drops:
            return None
        return (
            f"{self.filtered_in_a_row} groups in a row had equal rewards, the last {self.last_rewards[0]:g}: "
            f"{'the task is solved' if self.last_rewards[0] >= 1 else 'the task is out of reach'}; change difficulty"
        )

    def pass_at_1(self, responses: Sequence[list[int]]) -> float:
        """Share of held-out problems whose one response is right. A reward that fails counts as wrong."""
        rewards = (self._reward(p, tokens) for p, tokens in zip(self.held_out, responses, strict=True))
        return sum(not problem and reward >= 1 for reward, problem in rewards) / max(1, len(self.held_out))
