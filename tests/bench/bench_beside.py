"""What another program costs: training and decoding on both cores, alone, beside one that keeps a core busy, and beside
a training run.

`make bench ONLY=beside`. The threads of torch wait by spinning; `minglm/__init__.py` lets them spin for less long than
libgomp's default. Each figure of training comes from a process of its own, default and ours in turn. Decoding is of
size bench: one sequence by the compiled step and by operations of torch, in turn; then one
and 32 of ours and one of transformers on the same weights, in turn, each as a user would call it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from minglm.tools.bench_summary import median_ratio
from minglm.training import metrics

NAME = "beside"
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(400, 400)\nwhile True: a = (a @ a).clamp(-1, 1)"
WAYS = {"libgomp's default": "300000", "ours": None}  # GOMP_SPINCOUNT; None: what minglm sets
ROUNDS, WARM_UP_S = 3, 8.0


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
    """Tokens per second of one sequence, medians of interleaved runs: compiled, and by operations of torch."""
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


@contextlib.contextmanager
def beside(command: list[str]) -> Iterator[None]:
    """Another program, from a few seconds before until the end of the block."""
    other = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(WARM_UP_S)
        if other.poll() is not None:
            raise RuntimeError(f"{' '.join(command[:4])}: the program to measure beside has ended")
        yield
    finally:
        other.kill()
        other.wait()


def against_transformers(new: int = 64) -> list[dict]:
    """Decoding one sequence and 32 together against one of transformers, quiet, beside a busy core and beside a
    training run."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    import bench_model

    from minglm.inference.generate import generate
    from minglm.interop.huggingface import export_hf
    from minglm.model.model import Model

    torch.manual_seed(0)
    ours, rows = Model(bench_model.CONFIG).eval(), []
    with tempfile.TemporaryDirectory() as folder:
        theirs = bench_model.Theirs(str(export_hf(ours, str(Path(folder) / "hf"))))
        every = ("eager", "batched_mm", "grouped_mm")
        hf, name = theirs.best(lambda m: bench_model.their_decode(m.eval(), 1, 8), every)
        prompts = {B: bench_model.tokens(B, bench_model.PROMPT) for B in (1, 32)}
        works = {
            "ours 1": lambda: generate(ours, prompts[1], new),
            "hf 1": bench_model.their_decode(hf.eval(), 1, new),
            "ours 32": lambda: generate(ours, prompts[32], new),
        }
        train = [sys.executable, "-m", "minglm", "train", "pretrain", "--run", str(Path(folder) / "run")]
        settings = [
            x for value in ("steps=100000", "val_every=100000", "corpus_max_bytes=400000") for x in ("--set", value)
        ]
        for where, command in (
            ("quiet", None),
            ("beside a busy core", [sys.executable, "-c", BUSY]),
            ("beside a training run", [*train, *settings]),
        ):
            with beside(command) if command else contextlib.nullcontext():
                took = bench_model.alternate(works, ROUNDS)
            rows.append(_row(f"decode, {where}, transformers ({name})", new / statistics.median(took["hf 1"])))
            for B, label in ((1, "1 sequence over transformers"), (32, "32 together over 1 of transformers")):
                told = median_ratio(f"decode, {label}, {where}", [B * x for x in took["hf 1"]], took[f"ours {B}"])
                rate = B * new / statistics.median(took[f"ours {B}"])
                rows.append(_row(f"decode, {B} together, {where}", rate, told["measured"]) | told)
    return rows


def run() -> list[dict]:
    quiet = decoded()
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, spin in WAYS.items():
            alone[way].append(trained(spin, 12))
    with beside([sys.executable, "-c", BUSY]):
        busy = {way: trained(spin, 4) for way, spin in WAYS.items()}
        busy_decode = decoded()
    default, ours = WAYS
    cost = statistics.median(a / b for a, b in zip(alone[ours], alone[default], strict=False))
    gain = busy[ours] / busy[default]
    return [
        _row("alone, libgomp's default", statistics.median(alone[default])),
        _row("alone, ours", statistics.median(alone[ours]), cost, ">= 0.9 x default", cost >= 0.9),
        _row("beside a busy program, libgomp's default", busy[default]),
        _row("beside a busy program, ours", busy[ours], gain, ">= 1 x default", gain >= 1),
        *_decode_rows("alone", quiet, 1.5),
        *_decode_rows("beside a busy program", busy_decode, 2),
        *against_transformers(),
    ]


def _decode_rows(where: str, rates: dict[str, float], least: float) -> list[dict]:
    gain = rates["1"] / rates["0"]
    return [
        _row(f"decode, {where}, by torch", rates["0"]),
        _row(f"decode, {where}, compiled", rates["1"], gain, f">= {least} x by torch", gain >= least),
    ]


def _row(name, value, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": "tokens/s", "ratio": ratio, "target": target, "met": met}
