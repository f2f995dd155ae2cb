"""The rows of measured runs: one schema, written out, that every shipped row obeys and the reader agrees with."""

import json

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.validation import rows, training
from sim.validation.rows import read_rows
from sim.validation.schema import json_schema

FOLDER = datafiles.data("published_runs")
FILES = sorted(FOLDER.glob("*.yaml")) + sorted((FOLDER / "held_out").glob("*.yaml"))


def test_the_written_schema_is_current():
    assert json.loads((FOLDER / "schema.json").read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_shipped_rows_obey_the_schema(path):
    jsonschema = pytest.importorskip("jsonschema")
    document = read_document(path)
    jsonschema.validate(document, json_schema())
    for row in merged(path):
        assert row["source"] and row["stack"], row["id"]
        if row["kind"] == "unsupported":
            assert row["reason"], row["id"]
        else:
            assert isinstance(rows.parse(row), rows.MeasuredRow), row["id"]
            assert {"mfu", "peak_tflops"} & set(row["measured"]) != {"mfu"}, row["id"]


def merged(path):
    document = read_document(path)
    return [{**(document.get("defaults") or {}), **row} for row in document["rows"]]


def test_ids_are_unique_and_fits_are_few():
    every = [row for path in FILES for row in merged(path)]
    assert len({row["id"] for row in every}) == len(every)
    assert not [
        row["id"]
        for path in (FOLDER / "held_out").glob("*.yaml")
        for row in merged(path)
        if row["kind"] == "calibration"
    ]
    scored = [row for path in sorted(FOLDER.glob("*.yaml")) for row in merged(path) if row["kind"] != "unsupported"]
    assert sum(row["kind"] == "holdout" for row in scored) >= 30
    by_chip: dict = {}
    for row in scored:
        by_chip.setdefault(rows.parse(row).chip, []).append(row["kind"] == "calibration")
    assert all(sum(fits) <= max(1, len(fits) / 3) for fits in by_chip.values()), {
        k: (sum(v), len(v)) for k, v in by_chip.items()
    }


def test_a_row_may_say_its_ends_and_its_experts_capacity():
    row = {
        "id": "x", "cluster": "dgx_h100", "chips": 64, "model": "deepseek_v3", "micro_batch": 1, "global_batch": 256,
        "plan": {"tp": 1, "pp": 8, "dp": 8, "ep": 8}, "seq": 4096, "measured": {"seconds_per_step": 9.0},
        "options": {"decoder_first_pipeline_num_layers": 7, "decoder_last_pipeline_num_layers": 6,
                    "moe_expert_capacity_factor": 1.25},
    }  # fmt: skip
    run = rows.parse(row).run
    assert run.plan.stages == (7, 8, 8, 8, 8, 8, 8, 6) and run.workload.busiest == 1.25
    row["options"] |= {"stages": [8] * 7 + [5]}
    with pytest.raises(InputError, match="row x: options decoder_first_pipeline_num_layers.*stages are given too"):
        rows.parse(row)
    row["options"] = {"imbalance": 1.2, "capacity_factor": 1.0}
    with pytest.raises(InputError, match="row x: options imbalance and capacity_factor"):
        rows.parse(row)


def test_one_bad_row_does_not_stop_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    good = (
        "  - {id: good, chip: h100, chips: 8, model: llama3_8b, plan: {dp: 8}, micro_batch: 1, global_batch: 64,\n"
        "     seq: 8192,\n"
        "     measured: {seconds_per_step: 5.0}}\n"
    )
    path.write_text(
        "rows:\n" + good + "  - {id: bad, chip: h1000, chips: 8, model: llama3_8b, seq: 8192, measured: {mfu: 0.4}}\n"
    )
    rows = read_rows([path])
    assert [row.id for row in rows] == ["good", "bad"] and rows[1].kind == "unsupported"
    assert "h1000" in rows[1].reason
    path.write_text("rows:\n  - {id: bad, chip: h1000, chips: 8, model: llama3_8b, seq: 8192, measured: {mfu: 0.4}}\n")
    with pytest.raises(InputError, match="h1000"):
        read_rows([path])


def test_a_micro_batch_that_is_not_given_is_ranged(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rows:\n  - {id: open, chip: h100, chips: 8, model: llama3_8b, plan: {dp: 8}, global_batch: 64, seq: 8192,\n"
        "     measured: {seconds_per_step: 5.0}}\n"
    )
    (row,) = training.run([path])["rows"]
    assert any(note.startswith("micro-batch not given") and "2:" in note for note in row["assumptions"])
