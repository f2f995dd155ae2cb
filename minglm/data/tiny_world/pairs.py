"""Keys and values: the first lessons, in which looking back is learnt before there is much text.

A row holds streams of pairs, key and value, out of a few that are drawn anew for each stream; whenever a key comes
again, its value is known to whoever looks back for it. The loss counts these values alone. With few words and short
streams this is learnt within a few hundred thousand tokens, with many words or long rows it is not. So there are two
lessons:

    first     few words, keys and values of one token, 32 tokens a stream
    growing   words grow to all of the language, keys of one to three tokens, values of two; half of the rows are
              documents already

(Multi-query associative recall: Arora et al. 2023, arXiv 2312.04927.)
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from minglm.data.chat import stack
from minglm.data.shards import Batch, BatchSource
from minglm.data.tiny_world.vocabulary import token_ids, tokenizer
from minglm.errors import InputError

Part = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Lesson:
    """What the streams of a lesson look like; pairs and key_tokens are the fewest and the most."""

    length: int  # tokens of a stream behind its <|bos|>
    pairs: tuple[int, int]
    key_tokens: tuple[int, int]
    value_tokens: int

    @property
    def words(self) -> int:
        """Different words that a stream needs at most."""
        return self.pairs[1] * (self.key_tokens[1] + self.value_tokens)


FIRST = Lesson(length=32, pairs=(2, 4), key_tokens=(1, 1), value_tokens=1)
GROWING = Lesson(length=64, pairs=(2, 5), key_tokens=(1, 3), value_tokens=2)


@cache
def word_ids() -> tuple[int, ...]:
    """Ids of the language's words in a shuffled order, always the same; a lesson of n words uses the first n."""
    ids = list(token_ids().values())
    random.Random("words of the pairs").shuffle(ids)
    return tuple(ids)


def stream(rng: random.Random, lesson: Lesson, words: int) -> Part:
    """One stream with its <|bos|>, and which of its tokens the loss counts: values whose key came before."""
    count = rng.randint(*lesson.pairs)
    lengths = [rng.randint(*lesson.key_tokens) for _ in range(count)]
    drawn = iter(rng.sample(word_ids()[:words], sum(lengths) + count * lesson.value_tokens))
    keys = [[next(drawn) for _ in range(n)] for n in lengths]
    values = [[next(drawn) for _ in range(lesson.value_tokens)] for _ in range(count)]
    ids, counted, seen = [tokenizer().bos], [False], set()
    while len(ids) <= lesson.length:
        which = rng.randrange(count)
        ids += keys[which] + values[which]
        counted += [False] * len(keys[which]) + [which in seen] * lesson.value_tokens
        seen.add(which)
    return ids[: lesson.length + 1], counted[: lesson.length + 1]


class PairsThenDocuments:
    """Both lessons, then the batches of `base`; same contract as `minglm.data.shards.Loader`.

    Args:
        base: documents. words: of the first lesson. steps, grow_steps: of the two lessons, in forward passes.

    Raises:
        InputError: fewer words than a stream needs or more than the language has; rows too short for a stream.
    """

    def __init__(self, base: BatchSource, words: int, steps: int, grow_steps: int, seed: int = 0) -> None:
        least, most = max(FIRST.words, GROWING.words), len(word_ids())
        if not least <= words <= most:
            raise InputError(f"pairs_words={words}: must be {least} to {most}, the words of the language; use 64")
        if base.seq_len < GROWING.length:
            raise InputError(f"seq_len={base.seq_len}: pairs need rows of {GROWING.length} tokens; use that or more")
        self.base, self.words, self.steps, self.grow_steps, self.seed = base, words, steps, grow_steps, seed
        self.batch_size, self.seq_len = base.batch_size, base.seq_len

    def words_at(self, step: int) -> int:
        """Words that the streams of a step are drawn from: all in the second half of the growing lesson."""
        if step < self.steps:
            return self.words
        grown = min(1.0, 2 * (step - self.steps + 1) / self.grow_steps)
        return round(self.words * (len(word_ids()) / self.words) ** grown)

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass: as many streams to a row as fit, each sees itself alone."""
        import torch

        if step >= self.steps + self.grow_steps:
            return self.base.batch(step - self.steps)
        rng = random.Random(f"tiny world/pairs/{self.seed}/{step}")
        lesson = FIRST if step < self.steps else GROWING
        count = (self.seq_len + 1) // (lesson.length + 1)
        rows = [[stream(rng, lesson, self.words_at(step)) for _ in range(count)] for _ in range(self.batch_size)]
        pairs = stack(rows, self.seq_len, tokenizer().pad)
        if step < self.steps:
            return pairs
        half = self.batch_size // 2
        documents = self.base.batch(step - self.steps)
        return Batch(*(torch.cat([a[half:], b[:half]]) for a, b in zip(pairs, documents, strict=True)))
