"""Measured inference engines: the rules of use, widths undone, predictions by hand, errors and intervals by groups."""

import csv
import gzip
import io
import math

import pytest

from minglm import datafiles
from sim.serving.error import interval, interval_text, kind_of
from sim.serving.step_time import decode_step, prefill
from sim.spec.model_loader import load_model
from sim.validation import engine_rows_rebuild, engine_summary
from sim.validation.engine_recipes import completed, drafted, poll_steps, waited_steps, weights_format
from sim.validation.engine_row import MODELS, EngineRow
from sim.validation.engine_rows import (
    decoding,
    deployment_of,
    first_token_compared,
    load,
    predict_ms,
    predict_ttft_ms,
    use_of,
)
from sim.validation.engine_summary import conformal_interval, coverage, known_groups, measured_intervals


@pytest.fixture(scope="module")
def summary():
    return engine_summary.summary()


def test_groups_are_calibrated_or_held_out_whole():
    uses = {}
    for row in load():
        use = use_of(row)[0]
        if use != "unsupported":
            uses.setdefault(row.group, set()).add(use)
    assert all(len(some) == 1 for some in uses.values())
    held = sum(1 for some in uses.values() if some == {"holdout"})
    assert held > len(uses) / 2  # most groups of model, chip and engine never touched a constant


def _row(**changes):
    fields = {
        "model": "Llama-3.1-70B",
        "chip": "h200",
        "engine": "trtllm",
        "version": "",
        "precision": "fp8",
        "mode": "agg",
        "prompt": 1000,
        "output": 1000,
        "concurrency": 32,
        "in_flight": 32,
        "tp": 8,
        "dp": 1,
        "ep": 1,
        "ttft_ms": 100.0,
        "tpot_ms": 10.0,
        "harness": "inferencemax",
    }
    return EngineRow(**{**fields, **changes})


def test_a_row_is_a_decode_step_and_its_share_of_the_other_prompts():
    row = _row()
    d = deployment_of(row)
    assert (d.chips, d.attention_tp) == (8, 8)
    by_hand = decode_step(d, 32, 900 + 900 / 2).total_s  # prompts and outputs of 0.8 to 1.0 of the nominal length
    prompt = prefill(d, 900, 0, 1)
    issue_s = 35e-6 * (80 * (7 + 2 + 9) + 10)  # of a layer: two all-reduces, nine small kernels; ten of the head
    assert prompt.total_s == pytest.approx(issue_s) and prompt.parts["eager issue"] > 0  # the host bounds it
    by_hand += 31 * (issue_s - decode_step(d, 32, 900 + 900 / 2).total_s) / 900  # one pass with the running batch
    assert predict_ms(row) == pytest.approx(1e3 * by_hand)
    alone = _row(mode="disagg", harness="aiconfigurator", ttft_ms=math.nan)
    assert predict_ms(alone) == pytest.approx(1e3 * decode_step(d, 32, 1500).total_s)


@pytest.mark.parametrize(
    ("widths", "layout", "running"),
    [
        ({"tp": 64, "ep": 8}, (8, 1), 32),  # TP8 × EP8
        ({"tp": 16, "ep": 4}, (4, 1), 32),
        ({"tp": 4, "ep": 2}, (2, 1), 32),
        ({"mode": "disagg", "tp": 1, "dp": 16, "ep": 16, "in_flight": 512}, (16, 16), 32),  # printed as they are
        ({"tp": 1, "dp": 64, "ep": 8, "in_flight": 256}, (8, 8), 32),  # a batch is of one attention group
        ({"tp": 4, "dp": 4, "ep": 16, "in_flight": 128}, (4, 4), 32),
        ({"tp": 1, "dp": 8, "ep": 8}, (8, 8), 4),  # as many in the batch as the client sends: of all groups
        ({"tp": 4}, (4, 1), 32),
    ],
)
def test_widths_that_the_source_multiplied_are_undone(widths, layout, running):
    row = _row(model="DeepSeek-R1", **widths)
    assert tuple(row.layout) == layout and row.running == running


