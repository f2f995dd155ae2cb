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
