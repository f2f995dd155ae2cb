"""The error table: it reaches its numbers, fits no more than it may, and takes anybody's rows."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from pathlib import Path

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.cost.closed_form import step_time
from sim.cost.stacks import load_stack, read_fitted
from sim.cost.step import estimate
from sim.spec.hardware import load_cluster
from sim.spec.plan import Plan, Workload
from sim.validation import csv_tables, figures, fit, predict, training
from sim.validation.rows import parse, read_rows

FOUNDRY = datafiles.data("published_runs", "held_out", "llm_foundry.yaml")


@pytest.fixture(scope="module")
def result():
    return training.run()


def test_errors_of_the_predicted_rows(result):
    assert result["count_holdout"] >= 30
    assert result["mape_holdout"] <= 0.08
    assert result["worst_holdout"] <= 0.25


def test_the_recompute_papers_eight(result):
    eight = [r for r in result["rows"] if r["id"].startswith("recompute2022-")]
    assert len(eight) == 8
    assert sum(abs(r["error"]) for r in eight) / 8 <= 0.035
    assert len({r["stack"] for r in eight}) == 1 and not load_stack(eight[0]["stack"]).fitted


def test_recomputation_before_torch_2_1_runs_a_layer_to_its_end():
    """MPT-7B of 8 A100 of 40 GB: a third of a layer's matmul FLOPs (4 of 12 C²) runs again or not; 3,679 is printed."""
    held = {row.id: row for row in read_rows([FOUNDRY])}
    row = held["foundry-a100-40-7b-2048-8"]
    assert row.measured == 3679.0 and row.run.stack.name == "llm-foundry-0.0.4"
    old, new = (predict.predict(row, dataclasses.replace(row.run.stack, early_stop=early)) for early in (False, True))
    assert old == pytest.approx(3679, rel=0.02)
    # forward, twice that backward, and the forward again: 4 parts of 4, or 4 - 1/3, less what no matmul takes
    assert 1.05 < new / old < 4 / (4 - 1 / 3)


def test_published_memory(result):
    rows = [r for r in result["rows"] if r["quantity"] == "memory_gib" and r["error"] is not None]
    assert rows and sum(abs(r["error"]) for r in rows) / len(rows) <= 0.08


def test_no_more_is_fitted_than_one_scalar_a_chip_family_on_a_third_of_a_chips_rows(result):
    rows = [r for r in result["rows"] if r["kind"] in ("calibration", "holdout")]
    of_chip = collections.Counter(r["chip"] for r in rows)
    fitted = collections.Counter(r["chip"] for r in rows if r["kind"] == "calibration")
    for chip, count in fitted.items():
        assert count <= of_chip[chip] / 3, f"{chip}: {count} of {of_chip[chip]} rows are fitted"
    assert all(set(found) == {"value", "rows"} for found in read_fitted()["chips"].values())
    table = {"megatron-deepspeed-2023-vtrain"}  # its host time, on a table of its own
    assert set(read_fitted()["stacks"]) == table
    kept = {row for found in read_fitted()["chips"].values() for row in found["rows"]}
    assert kept <= {r["id"] for r in rows if r["kind"] == "calibration"}


def test_a_name_alone_moves_no_prediction():
    row = next(r for r in read_rows() if r.id == "nemo-24.07-llama2-70b")
    plain = dataclasses.replace(load_stack("megatron-bridge-25.09"), fitted={})
    times = {predict.predict(row, dataclasses.replace(plain, name=name)) for name in ("a", "megatron-bridge-26.10")}
    assert len(times) == 1


def test_the_fitted_file_is_what_the_fit_gives():
    assert fit.main(["--check"]) == 0


def test_cross_validation_refits_without_the_row_its_stack_or_its_chip(result):
    cross = result["cross_validated"]
    assert cross["rows"] >= 60
    assert cross["leave_row_out"] <= 0.08 and cross["leave_stack_out"] <= 0.08 and cross["leave_chip_out"] <= 0.12


def test_linearity_of_the_910b_cluster(result):
    curve = [r for r in result["rows"] if r["id"].startswith("mindspeed-gpt3-175b-")]
    predicted = [r["predicted"] for r in curve]
    assert len(curve) == 8 and predicted == sorted(predicted, reverse=True)
    assert 0.93 <= predicted[-1] / predicted[0] < 1.0  # 0.938 measured


