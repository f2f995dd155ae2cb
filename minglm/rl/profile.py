"""What this machine needs for each part of an RL step, measured; the simulator predicts the real loop from it.

`python -m minglm.rl.profile --init-from RUN [--recipe NAME] --out runs/NAME/profile.json` writes:

    decode_step_s        [[batch, seconds], …]: one decode step of the engine with so many running, at `decode_context` tokens
    decode_context       tokens in each sequence while those were measured, below the model's index_topk
    decode_choosing_s    the same table with more tokens than index_topk in each sequence, so that keys are chosen
    decode_by_context_s  [[context, seconds], …] at the largest batch
    prefill_s_per_token, prefill_fixed_s   reading in N tokens takes fixed + per token · N (one call of at most 512 tokens)
    train_fixed_s, train_s_per_pass, train_s_per_token, train_s_per_square   an update takes fixed + per pass · passes + per token · N
                         + per square · Σ n², rows of n tokens, prompts and padding included, N in all
    kv_offload_s               of one aborted request: its cache put aside and brought back
    decode_interference, train_interference   how many times slower a decode step is while another process trains, and an update while another
                         decodes, as in asynchronous modes
    weight_sync_s               writing a weights file and loading it into a running engine
    step_overhead_s      one message from coordinator to worker and back
    parameters, max_batch, threads         of the model and the settings it was measured with

Times are medians of repetitions. decode_step_busy_s is the first table measured again beside a process that trains.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from minglm.errors import InputError
from minglm.rl.config import Settings, load
from minglm.rl.policy import train_load

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
REPEATS = 15


def surface_fit(points: list[tuple[float, ...]]) -> tuple[float, ...]:
    """(fixed, a coefficient for each column), none below 0, of (columns…, seconds); relative errors weighed alike."""
    import numpy as np

    table, seconds = np.array([(1.0, *columns) for *columns, _ in points]), np.array([s for *_, s in points])
    kept = list(range(table.shape[1]))
    while True:
        found = np.linalg.lstsq(table[:, kept] / seconds[:, None], np.ones(len(points)), rcond=None)[0]
        worst = int(found.argmin())
        if found[worst] >= 0:
            return tuple(float(dict(zip(kept, found)).get(i, 0.0)) for i in range(table.shape[1]))
        del kept[worst]


def line_fit(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(slope, intercept) of the line through (x, y), neither below 0, relative errors weighed alike."""
    fixed, slope = surface_fit(points)
    return slope, fixed


