"""Training as a notebook shows it: one line and a growing loss curve in place, instead of hundreds of progress lines.

`watch` calls `minglm.training.loop.train` in the main thread, so that the stop button works as anywhere else, and
redraws from a second thread that only reads metrics.csv.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

from minglm.runtime import run_folder
from minglm.training import metrics
from minglm.training.loop import train

WIDTH, HEIGHT = 640, 110


def watch(recipe, run_dir: Path, init_from: Path | None = None, resume: bool = False, every_s: float = 1.0) -> dict:
    """`minglm.training.loop.train`, seen while it runs; returns its result. Here `resume` is False by default: a cell
    that is run again trains again."""
    from IPython.display import display

    started, done = time.monotonic(), threading.Event()
    handle = display(_Strip(recipe, run_dir, started), display_id=True)

    def redraw() -> None:
        while not done.wait(every_s):
            if handle is not None:  # None outside a notebook
                handle.update(_Strip(recipe, run_dir, started))

    thread = threading.Thread(target=redraw, daemon=True)
    if not resume:
        run_folder.set_aside(run_dir, "train")  # now, so that the old curve is not shown while the new run starts
    thread.start()
    try:
        return train(recipe, run_dir, init_from=init_from, resume=resume, progress=False)
    finally:
        done.set()
        thread.join()
        if handle is not None:
            handle.update(_Strip(recipe, run_dir, started, finished=True))


class _Strip:
    """How far a run is, as HTML and as text."""

    def __init__(self, recipe, run_dir: Path, started: float, finished: bool = False) -> None:
        try:
            rows = metrics.read(run_dir / "metrics.csv")
        except OSError:
            rows = []
        key = "indexer_kl" if recipe.stage == "dsa_warmup" else "lm_loss"
        self.losses = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
        self.top = None if key == "indexer_kl" else math.log(recipe.config().vocab_size)
        self.steps, self.word = recipe.steps, "KL" if key == "indexer_kl" else "loss"
        step, seconds = (self.losses[-1][0] if self.losses else 0), time.monotonic() - started
        left = "" if finished or not step else f", about {seconds / step * (self.steps - step):.0f} s left"
        loss = f", {self.word} {self.losses[-1][1]:.2f}" if self.losses else ", getting text and tokens ready"
        self.words = f"{run_dir.name} ({recipe.stage}): step {step} of {self.steps}{loss}, {seconds:.0f} s{left}"

    def _repr_html_(self) -> str:
        high = max([v for _, v in self.losses] + ([self.top * 1.05] if self.top else [0.1]))
        low = min([v for _, v in self.losses] + [high * 0.5])

        def y(v):
            return 8 + (HEIGHT - 16) * (high - v) / max(high - low, 1e-9)

        points = " ".join(f"{WIDTH * s / self.steps:.1f},{y(v):.1f}" for s, v in self.losses)
        svg = f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="2"/>'
        if self.top:
            svg += (
                f'<line x1="0" x2="{WIDTH}" y1="{y(self.top):.1f}" y2="{y(self.top):.1f}" stroke="#444" '
                'stroke-dasharray="3 4"/>'
                f'<text x="{WIDTH - 6}" y="{y(self.top) - 4:.1f}" font-size="11" text-anchor="end" fill="#444">knows '
                "nothing</text>"
            )
        return (
            f'<div style="font:13px sans-serif"><div>{self.words}</div>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%;background:#fff" role="img" '
            f'aria-label="{self.words}"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fafafa" '
            f'stroke="#ddd"/>{svg}</svg></div>'
        )

    def __repr__(self) -> str:
        return self.words
