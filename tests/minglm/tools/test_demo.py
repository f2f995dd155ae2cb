"""The demo runs all its steps, leaves every result, resumes after a kill, and says when it is done."""

import json
import shutil

import pytest

pytest.importorskip("torch")
from minglm.errors import InputError
from minglm.tools.demo import STAGES, run_demo

pytestmark = pytest.mark.slow

RESULTS = ("samples", "needle", "scorecard", "indexer_recall", "cost_by_length", "demo")


@pytest.fixture(scope="module")
def done(nano_demo, tmp_path_factory):
    """A copy of a demo that was killed three times on its way: a test of this file cuts its results off."""
    return shutil.copytree(nano_demo, tmp_path_factory.mktemp("demo") / "demo")


def test_every_stage_and_every_result_is_there(done):
    for stage in STAGES:
        assert (done / stage / "metrics.csv").exists() and (done / stage / "checkpoints").is_dir()
    for name in RESULTS:
        assert json.loads((done / f"{name}.json").read_text())
    summary = json.loads((done / "demo.json").read_text())
    assert summary["stages"]["pretrain"]["last_loss"] < summary["ln_vocab"]
    assert {
        mode: json.loads((done / f"rl_{mode}" / "summary.json").read_text())["updates"] for mode in ("sync", "april")
    } == {"sync": 5, "april": 5}
    assert set(summary["rl_answers_per_s"]) == {"sync", "april"}
    needle = json.loads((done / "needle.json").read_text())
    assert needle["questions"] == len(needle["lengths"]) * len(needle["depths"]) * needle["per_cell"]
    assert 0 <= needle["without_context"] <= needle["with_context"] + 1 <= 2


def test_a_second_call_says_that_it_is_done(done, capsys):
    before = (done / "demo.json").stat().st_mtime_ns
    run_demo(done, "nano", progress=False)
    assert "the demo is done" in capsys.readouterr().out
    assert (done / "demo.json").stat().st_mtime_ns == before


def test_a_cut_off_result_is_made_again(done):
    (done / "needle.json").write_text('{"lengths": [')
    (done / "demo.json").unlink()
    run_demo(done, "nano", progress=False)
    assert json.loads((done / "needle.json").read_text())["accuracy"]


def test_the_choice_lies_between_nothing_and_the_best_possible(done):
    for layer in json.loads((done / "indexer_recall.json").read_text())["layers"]:
        assert 0 < layer["indexer"] <= layer["best"] + 1e-6 <= 1 + 2e-6
        assert layer["recent"] <= layer["best"] + 1e-6


def test_another_size_in_the_same_folder_is_refused(done):
    with pytest.raises(InputError, match="--overwrite"):
        run_demo(done, "mini", progress=False)
    with pytest.raises(InputError, match="mini"):
        run_demo(done, "mimi", progress=False)