def profile(init_from: str | Path, settings: Settings) -> dict:
    """The table above as a dict."""
    import torch

    from minglm.inference.engine import Engine, Request
    from minglm.inference.load import load_model

    torch.set_num_threads(settings.threads)
    model, tokenizer, _ = load_model(init_from)
    limit = model.config.max_position_embeddings
    topk = model.config.index_topk
    context = max(4, min(64, limit // 4, topk - 2 * REPEATS - 10))
    batches = [b for b in BATCHES if b <= settings.max_batch]

    def engine_at(batch: int, length: int, new: int) -> Engine:
        engine = Engine(copy.deepcopy(model), max_batch=batch, max_len=limit)
        for i in range(batch):  # no stop token: all keep running
            engine.submit(Request(str(i), [tokenizer.bos, *[6 + (i + j) % 90 for j in range(length - 1)]], new, seed=i))
        while engine.waiting:
            engine.step()
        return engine

    def decode(batch: int, length: int) -> float:
        engine, times = engine_at(batch, length, 3 * REPEATS + 40), []
        for _ in range(REPEATS + 3):
            started = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - started)
        return statistics.median(times[3:])

    out: dict = {"decode_context": context, "decode_step_s": [[b, decode(b, context)] for b in batches]}
    if topk + 8 * REPEATS < limit:
        out["decode_choosing_s"] = [[b, decode(b, topk + 1)] for b in batches]
    out["decode_by_context_s"] = [
        [n, decode(batches[-1], n)] for n in (16, 64, 128, 256, 512) if n + 3 * REPEATS + 40 <= limit
    ]
    with _Beside("train", init_from, settings):
        out["decode_step_busy_s"] = [[b, decode(b, context)] for b in batches]
    out["decode_interference"] = statistics.median(
        slow / alone for (_, slow), (_, alone) in zip(out["decode_step_busy_s"], out["decode_step_s"])
    )
    out["prefill_s_per_token"], out["prefill_fixed_s"] = line_fit(
        [_prefill(model, n) for n in (8, 32, 96, 256, 480) if n < limit]
    )
    points, push = _train(init_from, settings)
    out["train_fixed_s"], out["train_s_per_pass"], out["train_s_per_token"], out["train_s_per_square"] = surface_fit(
        points
    )
    with _Beside("decode", init_from, settings):
        slower, _ = _train(init_from, settings)
    out["train_interference"] = statistics.median(slow[-1] / alone[-1] for slow, alone in zip(slower, points))
    out["kv_offload_s"] = _kv_offload_s(model, tokenizer, settings)
    return out | {
        "weight_sync_s": push,
        "step_overhead_s": _round_trip(),
        "parameters": model.config.num_params(mtp=True),
        "max_batch": settings.max_batch,
        "threads": settings.threads,
    }


def _prefill(model, tokens: int) -> tuple[float, float]:
    from minglm.inference.engine import Engine, Request

    times = []
    for i in range(9):
        engine = Engine(model, max_batch=1, max_len=model.config.max_position_embeddings)
        engine.submit(
            Request(str(i), [6 + (i + j) % 90 for j in range(tokens)], 1)
        )  # one token: reading in is all it does
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    return float(tokens), statistics.median(times[2:])


def _kv_offload_s(model, tokenizer, settings: Settings, count: int = 32) -> float:
    """Seconds of one request, aborted and submitted again with its cache kept, beyond the decode step that follows."""
    from minglm.inference.engine import Engine, Request

    count = min(count, settings.max_batch)
    engine, times = (
        Engine(model, max_batch=count, max_len=model.config.max_position_embeddings, reuse_kv_cache=True),
        [],
    )
    for i in range(count):
        engine.submit(Request(str(i), [tokenizer.bos, *[6 + (i + j) % 90 for j in range(20)]], 60, seed=i))
    while engine.waiting:
        engine.step()
    for _ in range(9):
        started = time.perf_counter()
        engine.step()
        alone, started = time.perf_counter() - started, time.perf_counter()
        for request in engine.abort():
            engine.submit(request)
        engine.step()
        times.append((time.perf_counter() - started - alone) / count)
    return max(0.0, statistics.median(times))


def _groups(settings: Settings, samples: int, length: int, longest: int | None = None) -> list[dict]:
    """A batch of made-up samples for a trainer; with `longest` the lengths of groups rise evenly from `length` to it."""
    rows = []
    for i in range(samples):
        n = length + (
            (longest - length)
            * (i // settings.samples_per_prompt)
            // max(1, (samples - 1) // settings.samples_per_prompt)
            if longest
            else 0
        )
        rows.append(
            {
                "tokens": [6 + (i * 7 + j) % 90 for j in range(n)],
                "logprobs": [-1.0] * n,
                "versions": [0] * n,
                "reward": float(i % 2),
            }
        )
    return [
        {"prompt": [0, 4, 20, 30, 5], "samples": rows[i : i + settings.samples_per_prompt]}
        for i in range(0, samples, settings.samples_per_prompt)
    ]


def _train(init_from: str | Path, settings: Settings) -> tuple[list[tuple[float, ...]], float]:
    """(passes, tokens, squares, seconds) of updates of several sizes, and seconds of a push from the trainer into an engine."""
    from minglm.rl.trainer import Trainer
    from minglm.rl.worker import RolloutWorker

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings.changed(routing_replay=False).to_dict(), folder, str(init_from))
        worker, points, pushes, update = RolloutWorker(settings.to_dict(), [1]), [], [], 0
        longest = trainer.config.max_position_embeddings - 8
        for samples, length, end in (
            (8, 16, None),
            (32, 30, None),
            (64, 30, None),
            (64, 90, None),
            (96, 120, None),
            (8, 200, None),
            (8, 350, None),
            (32, 5, 60),
            (32, 5, 200),
            (48, 5, 350),
        ):
            length, end = min(length, longest), end and min(end, longest)
            samples = -(-samples // settings.samples_per_prompt) * settings.samples_per_prompt
            times = []
            for _ in range(4):
                update += 1
                started = time.perf_counter()
                (reply,) = trainer.handle(
                    {
                        "do": "train",
                        "update": update,
                        "version": update - 1,
                        "push": update,
                        "reset": False,
                        "groups": (groups := _groups(settings, samples, length, end)),
                    }
                )
                written = time.perf_counter() - started - reply["seconds"]
                started = time.perf_counter()
                list(
                    worker.handle(
                        {
                            "do": "push",
                            "path": reply["weights"],
                            "version": update,
                            "config": trainer.config.to_dict(),
                            "max_len": trainer.config.max_position_embeddings,
                        }
                    )
                )
                pushes.append(written + time.perf_counter() - started)
                times.append(reply["seconds"])
            counted = train_load([5 + len(s["tokens"]) for g in groups for s in g["samples"]], settings.micro_tokens)
            points.append((*map(float, counted), statistics.median(times[1:])))
    return points, statistics.median(pushes[2:])


class _Beside:
    """A process that trains or decodes without pause, so that the other core is busy as in an asynchronous run."""

    def __init__(self, what: str, init_from: str | Path, settings: Settings) -> None:
        import subprocess

        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        code = f"import sys, json; from minglm.rl import profile; profile.{what}_on(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(init_from), json.dumps(settings.to_dict()), self.folder.name],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()
        time.sleep(1.0)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()
        self.folder.cleanup()


def train_on(init_from: str, settings: dict, folder: str) -> None:
    """Update after update, until killed."""
    from minglm.rl.trainer import Trainer

    made = Settings.from_dict(settings)
    trainer = Trainer(settings, folder, init_from)
    print("on", flush=True)
    for update in itertools.count(1):
        list(
            trainer.handle(
                {
                    "do": "train",
                    "update": update,
                    "version": 0,
                    "push": None,
                    "reset": False,
                    "groups": _groups(made, 64, 60),
                }
            )
        )


def decode_on(init_from: str, settings: dict, _folder: str) -> None:
    """Sixteen sequences again and again, until killed."""
    import torch

    from minglm.inference.engine import Engine, Request
    from minglm.inference.load import load_model

    torch.set_num_threads(settings["threads"])
    model, tokenizer, _ = load_model(init_from)
    engine = Engine(model, max_batch=16, max_len=model.config.max_position_embeddings)
    print("on", flush=True)
    for i in itertools.count():
        while engine.running + engine.waiting < 16:
            engine.submit(Request(f"{i}.{engine.running + engine.waiting}", [tokenizer.bos, 20, 30], 100, seed=i))
        engine.step()


def _round_trip() -> float:
    """Seconds of one message through a pipe and back, a thread on the way as in `LocalWorker`."""
    import multiprocessing
    import threading

    ours, theirs = multiprocessing.Pipe()
    threading.Thread(target=lambda: [theirs.send(theirs.recv()) for _ in range(50)], daemon=True).start()
    times = []
    for _ in range(50):
        started = time.perf_counter()
        ours.send({"do": "nothing"})
        ours.recv()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minglm.rl.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--init-from", required=True, help="run folder of the model")
    parser.add_argument(
        "--recipe", default="long_tail", help="RL recipe, for max_batch, samples_per_prompt and threads"
    )
    parser.add_argument("--out", required=True, help="where to write, such as runs/rl/profile.json")
    args = parser.parse_args(argv)
    try:
        found = profile(args.init_from, load(args.recipe))
    except InputError as err:
        print(err, file=sys.stderr)
        return 2
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
