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


def test_columns_by_the_names_of_launch_scripts(tmp_path):
    titles = "num_gpus,global-batch-size,MBS,hidden,num attention heads,num_layers,seq_len,TP,data_parallel_size,pp"
    (run,) = read_table(table(tmp_path, [*titles.split(","), "step time (s)"], ",".join((*ROW, "5.57"))))
    assert (run.plan.tp, run.plan.dp, run.plan.pp, run.workload.seq, run.model.layers) == (8, 1, 1, 2048, 24)
    assert run.seconds == pytest.approx(5.57)


@pytest.mark.parametrize(
    "title, cell, seconds",
    [
        ("iteration time (ms)", "5570 ms", 5.57),
        ("iteration time, ms", "5570", 5.57),
        ("Iteration Time in s", "5.57", 5.57),
        ("iteration time (min)", "0.5", 30.0),
        ("iteration time", "5.57 s", 5.57),
        ("iteration time", "5570ms", 5.57),
        ("step time [us]", "5570000", 5.57),
        ("step time [us]", "5570000 µs", 5.57),
    ],
)
def test_a_time_has_the_unit_that_its_column_or_its_cell_says(tmp_path, title, cell, seconds):
    (run,) = read_table(table(tmp_path, (*COLUMNS[:-1], f'"{title}"'), ",".join((*ROW, cell))))
    assert run.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "title, cell, words",
    [
        ("iteration time (ms)", "5.57 s", "'5.57 s' has another unit than its column"),
        ("iteration time", "5.57", "'5.57' has no unit; name it in the column, such as 'iteration time .ms.'"),
        ("iteration time (ms)", "40%", "'40%' is not a number"),
    ],
)
def test_a_time_of_two_units_or_none_is_refused(tmp_path, title, cell, words):
    with pytest.raises(InputError, match=words):
        read_table(table(tmp_path, (*COLUMNS[:-1], title), ",".join((*ROW, cell))))
