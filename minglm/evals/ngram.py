"""How far do counts go? Next tokens by a trigram table with back-off, and by that table and copying from the row.

Counted on the very rows that a run was trained on. A model of text should beat both: the table shows what is local
habit, the copy what repeats within a document.

    p3(w | u v)   (c(u v w) + n(u v) p2(w | v)) / (c(u v) + n(u v)), and so on down to the uniform distribution, with
                  c the counts and n the number of different words seen after a context (Witten and Bell 1991, method C)
    copy          the token that followed the latest earlier place in the same document whose last tokens are the
                  same, the longest such match first; weighed by how often matches of that length were right in training

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minglm.data.shards import IGNORE, Batch
from minglm.errors import InputError

LONGEST_MATCH = 4


@dataclass(frozen=True)
class Quality:
    """Loss in nats for a token and the share of next tokens that are right, on `tokens` tokens."""

    loss: float
    accuracy: float
    tokens: int


def _rows(batches: Iterable[Batch]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, targets and the first visible position of every row."""
    return [
        (tokens, targets, start)
        for batch in batches
        for tokens, targets, start in zip(*(np.asarray(t) for t in batch), strict=True)
    ]


class _Level:
    """What followed each context: for a context number, words and their counts."""

    def __init__(self, contexts: np.ndarray, words: np.ndarray, vocab: int) -> None:
        keys, counts = np.unique(contexts * vocab + words, return_counts=True)
        self.words, self.counts = keys % vocab, counts.astype(np.float64)
        of = keys // vocab
        names, first = np.unique(of, return_index=True)
        ends = np.append(first[1:], len(of))
        self.places = dict(zip(names.tolist(), zip(first.tolist(), ends.tolist(), strict=True), strict=True))

    def smooth(self, context: int, lower: np.ndarray) -> np.ndarray:
        """Distribution after a context, (V,), given that of the shorter one."""
        if context not in self.places:
            return lower
        first, end = self.places[context]
        counts, kinds = self.counts[first:end], end - first
        out = lower * kinds
        out[self.words[first:end]] += counts
        return out / (counts.sum() + kinds)


class Trigram:
    """A trigram table with back-off, and beside it what copying from the document adds.

    Args:
        batches: the training rows. vocab: number of token ids.
    """

    def __init__(self, batches: Iterable[Batch], vocab: int) -> None:
        rows = _rows(batches)
        if not rows:
            raise InputError("n-gram tables need rows to count; give at least one batch")
        self.vocab = vocab
        pairs, words = [], []
        for tokens, targets, start in rows:
            counted = targets != IGNORE
            pairs.append(self._contexts(tokens, start)[counted])
            words.append(targets[counted])
        after = np.concatenate(pairs)  # (N, 2): two tokens before, one before
        word = np.concatenate(words)
        nothing = np.zeros(len(word), dtype=np.int64)
        self.uniform = np.full(vocab, 1 / vocab)
        self.levels = (
            _Level(nothing, word, vocab),
            _Level(after[:, 1], word, vocab),
            _Level(after[:, 0] * vocab + after[:, 1], word, vocab),
        )
        self.trust = self._trust(rows[:: max(1, len(rows) // 400)])
        self._pairs: dict[int, np.ndarray] = {}

    def _contexts(self, tokens: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(T, 2) the two last tokens at each position; at a document's beginning the first stands for both."""
        before = np.roll(tokens, 1)
        first = np.arange(len(tokens)) <= start
        return np.stack([np.where(first, tokens, before), tokens], axis=1).astype(np.int64)

    def distribution(self, before: int, last: int) -> np.ndarray:
        """(V,) chances of the next token after two."""
        if last not in self._pairs:
            self._pairs[last] = self.levels[1].smooth(last, self.levels[0].smooth(0, self.uniform))
        return self.levels[2].smooth(before * self.vocab + last, self._pairs[last])

    def _trust(self, rows: list) -> np.ndarray:
        """(LONGEST_MATCH+1,) how often a copy was right by the length of its match, in training; one doubt added."""
        right, tried = np.zeros(LONGEST_MATCH + 1), np.zeros(LONGEST_MATCH + 1)
        for tokens, targets, start in rows:
            for t, (guess, length) in enumerate(copies(tokens, start)):
                if length and targets[t] != IGNORE:
                    right[length] += guess == targets[t]
                    tried[length] += 1
        return right / (tried + 1)

    def quality(self, batches: Iterable[Batch]) -> dict[str, Quality]:
        """Of the table alone, and of the table with copies, on rows of targets."""
        nats, hits, count = {"trigram": 0.0, "trigram + copy": 0.0}, {"trigram": 0, "trigram + copy": 0}, 0
        for tokens, targets, start in _rows(batches):
            contexts = self._contexts(tokens, start)
            for t, (guess, length) in enumerate(copies(tokens, start)):
                word = int(targets[t])
                if word == IGNORE:
                    continue
                count += 1
                table = self.distribution(int(contexts[t, 0]), int(contexts[t, 1]))
                trust = self.trust[length] if length else 0.0
                both = (1 - trust) * table
                if length:
                    both[guess] += trust
                for name, chances in (("trigram", table), ("trigram + copy", both)):
                    nats[name] -= float(np.log(chances[word]))
                    hits[name] += int(chances.argmax()) == word
        if not count:
            raise InputError("no targets in these rows; give validation rows")
        return {name: Quality(nats[name] / count, hits[name] / count, count) for name in nats}


def copies(tokens: np.ndarray, start: np.ndarray) -> list[tuple[int, int]]:
    """For each position what copying says comes next, and the length of its match; (-1, 0) where nothing matches.

    >>> copies(np.array([5, 6, 7, 5, 6]), np.zeros(5, int))
    [(-1, 0), (-1, 0), (-1, 0), (6, 1), (7, 2)]
    """
    out: list[tuple[int, int]] = []
    seen: dict[tuple[int, ...], int] = {}
    document = -1
    row = tokens.tolist()
    for t in range(len(row)):
        if start[t] != document:
            document, seen = start[t], {}
        guess = (-1, 0)
        suffixes = [tuple(row[t - n + 1 : t + 1]) for n in range(1, LONGEST_MATCH + 1) if t - n + 1 >= document]
        for suffix in reversed(suffixes):
            if suffix in seen:
                guess = (row[seen[suffix] + 1], len(suffix))
                break
        for suffix in suffixes:
            seen[suffix] = t
        out.append(guess)
    return out