def test_every_constant_is_listed_with_a_label(result):
    assert len(result["constants"]) > 40
    for constant in result["constants"]:
        assert constant["label"].split()[0] in ("measured", "published", "fitted", "assumed"), constant
        assert constant["source"]


def test_the_table_separates_calibration_from_holdout_and_says_why_rows_are_unsupported(result):
    text = figures.format_table(result)
    assert (
        text.index("Holdout rows")
        < text.index("Calibration rows")
        < text.index("Unsupported, not scored")
        < text.index("Constants")
    )
    listed = [r for r in result["rows"] if r["kind"] == "unsupported"]
    assert listed and all(r["reason"] and r["predicted"] is None for r in listed)
    json.dumps(result)


def test_the_figure_has_its_points_bands_title_and_units(result):
    figure = figures.figure(result)
    assert "mean absolute error" in figure.layout.title.text and "%" in figure.layout.yaxis.title.text
    assert sum(len(t.x) for t in figure.data) == result["count_holdout"] + result["count_calibration"]


ROW = {
    "id": "mine",
    "chip": {"name": "Novel X1", "peak_flops": "500 TFLOPS", "memory_bytes": "96 GB", "memory_bytes_per_s": "3 TB/s"},
    "chips": 16,
    "model": {"layers": 24, "hidden": 2048, "heads": 16, "ffn": 8192, "vocab": 50304},
    "global_batch": 256,
    "seq": 2048,
    "measured": {"tokens_per_s_per_chip": 15000},
}


def test_a_row_about_an_unknown_chip_and_model_works_and_names_its_assumptions(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"rows": [ROW]}))
    out = training.run([path])
    row = out["rows"][0]
    assert row["predicted"] > 0 and row["chip"] == "Novel X1"
    said = " ".join(row["assumptions"])
    for words in (
        "micro-batch 1",
        "no recomputation",
        "ZeRO stage 1",
        "precision bf16",
        "software stack",
        "nodes and network",
    ):
        assert words in said, words


@pytest.mark.parametrize(
    "quantity, value",
    [
        ("seconds_per_step", 2.0),
        ("tokens_per_s", 250000),
        ("tflops_per_chip", 180),
        ("mfu", 0.4),
        ("memory_gib", 40),
        ("bubble", 0.1),
    ],
)
def test_every_quantity_can_be_measured(quantity, value):
    row = parse({**ROW, "plan": {"pp": 2}, "measured": {quantity: value, "peak_tflops": 500}})
    assert row.quantity == quantity and predict.predict(row) > 0


def test_words_of_other_tools_are_understood():
    row = parse(
        {
            "gpu": "h100",
            "gpus": 8,
            "model": "llama3_8b",
            "parallelism": {"tensor_parallel": 2},
            "mbs": 1,
            "gbs": 64,
            "seq_length": 8192,
            "dtype": "bf16",
            "framework": "torchtitan",
            "measured": {"step_time": 5.0},
        }
    )
    assert (
        row.run.plan.tp == 2
        and row.run.plan.dp == 4
        and row.run.workload.global_batch == 64
        and row.quantity == "seconds_per_step"
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"chip": "H1000"}, "not known"),
        ({"measured": {}}, "measured has none of"),
        ({"model": None}, "has no model"),
        ({"plan": {"tp": 32}}, "attention heads"),
        ({"plan": {"tp": 4, "pp": 8}}, "fewer than tp"),
        ({"recomputed": "full"}, "did you mean 'recompute'"),
        ({"measured": {"seconds_per_step": -1}}, "is below 0"),
        ({"options": {"zeroo": 1}}, "did you mean 'zero'"),
        ({"plan": {"tp": 3}}, "attention heads"),
        ({"kind": "guess"}, "not one of calibration"),
        ({"kind": "fit"}, "is now called 'calibration'"),
    ],
)
def test_bad_rows_are_refused_in_one_line(tmp_path, change, words):
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({"rows": [{**ROW, **change}]}))
    try:
        out = training.run([path])
    except InputError as error:
        text = str(error)
    else:
        text = out["rows"][0]["reason"]  # a plan that cannot run is listed with the reason
    assert words in text and "\n" not in text


def test_an_unknown_chip_is_never_another_chip():
    with pytest.raises(InputError, match="chip"):
        parse({**ROW, "chip": "H101"})


TABLE = os.environ.get("MINGLM_VTRAIN_CSV", "")


