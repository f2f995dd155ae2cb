"""Rows of conversations of the tiny world for supervised fine-tuning; same contract as `minglm.data.chat.SftLoader`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from minglm.data.chat import stack
from minglm.data.conversations import Example
from minglm.data.shards import Batch
from minglm.data.tiny_world.conversations import KINDS_WITH_ANSWERS, conversation, encode
from minglm.data.tiny_world.needles import Needles, needles, statement
from minglm.data.tiny_world.vocabulary import tokenizer
from minglm.errors import InputError, nearest

TASKS = (*KINDS_WITH_ANSWERS, "needles")
_FORM_WEIGHTS = {"plain": 0.7, "several": 0.05, "hop": 0.1, "absent": 0.15}
_MOST_TURNS = 4
_LEAST_PASSAGE = 64  # tokens
_TURN = 24  # tokens of another question about a passage with its answer, at most

Part = tuple[list[int], list[bool]]


class TinyWorldChats:
    """Conversations packed into rows; each sees itself alone and the loss counts its answers.

    Args:
        tasks: kind of conversation → share of the draws that fill a row; `file` takes from `conversations`. `needles`
            is the share of rows that open with a passage, one to eight facts hidden in a story: what opens a row has
            room for distances that the last of a row never has. Alone, it fills the rows.
        validation: conversations that training does not draw, held-out combinations included.
    """

    def __init__(
        self,
        batch_size: int,
        seq_len: int,
        tasks: Mapping[str, float],
        seed: int = 0,
        conversations: Sequence[Example] | None = None,
        validation: bool = False,
    ) -> None:
        known = {*TASKS, "file"} if conversations else set(TASKS)
        for task, share in tasks.items():
            if task not in known:
                raise InputError(f"tasks key {task!r}: not one of {', '.join(sorted(known))}{nearest(task, known)}")
            if isinstance(share, bool) or not isinstance(share, (int, float)) or share < 0:
                raise InputError(f"tasks: share of {task} = {share!r}: must be a number of at least 0; give 0.1")
        if tasks.get("needles", 0) > 1:
            raise InputError(f"tasks: share of needles = {tasks['needles']!r}: a share of rows, at most 1; give 1")
        if not sum(tasks.values()):
            raise InputError(
                f"tasks={dict(tasks)!r}: something must have a share; for example {{codes: 0.5, copy: 0.5}}"
            )
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        others = {task: share for task, share in tasks.items() if task != "needles" and share}
        self.tasks, self.shares = list(others) or ["needles"], list(others.values()) or [1.0]
        self.passages = tasks.get("needles", 0.0)
        self.conversations, self.validation = list(conversations or []), validation

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        rows = [self._row(step * self.batch_size + r) for r in range(self.batch_size)]
        return stack(rows, self.seq_len, tokenizer().pad)

    def _row(self, row: int) -> list[Part]:
        rng = random.Random(f"tiny world/chats/{'validation' if self.validation else 'training'}/{self.seed}/{row}")
        parts: list[Part] = []
        room = self.seq_len + 1
        while True:
            opens = not parts and rng.random() < self.passages
            task = "needles" if opens else rng.choices(self.tasks, self.shares)[0]
            part = self._part(task, rng, room)
            if part is None or len(part[0]) > room:
                if not parts and part:  # one conversation longer than a row keeps its end, the answer
                    parts.append((part[0][-room:], part[1][-room:]))
                return parts
            parts.append(part)
            room -= len(part[0])

    def _part(self, task: str, rng: random.Random, room: int) -> Part | None:
        if task == "needles":
            if room < 2 * _LEAST_PASSAGE:
                return None
            turns = rng.randint(1, _MOST_TURNS)
            most = room - 48 - _TURN * (turns - 1)  # the answers follow the prompt
            if most < _LEAST_PASSAGE:
                turns, most = 1, room - 48
            # Long ones come more often: looking far back is what takes longest to learn.
            length = max(rng.randint(_LEAST_PASSAGE, most) for _ in range(2))
            facts = min(rng.randint(1, 8), max(1, (length - 40) // 16))
            form = rng.choices(list(_FORM_WEIGHTS), list(_FORM_WEIGHTS.values()))[0]
            try:
                problem = needles(rng, length, facts, rng.random(), form if facts > 1 else "plain", held_out=False)
            except InputError:  # long names left no room: fewer facts always have some
                problem = needles(rng, length, 1, rng.random(), "plain", held_out=False)
            return encode(Example("needles", problem.messages + _more_questions(problem, rng, turns - 1)))
        if task == "file":
            return encode(rng.choice(self.conversations))
        return encode(conversation(task, rng, None if self.validation else False, rng.randint(1, _MOST_TURNS)))


def _more_questions(problem: Needles, rng: random.Random, count: int) -> tuple[tuple[str, str], ...]:
    """Turns that ask for `count` other facts of a passage: a row that is read once teaches as often as it is asked."""
    others = [fact for fact in problem.told if fact[0] != problem.name]
    rng.shuffle(others)
    turns: list[tuple[str, str]] = []
    for name, code in others[:count]:
        turns += [("user", f"What do we call {name}?"), ("assistant", statement(name, code))]
    return tuple(turns)
