"""The rows of measured runs: one schema, written out, that every shipped row obeys and the reader agrees with."""

import json

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.scenario import options
from sim.scenario.options import clean_options, clean_plan, clean_recompute, clean_schedule
from sim.validation import rows
from sim.validation.schema import json_schema

FOLDER = datafiles.data("published_runs")
FILES = sorted(FOLDER.glob("*.yaml")) + sorted((FOLDER / "held_out").glob("*.yaml"))


def test_the_written_schema_is_current():
    assert json.loads((FOLDER / "schema.json").read_text(encoding="utf-8")) == json_schema()


VALUES = {"bool": True, "int": 1, "number": 1.5}
TEXTS = {"optimizer": "muon", "attention": "flash", "fusion": "eager", "loss": "unfused"}
LISTS = {"stages": [16, 16], "recompute_modules": ["norm"]}


@pytest.mark.parametrize("option", options.OPTIONS)
def test_the_reader_takes_every_documented_option(option):
    kind = options.OPTIONS[option][0]
    value = VALUES.get(kind, TEXTS.get(option, LISTS.get(option)))
    row = rows.parse(
        {
            "chip": "h100",
            "chips": 16,
            "model": "llama3_8b",
            "plan": {"tp": 2, "pp": 2},
            "global_batch": 64,
            "seq": 2048,
            "options": {option: value},
            "measured": {"seconds_per_step": 1.0},
        }
    )
    assert row.kind == "holdout" and row.plan.tp == 2


def test_reader_and_schema_know_the_same_keys():
    assert set(rows._KEYS) == set(json_schema()["properties"]["rows"]["items"]["properties"])


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
            (
                clean_plan(row["plan"]),
                clean_options(row.get("options") or {}),
                clean_recompute(row.get("recompute", "none")),
            )
            if row.get("schedule"):
                clean_schedule(row["schedule"])
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: clean_plan({"tp": 2, "tensor_parallel": 2}),
        lambda: clean_plan([1]),
        lambda: clean_plan({"tp": -1}),
        lambda: clean_plan({"sp": 3}),
        lambda: clean_options({"stages": [1, "x"]}),
        lambda: clean_options({"imbalance": "nan"}),
        lambda: clean_options(3),
        lambda: clean_schedule({"a": 1}),
        lambda: clean_recompute({"kind": "none", "layer": 1}),
        lambda: clean_recompute("half"),
    ],
)
def test_bad_rows_are_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
