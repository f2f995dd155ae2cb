"""Decoding with the latent cache: greedy or sampled, one prompt or many of unequal length, a token at a time.

    >>> import torch; from minglm.config import ModelConfig; from minglm.model import Model
    >>> model = Model(ModelConfig.named("nano"))
    >>> [len(t) for t in generate(model, [[5, 6, 7], [8]], max_new_tokens=4).tokens]
    [4, 4]

Prompts of unequal length are padded on the left and the padding is hidden with `doc_start`; rotary position is relative,
so a sequence gets the same tokens alone and in a batch.

Shapes: B sequences, T prompt positions, V vocabulary.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minglm.cache import LatentCache
from minglm.decode import Decoder
from minglm.errors import InputError
from minglm.model import Model


@dataclass
class Generated:
    """New tokens of each sequence, without its prompt and without the stop token, and their log-probabilities.

    The log-probabilities are those of the model at temperature 1, also for sampled tokens; `stopped[i]` says whether
    sequence i met a stop token (else it ran into max_new_tokens).
    """

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


def generate(model: Model, prompts: Sequence[Sequence[int]] | Tensor, max_new_tokens: int, *, temperature: float = 0.0,
             top_p: float = 1.0, seed: int | Sequence[int] = 0, stop: Sequence[int] = (), mode: str = "sparse") -> Generated:
    """Continue every prompt by up to `max_new_tokens` tokens.

    Args:
        prompts: token lists of any lengths, or an int64 tensor (B, T).
        temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
        top_p: sample among the fewest likeliest tokens that hold this much probability.
        seed: one for all (sequence i uses seed + i), or one for each sequence: a sequence's draws depend on its own only.
        stop: token ids that end a sequence.
        mode: "sparse" or "dense".

    Raises:
        InputError: an empty prompt, tokens outside the vocabulary, settings out of range, more positions than the model has.
    """
    out = Generated()
    for tokens, logprobs, active in stream(model, prompts, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
                                           stop=stop, mode=mode):
        if not out.tokens:
            out = Generated([[] for _ in active], [[] for _ in active], [False] * len(active))
        for i, (token, logprob, on) in enumerate(zip(tokens, logprobs, active)):
            if on and token in stop:
                out.stopped[i] = True
            elif on:
                out.tokens[i].append(token)
                out.logprobs[i].append(logprob)
    return out


def stream(model: Model, prompts: Sequence[Sequence[int]] | Tensor, max_new_tokens: int, *, temperature: float = 0.0,
           top_p: float = 1.0, seed: int | Sequence[int] = 0, stop: Sequence[int] = (),
           mode: str = "sparse") -> Iterator[tuple[list[int], list[float], list[bool]]]:
    """The steps of `generate` as they come: (tokens, log-probabilities, was the sequence still running), one of each per
    sequence. A sequence that has met a stop token goes on as padding with its flag False."""
    rows = [[int(t) for t in p] for p in prompts]
    _check(model, rows, max_new_tokens, temperature, top_p)
    B, longest = len(rows), max(map(len, rows))
    seeds = [seed + i for i in range(B)] if isinstance(seed, int) else list(seed)
    if len(seeds) != B:
        raise InputError(f"{len(seeds)} seeds for {B} prompts: give one seed, or one for each prompt")
    device = model.embed_tokens.weight.device
    draws = [torch.Generator().manual_seed(s) for s in seeds]
    pad = torch.tensor([longest - len(r) for r in rows], device=device)
    tokens = torch.tensor([[0] * (longest - len(r)) + r for r in rows], device=device)
    doc_start = None
    if bool(pad.any()):                        # a pad position sees itself only, so that no row of the softmax is empty
        doc_start = torch.minimum(pad[:, None], torch.arange(longest, device=device))
    cache = LatentCache(model.config, B, longest + max_new_tokens, model.embed_tokens.weight.dtype, device)
    active, stop = [True] * B, frozenset(stop)
    decoder, chosen = None, None
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            if decoder is None:
                logits = model(tokens, cache=cache, doc_start=doc_start, mode=mode, last_only=True).logits[:, -1].float()
                decoder = Decoder(model, cache, None if doc_start is None else pad, mode)
            else:
                logits = decoder.step(chosen).float()
            chosen = _pick(logits, temperature, top_p, draws)
            logprobs = logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)
        step, were = chosen.tolist(), list(active)
        active = [on and t not in stop for on, t in zip(active, step)]
        yield step, logprobs.tolist(), were
        if not any(active):
            return


def _pick(logits: Tensor, temperature: float, top_p: float, draws: list[torch.Generator]) -> Tensor:
    """(B, V) → (B,) tokens. Sampling inverts the cumulative distribution at one uniform number per sequence."""
    if temperature == 0:
        return logits.argmax(-1)
    probs, order = torch.sort((logits / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    cumulative = probs.cumsum(-1)
    kept = torch.where(cumulative - probs < top_p, probs, 0.0).cumsum(-1)         # the likeliest is always kept
    u = torch.stack([torch.rand((), generator=g) for g in draws]).to(logits.device)
    place = torch.searchsorted(kept, (u * kept[:, -1])[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, place).squeeze(-1)


def _check(model: Model, rows: list[list[int]], max_new_tokens: int, temperature: float, top_p: float) -> None:
    V, limit = model.config.vocab_size, model.config.max_position_embeddings
    if not rows:
        raise InputError("no prompts: give at least one list of tokens")
    for i, row in enumerate(rows):
        if not row:
            raise InputError(f"prompt {i} is empty: a model continues at least one token; start it with bos_token_id={model.config.bos_token_id}")
        if bad := [t for t in row if not 0 <= t < V]:
            raise InputError(f"prompt {i} holds token {bad[0]}: the vocabulary is 0 to {V - 1}; use the tokenizer this model was made with")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if (total := max(map(len, rows)) + max_new_tokens) > limit:
        raise InputError(f"prompt and new tokens are {total}: the model has max_position_embeddings={limit}; shorten one of them")
    if not temperature >= 0 or temperature == float("inf"):
        raise InputError(f"temperature={temperature}: must be 0 (greedy) or a positive number")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p}: must lie in (0, 1]; 1 keeps every token")
