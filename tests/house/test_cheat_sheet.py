"""docs/cheat_sheet.md: every formula is computed and compared with the function of the repository, or with the sum that
it stands for."""

import math
import random
import re

import pytest

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.course.lessons.speculative import weight_bytes_read
from minglm.evals import statistics
from sim.cost.closed_form import pipeline_time
from sim.report.lessons import even_costs
from sim.training import checkpoints
from sim.training.step import simulate

TEXT = (datafiles.root() / "docs" / "cheat_sheet.md").read_text(encoding="utf-8")
BODY = TEXT.split("<!-- formulas -->")[1].split("<!-- /formulas -->")[0]
FORMULAS = dict(re.findall(r"^\| ([^|`]+) \| `([^`]+)` \|", BODY, flags=re.M))

GLM5 = ModelConfig.named("glm5")
S = 202_752
MODEL = dict(
    N=GLM5.num_active_params(), layers=GLM5.num_hidden_layers, H=GLM5.num_attention_heads, D=GLM5.qk_head_dim,
    Dv=GLM5.v_head_dim, L=GLM5.kv_lora_rank, R=GLM5.qk_rope_head_dim, Hi=GLM5.index_n_heads, Di=GLM5.index_head_dim,
    E=GLM5.n_routed_experts, K=GLM5.num_experts_per_tok, S=S, k=GLM5.index_topk,
)  # fmt: skip
PIPE = dict(P=4, m=8, v=2, f=1.0, b=1.0, w=0.5)


def _sampled_kl(estimate) -> float:
    """Mean of an estimate over tokens drawn from p."""
    draw = random.Random(0)
    drawn = draw.choices(range(3), P3, k=40_000)
    return sum(estimate(Q3[i] / P3[i]) for i in drawn) / len(drawn)


P3, Q3 = (0.5, 0.3, 0.2), (0.3, 0.4, 0.3)
EXACT = 0.5 * math.log(0.5 / 0.3) + 0.3 * math.log(0.3 / 0.4) + 0.2 * math.log(0.2 / 0.3)


def _bubble(schedule: str) -> float:
    return simulate(even_costs(schedule, 4, 8, 2), schedule).bubble_fraction


def _experts() -> float:
    one = 2.0 * GLM5.params_breakdown()["routed_experts"] / GLM5.n_routed_experts
    return GLM5.num_experts_per_tok + (weight_bytes_read(GLM5, 4) - weight_bytes_read(GLM5, 1)) / one


def _ring() -> float:
    """Bytes that each of 5 sends: n − 1 parts are passed on twice, once to sum and once to spread."""
    return sum(100.0 / 5 for _ in range(4)) * 2


