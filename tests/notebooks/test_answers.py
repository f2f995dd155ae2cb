"""Answers to "Try it yourself": as many as there are questions, and their figures are what arithmetic gives."""

import json
import math
import re

import pytest

torch = pytest.importorskip("torch")
from minglm import datafiles  # noqa: E402
from minglm.config import ModelConfig  # noqa: E402
from minglm.course.lessons.speculative import weight_bytes_read  # noqa: E402
from minglm.evals import statistics  # noqa: E402
from sim.cost import collectives, memory  # noqa: E402
from sim.report import lessons  # noqa: E402
from sim.scenario.training import load_scenario  # noqa: E402
from sim.spec.hardware import load_cluster  # noqa: E402
from sim.spec.model_loader import load_model  # noqa: E402
from sim.spec.plan import Plan, Workload  # noqa: E402
from sim.training.checkpoints import Checkpoint, expected_goodput  # noqa: E402
from sim.training.failures import FailureModel, Recovery  # noqa: E402

TEXT = datafiles.notebooks("workshop", "answers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", TEXT, flags=re.M | re.S))
GLM5, NANO = ModelConfig.named("glm5"), ModelConfig.named("nano")
HALF_LATENT = ModelConfig.named("glm5", kv_lora_rank=256)


def _questions(name: str) -> list[str]:
    book = json.loads(datafiles.notebooks(f"{name}.ipynb").read_text(encoding="utf-8"))
    last = [
        "".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown" and "## Try it" in str(c["source"])
    ]
    asked = re.findall(r"^\d+\. (.*)$", last[-1][last[-1].index("## Try it") :], flags=re.M)
    return [q for q in asked if not q.startswith("Solve [the exercises]")]


@pytest.mark.parametrize("name", SECTIONS)
def test_each_question_has_an_answer(name):
    answers = re.findall(r"^(\d+)\. ", SECTIONS[name], flags=re.M)
    assert [int(a) for a in answers] == list(range(1, len(_questions(name)) + 1))


def test_every_notebook_with_questions_has_answers():
    asked = {
        path.relative_to(datafiles.notebooks()).with_suffix("").as_posix()
        for room in ("learn", "scale", "plan")
        for path in datafiles.notebooks(room).glob("*.ipynb")
        if re.search(r"## (Try it|Exercises)", path.read_text(encoding="utf-8"))
    }
    assert len(asked) >= 30 and set(SECTIONS) == asked


def _crossing(config: ModelConfig) -> float:
    """Queries at which rebuilding keys and values once costs what reading latents costs more (multiply-adds)."""
    heads, latent, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    rebuilt = config.qk_nope_head_dim + config.v_head_dim
    return latent * rebuilt / ((2 * latent + rope) - (rebuilt + rope)) if heads else math.nan


def _speed_up(drafts: int, batch: int = 64, right: float = 0.8) -> float:
    def seconds(tokens: int) -> float:
        return max(weight_bytes_read(GLM5, tokens) / 1.6e12, tokens * sum(GLM5.flops_breakdown(1).values()) / 320e12)

    return (1 - right ** (drafts + 1)) / (1 - right) * seconds(batch) / seconds(batch * (drafts + 1))


def _milliseconds(kind: str, size: float, chips: int, cluster: str = "atlas_800t_a2", stride: int = 1) -> float:
    return 1e3 * collectives.time(kind, size, lessons.group(load_cluster(cluster), chips, stride))


def _gib(model=None, **plan) -> float:
    """Memory of the fullest of 4,096 chips; `seq` and `global_batch` are the workload's."""
    s = load_scenario("glm5_100k_910b")
    work = Workload(global_batch=plan.pop("global_batch", 4096), seq=plan.pop("seq", 4096))
    return memory.peak(model or s.model, Plan(**plan), work, s.precision, s.stack).total_bytes / 2**30


def _best_goodput(write: float) -> float:
    """Percent of the time that 99,840 chips keep when a save of GLM-5's state stops them, at the best interval of the
    picture."""
    saved, restart, failures = Checkpoint("sync", 10.55e12, write, write, 25e9), Recovery(), FailureModel.named("mid")
    lost = restart.detect_s + restart.restart_s + saved.load_s(99_840)
    mtbf = failures.mtbf_s(99_840)
    tried = [60 * 2 ** (i / 2 - 2) for i in range(23)]
    return 100 * max(expected_goodput(m, saved.stall_s(99_840), lost, mtbf) for m in tried)


