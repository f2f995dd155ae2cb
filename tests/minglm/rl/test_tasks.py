"""Tasks with verifiable rewards: right answers pass, others do not, train and held-out share nothing, lengths have a
tail."""

import operator
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.rl.task_registry import TASKS, get
from minglm.rl.tasks import LABELS, MAX_DIFFICULTY, MAX_STEPS, chat, prompt_ids, task_tokenizer

NAMES = list(TASKS)


def solve(name: str, prompt: str) -> str:
    """Each task's answer computed another way, from the prompt alone."""
    if name == "division":
        return ",".join(map(str, divmod(*map(int, prompt.split("/")))))
    if name == "addition":
        return str(operator.add(*map(int, prompt.split("+"))))
    if name == "sum":
        return str(sum(map(int, prompt[1::2])))
    if name == "brackets":
        text = prompt[1::2]
        while (shorter := text.replace("()", "").replace("[]", "").replace("{}", "")) != text:
            text = shorter
        return text[::-1].translate(str.maketrans("([{", ")]}"))
    value, ops = prompt.split(":")
    for op in ops[1::2]:
        if op == "~":
            value = "".join(reversed(value))
        elif op == "!":
            value = "".join(sorted(value))
        elif op == "%":
            value = value[1] + value[0] + value[2:]
        elif op == "^":
            value = value.replace("x", "_").replace("y", "x").replace("_", "y")
        elif op == ">":
            value += value[-1]
        elif op == "<":
            value = value[1:] + (value[0] if name == "list" else "")
        elif name == "list":
            value = "".join(str((int(d) + 1) % 10) for d in value)
        else:
            value = value[0] + value
    return value


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9), difficulty=st.integers(1, MAX_DIFFICULTY))
def test_answers_are_right_and_only_they_pass(name, seed, difficulty):
    task = TASKS[name]
    p = task.problem(seed, difficulty)
    assert p.answer == solve(name, p.prompt)
    assert p == task.problem(seed, difficulty), "the same seed gives the same problem"
    text = task.solution(p)
    assert task.reward(p, text) == task.reward(p, f"#{p.answer}") == 1
    for wrong in (
        "",
        p.answer,
        text + "0",
        text + "#" + p.answer,
        f"#{p.answer}#",
        "#",
        text.replace("#", ""),
        "#" + p.answer + "x",
    ):
        if wrong.partition("#")[2].strip() != p.answer or wrong.count("#") != 1:
            assert task.reward(p, wrong) == 0, wrong
    assert p.length_hint == len(task_tokenizer().encode(text)) + 1
    assert len(p.prompt) > 0


@settings(deadline=None, max_examples=100)
@given(name=st.sampled_from(NAMES), text=st.text(max_size=60))
def test_reward_of_any_text_is_zero_or_one(name, text):
    task = TASKS[name]
    assert task.reward(task.problem(4), text) in (0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_train_and_held_out_share_no_seed_and_no_prompt(name):
    task = TASKS[name]
    assert not {task.train_seed(i) for i in range(500)} & {task.heldout_seed(i) for i in range(500)}
    for difficulty in (1, 2, 5):
        train = {task.problem(task.train_seed(i), difficulty).prompt for i in range(1500)}
        held = [task.problem(task.heldout_seed(i), difficulty) for i in range(400)]
        assert not train & {p.prompt for p in held}
        assert all(p.held_out for p in held) and len({p.prompt for p in held}) > 20


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_solution_lengths_have_a_long_tail_and_the_dial_moves_them(name, difficulty):
    task = TASKS[name]

    def lengths(task, difficulty):
        return sorted(task.problem(task.train_seed(i), difficulty).length_hint for i in range(2000))

    long = lengths(task, difficulty)
    median, p99 = long[1000], long[1980]
    assert p99 >= 8 * median, f"median {median}, 99th percentile {p99}"
    assert sum(long[1000:]) > 3 * sum(long[:1000]), "most tokens are in the longer half"
    even = lengths(task.with_tail(0), difficulty)
    assert even[1980] <= 2.5 * even[1000]
    assert lengths(task, difficulty + 2)[1000] > median


def test_tokenizer_is_one_token_a_character_and_works_as_any_other(tmp_path):
    from minglm.data.chat import encode_chat
    from minglm.data.tokenizer import Tokenizer

    tokenizer = task_tokenizer()
    text = "".join(map(chr, range(32, 127))) + "\n\t"
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode("é<|eos|>")) == "?<|eos|>", "an end written out in a text is text"
    assert tokenizer.vocab_size == 103 and (tokenizer.bos, tokenizer.eos) == (0, 1)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)
    task = TASKS["sum"]
    p = task.problem(0)
    ids, counted = encode_chat(tokenizer, chat(task, p))
    start = prompt_ids(tokenizer, p)
    assert ids[: len(start)] == start and not any(counted[: len(start)]) and all(counted[len(start) :])
    assert tokenizer.decode(ids[len(start) :]) == task.solution(p)


def test_the_cap_on_steps_and_the_labels_hold():
    p = max((TASKS["sum"].problem(i, 8) for i in range(0, 4000, 2)), key=lambda p: len(p.prompt))
    assert len(p.prompt) == 2 * MAX_STEPS and p.prompt[::2][: len(LABELS)] == LABELS


def test_bad_input_says_value_rule_and_remedy():
    for call, words in [
        (lambda: get("brakets"), "did you mean 'brackets'"),
        (lambda: TASKS["sum"].problem(0, 0), "difficulty=0"),
        (lambda: TASKS["sum"].problem(-1), "seed -1"),
        (lambda: TASKS["sum"].train_seed(True), "index True"),
        (lambda: get("sum", tail=9), "tail=9"),
    ]:
        with pytest.raises(InputError, match=words) as err:
            call()
        assert "\n" not in str(err.value)


def test_tasks_need_no_torch():
    code = (
        "import sys; from minglm.rl.task_registry import TASKS; TASKS['list'].problem(0); assert 'torch' not in "
        "sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_no_label_of_a_sum_repeats():
    """Which digit comes next is a look-up by label, however many there are."""
    task = TASKS["sum"].with_tail(3.0)
    prompts = [task.problem(seed).prompt for seed in range(200)]
    assert max(map(len, prompts)) == 2 * MAX_STEPS
    assert all(len(set(p[::2])) == len(p) // 2 for p in prompts)
