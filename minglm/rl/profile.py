"""What this machine needs for each part of an RL step, measured; the simulator predicts the real loop from it.

`python -m minglm.rl.profile --init-from RUN [--recipe NAME] --out runs/NAME/profile.json` writes:

    decode_step_s        [[batch, seconds], …]: one decode step of the engine with so many running, at `decode_context`
                         tokens
    decode_context       tokens in each sequence while those were measured, below the model's index_topk
    decode_sparse_s      the same table with more tokens than index_topk in each sequence, so that keys are selected
    decode_by_context_s  [[context, seconds], …] at the largest batch
    decode_step_interfered_s   the first table measured again while another process trains
    prefill_s_per_token, prefill_fixed_s   prefill of N tokens takes fixed + per token · N (one call of at most 512)
    train_fixed_s, train_s_per_pass, train_s_per_token, train_s_per_square   an update takes fixed + per pass · passes
                         + per token · N + per square · Σ n², rows of n tokens, prompts and padding included, N in all
    kv_offload_s         of one aborted request: its KV cache swapped out and back in
    decode_interference, train_interference   how many times slower a decode step is while another process trains, and
                         an update while another decodes, as in asynchronous modes
    weight_sync_s        writing a weights file and loading it into a running engine
    step_overhead_s      one message from coordinator to worker and back
    parameters, max_batch, threads         of the model and the settings it was measured with

Times are medians of repetitions.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minglm import atomic
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError, Parser
from minglm.inference.engine import Engine
from minglm.inference.load import load_model
from minglm.inference.request import Request
from minglm.model.model import Model
from minglm.rl.config import Settings, load
from minglm.rl.messages import Abort, StepDone, Train, TrainGroup, TrainSample, UpdateWeights, to_wire
from minglm.rl.modes import train_load
from minglm.rl.trainer import Trainer
from minglm.rl.worker import RolloutWorker

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
REPEATS = 15
PROMPT = [0, 4, 20, 30, 5]
# Batches of updates that are measured: samples, response tokens of the shortest, of the longest (None: all alike).
UPDATES = (
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
)


def surface_fit(points: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """(fixed, a coefficient for each column), none below 0, of (columns…, seconds); relative errors weighed alike."""
    table = np.array([(1.0, *columns) for *columns, _ in points])
    seconds = np.array([s for *_, s in points])
    columns_left = list(range(table.shape[1]))
    while True:
        fit = np.linalg.lstsq(table[:, columns_left] / seconds[:, None], np.ones(len(points)), rcond=None)[0]
        lowest = int(fit.argmin())
        if fit[lowest] >= 0:
            coefficients = dict(zip(columns_left, fit, strict=True))
            return tuple(float(coefficients.get(i, 0.0)) for i in range(table.shape[1]))
        del columns_left[lowest]


def line_fit(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(slope, intercept) of the line through (x, y), neither below 0, relative errors weighed alike."""
    fixed, slope = surface_fit(points)
    return slope, fixed


