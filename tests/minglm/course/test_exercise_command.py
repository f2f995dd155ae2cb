"""`minglm exercise`: blank and solved sheets, Python files, hints, names that are not known."""

import json
import shutil

import pytest

pytest.importorskip("torch")
from minglm.cli.main import PROGRAM
from minglm.course import notebook
from minglm.course.workshop import checking, generator, runner

SHEET = next(s for s in generator.sources() if s.stem == "plan_planner")


def _say(capsys, *words: str) -> tuple[int, str, str]:
    code = PROGRAM.run(["exercise", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path / "results"))


def test_a_blank_sheet_is_not_right_and_a_solved_one_is(capsys):
    code, out, _ = _say(capsys, "check", "plan_planner")
    assert code == 1 and out.count("still to be written") == 4
    code, out, _ = _say(capsys, "check", "plan_planner", "--file", str(generator.place(SHEET, solved=True)))
    assert code == 0 and out.splitlines() == [f"{key}: right" for key in runner.keys_of("plan_planner")]
    assert notebook.SMOKE is False and notebook.show.__name__ == "show"


def test_every_sheet_can_be_checked_from_the_command_line():
    """The learner's own copy is found, and each blank is told from what merely needs one."""
    for source in generator.sources()[:3]:
        found = runner.check(source.stem)
        assert [r.key for r in found] == runner.keys_of(source.stem) and not any(r.right for r in found)
        assert all("still to be written" in r.sentence for r in found), found


def test_a_python_file_with_one_right_and_one_wrong_answer(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "print('noise')\n"
        "def signed(costs, sure):\n    return sum(costs) / len(costs)\n"
        "def run_cost(steps, step_s, goodput, chips, spares, rent, overhead):\n"
        "    hours = steps * step_s / goodput / 3600\n"
        "    return hours / 24, hours * (chips + spares) * rent * (1 + overhead)\n",
        encoding="utf-8",
    )
    code, out, _ = _say(capsys, "check", "plan_planner", "--file", str(mine), "--json")
    rows = {r["key"]: r for r in json.loads(out)}
    assert code == 1 and rows["plan_planner.run_cost"]["right"] is True
    assert "That is the mean" in rows["plan_planner.signed"]["sentence"]
    assert "NameError" in rows["plan_planner.choose"]["sentence"]


def test_a_copy_of_the_course_in_this_folder_comes_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "workshop" / "exercises").mkdir(parents=True)
    shutil.copy(generator.place(SHEET, solved=True), tmp_path / "workshop" / "exercises" / "plan_planner.ipynb")
    monkeypatch.chdir(tmp_path)
    assert _say(capsys, "check", "plan_planner.choose")[:2] == (0, "plan_planner.choose: right\n")


@pytest.mark.parametrize(
    "text,part",
    [
        ("def signed(costs, sure):\n    return costs[\n", "SyntaxError"),
        ("raise SystemExit(0)", "A cell before it stopped with SystemExit"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_code_that_stops_is_said_in_a_line(tmp_path, capsys, text, part):
    mine = tmp_path / "mine.py"
    mine.write_text(text, encoding="utf-8")
    code, out, err = _say(capsys, "check", "plan_planner.signed", "--file", str(mine))
    assert code == 1 and part in out and len(out.splitlines()) == 1 and err == ""


@pytest.mark.parametrize(
    "words,part",
    [
        (("check", "plan_planer.choose"), "did you mean 'plan_planner.choose'"),
        (("check", "plan_planner.choose", "--file", "nothing.py"), "cannot be read"),
        (("check", "plan_planner.choose", "--file", "."), "cannot be read"),
        (("hint", "plan_planner"), "not a known one"),
        (("hint", "plan_planner.choose", "--step", "4"), "use 1 to 3"),
        (("hint", "plan_planner.choose", "--step", "0"), "--step"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, part):
    try:
        code, out, err = _say(capsys, *words)
    except SystemExit as stop:  # argparse
        code, (out, err) = stop.code, capsys.readouterr()
    assert code == 2 and out == "" and part in err


def test_hints_say_more_each_time(capsys):
    said = [_say(capsys, "hint", "scale_03.step_time", "--step", str(n))[1].strip() for n in (1, 2, 3)]
    assert tuple(said) == checking.find("scale_03.step_time").hints
    checking._HINTS.clear()
    for n in (1, 2, 3, 3):
        checking.hint("02.rotate")
        assert f"hint {n} of 3" in capsys.readouterr().out


def test_the_list_names_every_exercise_with_its_difficulty(capsys):
    code, out, _ = _say(capsys, "list", "--json")
    rows = json.loads(out)
    assert code == 0 and {r["exercise"] for r in rows} == set(checking.all_exercises())
    assert {r["difficulty"] for r in rows} == {1, 2, 3, 4, 5}
    assert len(_say(capsys, "list")[1].splitlines()) == len(rows) + 1