def test_a_first_token_is_the_way_there_the_steps_before_and_the_prompt():
    row = _row(engine="vllm", concurrency=1, in_flight=1)
    d = deployment_of(row)
    by_hand = d.stack["front_s"] + 900 * d.stack["front_token_s"] + prefill(d, 900, 0, 1).total_s
    by_hand += d.stack["first_token_steps"] * decode_step(d, 1, 1350).total_s
    assert predict_ttft_ms(row) == pytest.approx(1e3 * by_hand)  # alone it meets no wave
    # once in ten times it arrives with three others, four of 2,000 tokens in a pass of 8,192
    four = _row(engine="vllm", concurrency=4, in_flight=4, prompt=2000)
    alone = d.stack["front_s"] + 1800 * d.stack["front_token_s"] + 0.9 * prefill(d, 1800, 0, 1).total_s
    alone += d.stack["first_token_steps"] * decode_step(d, 4, 1800 + 450).total_s
    assert predict_ttft_ms(four) == pytest.approx(1e3 * (alone + 0.1 * prefill(d, 1800, 0, 4).total_s))


def test_widths_that_results_of_2025_leave_out_are_the_recipes():
    """InferenceMAX's search space of 2025 (.github/configs/nvidia-master.yaml), as its comments say it."""
    trt = dict(model="DeepSeek-R1", chip="b200", precision="fp4", prompt=1024, output=1024)

    def widths(**changes):
        row = completed(_row(**{**trt, **changes}))
        return row.tp, row.dp, row.ep

    assert [widths(tp=4, concurrency=c) for c in (32, 64, 256)] == [(4, 1, 1), (4, 1, 4), (1, 4, 4)]
    assert [widths(concurrency=c) for c in (8, 16, 256)] == [(8, 1, 1), (8, 1, 8), (1, 8, 8)]
    assert [widths(output=8192, concurrency=c) for c in (16, 32)] == [(8, 1, 1), (8, 1, 8)]
    assert [widths(prompt=8192, concurrency=c) for c in (32, 64)] == [(8, 1, 1), (1, 8, 8)]
    assert widths(precision="fp8", concurrency=4) == widths(chip="h200", precision="fp8") == (8, 1, 8)
    assert widths(model="gpt-oss-120b", chip="h200") == (8, 1, 8)
    assert widths(engine="sglang", tp=4, concurrency=4) == (4, 1, 4)
    for other in ({"version": "1.2.0rc2"}, {"chip": "gb200"}, {"mode": "disagg"}, {"model": "Llama-3.1-70B"}):
        assert widths(**{"concurrency": 256, "precision": "fp8", "chip": "h200", **other})[2] == 1
    wide = _row(model="Kimi-K2.5", chip="gb200", engine="vllm", mode="disagg", tp=16, ep=16, concurrency=256)
    assert tuple(completed(wide).layout) == (16, 16) and completed(wide).running == 16


def test_runs_that_were_started_to_add_drafts_are_not_compared():
    plain = dict(model="DeepSeek-R1", chip="b200", precision="fp4", version="1.2.0rc6.post2", date="2026-02-03")
    assert not drafted(_row(**plain))
    for told in ({"version": "1.2.0rc6.post3"}, {"date": "2026-01-14"}):
        assert drafted(_row(**{**plain, **told}))
        assert not drafted(_row(**{**plain, **told, "engine": "sglang"}))
    assert not [r for r in load() if use_of(r)[0] != "unsupported" and drafted(r)]


def test_checkpoints_in_four_bits_differ():
    assert weights_format(_row(model="DeepSeek-R1", precision="fp4")) == "nvfp4-mlp"
    assert weights_format(_row(model="Kimi-K2.5", precision="fp4")) == "nvfp4"
    assert weights_format(_row(model="Kimi-K2.5", precision="int4")) == "w4a16-experts"


def test_requests_that_wait_for_their_first_token_do_not_decode():
    row = _row(model="DeepSeek-V3", chip="gb200", mode="disagg", tp=1, dp=32, ep=32, concurrency=256, ttft_ms=20_000.0)
    running = decoding(row)
    step_s = decode_step(deployment_of(row), running, 900 + 450).total_s
    assert 1 < running < 200
    assert running == pytest.approx(256 * 900 * step_s / (20 + 900 * step_s), rel=0.01)  # Little's law
    assert decoding(_row(ttft_ms=20_000.0)) == 32  # chips that prefill too: what waits is in the engine's batch


