"""Rows of keys and values: the smallest task that needs looking back.

A row draws a few pairs of words at random, then writes key, value, key, value, … with the keys in random order:

    c G  a F  c G  b K  a F  c G  …

Nothing but an earlier place of the same row says that G follows c. The loss counts the value of a key that has stood in
the row before; all else is chance. (Multi-query associative recall: Arora et al. 2023, arXiv 2312.04927.)

Shapes: B batch, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minglm.data.shards import IGNORE, Batch
from minglm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

GAP_SHARE = 0.5  # of the rows with `gap` that have one
BEGIN = 0  # the first token of every row; the words are 1 … words


class KeyValueRows:
    """Rows of keys and values; `batch(step)` depends on (settings, seed, step) alone, as in `shards.Loader`.

    Args:
        words: how many words keys and values are drawn from; the vocabulary is one larger (`BEGIN`).
        pairs: fewest and most pairs in a row, both possible.
        gap: True puts the same word, the last of the vocabulary, between every key and its value in half of the rows:
            the place that has to answer then no longer holds the key.
        repeated: False draws a new value each time a key comes, from the values of the row: the control. It shows the
            same words as often, and nothing can be looked up.

    Raises:
        InputError: a size below 1, or fewer words than the pairs need.
    """

    def __init__(
        self,
        batch_size: int = 32,
        seq_len: int = 64,
        words: int = 64,
        pairs: tuple[int, int] = (3, 8),
        seed: int = 0,
        repeated: bool = True,
        gap: bool = False,
    ) -> None:
        if batch_size < 1 or seq_len < 4:
            raise InputError(f"batch_size={batch_size}, seq_len={seq_len}: at least 1 and 4; give larger ones")
        least, most = pairs
        if not 1 <= least <= most:
            raise InputError(f"pairs={pairs}: fewest and most pairs of a row, at least 1; use (3, 8)")
        needed = 2 * most + gap
        if words < needed:
            raise InputError(f"words={words}: {most} pairs need {needed} different words; give more words")
        self.batch_size, self.seq_len, self.words = batch_size, seq_len, words
        self.pairs, self.seed, self.repeated, self.gap = pairs, seed, repeated, gap

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass; targets are -100 but for values of keys that the row has shown before."""
        import numpy as np
        import torch

        rng = np.random.default_rng([self.seed, step])
        rows = [self._row(rng) for _ in range(self.batch_size)]
        tokens = torch.tensor([row for row, _ in rows])  # (B, T+1)
        counted = torch.tensor([again for _, again in rows])
        targets = tokens.masked_fill(~counted, IGNORE)[:, 1:]
        return Batch(tokens[:, :-1].contiguous(), targets.contiguous(), torch.zeros_like(targets))

    def _row(self, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """Tokens (T+1) and which of them are values of a key seen before."""
        count = int(rng.integers(self.pairs[0], self.pairs[1] + 1))
        words = (1 + rng.choice(self.words - self.gap, 2 * count, replace=False)).tolist()
        keys, values = words[:count], words[count:]
        between = [self.words] if self.gap and rng.random() < GAP_SHARE else []
        row, counted = [BEGIN], [False]
        seen: set[int] = set()
        while len(row) <= self.seq_len:
            which = int(rng.integers(count))
            value = values[which if self.repeated else int(rng.integers(count))]
            row += [keys[which], *between, value]
            counted += [False] * (1 + len(between)) + [which in seen]
            seen.add(which)
        return row[: self.seq_len + 1], counted[: self.seq_len + 1]
