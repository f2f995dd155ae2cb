"""Speculative decoding: the multi-token prediction module guesses the next n tokens, the model checks them in one step.

Exact by construction, greedy and sampled. The model's own choice at each place is made as it would be without drafts,
with the random numbers that belong to that token's index (`minglm.inference.sampling`), and a draft is kept only while
it equals that choice. Drafts race with the same random numbers, so a module that predicts well guesses well: when the
two distributions are apart by the total variation d, they agree with probability at least (1 - d)/(1 + d) (Daliri et
al. 2024, arXiv 2408.07978). The rejection rule of Leviathan et al. 2023 (arXiv 2211.17192) accepts 1 - d, but which
tokens come out then depends on where drafts begin; here a request gives the same tokens with drafts, without,
and resumed anywhere.

With m the position of the last token t_m, which the model has not read yet:

    catch up    module at positions up to m-1: hidden state of the model there, joined with the token that follows
    draft 1     read off the module at m-1, which has just joined h_{m-1} with t_m: guesses token m+1
    draft j     module at m+j-2: its own hidden state, joined with draft j-1: guesses token m+j
    check       model at m … m+n reads t_m and the drafts; a of them are kept, and its next choice comes on top

What was written to the cache for rejected drafts is overwritten by the next step, which starts at the first of them.

Shapes: B sequences, n drafts, C hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.decoder import Decoder
from minglm.inference.sampling import choose
from minglm.model.attention import ForwardContext
from minglm.model.cache import LatentCache
from minglm.model.decoder_layer import AuxLosses
from minglm.model.model import Model


def check_speculate(model: Model, drafts: int) -> None:
    """Raises InputError for a number of drafts that cannot be, or for a model without a prediction module."""
    if isinstance(drafts, bool) or not isinstance(drafts, int) or drafts < 0:
        raise InputError(f"speculate={drafts!r}: must be a whole number of drafts, 0 or more")
    if drafts and model.mtp is None:
        raise InputError(
            f"speculate={drafts}: this model has num_nextn_predict_layers=0, nothing to draft with; use speculate=0"
        )


class Speculator:
    """Drafts for the sequences of a decoder whose cache was made with `mtp=True` and has `drafts` positions to spare.

    Args:
        decoder: checks the drafts.
        drafts: n, at least 1.
        rows: sequences the cache can hold.
    """

    def __init__(self, decoder: Decoder, drafts: int, rows: int):
        like, C = decoder.cache.latent, decoder.model.config.hidden_size
        self.decoder, self.n = decoder, drafts
        # What the module has not read yet: up to n + 1 hidden states of each sequence, as `mtp_reads` gives them, and
        # the tokens that follow them.
        self.hidden = torch.zeros(rows, drafts + 1, C, dtype=like.dtype, device=like.device)
        self.tokens = torch.zeros(rows, drafts + 1, dtype=torch.int64, device=like.device)
        self.start, self.last = [0] * rows, [0] * rows  # position of the first of them; index of the last true one

    @torch.inference_mode()
    def prefill(
        self,
        cache: LatentCache,
        rows: Sequence[Sequence[int]],
        hidden: Tensor,
        following: int | None = None,
        mode: str = "sparse",
    ) -> None:
        """Let the module read the positions whose next token is known.

        Args:
            cache: holds exactly what came before these tokens.
            rows: the tokens the model has just read, of any lengths; hidden (B, T, C) is what it made of them.
            following: the token after them, where these are a piece of one longer sequence.
        """
        model, longest = self.decoder.model, hidden.shape[1]
        tokens = torch.tensor(
            [[*r[1:], 0 if following is None else following, *[0] * (longest - len(r))] for r in rows],
            device=hidden.device,
        )
        ctx = ForwardContext(mode, model.rope_slice(cache.length, longest, hidden.device), cache.length, cache=cache)
        model.mtp_step(model.mtp_reads(hidden, 1), tokens, ctx, AuxLosses())

    @torch.inference_mode()
    def begin(self, row: int, position: int, hidden: Tensor, token: int) -> None:
        """The model has read up to `position`, with `hidden` (C,) there, and `token` was chosen to follow."""
        self.hidden[row, 0], self.tokens[row, 0] = self.decoder.model.mtp_reads(hidden, 1), token
        self.start[row], self.last[row] = position, 0

    def read(self, row: int) -> tuple[Tensor, Tensor, int, int]:
        """A copy of a sequence's state; `write` puts it back."""
        return self.hidden[row].clone(), self.tokens[row].clone(), self.start[row], self.last[row]

    def write(self, row: int, state: tuple[Tensor, Tensor, int, int]) -> None:
        """Put what `read` gave at a row, the same or another."""
        self.hidden[row], self.tokens[row], self.start[row], self.last[row] = state

    @torch.inference_mode()
    def step(
        self, temperature: Sequence[float], top_p: Sequence[float], keys: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """One round for the first B sequences; keys are (seed, index of the next token).

        Returns the model's choices (B, n+1), their log-probabilities as `sampling.choose` defines them, and how many
        drafts were right, a: the first a + 1 choices are the sequence's next tokens, the others are void.
        """
        B, n = len(keys), self.n
        drafts = self._draft(temperature, top_p, keys)  # (B, n)
        pick = torch.tensor(self.last[:B], device=drafts.device)
        newest = self.tokens[:B].gather(1, pick[:, None])  # (B, 1), not yet read
        read = torch.cat((newest, drafts), 1)
        positions = [s + a + 1 for s, a in zip(self.start[:B], self.last[:B], strict=True)]
        logits = self.decoder.step(read, positions).float()  # (B, n+1, V)
        each = [v for v in range(B) for _ in range(n + 1)]
        chosen, logprobs = choose(
            logits.flatten(0, 1),
            [temperature[b] for b in each],
            [top_p[b] for b in each],
            [(seed, index + j) for seed, index in keys for j in range(n + 1)],
        )
        chosen = chosen.view(B, n + 1)
        right = (chosen[:, :n] == drafts).long().cumprod(-1).sum(-1).tolist()
        assert self.decoder.hidden is not None  # of this step
        self.hidden[:B] = self.decoder.model.mtp_reads(self.decoder.hidden.view(B, n + 1, -1), 1)
        self.tokens[:B] = chosen
        self.start[:B], self.last[:B] = positions, right
        return chosen, logprobs.view(B, n + 1), right

    def _draft(self, temperature: Sequence[float], top_p: Sequence[float], keys: Sequence[tuple[int, int]]) -> Tensor:
        decoder, B, norm = self.decoder, len(keys), self.decoder.model.require_mtp().norm
        ahead = decoder.mtp_step(self.hidden[:B], self.tokens[:B], self.start[:B])  # (B, n+1, C)
        hidden = ahead[torch.arange(B, device=ahead.device), torch.tensor(self.last[:B], device=ahead.device)]
        drafts: list[Tensor] = []
        for j in range(self.n):
            if j:
                positions = [s + a + j for s, a in zip(self.start[:B], self.last[:B], strict=True)]
                reads = decoder.model.mtp_reads(hidden, j + 1)
                hidden = decoder.mtp_step(reads[:, None], drafts[-1][:, None], positions)[:, 0]
            logits = decoder.logits(hidden, norm).float()
            drafts.append(choose(logits, temperature, top_p, [(seed, index + j) for seed, index in keys])[0])
        return torch.stack(drafts, 1)
