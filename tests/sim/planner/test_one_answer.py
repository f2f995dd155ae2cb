"""One question, one answer: a file, flags, a notebook, the page, a table of chips, a sweep, a campaign and a report say
the same to the last digit, whether the plan is left open, half given or whole."""

import json
import random

import pytest

from sim.cli.main import main
from sim.dashboard import state
from sim.planner.planner import answer, complete
from sim.planner.question import question
from sim.scenario.training import resolve
from sim.spec.plan import WIDTHS
from sim.study.answer import figures, simulate

FIGURES = ("plan", "step_s", "tokens_per_s", "memory_gib", "days", "goodput", "energy_kwh", "rent_usd", "own_usd")
MODELS = ("llama3_8b", "mixtral_8x7b", "llama2_13b", "qwen3_30b_a3b")
CHIPS = ("h100", "910b", "a100_80", "910b3", "b200")
TWICE = ("zero", "recompute", "tp", "pp")


def generated(number):
    """(flags' keywords, what is pinned): reproducible, every third question with a plan half given."""
    rng = random.Random(number)
    asked = {
        "model": rng.choice(MODELS),
        "chip": rng.choice(CHIPS),
        "chips": rng.choice([16, 32, 48, 100]),
        "seq": rng.choice([2048, 4096]),
        "tokens": rng.choice([20_000_000_000, 300_000_000_000]),
    }
    asked |= rng.choice([{"batch": 64}, {"batch": 96}, {"batch_tokens": 1_000_000}, {}])
    if rng.random() < 0.3:
        asked["objective"] = "cost"
    pins = {}
    if number % 3 == 1:
        pins = rng.choice(
            [{"tp": 2}, {"tp": 4, "recompute": "full"}, {"schedule": "1f1b"}, {"micro_batch": 1, "pp": 2}]
        )
    return asked, pins


def flags(asked, pins):
    names = {"batch_tokens": "batch-tokens"}
    words = [w for k, v in asked.items() for w in (f"--{names.get(k, k)}", str(v))]
    return words + [w for k, v in pins.items() for w in ("--set", f"{k}={v}")]


def as_document(asked, pins):
    names = {"batch": "global_batch", "batch_tokens": "global_tokens"}
    document = {names.get(k, k): v for k, v in asked.items()}
    top = ("schedule", "micro_batch", "recompute")
    document |= {k: v for k, v in pins.items() if k in top}
    return {**document, "plan": {"auto": True, **{k: v for k, v in pins.items() if k not in top}}}


def can_be_set_on_the_page(asked, pins):
    """Its controls have no batch in sequences and no pins."""
    return not pins and "batch" not in asked


def page_values(asked):
    values = {("batch" if k == "batch_tokens" else k): str(v) for k, v in asked.items() if k != "chip"}
    return {**values, "machine": f"chip:{asked['chip']}"}


def told(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30))
def test_every_door_gives_the_same_figures(number, tmp_path, capsys):
    asked, pins = generated(number)
    file = tmp_path / "asked.yaml"
    file.write_text(json.dumps(as_document(asked, pins)))
    notebook = answer(question(**asked, fixed=pins), 1)["winner"]
    expected = {k: notebook[k] for k in FIGURES if k in notebook}
    assert expected["days"] > 0

    def same(row, door):
        assert {k: row[k] for k in expected if k in row} == {k: v for k, v in expected.items() if k in row}, door
        assert "days" in row, door

    same(told(capsys, "plan", *flags(asked, pins), "--samples", "0")["winner"], "flags")
    run = told(capsys, "run", str(file), "--out", str(tmp_path / "run"), "--no-what-if")
    same(run["answer"], "file")
    assert run["days"]["value"] == expected["days"] and run["step"]["step_s"] == expected["step_s"]
    same(json.loads((tmp_path / "run" / "metrics.json").read_text())["answer"], "report")
    same(told(capsys, "campaign", str(file)), "campaign")
    same(told(capsys, "sweep", str(file), "--vary", f"chips=[{asked['chips']}]")[0], "sweep")
    others = [w for w in flags(asked, pins)]
    compared = told(capsys, "compare", *others)["rows"][0]
    same(compared, "compare")
    if can_be_set_on_the_page(asked, pins):
        page = state.searched(page_values(asked), samples=2)
        same(page.row, "page")
        line = state.command(page)
        import shlex

        same(told(capsys, *shlex.split(line)[1:], "--samples", "0")["winner"], line)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_explicit_and_automatic_are_one_path(number):
    """A completed document asks for nothing more: answered again, whole or through flags, it is its own answer."""
    asked, pins = generated(number)
    q = question(**asked, fixed=pins)
    document = complete(q.document)
    mine = figures(simulate(resolve(document)))
    assert complete(document) == document
    widths = {
        **document["plan"],
        **document["options"],
        **{k: document[k] for k in ("schedule", "micro_batch", "recompute")},
    }
    whole = {k: v for k, v in asked.items() if k not in ("batch", "batch_tokens")}
    again = question(**{**whole, "chips": document["chips"], "batch": document["global_batch"]}, fixed=widths)
    assert set(WIDTHS) <= set(widths) | {"etp"}
    assert answer(again, 1)["winner"] == mine


