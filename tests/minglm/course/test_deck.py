"""The half day's slides: one idea each, notes for the speaker, and figures that are those of the commands."""

import re

import pytest

pytest.importorskip("torch")
from minglm.course import assets
from minglm.course.workshop import deck
from minglm.errors import InputError

PROJECTION = {
    "tokens": 28.57e12,
    "days": {"value": 36.4, "low": 29.0, "high": 48.2},
    "cost": {"rent": {"value": 357e6, "low": 306e6, "high": 527e6}},
    "step": {"bubble_fraction": 0.371},
}


def test_every_slide_has_one_idea_and_notes():
    found = deck.slides(assets.read("half_day.md"))
    assert len(found) == 14 and len({s.title for s in found}) == 14
    for slide in found:
        assert 1 <= len(slide.lines) <= 3 and slide.notes and len(slide.title) < 60
        assert all(len(line) < 120 for line in slide.lines)
        assert not slide.picture or slide.picture in deck.PICTURES or slide.picture.startswith("file:")
    assert {s.picture for s in found} >= set(deck.PICTURES)


def test_the_page_opens_offline_and_its_figures_are_filled_in():
    page = deck.page(assets.read("half_day.md"), PROJECTION)
    assert page.count('<section class="slide">') == 14 and page.count('<aside class="notes">') == 14
    text = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="https?:', text)
    for figure in ("36 days (29 to 48)", "$357 million of rent (306 to 527)", "37% of a step", "28.6 trillion"):
        assert figure in text, figure
    # 64 heads, keys of 256 and values of 256, 2 bytes, 78 layers; a latent of 512 and a rotary key of 64
    assert f"{64 * 512 * 2 * 78:,}" in text and f"{576 * 2 * 78:,}" in text and "57 times less" in text
    assert not re.search(r"\{\w+\}", re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.S))
    assert page.count("Plotly.newPlot") == 7


@pytest.mark.parametrize(
    "text, message",
    [
        ("hello\n", "before the first slide"),
        ("# A\nhello\n", "'hello': begin with"),
        ("# A\npicture: part\n", "did you mean 'parts'"),
        ("# A\n- {day}\n", "did you mean 'days'"),
        ("# A\npicture: file:none.svg\n", "no such picture"),
    ],
)
def test_a_deck_that_cannot_be_made_is_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        deck.page(text, PROJECTION)


def test_the_command_makes_the_deck_or_slides_of_notebooks(tmp_path, monkeypatch, capsys):
    from minglm.cli import main

    monkeypatch.setattr(deck, "project", lambda: PROJECTION)
    assert main.main(["workshop", "slides", "--deck", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("half_day.deck.html")
    assert (tmp_path / "half_day.deck.html").stat().st_size > 1e6  # plotly is inside
    assert main.main(["workshop", "slides", "--deck", "--all"]) == 2
    assert "leave notebooks, --all and --book out" in capsys.readouterr().err


def test_text_is_not_taken_for_html():
    page = deck.page("# A <b>\n- x < y and `a<b`\n> n\n", PROJECTION)
    assert "A &lt;b&gt;" in page and "x &lt; y and <code>a&lt;b</code>" in page
