"""`--overwrite` sets aside what this project made and refuses everything else: nothing that a person owns is ever
lost."""

import os

import pytest

from minglm.errors import InputError
from minglm.runtime import run_folder


def a_run(folder, kind="train"):
    run_folder.claim(folder, kind)
    (folder / "metrics.csv").write_text("step\n1\n")
    return folder


def test_a_run_is_moved_not_deleted_and_the_place_is_said(tmp_path, capsys):
    run = a_run(tmp_path / "run")
    aside = run_folder.set_aside(run, "train")
    assert not run.exists() and (aside / "metrics.csv").read_text() == "step\n1\n"
    assert aside.parent == tmp_path and aside.name.startswith(".trash-") and str(aside) in capsys.readouterr().out


def test_two_in_one_second_do_not_meet(tmp_path):
    kept = {run_folder.set_aside(a_run(tmp_path / "run"), "train") for _ in range(3)}
    assert len(kept) == 3 and all((k / "metrics.csv").is_file() for k in kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: (folder / "thesis.tex").write_text("years"),
        lambda folder: (folder / "recipe.yaml").write_text("stage: pretrain\n"),
        lambda folder: (folder / run_folder.MANIFEST).write_text("{}"),
        lambda folder: (folder / run_folder.MANIFEST).write_bytes(b"\xff\xfe"),
        lambda folder: run_folder.claim(folder, "rl"),
    ],
)
def test_a_folder_that_is_not_such_a_run_is_refused_untouched(tmp_path, make):
    folder = tmp_path / "mine"
    folder.mkdir()
    make(folder)
    before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())
    with pytest.raises(InputError, match="mine: .*give another folder"):
        run_folder.set_aside(folder, "train")
    assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before


def test_a_link_a_file_and_the_folders_around_us_are_refused(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    with pytest.raises(InputError, match="link"):
        run_folder.set_aside(tmp_path / "link", "train")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file"):
        run_folder.set_aside(tmp_path / "file", "train")
    (run / "inside").mkdir()
    monkeypatch.chdir(run / "inside")
    with pytest.raises(InputError, match="working directory"):
        run_folder.set_aside(run, "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(run / "inside"))
    with pytest.raises(InputError, match="home"):
        run_folder.set_aside(run, "train")
    assert (run / "metrics.csv").is_file()


@pytest.mark.parametrize(
    "argv",
    [
        ["demo", "--size", "nano", "--overwrite", "--run"],
        ["demo", "--size", "nano", "--run"],
        ["train", "ci_pretrain", "--overwrite", "--run"],
        ["rl", "--set", "task=sum", "--overwrite", "--run"],
    ],
)
def test_no_command_touches_a_folder_of_somebody_else(tmp_path, argv, capsys):
    pytest.importorskip("torch")
    from minglm.cli.main import main

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert main([*argv, str(tmp_path / "thesis")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["thesis"] and os.listdir(tmp_path / "thesis") == ["chapter.tex"]
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_folder_of_leftovers_alone_is_empty_and_one_of_ours_stays_ours(tmp_path):
    """A full disk at the first word, and a kill at the second."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.yaml.tmp", ".writing_123-ab", ".minglm-lock"):
        (folder / name).write_text("")
    assert not run_folder.is_foreign(folder, "train") and run_folder.set_aside(folder, "train") is None
    run_folder.claim(folder, "train")
    assert not run_folder.is_foreign(folder, "train")
    (folder / run_folder.MANIFEST).unlink()
    (folder / "notes.txt").write_text("mine")
    assert run_folder.is_foreign(folder, "train")


@pytest.mark.parametrize("kind", ["export", "checkpoints"])
def test_exports_and_checkpoints_do_not_write_over_somebody_elses(tmp_path, kind):
    pytest.importorskip("torch")
    from minglm.config import ModelConfig
    from minglm.course.workshop import checkpoints
    from minglm.interop.huggingface import export_hf
    from minglm.model.model import Model

    model = Model(ModelConfig.named("nano"))
    write = {"export": lambda f: export_hf(model, f), "checkpoints": lambda f: checkpoints.make(f, "nano", tmp_path)}
    (tmp_path / "config.json").write_text("another model's")  # under a name that we would write
    with pytest.raises(InputError, match="carries no minglm-run.json"):
        write[kind](tmp_path)
    assert (tmp_path / "config.json").read_text() == "another model's"
    if kind == "export":
        assert export_hf(model, export_hf(model, tmp_path / "new")) == tmp_path / "new"  # again, into its own


def test_a_copy_that_somebody_keeps_beside_the_checkpoints_stays(tmp_path):
    pytest.importorskip("torch")
    from minglm.config import ModelConfig
    from minglm.rl.log import Journal
    from minglm.training import checkpoint

    config, kept = ModelConfig.named("nano"), ("step_00000001_best", "step_by_step", "step_1")
    for name in kept:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, config, {}, {})
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {*kept, "step_00000003", "step_00000004"}
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step_00000004", "step_00000003"]
    (tmp_path / "journal_mine.jsonl").write_text("{}\n")
    journal = Journal(tmp_path, 1)
    journal.roll(2, keep_from=2)
    journal.close()
    Journal.rewritten(tmp_path, 1, []).close()
    assert {p.name for p in tmp_path.glob("journal_*")} == {"journal_mine.jsonl", "journal_00000001.jsonl"}
