"""The book's check finds what it should, and a book of one chapter passes it; `make course-check` builds and walks the
whole one."""

import json
from pathlib import Path

import pytest

from minglm.course import book
from minglm.course.workshop import timing
from minglm.errors import InputError

PLOT = "<script>Plotly.newPlot('a', [])</script>"


def _a_book(target: Path, page: str = PLOT, body: str = "", search: str = '{"expert":1,"token":2}') -> Path:
    html = target / "_build" / "html"
    (html / "learn").mkdir(parents=True)
    (target / "learn").mkdir()
    (target / "_toc.yml").write_text("  - file: learn/one\n", encoding="utf-8")
    cell = {"cell_type": "code", "source": ["show(fig, 'words')\n"]}
    (target / "learn" / "one.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
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
    assert noted["smoke"] and list(noted["seconds"]) == ["learn/02_mla"] and noted["seconds"]["learn/02_mla"] > 0.1
    with pytest.raises(InputError, match="smoke mode"):
        timing.from_book(tmp_path / "book")
    noted["smoke"] = False
    (tmp_path / "book" / "seconds.json").write_text(json.dumps(noted), encoding="utf-8")
    (row,) = timing.from_book(tmp_path / "book")
    assert (
        row["notebook"] == "learn/02_mla.ipynb"
        and row["figures"] >= 2
        and abs(row["seconds"] - noted["seconds"]["learn/02_mla"]) < 0.1
    )
    html = tmp_path / "book" / "_build" / "html"
    assert (html / "search.html").is_file() and "print.css" in (html / "learn" / "02_mla.html").read_text(
        encoding="utf-8"
    )
    assert (html / "workshop" / "exercises" / "02_mla.html").is_file()
