"""A figure in a notebook's text is computed by one of its cells, cited beside it, or computed here from the code.

A figure is a number with a decimal point, a thousands comma or a unit. It counts as computed where the number stands in
a code cell, and as cited where its paragraph names a source. All others are listed below with an independent
computation, or as numbers that a question merely supposes. The opening cell and the exercises at the end are left out.
The words under a picture are held to the same: a figure written into them stands among the numbers of the code.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from minglm.config import ModelConfig  # noqa: E402
from minglm.course.workshop import generator  # noqa: E402
from minglm.evals import statistics  # noqa: E402
from minglm.rl.config import load as load_rl  # noqa: E402
from minglm.rl.config import read as read_rl  # noqa: E402
from minglm.rl.objectives import Clip  # noqa: E402
from minglm.tools.induction import EMBEDDING_STD  # noqa: E402
from minglm.training.optim import NS_FAST  # noqa: E402
from minglm.training.recipe import Recipe  # noqa: E402
from sim.claims import ledger, price  # noqa: E402
from sim.scenario.training import load_scenario  # noqa: E402
from sim.spec.hardware import load_chip  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for room in ("learn", "scale", "plan") for p in (ROOT / "notebooks" / room).glob("*.ipynb"))
UNITS = {"%": 0.01, "percent": 0.01, "million": 1e6, "billion": 1e9, "trillion": 1e12, "GB": 1e9, "TB": 1e12}
PLAIN = "points?|times|GiB|ms|GFLOPs|TFLOPS|nats|tokens|days"
FIGURE = re.compile(
    rf"(?<![\w.,/§\-–`])(\d{{1,3}}(?:,\d{{3}})+|\d+)(\.\d+)?(?:\s?({'|'.join(UNITS)}|{PLAIN}))?(?![\w§])"
)
SOURCE = re.compile(r"arXiv|https?:|[Rr]eport|Table|paper|documentation|configuration|published|data sheet|recorded")
GLM5 = ModelConfig.named("glm5")


def _iterated(start: float) -> float:
    a, b, c = NS_FAST
    for _ in range(5):
        start = a * start + b * start**3 + c * start**5
    return start


STRENGTHS = [_iterated(0.01 + 0.99 * i / 20_000) for i in range(20_001)]
SCENARIO = load_scenario("glm5_100k_910b")
SUPPOSED = None  # a number that a question makes up
# Figures in the words under a picture that no number of the code holds.
IN_CAPTIONS: dict[tuple[str, str], Callable[[], float] | None] = {
    ("14_staleness", "0.5"): lambda: 1 / Clip().beta,
    ("14_staleness", "0.8"): lambda: 1 - Clip().mask_low,
    ("14_staleness", "1.28"): lambda: 1 + Clip().mask_high,
    ("04_a_hundred_thousand_chips", "100,000"): lambda: SCENARIO.cluster.num_chips,
    ("04_a_hundred_thousand_chips", "30,000"): SUPPOSED,  # read off the picture, and said as "some"
    ("08_your_laptop_as_a_cluster_of_one", "4,096"): lambda: 2**12,
}
COMPUTED: dict[tuple[str, str], Callable[[], float] | None] = {
    ("00_start_here", "100,000"): lambda: SCENARIO.cluster.num_chips,
    ("07_muon", "0.68"): lambda: min(STRENGTHS),
    ("07_muon", "1.13"): lambda: max(STRENGTHS),
    ("08_long_context_and_the_needle", "88%"): lambda: 7 / 8,
    ("08_long_context_and_the_needle", "53%"): lambda: statistics.wilson(7, 8)[0],
    ("08_long_context_and_the_needle", "98%"): lambda: statistics.wilson(7, 8)[1],
    ("10_evaluation", "68%"): lambda: 1 - (1 - 4 / 16) ** 4,
    ("10_evaluation", "73%"): lambda: 1 - math.comb(12, 4) / math.comb(16, 4),
    ("10_evaluation", "1.96"): lambda: statistics.normal_quantile(0.95),
    ("10_evaluation", "59,000"): lambda: statistics.votes_to_separate(4, power=0.8),
    ("10_evaluation", "50.6"): lambda: 100 * statistics.win_probability(4),
    ("10_evaluation", "4.30"): lambda: statistics.t_quantile(2),
    ("10_evaluation", "1.24"): lambda: statistics.t_quantile(4) / 5**0.5,
    ("12_rl_from_verifiable_rewards", "30%"): lambda: read_rl("sum")["warm_start"]["label_noise"],
    ("12_rl_from_verifiable_rewards", "34%"): lambda: 0.7**3,
    ("12_rl_from_verifiable_rewards", "15,000"): lambda: (
        load_rl("sum").updates * load_rl("sum").prompts_per_batch * load_rl("sum").samples_per_prompt
    ),
    ("14_staleness", "100,000"): lambda: SCENARIO.cluster.num_chips,
    ("17_quantization", "4.5"): lambda: 4 + 16 / 32,
    ("18_past_one_machine", "0.3"): lambda: Recipe().mtp_weight,
    ("18_past_one_machine", "1.3"): lambda: 1 + Recipe().mtp_weight,
    ("18_past_one_machine", "8.1"): lambda: 1.3 * math.log(512),
    ("22_how_a_model_learns_to_look_back", "0.02"): lambda: ModelConfig().initializer_range,
    ("22_how_a_model_learns_to_look_back", "0.5"): lambda: EMBEDDING_STD,
    ("build_2_model", "744 billion"): lambda: GLM5.num_params(),
    ("compare_two_clusters", "989 TFLOPS"): lambda: load_chip("h100").peak("bf16").value / 1e12,
    ("compare_two_clusters", "90%"): lambda: 0.95 - 0.05,  # p5 to p95 of the samples
    ("write_the_report", "90%"): lambda: 0.95 - 0.05,
    ("write_the_report", "4,096"): lambda: SCENARIO.workload.seq,
    ("reading_a_launch_article", "744 billion"): lambda: GLM5.num_params(),
    ("reading_a_launch_article", "506 times"): lambda: 1000 * statistics.win_probability(4),
    ("reading_a_launch_article", "59,000 times"): lambda: statistics.votes_to_separate(4, power=0.8),
    ("reading_a_launch_article", "3.1"): lambda: 80.9 - 77.8,
    ("reading_a_launch_article", "43.4"): lambda: next(
        float(str(c.value)) for c in ledger.load() if c.id == "hle-opus"
    ),
    ("reading_a_launch_article", "3.6 points"): lambda: 196 * math.sqrt(0.778 * 0.222 / 500),
    ("reading_a_launch_article", "846 GB"): lambda: 6 * 141e9,  # H200, data sheet
    ("reading_a_launch_article", "38,400"): lambda: 8 * load_chip("h200").memory_bytes_per_s.value / 1e9,
    ("reading_a_launch_article", "3.20"): lambda: float(price.PRICES["GLM-5, Z.ai"][1]),
    ("00_chips_and_rooflines", "1.6"): lambda: load_chip("910b").memory_bytes_per_s.value / 1e12,
    ("00_chips_and_rooflines", "97 percent"): lambda: (
        GLM5.params_breakdown()["routed_experts"] * 76 / 75 / GLM5.num_params(mtp=True)  # 75 layers and a module
    ),
    ("01_the_network", "4,095"): lambda: 4096 - 1,
    ("02_plans_and_memory", "744 billion"): lambda: GLM5.num_params(),
    ("02_plans_and_memory", "1.5 TB"): lambda: 2 * GLM5.num_params(),
    ("03_pipelines", "155,000 tokens"): lambda: GLM5.vocab_size,
    ("04_a_hundred_thousand_chips", "28.57 trillion"): lambda: sum(p.tokens for p in SCENARIO.phases),
    ("04_a_hundred_thousand_chips", "202,752 tokens"): lambda: GLM5.max_position_embeddings,
    ("04_a_hundred_thousand_chips", "99,840"): lambda: SCENARIO.plan.num_chips,
    ("05_failures", "99 percent"): SUPPOSED,
    ("06_how_wrong_are_we", "10 percent"): SUPPOSED,
    ("08_your_laptop_as_a_cluster_of_one", "1,024"): SUPPOSED,
}


def _plain(text: str) -> str:
    """Without code, links and marks, whose digits are not figures, and without questions, which may suppose any."""
    text = re.sub(r"```.*?```|`[^`]*`|<[^>]+>", "", text, flags=re.S)
    text = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"^\s*\d+\. ", "", text, flags=re.M)
    return " ".join(part for part in re.split(r"(?<=[.?!:])\s+", text) if not part.endswith("?"))


def _in_code(book: dict) -> set[float]:
    code = "\n".join("".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code")
    return {float(n.replace("_", "").replace(",", "")) for n in re.findall(r"\d[\d_,]*(?:\.\d+)?(?:e-?\d+)?", code)}


def unsupported(book: dict, run: dict | None = None) -> list[str]:
    """Figures of the text that no cell holds and whose paragraph names no source. `run`: the notebook that is executed
    for this one, where the learner still has to fill it in."""
    have, out = _in_code(run or book), []
    for cell in book["cells"][1:]:
        if cell["cell_type"] != "markdown":
            continue
        for paragraph in re.split(r"\n\s*\n", "".join(cell["source"])):
            if paragraph.startswith("## Try it"):
                break
            text = _plain(paragraph)
            if SOURCE.search(text):
                continue
            for number, decimals, unit in ((m[1], m[2] or "", m[3]) for m in FIGURE.finditer(text)):
                if not (decimals or unit or "," in number):
                    continue
                value = float((number + decimals).replace(",", ""))
                scales = (1, 0.01, 1e-3, 1e3, 1e6, 1e9, 1e12)
                if not any(math.isclose(value * s, h, rel_tol=1e-9) for s in scales for h in have):
                    out.append(number + decimals + (f"{'' if unit == '%' else ' '}{unit}" if unit else ""))
    return out


def _said(code: str) -> Iterator[str]:
    """The words given to `show` beside a picture, what is computed in them left out."""
    for call in (n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in ("show", "show_svg"):
            for words in (*call.args[1:], *(k.value for k in call.keywords)):
                specs = {id(c) for n in ast.walk(words) if isinstance(n, ast.FormattedValue) and n.format_spec
                         for c in ast.walk(n.format_spec)}  # fmt: skip
                texts = [n for n in ast.walk(words) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                yield "\n".join(str(n.value) for n in texts if id(n) not in specs)


def written_into_captions(book: dict) -> list[str]:
    """Figures in the words under pictures that are no number of the code: two digits, a decimal point, or a unit."""
    codes = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    constants = [n.value for code in codes for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
    have, out = [float(v) for v in constants if isinstance(v, (int, float))], []
    for text in (words for code in codes for words in _said(code)):
        for m in FIGURE.finditer(text.replace("95% interval", "")):
            value = float((m[1] + (m[2] or "")).replace(",", ""))
            if not (value >= 10 or m[2] or m[3]):
                continue
            if not any(math.isclose(value * s, h, rel_tol=1e-9) for s in (1, 0.01, 1e3, 1e6, 1e9) for h in have):
                out.append(m[1] + (m[2] or ""))
    return out


def _as_wanted(figure: str, value: float) -> bool:
    """Whether `value`, rounded to the digits that `figure` shows, is `figure`."""
    number, unit = re.findall(r"([\d,.]+)\s?(.*)", figure)[0]
    digits = number.replace(",", "")
    last = 10.0 ** -len(digits.split(".")[1]) if "." in digits else 10.0 ** (len(digits) - len(digits.rstrip("0")))
    scale = UNITS.get(unit, 1.0)
    return abs(value / scale - float(digits)) <= 0.5001 * last


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_are_computed_cited_or_listed(path):
    book, run = (json.loads(p.read_text(encoding="utf-8")) for p in (path, generator.runnable(path)))
    found = unsupported(book, run)
    unknown = [f for f in found if (path.stem, f) not in COMPUTED]
    assert not unknown, f"compute them in a cell, cite a source beside them, or compute them in this test: {unknown}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_under_pictures_are_computed_or_listed(path):
    found = written_into_captions(json.loads(generator.runnable(path).read_text(encoding="utf-8")))
    unknown = [f for f in found if (path.stem, f) not in IN_CAPTIONS]
    assert not unknown, f"compute them in the cell that shows the picture: {unknown}"


LISTED = COMPUTED | IN_CAPTIONS


@pytest.mark.parametrize("key", [k for k, how in LISTED.items() if how is not SUPPOSED], ids=" ".join)
def test_a_listed_figure_is_what_the_code_gives(key):
    compute = LISTED[key]
    assert compute is not None
    value = compute()
    assert _as_wanted(key[1], value), f"{key}: the code gives {value}"


def test_a_figure_written_into_a_caption_is_seen():
    code = "n = 4096\nshow(fig, f'A bar of {n:.14f}; 73 ms, 4,096 chips, 3 layers, 1.5, ' + 'and 12 percent.')"
    book = {"cells": [{"cell_type": "code", "source": [code]}]}
    assert sorted(written_into_captions(book)) == ["1.5", "12", "73"]


def test_nothing_is_listed_that_no_text_says():
    for stem, figure in IN_CAPTIONS:
        path = next(p for p in NOTEBOOKS if p.stem == stem)
        assert figure in written_into_captions(json.loads(path.read_text(encoding="utf-8"))), (stem, figure)
    prose = {
        p.stem: "\n".join(
            "".join(c["source"])
            for c in json.loads(p.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "markdown"
        )
        for p in NOTEBOOKS
    }
    assert not [key for key in COMPUTED if key[1] not in prose[key[0]]]


@pytest.mark.parametrize(
    "text,found",
    [
        ("It takes 37.4 GB.", ["37.4 GB"]),
        ("It takes 37.4 GB (arXiv 2602.15763, Table 3).", []),
        ("It takes 12.5 GB, or 12,500 million bytes.", []),
        ("Seven of 8 in 3 layers.", []),
        ("It has 2.7 parts. Is it 90%, 60% or 30%?", ["2.7"]),
        ("`x = 37.4` and [a page](a37.4.md)", []),
        ("Some 41% of them, and 1,234 more.", ["41%", "1,234"]),
    ],
)
def test_the_search_finds_what_it_should(text, found):
    code = {"cell_type": "code", "source": ["gb = 12.5\n"]}
    opening = {"cell_type": "markdown", "source": ["# Title\n"]}
    assert unsupported({"cells": [opening, code, {"cell_type": "markdown", "source": [text]}]}) == found


@pytest.mark.parametrize("figure,value,right", [("53%", 0.5291, True), ("53%", 0.54, False), ("59,000", 59_219, True),
                                                ("59,000", 60_219, False), ("1.5 TB", 1.487e12, True)])  # fmt: skip
def test_a_figure_is_compared_to_the_digits_that_it_shows(figure, value, right):
    assert _as_wanted(figure, value) is right
