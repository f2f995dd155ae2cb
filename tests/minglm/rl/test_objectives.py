"""Objectives of RL against float64 formulas written out token by token, and the identities that fresh data must
give."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.rl import objectives as O

NAMES = list(O.OBJECTIVES)


def batch(seed: int, N: int = 4, T: int = 7, gap: float = 0.5, dtype=torch.float64):
    """Random log-probs of three policies `gap` apart, advantages of both signs, a ragged mask, stale prefixes."""
    g = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(N, T, generator=g, dtype=torch.float64) * 3 - 0.05
    old = behaviour + gap * torch.randn(N, T, generator=g, dtype=torch.float64)
    new = old + gap * torch.randn(N, T, generator=g, dtype=torch.float64)
    advantages = torch.randn(N, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (N,), generator=g)
    mask = torch.arange(T) < lengths[:, None]
    stale = torch.arange(T) < torch.randint(0, T + 1, (N,), generator=g)[:, None]
    return new.to(dtype), old.to(dtype), behaviour.to(dtype), advantages.to(dtype), mask, stale


def reference(name, new, old, mu, A, mask, stale, clip) -> float:
    """The table of minglm/rl/objectives.py, one token at a time in Python's own floats."""

    def clipped(r, a):
        return min(r * a, max(1 - clip.low, min(1 + clip.high, r)) * a)

    rows = []
    for n in range(new.shape[0]):
        terms = []
        for t in range(new.shape[1]):
            if not mask[n, t]:
                continue
            p, o, m, a = (float(x) for x in (new[n, t], old[n, t], mu[n, t], A[n]))
            r, rho, direct = math.exp(p - o), math.exp(o - m), math.exp(p - m)
            if name in ("grpo", "naive"):
                value = clipped(r, a)
            elif name == "bypass":
                value = clipped(direct, a)
            elif name == "decoupled_ppo":
                value = rho * clipped(r, a)
            elif name == "tis":
                value = min(max(rho, clip.tis_low), clip.tis_high) * clipped(r, a)
            elif name == "icepop":
                value = (rho if 1 / clip.beta <= rho <= clip.beta else 0.0) * clipped(r, a)
            elif name == "double_sided_mask":
                value = (direct if 1 - clip.mask_low < direct < 1 + clip.mask_high else 0.0) * a * p
            elif name == "cross_stage":
                value = clipped(direct if stale[n, t] else r, a)
            terms.append(-value)
        rows.append(terms)
    if clip.average == "token":
        flat = [v for row in rows for v in row]
        return sum(flat) / len(flat)
    return sum(sum(row) / len(row) for row in rows if row) / sum(bool(row) for row in rows)


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), gap=st.sampled_from([0.01, 0.2, 1.0]))
def test_value_is_the_formula_written_out(name, average, seed, gap):
    new, old, mu, A, mask, stale = batch(seed, gap=gap)
    clip = O.Clip(low=0.15, high=0.4, tis_low=0.5, tis_high=1.8, beta=1.7, mask_low=0.3, mask_high=0.5, average=average)
    loss, stats = O.OBJECTIVES[name](new, old, mu, A, mask, clip=clip, stale=stale)
    assert float(loss) == pytest.approx(reference(name, new, old, mu, A, mask, stale, clip), rel=1e-12, abs=1e-12)
    assert all(isinstance(v, float) and math.isfinite(v) for v in stats.values())
    in_float32, _ = O.OBJECTIVES[name](*(t.float() for t in (new, old, mu, A)), mask, clip=clip, stale=stale)
    assert in_float32.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_fresh_data_gives_ratio_one_zero_kl_and_the_gradient_of_reinforce(name):
    new, _, _, A, mask, stale = batch(3)
    new.requires_grad_()
    loss, stats = O.OBJECTIVES[name](new, new.detach(), new.detach(), A, mask, stale=stale)
    loss.backward()
    assert torch.allclose(new.grad, torch.where(mask, -A[:, None] / mask.sum(), 0.0), atol=1e-15)
    assert stats["ratio_mean"] == stats["ratio_max"] == stats["weight_mean"] == 1
    assert (
        stats["ppo_kl"]
        == stats["mismatch_kl"]
        == stats["mismatch_max"]
        == stats["clip_frac"]
        == stats["mask_frac"]
        == 0
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_derivative_of_the_loss(name):
    new, old, mu, A, mask, stale = batch(5)
    if name == "double_sided_mask":  # its weight is held fixed: the derivative is that of the loss at the fixed weight
        fixed = torch.exp(new - mu)
        fixed = torch.where((fixed > 0.8) & (fixed < 1.28), fixed, 0.0)
        new.requires_grad_()
        O.double_sided_mask(new, old, mu, A, mask)[0].backward()
        assert torch.allclose(new.grad, torch.where(mask, -fixed * A[:, None] / mask.sum(), 0.0).detach())
        assert bool(new.grad.any())
        return
    # away from the corners of min and clip, where a difference quotient means nothing
    torch.autograd.gradcheck(
        lambda x: O.OBJECTIVES[name](x, old, mu, A, mask, stale=stale)[0], (new.requires_grad_(),), eps=1e-7
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows_into_the_old_policies_and_none_out_of_the_mask(name):
    new, old, mu, A, mask, stale = batch(8)
    mask[0] = False
    tensors = [t.requires_grad_() for t in (new, old, mu)]
    poisoned = [
        torch.where(mask, t, torch.tensor(v, dtype=t.dtype))
        for t, v in zip(tensors, (math.nan, -math.inf, math.nan), strict=True)
    ]
    loss, stats = O.OBJECTIVES[name](*poisoned, A, mask, stale=stale)
    loss.backward()
    assert math.isfinite(float(loss.detach())) and all(map(math.isfinite, stats.values()))
    assert old.grad is None or not bool(old.grad.any())
    assert mu.grad is None or not bool(mu.grad.any())
    assert not bool(new.grad[~mask].any()) and bool(torch.isfinite(new.grad).all())


def test_one_token_moves_the_right_way():
    for name in NAMES:
        for sign in (1.0, -1.0):
            p = torch.full((1, 1), -1.0, requires_grad=True)
            O.OBJECTIVES[name](p, p.detach(), p.detach(), torch.tensor([sign]), torch.ones(1, 1))[0].backward()
            assert float(p.grad) * sign < 0, (
                f"{name}: a step down the gradient must raise a token with a positive advantage"
            )


def far(log_ratio_update: float, log_ratio_stale: float, advantage: float, name: str, **clip) -> float:
    """Gradient of one token that is that far from π_old, whose π_old is that far from μ."""
    mu = torch.full((1, 1), -2.0, dtype=torch.float64)
    old = mu + log_ratio_stale
    new = (old + log_ratio_update).requires_grad_()
    O.OBJECTIVES[name](
        new, old, mu, torch.tensor([advantage]), torch.ones(1, 1), clip=O.Clip(**clip), stale=torch.ones(1, 1)
    )[0].backward()
    return float(new.grad)


def test_each_correction_does_what_sets_it_apart():
    s = math.log(3.0)  # π_old/μ = 3: far from where the data came from
    assert far(0, s, 1, "naive") == pytest.approx(-1)  # blind to it
    assert far(0, s, 1, "decoupled_ppo") == pytest.approx(-3)
    assert far(0, s, 1, "tis") == pytest.approx(-2)  # truncated at 2
    assert far(0, s, 1, "icepop") == 0  # masked
    assert far(0, s, 1, "bypass") == far(0, s, 1, "cross_stage") == 0  # clipped: already too likely
    assert far(0, s, -1, "bypass") == pytest.approx(3)  # PPO's clip is one-sided for each sign
    assert far(0, s, -1, "double_sided_mask") == 0  # the double-sided mask is not
    assert far(0, -s, 1, "double_sided_mask") == 0
    assert far(0, math.log(1.2), 1, "double_sided_mask") == pytest.approx(-1.2)
    assert far(math.log(1.5), 0, 1, "grpo") == 0 and far(math.log(1.5), 0, -1, "grpo") == pytest.approx(1.5)
    assert far(math.log(1.25), 0, 1, "grpo") == pytest.approx(-1.25), "the upper clip is 0.28, not 0.2"


def test_importance_weighting_is_unbiased_and_taking_stale_data_as_fresh_is_not():
    """Expected gradient over all tokens of a 5-way policy, exact: decoupled weights recover the on-policy gradient."""
    g = torch.Generator().manual_seed(0)
    logits_mu, logits_old = (
        torch.randn(5, generator=g, dtype=torch.float64),
        torch.randn(5, generator=g, dtype=torch.float64),
    )
    reward = torch.tensor([1.0, 0, 0, 0.5, -1], dtype=torch.float64)

    def expected(name: str, sampling: torch.Tensor) -> torch.Tensor:
        logits = logits_old.clone().requires_grad_()
        logp, old, mu = logits.log_softmax(-1), logits_old.log_softmax(-1), sampling.log_softmax(-1)
        total = sum(
            mu[k].exp()
            * O.OBJECTIVES[name](
                logp[k].view(1, 1), old[k].view(1, 1), mu[k].view(1, 1), reward[k : k + 1], torch.ones(1, 1)
            )[0]
            for k in range(5)
        )
        return torch.autograd.grad(total, logits)[0]

    on_policy = expected("grpo", logits_old)
    assert torch.allclose(expected("decoupled_ppo", logits_mu), on_policy, atol=1e-12)
    assert not torch.allclose(expected("naive", logits_mu), on_policy, atol=0.02)
    error = {name: float((expected(name, logits_mu) - on_policy).norm()) for name in ("naive", "tis", "icepop")}
    assert error["tis"] < error["naive"], "truncation keeps some of the bias, not all of it"


def test_double_sided_mask_as_one_reading_of_the_report():
    new, old, mu, A, mask, _ = batch(11, gap=0.1)
    _loss, stats = O.double_sided_mask(new, old, mu, A, mask)
    ratio = (new - mu).exp()
    outside = ((ratio <= 0.8) | (ratio >= 1.28)) & mask
    assert stats["mask_frac"] == pytest.approx(float(outside.sum() / mask.sum()))


# ---------------------------------------------------------------------- advantages


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000))
def test_advantages_are_centred_and_scaled(G, n, seed):
    rewards = torch.randint(0, 3, (G, n), generator=torch.Generator().manual_seed(seed)).double()
    A = O.group_advantages(rewards)
    assert torch.allclose(A.sum(1), torch.zeros(G, dtype=torch.float64), atol=1e-9)
    for row, a in zip(rewards.tolist(), A, strict=True):
        mean = sum(row) / n
        spread = math.sqrt(sum((r - mean) ** 2 for r in row) / n)
        want = [0.0] * n if spread == 0 else [(r - mean) / spread for r in row]
        assert a.tolist() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-8, 1e30])
