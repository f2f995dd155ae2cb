"""Batches of the tiny world, drawn as they are needed: no shard, no epoch, the same batch for the same step.

A row is whole documents one after the other; the last is cut where the row ends, which leaves the probabilities of its
tokens as they are. Training rows hold no held-out combination, validation rows are the language itself.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minglm.data.shards import IGNORE, Batch
from minglm.data.tiny_world.documents import MIXTURE, check_mixture, draw
from minglm.data.tiny_world.floor import score
from minglm.data.tiny_world.grammar import KINDS, Written
from minglm.data.tiny_world.vocabulary import token_ids, tokenizer
from minglm.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Floor:
    """What each target of a batch costs at best: nats (B, T), and its kind (B, T) as an index of `KINDS`; -1 where
    nothing is a target."""

    nats: torch.Tensor
    kinds: torch.Tensor


class TinyWorldLoader:
    """Rows of documents; same contract as `minglm.data.shards.Loader`.

    Args:
        mixture: kind of document → share of the documents.
        validation: draw from the language itself, held-out combinations included, and never the same documents as
            training.
    """

    def __init__(
        self,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        mixture: Mapping[str, float] = MIXTURE,
        validation: bool = False,
    ) -> None:
        if batch_size < 1 or seq_len < 2:
            raise InputError(f"batch_size={batch_size}, seq_len={seq_len}: must be at least 1 and 2; give larger ones")
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.mixture, self.validation = check_mixture(mixture), validation
        self.bos, self.eos, self.pad = tokenizer().bos, tokenizer().eos, tokenizer().pad

    def documents(self, row: int) -> list[Written]:
        """The documents of one row, the last reaching to its end or past it."""
        rng = random.Random(f"tiny world/{'validation' if self.validation else 'training'}/{self.seed}/{row}")
        out: list[Written] = []
        used = 0
        while used < self.seq_len + 1:
            _, written = draw(rng, self.mixture, None if self.validation else False)
            out.append(written)
            used += len(written.tokens) + 2
        return out

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        import torch

        ids = token_ids()
        tokens = torch.full((self.batch_size, self.seq_len + 1), self.pad, dtype=torch.int64)
        start = torch.zeros((self.batch_size, self.seq_len + 1), dtype=torch.int64)
        for r in range(self.batch_size):
            first = 0
            for written in self.documents(step * self.batch_size + r):
                whole = [self.bos, *(ids[t] for t in written.tokens), self.eos][: self.seq_len + 1 - first]
                tokens[r, first : first + len(whole)] = torch.tensor(whole)
                start[r, first : first + len(whole)] = first
                first += len(whole)
        targets = torch.where(start[:, 1:] == start[:, :-1], tokens[:, 1:], IGNORE)
        return Batch(tokens[:, :-1].contiguous(), targets, start[:, :-1].contiguous())

    def floor(self, step: int) -> Floor:
        """What the targets of `batch(step)` cost one who knows the language and the mixture."""
        import torch

        nats = torch.zeros((self.batch_size, self.seq_len))
        kinds = torch.full((self.batch_size, self.seq_len), -1, dtype=torch.int64)
        for r in range(self.batch_size):
            first = 0
            for written in self.documents(step * self.batch_size + r):
                scored = score(written.tokens, self.mixture)
                count = min(len(scored.nats), self.seq_len - first)
                nats[r, first : first + count] = torch.tensor(scored.nats[:count])
                kinds[r, first : first + count] = torch.tensor([KINDS.index(k) for k in scored.kinds[:count]])
                first += len(scored.nats) + 1
        return Floor(nats, kinds)
