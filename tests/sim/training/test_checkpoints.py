"""Checkpoint costs, and Young and Daly against their own limits."""

from __future__ import annotations

import math

import pytest

from minglm.errors import InputError
from sim.training.checkpoints import Checkpoint, daly, expected_goodput, young


def test_costs_of_the_three_kinds():
    sync, back, memory = (
        Checkpoint(k, bytes=10e12, write_bytes_per_s=100e9, read_bytes_per_s=200e9) for k in ("sync", "async", "memory")
    )
    assert sync.stall_s(1000) == 100.0 and sync.delay_s == 0.0 and sync.load_s(1000) == 50.0
    assert back.stall_s(1000) == pytest.approx(1.0) and back.delay_s == 100.0  # 10 GB from each chip at 10 GB/s
    assert memory.stall_s(1000) == 0.04 and memory.load_s(1000, from_memory=True) == pytest.approx(1.0)


def test_young_is_dalys_limit_for_cheap_checkpoints():
    assert daly(0.01, 1e6) == pytest.approx(young(0.01, 1e6), rel=1e-3)
    assert daly(60.0, 3600.0) < young(60.0, 3600.0)
    assert daly(500.0, 200.0) == 200.0 and math.isinf(daly(1.0, math.inf))


@pytest.mark.parametrize("stall, mtbf", [(5.0, 1800.0), (60.0, 3600.0), (60.0, 1800.0), (200.0, 20000.0)])
def test_dalys_interval_is_nearly_the_best(stall, mtbf):
    grid = [mtbf * 1.01**k for k in range(-600, 100)]
    best = max(expected_goodput(t, stall, 300.0, mtbf) for t in grid)
    assert expected_goodput(daly(stall, mtbf), stall, 300.0, mtbf) == pytest.approx(best, rel=2e-3)


def test_goodput_without_failures_is_the_checkpoint_overhead():
    assert expected_goodput(90.0, 10.0, 500.0, math.inf) == pytest.approx(0.9)
    assert expected_goodput(1e9, 1.0, 1.0, 1.0) == 0.0


def test_storage_bounds_the_interval():
    slow = Checkpoint("async", bytes=10e12, write_bytes_per_s=10e9, interval_s=60.0)
    assert slow.steps_between(2.0, 1000, 1e5) == 500  # 1,000 s to write, not 60
    assert Checkpoint("memory", bytes=10e12, write_bytes_per_s=10e9).every(20.0) == 50
    assert Checkpoint("sync", bytes=1e12, interval_s=60.0).steps_between(2.0, 1000, 1e5) == 30


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(kind="asink"), "did you mean 'async'"),
        (dict(bytes=-1.0), "-1.0"),
        (dict(write_bytes_per_s=0.0), "write_bytes_per_s"),
        (dict(memory_survival=1.5), "memory_survival"),
        (dict(interval_s=0.0), "interval_s"),
        (dict(storage_every=0), "storage_every"),
        (dict(bytes=math.nan), "nan"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(InputError) as err:
        Checkpoint(**change)
    assert words in str(err.value)
