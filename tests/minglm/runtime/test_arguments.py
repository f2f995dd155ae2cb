"""Numeric arguments as people type them: read where they read one way, else refused with a value that is taken."""

import argparse

import pytest

from minglm.runtime.arguments import COUNT, LENGTH, SEED, number, whole
from minglm.settings import MOST_SEED

SHARE, TOKENS = number(minimum=0.05, maximum=1), number(minimum=1, length=True)


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (COUNT, "4096", 4096),
        (COUNT, "4k", 4000),
        (COUNT, "4Ki", 4096),
        (COUNT, "1e3", 1000),
        *((COUNT, f"2{sign}", 2 * 10**power) for sign, power in {"k": 3, "K": 3, "M": 6}.items()),
        *((COUNT, f"0.5{sign}", 5 * 10**8) for sign in "GB"),
        (whole(0), "1T", 10**12),
        (COUNT, "3Mi", 3 << 20),
        (COUNT, "1 000", 1000),
        (COUNT, "1,024", 1024),
        (COUNT, "1.000.000", 1000000),
        (COUNT, "\uff11\uff12", 12),
        (SEED, str(MOST_SEED), MOST_SEED),  # exact, beyond what a float holds
        (SHARE, "90%", 0.9),
        (SHARE, "0.9", 0.9),
        (SHARE, "0,9", 0.9),
        (TOKENS, "128Ki", 131072.0),
        (TOKENS, "128k", 131072.0),
        (LENGTH, "8k", 8192),
        (LENGTH, "1K", 1024),
        (LENGTH, "1M", 1 << 20),
        (LENGTH, "8Ki", 8192),
        (LENGTH, "8,192", 8192),
        (LENGTH, "1Mi", 1 << 20),
        (TOKENS, "250.5", 250.5),
        (number(minimum=0), "$0.50", 0.5),
        (number(minimum=0), "1.500", 1.5),
    ],
)
def test_read(kind, text, value):
    assert kind(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "kind, text, words",
    [
        (COUNT, "1.000", "write 1 or 1000"),
        (TOKENS, "1.000", "write 1 or 1000"),
        (TOKENS, "1,5k", "write 1.5k or 15k"),
        (TOKENS, "1.5k", "write 1500 or 1536"),
        (TOKENS, "200K", "write 200000 or 204800"),
        (LENGTH, "96k", "write 96000 or 98304"),
        (LENGTH, "3M", "write 3000000 or 3145728"),
        (LENGTH, "1T", "must be a whole number"),
        (number(above=0), "1,5", "write 1.5 or 15"),
        (COUNT, "1.5", "must be a whole number; give for example 1"),
        (COUNT, "many", "must be a whole number; give for example 1"),
        (COUNT, "1e400", "must be a whole number"),
        (COUNT, "0", "must be at least 1"),
        (whole(3), "x", "give for example 3"),
        (SHARE, "90", "at least 0.05 and at most 1"),
        (SHARE, "half", "must be a number; give for example 1"),
        (SHARE, "nan", "must be a finite number"),
        (number(above=0), "inf", "must be a finite number; give for example 1"),
        (number(above=0), "5%", "must be a number"),
        (number(above=0), "", "must be a number"),
    ],
)
def test_refused_with_a_value_that_is_taken(kind, text, words):
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
        kind(text)
    said = str(refusal.value)
    assert words in said and "\n" not in said
    if "give for example " in said:
        kind(said.rsplit(" ", 1)[1])
