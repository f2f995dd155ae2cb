"""How a verdict follows: an answer computed here, a small rule, and what the sources say.

A claim's entry names one rule. Most compare the claimed value with an `Answer`; the rule `evidence` looks at the
sources instead, for what arithmetic cannot decide. The verdict is never typed in by hand: `judge` derives it, and the
ledger's written verdict is only the expectation that a test holds against it.

Arithmetic is exact: numbers from the ledger become fractions through their decimal text, so 80.9 − 77.8 is 31/10.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple

from minglm.errors import InputError, nearest

REPRODUCED, CONSISTENT, INCONSISTENT = "reproduced", "consistent", "inconsistent"
CONTRADICTED, VENDOR, UNKNOWN = "contradicted by source", "vendor claim", "cannot be known here"
VERDICTS = {
    REPRODUCED: "our arithmetic gives the claimed figure",
    CONSISTENT: "nothing found speaks against it, and an independent source or a computed range agrees",
    INCONSISTENT: "it does not follow from its own figures, or from arithmetic on them",
    CONTRADICTED: "a named source says otherwise",
    VENDOR: "only the maker, or those who repeat the maker, says so",
    UNKNOWN: "no source that we could read settles it, and no computation can",
}
STRENGTHS = ("vendor", "third-party", "digest", "unverified")
SAYS = {
    "supports": "states the same, on its own authority",
    "contradicts": "states something that cannot be true together with the claim",
    "differs": "states something else that may still be reconciled (another set-up, another date)",
    "repeats": "repeats the claim without a source of its own",
    "silent": "was read for this and does not mention it",
}


class Answer(NamedTuple):
    """What a computation gives: a number, a (low, high) range, a text or a truth value; its unit;
    the steps beside it.
    """

    value: object
    unit: str
    detail: Mapping[str, object] = MappingProxyType({})


def exact(x) -> Fraction:
    """A number as the fraction that its decimal text means: 80.9 is 809/10, not the nearest binary float."""
    if isinstance(x, bool) or not isinstance(x, (int, float, Fraction)):
        raise InputError(f"{x!r}: a number is needed here; write it without quotes")
    return x if isinstance(x, Fraction) else Fraction(str(x))


def _span(x) -> tuple[Fraction, Fraction]:
    """A number as a range of no width; a pair as the range it is."""
    if isinstance(x, Sequence) and not isinstance(x, str):
        low, high = x
        return exact(low), exact(high)
    return exact(x), exact(x)


def _equal(value, computed, rule) -> bool:
    if isinstance(value, (bool, str)) or isinstance(computed, (bool, str)):
        return value == computed
    if isinstance(value, datetime.date) or isinstance(computed, datetime.date):
        return str(value) == str(computed)
    return _span(value) == _span(computed)


def _rounds(value, computed, rule) -> bool:
    """Does the computed figure, rounded half up to the digits of the claim, give the claim?"""
    text = str(value)
    digits = rule.get("digits", len(text.split(".")[1]) if "." in text else 0)
    unit = Fraction(10) ** -digits
    return (exact(computed) / unit + Fraction(1, 2)).__floor__() * unit == exact(value)


def _relative(value, computed, rule) -> bool:
    return abs(exact(value) - exact(computed)) <= exact(rule.get("tolerance", 0.005)) * abs(exact(computed))


def _value_inside(value, computed, rule) -> bool:
    (low, high), (least, most) = _span(value), _span(computed)
    return least <= low and high <= most


# name -> (does it hold, the verdict when it does). `value` is the claim, `computed` the answer.
COMPARISONS = {
    "equal": (_equal, REPRODUCED),
    "rounds": (_rounds, REPRODUCED),
    "relative": (_relative, REPRODUCED),
    "value_inside": (_value_inside, CONSISTENT),
    "computed_inside": (lambda v, c, r: _value_inside(c, v, r), REPRODUCED),
    "computed_below": (lambda v, c, r: _span(c)[1] < _span(v)[0], CONSISTENT),
    "computed_at_most": (lambda v, c, r: _span(c)[1] <= _span(v)[0], CONSISTENT),
    "computed_at_least": (lambda v, c, r: _span(c)[0] >= _span(v)[1], CONSISTENT),
}


def by_evidence(sources: Sequence[Mapping]) -> str:
    """The verdict that the sources alone allow. A repetition counts for nothing, an unverified source neither."""
    heard = {(s["strength"], s["says"]) for s in sources if s["strength"] != "unverified"}
    if any(says == "contradicts" for _, says in heard):
        return CONTRADICTED
    if any(says == "supports" and strength != "vendor" for strength, says in heard):
        return CONSISTENT
    if ("vendor", "supports") in heard:
        return VENDOR
    return UNKNOWN


def judge(value, rule: Mapping, answer: Answer | None, sources: Sequence[Mapping]) -> str:
    """The verdict on one claim.

    Raises:
        InputError: an unknown comparison or verdict, or a comparison without a computation.
    """
    compare = rule.get("compare")
    if compare == "evidence":
        return by_evidence(sources)
    if compare not in COMPARISONS:
        raise InputError(
            f"compare: {compare!r} is not a rule{nearest(str(compare), COMPARISONS)}; "
            f"use evidence, {', '.join(COMPARISONS)}"
        )
    if answer is None:
        raise InputError(f"compare: {compare} needs a computation; name one, or judge by compare: evidence")
    holds, then = COMPARISONS[compare]
    outcome = rule.get("then", then) if holds(value, answer.value, rule) else rule.get("else", INCONSISTENT)
    if outcome not in VERDICTS:
        raise InputError(f"verdict {outcome!r}: not one of {', '.join(VERDICTS)}{nearest(outcome, VERDICTS)}")
    return outcome