def test_a_group_without_variance_is_exactly_zero(value):
    for dtype in (torch.float32, torch.float64):
        A = O.group_advantages(torch.full((2, 7), value, dtype=dtype))
        assert bool((A == 0).all()), "rounding of the mean must not be blown up by dividing by itself"
    assert O.group_advantages(torch.tensor([[1.0, 0.0]]), normalise=False).tolist() == [[0.5, -0.5]]


# ---------------------------------------------------------------------- bad input


def test_bad_input_is_one_line_with_value_rule_and_remedy():
    new, old, mu, A, mask, _ = batch(1)
    cases = [
        (lambda: O.grpo(new[0], old, mu, A, mask), "logp of shape"),
        (lambda: O.grpo(new, old[:2], mu, A, mask), "logp_old of shape"),
        (lambda: O.grpo(new, old, mu, A[:3], mask), "advantages of shape"),
        (lambda: O.group_advantages(torch.tensor([1.0])), "rewards of shape"),
        (lambda: O.group_advantages(torch.tensor([[1.0, math.nan]])), "group 0, sample 1"),
        (lambda: O.Clip(low=1.5), "low=1.5"),
        (lambda: O.Clip(beta=0.5), "beta=0.5"),
        (lambda: O.Clip(tis_low=3), "tis_high=2.0"),
        (lambda: O.Clip(average="tokens"), "did you mean 'token'"),
        (lambda: O.objective("icepopp"), "did you mean 'icepop'"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words.replace("(", r"\(")) as err:
            call()
        assert "\n" not in str(err.value)


def test_nothing_counted_is_a_loss_of_zero_that_can_be_differentiated():
    new, old, mu, A, mask, _ = batch(2)
    new.requires_grad_()
    for name in NAMES:
        loss, stats = O.OBJECTIVES[name](new, old, mu, A, torch.zeros_like(mask))
        loss.backward()
        assert float(loss) == 0 and stats["tokens"] == 0 and not bool(new.grad.any())


# ---------------------------------------------------------------------- averages and figures by hand


@pytest.mark.parametrize("name", NAMES)
def test_sequences_that_count_nothing_are_no_part_of_the_average(name):
    """Two tokens in the first sequence, none in the second, one in the third: fresh data, so that each is -A·1, or
    -A·log π for the double-sided mask."""
    logp = torch.tensor([[-1.0, -2.0], [-9.0, -9.0], [-0.5, -9.0]], dtype=torch.float64)
    A = torch.tensor([3.0, 100.0, -5.0], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [0, 0], [1, 0]])
    values = [[3.0, 3.0], [-5.0]] if name != "double_sided_mask" else [[-3.0, -6.0], [2.5]]
    by_token = -sum(map(sum, values)) / 3
    by_sequence = -sum(sum(v) / len(v) for v in values) / 2
    for average, want, count in (("token", by_token, 3), ("sequence", by_sequence, 2)):
        loss, _ = O.OBJECTIVES[name](logp, logp, logp, A, mask, clip=O.Clip(average=average))
        assert float(loss) == pytest.approx(want, rel=1e-12)
        assert O.counted(mask.bool(), average) == count


