"""Exercises: every solution passes, every blank fails, every known mistake fails with its own sentence."""

import dataclasses
import json
import os

import pytest

torch = pytest.importorskip("torch")
from minglm import datafiles  # noqa: E402
from minglm.course import notebook  # noqa: E402
from minglm.course.workshop import NotYet, check, checking, generator  # noqa: E402
from minglm.errors import InputError  # noqa: E402

EXERCISES = checking.all_exercises()
SOURCES = generator.sources()
COURSE = os.environ.get("MINGLM_COURSE") == "1"
SAMPLE = SOURCES if COURSE else SOURCES[2:4]


def _belongs(key: str, source) -> bool:
    return key.split(".")[0] == generator.prefix(source.stem)


def test_each_learn_notebook_has_two_to_four_exercises():
    counts = {}
    for key in EXERCISES:
        counts[key.split(".")[0]] = counts.get(key.split(".")[0], 0) + 1
    assert set(counts) >= {f"{n:02d}" for n in range(23)}
    assert all(2 <= n <= (10 if key.startswith("build_") else 4) for key, n in counts.items()), counts
    for source in SOURCES:
        room, _, topic = (
            source.stem.partition("_") if source.stem.startswith(("scale_", "plan_")) else ("learn", "", "")
        )
        notebook_of = datafiles.notebooks(room, f"{topic or source.stem}.ipynb")
        assert notebook_of.is_file(), (
            f"{source.stem}: an exercise sheet is named as its notebook, with the room before it"
        )
        asked = [line for line in source.read_text(encoding="utf-8").splitlines() if line.startswith('check("')]
        assert {line.split('"')[1] for line in asked} == {k for k in EXERCISES if _belongs(k, source)}


@pytest.mark.parametrize("key", EXERCISES)
def test_reference_passes_and_each_mistake_is_told_its_own_sentence(key):
    exercise = EXERCISES[key]
    checking.judge(dataclasses.replace(exercise, also=None, use=None), exercise.reference)
    assert len(exercise.mistakes) >= 2
    for mistake in exercise.mistakes:
        with pytest.raises(NotYet) as told:
            checking.judge(exercise, mistake.answer)
        assert str(told.value) == mistake.sentence
        assert len(mistake.sentence.split()) >= 5 and mistake.sentence.endswith((".", "!", "?"))


@pytest.mark.parametrize("key", EXERCISES)
def test_unforeseen_answers_are_refused_too(key):
    exercise = EXERCISES[key]
    for nonsense, part in (
        (lambda *a: None, "return"),
        (lambda *a: 1 / 0, "ZeroDivisionError"),
        (lambda *a: "text", "right is"),
    ):
        with pytest.raises(NotYet, match=part):
            checking.judge(exercise, nonsense)


def test_the_demand_of_absorbed_scores_catches_a_right_answer_that_rebuilds_keys():
    exercise = EXERCISES["02.absorbed_scores"]
    with pytest.raises(NotYet, match="you rebuild every key"):
        checking.judge(exercise, exercise.reference)


def _run(source, solved: bool) -> list[str]:
    """Run a sheet cell by cell as Jupyter would; returns the checks that did not pass, with what was said."""
    space, failed = {}, []
    for cell in generator.notebook(source, solved)["cells"]:
        if cell["cell_type"] != "code":
            continue
        try:
            exec(compile("".join(cell["source"]), source.name, "exec"), space)
        except NotYet as err:
            failed.append(str(err))
    return failed


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_solutions_pass_and_blanks_fail(source, tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path))
    monkeypatch.setattr(notebook, "SMOKE", True)
    monkeypatch.setattr(notebook, "show", lambda fig, alt: None)
    assert _run(source, solved=True) == []
    own = [k for k in EXERCISES if _belongs(k, source)]
    failed = _run(source, solved=False)
    assert len(failed) == len(own) and all("still to be written" in f for f in failed)


def test_the_committed_notebooks_are_what_the_source_gives():
    assert [str(p) for p in generator.build(check_only=True)] == [], "run `minglm workshop build` and commit"
    for solved, folder, names in (
        (False, generator.TARGET / "exercises", "*.ipynb"),
        (False, datafiles.notebooks("learn"), "build_*.ipynb"),
        (True, generator.TARGET / "solutions", "*.ipynb"),
    ):
        made = {p for s in SOURCES if (p := generator.place(s, solved)).parent == folder}
        assert set(folder.glob(names)) == made, "a sheet without a source"


def test_a_blank_holds_no_trace_of_its_solution_and_keeps_nbgrader_marks():
    for source in SOURCES:
        for cell in generator.notebook(source, solved=False)["cells"]:
            text = "".join(cell["source"])
            assert "SOLUTION" not in text
            if "raise NotImplementedError()" in text and cell["cell_type"] == "code":
                assert cell["metadata"]["nbgrader"]["solution"] is True
            if text.startswith('check("'):
                assert cell["metadata"]["nbgrader"]["grade"] is True and cell["metadata"]["nbgrader"]["points"] == 1


@pytest.mark.parametrize(
    "text,part",
    [
        ("x = 1", "before the first cell"),
        ("# %% [markdown]\nno hash", "begin with '# '"),
        ("# %%\n### BEGIN SOLUTION\nx = 1", "pairs"),
        ("# %%\n### END SOLUTION", "pairs"),
    ],
)
def test_a_broken_source_is_refused(text, part):
    with pytest.raises(InputError, match=part):
        generator.cells(text)


@pytest.mark.slow
@pytest.mark.parametrize("source", SAMPLE, ids=lambda p: p.stem)
@pytest.mark.parametrize("solved", [True, False], ids=["solved", "blank"])
def test_in_a_real_kernel(source, solved, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path))
    monkeypatch.setenv("MINGLM_LEARNER", "ada")
    book = nbformat.reads(json.dumps(generator.notebook(source, solved)), as_version=4)
    nbclient.NotebookClient(
        book,
        timeout=300,
        startup_timeout=240,
        kernel_name="python3",
        allow_errors=not solved,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    errors = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    own = [k for k in EXERCISES if _belongs(k, source)]
    assert len(errors) == (0 if solved else len(own))
    for e in errors:
        assert e.ename == "NotYet" and len(e.traceback) == 1 and "Not yet." in e.traceback[0], (
            "a sentence, not a traceback"
        )
    kept = json.loads((tmp_path / "ada.json").read_text(encoding="utf-8"))["exercises"]
    assert set(kept) == set(own) and all(k["right"] is solved for k in kept.values())


def test_an_unknown_exercise_is_named_with_its_nearest():
    with pytest.raises(InputError, match="did you mean '02.rotate'"):
        check("02.rotat", lambda: None)
