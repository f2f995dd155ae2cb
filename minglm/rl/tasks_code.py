"""An agentic task: write or mend a short Python function, run its tests in a sandbox, look at the result, try again.

    user        mend def f(x): return 3*x+4    f(1)=5 f(2)=8
    assistant   def f(x): return 3*x+3
    user        f(1) gave 6, not 5                               ← observation, made by the sandbox, never in the loss
    assistant   def f(x): return 3*x+2
                → all tests, shown and hidden, decide the reward

The tests that are shown decide whether another turn follows; the reward asks for the hidden ones too, so a function
that only repeats what is shown earns nothing. Every turn after the first costs a tenth of the reward.

    >>> p = CODE.problem(CODE.train_seed(0), difficulty=2)
    >>> episode = CODE.start(p)
    >>> episode.respond("def f(x): return 'no idea'") is None, episode.respond(CODE.solution(p)), episode.reward
    (False, None, 0.9)

No torch here; a policy is a function from tokens to tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.rl import sandbox
from minglm.rl.sandbox import Limits, Result
from minglm.rl.tasks import Episode, Problem, Task, checked_difficulty, checked_index, is_held_out, prompt_ids

MAX_TURNS = 3
TURN_COST = 0.1
OBSERVATION_CHARS = 80
SHOWN, HIDDEN = 3, 6  # tests of each kind


@dataclass(frozen=True)
class CodeProblem(Problem):
    """`answer` is a program that passes; `tests` are shown in the prompt, `hidden` are not. Both are (arguments,
    value)."""

    argument: str = "x"
    tests: tuple[tuple[tuple, object], ...] = field(default=(), repr=False)
    hidden: tuple[tuple[tuple, object], ...] = field(default=(), repr=False)
    broken: str = ""  # the program to mend; "" when one is to be written

    @property
    def length_hint(self) -> int:
        """Characters of the program, and the end token."""
        return len(self.answer) + 1


class CodeEpisode(Episode):
    """Up to `MAX_TURNS` programs; the last one is judged by all tests, shown and hidden."""

    task: CodeTask
    problem: CodeProblem
    result: Result | None = None  # of the last run, for logs

    def __init__(self, task: CodeTask, problem: CodeProblem) -> None:
        super().__init__(task, problem)

    def respond(self, text: str) -> str | None:
        """Run the program on the tests shown. Wrong and turns left: the observation. Else None, and `reward` is set."""
        if self.done:
            raise InputError(
                f"episode of seed {self.problem.seed} has ended: it takes no further answer; start another"
            )
        self.turns += 1
        problem, limits = self.problem, self.task.limits
        # A child of its own for each kind of test: a program can say in its observation whatever lies in its process.
        self.result = shown = sandbox.run(text, "f", problem.tests, limits)
        if not shown.ok and self.turns < MAX_TURNS:
            return observation(problem, shown)
        self.done = True
        if shown.ok:
            self.result = hidden = sandbox.run(text, "f", problem.hidden, limits)
            self.reward = (1 - TURN_COST * (self.turns - 1)) * hidden.ok
        return None


def observation(problem: CodeProblem, result: Result) -> str:
    """What the policy is told: the first thing wrong in `result`, a run of the tests shown and of no other."""
    assert len(result.passed) == len(problem.tests) and not result.ok
    text = result.message if result.outcome == "ran" else f"{result.outcome}: {result.message}"
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:OBSERVATION_CHARS]


@dataclass(frozen=True)
class CodeTask(Task):
    """Problems about functions of one argument, from `x+3` to a choice between two formulas and sums over a list."""

    limits: Limits = Limits(cpu_s=1, time_s=10)

    def problem(self, seed: int, difficulty: int = 2) -> CodeProblem:
        """The problem of a seed; the same seed and difficulty give the same one.

        Raises:
            InputError: difficulty outside 1 to 8, a seed that is no whole number ≥ 0.
        """
        rng = random.Random(f"{self.name}/{checked_index(seed, 'seed')}/{checked_difficulty(difficulty)}")
        for _ in range(1000):
            problem = _make(rng, seed, difficulty)
            if is_held_out(problem.prompt) == (seed % 2 == 1):
                return problem
        raise RuntimeError(f"task {self.name}: no prompt for seed {seed} in 1000 draws")

    def solution(self, problem: Problem) -> str:
        """A program that passes."""
        return problem.answer

    def reward(self, problem: Problem, text: str) -> float:
        """One program, no second try: 1.0 when it passes all tests."""
        code = _code(problem)
        return float(sandbox.run(text, "f", [*code.tests, *code.hidden], self.limits).ok)

    def start(self, problem: Problem) -> CodeEpisode:
        """An episode of up to `MAX_TURNS` programs."""
        return CodeEpisode(self, _code(problem))

    def demonstration(self, problem: CodeProblem) -> tuple[tuple[str, str], ...]:
        """A conversation in which a first program fails and is mended after its observation, for a warm start.

        The first program is worth showing, not learning: leave its tokens out of the loss.
        """
        episode, rng = self.start(problem), random.Random(f"demonstration {problem.seed}")
        for _ in range(20):
            wrong = problem.broken or _variant(rng, problem.answer)
            if wrong != problem.answer and (observed := self.start(problem).respond(wrong)) is not None:
                episode.turns = 1
                return (
                    ("user", problem.prompt),
                    ("assistant", wrong),
                    ("user", observed),
                    ("assistant", problem.answer),
                )
        return (("user", problem.prompt), ("assistant", problem.answer))


def _code(problem: Problem) -> CodeProblem:
    """The problem of this task that it is. Raises InputError for another task's."""
    if not isinstance(problem, CodeProblem):
        raise InputError(
            f"problem of task {problem.task!r}: task 'code' takes its own problems; make one with CODE.problem"
        )
    return problem


