"""What each exercise asks for; one module per notebook, each with a list EXERCISES (see
minglm/course/workshop/checking.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from minglm.course.workshop.checking import NotYet

NO_GRADIENT = "The values are right, but no gradient reaches the model: leave out `.item()`, `.detach()` and `no_grad`."


def drawn(*shape: int, seed: int = 0):
    """A normally distributed tensor, the same for the same seed, whatever was drawn before."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learns(place: int, case: Callable[[], tuple]) -> Callable[[Callable], None]:
    """A further demand: the answer's gradient reaches argument number `place` of the case."""

    def also(answer):
        arguments = copy.deepcopy(list(case()))
        arguments[place].requires_grad_()
        out = answer(*(a * 1 if i == place else a for i, a in enumerate(arguments)))  # a leaf refuses what writes in it
        if not out.requires_grad:
            raise NotYet(NO_GRADIENT)
        out.sum().backward()
        if arguments[place].grad is None or not arguments[place].grad.any():
            raise NotYet(NO_GRADIENT)

    return also


def places_in_any_order(answer):
    """How an answer is called that chooses the k best places of scores: their order is not asked for."""
    import torch

    def run(scores, k):
        out = answer(scores, k)
        return out.sort(-1).values if torch.is_tensor(out) else out

    return run
