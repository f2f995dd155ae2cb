"""Claims about the machine: what the chip can do, what 100,000 of them would do to this run, whether they were there.

The work of a training run is taken as 6·N·D operations: six per active parameter and token, attention left out, as the
claim itself counts. Days are that work over chips × peak × MFU. A figure for MFU means nothing without its peak, so
every function here takes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from minglm.errors import InputError
from sim.claims.rules import Answer, exact
from sim.spec.hardware import load_chip

Number = float | Fraction  # exact where it is a fraction
TERA, DAY = 10**12, 86_400
ACTIVE, TOKENS = 40 * 10**9, 28_500 * 10**9
CHIPS = 100_000

# The 910B has no published peak: the bins differ in cores and clock, and four denominators are in use.
# Ranges of MFU as published for mixture-of-experts training on it (Pangu Ultra MoE: first build, tuned, best).
PEAK_910B = {"20 cores": "294.9", "quoted": "313", "claimed": "320", "24 cores": "353.9", "25 cores": "378.9"}
MFU_MOE_910B = {"first build, 4,096 NPUs": "0.189", "tuned, 6,144 NPUs": "0.30", "best, 10,000 NPUs": "0.41"}

# What others sustained: chips and 6·N·D operations per second over the whole machine.
OTHER_RUNS: tuple[Mapping, ...] = (
    {
        "name": "Pangu Ultra MoE 718B",
        "chips": 6144,
        "kind": "910B",
        "flops": 6 * 39e9 * 1.46e6,
        "source": "arXiv 2505.04519: 1.46M tokens/s on 6K NPUs",
    },
    {
        "name": "GPT-3 175B",
        "chips": 7968,
        "kind": "910B",
        "flops": 1421e15,
        "source": "MindSpeed-LLM 1.0.0 README, weak scaling: 1,421 PFLOPS",
    },
    {
        "name": "Pangu Ultra 135B",
        "chips": 8192,
        "kind": "910B",
        "flops": 8192 * 0.5 * 313e12,
        "source": "arXiv 2504.07866: MFU above 50%, peak taken as 313",
    },
    {
        "name": "DeepSeek-V3 671B",
        "chips": 2048,
        "kind": "H800",
        "flops": 2048 * 1543 * 6 * 37e9,
        "source": "arXiv 2412.19437: 180,000 GPU-hours per trillion tokens",
    },
    {
        "name": "Llama 3 405B",
        "chips": 16384,
        "kind": "H100",
        "flops": 16384 * 400e12,
        "source": "arXiv 2407.21783, Table 4: 400 TFLOPS per GPU",
    },
    {
        "name": "PaLM 540B",
        "chips": 6144,
        "kind": "TPU v4",
        "flops": 238.3e3 * 6 * 540e9,
        "source": "arXiv 2204.02311: 238,300 tokens/s",
    },
)


# ------------------------------------------------------------------ one chip


def tensor_peak(units: int, flops_per_cycle: int, mhz: int) -> Fraction:
    """Dense peak in TFLOPS: matrix units × operations per unit and cycle × clock."""
    return Fraction(units * flops_per_cycle * mhz, 10**6)


def peak_910b() -> Answer:
    """The bins of the 910B:
    20 cores at 1.80 GHz to 25 at 1.85, each core a 16×16×16 cube (8,192 operations a cycle).
    """
    low, high = tensor_peak(20, 8192, 1800), tensor_peak(25, 8192, 1850)
    return Answer((low, high), "TFLOPS FP16, dense", {"24_cores_at_1.80_ghz": tensor_peak(24, 8192, 1800)})


def peak_a100() -> Answer:
    """108 SMs, 2,048 FP16 operations each a cycle, 1.41 GHz."""
    return Answer(
        tensor_peak(108, 2048, 1410),
        "TFLOPS FP16, dense",
        {"multiprocessors": 108, "operations_per_cycle": 2048, "ghz": 1.41},
    )


def peak_h100() -> Answer:
    """SXM: 132 SMs, 4,096 FP16 operations each a cycle, 1.83 GHz."""
    return Answer(
        tensor_peak(132, 4096, 1830),
        "TFLOPS FP16, dense",
        {"multiprocessors": 132, "operations_per_cycle": 4096, "ghz": 1.83},
    )


def measured_ratio(a: str = "910B2", b: str = "A100_80") -> Answer:
    """Best measured matrix multiplication of one chip over that of another: what software really gets."""
    one, two = load_chip(a), load_chip(b)
    measured = [chip.max_matmul_flops for chip in (one, two)]
    best = [Fraction(round(figure.value)) for figure in measured if figure is not None]
    if len(best) < 2:
        raise InputError(f"{a}, {b}: no matrix multiplication is measured on one of them; name two chips that have one")
    return Answer(
        best[0] / best[1], f"{a} over {b}, measured", {"by_peak": one.peak("fp16").value / two.peak("fp16").value}
    )


# ------------------------------------------------------------------ the run


def training_flops(active: int = ACTIVE, tokens: int = TOKENS) -> int:
    """6·N·D, exactly: 6.84 × 10^24 for 40 billion active parameters and 28.5 trillion tokens."""
    return 6 * active * tokens


def run_days(
    chips: Number = CHIPS, mfu: Number = 0.3, peak_tflops: Number = 320, active: int = ACTIVE, tokens: int = TOKENS
) -> Fraction:
    """Days of training, without failures or restarts.

    Raises:
        InputError: no chips, no peak, or an MFU that is not above 0 and at most 1.
    """
    if chips <= 0 or peak_tflops <= 0:
        raise InputError(
            f"chips={chips}, peak_tflops={peak_tflops}: both must be above 0; give a machine that computes"
        )
    if not 0 < mfu <= 1:
        raise InputError(f"mfu={mfu}: a share of peak, above 0 and at most 1; write 30% as 0.3")
    rate = exact(chips) * exact(mfu) * exact(peak_tflops) * TERA
    return Fraction(training_flops(active, tokens)) / rate / DAY


def chips_for(days: Number = 60, mfu: Number = 0.3, peak_tflops: Number = 320) -> Fraction:
    """Chips that finish in `days`."""
    return run_days(1, mfu, peak_tflops) / exact(days)


def run_days_range() -> Answer:
    """Days on 100,000 chips between the best and the worst published MFU × peak for such a model on this chip."""
    mfu, peak = [Fraction(x) for x in MFU_MOE_910B.values()], [Fraction(x) for x in PEAK_910B.values()]
    fast, slow = run_days(CHIPS, max(mfu), Fraction("353.9")), run_days(CHIPS, min(mfu), min(peak))
    return Answer(
        (fast, slow),
        "days on 100,000 chips",
        {
            "at_30_percent_of_320": run_days(),
            "operations": training_flops(),
            "at_tokens_per_second_of_pangu_ultra_moe": Fraction(TOKENS) / (Fraction(1_460_000, 6144) * CHIPS) / DAY,
        },
    )


def chips_for_60_days() -> Answer:
    """Chips that would finish the same work in 60 days, over the same range."""
    few = chips_for(60, Fraction("0.41"), Fraction("353.9"))
    many = chips_for(60, Fraction("0.189"), Fraction("294.9"))
    return Answer((few, many), "chips for 60 days", {"at_30_percent_of_320": chips_for()})


def days_at_rate_of(run: Mapping) -> float:
    """Days this work would take on another run's machine at the rate it sustained."""
    return training_flops() / run["flops"] / DAY