LLAMA, LONG = load_model("llama3_405b"), {"tp": 8, "pp": 16, "ep": 32, "zero": 1, "global_batch": 128, "seq": 131_072}
FIGURES = {
    ("learn/00_start_here", "178,996"): lambda: ModelConfig.named(
        "nano", n_routed_experts=2, num_experts_per_tok=2
    ).num_params(),
    ("learn/00_start_here", "253,504"): NANO.num_params,
    ("learn/00_start_here", "146,228"): lambda: ModelConfig.named(
        "nano", n_routed_experts=2, num_experts_per_tok=2
    ).num_active_params(),
    ("learn/00_start_here", "147,008"): NANO.num_active_params,
    ("learn/02_mla", "49,920"): lambda: (256 + 64) * 2 * 78,
    ("learn/02_mla", "89,856"): lambda: (512 + 64) * 2 * 78,
    ("learn/02_mla", "398"): lambda: _crossing(GLM5),
    ("learn/02_mla", "1,792"): lambda: _crossing(HALF_LATENT),
    ("learn/02_mla", "44,928"): lambda: (512 + 64) * 78,
    ("learn/02_mla", "1.42"): lambda: 64e9 / GLM5.kv_cache_bytes_per_token("fp8") / 1e6,
    ("learn/02_mla", "0.71"): lambda: 64e9 / GLM5.kv_cache_bytes_per_token() / 1e6,
    ("learn/04_mixture_of_experts", "551,536"): lambda: ModelConfig.named("nano", n_routed_experts=32).num_params(),
    ("learn/04_mixture_of_experts", "150,128"): lambda: ModelConfig.named(
        "nano", n_routed_experts=32
    ).num_active_params(),
    ("learn/06_mtp_and_speculative_decoding", "30%"): lambda: 1 - sum(map(min, P, (0.2, 0.6, 0.15, 0.05))),
    ("learn/06_mtp_and_speculative_decoding", "3.6"): lambda: _speed_up(7),
    ("learn/07_muon", "3.4"): lambda: 3.4445,  # the first coefficient (Jordan 2024): the slope at zero
    ("learn/10_evaluation", "22"): lambda: 100 * statistics.wilson(4, 8)[0],
    ("learn/10_evaluation", "78%"): lambda: 100 * statistics.wilson(4, 8)[1],
    ("learn/10_evaluation", "34"): lambda: 100 * statistics.wilson(16, 32)[0],
    ("learn/10_evaluation", "66%"): lambda: 100 * statistics.wilson(16, 32)[1],
    ("learn/12_rl_from_verifiable_rewards", "99%"): lambda: 100 * (1 - 2 * 0.5**8),
    ("learn/17_quantization", "4.125"): lambda: 4 + 16 / 128,
    ("learn/17_quantization", "4.5"): lambda: 4 + 16 / 32,
    ("scale/01_the_network", "0.77"): lambda: _milliseconds("all_reduce", 16 * 2**20, 2),
    ("scale/01_the_network", "0.27"): lambda: _milliseconds("all_reduce", 16 * 2**20, 8),
    ("scale/01_the_network", "107.7"): lambda: _milliseconds("all_reduce", 2**30, 780, stride=8),
    ("scale/01_the_network", "0.87"): lambda: _milliseconds("all_reduce", 64 * 2**20, 8),
    ("scale/02_plans_and_memory", "61.3"): lambda: _gib(tp=8, pp=1, dp=512, ep=256, zero=1),
    ("scale/02_plans_and_memory", "226"): lambda: _gib(dp=32, **LONG),
    ("scale/02_plans_and_memory", "54.4"): lambda: _gib(dp=2, cp=16, **LONG),
    ("scale/02_plans_and_memory", "28.9"): lambda: _gib(dp=32, recompute="full", **LONG),
    ("scale/02_plans_and_memory", "7,058"): lambda: _gib(LLAMA, dp=4096),
    ("scale/02_plans_and_memory", "884"): lambda: _gib(LLAMA, tp=8, dp=512),
    ("scale/02_plans_and_memory", "84.7"): lambda: _gib(LLAMA, tp=8, pp=16, dp=32),
    ("scale/02_plans_and_memory", "50.2"): lambda: _gib(LLAMA, tp=8, pp=16, dp=32, zero=1),
    ("scale/05_failures", "58%"): lambda: _best_goodput(200e9),
    ("scale/05_failures", "68%"): lambda: _best_goodput(1e12),
    ("scale/05_failures", "71%"): lambda: _best_goodput(2e12),
    ("scale/03_pipelines", "29"): lambda: next(m for m in range(1, 99) if (8 - 1) / (m + 8 - 1) < 0.2 - 1e-12),
}
P = (0.50, 0.30, 0.15, 0.05)


@pytest.mark.parametrize("key", FIGURES, ids=" ".join)
def test_a_figure_is_what_arithmetic_gives(key):
    section, figure = key
    assert figure in SECTIONS[section]
    digits = figure.replace(",", "").rstrip("%")
    last = 10.0 ** -len(digits.split(".")[1]) if "." in digits else 1.0
    value = FIGURES[key]() * (100 if figure == "30%" else 1)
    assert abs(value - float(digits)) <= 0.5001 * last


def test_the_uniform_draft_is_rejected_as_often_and_seven_drafts_are_best():
    assert 1 - sum(min(p, 0.25) for p in P) == pytest.approx(1 - sum(map(min, P, (0.2, 0.6, 0.15, 0.05))))
    assert max(range(1, 8), key=_speed_up) == 7
