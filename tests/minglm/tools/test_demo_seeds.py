"""The scorecard over seeds: its record is whole, is printed as it stands, and bad input is refused in one line."""

import pytest

pytest.importorskip("torch")
from minglm import atomic, datafiles
from minglm.evals.scorecard import Row
from minglm.tools import demo_seeds

CARD = {
    "rows": [
        Row("recall", "4 facts", 30, 40, {"first fact": 0.25, "last fact": 0.3}).to_dict(),
        Row("skill", "copy", 39, 40, {"the words backwards": 0.0}).to_dict(),
    ],
    "counts": {"model": {"accuracy": 0.7}, "trigram": {"accuracy": 0.4}, "trigram + copy": {"accuracy": 0.5}},
    "floor": {"all": {"above": 0.2}, "context": {"above": 0.3}},
}


def test_a_scorecard_becomes_rows_with_the_best_rule_and_they_are_read_back(tmp_path):
    rows = [{"seed": seed, **row} for seed in (0, 2) for row in demo_seeds._rows(CARD)]
    atomic.write_csv(tmp_path / "card.csv", rows, demo_seeds.COLUMNS)
    again = demo_seeds.read(tmp_path / "card.csv")
    assert [(r["seed"], r["name"], r["value"]) for r in again[:3]] == [
        (0, "4 facts", 0.75),
        (0, "copy", 0.975),
        (0, "next token right", 0.7),
    ]
    assert (again[0]["rule"], again[0]["rule_value"], again[0]["questions"]) == ("last fact", 0.3, 40)
    assert (again[2]["rule"], again[2]["rule_value"], again[2]["questions"]) == ("trigram + copy", 0.5, None)
    text = demo_seeds.table(again)
    assert "seed 0  seed 2" in text and "75%     75%  last fact 30%" in text and "0.200   0.200" in text


def test_seeds_that_are_not_measured_now_are_kept(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(seed, runs, size, problems):
        asked.append((seed, size, problems))
        return [{"seed": seed, **row} for row in demo_seeds._rows(CARD)]

    monkeypatch.setattr(demo_seeds, "measure", measure)
    out = ["--out", str(tmp_path / "card.csv"), "--size", "nano", "--problems", "2"]
    assert demo_seeds.main(["--seeds", "1", *out]) == 0 and demo_seeds.main(["--seeds", "0", *out]) == 0
    assert asked == [(1, "nano", 2), (0, "nano", 2)]
    assert [r["seed"] for r in demo_seeds.read(tmp_path / "card.csv")] == [0] * 5 + [1] * 5
    assert "seed 0  seed 1" in capsys.readouterr().out


def test_the_figures_of_the_readme_are_those_of_the_record():
    """Each claim of README's paragraph, put together from the recorded rows: seed 0, then the range of all seeds."""
    rows = demo_seeds.read()
    row = {r["name"]: r for r in rows if r["seed"] == 0}
    text = " ".join((datafiles.root() / "README.md").read_text(encoding="utf-8").split())

    def of(name):
        return f"{row[name]['value']:.0%}"

    def over_seeds(name):
        values = [r["value"] for r in rows if r["name"] == name]
        assert len(values) == 4
        return f"{min(values):.0%} to {max(values):.0%}".replace("% to", " to")

    next_token, facts = row["next token right"], row["4 facts"]
    for claim in (
        f"{row['all']['value']:.2f} nats above the floor",
        f"next token right in {of('next token right')} ({next_token['rule_value']:.0%} by",
        f"whole sentence right in {of('4 facts')}, {facts['rule_value']:.0%} by the best rule",
        f"sums with a carry {of('sums, carry')}, three words copied {of('copy')}",
        f"dialogues of two turns {of('dialogue')}, cards {of('cards')}",
        f"four facts in 1,024 tokens {of('4 facts, 1,024 tokens')}",
        f"agree with its own story {of('… and true to the story')}",
        f"strangers refused {of('refusal')}, two codes of one name {of('4 facts, several')}",
        f"A line is {facts['questions']} questions",
        f"Over four seeds, of which one was tried while the recipe was chosen: four facts {over_seeds('4 facts')}",
        f"in 1,024 tokens {over_seeds('4 facts, 1,024 tokens')}",
        f"sums with a carry {over_seeds('sums, carry')}, cards {over_seeds('cards')}",
        f"true to the story {over_seeds('… and true to the story')}",
    ):
        assert claim in text, claim


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--size", "minni"], "did you mean 'mini'"),
        (["--problems", "0"], "at least 1"),
        (["--summary", "none.csv"], "minglm.tools.demo_seeds"),
    ],
)
def test_bad_input_is_refused_in_one_line(wrong, says, capsys):
    try:
        code = demo_seeds.main(wrong)
    except SystemExit as stopped:  # what the parser itself refuses
        code = stopped.code
    told = capsys.readouterr().err
    assert code == 2 and says in told and told.count("\n") == 1


@pytest.mark.slow
def test_a_seed_is_trained_through_all_stages_and_is_not_trained_twice(tmp_path, monkeypatch):
    rows = demo_seeds.measure(3, tmp_path, "nano", 2)
    assert {row["seed"] for row in rows} == {3} and len({row["name"] for row in rows}) == len(rows)
    stages = sorted(path.name for path in (tmp_path / "seed_3").iterdir())
    assert stages == ["dsa_warmup", "long_context", "pretrain", "sft", "sparse"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    beside = [row for row in rows if row["group"] in ("attention captured", "drafts right")]
    assert len(beside) == 3 and all(0 <= row[key] <= 1 for row in beside for key in ("value", "rule_value"))
    monkeypatch.setattr(demo_seeds, "scorecard", lambda *args: CARD)
    monkeypatch.setattr(demo_seeds.parts, "rows", lambda *args: [])
    assert len(demo_seeds.measure(3, tmp_path, "nano", 2)) == 5
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