@pytest.mark.skipif(
    not TABLE or not Path(TABLE).exists(),
    reason="set MINGLM_VTRAIN_CSV to the single-node table of 1,440 iterations (VIA-Research/vTrain) to check it",
)
def test_the_csv_table():
    out = training.run([TABLE])
    assert len(out["rows"]) == 1440 and out["count_calibration"] == 144
    assert out["mape_holdout"] <= 0.08
    assert out["rotation"]["mean"] <= 0.08
    assert out["evaluation_s"] < 2.0 or os.environ.get("CI")


def test_a_row_whose_plan_needs_more_chips_than_it_names_is_not_scored():
    row = {"id": "x", "chip": "h100", "chips": 63, "model": "llama2_70b", "plan": {"tp": 8, "pp": 4, "dp": 2}}
    with pytest.raises(InputError, match="plan needs 64 chips .* there are 63; lower dp to 1 or give 64 chips"):
        parse({**row, "global_batch": 128, "seq": 4096, "measured": {"seconds_per_step": 9.0}})


def test_a_table_of_several_nodes_names_network_and_stack_and_survives_a_bad_line(tmp_path):
    """Nodes × 8 GPUs; a port of 100 Gbps is DGX A100 with that tier; a line with its own stack is costed under it."""
    table = tmp_path / "nodes.csv"
    table.write_text(
        "nodes,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,"
        "data parallelism,pipeline parallelism,iteration time (ms),network,stack\n"
        "4,64,1,4096,32,24,2048,4,4,2,4000,200 Gbps,\n"
        "4,64,1,4096,32,24,2048,4,4,2,4000,25,\n"
        "4,64,1,4096,32,24,2048,4,5,2,4000,,\n"
        "4,64,1,4096,32,24,2048,4,4,2,4000,,Megatron-LM 2024\n"
    )
    out = training.run([table])
    fast, slow, modern, bad = out["rows"]
    assert (bad["kind"], out["count_unsupported"], out["count_holdout"]) == ("unsupported", 1, 3)
    assert "line 4: needs positive values with tensor × data × pipeline = GPUs" in bad["reason"]
    assert slow["predicted"] > 1.1 * fast["predicted"] and modern["predicted"] < fast["predicted"]
    assert modern["stack"] == "Megatron-LM 2024"
    cluster, stack = load_cluster("dgx_a100"), load_stack(csv_tables.STACK)
    nvlink, ib = cluster.tiers
    port = dataclasses.replace(ib, bytes_per_s=dataclasses.replace(ib.bytes_per_s, value=25e9 / 8))
    model = csv_tables.read_table(table)[0].model
    plan = Plan(tp=4, dp=4, pp=2, sp=False, recompute="full")
    costs = estimate(model, dataclasses.replace(cluster, tiers=(nvlink, port)), plan, Workload(64, 2048), "fp16", stack)
    assert slow["predicted"] == pytest.approx(step_time(costs.costs, "1f1b").total_s)


def test_the_headline_error_counts_predicted_rows_alone():
    rows = [
        {"id": i, "kind": kind, "error": error, "stack": stack, "chip": chip}
        for i, kind, error, stack, chip in (
            ("a", "holdout", 0.1, "one", "x"),
            ("b", "holdout", -0.3, "two", "x"),
            ("c", "calibration", 0.9, "one", "x"),
            ("d", "calibration", -0.7, "three", "y"),
            ("e", "unsupported", None, "one", "x"),
        )
    ]
    got = predict.scores(rows)
    assert got["mape_holdout"] == pytest.approx(0.2) and got["mape_calibration"] == pytest.approx(0.8)
    assert (got["count_holdout"], got["count_calibration"], got["count_unsupported"]) == (2, 2, 1)
    assert (got["worst_holdout"], got["worst_row"]) == (0.3, "b")
    assert got["by_stack"] == pytest.approx({"one": 0.1, "two": 0.3}) and got["by_chip"] == pytest.approx({"x": 0.2})
    assert predict.scores(rows[2:])["mape_holdout"] is None


def test_a_table_beside_other_files_is_refused_and_alone_is_read(tmp_path):
    tables = [str(tmp_path / name) for name in ("one.csv", "two.csv")]
    for path in tables:
        Path(path).write_text("gpus\n8\n", encoding="utf-8")
    with pytest.raises(InputError, match="2 files are given; give this one only"):
        training.run(tables)
    with pytest.raises(InputError, match="has no column"):  # read, and found to be another table
        training.run(tables[:1])
