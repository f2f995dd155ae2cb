"""What another busy program costs: training and decoding on both cores, alone and beside a process that keeps one busy.

`make bench ONLY=beside`. The threads of torch wait by spinning; `minglm/__init__.py` lets them spin for less long than
libgomp's default. Each figure of training comes from a process of its own, default and ours in turn. Decoding is one
sequence of size bench, on the threads that it chooses (`minglm.inference.thread_choice`) and on all, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minglm.training import metrics

NAME = "beside"
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(400, 400)\nwhile True: a = (a @ a).clamp(-1, 1)"
WAYS = {"libgomp's default": "300000", "ours": None}  # GOMP_SPINCOUNT; None: what minglm sets
ROUNDS = 3


def trained(spin: str | None, steps: int) -> float:
    """Tokens per second of a few steps of `mini`, the median of all but the first."""
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | (
        {"GOMP_SPINCOUNT": spin} if spin else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "minglm",
            "train",
            "pretrain",
            "--run",
            str(run),
            "--set",
            f"steps={steps}",
            "--set",
            "val_every=1000",
            "--set",
            "corpus_max_bytes=400000",
        ]
        subprocess.run(command, env=env, check=True, capture_output=True)
        speeds = [row["tokens_per_s"] for row in metrics.read(run / "metrics.csv") if row["tokens_per_s"]]
    return statistics.median(speeds[1:])


def decoded(tokens: int = 96) -> dict[str, float]:
    """Tokens per second of one sequence, medians of interleaved runs: threads chosen, and all of them."""
    import torch

    from minglm.config import ModelConfig
    from minglm.inference.decoder import Decoder
    from minglm.model.cache import LatentCache
    from minglm.model.model import Model
    from minglm.runtime.switch import VARIABLE

    torch.manual_seed(0)
    model = Model(ModelConfig.named("bench")).eval()
    decoders = {way: Decoder(model, LatentCache(model.config, 1, tokens)) for way in ("1", "0")}
    seconds: dict[str, list[float]] = {way: [] for way in decoders}
    before = os.environ.get(VARIABLE)
    try:
        for turn in range(ROUNDS + 1):
            for way, decoder in decoders.items():
                os.environ[VARIABLE] = way
                began = time.perf_counter()
                for position in range(tokens):
                    decoder.step(torch.tensor([[7]]), [position])
                if turn:
                    seconds[way].append(time.perf_counter() - began)
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update({VARIABLE: before} if before is not None else {})
    return {way: tokens / statistics.median(s) for way, s in seconds.items()}


def run() -> list[dict]:
    quiet = decoded()
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, spin in WAYS.items():
            alone[way].append(trained(spin, 12))
    busy = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
    try:
        beside = {way: trained(spin, 4) for way, spin in WAYS.items()}
        busy_decode = decoded()
    finally:
        busy.kill()
        busy.wait()
    default, ours = WAYS
    cost = statistics.median(a / b for a, b in zip(alone[ours], alone[default], strict=False))
    gain = beside[ours] / beside[default]
    return [
        _row("alone, libgomp's default", statistics.median(alone[default])),
        _row("alone, ours", statistics.median(alone[ours]), cost, ">= 0.9 x default", cost >= 0.9),
        _row("beside a busy program, libgomp's default", beside[default]),
        _row("beside a busy program, ours", beside[ours], gain, ">= 1 x default", gain >= 1),
        *_decode_rows("alone", quiet, 0.9),
        *_decode_rows("beside a busy program", busy_decode, 2),
    ]


def _decode_rows(where: str, rates: dict[str, float], least: float) -> list[dict]:
    gain = rates["1"] / rates["0"]
    return [
        _row(f"decode, {where}, all threads", rates["0"]),
        _row(f"decode, {where}, threads chosen", rates["1"], gain, f">= {least} x all", gain >= least),
    ]


def _row(name, value, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": "tokens/s", "ratio": ratio, "target": target, "met": met}
