"""What the reward manager gives a group, what it filters, and when it gives up."""

from types import SimpleNamespace

import pytest

from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.data_source import Group, Sample
from minglm.rl.rewards import RewardManager


class Task:
    """Rewards are the numbers that a response says; problems are (seed, difficulty)."""

    def heldout_seed(self, i):
        return 100 + i

    def problem(self, seed, difficulty):
        return (seed, difficulty)

    def reward(self, problem, text):
        return float(text)


def manager(**settings):
    values = dict(dynamic_filter=True, max_reward_errors=2, eval_problems=5, difficulty=[1, 3], task="numbers")
    return RewardManager(SimpleNamespace(**values | settings), Task(), lambda tokens: tokens[0])


def group(*said, index=7):
    made = Group(index, [0], [Sample() for _ in said], problem=None, version=0)
    for sample, text in zip(made.samples, said, strict=True):
        sample.tokens = [text]
    return made


def test_held_out_problems_take_the_difficulties_in_turn():
    assert manager().held_out == [(100, 1), (101, 3), (102, 1), (103, 3), (104, 1)]


def test_a_group_whose_rewards_are_equal_is_filtered_and_counted():
    rewards = manager()
    assert rewards.counts() == {"filtered_zero_variance": 0, "reward_errors": 0} and rewards.filtered_in_a_row == 0
    for said, status, filtered, in_a_row in (
        (("1", "1"), "zero_variance", 1, 1),
        (("0", "0"), "zero_variance", 2, 2),
        (("0", "1"), "ready", 2, 0),
        (("1", "0.5"), "ready", 2, 0),
        (("0.5",), "zero_variance", 3, 1),
    ):
        made = group(*said)
        assert rewards.score(made) == status and rewards.last_rewards == [float(x) for x in said]
        assert [s.reward for s in made.samples] == rewards.last_rewards
        assert (rewards.filtered_zero_variance, rewards.filtered_in_a_row) == (filtered, in_a_row)
    assert rewards.counts() == {"filtered_zero_variance": 3, "reward_errors": 0}


def test_without_the_filter_equal_rewards_are_trained_on():
    rewards = manager(dynamic_filter=False)
    assert rewards.score(group("1", "1")) == "ready" and rewards.filtered_zero_variance == 0


@pytest.mark.parametrize("said", ["abc", "nan", "inf"])
def test_a_reward_that_fails_loses_its_group_and_the_third_of_two_allowed_ends_the_run(said):
    rewards = manager()
    for lost in (1, 2):
        assert rewards.score(group("1", said)) == "error" and rewards.reward_errors == lost
    assert "reward of task numbers" in rewards.last_error and "group 7, sample 1" in rewards.last_error
    with pytest.raises(InputError, match="3 groups lost so, max_reward_errors=2"):
        rewards.score(group(said))
    again = manager()
    again.restore({"filtered_zero_variance": 4, "reward_errors": 2})
    with pytest.raises(InputError, match="3 groups lost so"):
        again.score(group(said))


def test_settings_of_a_run_are_read():
    rewards = RewardManager(Settings(), Task(), lambda tokens: "1")
    assert len(rewards.held_out) == Settings().eval_problems
