"""Synthetic facts, which exist nowhere else: made-up names with two-word codes,
split into those training may show and those it never does.

A code such as "amber falcon" is one of 32 adjectives and one of 32 animals. Each word is a single token of a vocabulary
of 1,024 or more (`minglm.data.shards.build` sees to that), so a model of a few million parameters needs to copy two
tokens, not to spell; guessing without the passage is right once in 1,024.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HELD_OUT_SHARE = 0.2
ADJECTIVES = tuple(
    (
        "amber azure brisk calm crimson dusty earthy fuzzy gentle golden hollow icy jolly keen lively lunar mellow "
        "misty noble oaken pale proud plush rapid rustic shiny silver solar sturdy tidy velvet witty"
    ).split()
)
ANIMALS = tuple(
    (
        "badger beetle bison canary cobra condor cougar donkey dolphin falcon ferret gecko giraffe heron hornet iguana "
        "jackal koala lemur lobster magpie marten otter panther parrot pelican puffin raven salmon sparrow walrus "
        "wombat"
    ).split()
)
SENTENCE = "The code of {name} is {code}."
CODE_WORDS = ADJECTIVES + ANIMALS
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_CODE = re.compile(rf"\b({'|'.join(ADJECTIVES)}) ({'|'.join(ANIMALS)})\b")


def is_held_out(word: str) -> bool:
    """Whether a name or code is kept from training; decided by its hash, so by nothing that could drift."""
    return hashlib.sha256(f"held out {word}".encode()).digest()[0] < HELD_OUT_SHARE * 256


def draw_name(rng: np.random.Generator, held_out: bool = False) -> str:
    """A synthetic name of three syllables, such as 'Tokiru', from the held-out set or the training set."""
    while True:
        name = "".join(_SYLLABLES[i] for i in rng.integers(0, len(_SYLLABLES), 3)).capitalize()
        if is_held_out(name) == held_out:
            return name


def draw_code(rng: np.random.Generator, held_out: bool = False) -> str:
    """A two-word code, such as 'amber falcon', from the held-out set or the training set."""
    while True:
        code = f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]} {ANIMALS[rng.integers(len(ANIMALS))]}"
        if is_held_out(code) == held_out:
            return code


def find_code(text: str) -> str | None:
    """The first code in a text, or None."""
    match = _CODE.search(text)
    return match.group() if match else None


def statement(name: str, code: str) -> str:
    """The sentence in which training texts state a fact."""
    return SENTENCE.format(name=name, code=code)
