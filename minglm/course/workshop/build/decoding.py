"""The learner's decoding beside minglm's own, and the pictures of sheet build_5.

Shapes: B batch, P prompt positions, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minglm import plots
from minglm.config import ModelConfig
from minglm.course.workshop.build.swap import load, subject
from minglm.inference.generate import generate
from minglm.inference.sampling import arrivals
from minglm.model.model import Model

PROMPTS, LENGTH, SEED = 4, 20, 3


def learners_model(make: Callable[[ModelConfig], nn.Module], model: Model | None = None) -> nn.Module:
    """A learner's GLM with the weights of `subject`, or of another model; those of the drafting module left out."""
    model = model or subject()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("mtp.")}
    return load(make(model.config), weights).eval()


def prompts(vocab_size: int) -> Tensor:
    """Fixed prompts, (PROMPTS, LENGTH)."""
    return torch.randint(2, vocab_size, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(2))


def numbers(vocab_size: int, seed: int = SEED) -> Callable[[int], Tensor]:
    """The exponential numbers that minglm races with: of token i, (PROMPTS, V)."""
    return lambda i: arrivals([(seed + row, i) for row in range(PROMPTS)], vocab_size)


def agreement(
    make: Callable[[ModelConfig], nn.Module], decode: Callable, count: int, how: Mapping[str, Any] | None = None
) -> float:
    """Share of tokens at which the learner's decoding agrees with `minglm.inference.generate`, before the first
    difference of each sequence: greedy, or sampled as `how` says (temperature, top_p)."""
    model, mine = subject(), learners_model(make)
    start, V = prompts(model.config.vocab_size), model.config.vocab_size
    how = dict(how or {})
    want = generate(model, start, count, seed=SEED, **how).tokens
    got = decode(mine, start, count, **how, **({"numbers": numbers(V)} if how else {})).tolist()
    same = 0
    for a, b in zip(got, want, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), count)
    return same / (count * PROMPTS)


def beside_the_models_own(make: Callable, decode: Callable, count: int, how: Mapping[str, Any]) -> tuple[Any, str]:
    """`agreement` as bars: greedy, sampled, and a control whose queries all stand at position 0."""
    fig = plots.figure("Tokens before the first difference", "", "% of minglm's own", height=320)

    @torch.no_grad()
    def forgetful(model, start, count, **how):
        tokens, out = start, []
        for _ in range(count):  # as if each call began a new text
            chosen = model(tokens[:, -1:])[:, -1].argmax(-1)
            tokens = torch.cat((tokens, chosen[:, None]), 1)
            out.append(chosen)
        return torch.stack(out, -1)

    try:
        values = {
            "greedy": agreement(make, decode, count),
            "sampled": agreement(make, decode, count, how),
            "control: no past": agreement(make, forgetful, count),
        }
    except NotImplementedError:
        return fig, "An empty chart: a part is still to be written."
    plots.bars(fig, list(values), [100 * v for v in values.values()], text=[f"{v:.0%}" for v in values.values()])
    return fig, "Bar chart. " + ", ".join(f"{name}: {v:.0%}" for name, v in values.items()) + "."


def work_by_length(continued: Callable, make: Callable, lengths: Sequence[int]) -> tuple[Any, str]:
    """Floating-point operations of one further token after so many: with the learner's cache, and reading all again."""
    from torch.utils.flop_counter import FlopCounterMode

    fig = plots.figure("One further token", "tokens before it", "million operations", log_x=True, log_y=True)
    model: Any = learners_model(make)
    curves: dict[str, list[float]] = {"with the cache": [], "reading all again": []}
    try:
        with torch.no_grad():
            for length in lengths:
                tokens = torch.randint(2, model.config.vocab_size, (1, length + 1))
                empty = [None] * len(model.layers)
                _, pasts = continued(model, tokens[:, :-1], empty)
                for name, new, past in (
                    ("with the cache", tokens[:, -1:], pasts),
                    ("reading all again", tokens, empty),
                ):
                    with FlopCounterMode(display=False) as counter:
                        continued(model, new, past)
                    curves[name].append(counter.get_total_flops() / 1e6)
    except NotImplementedError:
        return fig, "An empty chart: a part is still to be written."
    for i, (name, values) in enumerate(curves.items()):
        plots.line(fig, lengths, values, name, i, markers=True)
    ratio = curves["reading all again"][-1] / curves["with the cache"][-1]
    return (
        fig,
        f"Line chart, both axes logarithmic. After {lengths[-1]} tokens the cache saves a factor of {ratio:.0f}.",
    )


def tokens_per_call(kept: Callable, trials: int) -> tuple[Any, str]:
    """Tokens that one call of the model gives, over the chance that a draft is right, for 1 and 3 drafts: the
    learner's rule on random drafts, as points, on the closed form (1 − pⁿ⁺¹)/(1 − p)."""
    fig = plots.figure("Tokens of one call", "chance that a draft is right", "tokens")
    rng, chances = random.Random(0), [0.1 * n for n in range(10)]
    words = []
    for i, n in enumerate((1, 3)):
        plots.line(fig, chances, [sum(p**k for k in range(n + 1)) for p in chances], f"{n} drafts, formula", i)
        try:
            means = []
            for p in chances:
                drawn = ([0 if rng.random() < p else 1 for _ in range(n)] for _ in range(trials))
                means.append(sum(len(kept(drafts, [0] * (n + 1))) for drafts in drawn) / trials)
        except NotImplementedError:
            continue
        fig.add_scatter(
            x=chances, y=means, mode="markers", name=f"{n} drafts, tried", marker_color=plots.COLOURS[i], marker_size=9
        )
        words.append(f"{n} drafts: {means[8]:.2f}")
    return fig, f"Line chart with points. At a chance of 0.8, tried: {', '.join(words) or 'nothing yet'}."
