"""Quantised models beside the unquantised one: file bytes, and the time of a forward, interleaved in one run.

On a CPU without four-bit kernels codes are multiplied out first. MINGLM_BENCH_CPU_TIME=1 counts CPU seconds of one
thread instead, for a rough ratio on a busy machine.
"""

from __future__ import annotations

import copy
import os
import statistics
import time

import torch

from minglm.config import ModelConfig
from minglm.evals import quantization
from minglm.model.model import Model
from minglm.quant.formats import FORMATS, Spec
from minglm.quant.modules import pack
from minglm.quant.qat import FakeQuant
from minglm.tools.bench_summary import median_ratio

NAME = "quant"
REPEATS, TOKENS = 9, 512
CPU_TIME = bool(os.environ.get("MINGLM_BENCH_CPU_TIME"))
clock = time.process_time if CPU_TIME else time.perf_counter


def run() -> list[dict]:
    if CPU_TIME:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model(ModelConfig.named("bench")).eval()
    models = {"fp32": model, **{name: pack(copy.deepcopy(model), Spec(name)) for name in FORMATS}}
    tokens = torch.randint(0, model.config.vocab_size, (1, TOKENS))
    rounding = FakeQuant(model, Spec("int4"))
    times: dict[str, list[float]] = {name: [] for name in (*models, "rounding")}
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            for name, which in models.items():
                start = clock()
                which(tokens)
                times[name].append(clock() - start)
            start = clock()
            rounding.on()
            rounding.off()
            times["rounding"].append(clock() - start)
    median = {name: statistics.median(t[1:]) for name, t in times.items()}
    full = quantization.sizes(model)
    rows = []
    for name in FORMATS:
        size = quantization.sizes(models[name])
        rows += [
            {
                "name": f"{name}: bytes against fp32",
                "value": size["bytes"],
                "unit": "bytes",
                "ratio": size["bytes"] / full["bytes"],
            },
            {"name": f"{name}: bits per quantised weight", "value": size["quantised_bits_per_weight"], "unit": "bits"},
            {
                "name": f"{name}: forward of {TOKENS} tokens against fp32",
                "value": median[name],
                "unit": "s",
                "ratio": median[name] / median["fp32"],
            }
            | median_ratio(
                f"quantised forward of {TOKENS} tokens over fp32: {name}", times[name][1:], times["fp32"][1:]
            ),
        ]
    rows.append(
        {
            "name": "QAT: rounding all weights once, against a forward",
            "value": median["rounding"],
            "unit": "s",
            "ratio": median["rounding"] / median["fp32"],
        }
    )
    return rows
