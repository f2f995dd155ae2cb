"""Lessons before the run's own rows: how they end, and that a killed run goes on in the right one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minglm.data.key_value import BEGIN  # noqa: E402
from minglm.data.shards import IGNORE  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.training import curriculum as curriculums  # noqa: E402
from minglm.training import metrics  # noqa: E402
from minglm.training import recipe as recipes  # noqa: E402
from minglm.training.curriculum import Curriculum, Lesson  # noqa: E402
from minglm.training.loop import TrainingRun, train  # noqa: E402
from minglm.training.parallel_dims import ParallelDims, check  # noqa: E402

LESSONS = [{"words": 8, "seq_len": 16, "batch_size": 4, "pairs": [1, 2], "until": 0.01, "steps": 3}]
TWO = [*LESSONS, {"words": 12, "seq_len": 24, "batch_size": 2, "pairs": [1, 3], "until": 99.0, "steps": 5}]


def curriculum(lessons=TWO):
    return Curriculum([Lesson(**lesson) for lesson in lessons], list(range(100, 120)), begin=7, seed=0)


def test_a_lesson_ends_when_three_losses_are_low_or_after_its_steps():
    c = curriculum([{**LESSONS[0], "until": 1.0, "steps": 6}, *TWO[1:]])
    losses = [3.0, 0.2, 0.3, 2.4, 0.1, 0.1]  # means of three from the third on: 1.17, 0.97, 0.93, 0.87
    for step, loss in enumerate(losses[:3], 1):
        c.learnt(step, loss, 64)
        assert c.at == 0 and not c.over
    c.learnt(4, losses[3], 64)
    assert c.at == 1 and c.ends == [4] and c.steps == 4 and c.tokens == 256
    for step in (5, 6):
        c.learnt(step, 0.1, 48)
        assert c.at == 1, "the losses of the lesson before do not count"
    c.learnt(7, 0.1, 48)
    assert c.over and c.steps == 7 and c.tokens == 256 + 3 * 48
    unlearnt = curriculum(LESSONS)
    for step in (1, 2, 3):
        unlearnt.learnt(step, 5.0, 64)
    assert unlearnt.over


def test_rows_use_the_first_words_of_the_list_and_the_begin_token():
    c = curriculum()
    plain = c.lessons[0].rows(0).batch(2)
    batch = c.batch(2)
    assert batch.tokens.tolist() == [[7 if t == BEGIN else 99 + t for t in row] for row in plain.tokens.tolist()]
    assert batch.targets.tolist() == [[t if t == IGNORE else 99 + t for t in row] for row in plain.targets.tolist()]
    assert int(batch.tokens.max()) < 108


def test_state_goes_through_json_and_back():
    import json

    c, other = curriculum(), curriculum()
    for step in (1, 2, 3, 4):
        c.learnt(step, 1.5, 10)
    other.load_state_dict(json.loads(json.dumps(c.state_dict())))
    assert other == c and other.at == 1 and other.recent == [1.5]


@pytest.mark.parametrize(
    "value, says",
    [
        ("fast", "list of lessons"),
        ([64], "list of lessons"),
        ([{"word": 64}], "did you mean 'words'"),
        ([{"seq_len": 32}], "how many words"),
        ([{"words": 64, "pairs": [4, 2]}], "fewest and most"),
        ([{"words": 64, "pairs": 3}], "two whole numbers"),
        ([{"words": 64, "until": 0}], "above 0"),
        ([{"words": 64, "steps": 0}], "at least 1"),
        ([{"words": 6, "pairs": [2, 4]}], "different words"),
        ([{"words": 64, "seq_len": 100_000, "steps": 5}], "max_position_embeddings"),
    ],
)
def test_impossible_lessons_are_refused_in_one_line(value, says):
    with pytest.raises(InputError, match=says) as error:
        recipes.load("ci_pretrain", {"curriculum": value})
    assert "\n" not in str(error.value)


def test_only_new_weights_have_lessons():
    for change in ({"curriculum": LESSONS}, {"embedding_std": 0.5}):
        with pytest.raises(InputError, match="only stage pretrain"):
            recipes.load("ci_sparse", change)


def test_lessons_that_need_more_words_than_there_are_or_all_steps_are_refused():
    with pytest.raises(InputError, match="use at most that"):
        Curriculum([Lesson(words=64)], list(range(10)), 0, 0)
    with pytest.raises(InputError, match="leave none"):
        recipes.load("ci_pretrain", {"curriculum": LESSONS, "steps": 3})


def test_processes_share_the_rows_of_a_lesson_evenly():
    recipe = recipes.load("ci_pretrain", {"curriculum": [{**LESSONS[0], "batch_size": 3}], "batch_size": 4})
    with pytest.raises(InputError, match="curriculum: batch_size=3"):
        check(ParallelDims(dp=2), recipe, recipe.config())


def test_words_are_ordinary_tokens_each_once():
    class Words:
        vocab_size, bos = 40, 0

    ids = curriculums.of([], Words(), seed=0).word_ids
    assert sorted(ids) == list(range(6, 40)) and list(ids) != sorted(ids)


@pytest.mark.slow
def test_a_run_with_lessons_goes_on_after_a_kill_as_if_nothing_had_been(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    changes = {"curriculum": TWO, "steps": 9, "checkpoint_every": 1, "val_every": 4, "embedding_std": 0.5}
    recipe = recipes.load("ci_pretrain", changes)
    last = train(recipe, tmp_path / "straight", progress=False, device="cpu")
    learnt, calls = Curriculum.learnt, []

    def killed(self, step, loss, tokens):
        calls.append(step)
        if calls in ([1, 2], [1, 2, 2, 3, 4, 5]):  # in the first lesson, and in the second
            raise KeyboardInterrupt
        learnt(self, step, loss, tokens)

    monkeypatch.setattr(Curriculum, "learnt", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "killed", progress=False, device="cpu")
    train(recipe, tmp_path / "killed", progress=False, device="cpu")
    tables = [metrics.read(tmp_path / run / "metrics.csv") for run in ("straight", "killed")]
    a, b = ([{k: v for k, v in row.items() if k not in metrics.TIMED} for row in table] for table in tables)
    assert a == b and len(a) == 9
    # Three steps of 4 × 16, three of 2 × 24 (their losses are all below 99), then the recipe's own.
    own = recipe.tokens_per_step
    assert [row["tokens"] for row in a] == [64, 128, 192, 240, 288, 336, 336 + own, 336 + 2 * own, 336 + 3 * own]
    assert last["tokens"] == 336 + 3 * own and all(row["dropped_tokens"] == 0 for row in a)
    assert [row["mtp_loss"] is None for row in a] == [True] * 6 + [False] * 3


@pytest.mark.slow
def test_the_embedding_starts_as_wide_as_the_recipe_says(tmp_path):
    def first_weights(name, **changes):
        recipe = recipes.load("ci_pretrain", changes)
        return TrainingRun(recipe, tmp_path / name, None, "cpu").model.state_dict()

    (tmp_path / "wide").mkdir()
    (tmp_path / "usual").mkdir()
    wide, usual = first_weights("wide", embedding_std=0.5), first_weights("usual")
    assert torch.allclose(wide["embed_tokens.weight"], usual["embed_tokens.weight"] * 25)
    assert np.isclose(float(wide["embed_tokens.weight"].std()), 0.5, rtol=0.02)
    assert all(wide[k].equal(usual[k]) for k in wide if k != "embed_tokens.weight")