def test_recipes_that_make_a_prompt_wait():
    """Settings that the scripts of SemiAnalysisAI/InferenceX print."""
    slow = dict(model="DeepSeek-R1", chip="b200", engine="sglang", precision="fp4")
    assert [poll_steps(_row(**{**slow, "concurrency": c})) for c in (8, 16)] == [10, 30]
    assert poll_steps(_row(**{**slow, "chip": "h200"})) == poll_steps(_row(**{**slow, "engine": "vllm"})) == 1
    seldom = predict_ttft_ms(_row(**slow, concurrency=16, in_flight=16))
    often = predict_ttft_ms(_row(**slow, concurrency=15, in_flight=15))
    step_ms = 1e3 * decode_step(deployment_of(_row(**slow)), 16, 1350).total_s
    assert seldom - often == pytest.approx(10 * step_ms, rel=0.15)  # half of 20 steps more between two looks
    llama = dict(model="Llama-3.1-70B", engine="trtllm", tp=4, prompt=1024)
    assert [waited_steps(_row(**llama, output=n)) for n in (1024, 8192)] == [20, 0]


def test_a_run_counts_once_whatever_name_and_widths_it_stands_under():
    rows = [r for r in load() if use_of(r)[0] != "unsupported" and (r.model, r.chip) == ("Kimi-K2.5", "b200")]
    latencies = [(r.in_flight or r.concurrency, r.prompt, f"{r.ttft_ms:.3g}", f"{r.tpot_ms:.3g}") for r in rows]
    assert len(set(latencies)) == len(latencies) > 50


def test_errors_of_engines(summary):
    held, fitted = summary["by_use"]["holdout"], summary["by_use"]["calibration"]
    assert fitted["rows"] > 390 and fitted["mean"] < 0.085 and fitted["median"] < 0.065
    assert held["rows"] > 720 and held["mean"] < 0.125 and held["median"] < 0.105
    assert summary["all"]["mean"] < 0.11 and summary["all"]["median"] < 0.09
    assert summary["by_model"]["Llama-3.1-70B"]["mean"] < 0.08
    first = summary["ttft"]
    assert first["all"]["rows"] > 650 and first["all"]["mean"] < 0.18 and first["by_use"]["holdout"]["mean"] < 0.20


def test_the_80_percent_interval_holds_about_that_many(summary):
    assert 0.75 <= summary["coverage"]["all"]["within_80"] <= 0.90
    for kind, c in summary["coverage"].items():
        assert c["within_80"] >= 0.75 and c["groups_within_80"] >= 0.80, kind  # what the rule promises is of groups
        assert c["within_50"] < c["within_80"] and c["high_over_low_80"] < 1.65
    by_rows = {kind: c["rows"] for kind, c in summary["coverage"].items()}
    assert by_rows.pop("all") == sum(by_rows.values()) == summary["rows"]


def test_an_interval_is_of_groups_and_knows_nothing_of_few():
    # 19 groups and the one that is asked about: a tenth of 20 are two, one of them the unknown one
    groups = [[float(i)] * (100 if i == 1 else 1) for i in range(1, 20)]
    assert conformal_interval(groups, 0.8) == pytest.approx((2.0, 18.0))
    assert conformal_interval(groups[:9], 0.8) == pytest.approx((1.0, 9.0))  # 2 / (1 - 0.8) - 1: just enough
    assert conformal_interval(groups[:8], 0.8) == (0.0, math.inf)
    assert conformal_interval([], 0.8) == (0.0, math.inf)
    # half of a group's rows weigh half of it
    assert conformal_interval([[1.0, 30.0], *groups[1:]], 0.8) == pytest.approx((2.0, 19.0))


