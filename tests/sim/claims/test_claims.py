"""The ledger: its list of claims is whole, every verdict follows from its computation, and would not if the claim
changed."""

import dataclasses
import json
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.claims import ledger
from sim.claims.rules import CONTRADICTED, UNKNOWN, VERDICTS, Answer, by_evidence, exact, judge
from sim.cli.main import main
from sim.spec.hardware import load_chip

IDS = """
total-params active-params experts experts-per-token dsa-name dsa-origin context output text-only rivals-multimodal
tokens tokens-before mindspore-required chips-100k chips-all-training run-length run-60-days supply peak-910b peak-a100
peak-h100 910b-over-a100 910b-under-h100 arena-score arena-second arena-third arena-first arena-beats-closed
arena-beats-opus arena-beats-gpt arena-gap-4 arena-gap-2 arena-gap-6 arena-and-benchmarks swe-glm swe-opus swe-gpt
swe-gap-opus swe-gap-gpt aime gpqa hle-glm hle-opus hle-gpt hle-lead vendor-reported hallucination-before
hallucination-after hallucination-drop hallucination-index hallucination-owner hallucination-in-report slime-decouples
slime-unpublished april-partial april-in-report long-tail rl-cheaper price-input price-output price-router-input
price-router-output price-opus-input price-opus-output cheaper-input cheaper-output cheaper-blended weights-precisions
weights-hugging-face weights-modelscope fp8-fits fp8-minimum speed licence licence-freest release-date ipo-date ipo-hkd
ipo-usd first-listed stock pony-alpha gap-narrowing export-controls
""".split()

LEDGER = ledger.load()
RESULT = ledger.run()
BY_COMPUTATION = [c for c in LEDGER if c.rule["compare"] != "evidence"]
BY_EVIDENCE = [c for c in LEDGER if c.rule["compare"] == "evidence"]


def test_the_list_of_claims_is_whole():
    assert [c.id for c in LEDGER] == IDS
    assert len(IDS) >= 60


@pytest.mark.parametrize("row", RESULT["claims"], ids=IDS)
def test_the_verdict_follows_and_the_reason_is_one_sentence(row):
    assert row["verdict"] == row["expected"], (
        f"{row['id']}: the ledger says {row['expected']}, the rule gives {row['verdict']}"
    )
    assert row["verdict"] in VERDICTS
    assert 20 < len(row["why"]) < 330 and row["why"].endswith(".") and "\n" not in row["why"]


@pytest.mark.parametrize("claim", BY_COMPUTATION, ids=lambda c: c.id)
def test_another_value_gets_another_verdict(claim):
    """A rule that any value satisfies would say nothing about the claim."""
    answer, verdict = claim.answer(), claim.judged(claim.answer())

    def changed(x, factor):
        return (
            [changed(v, factor) for v in x]
            if isinstance(x, list)
            else float(exact(x) * exact(factor)) + (x == 0) * 50 * factor
        )

    values = [changed(claim.value, factor) for factor in (0.01, 1.09, 0.91, 100)]
    if not isinstance(answer.value, tuple):  # what the claim would have had to say
        right = float(answer.value)
        values.append([0.99 * right, 1.01 * right] if isinstance(claim.value, list) else right)
    others = {judge(value, claim.rule, answer, claim.sources) for value in values}
    assert others - {verdict}, f"{claim.id}: {claim.value} could be anything and stay '{verdict}'"


@pytest.mark.parametrize("claim", BY_EVIDENCE, ids=lambda c: c.id)
def test_other_sources_give_another_verdict(claim):
    against = {"source": "x", "says": "contradicts", "strength": "third-party", "at": ""}
    verdicts = {by_evidence(claim.sources), by_evidence(()), by_evidence((*claim.sources, against))}
    assert by_evidence((*claim.sources, against)) == CONTRADICTED and by_evidence(()) == UNKNOWN
    assert len(verdicts) >= 2
    if claim.verdict != UNKNOWN:
        assert claim.sources, f"{claim.id}: a verdict from sources needs sources"


