"""The same run on several chips: faster chips take less time, break-even prices make the costs equal."""

import pytest

from minglm.errors import InputError
from sim.planner.compare import CHIPS, compare

FIXED = {"micro_batch": 1, "recompute": ["none", "full"], "zero": 1, "pp": [1, 2, 4]}


@pytest.fixture(scope="module")
def table():
    return compare("llama3_8b", 64, seq=4096, batch=128, tokens="1T", fixed=FIXED, schedules=("1f1b",))


def test_every_chip_has_a_row(table):
    assert [r["name"] for r in table["rows"]] == list(CHIPS)
    assert all(r["days"] > 0 and r["energy_kwh"] > 0 and r["chips"] <= 64 for r in table["rows"])


def test_newer_chips_are_faster(table):
    days = {r["name"]: r["days"] for r in table["rows"]}
    assert days["b200"] < days["h100"] < days["910b"]


def test_break_even_makes_the_costs_equal(table):
    reference = next(r for r in table["rows"] if r["name"] == "h100")
    assert reference["break_even_usd_per_hour"] == pytest.approx(reference["rent_usd_per_hour"]["value"])
    for r in table["rows"]:
        assert r["break_even_usd_per_hour"] * r["chip_hours"] == pytest.approx(reference["rent_usd"])


def test_every_figure_has_an_interval_and_a_ratio_of_two_runs_a_wider_one(table):
    reference = next(r for r in table["rows"] if r["name"] == "h100")
    wide = {}
    for r in table["rows"]:
        for key in ("days", "rent_usd", "own_usd", "energy_kwh"):
            if key in r:
                span = r["intervals"][key]
                assert span["p5"] < r[key] < span["p95"]
        span = r["intervals"].get("break_even_usd_per_hour")
        assert (span is None) == (r is reference)
        if span:
            wide[r["name"]] = span["p95"] / span["p5"]
            assert span["p5"] < r["break_even_usd_per_hour"] < span["p95"]
    # The price is the reference's money over the chip's hours, drawn independently: wider than either alone. The
    # money of the table is of other draws than the price's, and the ends of 256 draws are known to some percent.
    for r in table["rows"]:
        if r["name"] in wide:
            for alone in (r["intervals"]["days"], reference["intervals"]["rent_usd"]):
                assert wide[r["name"]] > 0.95 * alone["p95"] / alone["p5"]


def test_missing_prices_are_said(table):
    assert any("910C" in n and "no rent" in n for n in table["notes"])
    assert "rent_usd" not in next(r for r in table["rows"] if r["name"] == "910c_die")


def test_what_does_not_fit_is_a_row_with_its_reason():
    table = compare(
        "glm5", 8, names=("h100",), seq=4096, batch=8, fixed={**FIXED, "tp": 8, "etp": 1}, schedules=("1f1b",)
    )
    assert "no plan" in table["rows"][0]["reason"] and table["rows"][0]["break_even_usd_per_hour"] is None


def test_unknown_reference_is_refused():
    with pytest.raises(InputError, match="not among the compared"):
        compare("llama3_8b", 8, names=("h100",), against="b200")


def test_command_prints_the_library_s_figures(capsys, table):
    import json

    from sim.cli.main import main

    asked = [
        "compare",
        "--model",
        "llama3_8b",
        "--chips",
        "64",
        "--chip",
        "910b,h100",
        "--seq",
        "4096",
        "--batch",
        "128",
        "--tokens",
        "1T",
    ]
    assert main([*asked, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    library = compare("llama3_8b", 64, names=("910b", "h100"), seq=4096, batch=128, tokens="1T")
    assert shown == json.loads(json.dumps(library))
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "break-even" in out and f"${shown['rows'][0]['break_even_usd_per_hour']:.2f} (" in out


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--chip", "910b,h9"], "h9"),
        (["--chip", ","], "name at least one chip"),
        (["--baseline", "b200", "--chip", "h100"], "not among"),
    ],
)
def test_command_refuses_in_one_line(capsys, argv, words):
    from sim.cli.main import main

    code = main(["compare", "--model", "llama3_8b", "--chips", "8", "--batch", "8", *argv])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and words in err
