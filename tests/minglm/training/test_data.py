"""What a run learns from and is tried on: unseen text or none, edited text read again, nothing given in vain."""

import json
import random

import pytest

torch = pytest.importorskip("torch")

from minglm.cli.main import main  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.training import metrics  # noqa: E402
from minglm.training import recipe as recipes  # noqa: E402
from minglm.training.loop import TrainingRun, train  # noqa: E402
from minglm.training.recipe import Recipe  # noqa: E402

TINY = {"model_changes": {"num_hidden_layers": 2}, "steps": 2, "val_every": 1, "lookup_share": 0.0, "warmup_steps": 1}


def words(n: int, seed: int = 1) -> list[str]:
    """Words that nobody can guess without having seen them."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 9))) for _ in range(3000)]
    return [rng.choice(known) for _ in range(n)]


def corpus_of(folder, *texts: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    return f"folder:{folder}"


def small(corpus: str, **changes) -> Recipe:
    return recipes.load("ci_pretrain", {**TINY, "corpus": corpus, "corpus_max_bytes": None, **changes})


def notes(run) -> dict:
    return json.loads((run / "versions.json").read_text())


@pytest.mark.parametrize("files", [1, 2])
def test_what_is_learnt_by_heart_does_not_lower_the_validation_loss(files, tmp_path):
    """Random words can be memorised only: the loss on training text falls far, that on unseen text does not."""
    text = words(1500)
    corpus = corpus_of(tmp_path / "text", *(" ".join(text[i::files]) for i in range(files)))
    changes = {"steps": 80, "warmup_steps": 10, "batch_size": 16, "val_every": 80, "mtp_weight": 0.0}
    row = train(small(corpus, **changes), tmp_path / "run", progress=False, device="cpu")
    first = metrics.read(tmp_path / "run" / "metrics.csv")[0]["lm_loss"]
    assert row["lm_loss"] < first - 1.0 and row["val_loss"] > row["lm_loss"] + 1.0
    assert row["validation"] == notes(tmp_path / "run")["validation"]
    assert row["validation"].startswith("the last tenth of")


def test_without_unseen_text_no_loss_is_printed_and_that_is_said(tmp_path, capsys):
    corpus = corpus_of(tmp_path / "text", " ".join(words(60)))
    args = ["train", "ci_pretrain", "--run", str(tmp_path / "run"), "--device", "cpu"]
    for key, value in {**TINY, "corpus": corpus, "corpus_max_bytes": "null"}.items():
        args += ["--set", f"{key}={value}"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert "no unseen text" in out and "validation loss" not in out
    assert "no unseen text" in err and "no validation loss is measured" in err
    assert all(r["val_loss"] is None for r in metrics.read(tmp_path / "run" / "metrics.csv"))
    assert notes(tmp_path / "run")["validation"].startswith("no unseen text")


def test_edited_text_is_trained_on_or_the_run_is_refused(tmp_path):
    """In one process, as a kernel does: the second load sees the new text."""
    corpus, run = corpus_of(tmp_path / "text", "old words " * 300, "more " * 300), tmp_path / "run"
    recipe = small(corpus)
    train(recipe, run, progress=False, device="cpu")
    before = notes(run)
    corpus_of(tmp_path / "text", "new words " * 300)
    with pytest.raises(InputError, match="begun on other text.*--overwrite") as caught:
        train(recipe, run, progress=False, device="cpu")
    assert "\n" not in str(caught.value)
    train(recipe, run, resume=False, progress=False, device="cpu")
    assert all(notes(run)[key] != before[key] for key in ("corpus_sha256", "data", "tokenizer_sha256"))
    now = TrainingRun(recipe, run, None, "cpu")
    assert "new words" in now.tokenizer.decode(now.loader.shard.tokens)


def test_a_run_goes_on_without_its_corpus(tmp_path, capsys):
    corpus, run = corpus_of(tmp_path / "text", "some words " * 300), tmp_path / "run"
    row = train(small(corpus), run, progress=False, device="cpu")
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    assert train(small(corpus), run, progress=False, device="cpu") == row
    assert "going on with" in capsys.readouterr().err


def test_what_a_corpus_leaves_out_is_told(tmp_path, capsys):
    corpus = corpus_of(tmp_path / "text", " ".join(words(500)))
    (tmp_path / "text" / "bad.txt").write_bytes(b"caf\xe9")
    train(small(corpus, warmup_steps=9), tmp_path / "run", progress=False, device="cpu")
    err = capsys.readouterr().err
    assert "1 left out: bad.txt (not UTF-8 text: byte 0xe9 at 3)" in err
    assert "warmup_steps=9: above steps=2" in err and len(err.splitlines()) == 2


# ---------------------------------------------------------------------- conversations


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    corpus = corpus_of(folder / "text", *(" ".join(words(300, i)) for i in range(3)))
    train(small(corpus), folder / "base", progress=False, device="cpu")
    return folder, corpus


def talk(*turns: str) -> dict:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]}


def sft(base, tmp_path, conversations: list[dict] | None, name: str = "sft", resume: bool = True, **changes):
    folder, corpus = base
    path = tmp_path / "talks.jsonl"
    if conversations is not None:
        path.write_text("\n".join(map(json.dumps, conversations)))
        changes = {"tasks": {"file": 1}, "conversations": str(path), **changes}
    recipe = recipes.load("ci_sft", {**TINY, "corpus": corpus, "corpus_max_bytes": None, **changes})
    run = tmp_path / name
    return train(recipe, run, init_from=folder / "base", resume=resume, progress=False, device="cpu"), run


def test_validation_of_own_conversations_is_of_unseen_ones(base, tmp_path):
    row, run = sft(base, tmp_path, [talk(f"question {i}", f"answer {i}") for i in range(40)])
    assert row["val_loss"] > 0 and "of 40 in the file, by their hash" in row["validation"]
    now = TrainingRun(recipes.load(run / "recipe.yaml"), run, base[0] / "base", "cpu")
    seen, unseen = (
        {now.tokenizer.decode(ids) for ids, _ in side.conversations} for side in (now.loader, now.validation)
    )
    assert len(seen) + len(unseen) == 40 and unseen and not seen & unseen


def test_one_conversation_leaves_none_to_validate_on(base, tmp_path):
    row, _ = sft(base, tmp_path, [talk("Hi", "Hello")])
    assert row["val_loss"] is None and row["validation"].startswith("no unseen text")
    assert row["lm_loss"] > 0
    mixed, _ = sft(base, tmp_path, [talk("Hi", "Hello")], "mixed", tasks={"file": 1, "copy": 1})
    assert mixed["val_loss"] > 0 and "no unseen text of file" in mixed["validation"]


def test_made_examples_of_validation_are_not_trained_on(base, tmp_path):
    _, run = sft(base, tmp_path, None, tasks={"arithmetic": 1})
    now = TrainingRun(recipes.load(run / "recipe.yaml"), run, base[0] / "base", "cpu")

    def questions(loader):
        rows = [loader._row(i) for i in range(300)]
        return {now.tokenizer.decode(ids) for row in rows for ids, _ in row[:-1]}  # the last of a row may be cut

    seen, unseen = questions(now.loader), questions(now.validation)
    assert len(seen) > 300 and len(unseen) > 50 and not seen & unseen


def test_edited_conversations_are_another_run(base, tmp_path):
    sft(base, tmp_path, [talk("Hi", "Hello")] * 3)
    with pytest.raises(InputError, match="begun on other text .conversations_sha256"):
        sft(base, tmp_path, [talk("Hi", "Hallo")] * 3)
    sft(base, tmp_path, [talk("Hi", "Hallo")] * 3, resume=False)


LONG = "why " * 600


def test_the_remedy_of_a_refusal_works_in_the_same_run(base, tmp_path):
    talks = [talk("Hi", "Hello", "why " * 60), talk("a", "b"), talk("c", "d")]
    with pytest.raises(InputError, match="raise seq_len=32"):
        sft(base, tmp_path, talks, seq_len=32)
    row, _ = sft(base, tmp_path, talks, seq_len=128)
    assert row["lm_loss"] > 0


@pytest.mark.parametrize(
    "talks, says",
    [
        ([talk("Hi", "Hello"), talk("Hi", "Hello", LONG)], "talks.jsonl line 2: nothing of it would be learnt"),
        ([talk("Hi")], "line 1: no message of the assistant"),
        ([talk("Hi", None)], "line 1: content of message 2 is null, not text"),
        ([talk("2+2", 4)], "line 1: content of message 2 is 4, not text"),
    ],
)
def test_what_teaches_nothing_is_refused_with_its_line(base, tmp_path, talks, says):
    with pytest.raises(InputError, match=says) as caught:
        sft(base, tmp_path, talks)
    assert "\n" not in str(caught.value)


def test_a_question_that_is_too_long_keeps_its_answer_and_that_is_told(base, tmp_path, capsys):
    row, _ = sft(base, tmp_path, [talk("Explain. " + LONG, "Because."), talk("Hi", "Hello"), talk("a", "b")])
    assert row["lm_loss"] > 0
    assert "longer than seq_len=128: their beginning is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"stage": "sft", "conversations": "x.jsonl", "tasks": {"copy": 1}}, "would not be used; add `file: 1`"),
        ({"stage": "sft", "conversations": "x.jsonl", "tasks": {"copy": 1, "file": 0}}, "would not be used"),
        ({"conversations": "nosuch.jsonl"}, "would not be used; use stage: sft"),
        ({"stage": "sft", "tasks": {"file": 1}}, "add conversations: FILE.jsonl"),
        ({"stage": "sft", "tasks": {"copy": "much"}}, "share of 'copy' must be a number"),
        ({"stage": "sft", "tasks": {"copy": float("nan")}}, "share of 'copy' must be a number"),
        ({"stage": "sft", "tasks": {"copy": 1}, "lookup_share": 0.5}, "lookup_share=0.5: not of stage sft"),
        ({"seed": -1}, "must be at least 0"),
        ({"seed": 2**64}, "must be at least 0 and at most 18446744073709551615"),
    ],
)
def test_what_would_be_given_in_vain_is_refused(changes, says):
    with pytest.raises(InputError, match=says) as caught:
        Recipe(**changes)
    assert "\n" not in str(caught.value)