def test_enough_claims_have_a_computation():
    assert RESULT["computed"] >= 0.6 * len(IDS)
    assert RESULT["all_follow"] and sum(RESULT["verdicts"].values()) == len(IDS)


def test_kinds_and_verdicts_are_all_used():
    assert {c.kind for c in LEDGER} == set(ledger.KINDS)
    assert all(RESULT["verdicts"][v] for v in VERDICTS)


def test_counts_are_exact():
    rows = {r["id"]: r for r in RESULT["claims"]}
    assert rows["total-params"]["detail"]["exact"] == 743_911_218_432
    assert rows["total-params"]["detail"]["with_prediction_module"] == 753_864_139_008
    assert rows["chips-100k"]["detail"]["operations"] == 6_840_000_000_000_000_000_000_000
    assert rows["ipo-hkd"]["detail"]["exact_hkd"] == pytest.approx(4_348_145_900, abs=0)
    by_id = {c.id: c for c in LEDGER}
    assert by_id["swe-gap-opus"].answer().value == Fraction(31, 10)
    assert by_id["swe-gap-gpt"].answer().value == Fraction(11, 5)
    assert by_id["hallucination-drop"].answer().value == 56
    assert by_id["cheaper-output"].answer().value == Fraction(125, 16)
    assert by_id["tokens"].answer().value == Fraction("28.55")


def test_peaks_from_cores_and_clock_agree_with_the_chip_files():
    by_id = {c.id: c for c in LEDGER}
    for claim, chip in (("peak-a100", "A100_80"), ("peak-h100", "H100")):
        assert float(by_id[claim].answer().value) == pytest.approx(load_chip(chip).peak("fp16").value / 1e12, rel=1e-3)
    low, high = by_id["peak-910b"].answer().value
    for chip in ("910B1", "910B2", "910B3"):
        assert (
            low <= load_chip(chip).peak("fp16").value / 1e12 + 0.1
            and load_chip(chip).peak("fp16").value / 1e12 <= high + 0.1
        )


def test_verdicts_that_must_not_drift():
    """The findings a reader takes away, each for its own reason."""
    verdict = {r["id"]: r["verdict"] for r in RESULT["claims"]}
    assert verdict["swe-gap-opus"] == verdict["hle-lead"] == verdict["arena-gap-4"] == "inconsistent"
    assert verdict["dsa-name"] == verdict["slime-unpublished"] == verdict["licence-freest"] == CONTRADICTED
    assert verdict["chips-100k"] == verdict["chips-all-training"] == UNKNOWN
    assert verdict["swe-glm"] == "vendor claim"


NAMES = re.compile(
    r"GPT-5\.2|Opus 4\.5|GLM-[45][.\d]*|[AHB]\d00\b|910B|Apache-2\.0|MIT-0|0BSD|mid-2024|Llama 3[\w.-]*|AIME 2026|"
    r"2026|2025|128K|FP8"
)


def numbers(x):
    """Every number in a value, a mapping or a text; names that contain digits are left out."""
    if isinstance(x, str):
        for found in re.findall(r"\d[\d,]*(?:\.\d+)?", NAMES.sub("", x)):
            yield float(found.replace(",", ""))
    elif isinstance(x, dict):
        for v in x.values():
            yield from numbers(v)
    elif isinstance(x, (list, tuple)):
        for v in x:
            yield from numbers(v)
    elif isinstance(x, (int, float)) and not isinstance(x, bool):
        yield float(x)


@pytest.mark.parametrize("row", RESULT["claims"], ids=IDS)
def test_every_number_in_a_reason_is_computed_or_sourced(row):
    """A reason may round a figure, and may not bring one of its own."""
    pool = [*numbers(row["value"]), *numbers(row["computed"]), *numbers(row["detail"]), *numbers(row["text"])]
    pool += [n for s in row["sources"] for n in (*numbers(s["at"]), *numbers(s["title"]))]
    pool += [n * factor for n in pool for factor in (100, 1e-9)]  # shares said in percent, counts said in billions
    claim = next(c for c in LEDGER if c.id == row["id"])
    pool += numbers(dict(claim.args))
    for text in re.findall(r"\d[\d,]*(?:\.\d+)?", NAMES.sub("", row["why"])):
        said = text.replace(",", "")
        digits = len(said.replace(".", "").lstrip("0")) if "." in said else max(1, len(said.rstrip("0")))
        assert any(float(f"{n:.{digits}g}") == float(said) for n in pool), f"{row['id']}: where does {text} come from?"


