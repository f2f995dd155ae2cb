"""Two facts in a row: the answer follows from the passage, training and test share no name, a form is only a form."""

import re

import pytest

from minglm.data.tiny_world.held_out import is_held_out
from minglm.data.tiny_world.vocabulary import tokenizer
from minglm.errors import InputError
from minglm.rl.config import load
from minglm.rl.task_registry import get
from minglm.rl.tasks import prompt_ids
from minglm.rl.warm_start import WarmStart

HOP, FORM = get("hop"), get("hop_form")


def _followed(prompt: str) -> str:
    """The answer by regular expressions on the passage."""
    friend = re.search(r"friend of ([\w ]+)\?", prompt).group(1)
    name = re.search(rf"The friend of {friend} is ([\w ]+)\.", prompt).group(1)
    return f"The friend of {friend} is {name}. " + re.search(rf"We call {name} [a-z]+ [a-z]+\.", prompt).group(0)


@pytest.mark.parametrize("difficulty", [2, 4, 8])
def test_the_answer_follows_from_the_passage_and_only_it_is_right(difficulty):
    for i in range(20):
        p = HOP.problem(HOP.heldout_seed(i), difficulty)
        assert p.answer == _followed(p.prompt) and p == HOP.problem(HOP.heldout_seed(i), difficulty)
        assert HOP.reward(p, p.answer) == FORM.reward(p, p.answer) == 1
        wrong = p.answer.replace("friend of ", "friend of Zoe ")
        assert HOP.reward(p, wrong) == 0 and FORM.reward(p, wrong) == 1
        assert HOP.reward(p, "") == FORM.reward(p, p.answer.partition(". ")[2]) == 0
        assert FORM.problem(p.seed, difficulty).prompt == p.prompt


def test_names_of_the_test_are_in_no_training_problem():
    for of, held in ((HOP.train_seed, False), (HOP.heldout_seed, True)):
        for i in range(50):
            p = HOP.problem(of(i), 4)
            names = re.findall(r"We call ([A-Z][\w ]*?) [a-z]", p.prompt)
            assert p.held_out == held and len(names) == 4
            assert all(is_held_out(f"name:{name}") == held for name in names if " " in name)


def test_the_longest_answer_fits_the_recipe():
    settings, t = load("hop"), tokenizer()
    for i in range(200):
        p = HOP.problem(HOP.heldout_seed(i), max(settings.difficulty))
        assert t.decode(t.encode(p.prompt)) == p.prompt and len(prompt_ids(t, p)) <= 32 + 24 * 4
        assert len(t.encode(p.answer)) + 1 <= settings.max_new_tokens


def test_odd_values_and_a_warm_start_are_refused():
    with pytest.raises(InputError, match="difficulty=9"):
        HOP.problem(0, 9)
    with pytest.raises(InputError, match="--init-from"):
        WarmStart(task="hop")
