"""The table of golden cases: a name and the command lines whose output is stored in `outputs/NAME.json` or `.txt`.

Every case runs in a folder of its own, so that paths in an output are relative. A case of one command with `--json`
stores what it printed; a case of several commands, or with files, stores one entry for each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """Command lines run one after the other in one folder.

    Attributes:
        name: of the stored file, without its suffix.
        commands: command lines; the first word is `clustersim` or `minglm`.
        files: patterns of files that the commands write and that are stored with what was printed.
        tolerance: relative difference allowed between floats (without `--exact`).
        float64: the toy computes in double precision.
        exact_only: checked only with `--exact`, because it holds on one kind of CPU only.
        exit_code: what each command must return.
        help: a help text; argparse breaks and orders its lines differently from one Python to the next.
    """

    name: str
    commands: tuple[str, ...]
    files: tuple[str, ...] = ()
    tolerance: float = 1e-12
    float64: bool = False
    exact_only: bool = False
    exit_code: int = 0
    help: bool = False

    @property
    def is_json(self) -> bool:
        return bool(self.files) or all("--json" in command.split() for command in self.commands)

    @property
    def uses_torch(self) -> bool:
        return any(
            command.startswith(("minglm train", "minglm rl")) and "--print-config" not in command
            for command in self.commands
        )


def _one(name: str, command: str, **options) -> Case:
    return Case(name, (command,), **options)


TRAINING_SCENARIOS = ("deepseek_v3_h800", "glm5_100k_910b", "glm5_mini_smoke", "llama3_405b_16k_h100")
SERVING_SCENARIOS = ("serving_deepseek_h800", "serving_glm5_cloudmatrix", "serving_glm5_h200")

# A reader of rollouts that takes milliseconds: no cluster, rates given, one mode after the other.
ROLLOUT_CASE = """mode: sync
prompts_per_batch: 12
samples_per_prompt: 4
mean: 600
max_response: 4000
prompt: 100
engines: 3
chips_per_engine: 2
train_chips: 2
decode: 60
decode_half: 16
prefill: 8000
kv_limit: 60K
max_running: 16
train: 20 s
weight_sync: 2 s
steps: 3
warmup: 1
published: {step_s: 90}
"""

# Reinforcement learning in one process; brackets are right by chance often enough that there is something to learn
# from.
RL_RECIPE = """task: brackets
difficulty: [1]
updates: 3
prompts_per_batch: 4
samples_per_prompt: 4
max_new_tokens: 24
max_batch: 16
eval_problems: 16
warm_start: {steps: 40, seq_len: 64, longest: 30}
"""

SIMULATOR = [
    *(_one(f"run_{s}", f"clustersim run {s} --json --out none") for s in TRAINING_SCENARIOS),
    _one(
        "run_changed",
        "clustersim run llama3_405b_16k_h100 --json --out none --no-what-if --chips 8192 --seed 3 --set plan.dp=64 "
        "--set jitter.noise=0.02 --set schedule=1f1b",
    ),
    *(_one(f"campaign_{s}", f"clustersim campaign {s} --json --seeds 3") for s in TRAINING_SCENARIOS),
    _one(
        "plan_gpt3_64",
        "clustersim plan --model gpt3_175b --cluster dgx_a100 --chips 64 --seq 2048 --batch 64 --json --top-k 5",
    ),
    _one(
        "plan_pinned",
        "clustersim plan --model llama3_70b --chip h100 --chips 512 --set tp=8 --set optimizer=muon --json --top-k 5",
    ),
    _one(
        "plan_moe_cost",
        "clustersim plan --model glm4_5 --cluster atlas_800t_a2 --chips 256 --batch-tokens 8M --objective cost "
        "--tokens 1T --schedules 1f1b --samples 20 --json --top-k 3",
    ),
    _one(
        "compare",
        "clustersim compare --model llama3_70b --chips 512 --chip 910b,h100 --baseline h100 --tokens 15T --schedules "
        "1f1b,interleaved --json",
    ),
    _one(
        "sweep_grid",
        "clustersim sweep glm5_mini_smoke --vary plan.tp=[1,2] --vary global_batch=[64,128] --set plan.dp=null --json",
    ),
    _one("sweep_monte_carlo", "clustersim sweep glm5_mini_smoke --samples 30 --vary tokens=[20M,40M] --json"),
    *(_one(s, f"clustersim serving {s} --json") for s in SERVING_SCENARIOS),
    *(
        _one(f"serving_ask_{ask}", f"clustersim serving --ask {ask} --json")
        for ask in ("fits", "speed", "margin", "context")
    ),
    _one(
        "serving_size",
        "clustersim serving --model glm5 --size --ttft 2s --tpot 14ms --prompt 8192 --output 1024 --json",
    ),
    _one("rollouts_glm5_100k_folded", "clustersim rollouts rollouts_glm5_100k --downscale --json"),
    Case(
        "rollouts_small",
        tuple(
            f"clustersim rollouts case.yaml --json --mode {mode}"
            for mode in ("sync", "one_step_off", "async", "april", "glm5")
        ),
    ),
    _one("validate_training", "clustersim validate --json"),
    _one("validate_serving", "clustersim validate --serving --json"),
    _one("validate_rollouts", "clustersim validate --rollouts --json"),
    _one("claims", "clustersim claims --json"),
    *(
        _one(f"trace_{s}", f"clustersim trace {s} --out step.json --json", files=("step.json",))
        for s in ("glm5_mini_smoke", "deepseek_v3_h800")
    ),
    Case(
        "trace_chakra",
        ("clustersim trace llama3_405b_16k_h100 --chakra chakra --json", "clustersim trace --replay chakra --json"),
        files=("chakra/*",),
    ),
]

# What people read: the figures are those of the cases above, so a few are enough.
TEXTS = [
    _one("text_run", "clustersim run glm5_100k_910b --out none"),
    _one("text_campaign", "clustersim campaign glm5_100k_910b --seeds 3"),
    _one("text_serving", "clustersim serving serving_glm5_h200"),
    _one("text_rollouts", "clustersim rollouts case.yaml --mode april"),
    _one("text_claim", "clustersim claims total-params"),
    _one("text_recipe", "minglm train ci_pretrain --print-config"),
    _one("text_rl_settings", "minglm rl --print-config"),
    Case(
        "text_bad_input",
        (
            "clustersim rum",
            "clustersim run nowhere",
            "clustersim run glm5_mini_smoke --set plan.tpp=4",
            "clustersim run glm5_mini_smoke --set plan.dp=16",
            "clustersim plan --model nowhere",
            "clustersim serving --model glm5 --precision fp3",
            "clustersim rollouts nowhere",
            "clustersim validate nowhere.yaml",
            "minglm train nowhere.yaml",
            "minglm train ci_pretrain --set lrr=3",
        ),
        exit_code=2,
    ),
]

_SIM_COMMANDS = (
    "run",
    "plan",
    "compare",
    "sweep",
    "campaign",
    "rollouts",
    "serving",
    "validate",
    "trace",
    "import-args",
    "claims",
    "dashboard",
    "report",
)
_MINGLM_COMMANDS = (
    "doctor",
    "train",
    "generate",
    "export-hf",
    "import-hf",
    "bench",
    "demo",
    "lab",
    "eval",
    "eval pass",
    "eval needle",
    "eval arena",
    "hallucination",
    "quantize",
    "rl",
    "serve",
    "exercise",
    *(f"exercise {what}" for what in ("list", "check", "hint")),
    "workshop",
    *(
        f"workshop {what}"
        for what in (
            "preflight",
            "build",
            "collect",
            "checkpoints",
            "timing",
            "contents",
            "kernels",
            "wheelhouse",
            "slides",
        )
    ),
)
HELP = [
    Case("help_clustersim", ("clustersim --help", *(f"clustersim {c} --help" for c in _SIM_COMMANDS)), help=True),
    Case("help_minglm", ("minglm --help", *(f"minglm {c} --help" for c in _MINGLM_COMMANDS)), help=True),
]

# One stage after the other, as `minglm demo` chains them. The text is made here: `stdlib` differs between Pythons.
STAGES = ("pretrain", "long_context", "dsa_warmup", "sparse", "sft")
_CHAIN = tuple(
    f"minglm train ci_{stage} --run {stage} --device cpu --json --set corpus=folder:corpus"
    + (f" --init-from {before}" if before else "")
    for before, stage in zip((None, *STAGES[:-1]), STAGES, strict=True)
)
# In single precision another CPU rounds differently, a router or an indexer then chooses differently, and losses part
# by 7e-3 (AVX-512 against AVX2). In double precision nothing flips and they part by 5e-13: that is what every machine
# checks.
TOY = [
    Case("toy_curves", _CHAIN, files=("*/metrics.csv",), float64=True, tolerance=1e-6),
    Case(
        "toy_weights",
        (*_CHAIN, "minglm generate --checkpoint sft --prompt value --tokens 16 --json"),
        files=("*/metrics.csv", "*/expert_load.csv", "*/tokenizer.json", "*/checkpoints/*/*.safetensors"),
        exact_only=True,
    ),
    Case(
        "toy_rl",
        tuple(
            f"minglm rl rl.yaml --engine inline --json --run {options.split()[0]} --mode {options}"
            for options in (
                "sync",
                "one_step_off --objective decoupled_ppo",
                "async --max-staleness 2",
                "april --over-sampling 6",
                "glm5 --weight-sync-interval 2 --filter-staleness-above 2",
            )
        ),
        files=("*/metrics.csv", "*/evals.csv"),
        exact_only=True,
    ),
]

CASES = [*SIMULATOR, *TEXTS, *HELP, *TOY]


def prepare(case: Case, folder: Path) -> None:
    """Write what the commands of a case read."""
    if any("case.yaml" in command for command in case.commands):
        (folder / "case.yaml").write_text(ROLLOUT_CASE, encoding="utf-8")
    if any("rl.yaml" in command for command in case.commands):
        (folder / "rl.yaml").write_text(RL_RECIPE, encoding="utf-8")
    if any("folder:corpus" in command for command in case.commands):
        _write_corpus(folder / "corpus")


def _write_corpus(folder: Path, documents: int = 48, lines: int = 60) -> None:
    """Text with some grammar, the same on every machine: assignments and calls over thirty names."""
    folder.mkdir()
    draw = random.Random(0)
    names = [
        a + b for a in ("value", "count", "index", "total", "row") for b in ("", "_new", "_old", "_max", "_min", "s")
    ]
    for number in range(documents):
        text = []
        for _ in range(lines):
            left, right, other = (names[int(draw.random() * len(names))] for _ in range(3))
            form = int(draw.random() * 3)
            text.append(
                (
                    f"{left} = {right} + {int(draw.random() * 100)}",
                    f"def {left}({right}, {other}):",
                    f"    return {left}({right}) * {other}",
                )[form]
            )
        (folder / f"document_{number:02}.py").write_text("\n".join(text) + "\n", encoding="utf-8")
