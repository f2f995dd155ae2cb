"""What a recipe trains on: tokenizer, training rows and validation rows of any corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from minglm.data import shards
from minglm.data.chat import MixedLoader, SftLoader, load_jsonl
from minglm.data.tiny_world import vocabulary
from minglm.data.tiny_world.chats import TinyWorldChats
from minglm.data.tiny_world.documents import MIXTURE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.pairs import PairsThenDocuments
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.training.recipe import TINY_WORLD, Recipe

VALIDATION_SEED = 10_007  # far from any run's own seed, so that no run validates on its training order


class Data(NamedTuple):
    """Tokenizer, batches to train on, batches to validate on, hash of the corpus."""

    tokenizer: Tokenizer
    train: shards.BatchSource
    validation: shards.BatchSource
    corpus_sha256: str


def open_data(recipe: Recipe, runs: Path, tokenizer_from: str | Path | None) -> Data:
    """Make or reuse what a recipe needs.

    Args:
        runs: folder of the runs; token shards lie in its `data`. tokenizer_from: run or checkpoint folder whose
            tokenizer goes on to be used; None trains one.
    """
    return _tiny_world(recipe, tokenizer_from) if recipe.corpus == TINY_WORLD else _text(recipe, runs, tokenizer_from)


def _tiny_world(r: Recipe, tokenizer_from: str | Path | None) -> Data:
    tokenizer, own = vocabulary.tokenizer(), tokenizer_path(tokenizer_from)
    if own and Tokenizer.load(own).sha256 != tokenizer.sha256:
        raise InputError(
            f"{own}: not the tiny world's vocabulary; start from a run with corpus: {TINY_WORLD}, or use its corpus"
        )
    if r.config().vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"vocab_size={r.config().vocab_size}: the tiny world has {tokenizer.vocab_size} tokens; "
            f"use model_changes: {{vocab_size: {-(-tokenizer.vocab_size // 32) * 32}}}"
        )
    conversations = load_jsonl(r.conversations) if r.conversations else None

    def make(seed: int, validation: bool) -> shards.BatchSource:
        if r.stage == "sft":
            return TinyWorldChats(r.batch_size, r.seq_len, r.tasks, seed, conversations, validation)
        documents = TinyWorldLoader(r.batch_size, r.seq_len, seed, r.documents or MIXTURE, validation)
        if validation or not r.pairs_steps + r.pairs_grow_steps:
            return documents
        steps = (r.pairs_steps * r.grad_accum, r.pairs_grow_steps * r.grad_accum)
        return PairsThenDocuments(documents, r.pairs_words, *steps, r.seed)

    digest = hashlib.sha256("\n".join(vocabulary.words()).encode()).hexdigest()
    return Data(tokenizer, make(r.seed, False), make(VALIDATION_SEED, True), digest)


def _text(r: Recipe, runs: Path, tokenizer_from: str | Path | None) -> Data:
    own, vocab_size = tokenizer_path(tokenizer_from), r.config().vocab_size
    name = (
        "".join(c if c.isalnum() else "-" for c in r.corpus)
        + f"-{vocab_size}"
        + (f"-{r.corpus_max_bytes}" if r.corpus_max_bytes else "")
    )
    folder = runs / "data" / name
    if own and (folder / "tokenizer.json").is_file() and Tokenizer.load(folder).sha256 == Tokenizer.load(own).sha256:
        own = None  # the shared folder was made with this very tokenizer
    elif own:
        folder = folder.with_name(f"{name}-{Tokenizer.load(own).sha256[:8]}")
    tokenizer, train, valid = shards.build(r.corpus, folder, vocab_size, r.corpus_max_bytes, own)
    conversations = load_jsonl(r.conversations) if r.conversations else None

    def make(shard: shards.Shard, seed: int, mixed: bool) -> shards.BatchSource:
        if r.stage == "sft":
            return SftLoader(tokenizer, shard, r.batch_size, r.seq_len, r.tasks, seed, conversations)
        text = shards.Loader(shard, r.batch_size, r.seq_len, seed)
        if not mixed:
            return text
        return MixedLoader(text, tokenizer, r.lookup_share, r.lookup_facts, seed, r.recall_steps * r.grad_accum)

    loader = make(train, r.seed, mixed=bool(r.lookup_share or r.recall_steps))
    return Data(tokenizer, loader, make(valid, VALIDATION_SEED, mixed=False), train.header["corpus_sha256"])


def tokenizer_path(folder: str | Path | None) -> Path | None:
    """The tokenizer.json of a run or checkpoint folder, if it has one."""
    if folder is None:
        return None
    folder = Path(folder)
    return next(
        (
            p / "tokenizer.json"
            for p in (folder, folder.parent, folder.parent.parent)
            if (p / "tokenizer.json").is_file()
        ),
        None,
    )
