"""A table of others is read by its titles, and nothing of a line is lost."""

import pytest

from minglm.errors import InputError
from sim.validation.csv_tables import COLUMNS, read_table

ROW = ("8", "16", "1", "4096", "32", "24", "2048", "8", "1", "1")


def table(tmp_path, titles, *lines):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([",".join(titles), *lines]) + "\n", encoding="utf-8")
    return path


def test_a_decimal_comma_without_quotes_is_not_cut_off(tmp_path):
    with pytest.raises(InputError, match="12 cells for 11 columns, '57' is over"):
        read_table(table(tmp_path, COLUMNS, ",".join((*ROW, "5,57"))))
    (run,) = read_table(table(tmp_path, COLUMNS, ",".join((*ROW, "5.57")) + ",,"))  # empty cells are nothing
    assert run.seconds == pytest.approx(5.57e-3)


def test_two_columns_of_one_title_are_refused(tmp_path):
    with pytest.raises(InputError, match="two columns 'layers'"):
        read_table(table(tmp_path, (*COLUMNS, "layers"), ",".join((*ROW, "5.57", "48"))))


@pytest.mark.parametrize("begins", [b"PK\x03\x04\x14", b"\xd0\xcf\x11\xe0\xa1"])
def test_a_workbook_is_called_one(tmp_path, begins):
    path = tmp_path / "t.xlsx"
    path.write_bytes(begins + bytes(64))
    with pytest.raises(InputError, match="save the sheet as CSV"):
        read_table(path)
