"""Checks of build 3: SFT's masked loss, group advantages, the clipped ratio, k3, three averages."""

from functools import partial

import torch
import torch.nn.functional as F

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import NO_GRADIENT, drawn, learns
from minglm.rl.objectives import Clip, grpo


def _mask():
    return torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()


def _answers(scale=1.0):
    return scale * drawn(2, 5, 7), torch.arange(10).view(2, 5) % 7, _mask()


def _ratios():
    return drawn(4, 5), drawn(4, 5, seed=1), torch.tensor([1.0, -2.0, 0.5, -0.3]), 0.2, 0.28


def _sft(logits, targets, mask, how="token", sign=1):
    losses = F.cross_entropy(logits.mT, targets, reduction="none")
    if how == "all":
        return losses.mean()
    if how == "rows":
        return ((losses * mask).sum(1) / mask.sum(1)).mean()
    return sign * (losses * mask).sum() / mask.sum()


def _advantages(rewards, divide, sample=False, centre=True, always=False):
    out = []
    for group in rewards.tolist():
        mean = sum(group) / len(group)
        spread = (sum((r - mean) ** 2 for r in group) / (len(group) - sample)) ** 0.5
        scale = spread if (divide or always) and spread > 1e-6 else 1.0
        out.append([(r - mean * centre) / scale for r in group])
    return torch.tensor(out)


def _clipped(logp, logp_old, advantage, low, high, how="min", sign=-1):
    if how == "min" and sign == -1:
        rows = []
        for n, t in ((n, t) for n in range(len(logp)) for t in range(logp.shape[1])):
            new, old = (x[n : n + 1, t : t + 1] for x in (logp, logp_old))
            rows.append(grpo(new, old, old, advantage[n : n + 1], torch.ones(1, 1), clip=Clip(low=low, high=high))[0])
        return torch.stack(rows).view_as(logp)
    r = logp_old.sub(logp).neg().exp()
    a = advantage[:, None]
    inside = r.clamp(1 - low, 1 + high) * a
    return sign * {"clip only": inside, "none": r * a, "max": torch.maximum(r * a, inside)}.get(
        how, torch.minimum(r * a, inside)
    )


def _average(losses, mask, how, length):
    rows = [[v for v, m in zip(r, k, strict=True) if m] for r, k in zip(losses.tolist(), mask.tolist(), strict=True)]
    total, count = sum(map(sum, rows)), sum(map(len, rows))
    if how == "grpo":
        return torch.tensor(sum(sum(r) / len(r) for r in rows) / len(rows))
    return torch.tensor(total / (count if how == "dapo" else len(rows) * length))


EXERCISES = [
    Exercise(
        "build_3.sft_loss",
        _sft,
        lambda: [_answers(), _answers(scale=300.0)],
        (
            Mistake(partial(_sft, how="all"), "The mask is not used: prompt and padding count too."),
            Mistake(
                partial(_sft, how="rows"), "Average over all counted tokens of the batch together, not row by row."
            ),
            Mistake(partial(_sft, sign=-1), "The sign is wrong: the loss is minus the mean log-probability."),
            Mistake(
                lambda logits, targets, mask: F.nll_loss(logits.softmax(-1)[mask].log(), targets[mask]),
                "Of large logits a softmax rounds to 0, which has no logarithm: take log_softmax.",
            ),
            Mistake(lambda logits, targets, mask: _sft(logits.detach(), targets, mask), NO_GRADIENT),
        ),
        "log_softmax, gather the targets, minus the mean where mask is True.",
        also=learns(0, _answers),
    ),
    Exercise(
        "build_3.advantages",
        _advantages,
        lambda: [
            (torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0.5, 0, 1, 0.1]]), True),
            (torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), False),
        ],
        (
            Mistake(partial(_advantages, sample=True), "Use the population's deviation: std(1, correction=0)."),
            Mistake(partial(_advantages, centre=False), "The group's mean must be subtracted from each reward."),
            Mistake(
                partial(_advantages, always=True), "With divide=False nothing is divided: that is Dr. GRPO's form."
            ),
        ),
        "reward minus the group's mean; with divide over the deviation, and 0 where all rewards are equal.",
    ),
    Exercise(
        "build_3.clipped",
        _clipped,
        lambda: [_ratios()],
        (
            Mistake(
                partial(_clipped, how="clip only"), "Take the minimum of r·A and clip(r)·A, not the clipped alone."
            ),
            Mistake(partial(_clipped, how="none"), "Nothing is clipped: a token that moved far still gets a gradient."),
            Mistake(partial(_clipped, how="max"), "It is the minimum of the two products, the more careful one."),
            Mistake(partial(_clipped, sign=1), "The sign is wrong: a loss falls where the advantage is earned."),
            Mistake(lambda logp, *others: _clipped(logp.detach(), *others), NO_GRADIENT),
        ),
        "r = exp(logp - logp_old); -minimum(r·A, clamp(r, 1 - low, 1 + high)·A).",
        also=learns(0, _ratios),
    ),
    Exercise(
        "build_3.k3",
        lambda logp, ref: torch.expm1(ref - logp) - (ref - logp),
        lambda: [(drawn(3, 4), drawn(3, 4, seed=1))],
        (
            Mistake(lambda logp, ref: logp - ref, "That is k1, the plain log-ratio, which can be negative."),
            Mistake(
                lambda logp, ref: torch.expm1(logp - ref) - (logp - ref), "d is the other way: log π_ref minus log π."
            ),
        ),
        "d = logp_ref - logp; exp(d) - 1 - d.",
    ),
    Exercise(
        "build_3.average",
        _average,
        lambda: [(drawn(2, 5, seed=s), _mask(), how, 8) for s, how in enumerate(("grpo", "dapo", "dr_grpo"))],
        (
            Mistake(
                lambda losses, mask, how, length: _average(losses, mask, "dapo", length),
                "All three names give DAPO's average: `how` says which one is asked for.",
            ),
            Mistake(
                lambda losses, mask, how, length: _average(losses, torch.ones_like(mask), how, length),
                "The mask is not used: padding counts too.",
            ),
        ),
        "grpo: row means, then their mean; dapo: sum over count; dr_grpo: sum over N · length.",
    ),
]
