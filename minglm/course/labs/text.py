"""A crawl and its cleaners: documents of the tiny world, copied and spoilt on purpose.

A document is its tokens. Since the damage is made here, every cleaner can be judged: which documents it should have
dropped is known. `batches` packs documents into rows as `minglm.data.tiny_world.loader` does.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from minglm.data.shards import IGNORE, Batch
from minglm.data.tiny_world.documents import MIXTURE, draw
from minglm.data.tiny_world.vocabulary import token_ids, tokenizer
from minglm.errors import InputError

Tokens = tuple[str, ...]
SHINGLE = 5  # tokens in a piece that two documents may share
BANDS, ROWS_EACH = 16, 2  # of a MinHash signature: two alike documents meet when one band is equal
ALIKE = 0.7  # share of common shingles from which a document counts as a copy
TRUSTED = 200  # documents that somebody has looked through


@dataclass(frozen=True)
class Page:
    """A document of a crawl: its tokens, and what is wrong with it ("" where nothing is)."""

    tokens: Tokens
    damage: str = ""


def pages(count: int, seed: int, mixture: Mapping[str, float] = MIXTURE) -> list[Page]:
    """So many documents of the training text, no two alike by construction of the draw."""
    rng = random.Random(f"data lab/{seed}")
    return [Page(tuple(draw(rng, mixture)[1].tokens)) for _ in range(count)]


def with_copies(count: int, seed: int, share: float = 0.6, of: int = 20) -> list[Page]:
    """A crawl in which `share` of the pages are copies of `of` documents, half of these with one token exchanged."""
    rng = random.Random(f"data lab/copies/{seed}")
    copies = round(count * share)
    fresh = pages(count - copies, seed)
    models = fresh[:of]
    out = list(fresh)
    for i in range(copies):
        tokens = list(rng.choice(models).tokens)
        if i % 2:
            tokens[rng.randrange(len(tokens))] = rng.choice(rng.choice(fresh).tokens)
        out.append(Page(tuple(tokens), "copy"))
    rng.shuffle(out)
    return out


def with_junk(count: int, seed: int, share: float = 0.5) -> list[Page]:
    """A crawl in which `share` of the pages are documents whose tokens stand in any order."""
    rng = random.Random(f"data lab/junk/{seed}")
    junk = round(count * share)
    out = pages(count - junk, seed)
    for page in pages(junk, seed + 1_000_000):
        out.append(Page(tuple(rng.sample(page.tokens, len(page.tokens))), "junk"))
    rng.shuffle(out)
    return out


def exact(crawl: Sequence[Page]) -> list[Page]:
    """The first page of each text."""
    return list({page.tokens: page for page in reversed(crawl)}.values())[::-1]


def shingles(tokens: Tokens) -> set[int]:
    """The pieces of `SHINGLE` tokens that a document holds, as hashes that are the same in every process."""
    last = max(1, len(tokens) - SHINGLE + 1)
    return {_hash(" ".join(tokens[i : i + SHINGLE])) for i in range(last)}


def _hash(text: str) -> int:
    value = 14695981039346656037  # FNV-1a, 64 bits
    for byte in text.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def jaccard(a: set[int], b: set[int]) -> float:
    """Common pieces over all pieces.

    >>> jaccard({1, 2, 3}, {2, 3, 4})
    0.5
    """
    return len(a & b) / len(a | b)


def signature(pieces: set[int], seed: int = 0) -> list[int]:
    """MinHash: the least of the pieces under each of several hash functions. Two documents agree at a place as often as
    their pieces do (Broder 1997)."""
    rng = random.Random(f"minhash/{seed}")
    prime = 2**61 - 1
    functions = [(rng.randrange(1, prime), rng.randrange(prime)) for _ in range(BANDS * ROWS_EACH)]
    return [min((a * piece + b) % prime for piece in pieces) for a, b in functions]


def near(crawl: Sequence[Page]) -> list[Page]:
    """The pages that are not nearly a copy of one kept before: candidates by MinHash bands, then compared for real."""
    kept: list[Page] = []
    seen: dict[tuple[int, ...], list[set[int]]] = {}
    for page in crawl:
        pieces = shingles(page.tokens)
        signs = signature(pieces)
        bands = [(i, *signs[i * ROWS_EACH : (i + 1) * ROWS_EACH]) for i in range(BANDS)]
        if any(jaccard(pieces, other) >= ALIKE for band in bands for other in seen.get(band, ())):
            continue
        kept.append(page)
        for band in bands:
            seen.setdefault(band, []).append(pieces)
    return kept


class Bigrams:
    """A table of pairs of tokens from trusted documents; `score` is the mean log-probability of a document's tokens.

    >>> Bigrams([("a", "b")] * 9).score(("a", "b")) > Bigrams([("a", "b")] * 9).score(("b", "a"))
    True
    """

    def __init__(self, trusted: Sequence[Tokens]) -> None:
        self.pairs = Counter(p for tokens in trusted for p in zip(("", *tokens), tokens, strict=False))
        self.firsts = Counter(a for tokens in trusted for a in ("", *tokens[:-1]))
        self.words = len(token_ids())

    def score(self, tokens: Tokens) -> float:
        """Nats per token, with one added to every count."""
        logs = (
            math.log((self.pairs[pair] + 1) / (self.firsts[pair[0]] + self.words))
            for pair in zip(("", *tokens), tokens, strict=False)
        )
        return sum(logs) / len(tokens)


def filtered(crawl: Sequence[Page], seed: int, passes: float = 0.95) -> list[Page]:
    """The pages that score as well as all but 1 - `passes` of trusted documents which the table has not seen."""
    trusted = [page.tokens for page in pages(2 * TRUSTED, seed + 2_000_000)]
    table = Bigrams(trusted[:TRUSTED])
    scores = sorted(table.score(tokens) for tokens in trusted[TRUSTED:])
    least = scores[int((1 - passes) * len(scores))]
    return [page for page in crawl if table.score(page.tokens) >= least]


def dropped_at_random(crawl: Sequence[Page], keep: int, seed: int) -> list[Page]:
    """The control of every cleaner: as many pages as it kept, drawn by chance."""
    return random.Random(f"data lab/drop/{seed}").sample(list(crawl), keep)


def judged(crawl: Sequence[Page], kept: Sequence[Page]) -> tuple[float, float]:
    """(precision, recall) of a cleaner: the share of dropped pages that are damaged, and of damaged ones dropped."""
    staying = Counter(id(page) for page in kept)
    dropped = [page for page in crawl if not staying[id(page)]]
    right = sum(bool(page.damage) for page in dropped)
    damaged = sum(bool(page.damage) for page in crawl)
    return right / max(1, len(dropped)), right / max(1, damaged)


def batches(chosen: Sequence[Page], rows: int, length: int, seed: int) -> Iterator[Batch]:
    """Batches without end, (rows, length) each: the pages in another order each epoch, cut where a row ends.

    Raises:
        InputError: no page.
    """
    if not chosen:
        raise InputError("no page is left to train on; clean less, or crawl more")
    ids, tok = token_ids(), tokenizer()
    stream = _stream(chosen, ids, tok.bos, tok.eos, seed)
    while True:
        tokens = torch.full((rows, length + 1), tok.pad, dtype=torch.int64)
        start = torch.zeros((rows, length + 1), dtype=torch.int64)
        for r in range(rows):
            first = 0
            while first <= length:
                whole = next(stream)[: length + 1 - first]
                tokens[r, first : first + len(whole)] = torch.tensor(whole)
                start[r, first : first + len(whole)] = first
                first += len(whole)
        targets = torch.where(start[:, 1:] == start[:, :-1], tokens[:, 1:], IGNORE)
        yield Batch(tokens[:, :-1].contiguous(), targets, start[:, :-1].contiguous())


def _stream(chosen: Sequence[Page], ids: Mapping[str, int], bos: int, eos: int, seed: int) -> Iterator[list[int]]:
    epoch = 0
    while True:
        order = list(chosen)
        random.Random(f"data lab/epoch/{seed}/{epoch}").shuffle(order)
        for page in order:
            yield [bos, *(ids[t] for t in page.tokens), eos]
        epoch += 1