# ---------------------------------------------------------------------- problems


def _make(rng: random.Random, seed: int, difficulty: int) -> CodeProblem:
    kind = rng.choice(_KINDS[: min(len(_KINDS), difficulty + 1)])
    a, b, c = rng.randint(2, 3 + difficulty), rng.randint(1, 9), rng.randint(1, 9)
    argument = "v" if kind in _OF_A_LIST else "x"
    body = kind.replace("A", str(a)).replace("B", str(b)).replace("C", str(c))
    program = f"def f({argument}): return {body}"
    function = eval(f"lambda {argument}: {body}")  # our own text, made a line above
    if argument == "v":
        inputs: list[tuple[object]] = [
            ([rng.randint(0, 9) for _ in range(rng.randint(2, 4))],) for _ in range(SHOWN + HIDDEN)
        ]
    else:
        inputs = [(x,) for x in rng.sample(range(0, 20), SHOWN + HIDDEN)]
    tests = tuple((arguments, function(*arguments)) for arguments in inputs)
    shown, hidden = tests[:SHOWN], tests[SHOWN:]
    broken = ""
    if rng.random() < 0.5:
        for _ in range(20):
            candidate = _variant(rng, program)
            wrong = eval(f"lambda {argument}: {candidate.partition('return ')[2]}")
            if any(wrong(*arguments) != value for arguments, value in shown):
                broken = candidate
                break
    head = f"mend {broken}" if broken else f"write f({argument})"
    prompt = "\n".join(
        [head, *(f"f({', '.join(map(repr, arguments))})={value!r}" for arguments, value in shown)]
    ).replace(", ", ",")
    return CodeProblem("code", seed, difficulty, prompt, program, "", seed % 2 == 1, argument, shown, hidden, broken)


_KINDS = (
    "x+B",
    "A*x",
    "A*x+B",
    "x+B if x>C else x",
    "A*sum(v)",
    "max(v)-min(v)+B",
    "A*x if x%2 else x+B",
    "len(v)*B+sum(v)",
)
_OF_A_LIST = {kind for kind in _KINDS if "(v)" in kind}


def _variant(rng: random.Random, program: str) -> str:
    """The program with one digit or one operator changed."""
    head, _, body = program.partition("return ")
    places = [i for i, ch in enumerate(body) if ch.isdigit() or ch in "+-*><"]
    i = rng.choice(places)
    old = body[i]
    new = (
        rng.choice([d for d in "123456789" if d != old])
        if old.isdigit()
        else rng.choice([o for o in ("+-*" if old in "+-*" else "><") if o != old])
    )
    return f"{head}return {body[:i]}{new}{body[i + 1 :]}"


CODE = CodeTask("code", "write or mend a Python function, run it, try again")


# ---------------------------------------------------------------------- playing an episode


@dataclass(frozen=True)
class Trajectory:
    """A finished episode as tokens. `counted[i]` says whether the policy wrote token i: observations, prompt and role
    markers are not in the loss."""

    tokens: list[int]
    counted: list[bool]
    reward: float
    turns: int
    texts: list[str]  # what the policy said, turn by turn
    observations: list[str]
    ended: bool  # False: it ran into max_tokens


def play(
    task: Task,
    problem: Problem,
    policy: Callable[[list[int]], Sequence[int]],
    tokenizer: Tokenizer,
    max_tokens: int = 1024,
) -> Trajectory:
    """Play one episode. `policy` continues a list of tokens up to and with <|eos|>, or without it where it was cut off.

    An answer without <|eos|>, or one that would go beyond `max_tokens` in all, ends the episode with reward 0.

    Raises:
        InputError: `max_tokens` leaves no room behind the prompt.
    """
    episode = task.start(problem)
    tokens = prompt_ids(tokenizer, problem)
    if max_tokens <= len(tokens):
        raise InputError(
            f"max_tokens={max_tokens}: the prompt alone has {len(tokens)} tokens; allow more, or ask an easier problem"
        )
    counted = [False] * len(tokens)
    texts: list[str] = []
    observations: list[str] = []
    while True:
        response = [int(t) for t in policy(list(tokens))][: max_tokens - len(tokens)]
        tokens, counted = tokens + response, counted + [True] * len(response)
        if not response or response[-1] != tokenizer.eos:
            return Trajectory(tokens, counted, 0.0, episode.turns, texts, observations, False)
        texts.append(tokenizer.decode(response[:-1]))
        observed = episode.respond(texts[-1])
        if observed is None:
            return Trajectory(tokens, counted, episode.reward, episode.turns, texts, observations, True)
        observations.append(observed)
        turn = [tokenizer.user, *tokenizer.encode(observed), tokenizer.assistant]
        if len(tokens) + len(turn) >= max_tokens:
            return Trajectory(tokens, counted, 0.0, episode.turns, texts, observations, False)
        tokens, counted = tokens + turn, counted + [False] * len(turn)
