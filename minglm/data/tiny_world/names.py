"""Slots that several kinds of document share: people, codes, digits."""

from __future__ import annotations

from minglm.data.synthetic_facts import ADJECTIVES, ANIMALS
from minglm.data.tiny_world.grammar import Slot
from minglm.data.tiny_world.lexicon import DIGITS, FAMILY, GIVEN, MEN, WOMEN

PRONOUN = {**dict.fromkeys(WOMEN, "She"), **dict.fromkeys(MEN, "He")}


def given(name: str) -> Slot:
    """Any first name."""
    return Slot(name, lambda state, bound: GIVEN, GIVEN)


def family(name: str, of: str) -> Slot:
    """Any family name; with the first name in slot `of` it is a full name, a fifth of which training never shows."""
    return Slot(name, lambda state, bound: FAMILY, FAMILY, combination=lambda s, b, v: f"name:{b[of]} {v}")


def adjective(name: str) -> Slot:
    """The first word of a code."""
    return Slot(name, lambda state, bound: ADJECTIVES, ADJECTIVES)


def animal(name: str, of: str) -> Slot:
    """The second word of a code; with the adjective in slot `of` a code, a fifth of which training never shows."""
    return Slot(name, lambda state, bound: ANIMALS, ANIMALS, combination=lambda s, b, v: f"code:{b[of]} {v}")


def digit(name: str, first: int = 0) -> Slot:
    """Any digit from `first`."""
    return Slot(name, lambda state, bound: DIGITS[first:], DIGITS[first:])
