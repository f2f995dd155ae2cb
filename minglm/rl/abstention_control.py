"""What is left of "known facts stay right" without the rows that hold them: `python -m minglm.rl.measure abstention`.

In `minglm.rl.abstention` the supervised rows beside the reward hold every taught fact, those of the test among them.
Here the same start is trained again with rows about the asked half of the people alone, so that the known facts of the
test were taught once and never shown again. Beside it stand what needs no reward: a threshold on the start's own
confidence, and the same rows without a reward. `answered` is what a model says when it may not decline: whether it
still has a fact.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import torch

from minglm.model.model import Model
from minglm.rl import abstention as h
from minglm.rl import abstention_world as hw
from minglm.rl.abstention_world import Question, World

THRESHOLD = 0.9
WAYS = (
    "start",
    f"start, answers below {THRESHOLD} withheld",
    "rows of the asked people, no reward",
    "reward, rows of all that was taught",
    "reward, rows of the asked people",
)


def rows(settings: h.Settings) -> list[dict[str, Any]]:
    """One seed: for every way and kind of question the shares `right`, `declined`, and `answered` rightly if forced."""
    world = World.make(settings.seed, settings.known_entities, settings.unknown_entities)
    start = h.build(settings)
    h.supervise(start, world, settings, lambda line: None)
    test = world.test(settings.seed, settings.test_each)
    apart = replace(settings, replay_of="asked")
    trained = {WAYS[0]: (start, 0.0), WAYS[1]: (start, THRESHOLD)}
    for way, how, reward in ((WAYS[2], apart, False), (WAYS[3], settings, True), (WAYS[4], apart, True)):
        model = copy.deepcopy(start)
        if reward:
            h.reinforce(model, world, how, lambda row: None)
        else:
            _rows_alone(model, world, how)
        trained[way] = (model, 0.0)
    return [
        {"seed": settings.seed, "way": way, **shares}
        for way, (model, threshold) in trained.items()
        for shares in _shares(model, test, threshold)
    ]


def _rows_alone(model: Model, world: World, settings: h.Settings) -> None:
    """As many steps as with a reward, the supervised rows only."""
    rng, facts = random.Random(f"rows {settings.seed}"), h.replayed(world, settings)
    shares = [min(1, (step + 1) / 10) for step in range(settings.rl_steps)]
    for _ in h.supervised_steps(model, facts, settings.replay, rng, settings.rl_lr, shares, settings.unknown_times):
        pass


def _shares(model: Model, test: list[Question], threshold: float) -> list[dict[str, Any]]:
    answers, out = h.ask(model, test), []
    for kind in hw.KINDS:
        counts = answers.counts(kind, threshold)
        asked = [q for q in test if q.kind == kind]
        answered = sum(said == q.answer for said, q in zip(forced(model, asked), asked, strict=True)) / len(asked)
        out.append(
            {
                "questions": kind,
                "right": counts.accuracy,
                "declined": counts.abstained / counts.total,
                "answered": answered,
            }
        )
    return out


@torch.no_grad()
def forced(model: Model, questions: list[Question]) -> list[tuple[str, ...]]:
    """The two likeliest words for each question, one after the other, where "unknown" may not be said."""
    tokens = torch.tensor([hw.prompt_tokens(q) for q in questions])
    for _ in range(2):
        logits = model.eval()(tokens, mode="dense").logits[:, -1].float()
        logits[:, hw.VOCABULARY.index(hw.UNKNOWN)] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return [hw.words(row[-2:].tolist()) for row in tokens]
