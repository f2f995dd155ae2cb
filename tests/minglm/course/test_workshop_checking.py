"""What a learner is told: about inputs that were changed, blanks that another answer uses, and the place where numbers
differ."""

import fractions

import pytest

torch = pytest.importorskip("torch")
from minglm.course.workshop import NotYet  # noqa: E402
from minglm.course.workshop.checking import Exercise, attempt, judge  # noqa: E402

DOUBLED = Exercise("99.doubled", lambda x: [2 * v for v in x], lambda: [([1, 2],), ([3, 4],)], (), "Twice each number.")
HALVED = Exercise(
    "99.halved", lambda x, by: x / by, lambda: [(torch.arange(12.0).reshape(3, 4), 2.0)], (), "Each by `by`."
)


def _told(exercise, answer) -> str:
    with pytest.raises(NotYet) as told:
        judge(exercise, answer)
    return str(told.value)


def test_an_answer_that_changes_its_input_is_told_which():
    def doubled(numbers):
        for i in range(len(numbers)):
            numbers[i] *= 2
        return numbers

    def halved(x, by):
        x /= by
        return x

    assert "your function changed `numbers`" in _told(DOUBLED, doubled) and "your function changed `x`" in _told(
        HALVED, halved
    )
    judge(HALVED, lambda x, by: x.clone().div_(by))
    judge(DOUBLED, lambda x: sorted(2 * v for v in x))


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: (2 * v for v in x),
        lambda x: map(lambda v: 2 * v, x),
        lambda x: tuple(2 * v for v in x),
        lambda x: [fractions.Fraction(4 * v, 2) for v in x],
        lambda x: torch.tensor(x) * 2,
    ],
)
def test_unusual_forms_of_a_right_answer_are_right(answer):
    judge(DOUBLED, answer)


def test_a_blank_that_another_answer_uses_is_named():
    def helper(v):
        raise NotImplementedError()

    def doubled(x):
        return [helper(v) for v in x]

    def blank(x):
        raise NotImplementedError()

    assert "Your function uses `helper`" in _told(DOUBLED, doubled)
    assert _told(DOUBLED, blank).startswith("This one is still to be written")


def test_the_first_place_that_differs_is_shown_and_small_numbers_are_not_rounded_away():
    def nearly(x, by):
        out = x / by
        out[2, 1] = 2e-05
        return out

    assert "the first difference is at [2, 1]: 2e-05, not 4.5" in _told(HALVED, nearly)
    tiny = Exercise("99.tiny", lambda x: x * 0, lambda: [(torch.tensor([2e-05, 1.0]),)], (), "")
    assert "For ([2e-05, 1] of shape (2,))" in _told(tiny, lambda x: x)


def test_an_error_of_many_lines_is_cut_and_lists_of_tensors_are_shown_by_shape():
    def stops(x, by):
        raise ValueError("first line:\n  second line\n  third")

    said = _told(HALVED, stops)
    assert "stopped with ValueError: first line. Each by" in said and "\n" not in said
    assert _told(HALVED, lambda x, by: x / bye).endswith(  # noqa: F821
        "your function stopped with NameError: name 'bye' is not defined."
    )
    with pytest.raises(NotYet, match="your function stopped with ZeroDivisionError"):
        attempt(lambda x: x / 0, 1)
    pair = Exercise("99.pair", lambda x: (x, x), lambda: [(torch.ones(2, 3),)], (), "")
    assert "your answer is (a tensor (3, 2), a tensor (2, 3)); right is (a tensor (2, 3), a tensor (2, 3))" in _told(
        pair, lambda x: (x.T, x)
    )
    assert "the first difference is at [1, 0, 0]: 2, not 1" in _told(pair, lambda x: (x, 2 * x))
