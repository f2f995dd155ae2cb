"""Checks of 12: a verifier, advantages within a group, and the loss that makes a good answer likelier."""

import math
import statistics

from minglm.course.workshop.checking import Exercise, Mistake, NotYet, attempt, same
from minglm.course.workshop.checks import drawn


def _reward(text, answer):
    marks = [i for i, ch in enumerate(text) if ch == "#"]
    return 1.0 if len(marks) == 1 and text[marks[0] + 1 :].strip() == answer else 0.0


def _as_number(text, answer):
    try:
        return float(text.count("#") == 1 and int(text.split("#")[1]) == int(answer))
    except ValueError:
        return 0.0


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
    for row, a, kept in zip(logp.tolist(), advantage.tolist(), mask.tolist(), strict=False):
        for value, keep in zip(row, kept, strict=False):
            if keep:
                total, count = total - a * value, count + 1
    return torch.tensor(total / count)


def _flat_at_zero(rewards):
    import torch

    spread = rewards.std(1, keepdim=True, correction=0)
    return torch.where(spread == 0, 0.0, (rewards - rewards.mean(1, keepdim=True)) / spread)


def _with_eps(eps):
    return lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + eps)


SAMPLE_DEVIATION = (
    "Your deviation divides by n − 1, as torch does by default and TRL with it; here it divides by n: say correction=0."
)
ROUNDING = (
    "Rounding: equal rewards of 0.9 may have a deviation of 6e-8, not 0, and dividing by that makes large advantages "
    "out of nothing. "
    "Add a small number such as 1e-6 to the deviation, or choose 0 with torch.where where it is below 1e-6."
)


def _equal_rewards_teach_nothing(answer):
    """Many sizes and values: which of them are not quite their own mean depends on how a machine adds."""
    import torch

    for value in (0.9, 0.7, 0.3, 0.1):
        for n in range(2, 33):
            if float(torch.as_tensor(answer(torch.full((1, n), value))).abs().max()) > 0.3:
                raise NotYet(ROUNDING)


def _groups():
    import torch

    return [
        (torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]),),
        (torch.tensor([[1.0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]),),
        (drawn(3, 5).abs(),),
    ]


def _batches():
    import torch

    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])
    logp = -drawn(3, 4, seed=5).abs()
    return [
        (logp, torch.tensor([1.0, -0.5, 2.0]), mask),  # tensors of its own for each case: an answer may write into them
        (logp.masked_fill(~mask, -math.inf), torch.tensor([-1.0, 1.0, 0.5]), mask.clone()),
        (logp.clone(), torch.tensor([0.0, 1.0, -2.0]), mask.clone()),
    ]


def _per_answer(logp, a, mask):
    import torch

    return -(torch.where(mask, a[:, None] * logp, 0.0).sum(1) / mask.sum(1)).mean()


def _by_multiplying(logp, a, mask):
    return -(a[:, None] * logp * mask).sum() / mask.sum()


def _in_one_pass(x, a, m):
    import torch

    return -torch.where(m, a[:, None] * x, 0.0).sum() / m.sum()


def _in_place(x, a, m):
    return _in_one_pass(x.masked_fill_(~m, 0.0), a, m)


def _wrapped_again(x, a, m):
    import torch

    return torch.tensor(_in_one_pass(x, a, m).item(), requires_grad=True)


NO_GRADIENT = (
    "The number is right, but it has no gradient: give the tensor back, without float(...) or .item(), or nothing can "
    "be learnt from it."
)
WRITES = (
    "The number is right, but your function changed `logp`, which its caller still needs. What ends in `_` and "
    "`logp[~mask] = 0` write into the tensor itself: use logp.masked_fill(~mask, 0), without the `_`."
)
CUT_OFF = (
    "The number is right, but nothing leads from it back to `logp`: loss.backward() leaves logp.grad empty, so nothing "
    "can be learnt. "
    "A new tensor with requires_grad=True knows nothing of `logp`: give back the tensor that you computed from it."
)


def _has_a_gradient(answer):
    """The gradient must reach `logp` and be the loss's own; padding of -inf must not spoil it."""
    import torch

    given, advantage, mask = _batches()[1]
    leaf = given.clone().requires_grad_()
    logp = leaf.clone()  # a leaf would stop what writes in place with words of autograd's own
    others = advantage.clone(), mask.clone()
    loss = answer(logp, *others)
    if not same(logp.detach(), given, 0.0, 0.0):
        raise NotYet(WRITES)
    if not same(others, (advantage, mask), 0.0, 0.0):
        return  # judge says which one was changed
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise NotYet(NO_GRADIENT)
    attempt(loss.backward)
    if leaf.grad is None:
        raise NotYet(CUT_OFF)
    if not same(leaf.grad, torch.where(mask, -advantage[:, None] / mask.sum(), 0.0)):
        raise NotYet(
            "The number is right, its gradient is not: at each token where `mask` is True it is −advantage / "
            "mask.sum(), elsewhere 0. "
            "Compute with `logp` itself, without .detach() or .data."
        )


def _differ(mask_of):
    """A wrong answer made by a function of (logp, advantage, mask) that leaves out padding as it should."""
    import torch

    return lambda logp, a, mask: mask_of(torch.where(mask, logp, 0.0), a, mask)