@pytest.mark.parametrize("plan", [{"auto": True, "tp": 2}, {"tp": 2, "pp": "auto"}, "auto"])
def test_plan_of_a_file_keeps_what_the_file_pins(plan, tmp_path, capsys):
    """`clustersim plan FILE` opened a plan that was open already, and lost its pins: it answered another question."""
    file = tmp_path / "asked.yaml"
    asked = {"model": "llama3_8b", "chip": "a100_40", "chips": 16, "seq": 2048, "global_batch": 32, "tokens": 1e9}
    file.write_text(json.dumps({**asked, "recompute": "full", "plan": plan}))
    run = told(capsys, "run", str(file), "--out", str(tmp_path / "run"), "--no-what-if")["answer"]
    found = told(capsys, "plan", str(file), "--samples", "0")["winner"]
    assert {k: found.get(k) for k in FIGURES} == {k: run.get(k) for k in FIGURES} and found["recompute"] == "full"
    assert plan == "auto" or found["tp"] == 2
    fewer = told(capsys, "plan", str(file), "--samples", "0", "--batch-tokens", "32k")["winner"]
    assert fewer["tokens_per_step"] == pytest.approx(32_000, rel=0.03)


def test_one_spelling_is_one_chip_everywhere():
    for spelling in ("910b", "910B", "Ascend 910B", "ascend-910b"):
        q = question("glm5", chip=spelling, chips=1000)
        assert q.cluster.chip.name == "910B" and q.cluster.name == "Atlas 800T A2"
    assert question("glm5", "atlas_800t_a2", 1000).cluster.chip.name == "910B3"  # the cluster file's own bin


def test_one_table_of_defaults():
    """GLM-5 trains dense, 64M tokens a step, as its shipped scenario; another model 16M; both on their chip's stack."""
    glm5, other = question("glm5", chip="910b"), question("llama3_70b", chip="h100")
    assert glm5.model.index_topk == 0 and glm5.tokens == 28.5e12 and glm5.stack.name == "mindspeed-llm-2026-06"
    assert glm5.batch * glm5.seq == pytest.approx(64e6, rel=1e-4) and glm5.pinned["optimizer"] == "muon"
    assert other.batch * other.seq == pytest.approx(16e6, rel=1e-3) and other.stack.name == "generic"
    file = resolve({"model": "llama3_70b", "chip": "h100", "plan": {"tp": 8, "pp": 2}})
    assert file.workload.tokens == pytest.approx(16e6, rel=0.05) and file.tokens == other.tokens


@pytest.mark.parametrize("number", [1, 2])
def test_every_door_gives_the_same_interval(number, tmp_path, capsys):
    """The page drew 60 samples and the commands 256; `compare` moved prices alone; `campaign` had luck alone."""
    asked, pins = generated(number)
    file = tmp_path / "asked.yaml"
    file.write_text(json.dumps({**as_document(asked, pins), "seed": 3}))
    expected = told(capsys, "plan", str(file))["uncertainty"]["intervals"]
    low, high = (expected["days"][end] for end in ("p5", "p95"))
    assert low < high
    run = told(capsys, "run", str(file), "--out", str(tmp_path / "run"), "--no-what-if")
    assert (run["days"]["low"], run["days"]["high"]) == (
        min(low, run["days"]["value"]),
        max(high, run["days"]["value"]),
    )
    assert told(capsys, "campaign", str(file))["intervals"] == expected
    plain = told(capsys, "plan", *flags(asked, pins))["uncertainty"]["intervals"]
    row = told(capsys, "compare", *flags(asked, pins))["rows"][0]
    assert {k: v for k, v in row["intervals"].items() if k in plain} == plain
    if can_be_set_on_the_page(asked, pins):
        assert state.searched(page_values(asked)).sure["intervals"] == plain
