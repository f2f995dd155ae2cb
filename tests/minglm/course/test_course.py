"""The learner's copy of the course: whole, brought up to date, and never over what the learner wrote."""

import json

import pytest

from minglm import datafiles
from minglm.cli import main
from minglm.course.workshop import course
from minglm.errors import InputError


def test_the_copy_is_whole_and_a_second_one_changes_nothing(tmp_path):
    done = course.copy(tmp_path / "mine")
    here = {
        p.relative_to(datafiles.notebooks()).as_posix()
        for p in datafiles.notebooks().rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    assert (
        here <= {p.relative_to(tmp_path / "mine").as_posix() for p in (tmp_path / "mine").rglob("*.ipynb")}
        and done.written >= len(here) > 60
    )
    again = course.copy(tmp_path / "mine")
    assert (again.written, again.same, again.kept) == (0, done.written, ())


def test_what_the_learner_changed_stays_and_the_rest_is_brought_up_to_date(tmp_path):
    course.copy(tmp_path)
    mine, old, gone = (tmp_path / "learn" / f"{n}.ipynb" for n in ("00_start_here", "02_mla", "05_train_it"))
    mine.write_text("mine")
    old.write_text("as an older version wrote it")
    gone.unlink()
    note = tmp_path / course.NOTE
    noted = json.loads(note.read_text())
    noted["files"]["learn/02_mla.ipynb"] = course._hash(old.read_bytes())
    note.write_text(json.dumps(noted))
    for _ in range(2):  # and a kept file is kept the next time too
        assert course.copy(tmp_path).kept == ("learn/00_start_here.ipynb",)
    assert (
        mine.read_text() == "mine"
        and gone.is_file()
        and old.read_bytes() == datafiles.notebooks("learn", "02_mla.ipynb").read_bytes()
    )


def test_another_folder_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    for folder, words in (
        (tmp_path / "full", "is not empty and holds no course"),
        (tmp_path / "file", "is a file"),
        (datafiles.notebooks(), "the notebooks themselves"),
        (tmp_path / "file" / "in", "cannot be written"),
    ):
        assert main.main(["course", str(folder)]) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.splitlines()) == 1
    (tmp_path / "full" / course.NOTE).write_text("{")
    with pytest.raises(InputError, match="holds no course"):
        course.copy(tmp_path / "full")
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"


def test_the_command_says_what_next(tmp_path, capsys):
    assert main.main(["course", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "files written" in out and f"cd {tmp_path / 'mine'}, and minglm lab" in out


def test_lab_opens_the_learners_own_copy(tmp_path, monkeypatch):
    pytest.importorskip("jupyterlab")
    course.copy(tmp_path)
    monkeypatch.chdir(tmp_path / "learn")
    called = []
    monkeypatch.setattr("subprocess.call", lambda command: called.append(command) or 0)
    assert main.main(["lab", "--", "--no-browser"]) == 0
    assert called[0][-2:] == [str(tmp_path / "learn" / "00_start_here.ipynb"), "--no-browser"]
