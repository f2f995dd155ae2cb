"""What `make book` finds wrong in a page."""

import json

import pytest

from minglm.course import book

PLOT = {"data": {"application/vnd.plotly.v1+json": {}, "text/html": "<div>"}}
LOADER = {"data": {"text/html": "<script>window.PlotlyConfig</script>"}}
PICTURE = {"data": {"text/html": "<svg>", "text/plain": "<HTML>"}}
WORDS = {"data": {"text/markdown": "*Bars.*", "text/plain": "<Markdown>"}}


@pytest.mark.parametrize(
    "outputs,page,sound",
    [
        ([LOADER, PLOT, WORDS], "Plotly.newPlot(", True),
        ([LOADER, PLOT, WORDS], "the plot was lost on the way into the page", False),
        ([PICTURE, WORDS], "<svg>", True),
        ([LOADER, WORDS], "", False),
    ],
)
def test_a_picture_that_was_asked_for_is_in_the_page(tmp_path, outputs, page, sound):
    html = tmp_path / "_build" / "html"
    for folder in (tmp_path / "plan", html / "plan"):
        folder.mkdir(parents=True)
    cell = {"cell_type": "code", "source": "show(fig, 'Bars.')", "outputs": outputs}
    (tmp_path / "plan" / "a.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    (html / "plan" / "a.html").write_text(page, encoding="utf-8")
    wrong = book._faults_of_chapter(tmp_path, html, "plan/a")
    assert (wrong == []) is sound
