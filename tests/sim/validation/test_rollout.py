"""Published rollout rows: the rules of fitting, one cheap family predicted, the command."""

import json

import pytest

from minglm.errors import InputError
from sim.cli import main
from sim.rollout.scenario import canonical
from sim.validation import rollout, rollout_summary
from sim.validation.rollout_summary import Compared

WHOLE = rollout.document()


@pytest.fixture
def one_family(monkeypatch):
    """Only the rows of the 235B family: seconds instead of minutes."""
    small = {
        **WHOLE,
        "rows": [r for r in WHOLE["rows"] if r["family"] == "cann-235b" or r["use"] == "unsupported"],
        "orderings": [],
    }
    monkeypatch.setattr(rollout, "document", lambda: small)
    rollout.fitted.cache_clear()
    yield small
    rollout.fitted.cache_clear()


def test_one_scalar_a_family_on_one_row_and_enough_predictions():
    fits = [r["family"] for r in WHOLE["rows"] if r["use"] == "calibration"]
    assert len(fits) == len(set(fits)) and sum(r["use"] == "holdout" for r in WHOLE["rows"]) >= 8
    assert all(canonical(r.get("case") or {}) is not None and r["source"] for r in WHOLE["rows"])
    assert all(WHOLE["families"][r["family"]].get("assumed") for r in WHOLE["rows"])


def test_the_same_work_on_more_engines_is_not_slower_in_rows_that_are_compared():
    """Else the lengths were not the same, and one scalar cannot stand for both runs."""
    runs = [
        (r["family"], r["case"]["engines"], r["measured"])
        for r in WHOLE["rows"]
        if r.get("quantity") == "rollout_s" and r["use"] != "unsupported" and r["family"].startswith("verl")
    ]
    assert len(runs) >= 3
    for family, engines, seconds in runs:
        assert all(other >= seconds for f, fewer, other in runs if f == family and fewer < engines)


def test_a_row_says_more_than_its_family_s_scalar():
    kimi = next(r for r in WHOLE["rows"] if r["id"] == "Seer Kimi-K2 verl rollout")
    moonlight = next(r for r in WHOLE["rows"] if r["id"] == "Seer Moonlight verl rollout")
    shares = [rollout._values(row, ("memory_share", 0.55))["memory_share"] for row in (kimi, moonlight)]
    assert shares == [0.8, 0.55]


def test_a_second_fitted_row_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "published.json"
    row = {"family": "f", "use": "calibration", "source": "s", "quantity": "step_s", "measured": 1}
    path.write_text(json.dumps({"families": {"f": {}}, "rows": [{**row, "id": "a"}, {**row, "id": "b"}]}))
    monkeypatch.setattr(rollout.datafiles, "data", lambda *parts: path)
    rollout.document.cache_clear()
    try:
        with pytest.raises(InputError, match="second calibration row"):
            rollout.document()
    finally:
        rollout.document.cache_clear()


def test_the_fit_hits_its_row_and_the_others_are_predicted(one_family):
    report = rollout.validate()
    by_kind = {k: [r for r in report["rows"] if r["kind"] == k] for k in ("calibration", "holdout", "unsupported")}
    assert abs(by_kind["calibration"][0]["error"]) < 0.02 and all(abs(r["error"]) < 0.25 for r in by_kind["holdout"])
    assert report["count_holdout"] == len(by_kind["holdout"]) == 2 and report["mape_holdout"] == pytest.approx(
        sum(abs(r["error"]) for r in by_kind["holdout"]) / 2
    )
    assert all(r["predicted"] is None for r in by_kind["unsupported"])


def test_errors_are_points_for_gains_and_distances_for_ranges():
    assert rollout.error_of("gain", 0.3, 0.25) == pytest.approx(-0.05)
    assert rollout.error_of("step_s", 100, 110) == pytest.approx(0.1)
    assert rollout.error_of("tail_share", 0.4, 0.5) == pytest.approx(0.1)
    assert rollout.error_of("gain", [0.08, 0.11], 0.1) == 0 and rollout.error_of(
        "gain", [0.08, 0.11], 0.15
    ) == pytest.approx(0.04)


def test_command(one_family, capsys):
    assert main.main(["validate", "--rollouts"]) == 0
    out = capsys.readouterr().out
    assert "Holdout rows" in out and "Calibration rows" in out and "235B DAPO" in out
    assert main.main(["validate", "--rollouts", "--json"]) == 0
    assert {"rows", "mape_holdout", "worst_holdout", "count_calibration"} <= set(json.loads(capsys.readouterr().out))


def test_the_summary_tells_families_apart_and_leaves_each_out(one_family, capsys):
    assert main.main(["validate", "--rollouts", "--summary", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == report["all"]["rows"] == 2 and report["by_framework"]["verl"]["rows"] == 2
    assert report["by_family"]["cann-235b"]["worst"] == report["all"]["worst"]
    # without its own scalar a time is taken as the rooflines have it, which are too fast for that machine
    assert report["left_out"]["mean"] > report["all"]["mean"] and report["left_out"]["worst"] < 0
    assert main.main(["validate", "rollouts", "--summary"]) == 0  # the word means the flag
    assert "family left out" in capsys.readouterr().out


def test_a_family_left_out_takes_the_share_of_the_cap_that_others_have(monkeypatch):
    assert rollout_summary.borrowed("laminar") is None
    assert rollout_summary.borrowed("seer") is None  # what its framework does
    assert rollout_summary.borrowed("cann-235b") == ("decode_scale", 1.0)
    found = {"april-grpo": 8192.0, "verl-7b": 7168.0, "areal": 1.0, "areal-interrupt": 6912.0}
    monkeypatch.setattr(rollout, "fitted", lambda name: ("mean", found[name], "row"))
    # 8,192 of 16,384, 7,168 of 28,672 and 6,912 of 27,648 tokens: 1/2, 1/4, 1/4
    assert rollout_summary.borrowed("areal") == ("mean", pytest.approx(27648 * (1 / 32) ** (1 / 3)))


def test_coverage_by_hand():
    rows = [Compared(f"a{i}", "a", 0.0, factor) for i, factor in enumerate((0.8, 0.9, 1.0, 1.1, 1.2))]
    rows += [Compared("b", "b", 0.0, 1.0), Compared("b-out", "b", 0.0, 3.0), Compared("b-share", "b", 0.1, None)]
    c = rollout_summary.coverage(rows)
    assert c["rows"] == 7  # a share has no ratio
    # of family b, 1.0 lies within 0.8 to 1.2 and 3.0 does not; of a, those from 1.0 on lie within 1.0 to 3.0
    assert c["inside_80"] == pytest.approx(4 / 7)


def test_a_file_beside_a_flag_that_reads_the_shipped_rows_is_refused(capsys):
    assert main.main(["validate", "runs.csv", "--rollouts"]) == 2
    assert "runs.csv: --rollouts reads the shipped rows alone" in capsys.readouterr().err
