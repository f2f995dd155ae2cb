"""What prices per million tokens leave of the cost of serving, as an interval, and which factor moves it most."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.serving.calibration import error_band
from sim.serving.defaults import rent_of
from sim.serving.options import HEADROOM, Option, Target
from sim.serving.sizing import size
from sim.serving.workload import number
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

Case = Mapping[str, float]  # one value for each factor
ACCEPT = {0: 1.0, 1: 1.70, 3: 2.76}  # mean tokens a step by draft tokens; see assumptions of `speed`
ACCEPT_SOURCE = (
    "1 draft: 70% acceptance (CloudMatrix-Infer assumes it); 3 drafts: 2.76 tokens "
    "(GLM-5 report, table 2, 4 speculative steps; SGLang's benchmark on random tokens saw 3.5)"
)
# factor: (low, likely, high, label, source)
MARGIN_RANGES = {
    "utilisation": (
        0.3,
        0.5,
        0.8,
        "assumed",
        "share of its throughput that a service uses over a day; DeepSeek's day used 226.75 of 278 nodes",
    ),
    "input_per_output": (
        2.0,
        3.6,
        12.0,
        "published",
        "608B in, 168B out at DeepSeek (open-infra-index day 6); agents send more",
    ),
    "cache_hit": (0.0, 0.563, 0.8, "published", "56.3% at DeepSeek (open-infra-index day 6)"),
    "cached_price_share": (
        0.1,
        0.2,
        1.0,
        "assumed",
        "price of a cached input token over an uncached one; 1 where a provider gives no discount",
    ),
}


def margin(  # noqa: PLR0913 (each is a condition of the question)
    model: str | ModelSpec = "glm5",
    cluster: str | Cluster = "dgx_h200",
    prices: Iterable[tuple[float, float]] = ((1.00, 3.20), (0.80, 2.56)),
    prompt: int = 8192,
    output: int = 1024,
    tpot_s: float = 0.05,
    ttft_s: float = 5.0,
    rent: Figure | float | None = None,
    samples: int = 4000,
    seed: int = 0,
    most: int = 72,
    mode: str = "hybrid",
    option: Option | None = None,
) -> dict[str, Any]:
    """Margin at prices per million input and output tokens, as an interval; the factor that moves it most.

    Throughput is that of `option`, else of the cheapest deployment on `cluster`, instances of at most `most` chips,
    that meets TPOT and TTFT at `prompt` and `output` tokens. rent: USD per chip-hour; None: the chip's, with its range.

    Raises:
        InputError: nothing meets the target, no rent is known, or a price that cannot be.
    """
    model, place = load_model(model), cluster_from(cluster)
    if option is None:
        sizing = size(model, Target(prompt, output, ttft_s, tpot_s), [place], mode, rent, most, accept=ACCEPT)
        option = sizing.cheapest or sizing.options[0]
    cost = rent_of(option.decode.cluster, rent)
    if cost is None:
        raise InputError(f"{place.chip.name} has no rent in data/chips: give --chip-hour-price, dollars per chip-hour")
    number(samples, "samples", 10, 1e6)
    band = error_band() if option.mode == "hybrid" else (1.0, 1.0)
    ranges = {
        "rent": (cost.low, cost.value, cost.high),
        **{factor: (low, mid, high) for factor, (low, mid, high, *_) in MARGIN_RANGES.items()},
        "model_error": (band[0], 1.0, band[1]),
    }
    per_in, per_out = option.chip_seconds_input * HEADROOM, option.chip_seconds_output * HEADROOM
    rng = random.Random(seed)
    cases = [
        {k: rng.triangular(low, high, mid) if high > low else mid for k, (low, mid, high) in ranges.items()}
        for _ in range(int(samples))
    ]
    rows = []
    for price_in, price_out in prices:
        number(price_in, "input price", 0)
        number(price_out, "output price", 1e-9)
        rows.append(_row(price_in, price_out, per_in, per_out, ranges, cases))
    utilisation = ranges["utilisation"][1]
    return {
        "question": f"What margin do the prices leave for {model.name} on {option.decode.cluster.chip.name}?",
        "answer": " ".join(map(_sentence, rows)),
        "rows": rows,
        "deployment": option.decode.describe(),
        "layout": option.layout,
        "mode": option.mode,
        "measured_row": option.measured_row,
        "usd_per_million": {
            "input": 1e6 * per_in * cost.value / 3600 / utilisation,
            "output": 1e6 * per_out * cost.value / 3600 / utilisation,
        },
        "ranges": {
            "rent": {"range": ranges["rent"], "label": cost.confidence, "source": cost.source},
            **{k: {"range": v[:3], "label": v[3], "source": v[4]} for k, v in MARGIN_RANGES.items()},
            "model_error": {
                "range": ranges["model_error"],
                "label": "measured",
                "source": "true over modelled time among the decode rows of `clustersim validate --serving`",
            },
        },
        "assumptions": [
            f"{prompt:,} tokens in, {output:,} out; TPOT {1e3 * tpot_s:.0f} ms, TTFT {ttft_s:g} s",
            ACCEPT_SOURCE,
            "triangular ranges, independent",
            "rent is all the cost: staff, network and failed requests are not in it",
        ],
    }


def _row(
    price_in: float,
    price_out: float,
    per_in: float,
    per_out: float,
    ranges: Mapping[str, tuple[float, float, float]],
    cases: list[dict[str, float]],
) -> dict[str, Any]:
    """The margin at one pair of prices. per_in, per_out: chip-seconds of an uncached input and of an output token."""

    def margin_of(case: Case) -> tuple[float, float]:
        """(margin, cost per million output tokens with their input)."""
        mix, hit = case["input_per_output"], case["cache_hit"]
        income = price_out + mix * price_in * ((1 - hit) + hit * case["cached_price_share"])
        seconds = (per_out + mix * (1 - hit) * per_in) * case["model_error"] / case["utilisation"]
        spent = 1e6 * seconds * case["rent"] / 3600
        return 1.0 - spent / income, spent

    likely = {factor: mid for factor, (_, mid, _) in ranges.items()}
    margins = sorted(margin_of(case)[0] for case in cases)
    swings = {
        factor: sorted(margin_of({**likely, factor: end})[0] for end in (low, high))
        for factor, (low, _, high) in ranges.items()
    }
    middle, spent = margin_of(likely)
    return {
        "input_price": price_in,
        "output_price": price_out,
        "likely": middle,
        "p5": margins[len(margins) // 20],
        "p50": margins[len(margins) // 2],
        "p95": margins[-len(margins) // 20 - 1],
        "cost_per_million_output_with_input": spent,
        "share_positive": sum(m > 0 for m in margins) / len(margins),
        "swings": swings,
        "moves_most": max(swings, key=lambda factor: swings[factor][1] - swings[factor][0]),
    }


def _sentence(row: Mapping[str, Any]) -> str:
    low, high = row["swings"][row["moves_most"]]
    return (
        f"At ${row['input_price']:.2f}/${row['output_price']:.2f} the margin is {row['likely']:.0%} in the likely case "
        f"and {row['p5']:.0%} to {row['p95']:.0%} in nine cases of ten ({row['share_positive']:.0%} are above zero); "
        f"{row['moves_most'].replace('_', ' ')} moves it most ({low:.0%} to {high:.0%})."
    )


def margins(
    model: str | ModelSpec = "glm5",
    cluster: str | Cluster = "dgx_h200",
    target_tps: float = 72.5,
    **conditions: Any,
) -> dict[str, Any]:
    """`margin` twice: many streams at 20 tokens/s on wide expert parallelism, and `target_tps` tokens/s on one node."""
    number(target_tps, "speed", 1e-3)
    place = cluster_from(cluster)
    node = place.chips_per_node
    cases: dict[str, dict[str, Any]] = {
        "20 tokens/s a stream, up to 72 chips an instance": {"tpot_s": 0.05, "most": 72},
        f"{target_tps:g} tokens/s a stream, instances of {node} chips": {"tpot_s": 1.0 / target_tps, "most": node},
    }
    answers = {name: margin(model, place, **{**case, **conditions}) for name, case in cases.items()}
    first = next(iter(answers.values()))
    return {
        "question": first["question"],
        "answer": " ".join(
            f"{name} ({r['deployment']}, {r['layout']}, {r['mode']}): {r['answer']}" for name, r in answers.items()
        ),
        "rows": [row for r in answers.values() for row in r["rows"]],
        "cases": answers,
        "mode": first["mode"],
        "assumptions": first["assumptions"],
    }
