"""What each part of the recipe for declining brings: `python -m minglm.rl.measure abstention`.

From one start of `minglm.rl.abstention` the reward moves the head alone, as the recipe says, or the whole model; beside
them stands what needs no reward, a threshold on the start's own confidence, the one that earns most on the people who
are asked. Then the same from a plain start of the same world: nobody told of once, logits of any size. The test's
people are in none of it but the teaching of facts. `answered` is what a model says when it may not decline: whether it
has a fact.
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

START, WITHHELD = "start", "start, unsure answers withheld"
PAID, WHOLE = "reward, head alone", "reward, whole model"
WITHOUT = ", plain start"
WAYS = (START, WITHHELD, PAID, WHOLE, START + WITHOUT, WITHHELD + WITHOUT, PAID + WITHOUT)
WHOLE_RATE = 0.0005  # half of what the head learns at
TRIED = [i / 100 for i in range(100)]  # thresholds


def rows(settings: h.Settings) -> list[dict[str, Any]]:
    """One seed: for every way and kind of question the shares `right`, `declined`, and `answered` rightly if forced."""
    world = World.make(settings.seed, settings.known_entities, settings.unknown_entities)
    test = world.test(settings.seed, settings.test_each)
    out: list[dict[str, Any]] = []

    def told(way: str, model: Model, threshold: float = 0.0) -> None:
        out.extend({"seed": settings.seed, "way": way, **shares} for shares in _shares(model, test, threshold))

    def rewarded(start: Model, how: h.Settings) -> Model:
        model = copy.deepcopy(start)
        h.reinforce(model, world, how, lambda row: None)
        return model

    for suffix, how in (("", settings), (WITHOUT, replace(settings, told_once=0.0, scale_weight=0.0))):
        start = h.build(how)
        h.supervise(start, world, how, lambda line: None)
        told(START + suffix, start)
        told(WITHHELD + suffix, start, best_threshold(start, world, how))
        told(PAID + suffix, rewarded(start, how))
        if not suffix:
            told(WHOLE, rewarded(start, replace(how, learns="all", rl_lr=WHOLE_RATE)))
    return out


def best_threshold(model: Model, world: World, settings: h.Settings) -> float:
    """The confidence below which answers are best withheld, by the index over questions about the asked people, as many
    known ones as unknown."""
    rng = random.Random(f"threshold {settings.seed}")
    sizes = (settings.test_each, settings.test_each // 2, settings.test_each - settings.test_each // 2)
    pools = [world.pick(kind, asked=True) for kind in hw.KINDS]
    asked = [q for pool, size in zip(pools, sizes, strict=True) for q in rng.sample(pool, min(size, len(pool)))]
    answers = h.ask(model, asked)
    return max(TRIED, key=lambda tried: answers.counts(threshold=tried).index)


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
