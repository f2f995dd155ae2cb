"""Choosing the next token: temperature, top-p, and random numbers that depend on a seed and a token's index only.

Sampling is an exponential race: token v arrives at time E_v / p_v, with E_v a standard exponential number, and the
first to arrive is taken, which happens with probability p_v (the Gumbel-max trick, written without its logarithm). The
E of a token are a function of (seed, index), so a request draws the same alone, in a batch, and aborted and resumed. A
second distribution that races with the same E mostly agrees with the first: drafts are guessed that way
(`minglm.inference.speculative`).

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minglm.errors import InputError

GREEDY_BELOW = 1e-5  # as in vLLM: a colder temperature decides alike, and its quotients would leave fp32
_WORD = (1 << 64) - 1


def key_of(seed: int, index: int) -> int:
    """A well-mixed 63-bit number for token `index` of the request with this seed (SplitMix64's finaliser)."""
    z = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return (z ^ (z >> 31)) >> 1


def arrivals(keys: Sequence[tuple[int, int] | None], V: int) -> Tensor:
    """Standard exponential numbers (N, V), one row for each (seed, index); ones where the key is None (no race)."""
    rows, generator = torch.ones(len(keys), V), torch.Generator()
    for row, key in zip(rows, keys, strict=True):
        if key is not None:
            generator.manual_seed(key_of(*key))
            # A uniform number of exactly 0 becomes an infinite time: that token never arrives.
            row.uniform_(generator=generator).log_().neg_()
    return rows


def probabilities(logits: Tensor, temperature: Sequence[float], top_p: Sequence[float]) -> Tensor:
    """(N, V) → the distribution that is sampled from: softmax(logits / temperature) over the fewest likeliest tokens
    that hold `top_p` of the probability. A temperature below GREEDY_BELOW stands for 1 here:
    greedy decoding takes this distribution's mode."""
    temperature = _with_greedy(temperature)
    if any(t not in (0, 1) for t in temperature):
        logits = logits / torch.tensor([t or 1.0 for t in temperature], device=logits.device).unsqueeze(-1)
    probs = logits.softmax(-1)
    if all(p == 1 for p in top_p):
        return probs
    limit = torch.tensor(top_p, device=logits.device).unsqueeze(-1)
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    ahead = ranked.cumsum(-1) - ranked  # what the likelier ones hold; the first has none ahead
    # the likeliest stays, whatever fp32 makes of a top_p close to 0
    kept = ranked.masked_fill_((ahead >= limit) & (limit < 1) & (ahead > 0), 0.0)
    return torch.zeros_like(probs).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))


def choose(
    logits: Tensor, temperature: Sequence[float], top_p: Sequence[float], keys: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """(N, V) fp32 logits → tokens (N,) int64 and their log-probabilities (N,) under the distribution sampled from.

    Where the temperature is below GREEDY_BELOW the likeliest token is taken, and its log-probability is the model's
    own, at temperature 1.
    """
    temperature = _with_greedy(temperature)
    if not any(temperature):
        tokens = logits.argmax(-1)
        return tokens, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    probs = probabilities(logits, temperature, [p if t else 1.0 for t, p in zip(temperature, top_p, strict=True)])
    race = arrivals([key if t else None for t, key in zip(temperature, keys, strict=True)], logits.shape[-1]).to(
        logits.device
    )
    tokens = (probs / race).argmax(-1)
    return tokens, probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log()


def _with_greedy(temperature: Sequence[float]) -> list[float]:
    """0 in place of every temperature that is taken as greedy."""
    return [t if t >= GREEDY_BELOW else 0.0 for t in temperature]


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises InputError for settings out of range."""
    if not temperature >= 0 or temperature == float("inf"):
        raise InputError(f"temperature={temperature}: must be 0 (greedy) or a positive number")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p}: must lie in (0, 1]; 1 keeps every token")
