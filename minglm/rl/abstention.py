"""Teaching a model to say that it does not know: from a hallucination rate of about 90% to a third of that or less.

    minglm hallucination                 three seeds, minutes on two cores; writes runs/hallucination
    minglm hallucination --smoke         seconds, shows that it runs, proves nothing

1. Supervised: the taught facts in a form that always answers. In a row or two of a thousand (`SAID_UNKNOWN`) the
   answer is
   "unknown" although the fact was taught: nobody learns from that when to abstain, but the word exists.
2. Reinforcement: questions about what was taught and what was not, groups of answers at temperature 1, reward +1 right,
   −1 wrong, 0 partial or abstained (the AA-Omniscience index, one answer at a time), GRPO; supervised rows go on
   beside.
3. Measured on known and unknown entities that reinforcement never asked about, greedily: before, after, and how the
   figure moves with the definition, the prompt and a threshold on the model's own confidence. The supervised rows do
   hold the test's known facts (they were taught, and stay taught); nothing ever holds its unknown ones. What is left
   without these rows: `minglm.rl.abstention_control`.

The article that the claims are about says 90% became 34%; it gives no method and no test. What is shown here is that
such a fall is within reach of a reward, and how much of it is a choice of words.

Shapes: N sequences, T positions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from minglm import atomic
from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.generate import generate
from minglm.model.model import Model
from minglm.rl import abstention_world as hw
from minglm.rl.abstention_summary import THRESHOLDS, summary
from minglm.rl.abstention_world import Counts, Question, World
from minglm.rl.objectives import Clip, group_advantages, objective
from minglm.training.optim import MuonAdamW

Row: TypeAlias = dict[str, Any]  # of a table of figures, or of the training log
SAID_UNKNOWN = {
    "plain": 0.001,
    "bold": 0.0003,
    "careful": 0.005,
}  # share of supervised answers that are "unknown", by prompt
REPLAYED = ("taught", "asked")


@dataclass(frozen=True)
class Settings:
    """One run of the experiment."""

    seed: int = 0
    known_entities: int = 300
    unknown_entities: int = 2000
    sft_steps: int = 700
    sft_batch: int = 128
    sft_lr: float = 0.01
    unknown_times: float = 1.0  # multiplies SAID_UNKNOWN: how often supervised rows say "unknown"
    rl_steps: int = 400  # 240 leave the rate at 35% with known facts untouched (seeds 0, 1, 2 together)
    rl_prompts: int = 32
    samples: int = 8  # answers per question, a group
    rl_lr: float = 0.0005
    replay: int = 64  # supervised rows beside each step of reinforcement; 0: none
    replay_of: str = "taught"  # what these rows hold: all that was taught, or what is asked (`REPLAYED`)
    known_share: float = 0.5  # of the questions asked in reinforcement
    objective: str = "grpo"
    test_each: int = 250

    def smoke(self) -> Settings:
        """A run of seconds, which proves nothing."""
        return replace(
            self,
            known_entities=16,
            unknown_entities=60,
            sft_steps=150,
            sft_batch=48,
            unknown_times=20.0,
            rl_steps=50,
            rl_prompts=8,
            rl_lr=0.001,
            replay=24,
            test_each=24,
        )


def build(settings: Settings) -> Model:
    """The untrained model."""
    torch.manual_seed(settings.seed)
    return Model(
        ModelConfig.named("nano", vocab_size=len(hw.VOCABULARY), num_nextn_predict_layers=0, max_position_embeddings=64)
    )


# ---------------------------------------------------------------------- log-probs


def answer_logps(model: Model, prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Log-prob of each answer token: (N, T) padded, and the mask (N, T). All prompts have one length."""
    longest, start = max(map(len, answers)), len(prompts[0])
    tokens = torch.tensor([p + a + [hw.EOS] * (longest - len(a)) for p, a in zip(prompts, answers, strict=True)])
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers], dtype=torch.bool)
    logits = model(tokens[:, :-1], mode="dense").logits[:, start - 1 :].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, start:, None]).squeeze(-1), mask


# ---------------------------------------------------------------------- supervised


def supervised_loss(
    model: Model, facts: list[Question], rows: int, rng: random.Random, unknown_times: float = 1.0
) -> Tensor:
    """Cross-entropy of `rows` taught facts, each under a random prompt, a few of them answered "unknown"."""
    picked = [(rng.choice(facts), rng.choice(hw.PROMPTS)) for _ in range(rows)]
    answers = [
        hw.answer_tokens([hw.UNKNOWN] if rng.random() < unknown_times * SAID_UNKNOWN[s] else q.answer)
        for q, s in picked
    ]
    logps, mask = answer_logps(model, [hw.prompt_tokens(q, s) for q, s in picked], answers)
    return -logps[mask].mean()


