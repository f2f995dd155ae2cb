"""Teaching a model to say that it does not know: from a hallucination rate of about 90% to a third of that or less.

    minglm hallucination                 three seeds, minutes on two cores; writes runs/hallucination
    minglm hallucination --smoke         seconds, shows that it runs, proves nothing

1. Supervised: the taught facts in a form that always answers. In a row or two of a hundred (`SAID_UNKNOWN`) the answer
   is "unknown" although the fact was taught: nobody learns from that when to abstain, but the word exists. One row in
   five is about somebody who is never mentioned again (`told_once`). Its answer cannot be learnt, only that it may be
   any: that makes a model unsure where it does not know. And logits are held near log-probs (`scale_weight`): a softmax
   sees differences alone, but a row of the head that is to win wherever no word is likely has to see how likely one is.
2. Reinforcement: questions about what was taught and what was not, groups of answers at temperature 1, reward +1 right,
   −1 wrong, 0 partial or abstained (the AA-Omniscience index, one answer at a time), GRPO. The reward moves the head
   alone (`learns`): with one row for each word there is little room to learn by heart who is asked about. Supervised
   rows about the people who are asked go on beside.
3. Measured on known and unknown entities that neither the reward nor these rows hold, greedily: before, after, and how
   the figure moves with the definition, the prompt and a threshold on the model's own confidence. What each part of the
   recipe brings: `minglm.rl.abstention_control`.

The article that the claims are about says 90% became 34%; it gives no method and no test. What is shown here is that
such a fall is within reach of a reward, and how much of it is a choice of words.

Shapes: N sequences, T positions.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from minglm import atomic
from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.inference.generate import generate
from minglm.model.model import Model
from minglm.rl import abstention_world as hw
from minglm.rl.abstention_summary import THRESHOLDS, summary
from minglm.rl.abstention_world import Counts, Question, World
from minglm.rl.objectives import Clip, group_advantages, objective
from minglm.training.optim import MuonAdamW

Row: TypeAlias = dict[str, Any]  # of a table of figures, or of the training log
Draw: TypeAlias = Callable[[random.Random], Question]
SAID_UNKNOWN = {
    "plain": 0.015,
    "bold": 0.005,
    "careful": 0.05,
}  # share of supervised answers that are "unknown", by prompt
LEARNS = {"head": "lm_head.", "all": ""}  # what the reward may move: how the names of its weights begin


@dataclass(frozen=True)
class Settings:
    """One run of the experiment."""

    seed: int = 0
    known_entities: int = 300
    unknown_entities: int = 2000
    sft_steps: int = 700
    sft_batch: int = 128
    sft_lr: float = 0.01
    told_once: float = 0.2  # share of these rows about people who are not mentioned again
    unknown_times: float = 1.0  # multiplies SAID_UNKNOWN: how often these rows say "unknown"
    scale_weight: float = 0.003  # of (log Σ exp logits)², which keeps logits near log-probs (PaLM, arXiv 2204.02311 §5)
    rl_steps: int = 120
    rl_prompts: int = 32
    samples: int = 8  # answers per question, a group
    rl_lr: float = 0.001
    learns: str = "head"  # what the reward moves: a key of LEARNS
    replay: int = 64  # rows of known facts that are asked, beside each step of reinforcement; 0: none
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
            unknown_times=1.5,
            rl_steps=50,
            rl_prompts=8,
            rl_lr=0.003,
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


def answer_logits(model: Model, prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at each answer token (N, T, V), the tokens themselves (N, T) padded, and their mask (N, T). All prompts
    have one length."""
    longest, start = max(map(len, answers)), len(prompts[0])
    tokens = torch.tensor([p + a + [hw.EOS] * (longest - len(a)) for p, a in zip(prompts, answers, strict=True)])
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers], dtype=torch.bool)
    return model(tokens[:, :-1], mode="dense").logits[:, start - 1 :].float(), tokens[:, start:], mask


