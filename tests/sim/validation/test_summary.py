"""The summary of left-out errors on eight rows whose means are done by hand."""

from types import SimpleNamespace

import pytest

from minglm import datafiles
from sim.validation import summary
from sim.validation.coverage import KINDS, LeftOut
from sim.validation.rows import MeasuredRow

ASCEND, DENSE = KINDS[0], KINDS[5]
ROWS = [
    LeftOut("a1", DENSE, "megatron", "h100", 1.10, 0.1),
    LeftOut("a2", DENSE, "megatron", "h100", 0.80, -0.2),
    LeftOut("a3", DENSE, "megatron", "h100", 1.00, 0.0),
    LeftOut("b1", ASCEND, "mindspeed", "910b", 1.50, 0.5),
    LeftOut("b2", ASCEND, "mindspeed", "910b", 0.70, -0.3),
    LeftOut("b3", ASCEND, "mindspeed", "910b", 1.10, 0.1),
    LeftOut("c1", DENSE, "fsdp", "h100", 1.20, 0.2),
    LeftOut("c2", DENSE, "fsdp", "h100", 1.40, 0.4),  # two rows are no group
    *(LeftOut(f"h{i}", DENSE, "fsdp", "a100", factor, factor - 1.0) for i, factor in enumerate((0.5, 1.5, 2.0))),
]


@pytest.fixture
def result(monkeypatch):
    own = [object.__new__(MeasuredRow) for _ in range(8)]
    for row, left_out in zip(own, ROWS, strict=False):
        object.__setattr__(row, "id", left_out.id)
    ticks = iter((40.0, 42.5))
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(summary, "read_rows", lambda: [*own, SimpleNamespace(id="h0")])
    monkeypatch.setattr(summary, "all_left_out", lambda: ROWS)
    monkeypatch.setattr(summary, "read_fitted", lambda: {"chips": {"h100": {"value": 0.9, "rows": ("a1", "a2")}}})
    return summary.summary()


def test_errors_are_absolute_means(result):
    assert (result["rows"], result["held_out_rows"]) == (8, 3)
    assert result["left_out"] == pytest.approx((0.1 + 0.2 + 0 + 0.5 + 0.3 + 0.1 + 0.2 + 0.4) / 8)
    assert result["held_out"] == pytest.approx((0.5 + 0.5 + 1.0) / 3) and result["seconds"] == 2.5
    assert result["kinds"] == {
        ASCEND: {"rows": 3, "error": pytest.approx(0.3)},
        DENSE: {"rows": 5, "error": pytest.approx((0.1 + 0.2 + 0.2 + 0.4) / 5)},
    }
    assert result["scalars"] == {"h100": {"value": 0.9, "rows": ["a1", "a2"]}}


def test_three_rows_make_a_group_and_the_worst_comes_first(result):
    assert list(result["groups"].items()) == [
        ("mindspeed on 910b", {"rows": 3, "error": pytest.approx(0.3)}),
        ("megatron on h100", {"rows": 3, "error": pytest.approx(0.1)}),
    ]
    assert list(result["held_out_groups"]) == ["fsdp on a100"]


def test_the_text_says_the_figures(result):
    text = summary.summary_text(result)
    for words in ("8 published rows: mean absolute error 22.50%", "3 rows held out of every fit: 66.67%", "30.0%"):
        assert words in text
    assert text.endswith("all of it took 2.5 s") and "h100     0.900 on a1, a2" in text


def test_no_rows_have_no_mean():
    assert summary._mean([]) is None and summary._errors([]) == []


def test_the_recorded_table_is_what_the_command_prints():
    """All but the seconds; after a change `clustersim validate --summary` writes it again."""
    recorded = (datafiles.data("reference", "last_runs") / "validate_summary.txt").read_text().splitlines()
    assert recorded[:-1] == summary.summary_text(summary.summary()).splitlines()[:-1]
