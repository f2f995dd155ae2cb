"""The book's check finds what it should, and a book of one chapter passes it; `make course-check` builds and walks the
whole one."""

import json
from pathlib import Path

import pytest

from minglm import datafiles
from minglm.course import book, executed
from minglm.course.workshop import timing
from minglm.errors import InputError

PLOT = "<script>Plotly.newPlot('a', [])</script>"


def _row(name: str, error: str = "") -> dict:
    return {"notebook": name, "seconds": 2.0, "error": error, "smoke": False, "date": "2026-11-29", "digest": ""}


def _a_book(target: Path, page: str = PLOT, body: str = "", search: str = '{"expert":1,"token":2}') -> Path:
    html = target / "_build" / "html"
    (html / "learn").mkdir(parents=True)
    (target / "learn").mkdir()
    (target / "_toc.yml").write_text("  - file: learn/one\n", encoding="utf-8")
    cell = {"cell_type": "code", "source": ["show(fig, 'words')\n"]}
    (target / "learn" / "one.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    (target / "seconds.json").write_text(json.dumps([_row("learn/one")]), encoding="utf-8")
    (html / "index.html").write_text("<html></html>", encoding="utf-8")
    (html / "learn" / "one.html").write_text(f"<html>{page}<article>{body}</article></html>", encoding="utf-8")
    (html / "searchindex.js").write_text(search, encoding="utf-8")
    return target


def test_a_whole_book_passes(tmp_path):
    assert (
        book.check(
            _a_book(tmp_path / "b", body='<a href="../index.html">home</a><a href="https://elsewhere.org">a source</a>')
        )
        == []
    )


@pytest.mark.parametrize(
    "changes,part",
    [
        (dict(page=""), "1 figures asked for, 0 in the page"),
        (dict(body='<a href="nowhere.html">x</a>'), "leads nowhere"),
        (dict(page=PLOT + '<script src="https://elsewhere.org/a.js"></script>'), "loads https"),
        (dict(page=PLOT + '<script src="//elsewhere.org/a.js"></script>'), "loads //"),
        (dict(page=PLOT + '<link rel="stylesheet" href="gone.css">'), "gone.css is missing"),
        (dict(body="Traceback (most recent call last)"), "an error in an output"),
        (dict(body="<p>| chip | days |\n|—|—| | 910B | 38 |</p>"), "a table shown as plain text"),
        (dict(search="{}"), "search"),
    ],
)
def test_each_fault_is_named(tmp_path, changes, part):
    found = book.check(_a_book(tmp_path / "b", **changes))
    assert len(found) == 1 and part in found[0], found


def test_a_notebook_that_stopped_is_named_with_its_error_and_recorded(tmp_path):
    made, rows = _a_book(tmp_path / "b"), [_row("learn/one", "ValueError: no")]
    (made / "seconds.json").write_text(json.dumps(rows), encoding="utf-8")
    assert book.check(made) == ["learn/one: ValueError: no"]
    assert book.record(rows, tmp_path).read_text(encoding="utf-8").splitlines() == [
        "notebook,date,seconds,error",
        "learn/one,2026-11-29,2.0,ValueError: no",
    ]


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    names, ran = ("learn/02_mla", "learn/build_0_tokenizer", "scale/03_pipelines"), []

    def play(source, copy, runs):
        ran.append(source.relative_to(datafiles.notebooks()).as_posix())
        if len(ran) == 2:
            raise KeyboardInterrupt
        copy.write_text("{}", encoding="utf-8")
        return 1.0, "ValueError: no" if "03_pipelines" in source.name else ""

    monkeypatch.setattr(executed, "_execute", play)
    paths = [datafiles.notebooks(f"{name}.ipynb") for name in names]
    with pytest.raises(KeyboardInterrupt):
        executed.run(paths, tmp_path)
    assert [row["error"] for row in executed.run(paths, tmp_path)] == ["", "", "ValueError: no"]
    solution, stopped = "workshop/solutions/build_0_tokenizer.ipynb", "scale/03_pipelines.ipynb"
    assert ran == ["learn/02_mla.ipynb", solution, solution, stopped]
    executed.run(paths, tmp_path)
    assert ran[4:] == [stopped], "what stopped is run again, and nothing else"
    monkeypatch.setattr(executed, "_digest_of_code", lambda: "other code")
    executed.run(paths, tmp_path)
    assert len(ran) == 8


def test_a_missing_page_and_a_missing_book_are_named(tmp_path):
    made = _a_book(tmp_path / "b")
    (made / "_build" / "html" / "learn" / "one.html").unlink()
    assert book.check(made) == ["learn/one: no page"]
    with pytest.raises(InputError, match="no book there"):
        book.check(tmp_path / "nothing")


def test_the_readme_as_first_page_links_to_pages_only(tmp_path):
    (tmp_path / "learn").mkdir()
    (tmp_path / "learn" / "one.ipynb").write_text("{}", encoding="utf-8")
    text = (
        "[one](notebooks/learn/one.ipynb) [two](notebooks/learn/two.ipynb) [how](CONTRIBUTING.md) [a](https://a.org) "
        "![a picture](data/a.svg)"
    )
    assert book._intro(text, tmp_path) == "[one](learn/one.ipynb) two how [a](https://a.org) ![a picture](data/a.svg)"


def test_one_chapter_is_built_whole_and_opens_from_the_disk(tmp_path, monkeypatch):
    pytest.importorskip("jupyter_book", reason="jupyter-book is missing: pip install -e '.[dev]'")
    monkeypatch.setenv("MINGLM_SMOKE", "1")
    book.build(tmp_path / "book", only="02_mla")
    assert book.check(tmp_path / "book") == []
    noted = json.loads((tmp_path / "book" / "seconds.json").read_text(encoding="utf-8"))
    (row,) = noted
    assert row["smoke"] and row["notebook"] == "learn/02_mla" and row["seconds"] > 0.1 and row["error"] == ""
    with pytest.raises(InputError, match="smoke mode"):
        timing.from_book(tmp_path / "book")
    row["smoke"] = False
    (tmp_path / "book" / "seconds.json").write_text(json.dumps(noted), encoding="utf-8")
    (timed,) = timing.from_book(tmp_path / "book")
    assert timed["notebook"] == "learn/02_mla.ipynb" and timed["figures"] >= 2 and timed["seconds"] == row["seconds"]
    html = tmp_path / "book" / "_build" / "html"
    assert (html / "search.html").is_file() and "print.css" in (html / "learn" / "02_mla.html").read_text(
        encoding="utf-8"
    )
    assert (html / "workshop" / "exercises" / "02_mla.html").is_file()


def test_a_kernel_that_dies_is_a_row_with_its_error(tmp_path):
    """nbclient's own clean-up stops on an assertion then, which ended the whole book."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell("import os; os._exit(1)")]
    source = tmp_path / "dies.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    assert "died" in executed._execute(source, tmp_path / "copy.ipynb", tmp_path)[1].lower()