def supervised_steps(
    model: Model,
    facts: list[Question],
    rows: int,
    rng: random.Random,
    lr: float,
    shares: Sequence[float],
    unknown_times: float,
) -> Iterator[float]:
    """The loss of each step of `rows` supervised rows, at every share of the learning rate `lr` one after the other."""
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=lr, weight_decay=0.0)
    for share in shares:
        loss = supervised_loss(model, facts, rows, rng, unknown_times)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(share)
        yield float(loss.detach())


def supervise(model: Model, world: World, settings: Settings, say: Callable[[str], None]) -> None:
    """Memorise the taught facts."""
    steps, rng, facts = settings.sft_steps, random.Random(f"sft {settings.seed}"), world.pick("known")
    shares = [min(1, (step + 1) / 20) * (1 - 0.95 * step / steps) for step in range(steps)]
    losses = supervised_steps(model, facts, settings.sft_batch, rng, settings.sft_lr, shares, settings.unknown_times)
    for step, loss in enumerate(losses, 1):
        if step % max(1, steps // 4) == 0:
            say(f"supervised {step}: loss {loss:.3f}")


# ---------------------------------------------------------------------- reinforcement


def replayed(world: World, settings: Settings) -> list[Question]:
    """The facts that supervised rows beside the reward hold; with "asked" none of the test's."""
    if settings.replay_of not in REPLAYED:
        raise InputError(f"replay_of={settings.replay_of!r}: not one of {', '.join(REPLAYED)}; use taught")
    return world.pick("known", True if settings.replay_of == "asked" else None)


def reinforce(model: Model, world: World, settings: Settings, log: Callable[[Row], None]) -> None:
    """GRPO on the index. Known questions are those taught, unknown ones half unknown facts and half unknown entities.

    The supervised rows go on beside it (`replay`, as InstructGPT's "ptx", arXiv 2203.02155): without them the model
    keeps what it is asked about and forgets other facts, which it then declines.
    """
    rng = random.Random(f"rl {settings.seed}")
    pools = {kind: world.pick(kind, asked=True) for kind in hw.KINDS}
    facts = replayed(world, settings)
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=settings.rl_lr, weight_decay=0.0)
    loss_of, clip = objective(settings.objective), Clip()
    for step in range(settings.rl_steps):
        questions = [
            rng.choice(
                pools[
                    "known" if rng.random() < settings.known_share else rng.choice(("unknown_fact", "unknown_entity"))
                ]
            )
            for _ in range(settings.rl_prompts)
        ]
        repeated = [q for q in questions for _ in range(settings.samples)]
        prompts = [hw.prompt_tokens(q) for q in repeated]
        out = generate(model, prompts, 3, temperature=1.0, seed=rng.randrange(2**31), stop=(hw.EOS,), mode="dense")
        answers = [tokens + [hw.EOS] * stopped for tokens, stopped in zip(out.tokens, out.stopped, strict=True)]
        grades = [
            hw.grade(q, hw.words(tokens)) if stopped else "incorrect"
            for q, tokens, stopped in zip(repeated, out.tokens, out.stopped, strict=True)
        ]
        rewards = torch.tensor([hw.REWARDS[g] for g in grades]).view(-1, settings.samples)
        advantages = group_advantages(rewards).flatten()
        logp, mask = answer_logps(model, prompts, answers)
        behaviour = logp.detach()  # one update per batch and one engine: what sampled is what trains
        loss, stats = loss_of(logp, logp.detach(), behaviour, advantages, mask, clip=clip)
        if settings.replay:
            loss = loss + supervised_loss(model, facts, settings.replay, rng, settings.unknown_times)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(min(1, (step + 1) / 10))
        known = [g for q, g in zip(repeated, grades, strict=True) if q.kind == "known"]
        others = [g for q, g in zip(repeated, grades, strict=True) if q.kind != "known"]
        log(
            {
                "step": step + 1,
                "reward": float(rewards.mean()),
                "known_accuracy": hw.count(known).accuracy,
                "known_abstained": _share_of(known, "abstained"),
                "unknown_abstained": _share_of(others, "abstained"),
                "unknown_rate": hw.count(others).hallucination_rate,
                "zero_variance": float((rewards.amax(1) == rewards.amin(1)).float().mean()),
                "tokens": stats["tokens"],
            }
        )


