"""Rows of keys and values: what is counted is what an earlier place of the row tells, checked by walking the row."""

import pytest

from minglm.data.key_value import BEGIN, KeyValueRows
from minglm.data.shards import IGNORE
from minglm.errors import InputError


def _walk(tokens: list[int]) -> tuple[list[int], dict[int, int]]:
    """Targets of a row (T,) by its definition, and what each key had as its last value; tokens (T+1,)."""
    memory: dict[int, int] = {}
    targets = [IGNORE] * (len(tokens) - 1)
    for place in range(1, len(tokens) - 1, 2):
        key, value = tokens[place], tokens[place + 1]
        if key in memory:
            targets[place] = value
        memory[key] = value
    return targets, memory


@pytest.mark.parametrize("seq_len", [4, 31, 64])
def test_a_value_counts_when_the_key_has_stood_before(seq_len):
    batch = KeyValueRows(16, seq_len, words=20, pairs=(1, 10), seed=3).batch(5)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        whole = [*tokens, targets[-1] if targets[-1] != IGNORE else tokens[-1]]
        assert tokens[0] == BEGIN and min(tokens[1:]) >= 1 and max(tokens) <= 20
        assert _walk(whole)[0][:-1] == targets[:-1]
        asked = [p for p, t in enumerate(targets) if t != IGNORE]
        assert all(tokens[tokens.index(tokens[p]) + 1] == targets[p] for p in asked)


def test_half_of_the_rows_have_a_gap_that_holds_no_key():
    batch, with_gap = KeyValueRows(40, 60, words=50, pairs=(2, 4), gap=True).batch(0), 0
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        gap = [50] if tokens[2] == 50 else []
        with_gap += len(gap)
        stride, memory = 2 + len(gap), {}
        for start in range(1, 60 - stride, stride):
            key, value = tokens[start], tokens[start + stride - 1]
            assert tokens[start + 1 : start + stride - 1] == gap
            assert targets[start + stride - 2] == (value if key in memory else IGNORE)
            assert memory.setdefault(key, value) == value
        assert 50 not in memory and 50 not in memory.values()
    assert 10 <= with_gap <= 30  # half of 40, three standard errors of 3.2


def test_in_the_control_an_earlier_value_says_no_more_than_chance():
    rows = KeyValueRows(64, 64, words=16, pairs=(8, 8), repeated=False)
    same = total = 0
    for step in range(10):
        batch = rows.batch(step)
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            for place in (p for p, t in enumerate(targets) if t != IGNORE):
                same += tokens[tokens.index(tokens[place]) + 1] == targets[place]
                total += 1
    assert abs(same / total - 1 / 8) < 4 * (7 / 64 / total) ** 0.5  # four standard errors of a share of 1/8


def test_control_and_rows_ask_as_often():
    rows, control = (KeyValueRows(64, 64, repeated=r) for r in (True, False))
    counts = [sum(int((r.batch(s).targets >= 0).sum()) for s in range(5)) for r in (rows, control)]
    assert abs(counts[0] / counts[1] - 1) < 0.05


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = KeyValueRows(seed=1), KeyValueRows(seed=1)
    other.batch(0)
    assert one.batch(3).tokens.equal(other.batch(3).tokens)
    assert not one.batch(3).tokens.equal(one.batch(4).tokens)
    assert not one.batch(3).tokens.equal(KeyValueRows(seed=2).batch(3).tokens)


@pytest.mark.parametrize(
    "settings, remedy",
    [
        ({"batch_size": 0}, {"batch_size": 1}),
        ({"seq_len": 3}, {"seq_len": 4}),
        ({"pairs": (4, 3)}, {"pairs": (3, 8)}),
        ({"pairs": (0, 3)}, {"pairs": (3, 8)}),
        ({"words": 15}, {"words": 16}),
        ({"words": 16, "gap": True}, {"words": 17, "gap": True}),
    ],
)
def test_impossible_rows_are_refused_in_one_line(settings, remedy):
    with pytest.raises(InputError) as error:
        KeyValueRows(**settings)
    assert "\n" not in str(error.value)
    KeyValueRows(**remedy).batch(0)
