"""What training asks of its process: the same bits every time, and a step that Ctrl-C does not tear."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training: the step was finished and saved; the same command goes on from there."""


@contextlib.contextmanager
def deterministic(compiled: bool = False) -> Iterator[None]:
    """Ask torch for the same result every time, without its habit of filling fresh memory, which costs time.

    `compiled`: ask torch's compiler too. That imports it, a second in every process, which nothing else here needs.
    """
    deterministic_mode: Any = torch.utils.deterministic  # its attribute is made when torch runs
    before = torch.get_deterministic_debug_mode(), deterministic_mode.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic_mode.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic_mode.fill_uninitialized_memory = before[1]


@contextlib.contextmanager
def finish_step_on_sigint() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that the step ends and is saved; a second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
