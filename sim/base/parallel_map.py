"""Run one function over many items: on this machine's cores, or on a Ray cluster with the same call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from minglm.errors import InputError, nearest
from minglm.runtime import ray as ray_cluster

ENGINES = ("local", "ray")


def check(engine: str) -> None:
    """Refuse an unknown engine, or Ray where it is not installed, before any work."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: not one of {', '.join(ENGINES)}{nearest(str(engine), ENGINES)}")
    if engine == "ray":
        ray_cluster.check()


def run(
    function: Callable[[Any], object],
    items: Sequence[Any],
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[tuple[int, object]]:
    """(index, result) of every item, as they are done. `function` and items must be picklable; exceptions are raised
    here.

    workers: processes (default: the cores there are; 1 runs in this process). address: of a Ray cluster (default: one
    on this machine). An item whose Ray worker dies is run again, up to three times.
    """
    check(engine)
    workers = min(workers or os.cpu_count() or 1, max(len(items), 1))
    if engine == "ray":
        yield from _ray(function, items, address)
    elif workers == 1:
        yield from ((i, function(item)) for i, item in enumerate(items))
    else:
        yield from _processes(function, items, workers)


def _processes(function: Callable[[Any], object], items: Sequence[Any], workers: int) -> Iterator[tuple[int, object]]:
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait  # not in a browser

    with ProcessPoolExecutor(workers) as pool:
        waiting: dict[Future[object], int] = {}
        left = iter(enumerate(items))
        try:
            while True:
                for i, item in left:
                    waiting[pool.submit(function, item)] = i
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    return
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ray(function: Callable[[Any], object], items: Sequence[Any], address: str | None) -> Iterator[tuple[int, object]]:
    ray = ray_cluster.connect(address)
    remote = ray.remote(max_retries=3)(function)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[object, int] = {}
    left = iter(enumerate(items))
    while True:
        while len(waiting) < most and (pair := next(left, None)) is not None:
            waiting[remote.remote(pair[1])] = pair[0]
        if not waiting:
            return
        done, _ = ray.wait(list(waiting))
        for ref in done:
            yield waiting.pop(ref), ray.get(ref)
