"""One token a word: the vocabulary of the tiny world and its tokenizer, in the format of every other tokenizer here.

A word carries the space before it, and a text gets one in front of its first word and of each line, so a word is one
token wherever it stands. A word that follows something else without a space is preceded by a joiner (U+2060). What is
not a word of the tiny world is spelled in bytes, so any text encodes. Ids: special tokens, words, bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

from minglm.data.tiny_world.documents import DOCUMENT_KINDS
from minglm.data.tiny_world.grammar import Slot
from minglm.data.tokenizer import SPECIAL_TOKENS, Tokenizer

JOINER = "\u2060"


def piece(token: str) -> str:
    """A token of the grammar as it stands in text."""
    return f" {token}" if token[0].isalpha() else token.replace("_", " ")


def text_of(tokens: Iterable[str]) -> str:
    """Tokens of the grammar as text."""
    joined = "".join(map(piece, tokens)).replace(f"{JOINER} ", "").replace("\n ", "\n")
    return joined.removeprefix(" ")


@cache
def words() -> tuple[str, ...]:
    """Every token of the grammar, in the order in which the templates use them."""
    seen: dict[str, None] = {}
    for rules in DOCUMENT_KINDS.values():
        for template in rules.templates:
            for item in template.items:
                for value in item.anything if isinstance(item, Slot) else (item,):
                    seen.update(dict.fromkeys(value.split(" ") if value != " " else [value]))
    return tuple(seen)


@cache
def token_ids() -> dict[str, int]:
    """Token of the grammar → id."""
    return {w: len(SPECIAL_TOKENS) + i for i, w in enumerate(words())}


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer; equal in every process."""
    import tokenizers
    from tokenizers import decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    entries = [byte_level.pre_tokenize_str(piece(w))[0][0] for w in words()]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *entries))}
    for character in sorted(pre.ByteLevel.alphabet()):
        vocabulary.setdefault(character, len(vocabulary))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    after_a_sign = tokenizers.Regex(r"(?<=[^\s\p{L}])(?=\p{L})")
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(tokenizers.Regex(r"\n(?=.)"), "\n "),
            normalizers.Replace(after_a_sign, f"{JOINER} "),
        ]
    )
    parts = tokenizers.Regex(r' ?\{"|": "|", "|"\}| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s')
    backend.pre_tokenizer = pre.Sequence([pre.Split(parts, "isolated"), byte_level])
    backend.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            decoders.Replace(f"{JOINER} ", ""),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


def vocabulary_json() -> str:
    """The words and their ids as JSON, for people."""
    return json.dumps(token_ids(), indent=1, ensure_ascii=False)
