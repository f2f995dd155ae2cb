"""Pairs of words: the first lesson, in which looking back is learnt before there is any text.

A row is a stream of pairs, key and value, out of three to eight that are drawn anew for every 64 tokens; whenever a key
comes again, its value is known to whoever looks back for it. The loss counts these values alone. With few words it is
learnt within a few hundred steps, with many it is not; so the words grow once it is there.
"""

from __future__ import annotations

import random

from minglm.data.chat import stack
from minglm.data.shards import Batch
from minglm.data.tiny_world.vocabulary import token_ids, tokenizer
from minglm.errors import InputError

LENGTH = 64  # tokens of one stream
FEWEST, MOST = 3, 8  # pairs of a stream

Part = tuple[list[int], list[bool]]


def words_at(step: int, first: int, steps: int, grow_steps: int) -> int | None:
    """Words that the pairs of a step are drawn from; None where the lesson is over.

    `first` words for `steps` steps, then all of the language by equal factors over `grow_steps`.

    >>> [words_at(s, 64, 100, 100) for s in (0, 99, 150, 199, 200)]
    [64, 64, 188, 528, None]
    """
    if step >= steps + grow_steps:
        return None
    every = len(token_ids())
    grown = 0.0 if step < steps else (step - steps + 1) / (grow_steps + 1)
    return round(first * (every / first) ** grown)


def stream(rng: random.Random, words: int, length: int = LENGTH) -> Part:
    """One stream of `length` tokens after its <|bos|>, and which of its tokens the loss counts."""
    first = min(token_ids().values())
    pairs = rng.randint(FEWEST, MOST)
    drawn = [first + w for w in rng.sample(range(words), 2 * pairs)]
    ids, counted, seen = [tokenizer().bos], [False], set()
    while len(ids) <= length:
        key = rng.randrange(pairs)
        ids += [drawn[key], drawn[pairs + key]]
        counted += [False, key in seen]
        seen.add(key)
    return ids[: length + 1], counted[: length + 1]


class PairsThenDocuments:
    """Pairs in the first steps, then the batches of `base`; same contract as `minglm.data.shards.Loader`.

    Args:
        base: documents. first, steps, grow_steps: as in `words_at`, in steps of one forward pass.
    """

    def __init__(self, base, first: int, steps: int, grow_steps: int) -> None:
        if not 2 * MOST <= first <= len(token_ids()):
            raise InputError(
                f"pairs_words={first}: must be {2 * MOST} to {len(token_ids())}, the words of the language; use 64"
            )
        self.base, self.first, self.steps, self.grow_steps = base, first, steps, grow_steps
        self.batch_size, self.seq_len = base.batch_size, base.seq_len

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass: several streams to a row, each sees itself alone."""
        words = words_at(step, self.first, self.steps, self.grow_steps)
        if words is None:
            return self.base.batch(step)
        rng = random.Random(f"tiny world/pairs/{self.base.seed}/{step}")
        length = min(LENGTH, self.seq_len)
        count = max(1, (self.seq_len + 1) // (length + 1))
        rows = [[stream(rng, words, length) for _ in range(count)] for _ in range(self.batch_size)]
        return stack(rows, self.seq_len, tokenizer().pad)