def test_figures_of_the_log_by_hand():
    """Ratios of the update 1.5, 0.5 and 1; of the data 0.1, 4 and 1. A counted-out token is far from all of them."""
    mu = torch.tensor([[-2.0, -2.0, -2.0, 5.0]], dtype=torch.float64)
    old = mu + torch.tensor([[0.1, 4.0, 1.0, 1e6]], dtype=torch.float64).log()
    new = old + torch.tensor([[1.5, 0.5, 1.0, 1e6]], dtype=torch.float64).log()
    mask, stale = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 0, 0, 1]])
    A = torch.tensor([[1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    clip = O.Clip(low=0.2, high=0.28, tis_low=0.6, tis_high=2.0)
    _, stats = O.tis(new, old, mu, A, mask, clip=clip, stale=stale)
    assert stats == pytest.approx(
        dict(
            tokens=3,
            ratio_mean=1.0,
            ratio_max=1.5,
            clip_frac=1 / 3,  # 1.5 with a positive advantage; 0.5 is clipped for a negative one alone
            weight_mean=(0.6 + 2.0 + 1.0) / 3,
            mask_frac=2 / 3,
            ppo_kl=-(math.log(1.5) + math.log(0.5)) / 3,
            mismatch_kl=((0.1 - 1 - math.log(0.1)) + (4 - 1 - math.log(4))) / 3,
            mismatch_max=math.log(10),
            stale_share=1 / 3,
        )
    )
    for ratio, sign, off in ((1.5, 1, 1), (1.5, -1, 0), (0.5, 1, 0), (0.5, -1, 1), (1.0, 1, 0), (1.0, -1, 0)):
        one = torch.tensor([[math.log(ratio)]])
        figures = O.grpo(one, one * 0, one * 0, torch.tensor([float(sign)]), torch.ones(1, 1), clip=clip)[1]
        assert figures["clip_frac"] == off, (ratio, sign)
    _, stats = O.icepop(new, old, mu, A, mask, clip=O.Clip(beta=2.5))
    assert stats["weight_mean"] == pytest.approx(1 / 3) and stats["mask_frac"] == pytest.approx(2 / 3)
    _, stats = O.grpo(new, old, mu, A, mask, clip=clip)  # no weights, nothing dropped, no age known
    assert (stats["weight_mean"], stats["mask_frac"], stats["stale_share"]) == (1.0, 0.0, 0.0)


def test_mismatch_kl_estimates_kl_of_behaviour_from_the_trainer():
    """Expected over every token of a 5-way μ it is Σ μ·log(μ/π_old) exactly, and not the other direction."""
    g = torch.Generator().manual_seed(4)
    mu, old = (torch.randn(5, generator=g, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    one = torch.ones(1, 1)
    expected = sum(
        float(mu[k].exp()) * O.grpo(*(t[k].view(1, 1) for t in (old, old, mu)), one[0], one)[1]["mismatch_kl"]
        for k in range(5)
    )
    assert expected == pytest.approx(float((mu.exp() * (mu - old)).sum()), rel=1e-9)
    assert abs(float((old.exp() * (old - mu)).sum()) - expected) > 0.01, "negative control: the directions differ"
