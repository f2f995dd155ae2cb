"""Rewards and what follows from them: which groups train, which are dropped and why, held-out pass@1. Torch-free.

A reward function is foreign code: it may raise, or return what is no number. Then the group is dropped, counted and named,
and the run stops when that happens too often.
"""

from __future__ import annotations

import math

from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.data_source import Group


class Judge:
    """Gives rewards with a task's `reward(problem, text)`."""

    def __init__(self, settings: Settings, task, tokenizer) -> None:
        self.settings, self.task, self.tokenizer = settings, task, tokenizer
        self.filtered_zero_variance = self.reward_errors = self.in_a_row = 0
        self.last_error, self.last_rewards = "", [0.0]
        difficulties = settings.difficulty
        self.held_out = [
            task.problem(task.heldout_seed(i), difficulties[i % len(difficulties)])
            for i in range(settings.eval_problems)
        ]

    def counts(self) -> dict:
        return {"filtered_zero_variance": self.filtered_zero_variance, "reward_errors": self.reward_errors}

    def restore(self, counts: dict) -> None:
        self.filtered_zero_variance, self.reward_errors = counts["filtered_zero_variance"], counts["reward_errors"]

    def judge(self, group: Group) -> str:
        """Fill in the samples' rewards. Returns "ready", "zero_variance" (filtered: nothing to learn) or "error" (the reward failed).

        Raises:
            InputError: more groups lost to the reward function than max_reward_errors.
        """
        for k, sample in enumerate(group.samples):
            try:
                sample.reward = float(self.task.reward(group.problem, self.text(sample.tokens)))
                problem = None if math.isfinite(sample.reward) else f"gave {sample.reward}"
            except Exception as err:
                sample.reward, problem = None, f"raised {type(err).__name__}: {' '.join(str(err).split())[:200]}"
            if problem:
                self.reward_errors += 1
                self.last_error = f"reward of task {self.settings.task} {problem} (group {group.index}, sample {k})"
                for s in group.samples:
                    s.reward = None
                if self.reward_errors > self.settings.max_reward_errors:
                    raise InputError(
                        f"{self.last_error}; {self.reward_errors} groups lost so, max_reward_errors={self.settings.max_reward_errors}; mend the reward function"
                    )
                return "error"
        self.last_rewards = [s.reward for s in group.samples]
        if self.settings.dynamic_filter and max(self.last_rewards) == min(self.last_rewards):
            self.filtered_zero_variance += 1
            self.in_a_row += 1
            return "zero_variance"
        self.in_a_row = 0
        return "ready"

    def text(self, tokens: list[int]) -> str:
        """An answer as the reward sees it: without its end token and other special tokens."""
        return self.tokenizer.decode(tokens)

    @property
    def solved(self) -> str | None:
        """Why there is nothing left to learn, in one line; None while there is."""
        if self.in_a_row < self.settings.max_drops:
            return None
        return (
            f"{self.in_a_row} groups in a row had equal rewards, the last {self.last_rewards[0]:g}: "
            f"{'the task is solved' if self.last_rewards[0] >= 1 else 'the task is out of reach'}; change difficulty"
        )

    def pass_at_1(self, answers: list[list[int]]) -> float:
        """Share of held-out problems whose one answer is right. A reward that fails counts as wrong."""
        right = 0
        for problem, tokens in zip(self.held_out, answers):
            try:
                right += self.task.reward(problem, self.text(tokens)) >= 1
            except Exception:
                continue
        return right / max(1, len(self.held_out))
