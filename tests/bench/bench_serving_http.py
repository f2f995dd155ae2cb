"""What HTTP costs: the same requests through the server and through the bare engine, in one run.

Both sides decode 16 sequences together, the server in a process of its own with one client that streams nothing and
keeps its connections, as the openai package does. Repetitions alternate; medians. An untrained model of the size
"mini", greedy, no stop token: every answer has the same length.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from minglm.tools.bench_summary import median_ratio

NAME = "serving_http"
ROWS, NEW, TURNS = 16, 96, 12


def run() -> list[dict]:
    import httpx
    import torch

    from minglm.inference.engine import Engine
    from minglm.inference.load import load_model
    from minglm.inference.request import Request
    from minglm.serving import load_test
    from minglm.training import recipe
    from minglm.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train(
            recipe.load("pretrain", {"steps": 1, "warmup_steps": 0, "recall_steps": 0}),
            run_dir,
            None,
            progress=False,
            device="cpu",
        )
        model, tokenizer, _ = load_model(run_dir)
        torch.set_num_threads(1)
        prompt = [tokenizer.bos, *tokenizer.encode("def first(x):\n    return x")]
        engine = Engine(model, 32, 256, mode="dense")

        def bare() -> float:
            start = time.perf_counter()
            for i in range(ROWS):
                engine.submit(Request(f"{start}-{i}", list(prompt), NEW, temperature=0.0))
            while engine.running or engine.waiting:
                engine.step()
            return time.perf_counter() - start

        import os

        os.environ["OMP_NUM_THREADS"] = "1"
        with load_test.running(run_dir, "--mode", "dense", "--max-model-len", "256") as (_, url):

            async def through(http) -> float:
                start = time.perf_counter()
                answers = await asyncio.gather(
                    *(
                        http.post(url + "/completions", json={"prompt": prompt, "max_tokens": NEW, "temperature": 0})
                        for _ in range(ROWS)
                    )
                )
                took = time.perf_counter() - start
                assert all(a.json()["usage"]["completion_tokens"] in range(1, NEW + 1) for a in answers)
                return took

            async def both() -> dict[str, list[float]]:
                seconds: dict[str, list[float]] = {"bare": [], "http": []}
                async with httpx.AsyncClient(timeout=300, trust_env=False) as http:
                    for turn in range(TURNS + 1):
                        for name, took in (("bare", bare()), ("http", await through(http))):
                            if turn:  # the first one warms both up and connects
                                seconds[name].append(took)
                return seconds

            seconds = asyncio.run(both())
    bare_s, http_s = statistics.median(seconds["bare"]), statistics.median(seconds["http"])
    told = median_ratio("16 answers through HTTP over the bare engine", seconds["http"], seconds["bare"])
    ratio = told["measured"]
    return [
        dict(
            name=f"{ROWS} answers of {NEW} tokens, bare engine",
            value=bare_s,
            unit="s",
            ratio=None,
            target=None,
            met=None,
        ),
        dict(
            name=f"{ROWS} answers of {NEW} tokens, through HTTP",
            value=http_s,
            unit="s",
            ratio=ratio,
            target="<= 1.10",
            met=ratio <= 1.10,
        )
        | told,
    ]
