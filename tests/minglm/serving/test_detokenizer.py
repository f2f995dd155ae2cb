"""Text and log-probabilities of a growing answer: against the whole text, cut where Python's own `find` says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minglm.serving.detokenizer import LogprobAligner, StreamDetokenizer


class Pieces:
    """A tokenizer whose tokens are given runs of bytes; number 0 is a special token without any."""

    def __init__(self, *pieces: bytes):
        self.pieces = [b"", *pieces]

    def decode(self, ids, special=False):
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, index):
        return self.pieces[index]

    def token(self, index):
        return self.decode([index]) if index else "<|eos|>"


def cut_up(text: bytes, lengths: list[int]) -> Pieces:
    """A tokenizer under which tokens 1, 2, … are this text, in pieces of these lengths (the last takes the rest)."""
    pieces, at = [], 0
    for n in lengths:
        pieces.append(text[at : at + n])
        at += n
    return Pieces(*(p for p in [*pieces, text[at:]] if p))


def streamed(tokenizer, stops, together=1):
    """(pieces of text, log-probabilities that came with each, the detokenizer) of tokens 1, 2, … up to the last."""
    tokens = range(1, len(tokenizer.pieces))
    detokenizer, aligner = StreamDetokenizer(tokenizer, stops), LogprobAligner(tokenizer)
    texts, named = [], []
    for at in range(0, len(tokens), together):
        new, last = tokens[at : at + together], at + together >= len(tokens)
        texts.append(detokenizer.add(new, last))
        aligner.add(new, [-float(t) for t in new])
        named.append(aligner.leave(len(detokenizer.sent), last or detokenizer.stopped, detokenizer.stopped))
        if detokenizer.stopped:
            break
    return texts, named, detokenizer


ALPHABET = "ab5€好。é😀"
texts = st.text(ALPHABET, max_size=12)
cuts = st.lists(st.integers(1, 4), max_size=20)


@given(texts, cuts, st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=1), st.integers(1, 3))
def test_nothing_of_a_stop_text_is_sent_and_log_probabilities_follow_the_text(text, lengths, stops, together):
    """Every prefix that was sent is a prefix of the text before the stop; bytes of the log-probabilities join to it."""
    tokenizer = cut_up(text.encode(), lengths)
    pieces, named, detokenizer = streamed(tokenizer, stops, together)
    ends = [at for s in stops if (at := text.find(s)) >= 0]
    want = text[: min(ends)] if ends else text
    assert "".join(pieces) == want and detokenizer.stopped == bool(ends)
    flat = [t for ts in named for t in ts]
    assert b"".join(t.data for t in flat) == want.encode()
    assert [t.logprob for t in flat] == [-float(i + 1) for i in range(len(flat))], "one each, in order, none twice"
    if not ends:
        assert len(flat) == len(tokenizer.pieces) - 1
    sent, told = "", b""
    for piece, ts in zip(pieces, named, strict=True):
        sent, told = sent + piece, told + b"".join(t.data for t in ts)
        assert sent.encode().startswith(told), "a log-probability tells more than the text"
    for t in flat:
        if t.data and "\ufffd" not in t.token:
            assert want[t.offset :].startswith(t.token)


@pytest.mark.parametrize("stop", ["5€", "好。", "€", "😀b", "b😀"])
@pytest.mark.parametrize("text", ["costs 5€ more", "你好。再见", "ab😀b", "only b", "5"])
def test_stop_texts_with_characters_of_several_bytes(text, stop):
    pieces, _, detokenizer = streamed(cut_up(text.encode(), [1] * 40), [stop])
    assert "".join(pieces) == text.partition(stop)[0] and detokenizer.stopped == (stop in text)


@given(st.binary(max_size=12), cuts)
def test_bytes_that_are_no_text(data, lengths):
    tokenizer = cut_up(data, lengths)
    pieces, named, _ = streamed(tokenizer, [])
    assert "".join(pieces) == data.decode(errors="replace")
    flat = [t for ts in named for t in ts]
    assert b"".join(t.data for t in flat) == data
    for t in flat:
        assert "\ufffd" in t.token or data.decode(errors="replace")[t.offset :].startswith(t.token)


def test_a_token_that_a_stop_text_cuts_into_and_what_comes_after():
    """Of "wor" the "w" leaves; "ld" completes the stop text and is counted, the tokens behind it are not."""
    pieces, named, detokenizer = streamed(Pieces(b"hello ", b"wor", b"ld", b"!", b"?"), ["orl"], together=5)
    assert "".join(pieces) == "hello w" and detokenizer.tokens == [1, 2, 3]
    assert [(t.token, t.offset) for t in named[0]] == [("hello ", 0), ("w", 6)]


def test_a_special_token_has_its_name_and_no_bytes():
    tokenizer = Pieces(b"a", "é".encode()[:1], "é".encode()[1:])
    aligner = LogprobAligner(tokenizer)
    aligner.add([1, 2, 3, 0], [-1.0] * 4)
    assert aligner.leave(1) == [("a", -1.0, b"a", 0)]
    halves = aligner.leave(2, ended=True)
    assert [(t.token, t.data, t.offset) for t in halves] == [
        ("\ufffd", b"\xc3", 1),
        ("\ufffd", b"\xa9", 1),
        ("<|eos|>", b"", 2),
    ]


def test_the_tokenizer_s_bytes_join_to_its_text():
    """Against the decoder of the `tokenizers` library, over random tokens, most of them parts of characters."""
    pytest.importorskip("tokenizers")
    import random

    from minglm.data.tokenizer import Tokenizer
    from minglm.rl.tasks import task_tokenizer

    rng = random.Random(0)
    for tokenizer in (Tokenizer.train(["costs 5€, 你好。 😀 naïve"] * 30, 300), task_tokenizer()):
        for _ in range(500):
            ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randrange(1, 30))]
            assert b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace") == tokenizer.decode(ids)
