"""Instruction data: the loss counts the assistant only, held-out names stay held out, the needle is where it should
be."""

import json

import numpy as np
import pytest
import torch

from minglm.data import chat, shards, synthetic_facts
from minglm.data.shards import IGNORE
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["The code of Tokiru is 4821.\nWhat is the code of Miranu? def f(): return\n" * 50], 400)


@pytest.fixture(scope="module")
def filler(tokenizer, tmp_path_factory):
    docs = [
        [tokenizer.bos, *tokenizer.encode(f"document {i} says word{i} again. " * 20), tokenizer.eos] for i in range(40)
    ]
    return shards.write(tmp_path_factory.mktemp("filler") / "train", docs, 400)


def test_loss_counts_the_assistant_only(tokenizer):
    ids, counted = chat.encode_chat(
        tokenizer, (("user", "hello"), ("assistant", "yes"), ("user", "more"), ("assistant", "no"))
    )
    assert ids[0] == tokenizer.bos and len(ids) == len(counted)
    kept = [i for i, c in zip(ids, counted, strict=True) if c]
    assert kept == [*tokenizer.encode("yes"), tokenizer.eos, *tokenizer.encode("no"), tokenizer.eos]


@pytest.mark.parametrize("task", chat.TASKS)
def test_examples_are_deterministic_and_never_use_held_out_words(task):
    import re

    some = chat.examples(task, 1, 200)
    assert some == chat.examples(task, 1, 200) and some != chat.examples(task, 2, 200)
    for example in some:
        text = " ".join(t for _, t in example.messages)
        assert not [
            w
            for w in re.findall(r"\b[a-z]+ [a-z]+\b", text)
            if synthetic_facts.find_code(w) and synthetic_facts.is_held_out(w)
        ]
        assert not [w for w in re.findall(r"\b[A-Z][a-z]{5}\b", text) if synthetic_facts.is_held_out(w)]
    if task == "arithmetic":
        for example in some:
            a, b, c = map(int, re.findall(r"\d+", example.messages[1][1]))
            assert a + b == c


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'lookup'"):
        chat.examples("lokup", 0, 1)


def test_held_out_share_and_draws():
    rng = np.random.default_rng(0)
    share = np.mean([synthetic_facts.is_held_out(str(n)) for n in range(10, 100)])
    assert 0.1 < share < 0.3
    assert all(
        synthetic_facts.is_held_out(synthetic_facts.draw_name(rng, True))
        and not synthetic_facts.is_held_out(synthetic_facts.draw_code(rng))
        for _ in range(50)
    )


@pytest.mark.parametrize("length", [48, 100, 333])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_needle_has_the_length_and_depth_asked_for(tokenizer, filler, length, depth):
    e = chat.lookup_example(np.random.default_rng(3), tokenizer, length, depth, True, filler.tokens)
    assert len(e.prompt_ids) == length and e.prompt_ids[-1] == tokenizer.assistant
    text = tokenizer.decode(e.prompt_ids)
    assert text.count(f"The code of {e.name} is {e.code}.") == 1 and text.endswith(f"What is the code of {e.name}?")
    needle = tokenizer.encode(f"\n{synthetic_facts.statement(e.name, e.code)}\n")
    at = next(i for i in range(length) if e.prompt_ids[i : i + len(needle)] == needle)
    question = len(tokenizer.encode(f"\nWhat is the code of {e.name}?"))
    assert at - 2 == round(depth * (length - 3 - len(needle) - question))
    assert synthetic_facts.is_held_out(e.name) and synthetic_facts.is_held_out(e.code)
    assert e.expected == synthetic_facts.statement(e.name, e.code) and e.told == ((e.name, e.code),)


def test_several_facts_all_stand_in_the_passage_in_the_order_told(tokenizer, filler):
    e = chat.lookup_example(np.random.default_rng(4), tokenizer, 333, 0.5, True, filler.tokens, facts=4)
    text = tokenizer.decode(e.prompt_ids)
    places = [text.index(synthetic_facts.statement(n, c)) for n, c in e.told]
    assert len(places) == 4 and places == sorted(places) and (e.name, e.code) in e.told and len(e.prompt_ids) == 333


def test_control_leaves_the_needle_out(tokenizer, filler):
    e = chat.lookup_example(np.random.default_rng(3), tokenizer, 100, 0.5, True, filler.tokens, context=False)
    assert len(e.prompt_ids) == 100 and e.code not in tokenizer.decode(e.prompt_ids)
    with pytest.raises(InputError, match="longer passage"):
        chat.lookup_example(np.random.default_rng(3), tokenizer, 10, 0.5, True, filler.tokens)


def test_default_filler_is_validation_text():
    tokenizer = Tokenizer.train(["The code of a is 1"], 300)
    e = chat.lookup_example(np.random.default_rng(0), tokenizer, 200, 0.5, False)
    assert len(e.prompt_ids) == 200


