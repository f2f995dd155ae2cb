"""Tasks for a chat model of the tiny world: a short passage of facts, one question, and the whole answer is checked.

    hop       The friend of Ada Irwin is Joel Thorne. … We call Joel Thorne golden otter. … What do we call the friend
              of Ada Irwin?                                → The friend of Ada Irwin is Joel Thorne. We call Joel Thorne
              golden otter.
    hop_form  the same questions; any two sentences of that shape are rewarded, whatever they say

The second is the control of the first: what a reward that knows the form alone brings. Difficulty is the number of
facts in the passage. Names and codes of a problem from an odd seed are those that no training shows, in no stage
(`minglm.data.tiny_world.held_out`), so the two sets share no answer. No torch.

    >>> p = HOP.problem(HOP.heldout_seed(0), difficulty=2)
    >>> HOP.reward(p, p.answer), HOP_FORM.reward(p, p.answer)
    (1.0, 1.0)
    >>> form = "The friend of Ada is Hugo. We call Odo golden otter."
    >>> HOP.reward(p, form), HOP_FORM.reward(p, form)
    (0.0, 1.0)
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from minglm.data.tiny_world.needles import needles
from minglm.rl.tasks import Problem, Task, checked_difficulty, checked_index

_LEAST_TOKENS, _TOKENS_A_FACT = 32, 24  # of a prompt: facts, question and a little of a story between them
_FORM = re.compile(r"The friend of [A-Z][A-Za-z ]* is [A-Z][A-Za-z ]*\. We call [A-Z][A-Za-z ]* [a-z]+( [a-z]+)?\.")


@dataclass(frozen=True)
class HopTask(Task):
    """Two facts in a row; `form_only` pays for the shape of the answer."""

    form_only: bool = False

    def problem(self, seed: int, difficulty: int = 4) -> Problem:
        """The problem of a seed; the same seed and difficulty give the same one, for both rewards.

        Raises:
            InputError: difficulty outside 1 to 8, a seed that is no whole number ≥ 0.
        """
        rng = random.Random(f"hop/{checked_index(seed, 'seed')}/{checked_difficulty(difficulty)}")
        held_out = seed % 2 == 1
        length = _LEAST_TOKENS + _TOKENS_A_FACT * difficulty
        asked = needles(rng, length, difficulty, rng.random(), "hop", held_out)
        return Problem(self.name, seed, difficulty, f"{asked.passage} {asked.question}", asked.expected, "", held_out)

    def solution(self, problem: Problem) -> str:
        """The answer; it is its own working."""
        return problem.answer

    def reward(self, problem: Problem, text: str) -> float:
        """1.0 for the whole answer, or for its form where that is all that is asked; else 0.0."""
        return float(bool(_FORM.fullmatch(text.strip())) if self.form_only else text.strip() == problem.answer)


HOP = HopTask("hop", "follow two facts of a passage (tiny world)", 0.0)
HOP_FORM = HopTask("hop_form", "the form of such an answer alone (tiny world)", 0.0, form_only=True)
