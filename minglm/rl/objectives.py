"""Policy-gradient objectives: what to do with tokens that an older policy, or another engine, sampled.

Three policies meet in each token, and every objective is a choice of which ratio corrects what:

    μ      behaviour: the weights and the engine that sampled the token; stored while sampling
    π_old  the trainer's weights at the start of this update, recomputed by the trainer
    π      the weights being updated; only it has a gradient

    name              ratio in the clip   weight (no gradient)                  loss, per token
    grpo, naive       r = π/π_old         1                                     −min(r·A, clip(r)·A)
    bypass            r = π/μ             1                                     −min(r·A, clip(r)·A)
    decoupled_ppo     r = π/π_old         w = π_old/μ                           −w·min(r·A, clip(r)·A)
    tis               r = π/π_old         w = clamp(π_old/μ, low, high)         −w·min(r·A, clip(r)·A)
    icepop            r = π/π_old         w = π_old/μ inside [1/β, β], else 0   −w·min(r·A, clip(r)·A)
    double_sided_mask                     f = π/μ inside (1−ε_l, 1+ε_h), else 0 −f·A·log π
    cross_stage       r = π/q             q = μ where stale, π_old where fresh  −min(r·A, clip(r)·A)

clip(r) = clamp(r, 1−low, 1+high). With fresh data from the same engine μ = π_old and, before the first step, π = π_old:
every ratio is 1, every KL is 0 and every objective has the gradient of plain REINFORCE, −A·∇log π.

All functions are pure and take the same arguments, so that a run names one (`OBJECTIVES`).

Shapes: N sequences, T tokens of a response (padded), G groups, n samples of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minglm.errors import InputError, nearest

_LOG_LIMIT = 20.0  # log-ratios are cut here before exp: e^20 is far outside every clip, and e^90 is not a float32
Result = tuple[Tensor, dict[str, float]]


@dataclass(frozen=True)
class Clip:
    """Bounds of the ratios and how tokens are averaged.

    Raises:
        InputError: a bound that is out of order, in one line.
    """

    low: float = 0.2  # ratio of the update: 1 − low … 1 + high (DAPO's asymmetric clip; GLM-5 report §3.2)
    high: float = 0.28
    tis_low: float = 0.0  # TIS weight is clamped to these (slime --tis-clip-low 0, --tis-clip 2.0)
    tis_high: float = 2.0
    beta: float = 2.0  # IcePop keeps π_old/μ inside [1/β, β] (GLM-5 report §3.2: β = 2)
    mask_low: float = 0.2  # double-sided mask keeps π/μ inside (1 − low, 1 + high); GLM-5 does not give its values
    mask_high: float = 0.28
    average: str = (
        "token"  # "token": mean over all counted tokens; "sequence": mean over sequences of their token means
    )

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("mask_low", self.mask_low)):
            if not 0 <= value <= 1:
                raise InputError(
                    f"clip {name}={value!r}: must lie in 0 to 1, as the ratio's lower bound is 1 − {name}; the "
                    "default is 0.2"
                )
        for name, value in (("high", self.high), ("mask_high", self.mask_high), ("tis_low", self.tis_low)):
            if not value >= 0:
                raise InputError(f"clip {name}={value!r}: must be 0 or more; leave it out for the default")
        if not self.tis_high >= self.tis_low:
            raise InputError(
                f"clip tis_high={self.tis_high!r}: must not be below tis_low={self.tis_low}; the default is 2.0"
            )
        if not self.beta >= 1:
            raise InputError(
                f"clip beta={self.beta!r}: must be at least 1, as the weight is kept inside 1/beta to beta; the "
                "default is 2"
            )
        if self.average not in ("token", "sequence"):
            raise InputError(
                f"clip average={self.average!r}: not one of token, "
                f"sequence{nearest(self.average, ('token', 'sequence'))}"
            )


# ---------------------------------------------------------------------- advantages


def group_advantages(rewards: Tensor, normalise: bool = True) -> Tensor:
    """(G, n) rewards → (G, n) advantages: reward minus its group's mean, over the group's standard deviation.

    A group without variance (all right, all wrong, or n = 1) has advantage exactly 0: it teaches nothing and must not
    divide by nothing. `normalise=False` leaves the division out (Dr. GRPO, arXiv 2503.20783).

    Source: GRPO, DeepSeekMath, arXiv 2402.03300 §4.1. It does not say which deviation; the population's is used here,
    as it is defined for n = 1 too.

    Raises:
        InputError: not two dimensions, or a reward that is not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] == 0:
        raise InputError(
            f"rewards of shape {tuple(rewards.shape)}: must be (groups, samples of a group) with at least one sample; "
            "reshape them"
        )
    if not bool(torch.isfinite(rewards).all()):
        g, i = torch.nonzero(~torch.isfinite(rewards))[0].tolist()
        raise InputError(
            f"reward {float(rewards[g, i])} of group {g}, sample {i}: must be finite; drop that sample or mend the "
            "reward function"
        )
    rewards = rewards.float() if not rewards.is_floating_point() else rewards
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True, correction=0)
    flat = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # exact, where the deviation is only nearly 0
    scaled = centred / torch.where(flat, 1.0, spread) if normalise else centred
    return torch.where(flat, 0.0, scaled)