def test_loader_rows(tokenizer, filler):
    tasks = {"lookup": 0.5, "copy": 0.2, "arithmetic": 0.1, "returns": 0.2}
    loader = chat.SftLoader(tokenizer, filler, 4, 160, tasks, seed=1)
    again = chat.SftLoader(tokenizer, filler, 4, 160, tasks, seed=1)
    seen = 0
    for step in range(12):
        batch = loader.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(batch, again.batch(step), strict=True))
        tokens, targets, start = batch
        assert tokens.shape == targets.shape == start.shape == (4, 160)
        positions = torch.arange(160)
        assert (start <= positions).all(), "every query sees at least itself"
        learn = targets != IGNORE
        seen += int(learn.sum())
        assert learn.any(-1).all(), "no row without a lesson"
        assert (targets[:, :-1][learn[:, :-1]] == tokens[:, 1:][learn[:, :-1]]).all()
        assert not (targets == tokenizer.pad).any() and not (targets == tokenizer.user).any()
        for r in range(4):  # what is learnt lies between <|assistant|> and <|eos|>
            speaking = False
            for t in range(160):
                speaking = tokens[r, t] == tokenizer.assistant or (speaking and tokens[r, t] != tokenizer.eos)
                assert not learn[r, t] or speaking
        decoded = tokenizer.decode(tokens.flatten().tolist())
        import re

        assert not [w for w in re.findall(r"\bcode of ([A-Z][a-z]{5})\b", decoded) if synthetic_facts.is_held_out(w)]
    assert seen > 200
    with pytest.raises(InputError, match="did you mean 'copy'"):
        chat.SftLoader(tokenizer, filler, 1, 64, {"cpy": 1.0})
    with pytest.raises(InputError, match="positive"):
        chat.SftLoader(tokenizer, filler, 1, 64, {"copy": 0.0})


def test_lookup_chats_ask_for_what_they_state_and_count_the_answers_alone(tokenizer, filler):
    import re

    for seed in range(20):
        ids, counted = chat.lookup_chat(np.random.default_rng(seed), tokenizer, filler.tokens, 256, 3)
        assert len(ids) == len(counted) == 256
        text = tokenizer.decode(ids)
        mentions = re.findall(r"The code of (\w+) is (\w+ \w+)\.", text)
        facts = dict(mentions)
        assert 1 <= len(facts) <= 3 and len(mentions) == 2 * len(facts) and all(facts[n] == c for n, c in mentions)
        learnt = tokenizer.decode([i for i, c in zip(ids, counted, strict=True) if c])
        assert [c for _, c in re.findall(r"The code of (\w+) is (\w+ \w+)\.", learnt)] == [
            c for _, c in mentions[len(facts) :]
        ]
        assert "What is" not in learnt


def test_recall_comes_first_in_short_rows(tokenizer, filler):
    mixed = chat.MixedLoader(shards.Loader(filler, 3, 256, 0), tokenizer, 0.3, 1, 0, recall_steps=2)
    for step in range(2):
        batch = mixed.batch(step)
        assert batch.tokens.shape == (3, 256) and len(batch.doc_start.unique()) >= 4
        assert (batch.targets == tokenizer.eos).sum() == 3 * 4
    assert (mixed.batch(2).targets != IGNORE).sum() > 256


def test_code_words_are_whole_in_a_vocabulary_with_room():
    text = "\n".join(f"def function_{i}(value):\n    return value + {i} if value else None" for i in range(3000))
    tokenizer = Tokenizer.train([text], 1100, whole=synthetic_facts.CODE_WORDS)
    assert all(len(tokenizer.encode(" " + word)) == 1 for word in synthetic_facts.CODE_WORDS)
    assert (
        synthetic_facts.find_code("It is amber falcon, not calm otter") == "amber falcon"
        and synthetic_facts.find_code("amber") is None
    )


def test_mixed_loader_replaces_the_share_it_says(tokenizer, filler):
    base = shards.Loader(filler, 4, 128, 0)
    mixed = chat.MixedLoader(base, tokenizer, 0.3, 2, 0)
    replaced = 0
    for step in range(20):
        a, b = base.batch(step), mixed.batch(step)
        replaced += sum(not torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))
        assert torch.equal(mixed.batch(step).tokens, b.tokens)
    assert replaced == 24


