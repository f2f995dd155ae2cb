"""Speculative decoding as simple as it can be: no cache, one sequence, greedy. For reading and counting, not for speed.

The engine's way, with a cache and for many sequences, is in `minglm.inference.speculative`; both write the same tokens.

Shapes: T positions, C hidden, V vocabulary; at depth d the module's place i predicts token i + d + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.model.attention import ForwardContext
from minglm.model.decoder_layer import AuxLosses
from minglm.model.model import Model


def weight_bytes_read(config: ModelConfig, tokens: int, bytes_per_weight: float = 2.0) -> float:
    """Bytes of weights that one pass over `tokens` tokens reads, expected: each token chooses its K of E experts
    independently and evenly, so E·(1 − (1 − K/E)^tokens) of a layer's experts are read. The embedding is looked up,
    not read.
    """
    K, E = config.num_experts_per_tok, config.n_routed_experts
    extra = (1.0 - (1.0 - K / E) ** tokens) - K / E  # share of the routed experts beyond those of one token
    return bytes_per_weight * (config.num_active_params() + extra * config.params_breakdown()["routed_experts"])


@torch.no_grad()
def lookahead(model: Model, tokens: Tensor, depths: int, mode: str = "sparse") -> list[Tensor]:
    """Logits of the main model and of the module at depths 1 … `depths`: entry d has shape (T - d, V), tokens (T,)."""
    tokens = tokens[None]
    T = tokens.shape[1]
    out = model(tokens, mode=mode)
    rope, hidden, logits = model.rope_slice(0, T, tokens.device), out.hidden, [out.logits[0]]
    for depth in range(1, depths + 1):
        keep = T - depth
        reads = model.mtp_reads(hidden[:, :keep], depth)
        hidden = model.mtp_step(reads, tokens[:, depth:], ForwardContext(mode, rope[:keep]), AuxLosses())
        logits.append(_guess(model, hidden)[0])
    return logits


def _guess(model: Model, hidden: Tensor) -> Tensor:
    """Logits of the module's hidden states: (..., C) → (..., V)."""
    if model.mtp is None:
        raise InputError("the model has no multi-token prediction (mtp_depth=0); take one that has")
    return model.lm_head(model.mtp.norm(hidden))


@torch.no_grad()
def right_by_distance(model: Model, passages: list[Tensor], depths: int, mode: str = "sparse") -> list[float]:
    """Share of tokens guessed right, by how far ahead they are: entry d is the token d + 1 places on."""
    hits, total = [0] * (depths + 1), [0] * (depths + 1)
    for tokens in passages:
        for depth, logits in enumerate(lookahead(model, tokens, depths, mode)):
            guess, truth = logits.argmax(-1)[: len(tokens) - depth - 1], tokens[depth + 1 :]
            hits[depth] += int((guess == truth).sum())
            total[depth] += len(truth)
    return [h / max(t, 1) for h, t in zip(hits, total, strict=True)]


@dataclass
class Speculated:
    """What `speculate` wrote: new tokens, which of them were drafted, how many drafts each pass of the model kept."""

    tokens: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the main model."""
        return len(self.tokens) / len(self.kept)


@torch.no_grad()
def speculate(model: Model, prompt: list[int], new_tokens: int, drafts: int, mode: str = "sparse") -> Speculated:
    """Greedy decoding; each pass of the main model checks `drafts` guessed tokens and adds one of its own."""
    out, text = Speculated(), list(prompt)
    guesses: list[int] = []
    while len(out.tokens) < new_tokens:
        read = torch.tensor([text + guesses])
        answer = model(read, mode=mode)  # one pass reads all guesses
        choices = answer.logits[0, len(text) - 1 :].argmax(-1).tolist()  # what the model itself says
        kept = 0
        while kept < len(guesses) and guesses[kept] == choices[kept]:
            kept += 1
        new = [*guesses[:kept], choices[kept]]
        out.kept.append(kept)
        out.tokens += new
        out.drafted += [True] * kept + [False]
        text += new
        guesses = _draft(model, answer.hidden[:, : len(text) - 1], text, drafts, mode)
    del out.tokens[new_tokens:], out.drafted[new_tokens:]
    return out


def _draft(model: Model, hidden: Tensor, text: list[int], drafts: int, mode: str) -> list[int]:
    """Guess the tokens after `text`; hidden (1, len(text) - 1, C) is the main model's, at all places it has read."""
    guesses: list[int] = []
    rope = model.rope_slice(0, hidden.shape[1], hidden.device)
    for depth in range(1, drafts + 1):
        follows = torch.tensor([(text + guesses)[depth:]])
        reads = model.mtp_reads(hidden, depth)
        hidden = model.mtp_step(reads, follows, ForwardContext(mode, rope), AuxLosses())
        guesses.append(int(_guess(model, hidden[:, -1]).argmax(-1)))
    return guesses


def draft_strip(tokenizer, prompt: list[int], result: Speculated) -> None:
    """The text as tokens: the prompt grey, the model's own choices yellow, kept drafts blue and underlined."""
    from html import escape

    from IPython.display import HTML, display

    def piece(token: int, style: str) -> str:
        words = escape(tokenizer.token(token)).replace(" ", "·").replace("\n", "↵<br>")
        return f'<span style="{style};color:#111;border-left:1px solid #888;padding:0 1px">{words}</span>'

    spans = [piece(t, "background:#eee") for t in prompt]
    spans += [
        piece(t, "background:#cfe3f5;border-bottom:3px solid #0072B2" if d else "background:#fbe3b5")
        for t, d in zip(result.tokens, result.drafted, strict=True)
    ]
    display(HTML(f'<div style="font:14px monospace;line-height:2">{"".join(spans)}</div>'))
