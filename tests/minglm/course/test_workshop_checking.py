"""What a learner is told: about inputs that were changed, blanks that another answer uses, and the place where numbers
differ."""

import fractions
import functools
import math
import sys

import pytest

torch = pytest.importorskip("torch")
from minglm.course.workshop import NotYet, check  # noqa: E402
from minglm.course.workshop.checking import Exercise, all_exercises, attempt, judge  # noqa: E402

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


class _Empty(torch.nn.Module):
    pass


class _BlankModule(torch.nn.Module):
    def forward(self, x):
        raise NotImplementedError()


class _BlankObject:
    def __call__(self, x):
        raise NotImplementedError()

    def method(self, x):
        raise NotImplementedError()


@pytest.mark.parametrize(
    "answer",
    [
        _Empty(),
        _BlankModule(),
        _BlankObject(),
        _BlankObject().method,
        functools.partial(_BlankObject()),
        functools.partial(functools.partial(_BlankObject().method)),
    ],
    ids=["no forward", "blank forward", "object", "method", "partial", "partial of a partial"],
)
def test_a_blank_of_any_form_is_still_to_be_written(answer):
    assert "still to be written" in _told(DOUBLED, answer)


NUMBER = Exercise("99.number", lambda x: 2.0 * x, lambda: [(3.0,)], (), "Twice the number.")


async def _late(x):
    return 2.0 * x


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda x: str(2.0 * x), "of type str; right is the number 6"),
        (lambda x: complex(2.0 * x), "of type complex; right is the number 6"),
        (lambda x: [2.0 * x], "of type list; right is the number 6"),
        (_late, "write def in place of async def"),
        (lambda x: sys.exit(3), "sys.exit"),
    ],
)
def test_answers_of_another_kind_are_told_which(answer, words):
    assert words in _told(NUMBER, answer)


@pytest.mark.parametrize("given", [6.9, None, "log", torch.ones(2)])
def test_a_value_in_place_of_the_function(given, tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path))
    with pytest.raises(NotYet, match="function itself"):
        check("00.loss_of_knowing_nothing", given)


@pytest.mark.parametrize("eps, words", [(1e-6, None), (1e-8, "too small|Rounding"), (1e-4, "TRL")])
def test_published_forms_of_the_advantage_are_right_or_told_what_differs(eps, words):
    exercise = all_exercises()["12.advantages"]

    def advantages(correction):
        return lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=correction) + eps)

    if words is None:
        judge(exercise, advantages(0))
    else:
        with pytest.raises(NotYet, match=words):
            judge(exercise, advantages(0))
    with pytest.raises(NotYet, match="n − 1|Rounding"):
        judge(exercise, advantages(1))


SCALES = {
    "D/2": lambda D, H: D / 2,
    "2": lambda D, H: 2,
    "log2(D)": lambda D, H: math.log2(D),
    "H": lambda D, H: H,
    "D": lambda D, H: D,
    "1": lambda D, H: 1,
    "sqrt(H)": lambda D, H: H**0.5,
    "sqrt(D) - 1": lambda D, H: D**0.5 - 1,
    "sqrt(H*D)": lambda D, H: (H * D) ** 0.5,
}


@pytest.mark.parametrize("scale", SCALES)
def test_no_other_scale_passes_for_the_root_of_the_width(scale):
    def attention(q, k, v):
        T, H, D = q.shape
        scores = torch.einsum("thd,shd->hts", q, k) / SCALES[scale](D, H)
        shares = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", shares, v)

    _told(all_exercises()["02.causal_attention"], attention)


def test_one_hot_is_not_the_residual():
    def one_hot(p, q):
        rest = torch.clamp(p - q, min=0)
        return torch.nn.functional.one_hot(rest.argmax(), len(p)).float()

    _told(all_exercises()["06.residual"], one_hot)
