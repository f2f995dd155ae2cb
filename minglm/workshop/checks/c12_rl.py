"""Checks of 12: a verifier, advantages within a group, and the loss that makes a good answer likelier."""
import math
import statistics

from minglm.workshop.checking import Exercise, Mistake, NotYet
from minglm.workshop.checks import drawn


def _reward(text, answer):
    marks = [i for i, ch in enumerate(text) if ch == "#"]
    return 1.0 if len(marks) == 1 and text[marks[0] + 1:].strip() == answer else 0.0


def _advantages(rewards):
    import torch

    out = []
    for group in rewards.tolist():
        spread = statistics.pstdev(group)
        out.append([(r - statistics.fmean(group)) / spread if spread > 1e-9 else 0.0 for r in group])
    return torch.tensor(out)


def _loss(logp, advantage, mask):
    import torch

    total, count = 0.0, 0
    for row, a, kept in zip(logp.tolist(), advantage.tolist(), mask.tolist()):
        for value, keep in zip(row, kept):
            if keep:
                total, count = total - a * value, count + 1
    return torch.tensor(total / count)


def _groups():
    import torch

    return [(torch.tensor([[1., 0, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]),),
            (torch.tensor([[1., 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]),), (drawn(3, 5).abs(),)]


def _batches():
    import torch

    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])
    logp = -drawn(3, 4, seed=5).abs()
    return [(logp, torch.tensor([1.0, -0.5, 2.0]), mask),
            (logp.masked_fill(~mask, -math.inf), torch.tensor([-1.0, 1.0, 0.5]), mask)]


def _per_answer(logp, a, mask):
    import torch

    return -(torch.where(mask, a[:, None] * logp, 0.0).sum(1) / mask.sum(1)).mean()


def _by_multiplying(logp, a, mask):
    return -(a[:, None] * logp * mask).sum() / mask.sum()


def _has_a_gradient(answer):
    """The loss must be differentiable, and padding of -inf must not spoil the gradient."""
    import torch

    logp, advantage, mask = _batches()[1]
    logp = torch.where(mask, logp, 0.0).requires_grad_()
    loss = answer(logp, advantage, mask)
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise NotYet("The number is right, but it has no gradient: give the tensor back, without float(...) or .item(), or nothing can be learnt from it.")


def _differ(mask_of):
    """A wrong answer made by a function of (logp, advantage, mask) that leaves out padding as it should."""
    import torch

    return lambda logp, a, mask: mask_of(torch.where(mask, logp, 0.0), a, mask)


EXERCISES = [
    Exercise(
        "12.reward", _reward, lambda: [("a7b11c20#20", "20"), ("a7b11c20#21", "20"), ("a20", "20"), ("#1#20", "20"), ("#20#1", "20"), ("#20# ", "20"),
                                       ("a7# 20 ", "20"), ("#200", "20"), ("#2", "20"), ("20#", "20"), ("", "3")],
        (Mistake(lambda t, a: float(a in t), "This pays for any text that mentions the answer somewhere, even in the scratchpad. Look only at what follows the `#`."),
         Mistake(lambda t, a: float("#" in t and t.split("#")[-1].strip() == a), "With two `#` the model may guess twice and is judged by the last one. Exactly one `#` is allowed."),
         Mistake(lambda t, a: float("#" in t and t.split("#")[1].strip() == a), "With two `#` the model may guess twice and is judged by the first one. Exactly one `#` is allowed."),
         Mistake(lambda t, a: float(t.count("#") == 1 and t.split("#")[1] == a), "A space before or after the result is no mistake: take spaces off with .strip()."),
         Mistake(lambda t, a: float(t.count("#") == 1 and t.split("#")[1].strip().startswith(a)), "A result that only begins like the right one, 200 for 20, is wrong: compare the whole of it.")),
        "1.0 only if there is one `#` and the text after it, stripped, equals the answer."),
    Exercise(
        "12.advantages", _advantages, _groups,
        (Mistake(lambda r: r - r.mean(1, keepdim=True), "Divide by the group's standard deviation as well, so that a hard problem, with one right answer of eight, counts as much as an easy one."),
         Mistake(lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0), "A group whose rewards are all equal has a deviation of 0, and 0/0 is NaN: its advantages are 0."),
         Mistake(lambda r: (r - r.mean()) / r.std(correction=0), "Mean and deviation are those of all problems together. Then an answer to an easy problem looks good whatever it says: compare within its own group (dim 1, keepdim=True)."),
         Mistake(lambda r: _advantages(r) * ((r.shape[1] - 1) / r.shape[1]) ** 0.5, "You divided by n − 1 in the deviation: say correction=0."),
         Mistake(lambda r: r * 1.0, "That is the reward itself. Without taking the mean off, every answer of a group that earned anything is made likelier.")),
        "(reward − group mean) / group deviation, and 0 where the deviation is 0."),
    Exercise(
        "12.policy_loss", _loss, _batches,
        (Mistake(lambda x, a, m: -_loss(x, a, m), "The sign is turned: minimising this would make good answers less likely."),
         Mistake(_per_answer, "You averaged each answer over its own tokens and then the answers: then a token of a long answer counts less. Divide once, by all tokens that count."),
         Mistake(_differ(lambda x, a, m: -(a[:, None] * x).mean()), "You divided by all places, padding included: divide by mask.sum()."),
         Mistake(_differ(lambda x, a, m: -(a[:, None] * x).sum()), "That is the sum; divide by the number of tokens that count, or long batches take larger steps."),
         Mistake(_by_multiplying, "Padding may hold −∞, and −∞ · 0 is NaN: choose with torch.where(mask, ..., 0.0) in place of multiplying by the mask."),
         Mistake(_differ(lambda x, a, m: -(a[:, None] * x.exp()).sum() / m.sum()), "That uses probabilities; the loss is made of log-probabilities, which `logp` already holds.")),
        "−(advantage[:, None] · logp) where the mask is True, summed, over mask.sum().", also=_has_a_gradient),
]