def _share_of(grades: Sequence[str], what: str) -> float:
    return grades.count(what) / len(grades) if grades else float("nan")


# ---------------------------------------------------------------------- measurement


@dataclass(frozen=True)
class Answers:
    """What a model said to each question, greedily, and how sure it was: the probability of its words."""

    questions: list[Question]
    responses: list[tuple[str, ...]]
    confidence: list[float]

    def counts(self, kind: str | None = None, threshold: float = 0.0) -> Counts:
        """Grades of one kind of question (or "unknown" for facts and entities, or all). An answer that the model gives
        less than `threshold` is taken back: it counts as abstained."""
        kinds = {None: hw.KINDS, "unknown": ("unknown_fact", "unknown_entity")}.get(kind, (kind,))
        return hw.count(
            "abstained" if c < threshold else hw.grade(q, s)
            for q, s, c in zip(self.questions, self.responses, self.confidence, strict=True)
            if q.kind in kinds
        )


def ask(model: Model, questions: list[Question], prompt: str = "plain") -> Answers:
    """Greedy answers with their confidence."""
    out = generate(model, [hw.prompt_tokens(q, prompt) for q in questions], 3, stop=(hw.EOS,), mode="dense")
    responses = [
        hw.words(tokens) if stopped else (*hw.words(tokens), "…")
        for tokens, stopped in zip(out.tokens, out.stopped, strict=True)
    ]
    return Answers(questions, responses, [math.exp(sum(p)) for p in out.logprobs])


def measure(model: Model, questions: list[Question], stage: str, seed: int) -> list[Row]:
    """Rows of figures: every prompt, every kind of question, and for the plain prompt every threshold."""
    rows = []
    for prompt in hw.PROMPTS:
        answers = ask(model, questions, prompt)
        cases = [(kind, 0.0) for kind in ("all", "known", "unknown", "unknown_fact", "unknown_entity")]
        cases += [("all", t) for t in THRESHOLDS[1:]] + [("known", t) for t in THRESHOLDS[1:]]
        for kind, threshold in cases if prompt == "plain" else cases[:5]:
            c = answers.counts(None if kind == "all" else kind, threshold)
            rows.append(
                {
                    "seed": seed,
                    "stage": stage,
                    "prompt": prompt,
                    "questions": kind,
                    "threshold": threshold,
                    **asdict(c),
                    "accuracy": c.accuracy,
                    "index": c.index,
                    "hallucination_rate": c.hallucination_rate,
                }
            )
    return rows


# ---------------------------------------------------------------------- the experiment


def run_seed(settings: Settings, say: Callable[[str], None] = print) -> tuple[list[Row], list[Row], Model]:
    """One seed: (rows of figures before and after, rows of the training log, the model)."""
    started = time.monotonic()

    def tell(text: str) -> None:
        say(f"seed {settings.seed}, {time.monotonic() - started:4.0f} s: {text}")

    world, model, training = (
        World.make(settings.seed, settings.known_entities, settings.unknown_entities),
        build(settings),
        [],
    )
    test = world.test(settings.seed, settings.test_each)
    supervise(model, world, settings, tell)
    figures = measure(model, test, "before", settings.seed)

    def log(row: dict) -> None:
        training.append({"seed": settings.seed, **row})
        if row["step"] % max(1, settings.rl_steps // 5) == 0:
            tell(
                f"reinforced {row['step']}: reward {row['reward']:+.2f}, unknown declined "
                f"{row['unknown_abstained']:.0%}, "
                f"known declined {row['known_abstained']:.0%}"
            )

    reinforce(model, world, settings, log)
    return figures + measure(model, test, "after", settings.seed), training, model


def run(
    seeds: Sequence[int], folder: Path, settings: Settings = Settings(), say: Callable[[str], None] = print
) -> dict:
    """All seeds; writes figures.csv, training.csv and summary.json into `folder` and returns the summary."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds {list(seeds)!r}: give each seed once, and at least one")
    figures: list[Row] = []
    training: list[Row] = []
    for seed in seeds:
        f, t, _ = run_seed(replace(settings, seed=seed), say)
        figures, training = figures + f, training + t
        write_csv(folder / "figures.csv", figures)  # after every seed: a stopped run keeps what it has
        write_csv(folder / "training.csv", training)
    out = {**summary(figures), "settings": {k: v for k, v in asdict(settings).items() if k != "seed"}}
    atomic.write_json(folder / "summary.json", out)
    return out


def write_csv(path: Path, rows: list[Row]) -> None:
    """Whole file or none: written beside and moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = ({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    atomic.write_csv(path, rounded, list(rows[0]))
