"""A batch's rows on two threads, each with half of the cores from the first layer to the gradients.

A small model's step is thousands of short operations. Split inside, all cores meet at the end of each of them, and what
is left between two (Python, an operation too small to split) leaves cores idle; given half of the rows each, two
threads meet once, when their gradients are added. What one thread leaves idle the other fills. More than two gain
little: the interpreter runs one thread at a time.

A step's losses are sums over rows (`minglm.model.counts`), so the gradient is that of the whole batch, up to rounding.
The first half's is added first, so that it does not depend on which thread is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from minglm.data.shards import Batch
from minglm.model.products import onednn_is_faster
from minglm.runtime.switch import fast

# Measured with nano: as fast at 3 GFLOP, half slower at 0.4 (little but Python, twice), 0.75 of the time at 7.
WORTH_FLOPS = 4e9
Out = TypeVar("Out")
Passed = tuple[Tensor, Out]  # a loss, and what else came of its forward pass


def halves(batch: Batch, flops: float) -> list[Batch]:
    """The rows of a batch, in two where torch has two threads and the batch is worth it; `flops`: of its two passes."""
    rows = len(batch.tokens)
    if rows < 2 or flops < WORTH_FLOPS or torch.get_num_threads() < 2 or not fast():
        return [batch]
    middle = (rows + 1) // 2
    return [Batch(*(t[part] for t in batch)) for part in (slice(middle), slice(middle, rows))]


def backward(
    loss: Callable[[Batch], Passed[Out]], parts: Sequence[Batch], learns: Sequence[Tensor]
) -> list[Passed[Out]]:
    """Add the gradients of Σ `loss(part)[0]` to those of `learns`; what `loss` returned of each part, in order.

    One part is computed here, with all of torch's threads; two on a thread each, with half of them.
    """
    if len(parts) == 1:
        passed = loss(parts[0])
        passed[0].backward()
        return [passed]
    threads = torch.get_num_threads()
    onednn_is_faster()  # measured once, where nothing disturbs it

    def work(part: Batch) -> tuple[Passed[Out], tuple[Tensor | None, ...]]:
        passed = loss(part)
        return passed, torch.autograd.grad(passed[0], learns, allow_unused=True)

    with ThreadPoolExecutor(1, "minglm", torch.set_num_threads, (threads // 2,)) as other:
        try:
            torch.set_num_threads(threads - threads // 2)  # of this thread
            later = other.submit(work, parts[1])
            first, second = work(parts[0]), later.result()
        finally:
            torch.set_num_threads(threads)
    with torch.no_grad():
        for p, *gradients in zip(learns, first[1], second[1], strict=True):
            for gradient in gradients:
                if gradient is not None:  # into new memory: of a sum's two terms autograd gives both one gradient
                    p.grad = gradient if p.grad is None else p.grad + gradient
    return [first[0], second[0]]
