"""Results of a class: who a learner is, files of all kinds, the table."""

import json
import math

import pytest

from minglm.cli import main
from minglm.course.workshop import NotYet, check, checking, results, results_page
from minglm.errors import InputError

EXERCISES = checking.all_exercises()
KEY = "00.loss_of_knowing_nothing"
NAMES = ("JUPYTERHUB_USER", "MINGLM_LEARNER", "LOGNAME", "USER", "LNAME", "USERNAME")
GOOD = {"attempts": 1, "right": True}
ODD = {
    "list": "[]",
    "null": "null",
    "mapping without keys": "{}",
    "number": "3",
    "no exercises": '{"learner": "a"}',
    "exercises is a list": '{"learner": "a", "exercises": []}',
    "learner is null": '{"learner": null, "exercises": {}}',
    "learner is a list": '{"learner": [], "exercises": {}}',
    "empty": "",
    "cut": '{"learner": "a", "exerc',
    "deep": "[" * 100_000,
    "binary": b"\xff\xfe\0\x01",
    "UTF-16": '{"learner": "a", "exercises": {}}'.encode("utf-16"),
}
ENTRIES = (
    None,
    [],
    3,
    {},
    {"attempts": 2},
    {"right": False},
    {"attempts": "2", "right": False},
    {"attempts": 1, "right": None},
    {"attempts": -1, "right": True},
    {"attempts": True, "right": True},
    {"attempts": 1, "right": False, "last_message": 7},
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_hub_names_the_learner_first(monkeypatch):
    monkeypatch.setenv("LOGNAME", "jovyan")
    assert results.learner() == "jovyan"
    monkeypatch.setenv("MINGLM_LEARNER", "ada")
    assert results.learner() == "ada"
    monkeypatch.setenv("JUPYTERHUB_USER", "anna")
    assert results.learner() == "anna"


def test_every_learner_has_a_file_that_any_system_can_hold(place, monkeypatch):
    names = [
        "anna@uni.example",
        "anna_uni.example",
        "Anna",
        "anna",
        "ANNA",
        "Jo Li",
        "Jo_Li",
        "...",
        "李雷",
        "a/b",
        "../x",
    ]
    names += ["CON", "con", "nul.txt", "x" * 300, "x" * 299, "é", "é" * 200, ".hidden", "-", "a\\b", "c:d", "learner"]
    files = [results.file_name(name) for name in names]
    assert len({f.lower() for f in files}) == len(names)
    for name, file in zip(names, files, strict=True):
        assert len(file.encode()) < 255 and not set(file) & set('/\\:*?"<>| ') and not file.startswith(".")
        monkeypatch.setenv("MINGLM_LEARNER", name)
        check(KEY, math.log)
    assert sorted(p.name for p in place.iterdir()) == sorted(files)
    assert {b["learner"] for b in results.collect()} == set(names)
    monkeypatch.setenv("MINGLM_LEARNER", "e\u0301")  # the same sign in two parts
    assert results.file_name(results.learner()) == results.file_name("é")
    monkeypatch.setenv("MINGLM_LEARNER", "a\n\x1b[2Jb\udcff")
    assert results.learner().isprintable()


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_an_odd_file_does_not_stop_a_lesson(place, content, monkeypatch, capsys):
    monkeypatch.setenv("MINGLM_LEARNER", "ada")
    write(place / "ada.json", content)
    check(KEY, math.log)
    assert "right." in capsys.readouterr().out
    assert json.loads((place / "ada.json").read_text())["exercises"][KEY]["right"] is True
    before = content if isinstance(content, bytes) else content.encode()
    assert (place / "ada.damaged").read_bytes() == before, "what was there is kept"


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_odd_entry_does_not_stop_a_lesson(place, entry, monkeypatch):
    monkeypatch.setenv("MINGLM_LEARNER", "ada")
    write(place / "ada.json", json.dumps({"learner": "ada", "exercises": {KEY: entry, "00.expert_parameters": GOOD}}))
    check(KEY, math.log)
    kept = json.loads((place / "ada.json").read_text())["exercises"]
    assert kept[KEY]["right"] is True and kept[KEY]["attempts"] == 1 and kept["00.expert_parameters"] == GOOD


def test_a_byte_order_mark_is_no_damage(place, monkeypatch):
    monkeypatch.setenv("MINGLM_LEARNER", "ada")
    write(place / "ada.json", "\ufeff" + json.dumps({"learner": "ada", "exercises": {"00.expert_parameters": GOOD}}))
    check(KEY, math.log)
    assert set(json.loads((place / "ada.json").read_text())["exercises"]) == {KEY, "00.expert_parameters"}


@pytest.mark.parametrize("as_json", [False, True])
def test_collect_leaves_out_what_is_odd_and_says_so(place, as_json, capsys):
    write(place / "good.json", json.dumps({"learner": "good", "exercises": {KEY: GOOD}}))
    for i, content in enumerate(ODD.values()):
        write(place / f"odd{i}.json", content)
    for i, entry in enumerate(ENTRIES):
        write(place / f"part{i}.json", json.dumps({"learner": f"part{i}", "exercises": {KEY: entry, "x": GOOD}}))
    (place / "folder.json").mkdir()
    assert main.main(["workshop", "collect", str(place), *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert len(said) == len(ODD) + len(ENTRIES) + 1 and all("left out" in line for line in said)
    if as_json:
        books = json.loads(out)
        assert {b["learner"] for b in books} == {"good", *(f"part{i}" for i in range(len(ENTRIES)))}
        assert all(b["exercises"] == {"x": GOOD} for b in books if b["learner"] != "good")
    else:
        assert out.splitlines()[1].startswith("good") and len(out.splitlines()) == 2 + len(ENTRIES)


def test_a_folder_of_odd_files_alone_holds_no_results(place, capsys):
    write(place / "bad.json", "{")
    assert main.main(["workshop", "collect", str(place), "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out and "no results there" in err.splitlines()[-1]


def test_the_table_stands_straight_under_wide_names():
    books = [{"learner": name, "exercises": {KEY: GOOD}} for name in ("李雷" * 5, "ada")]
    wide, narrow = results.table(books, [KEY]).splitlines()[1:]
    assert wide.startswith("李雷" * 5 + "  ") and narrow.startswith("ada" + " " * 17 + "  ")


def test_results_of_a_class_are_collected_and_show_where_it_is_stuck(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path))
    exercise = EXERCISES["00.loss_of_knowing_nothing"]
    for name, answers in {
        "Ada L.": [exercise.mistakes[0].answer, exercise.reference],
        "Bob": [exercise.mistakes[0].answer],
        "Cy": [exercise.mistakes[0].answer],
    }.items():
        monkeypatch.setenv("MINGLM_LEARNER", name)
        for answer in answers:
            try:
                check(exercise.key, answer)
            except NotYet:
                pass
    (tmp_path / "broken.json").write_text("{")
    books = results.collect(tmp_path)
    assert [b["learner"] for b in books] == ["Ada L.", "Bob", "Cy"]
    ada = books[0]["exercises"][exercise.key]
    assert ada["right"] and ada["attempts"] == 2 and ada["attempts_needed"] == 2
    shown = results.table(books, list(EXERCISES))
    assert "broken.json: not a result file" in capsys.readouterr().err
    assert f"2  {exercise.key}  {exercise.mistakes[0].sentence}" in shown and shown.splitlines()[1].endswith(
        f"1/{len(EXERCISES)}"
    )
    with pytest.raises(InputError, match="no results there"):
        results.collect(tmp_path / "nowhere")


def test_the_teachers_page_tells_who_is_where_and_escapes_what_learners_are_called(tmp_path, monkeypatch, capsys):
    target = tmp_path / "class.html"
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path / "results"))
    assert main.main(["workshop", "collect", "--page", str(target), "--every", "0"]) == 0
    assert "Nobody has checked a task yet" in target.read_text(encoding="utf-8") and "refresh" not in target.read_text()
    solved, tried = {"attempts": 2, "right": True}, {"attempts": 3, "right": False, "last_message": "One < too many."}
    books = [
        {"learner": "<b>ada", "exercises": {KEY: solved}},
        {"learner": "bo", "exercises": {KEY: tried}},
        {"learner": "cy", "exercises": {}},
    ]
    page = results_page.page(books, list(EXERCISES), every_s=5)
    assert 'content="5"' in page and "&lt;b&gt;ada" in page and "<b>ada" not in page
    assert "1 of 3" in page and '<td class="right">✓</td>' in page and '<td class="tried">3×</td>' in page
    assert f"1 on <b>{KEY}</b>: One &lt; too many." in page and "02.cache_bytes" not in page


def test_the_teachers_page_is_written_until_it_is_stopped(tmp_path, monkeypatch):
    written = []

    def rest(seconds):
        written.append(seconds)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(results_page.time, "sleep", rest)
    assert main.main(["workshop", "collect", str(tmp_path), "--page", str(tmp_path / "p.html"), "--every", "2"]) == 0
    assert written == [2.0] * 3


def test_a_page_and_json_are_two_answers(tmp_path, capsys):
    page = tmp_path / "class.html"
    assert main.main(["workshop", "collect", "--page", str(page), "--every", "0", "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not page.exists()