def profile(init_from: str | Path, settings: Settings) -> dict[str, Any]:
    """The table above as a dict.

    Raises:
        InputError: no model in `init_from`.
    """
    torch.set_num_threads(settings.threads)
    model, tokenizer, _ = load_model(init_from)
    limit, topk = model.config.max_position_embeddings, model.config.index_topk
    context = max(4, min(64, limit // 4, topk - 2 * REPEATS - 10))
    batches = [b for b in BATCHES if b <= settings.max_batch]

    def decode(batch: int, length: int) -> float:
        return _decode_step_s(model, tokenizer.bos, batch, length)

    out: dict[str, Any] = {"decode_context": context, "decode_step_s": [[b, decode(b, context)] for b in batches]}
    if topk + 8 * REPEATS < limit:
        out["decode_sparse_s"] = [[b, decode(b, topk + 1)] for b in batches]
    contexts = [n for n in (16, 64, 128, 256, 512) if n + 3 * REPEATS + 40 <= limit]
    out["decode_by_context_s"] = [[n, decode(batches[-1], n)] for n in contexts]
    with _interference("train", init_from, settings):
        out["decode_step_interfered_s"] = [[b, decode(b, context)] for b in batches]
    out["decode_interference"] = _slowdown(out["decode_step_interfered_s"], out["decode_step_s"])
    prefills = [(float(n), _prefill_s(model, n)) for n in (8, 32, 96, 256, 480) if n < limit]
    out["prefill_s_per_token"], out["prefill_fixed_s"] = line_fit(prefills)
    updates, weight_sync_s = _updates(init_from, settings)
    names = ("train_fixed_s", "train_s_per_pass", "train_s_per_token", "train_s_per_square")
    out |= dict(zip(names, surface_fit(updates), strict=True))
    with _interference("decode", init_from, settings):
        interfered, _ = _updates(init_from, settings)
    out["train_interference"] = _slowdown(interfered, updates)
    out["kv_offload_s"] = _kv_offload_s(model, tokenizer, settings)
    return out | {
        "weight_sync_s": weight_sync_s,
        "step_overhead_s": _round_trip_s(),
        "parameters": model.config.num_params(mtp=True),
        "max_batch": settings.max_batch,
        "threads": settings.threads,
    }


def _slowdown(interfered: Sequence[Sequence[float]], alone: Sequence[Sequence[float]]) -> float:
    """Median ratio of the seconds, the last column of both tables."""
    return statistics.median(slow[-1] / fast[-1] for slow, fast in zip(interfered, alone, strict=True))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# ---------------------------------------------------------------------- the engine


def _decode_step_s(model: Model, bos: int, batch: int, length: int) -> float:
    """Seconds of one decode step with `batch` sequences of about `length` tokens."""
    engine = Engine(copy.deepcopy(model), max_batch=batch, max_len=model.config.max_position_embeddings)
    for i in range(batch):  # no stop token: all keep running
        prompt = [bos, *[6 + (i + j) % 90 for j in range(length - 1)]]
        engine.submit(Request(str(i), prompt, 3 * REPEATS + 40, seed=i))
    while engine.waiting:
        engine.step()
    return statistics.median([_timed(engine.step) for _ in range(REPEATS + 3)][3:])


def _prefill_s(model: Model, tokens: int) -> float:
    times = []
    for i in range(9):
        engine = Engine(model, max_batch=1, max_len=model.config.max_position_embeddings)
        engine.submit(Request(str(i), [6 + (i + j) % 90 for j in range(tokens)], 1))  # one token: nothing but prefill
        times.append(_timed(engine.step))
    return statistics.median(times[2:])


def _kv_offload_s(model: Model, tokenizer: Tokenizer, settings: Settings, count: int = 32) -> float:
    """Seconds of one request, aborted and submitted again with its cache reused, beyond the decode step that
    follows."""
    count = min(count, settings.max_batch)
    engine = Engine(model, max_batch=count, max_len=model.config.max_position_embeddings, reuse_kv_cache=True)
    for i in range(count):
        engine.submit(Request(str(i), [tokenizer.bos, *[6 + (i + j) % 90 for j in range(20)]], 60, seed=i))
    while engine.waiting:
        engine.step()

    def abort_and_resume() -> None:
        for request in engine.abort():
            engine.submit(request)
        engine.step()

    times = []
    for _ in range(9):
        step_s = _timed(engine.step)
        times.append((_timed(abort_and_resume) - step_s) / count)
    return max(0.0, statistics.median(times))


# ---------------------------------------------------------------------- the trainer


def _batch(settings: Settings, samples: int, shortest: int, longest: int | None = None) -> tuple[TrainGroup, ...]:
    """A synthetic batch; with `longest` the response lengths of its groups rise evenly from `shortest` to it."""
    size = settings.samples_per_prompt
    last = max(1, (samples - 1) // size)
    lengths = [shortest + ((longest - shortest) * (i // size) // last if longest else 0) for i in range(samples)]
    rows = [
        TrainSample([6 + (i * 7 + j) % 90 for j in range(n)], [-1.0] * n, [0] * n, reward=float(i % 2))
        for i, n in enumerate(lengths)
    ]
    return tuple(TrainGroup(PROMPT, tuple(rows[i : i + size])) for i in range(0, samples, size))


def _updates(init_from: str | Path, settings: Settings) -> tuple[list[tuple[float, ...]], float]:
    """(passes, tokens, squares, seconds) of updates of several sizes, and seconds of a weight sync."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings.changed(routing_replay=False).to_dict(), folder, str(init_from))
        worker = RolloutWorker(settings.to_dict(), [1])
        max_len = trainer.config.max_position_embeddings
        points, syncs, version = [], [], 0
        for samples, shortest, longest in UPDATES:
            shortest = min(shortest, max_len - 8)
            longest = None if longest is None else min(longest, max_len - 8)
            samples = -(-samples // settings.samples_per_prompt) * settings.samples_per_prompt
            batch, times = _batch(settings, samples, shortest, longest), []
            for _ in range(4):
                version += 1
                started = time.perf_counter()
                done = trainer.train(Train(version, version - 1, version, reset_optimizer=False, groups=batch))
                written_s = time.perf_counter() - started - done.seconds
                started = time.perf_counter()
                _load(worker, done, trainer)
                syncs.append(written_s + time.perf_counter() - started)
                times.append(done.seconds)
            rows = [len(group.prompt) + len(sample.tokens) for group in batch for sample in group.samples]
            points.append((*map(float, train_load(rows, settings.micro_tokens)), statistics.median(times[1:])))
    return points, statistics.median(syncs[2:])


def _load(worker: RolloutWorker, done: StepDone, trainer: Trainer) -> None:
    assert done.weights is not None, "every update here publishes its weights"
    command = UpdateWeights(
        done.weights, trainer.version, trainer.config.to_dict(), trainer.config.max_position_embeddings
    )
    list(worker.handle(command))


# ---------------------------------------------------------------------- interference, messages


@contextmanager
def _interference(kind: str, init_from: str | Path, settings: Settings) -> Iterator[None]:
    """A process that trains or decodes without pause, so that the other core is busy as in an asynchronous run."""
    code = (
        "import sys, json; from minglm.rl import profile; "
        f"profile.{kind}_forever(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = [str(init_from), json.dumps(settings.to_dict()), folder]
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            try:
                assert process.stdout is not None, "stdout is a pipe"
                process.stdout.readline()  # "on"
                time.sleep(1.0)
                yield
            finally:
                process.kill()


def train_forever(init_from: str, settings: dict[str, Any], folder: str) -> None:
    """Update after update, until killed."""
    batch = _batch(Settings.from_dict(settings), 64, 60)
    trainer = Trainer(settings, folder, init_from)
    print("on", flush=True)
    for update in itertools.count(1):
        trainer.train(Train(update, version=0, sync_version=None, reset_optimizer=False, groups=batch))


def decode_forever(init_from: str, settings: dict[str, Any], _folder: str) -> None:
    """Sixteen sequences again and again, until killed."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer, _ = load_model(init_from)
    engine = Engine(model, max_batch=16, max_len=model.config.max_position_embeddings)
    print("on", flush=True)
    for i in itertools.count():
        while engine.running + engine.waiting < 16:
            engine.submit(Request(f"{i}.{engine.running + engine.waiting}", [tokenizer.bos, 20, 30], 100, seed=i))
        engine.step()


def _round_trip_s() -> float:
    """Seconds of one message through a pipe and back, a thread on the way as in `LocalWorker`."""
    ours, theirs = multiprocessing.Pipe()

    def echo() -> None:
        for _ in range(50):
            theirs.send(theirs.recv())

    def there_and_back() -> None:
        ours.send(to_wire(Abort()))
        ours.recv()

    threading.Thread(target=echo, daemon=True).start()
    return statistics.median(_timed(there_and_back) for _ in range(50))


def main(argv: list[str] | None = None) -> int:
    """Measure and write the file; returns the exit code."""
    parser = Parser(prog="python -m minglm.rl.profile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--init-from", required=True, help="run folder of the model")
    parser.add_argument(
        "--recipe", default="long_tail", help="RL recipe, for max_batch, samples_per_prompt and threads"
    )
    parser.add_argument("--out", required=True, help="where to write, such as runs/rl/profile.json")
    args = parser.parse_args(argv)
    try:
        measured = profile(args.init_from, load(args.recipe))
    except InputError as err:
        print(err, file=sys.stderr)
        return 2
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(out, measured)
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
