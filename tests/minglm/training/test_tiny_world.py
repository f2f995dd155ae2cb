"""What a recipe trains on: the tiny world, its settings, and what is refused."""

import re

import pytest
import torch

from minglm.data.shards import IGNORE
from minglm.data.tiny_world import vocabulary
from minglm.data.tiny_world.chats import TinyWorldChats
from minglm.errors import InputError
from minglm.training.loop import TrainingRun, train
from minglm.training.recipe import Recipe
from minglm.training.tiny_world import open_tiny_world

SMALL = {"vocab_size": 800}


def recipe(**changes):
    return Recipe(model="nano", corpus="tiny_world", model_changes=SMALL, seq_len=64, batch_size=2, **changes)


def test_training_and_validation_rows_are_of_the_kinds_asked_for(tmp_path):
    _, train_rows, unseen, _ = open_tiny_world(recipe(documents={"sums": 1.0}), None)
    sums, title = vocabulary.token_ids()["Sums"], 1
    for loader in (train_rows, unseen):
        batch = loader.batch(0)
        assert (batch.tokens[:, title] == sums).all()
    assert not torch.equal(train_rows.batch(0).tokens, unseen.batch(0).tokens)
    assert not list(tmp_path.iterdir())  # nothing is written


def test_conversations_count_answers_alone(tmp_path):
    tokenizer, train_rows, *_ = open_tiny_world(recipe(stage="sft", tasks={"copy": 0.5, "needles": 0.5}), None)
    batch = train_rows.batch(0)
    assistant = tokenizer.assistant
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        inside = False
        for token, target in zip(tokens, targets, strict=True):
            inside = (inside or token == assistant) and token != tokenizer.eos
            assert (target != IGNORE) == inside or token in (tokenizer.pad, tokenizer.eos)


def test_a_passage_is_asked_for_several_of_its_facts_and_each_answer_stands_in_it():
    """Read with regular expressions: a plain question's answer is the sentence of the passage, and none comes twice."""
    chats, t = TinyWorldChats(1, 320, {"needles": 1.0}, seed=3), vocabulary.tokenizer()
    turns = []
    for step in range(40):
        tokens, _, start = (x[0] for x in chats.batch(step))
        assert len(tokens) == 320
        for first in start.unique().tolist():
            words = [i for i in tokens[start == first].tolist() if i not in (t.bos, t.eos, t.pad)]
            cuts = [i for i, w in enumerate(words) if w in (t.user, t.assistant)]
            said = [t.decode(words[a + 1 : b]) for a, b in zip(cuts, [*cuts[1:], None], strict=False)]
            questions, answers = said[::2], said[1::2]
            if not answers or len(answers) < len(questions):
                continue  # padding, or cut off where the row ends
            told = questions[0].split("Now tell me.")[0]
            assert len(set(answers)) == len(answers)
            for question, answer in zip(questions, answers, strict=True):
                if (name := re.search(r"What do we call ((?:[A-Z]\w+ ?)+)\?$", question)) and "know" not in answer:
                    assert answer.startswith(f"We call {name[1]} ") and answer in told
            turns.append(len(answers))
    assert set(turns) == {1, 2, 3, 4} and len(turns) > 30


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_rows_opens_with_a_passage_and_some_fill_theirs(share):
    chats, t = TinyWorldChats(1, 640, {"needles": share, "copy": 1.0}, seed=5), vocabulary.tokenizer()
    lengths = []
    for step in range(200):
        tokens, _, start = (x[0] for x in chats.batch(step))
        first = tokens[start == start[0]].tolist()
        if "Now tell me." in t.decode(first):
            lengths.append(len(first))
        assert "Now tell me." not in t.decode(tokens[start != start[0]].tolist())  # a passage stands first or nowhere
    expected = 200 * share  # binomial: three standard deviations
    assert abs(len(lengths) - expected) <= 3 * (expected * (1 - share)) ** 0.5
    if share == 1.0:  # the larger of two draws, 64 to about 545 tokens, lies above 480 in 1 - (416 / 481)² of the rows
        assert sum(n > 480 for n in lengths) / len(lengths) == pytest.approx(0.25, abs=0.1)


def test_a_share_of_rows_above_one_is_refused():
    with pytest.raises(InputError, match="share of needles = 2.0: a share of rows"):
        TinyWorldChats(1, 320, {"needles": 2.0, "copy": 1.0})


def test_a_small_run_goes_through_pairs_and_documents_and_resumes(tmp_path):
    whole = recipe(steps=6, pairs_steps=2, pairs_grow_steps=1, checkpoint_every=3, val_every=3, val_batches=1)
    one = train(whole, tmp_path / "one", progress=False)
    train(whole, tmp_path / "two", progress=False)
    assert one["val_loss"] > 0 and (tmp_path / "one" / "tokenizer.json").is_file()
    first, second = ((tmp_path / n / "metrics.csv").read_text().splitlines() for n in ("one", "two"))
    assert [r.split(",")[:5] for r in first] == [r.split(",")[:5] for r in second]


def test_embedding_std_widens_the_same_draw(tmp_path):
    def first(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        run = TrainingRun(recipe(steps=1, **changes), folder, None, "cpu")
        return run.model.embed_tokens.weight.detach()

    narrow, wide = first("a"), first("b", embedding_std=0.5)
    assert torch.allclose(wide, narrow * 25) and float(wide.std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"documents": {"storys": 1}}, "did you mean 'story'"),
        ({"lookup_share": 0.5}, "documents"),
        ({"recall_steps": 5}, "documents"),
        ({"stage": "sft", "tasks": {"lookup": 1}}, "tasks key 'lookup'"),
        ({"pairs_words": 4, "pairs_steps": 3}, "use 64"),
        ({"stage": "long_context", "embedding_std": 0.5}, "new weights"),
        ({"pairs_words": 5000, "pairs_steps": 3}, "words of the language"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as err:
        open_tiny_world(recipe(**changes), None)
    assert "\n" not in str(err.value)


def test_a_vocabulary_too_small_names_one_that_fits(tmp_path):
    small = Recipe(model="nano", corpus="tiny_world", seq_len=64, batch_size=2)
    with pytest.raises(InputError, match="vocab_size: 800"):
        open_tiny_world(small, None)
    open_tiny_world(small.changed(model_changes=SMALL), None)
    with pytest.raises(InputError, match="has no kinds"):
        Recipe(documents={"story": 1.0})
