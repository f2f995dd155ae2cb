"""Left-out errors, their intervals, and how often they hold; the error page."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from minglm.cli.main import main as minglm_main
from minglm.errors import InputError
from sim.cli.main import main
from sim.report import errors
from sim.spec.hardware import load_chip
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan
from sim.validation import coverage, summary
from sim.validation.coverage import FEW, KINDS, MOST, LeftOut, interval, kind_of, left_out_factors


def test_a_conformal_interval_holds_its_share_of_new_errors():
    rng = random.Random(7)
    held = 0
    for _ in range(2000):
        known = [rng.lognormvariate(0.0, 0.1) for _ in range(39)]
        low, high = interval(known, 0.8)
        held += low <= rng.lognormvariate(0.0, 0.1) <= high
    assert held / 2000 == pytest.approx(0.8, abs=0.03)
    assert interval([], 0.8)[1] == float("inf")


def test_kinds_of_questions():
    h100, dense, experts = load_chip("H100"), load_model("llama3_8b"), load_model("qwen3_30b_a3b")
    plan = Plan(dp=64, micro_batch=1)
    assert kind_of(load_chip("910B2"), experts, Plan(dp=8192), 65536, "bf16") == "ascend"
    assert kind_of(h100, dense, Plan(dp=16384), 65536, "fp8") == "more than 4,096 chips"
    assert kind_of(h100, experts, plan, 65536, "bf16") == "long context"
    assert kind_of(h100, experts, plan, 4096, "fp8") == "moe"
    assert [kind_of(h100, dense, plan, 4096, p) for p in ("fp8", "bf16")] == ["fp8", "dense"]


@pytest.mark.parametrize(
    "plan, seq, few",
    [
        (Plan(tp=2, micro_batch=1), 4096, True),
        (Plan(tp=2, micro_batch=2), 4096, False),
        (Plan(tp=8, micro_batch=4), 4096, True),
        (Plan(tp=2, cp=2, micro_batch=1), 8192, True),
        (Plan(micro_batch=1), 2048, True),
        (Plan(micro_batch=1), 2049, False),
    ],
)
def test_few_tokens_are_those_of_a_micro_batch_on_one_chip(plan, seq, few):
    kind = kind_of(load_chip("H100"), load_model("qwen3_30b_a3b"), plan, seq, "bf16")
    assert kind == ("experts, few tokens" if few else "moe")


def test_a_kind_with_few_rows_takes_all():
    rows = [LeftOut(str(i), "dense", f"stack {i}", "H100", 1.0 + i / 100, 0.0) for i in range(FEW)]
    rows.append(LeftOut("x", "moe", "b", "H100", 2.0, 0.0))
    assert len(coverage.of_kind(rows, "dense")) == FEW and len(coverage.of_kind(rows, "moe")) == FEW + 1
    alone = [*rows, LeftOut("y", coverage.ALONE, "c", "H100", 1.1, 0.0)]  # waits for its host: no other kind tells
    assert len(coverage.of_kind(alone, coverage.ALONE)) == 2 and len(coverage.of_kind(alone, "moe")) == FEW + 1


def test_a_kind_of_few_stacks_reaches_both_ways_and_is_stretched():
    # Student's t of 4 degrees leaves 10% above 1.533 (tables), the normal 1.2816; a new member adds √(1 + 1/5)
    wide = coverage.widened([1.2, 0.9], 5)
    stretch = 1.533 * 1.2**0.5 / 1.2816
    assert sorted(wide) == pytest.approx(sorted(f**s for f in (1.2, 0.9) for s in (stretch, -stretch)), rel=1e-3)
    assert coverage.widened([1.2, 0.9], coverage.FEW_STACKS) == [1.2, 0.9]
    assert coverage.widened([1.2], 1) == coverage.widened([1.2], 2)


@pytest.mark.parametrize("stacks", [3, 4, 6])
def test_an_interval_of_few_stacks_holds_the_next_one_no_less_often_than_it_says(stacks):
    """Stacks err by a figure of their own and a smaller one a row; what was seen alone holds too few."""
    rng, held = random.Random(stacks), {True: 0, False: 0}
    for _ in range(1000):
        known = []
        for _ in range(stacks):
            own = rng.gauss(0.0, 0.1)
            known += [math.exp(own + rng.gauss(0.0, 0.04)) for _ in range(4)]
        new = math.exp(rng.gauss(0.0, 0.1) + rng.gauss(0.0, 0.04))
        for wide in held:
            low, high = interval(coverage.widened(known, stacks) if wide else known, 0.8)
            held[wide] += low <= new <= high
    assert held[False] < 790 < 880 < held[True] < 960


def test_a_stack_with_many_rows_speaks_with_few_of_them():
    one, other = (
        [LeftOut(f"{stack}{i}", "dense", stack, "H100", factor + i / 1000, 0.0) for i in range(n)]
        for stack, n, factor in (("a", 3 * MOST, 1.0), ("b", 3, 2.0))
    )
    known = coverage.spoken(one + other)
    assert len(known) == MOST + 3 and sum(f >= 2.0 for f in known) == 3
    middles = [1.0 + (1 + 3 * i) / 1000 for i in range(MOST)]  # the middle one of every three
    assert known[:MOST] == pytest.approx(middles)


def test_coverage_counts_rows_and_stacks():
    """Ten of 55 rows are far off: one stack of three."""
    near = [LeftOut(f"a{i}", "dense", "a", "H100", 1.0, 0.0) for i in range(30)]
    far = [LeftOut(f"b{i}", "dense", "b", "H100", 2.0, 0.0) for i in range(10)]
    also = [LeftOut(f"c{i}", "dense", "c", "H100", 1.0, 0.0) for i in range(15)]
    one = coverage.coverage([*near, *far, *also])["dense"]
    assert (one["rows"], one["stacks"]) == (55, 3)
    assert one["inside_80"] == pytest.approx(45 / 55) and one["stacks_80"] == pytest.approx(2 / 3)


def test_the_error_of_a_row_is_that_of_validate():
    """Seconds a step: predicted over measured, where the factor is measured over predicted."""
    row = next(row for row in coverage.all_left_out() if row.id == "dispatch-kimi-k2-256-mb4")
    assert row.error == pytest.approx(1.0 / row.factor - 1.0)
    row = next(row for row in coverage.all_left_out() if row.id == "bridge-26.04-h100-qwen3_30b_a3b-fp8")
    assert row.error == pytest.approx(row.factor - 1.0)  # tokens a second


@pytest.fixture(scope="module")
def result():
    return summary.summary()


def test_the_targets_of_the_summary(result):
    assert result["left_out"] <= 0.08
    assert result["coverage"]["all"]["rows"] >= 250
    rows = coverage.all_left_out()
    for kind, table in result["coverage"].items():
        stacks = Counter(row.stack for row in rows if kind in ("all", row.kind))
        if len(stacks) > 1:  # else its rows are tried by the errors of other kinds
            assert 0.75 <= table["inside_80"] <= 0.90, kind
    assert result["coverage"]["all"]["inside_50"] < result["coverage"]["all"]["inside_80"]
    assert result["seconds"] < 60
    assert len(result["scalars"]) <= 4  # numbers that are fitted at all


def test_the_stored_errors_are_those_of_the_rows():
    rows = coverage.left_out(coverage.all_rows())
    for kind in KINDS:
        own = [row for row in rows if row.kind == kind]
        if len(own) >= FEW:
            assert sorted(left_out_factors(kind)) == pytest.approx(sorted(coverage.of_kind(rows, kind)), abs=2e-3)
    with pytest.raises(InputError, match="not one of"):
        left_out_factors("quantum")


def test_the_error_page_has_its_parts(tmp_path, capsys):
    path = tmp_path / "errors.html"
    assert main(["validate", "--html", str(path)]) == 0
    page = path.read_text(encoding="utf-8")
    for anchor in ("scatter", "kinds", "chips", "years", "worst", "groups", "coverage", "others"):
        assert f'id="{anchor}"' in page
    assert "believed to blame" in page and "vTrain" in page


def test_years_are_read_from_releases():
    assert errors.year_of("megatron-bridge-25.11") == "2025" and errors.year_of("llm-foundry-2023") == "2023"
    assert errors.year_of("deepspeed") == "?"


def test_the_catalogue_names_what_a_row_may_name(capsys):
    assert main(["catalogue", "stacks", "--json"]) == 0
    assert "megatron-bridge-25.11" in capsys.readouterr().out
    assert main(["catalogue"]) == 0
    shown = capsys.readouterr().out
    assert "h100" in shown and "glm5" in shown and "recompute_modules" in shown
    assert minglm_main(["probe", "--device", "none"]) == 2
