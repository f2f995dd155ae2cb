"""The times of the guide's tables follow from the rule that it states; notebooks and exercises it names are there."""

import json
import math
import re

import pytest

pytest.importorskip("torch")
from minglm import datafiles
from minglm.course.workshop import checking, contents, generator, polls
from minglm.course.workshop.timing import notebooks

GUIDE = datafiles.notebooks("workshop", "guide.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d):(\d\d) \| (\d+) \| [^|]*\|([^|]*)\|([^|]*)\|$", flags=re.M)
NAMES = [p.relative_to(datafiles.notebooks()).with_suffix("").as_posix() for p in notebooks()]
POINTS = {generator.prefix(s.stem): sum(generator.difficulties(s).values()) for s in generator.sources()}
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


def _typing(notebook: str) -> int:
    """Minutes of typing that a build notebook's first cell names; 0 for all others."""
    cells = json.loads(datafiles.notebooks(f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = re.search(r"(\d+) minutes of typing", "".join(cells[0]["source"]))
    return int(found[1]) if found else 0


def _minutes(named: str, sheets: str) -> int:
    """Of a half day: notebooks by the rule, typing, and all exercises of the sheets named."""
    wanted = [f"learn/{n}" if n.startswith("build_") else n for n in re.findall(r"[\w/]+", named)]
    keys = re.findall(r"\w+", sheets)
    total = 0
    for name in wanted:
        notebook = next(k for k in NAMES if k == name or k.startswith(f"{name}_"))
        own = {"learn": "", "scale": "scale_", "plan": "plan_"}[name.split("/")[0]]
        sheet = f"{own}{name.split('/')[1]}"
        given = [k for k in checking.all_exercises() if k.split(".")[0] == sheet] if sheet in keys else []
        total += _by_the_rule(notebook, ",".join(given)) + _typing(notebook)
        keys = [k for k in keys if k != sheet]
    return total + sum(5 * POINTS[k] for k in keys)


def test_half_days_are_as_long_as_their_notebooks_and_sheets():
    rows = re.findall(r"^\| \d \| (?:morning|afternoon) \| (\d+) \|([^|]*)\|([^|]*)\|$", GUIDE, flags=re.M)
    assert len(rows) == 16
    for minutes, named, sheets in rows:
        assert int(minutes) == _minutes(named, sheets), named
        assert int(minutes) <= 210


def test_weeks_are_as_long_as_their_notebooks_and_what_is_handed_in():
    weeks = GUIDE[GUIDE.index("## Twelve weeks") : GUIDE.index("## Each notebook")]
    rows = re.findall(r"^\| \d+ \| (\d+) \|([^|]*)\|[^|]*\| (\d+) \|([^|]*)\|$", weeks, flags=re.M)
    assert len(rows) == 12
    for here, named, home, handed in rows:
        assert int(here) == _minutes(named, "") <= 120, named
        built = re.findall(r"build_\d", handed)
        sheets = re.findall(r"(?:scale_\d\d|plan_planner|\b\d\d\b)", handed)
        assert int(home) == _minutes(" ".join(built), "") + sum(5 * POINTS[s] for s in sheets) <= 240, handed


def _headings(notebook: str) -> list[str]:
    cells = json.loads(datafiles.notebooks(f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"^#{2,3} (.*)$", text, flags=re.M)


@pytest.mark.parametrize("notebook", NAMES)
def test_every_notebook_has_what_must_be_seen_what_can_go_and_what_they_ask(notebook):
    room, stem = notebook.split("/")
    number = re.match(r"build_\d|\d\d|.*", stem)
    assert number is not None
    short = f"{room}/{number[0]}"
    rows = re.findall(rf"^\| {re.escape(short)} \|([^|]+)\| \*([^|*]+)\* \|([^|]+)\|$", GUIDE, flags=re.M)
    assert len(rows) == 1, short
    seen, left_out, asked = rows[0]
    assert len(seen.split()) >= 5 and re.search(r"\? \([^)]+\) $", asked)
    assert left_out in _headings(notebook)
    point = number[0] if room == "learn" else stem if room == "plan" else short
    points = GUIDE[GUIDE.index("## Talking points") :]
    assert len(re.findall(rf"^- \*\*{re.escape(point)}\*\* \S", points, flags=re.M)) == 1, point


def test_what_the_syllabus_hands_in_is_there():
    weeks = GUIDE[GUIDE.index("## Twelve weeks") : GUIDE.index("## Each notebook")]
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
