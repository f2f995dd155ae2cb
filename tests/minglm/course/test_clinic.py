"""The debug clinic: every fault leaves the mark that its description names, and the healthy run does not."""

import math

import pytest

pytest.importorskip("torch")
from minglm.course.lessons import clinic
from minglm.errors import InputError

STEPS = 60


def _mean(values):
    return sum(values) / len(values)


def _spread(pairs):
    return max(v for _, v in pairs) - min(v for _, v in pairs)


# Fault → what must hold of its log and not of the healthy one.
MARKS = {
    "rate too high": lambda log: log.loss[0] < 7 and max(log.loss[1:14]) > 8,
    "gradients add up": lambda log: _mean(log.norm[-10:]) > 3 * _mean(log.norm[:10]),
    "targets not moved": lambda log: log.loss[-1] < 0.5 and log.unseen[-1][1] < 0.5,
    "two batches again": lambda log: log.loss[-1] < 1.0 and log.unseen[-1][1] > log.loss[-1] + 2,
    "bias backwards": lambda log: _mean(log.busiest[-10:]) > 3.5,
    "one kind after another": lambda log: max(b - a for a, b in zip(log.loss[40:], log.loss[41:], strict=False)) > 1.5,
    "schedule too short": lambda log: _spread(log.unseen[-6:]) < 0.03,
    "weights start too large": lambda log: log.loss[0] > math.log(800) + 2,
}


@pytest.fixture(scope="module")
def healthy():
    return clinic.train(clinic.HEALTHY, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", clinic.FAULTS)
def test_each_fault_leaves_its_own_mark(fault, healthy):
    log = clinic.train(fault, STEPS)
    assert MARKS[fault](log) and not MARKS[fault](healthy)
    assert [f for f in MARKS if MARKS[f](log)] == [fault]  # and no other's


def test_the_ward_holds_each_fault_once_and_another_seed_another_order():
    assert sorted(clinic.ward().values()) == sorted(clinic.FAULTS) == sorted(MARKS)
    assert clinic.ward() != clinic.ward(1)


def test_a_diagnosis_is_right_wrong_or_refused():
    faults = clinic.ward()
    assert clinic.diagnose("C", faults["C"]).startswith("C: right.")
    assert clinic.diagnose("C", faults["D"]).startswith("C: no.")
    with pytest.raises(InputError, match="patient 'Z'"):
        clinic.diagnose("Z", faults["C"])
    with pytest.raises(InputError, match="did you mean 'bias backwards'"):
        clinic.diagnose("C", "bias backward")
    with pytest.raises(InputError, match="fault 'none'"):
        clinic.train("none", 1)
