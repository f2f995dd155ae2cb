"""Signs of life on stderr: a bar for work of known length, the elapsed time for other work. A pipe gets neither."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(description: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Gives `report(done, total)`: counts so far. The bar appears with the first report, in a terminal only."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def report(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and sys.stderr.isatty() and not quiet:
            bar = tqdm(total=total, desc=description, file=sys.stderr, leave=False)
        if bar is not None:
            bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


@contextlib.contextmanager
def elapsed(text: str, quiet: bool = False) -> Iterator[None]:
    """A line with the elapsed time for work of unknown length, from its third second on."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def tick() -> None:
        if done.wait(2.0):
            return
        with tqdm(desc=text, bar_format="{desc} {elapsed}", file=sys.stderr, leave=False) as bar:
            while not done.wait(0.5):
                bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
