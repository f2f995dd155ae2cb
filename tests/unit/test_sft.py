"""Instruction data: the loss counts the assistant only, held-out names stay held out, the needle is where it should be."""
import json

import numpy as np
import pytest
import torch

from minglm import sft, shards
from minglm.errors import InputError
from minglm.shards import IGNORE
from minglm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["The code of Tokiru is 4821.\nWhat is the code of Miranu? def f(): return\n" * 50], 400)


@pytest.fixture(scope="module")
def filler(tokenizer, tmp_path_factory):
    docs = [[tokenizer.bos, *tokenizer.encode(f"document {i} says word{i} again. " * 20), tokenizer.eos] for i in range(40)]
    return shards.write(tmp_path_factory.mktemp("filler") / "train", docs, 400)


def test_loss_counts_the_assistant_only(tokenizer):
    ids, counted = sft.encode_chat(tokenizer, (("user", "hello"), ("assistant", "yes"), ("user", "more"), ("assistant", "no")))
    assert ids[0] == tokenizer.bos and len(ids) == len(counted)
    kept = [i for i, c in zip(ids, counted) if c]
    assert kept == [*tokenizer.encode("yes"), tokenizer.eos, *tokenizer.encode("no"), tokenizer.eos]


@pytest.mark.parametrize("task", sft.TASKS)
def test_examples_are_deterministic_and_never_use_held_out_words(task):
    import re
    some = sft.examples(task, 1, 200)
    assert some == sft.examples(task, 1, 200) and some != sft.examples(task, 2, 200)
    for example in some:
        text = " ".join(t for _, t in example.messages)
        if task != "arithmetic":
            assert not [w for w in re.findall(r"\b\d\d\b", text) if sft.is_held_out(w)]
        assert not [w for w in re.findall(r"\b[A-Z][a-z]{5}\b", text) if sft.is_held_out(w)]
    if task == "arithmetic":
        for example in some:
            a, b, c = map(int, re.findall(r"\d+", example.messages[1][1]))
            assert a + b == c


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'lookup'"):
        sft.examples("lokup", 0, 1)


def test_held_out_share_and_draws():
    rng = np.random.default_rng(0)
    share = np.mean([sft.is_held_out(str(n)) for n in range(10, 100)])
    assert 0.1 < share < 0.3
    assert all(sft.is_held_out(sft.draw_name(rng, True)) and not sft.is_held_out(sft.draw_code(rng)) for _ in range(50))


@pytest.mark.parametrize("length", [48, 100, 333])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_needle_has_the_length_and_depth_asked_for(tokenizer, filler, length, depth):
    e = sft.lookup_example(np.random.default_rng(3), tokenizer, length, depth, True, filler.tokens)
    assert len(e.prompt_ids) == length and e.prompt_ids[-1] == tokenizer.assistant and e.answer_ids[-1] == tokenizer.eos
    text = tokenizer.decode(e.prompt_ids)
    assert text.count(f"The code of {e.name} is {e.code}.") == 1 and text.endswith(f"What is the code of {e.name}?")
    needle = tokenizer.encode(f"\n{sft.statement(e.name, e.code)}\n")
    at = next(i for i in range(length) if e.prompt_ids[i:i + len(needle)] == needle)
    question = len(tokenizer.encode(f"\nWhat is the code of {e.name}?"))
    assert at - 2 == round(depth * (length - 3 - len(needle) - question))
    assert sft.is_held_out(e.name) and sft.is_held_out(e.code)
    assert e.is_correct(tokenizer.decode(e.answer_ids)) and not e.is_correct("The code is 0.") and not e.is_correct("")


def test_control_leaves_the_needle_out(tokenizer, filler):
    e = sft.lookup_example(np.random.default_rng(3), tokenizer, 100, 0.5, True, filler.tokens, context=False)
    assert len(e.prompt_ids) == 100 and e.code not in tokenizer.decode(e.prompt_ids)
    with pytest.raises(InputError, match="longer passage"):
        sft.lookup_example(np.random.default_rng(3), tokenizer, 10, 0.5, True, filler.tokens)


def test_default_filler_is_validation_text():
    tokenizer = Tokenizer.train(["The code of a is 1"], 300)
    e = sft.lookup_example(np.random.default_rng(0), tokenizer, 200, 0.5, False)
    assert len(e.prompt_ids) == 200


