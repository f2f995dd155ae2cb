"""The scorecard of a run: every line has its rules and its interval, and text is asked of the stage before chat."""

import json

import pytest

from minglm.cli.main import main
from minglm.errors import InputError
from minglm.evals import scorecard
from minglm.evals.statistics import wilson
from minglm.inference.load import load_model
from minglm.training.loop import train
from minglm.training.recipe import load

SHORT = {"steps": 2, "val_every": 2, "val_batches": 1, "warmup_steps": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    train(load("ci_tiny_sparse", {**SHORT, "stage": "pretrain"}), folder / "text", progress=False, device="cpu")
    train(load("ci_tiny_sft", SHORT), folder / "chat", init_from=folder / "text", progress=False, device="cpu")
    return folder


@pytest.mark.slow
def test_every_line_stands_beside_its_rules(runs, capsys):
    command = ["eval", "scorecard", "--checkpoint", str(runs / "chat"), "--problems", "2", "--length", "160", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    groups, names = [row["group"] for row in result["rows"]], [row["name"] for row in result["rows"]]
    assert (
        groups.count("recall") == len(scorecard.RECALL) + 1
        and "4 facts, 320 tokens" in names
        and {"skill", "stories"} <= set(groups)
    )
    for row in result["rows"]:
        assert row["rules"] and all(0 <= share <= 1 for share in row["rules"].values())
        assert row["interval"] == list(wilson(row["right"], row["total"]))
    assert result["text_run"].endswith("text") and result["mode"] == "sparse"
    whole = result["floor"]["all"]
    assert whole["above"] == pytest.approx(whole["loss"] - whole["floor"]) and whole["above"] > 0
    parts = [part for name, part in result["floor"].items() if name != "all"]
    assert sum(p["share"] for p in parts) == pytest.approx(1)
    assert sum(p["share"] * p["floor"] for p in parts) == pytest.approx(whole["floor"])
    assert result["counts"]["model"]["loss"] == pytest.approx(whole["loss"])
    assert result["counts"]["model"]["tokens"] == result["counts"]["trigram"]["tokens"]


@pytest.mark.slow
def test_another_vocabulary_is_refused_in_one_line(runs):
    class Other:
        sha256 = "another"

    model, *_ = load_model(runs / "text")
    with pytest.raises(InputError, match="minglm eval pass"):
        scorecard.scorecard(runs / "text", model, Other())