# ------------------------------------------------------------------ supply


def supply() -> Answer:
    """Ascend chips said to be made for 2025: the US Commerce Department's upper figure to the Wall Street Journal's."""
    low, high = 200_000, 800_000
    return Answer(
        (low, high),
        "chips in a year, all customers",
        {
            "share_of_low": Fraction(CHIPS, low),
            "share_of_high": Fraction(CHIPS, high),
            "delivered_to_bytedance_of_100000_ordered": 30_000,
        },
    )


# ------------------------------------------------------------------ reinforcement learning


def april(lengths: list[int], target: int, launched: int, rate: int = 1) -> dict:
    """One round of Active Partial Rollouts as its sources describe it, on given response lengths (in tokens).

    `launched` responses start together and grow at `rate` tokens a tick; when `target` of them are complete the rest
    are stopped, kept in a buffer and resumed in the next round. Only complete responses are trained on. (The sources
    count whole groups of responses to one prompt; here each response stands for a group.)
    """
    if not target <= launched <= len(lengths):
        raise InputError(
            f"target={target}, launched={launched}, {len(lengths)} lengths: need target ≤ launched ≤ lengths; "
            "launch more or ask for fewer"
        )
    running = lengths[:launched]
    stop = sorted(running)[target - 1]
    trained = [i for i, n in enumerate(running) if n <= stop][:target]
    buffered = {i: stop for i, n in enumerate(running) if i not in trained and n > stop}
    return {
        "ticks": -(-stop // rate),
        "ticks_waiting_for_all": -(-max(lengths[:target]) // rate),
        "trained": trained,
        "trained_incomplete": sum(running[i] > stop for i in trained),
        "buffered": buffered,
    }


def april_trains_incomplete() -> Answer:
    """Unfinished responses in the trained batch, over rounds of the published set-up: 32 wanted, 64 launched."""
    import random

    rng = random.Random(20_250_923)
    incomplete = resumed = 0
    saved = []
    for _ in range(50):
        lengths = [min(16_384, max(1, round(rng.lognormvariate(7.5, 1.0)))) for _ in range(64)]
        round_ = april(lengths, target=32, launched=64)
        incomplete += round_["trained_incomplete"]
        resumed += len(round_["buffered"])
        saved.append(round_["ticks"] / round_["ticks_waiting_for_all"])
    return Answer(
        incomplete > 0,
        "trains on unfinished responses",
        {"unfinished_in_1600_trained": incomplete, "stopped_and_resumed_later": resumed},
    )


def tail_ratio() -> Answer:
    """How much longer than typical the long responses are, as measured: 99th percentile to maximum, over the median."""
    return Answer(
        (10, 20), "times the median length", {"laminar_p99_over_median": 10, "roll_flash_longest_over_median": 20}
    )


def rl_step_saving(rollout_share: float = 0.9, throughput_gain: float = 0.225) -> Answer:
    """Share of a synchronous RL step saved when rollouts, `rollout_share` of it, run faster by `throughput_gain`."""
    share, gain = exact(rollout_share), exact(throughput_gain)
    return Answer(share * (1 - 1 / (1 + gain)) * 100, "percent of a step saved", {})