def test_loader_rows(tokenizer, filler):
    tasks = {"lookup": 0.5, "copy": 0.2, "arithmetic": 0.1, "returns": 0.2}
    loader = sft.SftLoader(tokenizer, filler, 4, 160, tasks, seed=1)
    again = sft.SftLoader(tokenizer, filler, 4, 160, tasks, seed=1)
    seen = 0
    for step in range(12):
        batch = loader.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(batch, again.batch(step)))
        tokens, targets, start = batch
        assert tokens.shape == targets.shape == start.shape == (4, 160)
        positions = torch.arange(160)
        assert (start <= positions).all(), "every query sees at least itself"
        learn = targets != IGNORE
        seen += int(learn.sum())
        assert learn.any(-1).all(), "no row without a lesson"
        assert (targets[:, :-1][learn[:, :-1]] == tokens[:, 1:][learn[:, :-1]]).all()
        assert not (targets == tokenizer.pad).any() and not (targets == tokenizer.user).any()
        for r in range(4):                                        # what is learnt lies between <|assistant|> and <|eos|>
            speaking = False
            for t in range(160):
                speaking = tokens[r, t] == tokenizer.assistant or (speaking and tokens[r, t] != tokenizer.eos)
                assert not learn[r, t] or speaking
        decoded = tokenizer.decode(tokens.flatten().tolist())
        import re
        assert not [w for w in re.findall(r"\bcode of ([A-Z][a-z]{5})\b", decoded) if sft.is_held_out(w)]
    assert seen > 200
    with pytest.raises(InputError, match="did you mean 'copy'"):
        sft.SftLoader(tokenizer, filler, 1, 64, {"cpy": 1.0})
    with pytest.raises(InputError, match="positive"):
        sft.SftLoader(tokenizer, filler, 1, 64, {"copy": 0.0})


def test_lookup_rows_repeat_what_they_state(tokenizer, filler):
    import re
    for seed in range(20):
        ids, counted = sft.lookup_row(np.random.default_rng(seed), tokenizer, filler.tokens, 256, 4)
        assert len(ids) == len(counted) == 257
        text = tokenizer.decode(ids)
        facts: dict[str, set] = {}
        mentions = re.findall(r"The code of (\w+) is (\d\d)", text)
        for name, code in mentions:
            facts.setdefault(name, set()).add(code)
        assert mentions and all(len(codes) == 1 for codes in facts.values()) and len(mentions) > len(facts)
        hidden = tokenizer.decode([i for i, c in zip(ids, counted) if not c])
        first = {n: c for n, c in reversed(mentions)}
        assert all(n in hidden for n in facts) and sum(c in hidden for c in first.values()) == len(facts)


def test_mixed_loader_replaces_the_share_it_says(tokenizer, filler):
    base = shards.Loader(filler, 4, 128, 0)
    mixed = sft.MixedLoader(base, tokenizer, 0.3, 2, 0)
    replaced = 0
    for step in range(20):
        a, b = base.batch(step), mixed.batch(step)
        replaced += sum(not torch.equal(x, y) for x, y in zip(a.tokens, b.tokens))
        assert torch.equal(mixed.batch(step).tokens, b.tokens)
    assert replaced == 24


def test_own_conversations(tokenizer, filler, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "answer"}]}) for i in range(3)) + "\n")
    conversations = sft.load_jsonl(path)
    assert len(conversations) == 3
    batch = sft.SftLoader(tokenizer, filler, 2, 64, {"file": 1.0}, conversations=conversations).batch(0)
    assert "answer" in tokenizer.decode(batch.tokens[0].tolist())
    long = [sft.Example("file", (("user", "word " * 300), ("assistant", "end")))]
    batch = sft.SftLoader(tokenizer, filler, 1, 64, {"file": 1.0}, conversations=long).batch(0)
    assert (batch.targets != IGNORE).any(), "a conversation longer than a row keeps its answer"
    for text, says in (("{}", "line 1: must be"), ('{"messages": [{"role": "king", "content": ""}]}', "roles must be"), ("", "no conversation")):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            sft.load_jsonl(path)