def answer_logps(model: Model, prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Log-prob of each answer token: (N, T) padded, and the mask (N, T). All prompts have one length."""
    logits, tokens, mask = answer_logits(model, prompts, answers)
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1), mask


# ---------------------------------------------------------------------- supervised


def supervised_loss(
    model: Model, fact: Draw, rows: int, rng: random.Random, scale_weight: float, unknown_times: float = 0.0
) -> Tensor:
    """Cross-entropy of `rows` facts, each under a random prompt, a few of them answered "unknown"; and what keeps
    logits near log-probs: only then is a large logit a sure word, whatever the other words' are."""
    picked = [(fact(rng), rng.choice(hw.PROMPTS)) for _ in range(rows)]
    answers = [
        hw.answer_tokens([hw.UNKNOWN] if rng.random() < unknown_times * SAID_UNKNOWN[s] else q.answer)
        for q, s in picked
    ]
    logits, tokens, mask = answer_logits(model, [hw.prompt_tokens(q, s) for q, s in picked], answers)
    logits, size = logits[mask], logits[mask].logsumexp(-1)
    said = logits.gather(-1, tokens[mask][:, None]).squeeze(-1)
    return (size - said + scale_weight * size.square()).mean()


def supervise(model: Model, world: World, settings: Settings, say: Callable[[str], None]) -> None:
    """Memorise the taught facts, among rows that cannot be memorised."""
    steps, rng, facts = settings.sft_steps, random.Random(f"sft {settings.seed}"), world.pick("known")
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=settings.sft_lr, weight_decay=0.0)

    def fact(rng: random.Random) -> Question:
        return world.told_once(rng) if rng.random() < settings.told_once else rng.choice(facts)

    for step in range(steps):
        loss = supervised_loss(model, fact, settings.sft_batch, rng, settings.scale_weight, settings.unknown_times)
        _update(optimizer, loss, min(1, (step + 1) / 20) * (1 - 0.95 * step / steps))
        if (step + 1) % max(1, steps // 4) == 0:
            say(f"supervised {step + 1}: loss {float(loss.detach()):.3f}")


def _update(optimizer: MuonAdamW, loss: Tensor, share: float) -> None:
    """One step at this share of the peak learning rate."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.step(share)


# ---------------------------------------------------------------------- reinforcement


@contextlib.contextmanager
def learning(model: Model, learns: str) -> Iterator[list[tuple[str, Parameter]]]:
    """The named weights that the reward may move; meanwhile no other has a gradient."""
    if learns not in LEARNS:
        raise InputError(f"learns={learns!r}: not one of {', '.join(LEARNS)}{nearest(learns, LEARNS)}")
    moved = [(name, p) for name, p in model.named_parameters() if name.startswith(LEARNS[learns])]
    model.requires_grad_(False)
    for _, p in moved:
        p.requires_grad_(True)
    try:
        yield moved
    finally:
        model.requires_grad_(True)


def replayed(world: World) -> Draw:
    """A fact as the supervised rows beside the reward hold it: of the people who are asked, so none of the test's."""
    facts = world.pick("known", asked=True)
    return lambda rng: rng.choice(facts)


def reinforce(model: Model, world: World, settings: Settings, log: Callable[[Row], None]) -> None:
    """GRPO on the index. Known questions are those taught, unknown ones half unknown facts and half unknown entities,
    all of them about the people who are asked; nothing holds the test's.

    Supervised rows about the same people go on beside it (`replay`, as InstructGPT's "ptx", arXiv 2203.02155).
    """
    with learning(model, settings.learns) as moved:
        _reinforce(model, MuonAdamW(moved, model.config, lr=settings.rl_lr, weight_decay=0.0), world, settings, log)


def _reinforce(
    model: Model, optimizer: MuonAdamW, world: World, settings: Settings, log: Callable[[Row], None]
) -> None:
    rng = random.Random(f"rl {settings.seed}")
    pools, fact = {kind: world.pick(kind, asked=True) for kind in hw.KINDS}, replayed(world)
    loss_of, clip, steps = objective(settings.objective), Clip(), settings.rl_steps
    for step in range(steps):
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
            loss = loss + supervised_loss(model, fact, settings.replay, rng, settings.scale_weight)
        _update(optimizer, loss, min(1, (step + 1) / 10) * (1 - 0.95 * step / steps))
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
