"""Spreadsheets' tables and numbers with commas: read right, or refused with both readings."""

import pytest

from minglm.errors import InputError
from sim.base.documents import decode_text, read_document
from sim.base.spreadsheet import cell_number, cell_whole, read_lines
from sim.base.units import parse, whole

HEAD, ROW = ["# GPUs", "iteration time (ms)"], ["8", "4321.5"]


@pytest.mark.parametrize("separator, decimal", [(",", "."), (";", "."), (";", ","), ("\t", ","), ("\t", ".")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_dialect_is_one_table(separator, decimal, end, encoding):
    text = end.join([separator.join(HEAD), separator.join(ROW).replace(".", decimal), "", ""])
    lines, mark = read_lines(text.encode(encoding), "t.csv")
    assert lines[0] == HEAD and len(lines) == 2
    assert [cell_number(cell, mark, "t.csv") for cell in lines[1]] == [8.0, 4321.5]


@pytest.mark.parametrize(
    "text, mark",
    [
        ("a;b\n1;4321,5\n", ","),
        ("a;b\n1.024;4321,5\n", ","),
        ("a;b\n1;4321.5\n", "."),
        ("a;b\n1,024;4321.5\n", "."),  # thousands by a comma beside decimals by a point
        ("a;b\n4.096;8\n", "."),
        ("a|b\n1|2,5\n", ","),
        ("sep=;\na,b;c\n1;2,5\n", ","),  # as Excel names its separator
        ("a,b\n1,2\n", "."),
    ],
)
def test_the_decimal_mark_is_what_the_table_shows(text, mark):
    lines, found = read_lines(text.encode(), "t.csv")
    assert found == mark and len(lines) == 2 and all(len(line) == 2 for line in lines)


def test_cells_of_a_table_with_decimal_commas():
    assert cell_whole("4.096", ",", "t") == 4096 and cell_number("1.500", ",", "t") == 1500.0
    assert cell_number("1.234.567,8", ",", "t") == 1234567.8 and cell_number("-0,5", ",", "t") == -0.5
    assert cell_number("4.096", ".", "t") == 4.096 and cell_whole("4096", ".", "t") == 4096
    with pytest.raises(InputError, match="write 4.0960 or 4096"):
        cell_whole("4.096", ".", "t line 2: hidden size")
    with pytest.raises(InputError, match="write 4321.5 or 43215"):
        cell_number("4321,5", ".", "t")
    assert cell_whole("4k", ".", "t", "length") == 4096 and cell_whole("4k", ".", "t") == 4000
    with pytest.raises(InputError, match="write 5000 or 5120"):
        cell_whole("5k", ".", "t line 2: hidden size", "length")
    with pytest.raises(InputError, match="not a whole number"):
        cell_whole("8,5", ",", "t")  # half a chip is not eight


@pytest.mark.parametrize("cell", ["", "Sum", "4321.5 ms", "50%", "1e999", "nan", "1,2,3"])
def test_a_cell_that_is_no_number_is_named(cell):
    with pytest.raises(InputError, match="t line 3: gpus: .* is not a number; give one without a unit"):
        cell_number(cell, ".", "t line 3: gpus")


def test_quoted_separators_and_grouped_thousands():
    lines, mark = read_lines(b'a;"b;c"\n1.234,5;"2"\n', "t.csv")
    assert lines == [["a", "b;c"], ["1.234,5", "2"]]
    assert cell_number(lines[1][0], mark, "t") == 1234.5
    assert cell_number("1 234,5", ",", "t") == 1234.5  # a thin or plain space between thousands


@pytest.mark.parametrize(
    "text, dimension, value",
    [
        ("1,000,000", "count", 1e6),
        ("100,000", "count", 1e5),
        ("$16,000", "money", 16_000.0),
        ("1,234.5 ms", "time", 1.2345),
        ("1_000", "count", 1000.0),
        ("-3.5", "ratio", None),
    ],
)
def test_commas_that_can_only_part_thousands(text, dimension, value):
    if value is None:
        assert parse(text, dimension, low=None) == -3.5
    else:
        assert parse(text, dimension) == value


@pytest.mark.parametrize(
    "text, dimension, readings",
    [
        ("5,57", "time", ("5.57", "557")),
        ("$2,50/h", "money_per_hour", ("2.50", "250")),
        ("1,5T", "count", ("1.5 T", "15 T")),
        ("2,2 GB/s", "bytes_per_s", ("2.2 GB/s", "22 GB/s")),
        ("1,500 GB/s", "bytes_per_s", ("1.500 GB/s", "1500 GB/s")),
    ],
)
def test_a_comma_with_two_readings_is_refused_with_both(text, dimension, readings):
    with pytest.raises(InputError) as refusal:
        parse(text, dimension, "x")
    message = str(refusal.value)
    assert all(reading in message for reading in readings) and "\n" not in message
    for remedy in message.rsplit("; write ", 1)[1].split(" or "):
        assert parse(remedy, dimension, low=None) >= 0  # following it works


def test_two_points_are_no_number():
    with pytest.raises(InputError, match="not a quantity"):
        parse("1.2.3", "ratio")
    assert whole("16M", "n") == 16_000_000


def test_text_of_windows_editors(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes("chips: 8\r\nname: é\r\n".encode("utf-16"))
    assert read_document(path) == {"chips": 8, "name": "é"}
    path.write_bytes(b"a:\n\tb: 1\n")
    with pytest.raises(InputError, match="line 2 is indented with a tab"):
        read_document(path)
    with pytest.raises(InputError, match="UTF-8"):
        decode_text(b"\xe9\xe8", "x", "YAML")
    with pytest.raises(InputError, match="binary"):
        decode_text(b"a\0b", "x", "YAML")