# ---------------------------------------------------------------------- objectives


def grpo(
    logp: Tensor,
    logp_old: Tensor,
    logp_behaviour: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Clip = Clip(),
    stale: Tensor | None = None,
) -> Result:
    """−mean min(r·A, clip(r)·A) with r = π/π_old: the clipped loss of PPO with group advantages. `logp_behaviour` is
    not used.

    Source: PPO, arXiv 1707.06347 eq. 7; GRPO, arXiv 2402.03300 eq. 3, without KL; asymmetric clip: DAPO,
    arXiv 2503.14476.

    Args, the same for all objectives:
        logp: (N, T) log π of each sampled token, with gradient. logp_old: (N, T) log π_old.
        logp_behaviour: (N, T) log μ.
        advantages: (N,), or (N, T) for one per token.
        mask: (N, T) bool or 0/1: the tokens that the policy wrote. Prompt, observations and padding are 0; what the
            other
            tensors hold there does not matter.
        clip: bounds and averaging.
        stale: (N, T) bool, tokens that an earlier weight version sampled; read by `cross_stage` alone.

    Returns:
        (loss, stats): a scalar that has no gradient but zero where nothing is counted; floats as in `_stats`.

    Raises:
        InputError: shapes that do not match.
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio = _ratio(b.logp, b.old)
    return _finish(b, _clipped(ratio, b.advantages, clip), clip, ratio)


def naive(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """Stale data taken as fresh: `grpo` whose π_old was recomputed with the trainer's weights, whoever sampled the
    token.

    The ratio starts at 1 for every token, so nothing corrects for staleness. The same formula as `grpo`, under the name
    that says what is done to the data. Source: slime's default (no --use-tis, no --use-rollout-logprobs).
    """
    return grpo(logp, logp_old, logp_behaviour, advantages, mask, clip=clip, stale=stale)


def bypass(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean min(r·A, clip(r)·A) with r = π/μ: one ratio for update and staleness; no forward for π_old is needed.

    Source: slime --use-rollout-logprobs; verl's "bypass" mode (docs/algo/rollout_corr_math.md).
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio = _ratio(b.logp, b.behaviour)
    return _finish(b, _clipped(ratio, b.advantages, clip), clip, ratio)


def decoupled_ppo(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean w·min(r·A, clip(r)·A) with w = π_old/μ and r = π/π_old: the clip holds the step near π_old, w corrects for
    μ.

    Source: AReaL, arXiv 2505.24298 (decoupled objective, after Hilton et al., arXiv 2110.00641).
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio, weight = _ratio(b.logp, b.old), _ratio(b.old, b.behaviour)
    return _finish(b, weight * _clipped(ratio, b.advantages, clip), clip, ratio, weight)


def tis(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean w·min(r·A, clip(r)·A) with w = clamp(π_old/μ, tis_low, tis_high): truncated importance sampling.

    Truncation bounds the variance and pays with bias. Source: slime `vanilla_tis_function` (--use-tis); GLM-5.2's
    public recipe clamps to [0.5, 2].
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio, raw = _ratio(b.logp, b.old), _ratio(b.old, b.behaviour)
    weight = raw.clamp(clip.tis_low, clip.tis_high)
    return _finish(b, weight * _clipped(ratio, b.advantages, clip), clip, ratio, weight, dropped=weight != raw)


def icepop(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean w·min(r·A, clip(r)·A) with w = π_old/μ where 1/β ≤ π_old/μ ≤ β, else 0: a token that has moved too far is
    left out.

    Source: GLM-5 report, arXiv 2602.15763 §3.2 (β = 2, ε 0.2/0.28, no KL); slime `icepop_function`.
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio, raw = _ratio(b.logp, b.old), _ratio(b.old, b.behaviour)
    kept = (raw >= 1 / clip.beta) & (raw <= clip.beta)
    weight = torch.where(kept, raw, 0.0)
    return _finish(b, weight * _clipped(ratio, b.advantages, clip), clip, ratio, weight, dropped=~kept)


def double_sided_mask(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean f(r)·A·log π with r = π/μ and f(r) = r where 1−mask_low < r < 1+mask_high, else 0; `logp_old` is not used.

    Both sides are cut for either sign of A, unlike PPO, and no third policy is kept. The report's equation shows no
    stop-gradient; f is held fixed here, so that the gradient is f·A·∇log π (with f differentiated the loss would have a
    second term, f′·A·log π, that pulls on ratios whatever the reward says).
    Source: GLM-5 report, arXiv 2602.15763 §4.1, "direct double-sided importance sampling".
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    ratio = _ratio(b.logp.detach(), b.behaviour)
    kept = (ratio > 1 - clip.mask_low) & (ratio < 1 + clip.mask_high)
    weight = torch.where(kept, ratio, 0.0)
    return _finish(b, -weight * b.advantages * b.logp, clip, ratio, weight, dropped=~kept)


def cross_stage(logp, logp_old, logp_behaviour, advantages, mask, *, clip: Clip = Clip(), stale=None) -> Result:
    """−mean min(r·A, clip(r)·A) with r = π/q: q = μ on tokens of earlier stages, π_old on those of the present one.

    For trajectories that an abort cut into segments: each token is compared with the policy that wrote *it*, from the
    log-probs kept with its segment; fresh tokens use the trainer's own π_old, which has no engine mismatch. Without
    `stale` all tokens count as earlier ones, which is `bypass`.
    Source: cross-stage importance sampling, CoPRIS, arXiv 2511.05589.
    """
    b = _batch(logp, logp_old, logp_behaviour, advantages, mask, stale)
    reference = b.behaviour if b.stale is None else torch.where(b.stale, b.behaviour, b.old)
    ratio = _ratio(b.logp, reference)
    return _finish(b, _clipped(ratio, b.advantages, clip), clip, ratio)


OBJECTIVES: dict[str, Callable[..., Result]] = {
    f.__name__: f for f in (grpo, naive, bypass, decoupled_ppo, tis, icepop, double_sided_mask, cross_stage)
}


def objective(name: str) -> Callable[..., Result]:
    """The objective of that name.

    Raises:
        InputError: no such objective.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r}: not one of {', '.join(OBJECTIVES)}{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


# ---------------------------------------------------------------------- shared parts


@dataclass
class _Batch:
    logp: Tensor
    old: Tensor
    behaviour: Tensor
    advantages: Tensor
    mask: Tensor
    stale: Tensor | None


def _batch(
    logp: Tensor, logp_old: Tensor, logp_behaviour: Tensor, advantages: Tensor, mask: Tensor, stale: Tensor | None
) -> _Batch:
    """Check shapes, silence what the mask leaves out (0 there, so that no inf or NaN of padding reaches a gradient)."""
    if logp.ndim != 2:
        raise InputError(f"logp of shape {tuple(logp.shape)}: must be (sequences, tokens); reshape it")
    for name, t in (("logp_old", logp_old), ("logp_behaviour", logp_behaviour), ("mask", mask), ("stale", stale)):
        if t is not None and t.shape != logp.shape:
            raise InputError(
                f"{name} of shape {tuple(t.shape)}: must match logp {tuple(logp.shape)}; give one per token"
            )
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise InputError(
            f"advantages of shape {tuple(advantages.shape)}: must be {tuple(logp.shape[:1])} or {tuple(logp.shape)}; "
            "give one per sequence or one per token"
        )
    mask = mask.bool()
    advantages = (advantages if advantages.ndim == 2 else advantages[:, None].expand_as(logp)).to(logp.dtype)

    def clean(t: Tensor) -> Tensor:
        return torch.where(mask, t, torch.zeros((), dtype=t.dtype, device=t.device))

    return _Batch(
        clean(logp),
        clean(logp_old).detach(),
        clean(logp_behaviour).detach(),
        clean(advantages).detach(),
        mask,
        None if stale is None else stale.bool(),
    )


def _ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a - log_b).clamp(-_LOG_LIMIT, _LOG_LIMIT).exp()


