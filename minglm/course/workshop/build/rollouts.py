"""Rounds of rollouts and a task for the learner's own policy: what sheet build_6 shows.

Shapes: N sequences, T tokens of a sequence, prompt included, G groups, n samples of a group.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minglm import plots
from minglm.config import ModelConfig
from minglm.course.workshop.build.swap import load
from minglm.model.model import Model

WAYS = ("grpo", "dapo", "dr_grpo")
CONTROL = "control: rewards at random"
BATCH, OVER, PLACES, MEAN_TOKENS = 16, 32, 16, 30
EOS, LETTERS, ANSWER = 1, range(2, 8), 6  # the end, the prompts, and how long an answer may be
GROUPS, SAMPLES, LR, PASSES = 12, 8, 0.01, 2
Curves = dict[str, dict[str, list[float]]]


# ---------------------------------------------------------------------- rounds


def answer_lengths(seed: int = 0):
    """Answers without end, as tokens to write: log-normal, a few of them very long."""
    rng = random.Random(f"rollouts/{seed}")
    while True:
        yield max(1, round(rng.lognormvariate(0, 1.0) * MEAN_TOKENS))


def use_of_places(play: Callable, queue: Any, submitted: int, rounds: int) -> list[float]:
    """Share of the places' ticks in which a token was written, after each round. A round waits for `BATCH` of the
    answers submitted; what is stopped goes back into the queue."""
    wrote = ticks = 0
    out = []
    for _ in range(rounds):
        left = queue.take(submitted)
        spent, _, rest = play(left, PLACES, BATCH)
        queue.put_back(list(rest.values()))
        wrote += sum(left) - sum(rest.values())
        ticks += spent * PLACES
        out.append(wrote / ticks)
    return out


def places_in_use(play: Callable, queue: Callable, rounds: int) -> tuple[Any, str]:
    """`use_of_places` over the rounds: waiting for all, and APRIL."""
    fig = plots.figure("Work of the places", "round", "% of what they could write")
    ends = []
    for i, (name, submitted) in enumerate((("wait for all", BATCH), ("APRIL: twice as many, stop at the batch", OVER))):
        try:
            shares = use_of_places(play, queue(answer_lengths()), submitted, rounds)
        except NotImplementedError:
            return fig, "An empty chart: a part is still to be written."
        plots.line(fig, range(1, rounds + 1), [100 * s for s in shares], name, i)
        ends.append(shares[-1])
    return (
        fig,
        f"Line chart, means over the rounds so far. Waiting for all {ends[0]:.0%}, APRIL {ends[1]:.0%} at the end.",
    )


# ---------------------------------------------------------------------- a task


def config() -> ModelConfig:
    """A policy that samples in milliseconds: eight tokens, two layers."""
    return ModelConfig.named(
        "nano", vocab_size=8, num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_nextn_predict_layers=0
    )


def policy(make: Callable[[ModelConfig], nn.Module]) -> Callable[[], nn.Module]:
    """Makes the learner's policy, each time with the same first weights, which are minglm's."""
    torch.manual_seed(0)
    model = Model(config())
    weights = {k: v.clone() for k, v in model.state_dict().items() if ".indexer." not in k}
    return lambda: load(make(config()), weights)


@torch.no_grad()
def sample(model: nn.Module, prompts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Answers to prompts (N,): tokens (N, 1 + ANSWER), and which were written, (N, ANSWER) bool, the end included."""
    tokens, written, running = prompts[:, None], [], torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(ANSWER):
        probs = model(tokens)[:, -1].softmax(-1)
        new = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        written.append(running.clone())
        tokens = torch.cat((tokens, torch.where(running, new, EOS)[:, None]), 1)
        running = running & (new != EOS)
    return tokens, torch.stack(written, 1)


def reward(tokens: Tensor, mask: Tensor) -> Tensor:
    """1 where the prompt's letter stands in the answer, (N,)."""
    return ((tokens[:, 1:] == tokens[:, :1]) & mask).any(1).float()


def side_by_side(make: Callable, optimizer: Callable, log_probs: Callable, update: Callable, updates: int) -> Curves:
    """Way → "reward" and "length" (tokens of an answer without the letter), a value for each update. Empty while a part
    is still to be written."""
    out: Curves = {}
    for way in (*WAYS, CONTROL):
        model, generator = make(), torch.Generator().manual_seed(0)
        steps = optimizer(model, LR)
        curve: dict[str, list[float]] = {"reward": [], "length": []}
        for _ in range(updates):
            letters = torch.randint(min(LETTERS), max(LETTERS) + 1, (GROUPS,), generator=generator)
            tokens, mask = sample(model, letters.repeat_interleave(SAMPLES), generator)
            got = reward(tokens, mask)
            taught = got if way != CONTROL else torch.randint(0, 2, got.shape, generator=generator).float()
            try:
                ref = log_probs(model, tokens).detach()
                update(
                    model,
                    steps,
                    tokens,
                    mask,
                    taught.view(GROUPS, SAMPLES),
                    ref,
                    way if way in WAYS else "grpo",
                    PASSES,
                )
            except NotImplementedError:
                return {}
            curve["reward"].append(float(got.mean()))
            curve["length"].append(float(mask.sum(1).float().mean()))
        out[way] = curve
    return out


def rewards_and_lengths(curves: Mapping[str, Mapping[str, list[float]]], over: int = 5) -> tuple[Any, str]:
    """Rewards over the updates, each a mean of the last `over`, and in words the lengths."""
    fig = plots.figure("Reward of the learner's policy", "update", "mean reward")
    if not curves:
        return fig, "An empty chart: a part is still to be written."
    words = []
    for i, (way, curve) in enumerate(curves.items()):
        values = [statistics.mean(curve["reward"][max(0, k + 1 - over) : k + 1]) for k in range(len(curve["reward"]))]
        plots.line(fig, range(1, len(values) + 1), values, way, i)
        words.append(f"{way}: {values[-1]:.2f}, answers of {statistics.mean(curve['length'][-over:]):.1f} tokens")
    return fig, "Line chart. At the end " + "; ".join(words) + "."