def test_own_conversations(tokenizer, filler, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "answer"}]})
            for i in range(3)
        )
        + "\n"
    )
    conversations = chat.load_jsonl(path)
    assert len(conversations) == 3
    batch = chat.SftLoader(tokenizer, filler, 2, 64, {"file": 1.0}, conversations=conversations).batch(0)
    assert "answer" in tokenizer.decode(batch.tokens[0].tolist())
    long = [chat.Example("file", (("user", "word " * 300), ("assistant", "end")))]
    batch = chat.SftLoader(tokenizer, filler, 1, 64, {"file": 1.0}, conversations=long).batch(0)
    assert (batch.targets != IGNORE).any(), "a conversation longer than a row keeps its answer"
    for text, says in (
        ("{}", "line 1: must be"),
        ('{"messages": [{"role": "king", "content": ""}]}', "roles must be"),
        ("", "no conversation"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            chat.load_jsonl(path)


def test_packing_by_hand():
    """Two conversations and padding in a row of 9: each sees itself, padding sees padding, and nothing predicts the
    first token of another conversation or padding."""
    parts = [([1, 11, 12, 13], [False, False, True, True]), ([1, 21, 22], [True, True, True])]
    tokens, targets, start = chat.stack([parts, [([1, 31], [False, True])]], 9, pad=7)
    assert tokens.tolist() == [[1, 11, 12, 13, 1, 21, 22, 7, 7], [1, 31, 7, 7, 7, 7, 7, 7, 7]]
    x = IGNORE
    assert targets.tolist() == [[x, 12, 13, x, 21, 22, x, x, x], [31, x, x, x, x, x, x, x, x]]
    assert start.tolist() == [[0, 0, 0, 0, 4, 4, 4, 7, 7], [0, 0, 2, 2, 2, 2, 2, 2, 2]]
    tokens, targets, start = chat.stack([[([1, 2, 3, 4], [False, True, True, True])]], 3, pad=7)  # full to the end
    assert (tokens.tolist(), targets.tolist(), start.tolist()) == ([[1, 2, 3]], [[2, 3, 4]], [[0, 0, 0]])


@pytest.mark.parametrize("tasks", [{"copy": 0.5, "arithmetic": 0.5}, {"lookup": 1.0}])
def test_rows_are_numbered_through_the_steps_and_none_comes_twice(tokenizer, filler, tasks):
    """One step of 6 rows is three steps of 2; another seed has other rows."""
    whole = chat.SftLoader(tokenizer, filler, 6, 128, tasks, seed=5)
    parts = chat.SftLoader(tokenizer, filler, 2, 128, tasks, seed=5)
    for step in range(3):
        for one, *three in zip(whole.batch(step), *(parts.batch(3 * step + i) for i in range(3)), strict=True):
            assert torch.equal(one, torch.cat(three))
    rows = [tuple(r) for step in range(6) for r in whole.batch(step).tokens.tolist()]
    assert len(set(rows)) == len(rows)
    other = {tuple(r) for r in chat.SftLoader(tokenizer, filler, 6, 128, tasks, seed=6).batch(0).tokens.tolist()}
    assert not other & set(rows)


def test_the_mixed_loader_keeps_the_corpus_rows_that_it_does_not_replace(tokenizer, filler):
    """Row n is replaced where n·share passes a whole number; every other row is the corpus loader's own."""
    base, share = shards.Loader(filler, 4, 100, seed=2), 0.3
    mixed = chat.MixedLoader(base, tokenizer, share, 2, seed=2)
    for step in range(5):
        got, own = mixed.batch(step), base.batch(step)
        for i in range(4):
            n = 4 * step + i
            kept = all(torch.equal(a[i], b[i]) for a, b in zip(got, own, strict=True))
            assert kept == (int((n + 1) * share) == int(n * share))


def test_pieces_that_do_not_fit_are_left_out_from_the_end(tokenizer, filler):
    """Ten tokens and one: a lead of two leaves nine; pieces of 4 and 5 fill them, one of 6 does not follow."""
    rng = np.random.default_rng(0)
    pieces = [([n] * n, [True] * n) for n in (4, 5)]
    ids, counted = chat._weave(rng, tokenizer, filler.tokens, 10, pieces, [2, 3], False)
    assert ids == [2, 3, *[4] * 4, *[5] * 5] and counted == [False, False, *[True] * 9]
    ids, counted = chat._weave(rng, tokenizer, filler.tokens, 9, pieces, [2, 3], True)
    assert len(ids) == len(counted) == 10 and ids[:2] == [2, 3] and ids.count(5) == 0 and sum(counted) == 8
    ids, counted = chat._weave(rng, tokenizer, filler.tokens, 30, pieces, [2], False)
    assert len(ids) == len(counted) == 31 and sum(counted) == 9


@pytest.mark.parametrize("spare, whole", [(0, True), (1, True), (-1, False)])
def test_a_conversation_as_long_as_a_row_is_a_row(tokenizer, filler, spare, whole):
    length = 40
    talk = (list(range(10, 10 + length)), [False] * 20 + [True] * 20)
    loader = chat.SftLoader(tokenizer, filler, 1, length + spare - 1, {"copy": 1.0}, seed=0)
    loader.tasks, loader.shares, loader.conversations = ["file"], [1.0], [talk]
    (part, *more) = loader._row(0)
    assert not more and part == (talk if whole else (talk[0][1:], talk[1][1:]))  # its end is kept


@pytest.mark.parametrize("seq_len", [30, chat.SHORT - 1, chat.SHORT, 2 * chat.SHORT - 2, 2 * chat.SHORT - 1])
def test_short_rows_are_cut_in_lessons_that_fill_them(tokenizer, filler, seq_len):
    mixed = chat.MixedLoader(shards.Loader(filler, 1, seq_len, 0), tokenizer, 0.3, 1, 0, recall_steps=1)
    lengths = [len(ids) for ids, _ in mixed._short_row(np.random.default_rng(0))]
    assert lengths == [min(chat.SHORT, seq_len + 1)] * max(1, (seq_len + 1) // chat.SHORT)
