"""Decoding with the latent cache: greedy or sampled, one prompt or many of unequal length, a token at a time.

    >>> import torch; from minglm.config import ModelConfig; from minglm.model.model import Model
    >>> model = Model(ModelConfig.named("nano"))
    >>> [len(t) for t in generate(model, [[5, 6, 7], [8]], max_new_tokens=4).tokens]
    [4, 4]

Prompts of unequal length run together, each sequence at a position of its own, so a sequence gets the same tokens alone
and in a batch (up to the rounding of a matrix product, which depends on its size).

Shapes: B sequences, T prompt positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.decoder import Decoder
from minglm.inference.engine import Engine
from minglm.inference.prefill import prefill
from minglm.inference.request import Request
from minglm.inference.sampling import check_sampling, choose
from minglm.model.cache import LatentCache
from minglm.model.model import Model


@dataclass
class Generated:
    """New tokens of each sequence, without its prompt and without the stop token, and their log-probabilities.

    The log-probabilities are those of the model at temperature 1, also for sampled tokens; `stopped[i]` says whether
    sequence i met a stop token (else it ran into max_new_tokens).
    """

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)
    acceptance: float | None = None  # with drafts: the share of them that were right


def generate(  # noqa: PLR0913  (settings, by keyword)
    model: Model,
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: Sequence[int] = (),
    mode: str = "sparse",
    speculate: int = 0,
) -> Generated:
    """Continue every prompt by up to `max_new_tokens` tokens.

    Args:
        prompts: token lists of any lengths, or an int64 tensor (B, T).
        temperature: 0 (or below `sampling.GREEDY_BELOW`) takes the likeliest token;
            above, samples from softmax(logits / temperature).
        top_p: sample among the fewest likeliest tokens that hold this much probability.
        seed: one for all (sequence i uses seed + i), or one for each sequence:
            a sequence's draws depend on its own only.
        stop: token ids that end a sequence.
        mode: "sparse" or "dense".
        speculate: let the prediction module draft this many tokens at a time; the tokens stay the same
            (`minglm.inference.speculative`).

    Raises:
        InputError: an empty prompt, tokens outside the vocabulary, settings out of range,
            more positions than the model has.
    """
    if speculate:
        rows = [[int(t) for t in p] for p in prompts]
        _check(model, rows, max_new_tokens, temperature, top_p)
        requests = [
            Request(str(i), row, max_new_tokens, temperature, top_p, row_seed, tuple(stop))
            for i, (row, row_seed) in enumerate(zip(rows, _seeds(seed, len(rows)), strict=True))
        ]
        return _drafted(model, requests, mode, speculate)
    out = Generated()
    for tokens, logprobs, active in stream(
        model, prompts, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop, mode=mode
    ):
        if not out.tokens:
            out = Generated([[] for _ in active], [[] for _ in active], [False] * len(active))
        for i, (token, logprob, on) in enumerate(zip(tokens, logprobs, active, strict=True)):
            if on and token in stop:
                out.stopped[i] = True
            elif on:
                out.tokens[i].append(token)
                out.logprobs[i].append(logprob)
    return out


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: Sequence[int] = (),
    mode: str = "sparse",
) -> Iterator[tuple[list[int], list[float], list[bool]]]:
    """The steps of `generate` as they come: (tokens, log-probabilities, was the sequence still running), one of each
    per sequence. A sequence that has met a stop token goes on as padding with its flag False."""
    rows = [[int(t) for t in p] for p in prompts]
    _check(model, rows, max_new_tokens, temperature, top_p)
    B, lengths, seeds = len(rows), [len(r) for r in rows], _seeds(seed, len(rows))
    weight, stop_tokens = model.embed_tokens.weight, frozenset(stop)
    cache = LatentCache(model.config, B, max(lengths) + max_new_tokens, weight.dtype, weight.device)
    active = [True] * B
    chosen: Tensor | None = None
    with torch.inference_mode():
        logits = prefill(model, cache, rows, mode=mode)[0].float()
        decoder = Decoder(model, cache, mode)
    for i in range(max_new_tokens):
        with torch.inference_mode():
            if chosen is not None:
                logits = decoder.step(chosen[:, None], [n + i - 1 for n in lengths])[:, 0].float()
            chosen, logprobs = choose(logits, [temperature] * B, [top_p] * B, [(s, i) for s in seeds])
            if temperature:
                logprobs = _own(logits, chosen)
        step, were = chosen.tolist(), list(active)
        active = [on and t not in stop_tokens for on, t in zip(active, step, strict=True)]
        yield step, logprobs.tolist(), were
        if not any(active):
            return


def _drafted(model: Model, requests: list[Request], mode: str, speculate: int) -> Generated:
    """`generate` with drafts: sequences advance by unequal numbers of tokens, so the rollout engine runs them."""
    engine = Engine(
        model,
        len(requests),
        max(len(r.prompt) + r.max_new_tokens for r in requests),
        mode=mode,
        speculate=speculate,
        prefill_budget=max(512, sum(len(r.prompt) for r in requests)),
    )
    for request in requests:
        engine.submit(request)
    while engine.running or engine.waiting:
        engine.step()
    out = Generated(acceptance=engine.stats.acceptance)
    for r in requests:
        if r.temperature not in (0, 1) or r.top_p < 1:  # the engine's belong to the distribution sampled from
            whole = torch.tensor([r.prompt + r.tokens], device=model.embed_tokens.weight.device)
            with torch.inference_mode():
                logits = model(whole, mode=mode).logits[0].float()
            r.logprobs = _own(logits[len(r.prompt) - 1 : -1], torch.tensor(r.tokens, device=logits.device)).tolist()
        stopped = r.reason == "stop"
        out.stopped.append(stopped)
        out.tokens.append(r.tokens[:-1] if stopped else r.tokens)
        out.logprobs.append(r.logprobs[: len(out.tokens[-1])])
    return out


def _own(logits: Tensor, tokens: Tensor) -> Tensor:
    """The model's log-probabilities at temperature 1 of the tokens chosen: (N, V), (N,) → (N,)."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _seeds(seed: int | Sequence[int], B: int) -> list[int]:
    seeds = [seed + i for i in range(B)] if isinstance(seed, int) else list(seed)
    if len(seeds) != B:
        raise InputError(f"{len(seeds)} seeds for {B} prompts: give one seed, or one for each prompt")
    return seeds


def _check(model: Model, rows: list[list[int]], max_new_tokens: int, temperature: float, top_p: float) -> None:
    V, limit = model.config.vocab_size, model.config.max_position_embeddings
    if not rows:
        raise InputError("no prompts: give at least one list of tokens")
    for i, row in enumerate(rows):
        if not row:
            raise InputError(
                f"prompt {i} is empty: a model continues at least one token; start it with "
                f"bos_token_id={model.config.bos_token_id}"
            )
        if bad := [t for t in row if not 0 <= t < V]:
            raise InputError(
                f"prompt {i} holds token {bad[0]}: the vocabulary is 0 to {V - 1}; use the tokenizer this model was "
                f"made with"
            )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if (total := max(map(len, rows)) + max_new_tokens) > limit:
        raise InputError(
            f"prompt and new tokens are {total}: the model has max_position_embeddings={limit}; shorten one of them"
        )
    check_sampling(temperature, top_p)
