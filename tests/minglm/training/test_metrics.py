"""A table of a run that a kill or a disk damaged: what can be read is read, the rest is said."""

import math

import pytest

from minglm.errors import InputError
from minglm.rl.log import read_lines
from minglm.training import metrics

COLUMNS = ("step", "loss")


@pytest.mark.parametrize(
    "bad, damaged",
    [
        (b"\xff\xfe\x00", 1),
        (b"2,\xff\xfe\n", 1),
        (b"2,0.2,3\n", 1),
        (b"2\n", 1),
        (b'2,"0.2\n', 1),
        (b"\x00" * 512 + b"\n", 1),
        (b"2,zwei\n", 1),
        (b",0.2\n", 1),
        (b"2.5,0.2\n", 1),
        (b"\n\n", 2),
    ],
)
def test_damaged_rows_are_left_out_and_counted(tmp_path, bad, damaged, capsys):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\n1,0.5\n" + bad + b"3,0.25\n4,0.1")  # the last is torn
    with_three = bad.endswith(b"\n")  # else the bad bytes run into its line
    assert [r["step"] for r in metrics.read(path)] == ([1, 3] if with_three else [1])
    log = metrics.CsvLog(path, COLUMNS, after_step=3)
    log.write({"step": 5, "loss": 0.0})
    log.close()
    assert [r["step"] for r in metrics.read(path)] == ([1, 3, 5] if with_three else [1, 5])
    assert f"{damaged} damaged row" in capsys.readouterr().err


def test_without_its_first_line_it_is_refused_and_the_remedy_works(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\xff\xff\n1,0.5\n")
    with pytest.raises(InputError, match="move the file away") as err:
        metrics.CsvLog(path, COLUMNS, after_step=1)
    assert "\n" not in str(err.value)
    path.rename(tmp_path / "away")
    metrics.CsvLog(path, COLUMNS, after_step=1).close()
    assert metrics.read(path) == []


def test_an_empty_file_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"")
    assert metrics.read(path) == []
    path.write_bytes(b"step,loss\r\n1,\r\n2,nan\r\n")
    first, second = metrics.read(path)
    assert first == {"step": 1, "loss": None} and second["loss"] != second["loss"]


def test_damaged_lines_of_a_journal_are_left_out(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n[1]\n\n{"a": 2}\n{"a": 3')
    assert read_lines(path) == [{"a": 1}, {"a": 2}] and "2 damaged lines" in capsys.readouterr().err


def test_statistics_of_the_experts_load_by_hand():
    """Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2 over ln 3, peak 1.5. A layer without tokens is no part of the means."""
    of_three = 1.5 * math.log(2) / math.log(3)
    assert metrics.load_statistics([[2, 1, 1]]) == pytest.approx((of_three, 1.5))
    assert metrics.load_statistics([[2, 1, 1], [0, 0, 0], [5, 5, 5]]) == pytest.approx(((of_three + 1) / 2, 1.25))
    assert metrics.load_statistics([[7, 0]]) == pytest.approx((0.0, 2.0))
    assert metrics.load_statistics([[1, 3]]) == pytest.approx((2 - 0.75 * math.log2(3), 1.5))
    assert metrics.load_statistics([[4]]) == (1.0, 1.0) and metrics.load_statistics([]) == (0.0, 0.0)
