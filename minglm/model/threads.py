"""Chunks of work on several threads, each running its operations alone.

Sparse attention is many small operations. Split inside, each would wait for the slowest thread at its end; given whole,
one chunk to a thread, they never wait. torch releases the interpreter's lock while an operation runs, so plain threads
do. The share of each thread is fixed, so results do not depend on which is faster.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_pools: dict[int, ThreadPoolExecutor] = {}
_busy = threading.Lock()


def _forget() -> None:
    """A forked child inherits neither threads nor whoever held the lock."""
    global _busy
    _pools.clear()
    _busy = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parallel_for(work: Callable[[Sequence[Item]], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """Call `work` on interleaved shares of `items`, one share per torch thread; results in the order of the shares.

    `work` runs without gradients and must write to disjoint places, or to what it makes and returns. On an accelerator,
    with one thread, or while another caller is sharing out, it gets all items at once in the calling thread.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2 or len(items) < 2 or not _busy.acquire(blocking=False):
        return [work(items)]
    lock, inference = _busy, torch.is_inference_mode_enabled()

    def run_single_threaded(share: Sequence[Item]) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(share)

    try:
        torch.set_num_threads(1)  # for this thread, and for new ones
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(
                threads - 1, "minglm", initializer=torch.set_num_threads, initargs=(1,)
            )
        others = [
            _pools[threads].submit(run_single_threaded, items[i::threads]) for i in range(1, min(threads, len(items)))
        ]
        try:
            first = run_single_threaded(items[::threads])
        finally:
            for f in others:
                f.exception()  # wait for all before anything is freed
        return [first, *(f.result() for f in others)]
    finally:
        torch.set_num_threads(threads)
        lock.release()
