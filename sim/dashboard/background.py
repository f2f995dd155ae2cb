"""Work beside the page's controls: the newest question is worked out in full, an older one is given up.

Where the page is alive (a notebook's kernel, Voila) the work runs in a thread after a short pause, so that first looks
alone follow a slider that is still moving. A browser's Python has no threads and works after the present move is shown;
a script has nothing to keep waiting and works at once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
PAUSE_S = 0.3  # without a further move, before the work begins


class SupersededError(Exception):
    """A newer question came: the work is given up."""


def can_wait() -> bool:
    """Whether an event loop runs, so that something is shown before the work is done."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Background:
    """One piece of work at a time. `busy`: the newest is not done yet."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while the page is drawn
        self._ticket = 0
        self._done = 0

    @property
    def busy(self) -> bool:
        """Whether the newest work is still to be done."""
        return self._done != self._ticket

    def drop(self) -> None:
        """Give up what is under way."""
        with self.lock:
            self._ticket += 1
            self._done = self._ticket

    def start(self, work: Callable[[Callable[[], None]], Value], done: Callable[[Value], None]) -> None:
        """Work in the background, then `done` with the result, unless something newer was started.

        work: calls its argument now and then, which raises where the work is of no use any more.
        """
        with self.lock:
            self._ticket += 1
            ticket = self._ticket

        def check() -> None:
            if ticket != self._ticket:
                raise SupersededError

        def act() -> None:
            try:
                check()
                result = work(check)
                with self.lock:
                    check()
                    self._done = ticket
                    done(result)
            except SupersededError:
                pass

        if sys.platform == "emscripten":
            asyncio.get_running_loop().call_later(PAUSE_S, act)
        else:
            timer = threading.Timer(PAUSE_S, act)
            timer.daemon = True
            timer.start()
