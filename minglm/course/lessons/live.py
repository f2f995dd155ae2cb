"""Training as a notebook shows it: one line and a growing curve in place, instead of hundreds of progress lines.

`watch` calls `minglm.training.loop.train` in the main thread, so that the stop button works as anywhere else, and
redraws from a second thread that only reads metrics.csv.
"""

from __future__ import annotations

import html
import math
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        return curve_html(self.words, self.losses, self.steps, self.top)

    def __repr__(self) -> str:
        return self.words


def curve_html(
    words: str, points: Sequence[tuple[float, float]], end: float, top: float | None = None, notes: Sequence[str] = ()
) -> str:
    """Words over a curve of (x, y) from 0 to `end`; a dashed line at `top`, where nothing is known yet; notes below."""
    high = max([v for _, v in points] + ([top * 1.05] if top else [0.1]))
    low = min([v for _, v in points] + [high * 0.5])

    def y(v: float) -> float:
        return 8 + (HEIGHT - 16) * (high - v) / max(high - low, 1e-9)

    path = " ".join(f"{WIDTH * x / end:.1f},{y(v):.1f}" for x, v in points)
    svg = f'<polyline points="{path}" fill="none" stroke="#0072B2" stroke-width="2"/>'
    if top:
        svg += (
            f'<line x1="0" x2="{WIDTH}" y1="{y(top):.1f}" y2="{y(top):.1f}" stroke="#444" stroke-dasharray="3 4"/>'
            f'<text x="{WIDTH - 6}" y="{y(top) - 4:.1f}" font-size="11" text-anchor="end" fill="#444">'
            "knows nothing</text>"
        )
    words, below = html.escape(words), "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    return (
        f'<div style="font:13px sans-serif"><div>{words}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%;background:#fff" role="img" '
        f'aria-label="{words}"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fafafa" '
        f'stroke="#ddd"/>{svg}</svg>{below}</div>'
    )


class Lines:
    """In place of `print`, for what says a line after each update: in a notebook one box in place, with the newest line
    over the curve of a number that the lines name, and the last few other lines below. Elsewhere it prints.

    Args:
        name: what runs. word: the number's name in a line, such as "reward" in "update 3: reward 0.250, …". end: how
            many updates there will be.
    """

    NOTES = 3

    def __init__(self, name: str, word: str, end: int | None = None) -> None:
        self.name, self.word, self.end = name, word, end
        self.newest, self.points, self.notes = "starting", list[tuple[float, float]](), list[str]()
        self._number = re.compile(rf"\b(?:update|step) (\d+)(?: of (\d+))?\b.*?\b{re.escape(word)} (-?\d+(?:\.\d+)?)")
        self._handle: Any = None
        if end is not None:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        if self._handle is not None:
            self._handle.update(self)
        elif _in_notebook():
            self._handle = display(self, display_id=True)

    def __call__(self, line: str) -> None:
        """One line."""
        found = self._number.search(line)
        if found:
            self.newest = line
            self.end = int(found[2]) if found[2] else self.end
            self.points.append((float(found[1]), float(found[3])))
        else:
            self.notes = [*self.notes, line][-self.NOTES :]
        self._draw()
        if self._handle is None:
            print(line)

    def _repr_html_(self) -> str:
        return curve_html(f"{self.name}: {self.newest}", self.points, self.end or 1, notes=self.notes)

    def __repr__(self) -> str:
        return "\n".join([f"{self.name}: {self.newest}", *self.notes])


def _in_notebook() -> bool:
    """Whether outputs can be changed in place: under a kernel, not in a terminal."""
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
