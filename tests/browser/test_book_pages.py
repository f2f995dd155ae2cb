"""The built book as a reader meets it, from the disk: pictures drawn, search that finds, pages that print, nothing from
the network.

`make course-check` builds the whole book first and walks it with MINGLM_COURSE=1. MINGLM_SCREENSHOTS=folder keeps what
was seen.
"""

import json
import os
import re

import pytest

from minglm import datafiles

pytestmark = pytest.mark.skipif(
    os.environ.get("MINGLM_COURSE") != "1", reason="walked by make course-check, which builds the book first"
)
HTML = datafiles.runs("book") / "_build" / "html"  # of the user: tests have a folder of their own once they run


@pytest.fixture(scope="module")
def page(new_page):
    assert (HTML / "index.html").is_file(), "no book yet: make book"
    return new_page(1280, 900)


def _chapters() -> list[str]:
    return re.findall(r"- file: (\S+)", (HTML.parents[1] / "_toc.yml").read_text(encoding="utf-8"))


def _kept(page, name: str) -> None:
    if folder := os.environ.get("MINGLM_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/book_{name.replace('/', '_')}.png")


def test_every_chapter_opens_from_the_disk_with_its_pictures_drawn(page):
    failed, errors = {}, []
    page.on("pageerror", lambda e: errors.append(str(e)))
    for name in _chapters():
        page.goto((HTML / f"{name}.html").as_uri(), wait_until="load")
        asked = (HTML / f"{name}.html").read_text(encoding="utf-8").count("Plotly.newPlot(")
        page.wait_for_timeout(300)
        seen = page.evaluate(
            "() => [...document.querySelectorAll('article .js-plotly-plot')].filter(p => "
            "p.querySelector('.main-svg')?.getBoundingClientRect().width > 200).length"
        )
        broken = page.evaluate(
            "() => [...document.querySelectorAll('article img')].filter(i => i.complete && !i.naturalWidth).map(i => "
            "i.src)"
        )
        if seen != asked or broken or errors:
            failed[name] = f"{asked} pictures, {seen} drawn; {broken}; {errors}"
        errors.clear()
        _kept(page, name)
    assert failed == {}


@pytest.mark.parametrize(
    "word,chapter",
    [("latent", "learn/02_mla"), ("bubble", "scale/03_pipelines"), ("APRIL", "learn/13_the_long_tail_and_april")],
)
def test_the_search_finds_a_word_in_its_chapter(page, word, chapter):
    page.goto((HTML / "search.html").as_uri() + f"?q={word}", wait_until="load")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    _kept(page, f"search_{word}")
    found = page.evaluate("() => [...document.querySelectorAll('#search-results ul.search li a')].map(a => a.href)")
    assert any(f"{chapter}.html" in link for link in found), found


def test_every_page_prints_with_its_pictures(page, tmp_path):
    """Chromium's own printer; sidebars are hidden, no picture and no line is cut off at the margin, and folded answers
    are open."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 760, "height": 1000})  # the text width of an A4 page at 96 pixels an inch
    wrong = {}
    for name in _chapters():
        page.goto((HTML / f"{name}.html").as_uri(), wait_until="load")
        hidden = page.evaluate(
            "() => [...document.querySelectorAll('.bd-sidebar-primary, .bd-sidebar-secondary, "
            ".widget-slider')].every(e => getComputedStyle(e).display === 'none')"
        )
        wide = page.evaluate(
            "() => Math.max(0, ...[...document.querySelectorAll('article .js-plotly-plot, article svg, article "
            "table, article img')].map(e => e.getBoundingClientRect().right))"
        )
        cut = page.evaluate(
            "() => [...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        )
        folded = page.evaluate(
            "() => [...document.querySelectorAll('article details > :last-child')].filter(e => "
            "!e.checkVisibility({contentVisibilityAuto: true})).length"
        )
        pdf = page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
        if not hidden or wide > 780 or cut or folded or len(pdf) < 10_000:
            wrong[name] = (
                f"{cut} blocks with lines cut off, {folded} answers folded; sidebars hidden: {hidden}; widest thing "
                f"ends at {wide:.0f} of 760 pixels; {len(pdf)} bytes"
            )
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert wrong == {}


def test_the_first_page_leads_to_the_chapters(page):
    page.goto((HTML / "index.html").as_uri(), wait_until="load")
    page.wait_for_selector("article h1", timeout=20_000)
    links = page.evaluate("() => [...document.querySelectorAll('article table a')].map(a => a.href)")
    course = [name for name in _chapters() if not name.startswith("workshop/")]
    assert [name for name in course if not any(link.endswith(f"{name}.html") for link in links)] == []
    _kept(page, "first_page")


def test_nothing_was_asked_of_the_network(page):
    assert json.dumps(page.elsewhere) == "[]"