# name: (letters, value from elsewhere, relative distance allowed)
CASES = {
    "forward, weights only": (MODEL, GLM5.flops_breakdown(1, sparse=False)["linear"], 0.03),  # the indexer is in N
    "training, rule of thumb": (MODEL, GLM5.train_flops_per_token(1), 0.01),
    "attention, all keys, mean over a causal text": (MODEL, GLM5.flops_breakdown(S, sparse=False)["attention"], 1e-9),
    "attention over k keys, expanded": (MODEL, GLM5.flops_breakdown(10**9)["attention"], 1e-4),
    "attention over k gathered keys, absorbed": (MODEL, 22.24e9, 1e-3),
    "indexer, mean over a causal text": (MODEL, GLM5.flops_breakdown(S)["indexer"], 1e-9),
    "MLA's cache of a token, bf16": (MODEL, GLM5.kv_cache_bytes_per_token("bf16"), 0),
    "indexer's keys of a token, bf16": (MODEL, GLM5.indexer_cache_bytes_per_token("bf16"), 0),
    "full keys and values of a token, bf16": (MODEL, 5_111_808, 0),
    "experts that t tokens read, of E": (MODEL | {"t": 4}, _experts(), 1e-9),
    "sent by each of n in a ring all-reduce of B bytes": ({"n": 5, "B": 100.0}, _ring(), 1e-9),
    "MFU": ({"needed_flops": 6e9, "tokens_per_s": 1e4, "chips": 2, "peak": 1e14}, 0.3, 1e-9),
    "bubble, share of the time: GPipe, 1F1B": (PIPE, _bubble("1f1b"), 1e-9),
    "bubble over busy time: GPipe, 1F1B": (PIPE, _bubble("gpipe") / (1 - _bubble("gpipe")), 1e-9),
    "bubble, share of the time: interleaved": (PIPE, _bubble("interleaved"), 1e-9),
    "idle seconds of a rank: zero bubble H1": (
        PIPE, pipeline_time(even_costs("zb-h1", 4, 8, backward_weight_s=0.5), "zb-h1")[1], 1e-9,
    ),
    "tokens of a pass with n drafts, each right with chance r": ({"n": 3, "r": 0.8}, 1 + 0.8 + 0.64 + 0.512, 1e-9),
    "time between checkpoints (Young)": ({"stall_s": 60.0, "mtbf_s": 1e4}, checkpoints.young(60.0, 1e4), 1e-9),
    "KL from p to q, exact": ({"p": P3, "q": Q3}, EXACT, 1e-9),
    "k1, an estimate: right on average, may be negative": ({"r": Q3[0] / P3[0]}, math.log(5 / 3), 1e-9),
    "k2: never negative, not quite right on average": ({"r": Q3[0] / P3[0]}, math.log(5 / 3) ** 2 / 2, 1e-9),
    "k3: right on average and never negative": ({"r": Q3[0] / P3[0]}, 0.6 - 1 + math.log(5 / 3), 1e-9),
    "pass@k from c right of n": ({"c": 4, "n": 16, "k": 4}, statistics.pass_at_k(16, 4, 4), 1e-9),
    "half of a 95% interval, rate p of n questions": (
        {"p": 0.5, "n": 2000}, (statistics.wilson(1000, 2000)[1] - statistics.wilson(1000, 2000)[0]) / 2, 1e-2,
    ),
    "chance to win, d rating points ahead": ({"d": 4}, statistics.win_probability(4), 1e-9),
}  # fmt: skip


def _value(formula: str, letters: dict) -> float:
    return eval(formula, {"log": math.log, "comb": math.comb, "sum": sum, "range": range, "zip": zip, **letters})


def test_every_formula_has_a_case_and_every_case_a_formula():
    assert set(FORMULAS) == set(CASES) and len(BODY.split("\n| ")) - 1 == len(FORMULAS) + 4  # four headings


@pytest.mark.parametrize("name", CASES)
def test_a_formula_gives_what_the_code_gives(name):
    letters, wanted, allowed = CASES[name]
    assert _value(FORMULAS[name], letters) == pytest.approx(wanted, rel=allowed or 1e-15)


def test_the_estimates_of_kl_are_as_right_as_the_page_says():
    """k1 and k3 come to the exact value on average, k2 to another; k1 is sometimes negative, the others never."""
    k1, k2, k3 = (FORMULAS[next(n for n in FORMULAS if n.startswith(k))] for k in ("k1", "k2", "k3"))
    mean = {f: _sampled_kl(lambda r, f=f: _value(f, {"r": r})) for f in (k1, k2, k3)}
    assert mean[k1] == pytest.approx(EXACT, abs=0.006) and mean[k3] == pytest.approx(EXACT, abs=0.002)
    assert abs(mean[k2] - EXACT) > 0.002
    ratios = [q / p for p, q in zip(P3, Q3, strict=True)]
    assert min(_value(k1, {"r": r}) for r in ratios) < 0
    assert all(_value(f, {"r": r}) >= 0 for f in (k2, k3) for r in ratios)


def test_the_reading_list_has_every_notebook_once_and_every_paper_that_they_cite():
    text = (datafiles.root() / "docs" / "reading_list.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", text, flags=re.M)
    books = [p for room in ("learn", "scale", "plan") for p in sorted((datafiles.notebooks() / room).glob("*.ipynb"))]
    names = [f"{p.parent.name}/{p.stem}" for p in books if not p.stem.startswith("build_")]  # those say it in the text
    assert sorted(rows) == sorted(names)
    cited = {n for p in books for n in re.findall(r"arXiv (\d{4}\.\d{5})", p.read_text(encoding="utf-8"))}
    assert len(cited) > 10 and cited <= set(re.findall(r"\d{4}\.\d{5}", text))
