"""Byte-level BPE: round trip, determinism, single digits, special tokens."""

import random
import time

import pytest

from minglm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minglm.errors import InputError

TEXTS = ["def add(a, b):\n    return a + b\n" * 20, "The code of Tokiru is 4821. Grüße, 你好!\n" * 20]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 320)


@pytest.mark.parametrize("text", ["plain", "tabs\tand\n\n  spaces ", "ünï \U0001f600 \x00\x7f", "", "<|bos|> as text"])
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_twice_gives_the_same_file(tokenizer):
    assert Tokenizer.train(TEXTS, 320).sha256 == tokenizer.sha256


def test_digits_are_single_tokens(tokenizer):
    ids = tokenizer.encode("is 4821.")
    assert [tokenizer.token(i) for i in ids if tokenizer.token(i).isdigit()] == ["4", "8", "2", "1"]


def test_special_tokens_have_fixed_ids_and_are_not_made_from_text(tokenizer):
    assert (tokenizer.bos, tokenizer.eos) == (0, 1)
    assert len({tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.user, tokenizer.assistant}) == 5
    assert max(tokenizer.encode("<|user|>")) >= len(SPECIAL_TOKENS) and len(tokenizer.encode("<|user|>")) > 1
    assert tokenizer.encode("<|user|>", special=True) == [tokenizer.user]
    assert tokenizer.decode([tokenizer.user, *tokenizer.encode("hi")]) == "hi"
    assert tokenizer.decode([tokenizer.user], special=True) == "<|user|>"


@pytest.mark.parametrize("piece", ["letters", "a", " ", "你好", "-", "12", "\n"])
def test_a_run_without_a_break_trains_and_encodes_in_seconds(piece):
    """Uncut, 1.5 MB of one word take minutes to train on and to encode: the cost grows with its square."""
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefghij", k=200_000)) if piece == "letters" else piece * (200_000 // len(piece))
    started = time.process_time()
    tokenizer = Tokenizer.train([text], 320)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - started < 20


def test_ordinary_text_is_not_cut(tokenizer):
    pieces = [p for p, _ in tokenizer._backend.pre_tokenizer.pre_tokenize_str("a " + "x" * 255 + " " * 9 + "y" * 257)]
    assert [len(p) for p in pieces] == [1, 256, 9, 256, 1]


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == tokenizer.sha256 and again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert again.vocab_size == tokenizer.vocab_size <= 320


def test_bytes_that_are_no_text_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"text 'a\\udcff': is not Unicode"):
        tokenizer.encode(b"a\xff".decode("utf-8", "surrogateescape"))


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match="use 262 or more"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(InputError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(InputError, match="not a tokenizer.json"):
        Tokenizer.load(tmp_path)
