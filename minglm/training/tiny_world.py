"""What a run on the tiny world learns from and is tried on: rows made as they are asked for, held out by hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from minglm.data import conversations, shards
from minglm.data.tiny_world import vocabulary
from minglm.data.tiny_world.chats import TinyWorldChats
from minglm.data.tiny_world.documents import MIXTURE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.pairs import PairsThenDocuments
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.training.recipe import TINY_WORLD, Recipe

VALIDATION_SEED = 10_007  # far from any run's own seed, so that no run validates on its training order


def open_tiny_world(
    r: Recipe, own_tokenizer: Path | None
) -> tuple[Tokenizer, shards.BatchSource, shards.BatchSource, dict[str, str | None]]:
    """Tokenizer, rows to learn from, unseen rows, and what versions.json says of them.

    Args:
        own_tokenizer: tokenizer.json of the run that this one starts from; None for a new one.

    Raises:
        InputError: another vocabulary, or one too small.
    """
    tokenizer = vocabulary.tokenizer()
    if own_tokenizer and Tokenizer.load(own_tokenizer).sha256 != tokenizer.sha256:
        raise InputError(
            f"{own_tokenizer}: not the tiny world's vocabulary; start from a run with corpus: {TINY_WORLD}, or use "
            "its corpus"
        )
    if r.config().vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"vocab_size={r.config().vocab_size}: the tiny world has {tokenizer.vocab_size} tokens; "
            f"use model_changes: {{vocab_size: {-(-tokenizer.vocab_size // 32) * 32}}}"
        )
    talks = conversations.load_jsonl(r.conversations) if r.conversations else None

    def make(seed: int, validation: bool) -> shards.BatchSource:
        if r.stage == "sft":
            return TinyWorldChats(r.batch_size, r.seq_len, r.tasks, seed, talks, validation)
        documents = TinyWorldLoader(r.batch_size, r.seq_len, seed, r.documents or MIXTURE, validation)
        if validation or not r.pairs_steps + r.pairs_grow_steps:
            return documents
        steps = (r.pairs_steps * r.grad_accum, r.pairs_grow_steps * r.grad_accum)
        return PairsThenDocuments(documents, r.pairs_words, *steps, r.seed)

    digest = hashlib.sha256("\n".join(vocabulary.words()).encode()).hexdigest()
    notes: dict[str, str | None] = {
        "data": None,
        "corpus_sha256": digest,
        "train_sha256": None,
        "conversations_sha256": conversations.sha256(r.conversations) if r.conversations else None,
        "validation": "documents of the tiny world that training does not draw, held-out combinations included",
    }
    return tokenizer, make(r.seed, False), make(VALIDATION_SEED, True), notes
