"""The times of the guide's tables follow from the rule that it states; notebooks and exercises it names are there."""

import math
import re

import pytest

pytest.importorskip("torch")
from minglm import datafiles
from minglm.course.workshop import checking, contents, generator, polls
from minglm.course.workshop.timing import notebooks

GUIDE = datafiles.notebooks("workshop", "guide.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d):(\d\d) \| (\d+) \| [^|]*\|([^|]*)\|([^|]*)\|$", flags=re.M)
TABLES = [part for part in re.split(r"^## ", GUIDE, flags=re.M) if ROW.search(part)]


def _by_the_rule(notebook: str, exercises: str) -> int:
    compute, read = next(map(int, r[1].split(", ")) for r in contents.rows() if r[0] == notebook)
    levels = {key: level for source in generator.sources() for key, level in generator.difficulties(source).items()}
    points = sum(levels[key.strip()] for key in exercises.split(",") if key.strip())
    return 5 * math.ceil((1.5 * read + compute + 5 * points) / 5)


def test_there_are_two_timed_plans():
    assert [t.split(" (")[0] for t in TABLES] == ["Half a day", "A day"]


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t[:10])
def test_minutes_follow_the_rule_and_add_up(table):
    clock = 0
    for hours, minutes, length, notebook, exercises in ROW.findall(table):
        now = 60 * int(hours) + int(minutes)
        assert now == (clock if now else 0), f"{hours}:{minutes} follows on {clock // 60}:{clock % 60:02d}"
        if notebook.strip():
            assert int(length) == _by_the_rule(notebook.strip(), exercises), notebook
        clock = now + int(length)
    assert clock <= 210


def test_what_the_syllabus_hands_in_is_there():
    weeks = GUIDE[GUIDE.index("## Twelve weeks") : GUIDE.index("## Talking points")]
    assert len(re.findall(r"^\| \d+ \|", weeks, flags=re.M)) == 12
    prefixes = {generator.prefix(s.stem) for s in generator.sources()}
    named = set(re.findall(r"(?:build_\d|scale_\d\d|plan_planner)", weeks)) | set(re.findall(r"sheet (\d\d)", weeks))
    assert named and named <= prefixes
    assert set(re.findall(r"build_\d", weeks)) == {p for p in prefixes if p.startswith("build_")}
    known = {p.relative_to(datafiles.notebooks()).as_posix() for p in datafiles.notebooks().glob("*/*.ipynb")}
    for name in re.findall(r"(?:learn|scale|plan)/\w+", GUIDE):
        assert any(k.startswith(name) for k in known), name
    assert {k.split(".")[0] for k in checking.all_exercises()} == prefixes


def test_the_polls_are_those_of_the_notebooks_and_none_is_missed():
    assert polls.PAGE.read_text(encoding="utf-8") == polls.page(), "run `minglm workshop polls --write` and commit"
    for notebook in notebooks():
        text = notebook.read_text(encoding="utf-8")
        asked = text.count("Predict first:</b>") + text.count("**Question.**")
        assert len(list(polls.polls(notebook))) == asked, notebook