EXERCISES = [
    Exercise(
        "12.reward",
        _reward,
        lambda: [
            ("a7b11c20#20", "20"),
            ("a7b11c20#21", "20"),
            ("a20", "20"),
            ("#1#20", "20"),
            ("#20#1", "20"),
            ("#20# ", "20"),
            ("a7# 20 ", "20"),
            ("#200", "20"),
            ("#2", "20"),
            ("20#", "20"),
            ("", "3"),
            ("a7b11#120", "20"),
            ("#020", "20"),
            ("#2 0", "20"),
        ],
        (
            Mistake(
                lambda t, a: float(a in t),
                "This pays for any text that mentions the answer somewhere, even in the scratchpad. Look only at what "
                "follows the `#`.",
            ),
            Mistake(
                lambda t, a: float("#" in t and t.split("#")[-1].strip() == a),
                "With two `#` the model may guess twice and is judged by the last one. Exactly one `#` is allowed.",
            ),
            Mistake(
                lambda t, a: float("#" in t and t.split("#")[1].strip() == a),
                "With two `#` the model may guess twice and is judged by the first one. Exactly one `#` is allowed.",
            ),
            Mistake(
                lambda t, a: float(t.count("#") == 1 and t.split("#")[1] == a),
                "A space before or after the result is no mistake: take spaces off with .strip().",
            ),
            Mistake(
                lambda t, a: float(t.count("#") == 1 and t.split("#")[1].strip().startswith(a)),
                "A result that only begins like the right one, 200 for 20, is wrong: compare the whole of it.",
            ),
            Mistake(
                lambda t, a: float(t.count("#") == 1 and t.strip().endswith(a)),
                "It only ends like the right one: 120 is not 20. Compare all that follows the `#`.",
            ),
            Mistake(
                _as_number,
                "You compared numbers, and 020 is the number 20. The text must be the same, character by character: a "
                "model that may write one result in many ways finds the ways that you did not think of.",
            ),
            Mistake(
                lambda t, a: _reward(t.replace(" ", ""), a),
                "You took out every space, so `#2 0` became `#20`. Take off only those before and after the result, "
                "with .strip().",
            ),
        ),
        "1.0 only if there is one `#` and the text after it, stripped, equals the answer.",
    ),
    Exercise(
        "12.advantages",
        _advantages,
        _groups,
        (
            Mistake(
                lambda r: r - r.mean(1, keepdim=True),
                "Divide by the group's standard deviation as well, so that a hard problem, with one right answer of "
                "eight, counts as much as an easy one.",
            ),
            Mistake(
                lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0),
                "A group whose rewards are all equal has a deviation of 0, and 0/0 is NaN: its advantages are 0.",
            ),
            Mistake(_flat_at_zero, ROUNDING),
            Mistake(_with_eps(1e-8), ROUNDING),
            Mistake(
                lambda r: (r - r.mean()) / r.std(correction=0),
                "Mean and deviation are those of all problems together. Then an answer to an easy problem looks good "
                "whatever it says: compare within its own group (dim 1, keepdim=True).",
            ),
            Mistake(
                lambda r: _advantages(r) * ((r.shape[1] - 1) / r.shape[1]) ** 0.5,
                SAMPLE_DEVIATION,
            ),
            Mistake(
                _with_eps(1e-4),
                "You add 1e-4 to the deviation, as TRL does. That makes each advantage a little smaller; here 1e-6 is "
                "the most that may be added.",
            ),
            *(
                Mistake(
                    lambda r, eps=eps: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + eps),
                    SAMPLE_DEVIATION,
                )
                for eps in (1e-8, 1e-6, 1e-4)
            ),
            Mistake(
                lambda r: (r - r.mean(1, keepdim=True)) * (r.shape[1] / (r.shape[1] - 1)),
                "That is the leave-one-out form (RLOO): the reward minus the mean of the others. Here the mean is "
                "that of the whole group, and the difference is divided by the group's deviation.",
            ),
            Mistake(
                lambda r: r * 1.0,
                "That is the reward itself. Without taking the mean off, every answer of a group that earned anything "
                "is made likelier.",
            ),
        ),
        "(reward − group mean) / group deviation, and 0 where the deviation is 0 or, by rounding, below 1e-6.",
        also=_equal_rewards_teach_nothing,
    ),
    Exercise(
        "12.policy_loss",
        _loss,
        _batches,
        (
            Mistake(
                lambda x, a, m: -_loss(x, a, m),
                "The sign is turned: minimising this would make good answers less likely.",
            ),
            Mistake(
                _per_answer,
                "You averaged each answer over its own tokens and then the answers. That is the average of GRPO's "
                "paper and no error, but a token of a long answer counts less in it. This exercise asks for DAPO's: "
                "divide once, by the number of all tokens where `mask` is True.",
            ),
            Mistake(
                _differ(lambda x, a, m: -(a[:, None] * x).mean()),
                "You divided by all places, padding included: divide by mask.sum().",
            ),
            Mistake(
                _differ(lambda x, a, m: -(a[:, None] * x).sum()),
                "That is the sum; divide by the number of tokens where `mask` is True, or long batches take larger "
                "steps.",
            ),
            Mistake(
                _by_multiplying,
                "Padding may hold −∞, and −∞ · 0 is NaN: choose with torch.where(mask, ..., 0.0) in place of "
                "multiplying by the mask.",
            ),
            Mistake(
                _differ(lambda x, a, m: -(a[:, None] * x.exp()).sum() / m.sum()),
                "That uses probabilities; the loss is made of log-probabilities, which `logp` already holds.",
            ),
            Mistake(
                _differ(lambda x, a, m: -(a[:, None] * x).sum() / (m & (a != 0)[:, None]).sum()),
                "You left out the tokens of answers with advantage 0. They add nothing to the sum, but they are "
                "counted: divide by mask.sum().",
            ),
            Mistake(lambda x, a, m: _in_one_pass(x, a, m).item(), NO_GRADIENT),
            Mistake(_wrapped_again, CUT_OFF),
            Mistake(_in_place, WRITES),
        ),
        "−(advantage[:, None] · logp) where the mask is True, summed, over mask.sum().",
        also=_has_a_gradient,
    ),
]
