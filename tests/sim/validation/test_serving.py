"""Published serving rows: the rules of fitting, the errors, and the arithmetic in the sources."""

import copy
import math

import pytest

from minglm.errors import InputError
from sim.serving.calibration import _crossing, check_rows, error_band, fitted, fitted_scale, predict, rows
from sim.serving.deployment import Deployment
from sim.validation.serving import table_text, validate


@pytest.fixture(scope="module")
def report():
    return validate()


def test_decode_figures_are_within_the_aim(report):
    """Within 20% on average and 30% at worst of published decode figures that no scalar was fitted to."""
    assert report["groups"]["decode"]["rows"] >= 10
    assert report["mape_decode"] <= 0.20 and report["worst_decode"] <= 0.30 and report["met"]


def test_every_row_is_reported_and_errors_are_what_they_say(report):
    assert [e["id"] for e in report["rows"]] == [r["id"] for r in rows()]
    for e in report["rows"]:
        assert e["source"] and e["mode"] == "hybrid" and e["use"] in ("calibration", "holdout", "unsupported")
        if e["use"] == "unsupported":
            assert e["why"]
        elif not isinstance(e["measured"], list):
            assert e["error"] == pytest.approx(e["predicted"] / e["measured"] - 1)
    counted = [e for e in report["rows"] if e["use"] == "holdout"]
    assert report["mape_holdout"] == pytest.approx(sum(abs(e["error"]) for e in counted) / len(counted))
    assert report["worst_holdout"] == max(abs(e["error"]) for e in counted)
    assert report["beyond"] == [e["id"] for e in counted if abs(e["error"]) > 0.30]


def test_a_fitted_row_is_reproduced_and_its_scalar_is_the_only_one(report):
    fits = [e for e in report["rows"] if e["use"] == "calibration"]
    assert len(fits) == len(report["fitted"]) == len({(f["chip"], f["stack"]) for f in report["fitted"]})
    for e in fits:
        assert abs(e["error"]) < 1e-3
    for scalar in report["fitted"]:
        assert 0.8 < scalar["scale"] < 1.5  # a correction, not a rescue


def test_at_most_a_third_of_a_chips_rows_is_fitted(report):
    check_rows(rows())
    many = copy.deepcopy([dict(r) for r in rows()])
    for row in many:
        if row["chip"] == "H800" and row["use"] == "holdout" and row["kind"] == "decode":
            row["use"], row["deployment"] = "calibration", {**row["deployment"], "stack": "generic"}
        elif row["chip"] == "H800" and row["use"] == "holdout":
            row["use"] = "unsupported"
    with pytest.raises(InputError, match="at most a third"):
        check_rows(many)
    twice = copy.deepcopy([dict(r) for r in rows()])
    next(r for r in twice if r["id"] == "cm384-decode-15ms")["use"] = "calibration"
    with pytest.raises(InputError, match="a second calibration row"):
        check_rows(twice)
    with pytest.raises(InputError, match="has no source"):
        check_rows([{"id": "x", "use": "holdout"}])


def test_deepseeks_margin_and_node_hours_agree_with_themselves():
    row = next(r for r in rows() if r["id"] == "deepseek-margin")
    assert predict(row)[0] == pytest.approx(5.45, abs=0.01)
    # 608B tokens in at 73.7k a node-second and 168B out at 14.8k make the 226.75 nodes of the same page
    nodes = 608e9 / 86400 / 73.7e3 + 168e9 / 86400 / 14.8e3
    assert nodes == pytest.approx(226.75, rel=0.005)


def test_published_rates_are_batch_over_tpot():
    for row in rows():
        if row["kind"] == "decode" and row.get("measured_tpot_ms"):
            assert row["batch"] / (row["measured_tpot_ms"] / 1e3) == pytest.approx(row["measured"], rel=0.01), row["id"]


def test_fitted_applies_to_that_chip_and_stack_only():
    cm = Deployment.of("deepseek_v3", "cloudmatrix384", chips=320, precision="w8a8", stack="cloudmatrix-infer")
    assert fitted(cm).stack["scale"] == fitted_scale("910c_die", "cloudmatrix-infer")[0]
    assert fitted(fitted(cm)).stack["scale"] == fitted(cm).stack["scale"]
    other = Deployment.of("deepseek_v3", "dgx_h200", chips=16, stack="sglang-ep")
    assert fitted(other) is other and fitted_scale("h200", "sglang-ep") is None
    assert fitted_scale("910b3", "cloudmatrix-infer") is None


@pytest.mark.parametrize(
    "f, zero, most",
    [
        (lambda x: math.exp(x) - 2.0, math.log(2.0), 15),
        (lambda x: (x - 0.3) ** 3, 0.3, 50),
        (lambda x: 0.1 * x - 1.0 if x < 0.7 else 0.1 * x + 5.0, 0.7, 50),  # a jump: halving takes 48
        (lambda x: x + 3.0, -2.0, 2),  # zero is left of all
    ],
)
def test_a_crossing_is_found_in_few_steps_and_at_a_jump(f, zero, most):
    seen = []

    def counted(x):
        seen.append(x)
        return f(x)

    assert _crossing(counted, -2.0, 2.0) == pytest.approx(zero, abs=2e-13)
    assert len(seen) <= most


def test_the_band_spans_the_decode_errors(report):
    low, high = error_band()
    assert low <= 1 <= high
    for e in report["rows"]:
        if e["use"] == "holdout" and e["kind"] in ("decode", "decode_limit"):
            assert low - 1e-9 <= e["predicted"] / e["measured"] <= high + 1e-9


def test_the_table_names_mode_error_and_assumptions(report):
    text = table_text(report)
    for words in (
        "calibration (one scalar per chip and stack)",
        "holdout (predicted)",
        "unsupported, not counted",
        "hybrid",
        "cm384-decode-15ms",
        "aim 20% and 30%: met",
    ):
        assert words in text
    assert all(e["id"] in text for e in report["rows"])
