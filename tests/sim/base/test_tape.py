"""A computation that was recorded and repeated gives what the computation itself gives, or says that it cannot."""

import math
import random

import pytest

from sim.base.tape import Number, Tape, call, least, most


def formula(x, y, z):
    """Every kind of operation, and two questions whose answers change its course."""
    a = most(3.0 * x + y, z / (1.0 + y), 0.5) - least(x, 2.0 - z)
    b = (a**2 + 2.0**y) ** 0.25 / (7.0 - x)
    if x > y:
        b = b + call(math.sqrt, z)
    if not round(z):
        b = -1.0 * b
    return [b, round(a), sum([x, y, a]), 4.0]


def rows_of(rng, count):
    return [tuple(rng.uniform(0.1, 3.0) for _ in range(3)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 7, 600])
def test_repeated_is_computed_to_the_last_bit(count):
    rows, tape = rows_of(random.Random(count), count), Tape()
    made = formula(*(tape.input(x) for x in (2.0, 1.0, 2.0)))
    repeated = tape.repeat(made, list(zip(*rows, strict=True)), count)
    assert len(repeated) == count
    for (x, y, z), got in zip(rows, repeated, strict=True):
        assert got == (tuple(formula(x, y, z)) if x > y and round(z) else None)
    assert count == 1 or {got is None for got in repeated} == {True, False}


def test_values_while_recording_are_those_of_the_inputs():
    tape = Tape()
    made = formula(*(tape.input(x) for x in (2.0, 1.0, 2.0)))
    assert [one.value if isinstance(one, Number) else one for one in made] == formula(2.0, 1.0, 2.0)
    assert f"{made[0]:.3f}" == f"{formula(2.0, 1.0, 2.0)[0]:.3f}"


def test_a_row_outside_of_a_functions_domain_leaves_the_others_theirs():
    tape = Tape()
    x = tape.input(1.0)
    made = [call(math.log, x), 1.0 / (2.0 - x)]
    values = [1.0, 3.0, -1.0, 0.5, 2.0, 4.0, 8.0]
    expected = [(math.log(v), 1.0 / (2.0 - v)) if v > 0 and v != 2.0 else None for v in values]
    assert tape.repeat(made, [values], len(values)) == expected


def test_equal_operations_are_recorded_once():
    tape = Tape()
    x, y = tape.input(1.0), tape.input(2.0)
    assert x * y is x * y
    assert len({(x + 1.0, y), (x + 1.0, y)}) == 1
    assert len({(x + 1.0, y), (x + 2.0, y)}) == 2


def test_a_number_does_not_pass_for_a_plain_one():
    """A function that was not written for a tape must not take the value of the moment for the number."""
    tape = Tape()
    with pytest.raises(TypeError):
        math.exp(tape.input(1.0))


def test_inputs_come_first():
    tape = Tape()
    tape.input(1.0) + 1.0
    with pytest.raises(ValueError, match="before"):
        tape.input(2.0)


def test_a_constant_is_not_taken_for_the_number_at_its_place():
    tape = Tape()
    x, y = tape.input(5.0), tape.input(7.0)
    assert tape.repeat([x * 1, x * y, most(x)], [[2.0], [3.0]], 1) == [(2.0, 6.0, 2.0)]
