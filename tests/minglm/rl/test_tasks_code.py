"""The agentic task, played by scripted policies: what is observed, what is counted, what is rewarded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.rl import sandbox, sandbox_values, tasks_code
from minglm.rl.task_registry import TASKS, get
from minglm.rl.tasks import prompt_ids, task_tokenizer
from minglm.rl.tasks_code import CODE, MAX_TURNS, play


def scripted(*texts: str):
    """A policy that says these texts in turn, and records what it was shown."""
    tokenizer, seen, left = task_tokenizer(), [], list(texts)

    def policy(tokens: list[int]) -> list[int]:
        seen.append(tokens)
        return [*tokenizer.encode(left.pop(0)), tokenizer.eos]

    policy.seen = seen
    return policy


def mend_problem(difficulty: int = 2):
    return next(p for i in range(50) if (p := CODE.problem(CODE.train_seed(i), difficulty)).broken)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**9), st.integers(1, 8))
def test_problems_are_sound(seed, difficulty):
    p = CODE.problem(seed, difficulty)
    assert p == CODE.problem(seed, difficulty)
    function = eval("lambda " + p.answer.removeprefix("def f(").replace("): return", ":"))
    for arguments, value in p.tests + p.hidden:
        assert function(*arguments) == value
    assert len(p.tests) == tasks_code.SHOWN and len(p.hidden) == tasks_code.HIDDEN
    for arguments, value in p.tests:
        assert f"f({repr(arguments[0]).replace(', ', ',')})={value!r}" in p.prompt
    if p.broken:
        wrong = eval("lambda " + p.broken.removeprefix("def f(").replace("): return", ":"))
        assert any(wrong(*a) != v for a, v in p.tests), "a program to mend fails a shown test"
    assert len(task_tokenizer().encode(p.prompt)) < 150


def test_train_and_held_out_share_no_prompt():
    train = {CODE.problem(CODE.train_seed(i)).prompt for i in range(400)}
    held = {CODE.problem(CODE.heldout_seed(i)).prompt for i in range(200)}
    assert not train & held and len(held) > 50


def test_mended_at_the_second_try():
    tokenizer, p = task_tokenizer(), mend_problem()
    policy = scripted(p.broken, p.answer)
    t = play(CODE, p, policy, tokenizer)
    assert t.ended and t.turns == 2 and t.reward == pytest.approx(0.9) and len(t.observations) == 1
    assert "gave" in t.observations[0] and ", not " in t.observations[0]
    # what the policy wrote, with its ends, is counted; nothing else is
    written = [*tokenizer.encode(p.broken), tokenizer.eos, *tokenizer.encode(p.answer), tokenizer.eos]
    assert [tok for tok, on in zip(t.tokens, t.counted, strict=True) if on] == written
    left_out = [tok for tok, on in zip(t.tokens, t.counted, strict=True) if not on]
    observed = [tokenizer.user, *tokenizer.encode(t.observations[0]), tokenizer.assistant]
    assert left_out == [*prompt_ids(tokenizer, p), *observed]
    # the second time it was shown all that went before
    assert policy.seen[1] == t.tokens[: len(policy.seen[1])] and policy.seen[1][-len(observed) :] == observed


def test_first_try_is_worth_most_and_turns_are_bounded():
    tokenizer, p = task_tokenizer(), mend_problem()
    assert play(CODE, p, scripted(p.answer), tokenizer).reward == 1.0
    assert play(CODE, p, scripted(p.broken, p.broken, p.answer), tokenizer).reward == pytest.approx(0.8)
    t = play(CODE, p, scripted(*[p.broken] * 10), tokenizer)
    assert t.turns == MAX_TURNS and t.reward == 0 and t.ended and len(t.observations) == MAX_TURNS - 1


def test_repeating_the_tests_shown_earns_nothing():
    p = mend_problem()
    table = {arguments: value for arguments, value in p.tests} if p.argument == "x" else {}
    cheat = (
        f"def f(x): return {dict((a[0], v) for a, v in table.items())!r}.get(x)"
        if table
        else f"def f({p.argument}): return {p.tests[0][1]}"
    )
    t = play(CODE, p, scripted(cheat, cheat, cheat), task_tokenizer())
    assert t.reward == 0
    if table:
        assert t.turns == 1, "all shown tests pass: no further turn, and the hidden ones fail"


@pytest.mark.parametrize(
    "said, words",
    [
        ("def f(", "error: SyntaxError"),
        ("import os\ndef f(x): os._exit(3)", "crashed"),
        ("def f(x): return 'é\\n'", "gave"),
        ("no program", "error"),
    ],
)
def test_observations_are_one_short_line_of_the_alphabet(said, words):
    episode = CODE.start(mend_problem())
    seen = episode.respond(said)
    assert words in seen and len(seen) <= tasks_code.OBSERVATION_CHARS and seen.isascii() and "\n" not in seen


SPIES = {
    "the checker's own list": (
        "import sys\ndef f(x):\n frame, seen = sys._getframe(), []\n"
        " while frame:\n  seen += [v for v in frame.f_locals.values() if type(v) is list]\n  frame = frame.f_back\n"
        " return seen"
    ),
    "all that the collector knows": (
        "import gc\ndef f(x): return [o for o in gc.get_objects() if type(o) is tuple and len(o) == 1]"
    ),
    "the calls that came": "seen = []\ndef f(x):\n seen.append(x)\n return seen",
    "by its end": "import os\nseen = []\ndef f(x):\n seen.append(x)\n if len(seen) > 3: os._exit(x)\n return x",
    "by its exception": "def f(x):\n import sys\n raise ValueError(sys._getframe(1).f_locals)",
}


@pytest.mark.parametrize("name", SPIES)
def test_no_observation_can_tell_a_hidden_test(name, monkeypatch):
    """Whatever a program finds in its process while it can still be observed, no hidden argument is there: the child
    that is told them runs after the last observation."""
    told = []
    real = sandbox._child
    monkeypatch.setattr(
        sandbox, "_child", lambda request, *rest: told.append(json.loads(request)) or real(request, *rest)
    )
    for i in range(20):
        p = CODE.problem(CODE.train_seed(i), 3)
        told.clear()
        episode = CODE.start(p)
        observed = episode.respond(SPIES[name])
        shown = [sandbox_values.encode(tuple(a)) for a, _ in p.tests]
        assert observed is not None and [t["calls"] for t in told] == [shown]
        if i < 2:
            assert episode.respond(SPIES[name]) is not None and episode.respond(SPIES[name]) is None
            assert all(t["calls"] == shown for t in told) and episode.reward == 0
    assert CODE.start(p).respond(p.answer) is None
    assert told[-1]["calls"] == [sandbox_values.encode(tuple(a)) for a, _ in p.hidden], "hidden tests decide at the end"


def test_a_hostile_program_is_an_answer_like_any_other():
    t = play(
        CODE,
        mend_problem(),
        scripted("while True: pass", "import os\ndef f(x):\n while True: os.fork()", "def f(x): return open('a','w')"),
        task_tokenizer(),
    )
    assert t.reward == 0 and t.turns == 3 and "timeout" in t.observations[0] and "PermissionError" in t.observations[1]


def test_cut_off_answers_end_with_nothing():
    tokenizer, p = task_tokenizer(), mend_problem()
    t = play(CODE, p, lambda tokens: tokenizer.encode("def f("), tokenizer)
    assert not t.ended and t.reward == 0 and t.turns == 0 and sum(t.counted) == 6
    t = play(CODE, p, scripted("x" * 500), tokenizer, max_tokens=len(prompt_ids(tokenizer, p)) + 20)
    assert not t.ended and sum(t.counted) == 20
    t = play(
        CODE, p, scripted(p.broken, p.answer), tokenizer, max_tokens=len(prompt_ids(tokenizer, p)) + len(p.broken) + 5
    )
    assert not t.ended and t.reward == 0 and t.turns == 1, "no room for the observation"
    with pytest.raises(InputError, match="max_tokens=3"):
        play(CODE, p, scripted(p.answer), tokenizer, max_tokens=3)


def test_the_loop_treats_all_tasks_alike():
    tokenizer = task_tokenizer()
    for task in [*TASKS.values(), get("code")]:
        p = task.problem(task.heldout_seed(0))
        t = play(task, p, scripted(task.solution(p)), tokenizer)
        assert t.reward == 1 and t.turns == 1 and t.ended and task.reward(p, task.solution(p)) == 1
        episode = task.start(p)
        assert episode.respond(task.solution(p)) is None and episode.done
        with pytest.raises(InputError, match="has ended"):
            episode.respond("again")


def test_demonstrations_fail_once_and_then_mend():
    p = mend_problem()
    turns = CODE.demonstration(p)
    assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[1][1] == p.broken and turns[3][1] == p.answer and "gave" in turns[2][1]
    assert CODE.demonstration(p) == turns
