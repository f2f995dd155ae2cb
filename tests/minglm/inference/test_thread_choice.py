"""A single sequence decodes on one thread or on all, whichever is faster; its values do not hang on that."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.inference.decoder import Decoder
from minglm.inference.thread_choice import FIRST_TRIAL, WINS, ThreadChoice
from minglm.model.cache import LatentCache
from minglm.model.model import Model
from minglm.runtime.switch import VARIABLE


class Machine:
    """A clock that the steps move: how long one takes on one thread and on all."""

    def __init__(self, one: float, everyone: float):
        self.now, self.one, self.everyone, self.log = 0.0, one, everyone, []

    def step(self) -> None:
        threads = torch.get_num_threads()
        self.log.append(threads)
        self.now += self.one if threads == 1 else self.everyone


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def walk(machine: Machine, choice: ThreadChoice, steps: int) -> list[int]:
    first = len(machine.log)
    for _ in range(steps):
        choice.run(machine.step)
    assert torch.get_num_threads() == 2  # given back after every step
    return machine.log[first:]


def test_all_threads_are_taken_where_they_win_and_left_when_a_neighbour_comes(two_threads):
    machine = Machine(one=1.0, everyone=0.6)
    choice = ThreadChoice(lambda: machine.now)
    assert walk(machine, choice, FIRST_TRIAL) == [1] * FIRST_TRIAL
    assert walk(machine, choice, 100) == [2] * 100
    machine.everyone = 20.0  # a neighbour
    assert walk(machine, choice, 1 + FIRST_TRIAL) == [2] + [1] * FIRST_TRIAL
    machine.everyone = 0.6  # gone
    assert walk(machine, choice, 50) == [2] * 50


def test_trials_that_lose_come_ever_more_seldom(two_threads):
    machine = Machine(one=1.0, everyone=10.0)
    choice = ThreadChoice(lambda: machine.now)
    assert walk(machine, choice, 2000).count(2) == 6  # after 16, 32, 64, … 512 steps on one
    machine.log.clear()
    choice = ThreadChoice(lambda: machine.now)
    machine.everyone = 0.99
    walk(machine, choice, FIRST_TRIAL + WINS - 1)
    machine.everyone = 1.01  # the last trial is lost: no chance win is kept
    assert walk(machine, choice, 3) == [2, 1, 1]


def test_work_beside_the_steps_follows_their_choice(two_threads):
    machine = Machine(one=1.0, everyone=0.6)
    choice = ThreadChoice(lambda: machine.now)
    choice.follow(machine.step)
    assert machine.log == [1] and not choice.alone
    walk(machine, choice, FIRST_TRIAL + WINS)
    choice.follow(machine.step)
    assert machine.log[-1] == 2


def test_switched_off_torch_has_its_threads(two_threads, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    machine = Machine(1.0, 10.0)
    assert walk(machine, ThreadChoice(lambda: machine.now), 5) == [2] * 5


def test_an_error_gives_the_threads_back(two_threads):
    with pytest.raises(ZeroDivisionError):
        ThreadChoice().run(lambda: 1 // 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("size", ["nano", "mini"])
def test_logits_do_not_hang_on_the_threads(size):
    torch.manual_seed(0)
    model, before, logits = Model(ModelConfig.named(size)).eval(), torch.get_num_threads(), []
    tokens = torch.randint(512, (40,)).tolist()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decoder = Decoder(model, LatentCache(model.config, 1, 48))
            if threads == 2:  # all from the first step on
                decoder.thread_choice.countdown, decoder.thread_choice.wins = 0, WINS
                decoder.thread_choice.alone.append(1e9)
            logits.append(torch.cat([decoder.step(torch.tensor([[t]]), [i]) for i, t in enumerate(tokens)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*logits)