def _clipped(ratio: Tensor, advantages: Tensor, clip: Clip) -> Tensor:
    """(N, T) −min(r·A, clip(r)·A)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip.low, 1 + clip.high) * advantages)


def counted(mask: Tensor, average: str) -> float:
    """What the loss of these rows (N, T) is divided by: tokens that count, or sequences with one.

    A step that is cut into micro-batches gives each the weight `counted` of its own by that of all: the sum is then the
    loss of the whole step, whatever the cut.
    """
    return float((mask if average == "token" else mask.any(1)).sum())


def _average(values: Tensor, mask: Tensor, how: str) -> Tensor:
    values = torch.where(mask, values, 0.0)
    if how == "token":
        return values.sum() / mask.sum().clamp(min=1)
    counts = mask.sum(1)
    return (values.sum(1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def _finish(
    b: _Batch, per_token: Tensor, clip: Clip, ratio: Tensor, weight: Tensor | None = None, dropped: Tensor | None = None
) -> Result:
    return _average(per_token, b.mask, clip.average), _stats(b, clip, ratio.detach(), weight, dropped)


@torch.no_grad()
def _stats(b: _Batch, clip: Clip, ratio: Tensor, weight: Tensor | None, dropped: Tensor | None) -> dict[str, float]:
    """What a training log wants to know, over counted tokens.

    tokens; ratio_mean, ratio_max; clip_frac (the clip took the gradient away); weight_mean (1 where none is used);
    mask_frac (weight truncated or zeroed); ppo_kl (mean of log π_old − log π, 0 before the first step);
    mismatch_kl (E_μ of the k3 estimator of KL(μ‖π_old), ≥ 0, 0 for fresh data of the same engine);
    mismatch_max (largest |log π_old − log μ|); stale_share.
    """
    n = int(b.mask.sum())
    if n == 0:
        return dict(
            tokens=0.0,
            ratio_mean=1.0,
            ratio_max=1.0,
            clip_frac=0.0,
            weight_mean=1.0,
            mask_frac=0.0,
            ppo_kl=0.0,
            mismatch_kl=0.0,
            mismatch_max=0.0,
            stale_share=0.0,
        )
    r, A = ratio[b.mask], b.advantages[b.mask]
    off = ((A > 0) & (r > 1 + clip.high)) | ((A < 0) & (r < 1 - clip.low))
    gap = (b.old - b.behaviour)[b.mask]
    k3 = gap.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp() - 1 - gap

    def mean(t: Tensor | None, default: float) -> float:
        return default if t is None else float(t[b.mask].double().mean())

    return dict(
        tokens=float(n),
        ratio_mean=float(r.double().mean()),
        ratio_max=float(r.max()),
        clip_frac=float(off.double().mean()),
        weight_mean=mean(weight, 1.0),
        mask_frac=mean(dropped, 0.0),
        ppo_kl=float((b.old - b.logp)[b.mask].double().mean()),
        mismatch_kl=float(k3.double().mean()),
        mismatch_max=float(gap.abs().max()),
        stale_share=mean(b.stale, 0.0),
    )
