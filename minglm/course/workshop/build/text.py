"""Text for the sheet on the tokenizer: documents of the tiny world, cut into pieces of bytes as the real one cuts them.

A symbol below 256 is a byte by its place in the real tokenizer's alphabet, so a symbol of the learner's is the real
one's id less its special tokens.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from minglm import plots
from minglm.data.tiny_world import documents, vocabulary
from minglm.data.tokenizer import SPECIAL_TOKENS, Tokenizer

Piece = tuple[int, ...]
OFFSET = len(SPECIAL_TOKENS)


def sample(count: int, seed: int = 0) -> list[str]:
    """The texts of so many documents, the same ones each time."""
    rng = random.Random(f"build/{seed}")
    return [vocabulary.text_of(documents.draw(rng)[1].tokens) for _ in range(count)]


def real(texts: Iterable[str], merges: int) -> Tokenizer:
    """The library's tokenizer with so many merges, learnt from the same texts."""
    return Tokenizer.train(texts, 256 + OFFSET + merges)


def real_merges(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Its merges as pairs of symbols, in their order."""
    model = json.loads(tokenizer.to_json())["model"]
    return [(model["vocab"][left] - OFFSET, model["vocab"][right] - OFFSET) for left, right in model["merges"]]


def cut(text: str) -> list[Piece]:
    """The pieces of a text as the real tokenizer cuts it: it has no merges, so each byte is a symbol.

    >>> [len(piece) for piece in cut("We saw 42.")]
    [2, 4, 1, 1, 1, 1]
    """
    backend = _bytes_only()
    symbols = {token: index - OFFSET for token, index in backend.get_vocab().items()}
    return [tuple(symbols[c] for c in piece) for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def pieces(texts: Iterable[str]) -> dict[Piece, int]:
    """How often each piece stands in the texts."""
    return dict(Counter(piece for text in texts for piece in cut(text)))


@lru_cache(maxsize=1)
def _bytes_only():
    import tokenizers

    return tokenizers.Tokenizer.from_str(Tokenizer.train(["a"], 256 + OFFSET).to_json())


def beside_the_real_one(learn: Callable, encode: Callable, merges: int) -> tuple[Any, str]:
    """Bytes of unseen text in one token, over the number of merges: the learner's, the library's, and, as a control,
    merges of pairs taken at random. While a part is blank, the library's merges stand in for the learner's."""
    texts, unseen = sample(300 if merges > 100 else 80), pieces(sample(60, seed=1))
    backend = real(texts, merges)
    theirs = real_merges(backend)
    try:
        mine = learn(pieces(texts), merges)
        same = sum(a == b for a, b in zip(mine, theirs, strict=False))
        words = f"Of {len(theirs)} merges, {same} are the library's at the same place."
        encode((0, 1), [])
    except NotImplementedError:
        mine, encode, words = theirs, _encode, "Still to be written: these are the library's merges."
    counts = sorted({0, *range(0, merges + 1, max(1, merges // 8)), merges})
    fig = plots.figure("Unseen text", "merges", "bytes per token")
    total = sum(len(piece) * often for piece, often in unseen.items())
    ends = []
    for i, (name, found) in enumerate((("learnt", mine), ("control: pairs at random", _at_random(texts, merges)))):
        curve = [total / sum(len(encode(p, found[:n])) * often for p, often in unseen.items()) for n in counts]
        plots.line(fig, counts, curve, name, i, markers=True)
        ends.append(curve[-1])
    return fig, f"Line chart. {words} A token then holds {ends[0]:.2f} bytes, with random pairs {ends[1]:.2f}."


def _at_random(texts: list[str], merges: int) -> list[tuple[int, int]]:
    """Merges of pairs that do stand in the text, each drawn without regard to how often."""
    rng, found = random.Random("pairs"), pieces(texts)
    out: list[tuple[int, int]] = []
    for new in range(256, 256 + merges):
        pair = rng.choice(sorted({p for piece in found for p in pairwise(piece)}))
        out.append(pair)
        found = {_merge(piece, pair, new): often for piece, often in found.items()}
    return out


def _merge(piece: Piece, pair: tuple[int, int], new: int) -> Piece:
    out: list[int] = []
    for symbol in piece:
        # A symbol that was merged just now is `new` and no half of the pair, so nothing overlaps.
        if out and (out[-1], symbol) == pair:
            out[-1] = new
        else:
            out.append(symbol)
    return tuple(out)


def _encode(piece: Piece, merges: list[tuple[int, int]]) -> Piece:
    """All merges in their order, whether the piece holds them or not."""
    for n, pair in enumerate(merges):
        piece = _merge(piece, pair, 256 + n)
    return piece
