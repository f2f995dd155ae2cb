"""The report of the demo opens with its answers, and its picture adds up."""

import re
import shutil

import pytest

from minglm import plots
from sim.report import demo


@pytest.fixture
def drawn(nano_demo, tmp_path, monkeypatch):
    """The page's text, and the panels of its picture by their titles."""
    panels = {}
    monkeypatch.setattr(plots, "static_svg", lambda path, given, **how: panels.update({p["title"]: p for p in given}))
    page = demo.build(shutil.copytree(nano_demo, tmp_path / "demo"))
    return page.read_text(encoding="utf-8"), panels


def test_answers_first_then_a_picture_whose_days_add_up(drawn):
    text, panels = drawn
    opening = text[: text.index("<h2")]
    assert [w for w in ("nats", "of whole sentences", "of training", "days") if w not in opening] == []

    (timeline,) = (p for title, p in panels.items() if re.fullmatch(r"GLM-5 on 100,000 chips: \d+ days", title))
    *parts, (_, low, high, days) = timeline["spans"]
    ends = [0.0, *(end for _, _, end, _ in parts)]
    assert [begin for _, begin, _, _ in parts] == ends[:-1] and ends == sorted(ends)
    assert ends[-1] == days and low < days < high  # phases and failures end when the run does

    (prices,) = (p for p in panels.values() if "million US dollars" in p.get("x", ""))
    for _, low, high, cost in prices["spans"]:
        assert 1 < low < cost < high


def test_a_folder_without_a_finished_demo_is_said(tmp_path):
    from minglm.errors import InputError

    with pytest.raises(InputError, match=r"demo.json: not there, so the demo has not finished; run `minglm demo --run"):
        demo.build(tmp_path)
