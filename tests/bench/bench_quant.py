"""Quantised models beside the unquantised one: file bytes, and the time of a forward, interleaved in one run.

There is no promise here that a quantised forward is faster: on a CPU without four-bit kernels codes are multiplied out
first.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch

from minglm.config import ModelConfig
from minglm.evals import quantization
from minglm.model.model import Model
from minglm.quant.formats import FORMATS, Spec
from minglm.quant.modules import pack
from minglm.quant.qat import FakeQuant

NAME = "quant"
REPEATS, TOKENS = 9, 512


def run() -> list[dict]:
    torch.manual_seed(0)
    model = Model(ModelConfig.named("bench")).eval()
    models = {"fp32": model, **{name: pack(copy.deepcopy(model), Spec(name)) for name in FORMATS}}
    tokens = torch.randint(0, model.config.vocab_size, (1, TOKENS))
    rounding = FakeQuant(model, Spec("int4"))
    times: dict[str, list[float]] = {name: [] for name in (*models, "rounding")}
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            for name, which in models.items():
                start = time.perf_counter()
                which(tokens)
                times[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            rounding.on()
            rounding.off()
            times["rounding"].append(time.perf_counter() - start)
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
            },
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