def test_groups_of_other_kinds_count_as_wide_as_the_kind_is():
    near = {("m", "c", str(i)): [math.exp(0.1)] for i in range(3)}
    far = {("n", "c", str(i)): [math.exp(0.4)] for i in range(3)}
    by_kind = {"near": near, "far": far, "new": {}}
    every = (3 * 0.1**2 + 3 * 0.4**2) / 6
    scales = {"near": math.sqrt((3 * 0.01 + every) / 4), "far": math.sqrt((3 * 0.16 + every) / 4)}
    known = known_groups(by_kind, "near")
    assert known[:3] == [[pytest.approx(math.exp(0.1))]] * 3
    assert known[3:] == [[pytest.approx(math.exp(0.4 * scales["near"] / scales["far"]))]] * 3
    without = known_groups(by_kind, "near", without=("m", "c", "0"))
    assert len(without) == 5 and without[0][0] == pytest.approx(math.exp(0.1))
    new = known_groups(by_kind, "new")  # nothing is known of it: as wide as all are
    assert new[0] == [pytest.approx(math.exp(0.1 * math.sqrt(every) / scales["near"]))]
    row = next(r for r in load() if use_of(r)[0] == "holdout")
    assert coverage([(row, 1.3)])[row.kind]["high_over_low_80"] == math.inf  # no other group says anything


def test_what_is_not_compared_has_a_reason(summary):
    assert sum(summary["unsupported"].values()) + summary["rows"] == len(load())
    assert all(summary["unsupported"])
    assert not any(first_token_compared(r) for r in load() if r.mode == "disagg")


def test_the_shipped_intervals_are_those_of_the_rows():
    table = measured_intervals()
    for kind, (low, high) in table.items():
        shipped = interval(next(load_model(m) for m in set(MODELS.values()) if kind_of(load_model(m)) == kind))
        assert shipped == pytest.approx((low, high), abs=6e-4)
    assert datafiles.data("serving", "intervals.yaml").read_text() == interval_text(table)


SOURCE_LINE = (
    "db; silicon_concurrency=256; measured=2026-01-28T06:18:44Z,trtllm,1.1,deepseek-ai/DeepSeek-R1,h200_sxm,,{mode},"
    "1024,8192,{batch},8.0,,8.0,{decode},5180.248964850034,30.398513386321937"
)
SOURCE_HEAD = (
    "silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,batch_size,tp_size,"
    "attention_dp_size,moe_ep_size,decode_batch_size,decode_tp_size,decode_attention_dp_size,decode_moe_ep_size,"
    "silicon_ttft_ms,silicon_tpot_ms"
)


def test_the_table_is_made_of_the_source():
    text = "\n".join(
        (
            SOURCE_HEAD,
            SOURCE_LINE.format(mode="agg", batch="32.0", decode=",,,"),
            SOURCE_LINE.format(mode="disagg", batch="", decode="64.0,4.0,0.0,4.0"),
            SOURCE_LINE.format(mode="disagg", batch="", decode=",4.0,,"),  # no batch: left out
        )
    )
    made = list(csv.DictReader(io.StringIO(engine_rows_rebuild.table_text(csv.DictReader(io.StringIO(text))))))
    assert [(r["mode"], r["concurrency"], r["tp"], r["dp"], r["ep"]) for r in made] == [
        ("agg", "32", "8", "1", "8"),
        ("disagg", "64", "4", "1", "4"),
    ]
    first = made[0]
    assert (first["model"], first["chip"], first["precision"], first["in_flight"]) == (
        "DeepSeek-R1",
        "h200",
        "bf16",
        "256",
    )
    assert (first["ttft_ms"], first["tpot_ms"], first["date"]) == ("5180.25", "30.399", "2026-01-28")


def test_the_shipped_table_has_the_columns_of_its_maker_in_order():
    text = gzip.decompress(datafiles.data("serving", "engines.csv.gz").read_bytes()).decode()
    lines = list(csv.reader(io.StringIO(text)))
    assert tuple(lines[0]) == engine_rows_rebuild.COLUMNS and lines[1:] == sorted(lines[1:])


def test_another_source_is_refused(tmp_path, capsys):
    assert engine_rows_rebuild.main([str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / engine_rows_rebuild.SOURCE).write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert engine_rows_rebuild.main([str(tmp_path)]) == 2
    assert "sha256" in capsys.readouterr().err