def test_json_and_table_and_one_claim(capsys):
    assert main(["claims", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    for row in read["claims"]:
        assert {"id", "text", "kind", "value", "computation", "computed", "verdict", "why", "sources"} <= set(row)
    assert main(["claims"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in IDS)
    assert main(["claims", "speed"]) == 0
    assert "roofline" in capsys.readouterr().out


def test_an_unknown_id_is_refused_with_the_nearest(capsys):
    with pytest.raises(InputError, match="did you mean 'tokens'"):
        ledger.run(only="tokns")
    assert main(["claims", "--id", "tokns"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "did you mean 'tokens'" in err and not out


def test_the_command_gives_the_same_ledger(capsys):
    assert main(["claims", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["claims"]] == IDS
    assert main(["claims", "licence-freest"]) == main(["claims", "--id", "licence-freest"]) == 0
    one, two = capsys.readouterr().out.split("licence-freest: ")[1:]
    assert one == two


def test_a_verdict_that_no_longer_follows_is_reported(tmp_path, capsys, monkeypatch):
    text = datafiles.data("claims.yaml").read_text(encoding="utf-8").replace("value: 744\n", "value: 700\n")
    assert "value: 700" in text
    other = tmp_path / "claims.yaml"
    other.write_text(text, encoding="utf-8")
    result = ledger.run(other)
    assert not result["all_follow"]
    assert [r["id"] for r in result["claims"] if not r["follows"]] == ["total-params"]
    assert "the ledger says: reproduced" in ledger.format_table(result)
    monkeypatch.setattr(ledger, "run", lambda only=None: result)
    assert main(["claims"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: architecture", "kind: architectur", "did you mean 'architecture'"),
        ("verdict: reproduced", "verdict: proven", "verdict 'proven'"),
        ("- [report, supports", "- [reprot, supports", "did you mean 'report'"),
        ("- [report, supports", "- [report, shows", "says 'shows'"),
        ("computation: sim.claims.model.total_params", "computation: sim.claims.model.totl", "does not exist"),
        ("computation: sim.claims.model.total_params", "computation: os.getcwd", "not in a claims module"),
        ("rule: {compare: rounds}", "rule: {compare: round}", "did you mean 'rounds'"),
        ("- id: active-params", "- id: total-params", "listed 2 times"),
        ('    unit: "billion"\n', "", "lacks unit"),
        ('{strength: vendor, title: "GLM-5: from', '{strength: strong, title: "GLM-5: from', "strength 'strong'"),
    ],
)
def test_a_broken_entry_is_refused_with_its_name(tmp_path, old, new, message):
    text = datafiles.data("claims.yaml").read_text(encoding="utf-8")
    assert old in text
    bad = tmp_path / "claims.yaml"
    bad.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        ledger.run(bad)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ledger.load(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("claims: [", encoding="utf-8")
    with pytest.raises(InputError, match="not valid YAML"):
        ledger.load(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_text("claims: {}", encoding="utf-8")
    with pytest.raises(InputError, match="needs a mapping"):
        ledger.load(tmp_path / "y.yaml")


def test_a_comparison_without_an_answer_is_refused():
    with pytest.raises(InputError, match="needs a computation"):
        judge(1, {"compare": "equal"}, None, ())


def test_claims_are_values():
    claim = LEDGER[0]
    assert dataclasses.replace(claim, value=1).judged(Answer(1, "")) == "reproduced"


def test_the_ledger_loads_without_torch_or_numpy():
    code = (
        "import sys, sim.claims.ledger, sim.claims.rules, minglm.evals.statistics\n"
        "result = sim.claims.ledger.run()\n"
        "assert result['all_follow']\n"
        "loaded = {'torch', 'numpy', 'plotly'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
