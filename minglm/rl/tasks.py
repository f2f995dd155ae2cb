"""Tasks with verifiable rewards: a prompt, a worked solution for the warm start, and a checker. No torch.

A solution is a scratchpad, then `#` and the answer; only the answer is checked. Each step of a scratchpad needs the
step before and one item of the prompt, so a model of a million parameters can learn it; how many steps there are is
drawn from a lognormal distribution, so that a few solutions are many times longer than the median one: the long tail
that keeps a rollout waiting.

    division  23/8     15:1 7:2#2,7                 subtract and count; answer: quotient, remainder
    addition  47+85    7+5=12 4+8+1=13#132          columns from the right, carry
    sum       a7b4c9   a7b11c20#20                  running total of labelled digits
    list      312:a~b! a213b123#123                 a list and the operations on it, one after the other
    string    xyz:a^b> ayxzbyxzz#yxzz               the same for a string, whose length changes
    brackets  a(b[c]   a(b([c(#)                    the stack after each bracket; answer: what closes it

Labels (a, b, c, …) name the items, so that "which comes next" is a look-up and not counting.

    >>> from minglm.rl.task_registry import TASKS
    >>> task = TASKS["list"]
    >>> p = task.problem(task.train_seed(3), difficulty=1)
    >>> task.reward(p, task.solution(p)), task.reward(p, "#no")
    (1.0, 0.0)

Seeds: even ones train, odd ones are held out. A problem made from an odd seed also has a prompt whose hash falls in the
held-out fifth, one from an even seed never: the two sets share no prompt, however small the task's world is.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from minglm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minglm.errors import InputError

if TYPE_CHECKING:
    from minglm.data.tokenizer import Tokenizer

LONG_TAIL = 1.15  # σ of the logarithm of the number of steps: the 99th percentile is e^(2.33σ) ≈ 14.5 × the median
MAX_STEPS = 80  # the cap on steps, as an engine has a cap on tokens
MAX_DIFFICULTY = 8
HELD_OUT_OF_FIVE = 1  # prompts whose hash falls in this many fifths are held out
LABELS = "abcdefghijklmnopqrstuvwABCDEFGHIJKLMNOPQRSTUVWXYZ" + "$&'*,-./;=@_`|"
SUM_LABELS = (
    LABELS + "xyz~<>^+!%:()[]{}"
)  # one for each step; other tasks use these as values and operations, and repeat


@dataclass(frozen=True)
class Problem:
    """One question. `length_hint` is the worked solution's length in characters, plus the end token; a policy is not
    told."""

    task: str
    seed: int
    difficulty: int
    prompt: str
    answer: str
    worked: str = field(repr=False)  # scratchpad without the answer
    held_out: bool = False

    @property
    def length_hint(self) -> int:
        """Characters of the worked solution, and the end token."""
        return len(self.worked) + len(self.answer) + 2


@dataclass(frozen=True)
class Task:
    """A generator of problems with a checker. `tail` is σ of the logarithm of the number of steps; 0 makes all
    alike."""

    name: str
    about: str
    tail: float = LONG_TAIL

    # ---- seeds

    @staticmethod
    def train_seed(i: int) -> int:
        """Seed of the i-th training problem, i ≥ 0."""
        return 2 * checked_index(i)

    @staticmethod
    def heldout_seed(i: int) -> int:
        """Seed of the i-th held-out problem, i ≥ 0: never a training seed, and never a training prompt."""
        return 2 * checked_index(i) + 1

    def with_tail(self, sigma: float) -> Task:
        """The same task with another spread of lengths; 0 for solutions of nearly one length."""
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 <= sigma <= 3:
            raise InputError(
                f"tail={sigma!r}: the spread of lengths must lie in 0 to 3; {LONG_TAIL} is the long tail, 0 none"
            )
        return replace(self, tail=float(sigma))

    # ---- the three questions a loop asks

    def problem(self, seed: int, difficulty: int = 2) -> Problem:
        """The problem of a seed; the same seed, difficulty and tail give the same one.

        Raises:
            InputError: difficulty outside 1 to 8, a seed that is no whole number ≥ 0.
        """
        rng = random.Random(f"{self.name}/{checked_index(seed, 'seed')}/{checked_difficulty(difficulty)}/{self.tail}")
        held_out = seed % 2 == 1
        for _ in range(1000):
            prompt, worked, answer = _MAKERS[self.name](rng, difficulty, self._steps(rng, difficulty))
            if is_held_out(prompt) == held_out:
                return Problem(self.name, seed, difficulty, prompt, answer, worked, held_out)
        raise RuntimeError(f"task {self.name}: no prompt for seed {seed} in 1000 draws")  # 0.8^1000: cannot happen

    def solution(self, problem: Problem) -> str:
        """The worked solution, for a supervised warm start."""
        return f"{problem.worked}#{problem.answer}"

    def reward(self, problem: Problem, text: str) -> float:
        """1.0 if `text` holds one `#` and exactly the answer after it, else 0.0. Any text is welcome; it is never
        run."""
        _, mark, after = text.partition("#")
        return float(bool(mark) and "#" not in after and after.strip() == problem.answer)

    def start(self, problem: Problem) -> Episode:
        """An episode to play: tell it what the policy said and it observes, or ends."""
        return Episode(self, problem)

    def _steps(self, rng: random.Random, difficulty: int) -> int:
        """Lognormal with median difficulty + 1, at least 1 and at most `MAX_STEPS`."""
        return max(1, min(MAX_STEPS, round((difficulty + 1) * math.exp(rng.gauss(0, self.tail)))))


class Episode:
    """One problem being worked on. `respond` takes what the policy said, and returns what it sees next; None: the end.

    Here one answer is all there is; `minglm.rl.tasks_code` lets a policy run its program and try again.
    """

    def __init__(self, task: Task, problem: Problem) -> None:
        self.task, self.problem = task, problem
        self.reward, self.turns, self.done = 0.0, 0, False

    def respond(self, text: str) -> str | None:
        """Score the response; nothing is observed. Raises InputError after the end."""
        if self.done:
            raise InputError(
                f"episode of seed {self.problem.seed} has ended: it takes no further answer; start another"
            )
        self.reward, self.turns, self.done = self.task.reward(self.problem, text), 1, True
        return None


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out fifth, by its hash."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 5 < HELD_OUT_OF_FIVE


def checked_difficulty(difficulty: int) -> int:
    """A difficulty from 1 to `MAX_DIFFICULTY`. Raises InputError for any other."""
    if isinstance(difficulty, bool) or not isinstance(difficulty, int) or not 1 <= difficulty <= MAX_DIFFICULTY:
        raise InputError(f"difficulty={difficulty!r}: must be a whole number from 1 to {MAX_DIFFICULTY}; start with 1")
    return difficulty


def checked_index(i: int, name: str = "index") -> int:
    """A whole number of at least 0. Raises InputError for anything else."""
    if isinstance(i, bool) or not isinstance(i, int) or i < 0:
        raise InputError(f"{name} {i!r}: must be a whole number of at least 0; count problems from 0")
    return i


# -------------------------------------------------- the tasks: (rng, difficulty, steps) → prompt, scratchpad, answer


def _division(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    divisor = rng.randint(2, 4 + 2 * difficulty)
    n = divisor * steps + rng.randrange(divisor)
    rest = [n - divisor * k for k in range(1, steps + 1)]
    return f"{n}/{divisor}", " ".join(f"{r}:{k}" for k, r in enumerate(rest, 1)), f"{steps},{n - divisor * steps}"


def _addition(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    low = 10 ** (steps - 1) if steps > 1 else 0
    a, b = rng.randint(low, 10**steps - 1), rng.randint(low, 10**steps - 1)
    columns, carry = [], 0
    for x, y in zip(str(a)[::-1], str(b)[::-1], strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{a}+{b}", " ".join(columns), str(a + b)


def _sum(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    prompt, worked, total = "", "", 0
    for i in range(steps):
        digit = rng.randint(0, min(9, 1 + 2 * difficulty))
        total += digit
        label = SUM_LABELS[i]
        prompt += f"{label}{digit}"
        worked += f"{label}{total}"
    return prompt, worked, str(total)


_LIST_OPS: dict[str, Callable[[list[int]], list[int]]] = {
    "~": lambda v: v[::-1],
    "<": lambda v: v[1:] + v[:1],
    "+": lambda v: [(x + 1) % 10 for x in v],
    "!": sorted,
    "%": lambda v: [v[1], v[0], *v[2:]],
}
_STRING_OPS: dict[str, Callable[[str], str]] = {
    "~": lambda s: s[::-1],
    "<": lambda s: s[1:],
    ">": lambda s: s + s[-1:],
    "^": lambda s: s.translate(str.maketrans("xy", "yx")),
    "+": lambda s: s[:1] + s,
}
_LONGEST = 8  # a string that would grow beyond is shortened by its next operation


def _list(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    values = [rng.randrange(10) for _ in range(2 + (difficulty + 1) // 2)]
    start, ops, worked = "".join(map(str, values)), "", ""
    for i in range(steps):
        op = rng.choice(list(_LIST_OPS))
        values = _LIST_OPS[op](values)
        ops += _label(i) + op
        worked += _label(i) + "".join(map(str, values))
    return f"{start}:{ops}", worked, "".join(map(str, values))


def _string(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    text = "".join(rng.choice("xyz") for _ in range(2 + (difficulty + 1) // 2))
    start, ops, worked = text, "", ""
    for i in range(steps):
        allowed = [
            op for op in _STRING_OPS if not (op == "<" and len(text) < 2) and not (op in ">+" and len(text) >= _LONGEST)
        ]
        op = rng.choice(allowed)
        text = _STRING_OPS[op](text)
        ops += _label(i) + op
        worked += _label(i) + text
    return f"{start}:{ops}", worked, text


_PAIRS = {"(": ")", "[": "]", "{": "}"}


def _brackets(rng: random.Random, difficulty: int, steps: int) -> tuple[str, str, str]:
    kinds, deepest = list(_PAIRS)[: 1 + (difficulty + 1) // 2], 2 + difficulty // 2
    stack, prompt, worked = "", "", ""
    for i in range(steps):
        opens = not stack or (len(stack) < deepest and rng.random() < 0.6)
        char = rng.choice(kinds) if opens else _PAIRS[stack[-1]]
        stack = stack + char if opens else stack[:-1]
        prompt += _label(i) + char
        worked += _label(i) + stack
    return prompt, worked, "".join(_PAIRS[c] for c in reversed(stack))


def _label(i: int) -> str:
    return LABELS[i % len(LABELS)]


_MAKERS = {
    "division": _division,
    "addition": _addition,
    "sum": _sum,
    "list": _list,
    "string": _string,
    "brackets": _brackets,
}

# ---------------------------------------------------------------------- tokens


@lru_cache(maxsize=1)
def task_tokenizer() -> Tokenizer:
    """One token per character: printable ASCII, tab and newline after the six special tokens, 103 ids in all.

    The project's own `Tokenizer`, so that chats, checkpoints and generation work as with any other; characters outside
    become "?".
    """
    import tokenizers

    alphabet = [*SPECIAL_TOKENS, "\t", "\n", *map(chr, range(32, 127))]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [], unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return Tokenizer(backend)


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """<|bos|><|user|>prompt<|assistant|>: where a rollout starts."""
    return [tokenizer.bos, tokenizer.user, *tokenizer.encode(problem.prompt), tokenizer.assistant]


def chat(task: Task, problem: Problem) -> tuple[tuple[str, str], ...]:
    """The conversation that a warm start learns from, as `minglm.data.chat.encode_chat` takes it."""
    return (("user", problem.prompt), ("assistant", task.solution(problem)))
