"""A person with a budget question at the planner page: Voila in a real browser, on a desk and on a phone.

Needs Chromium, Playwright and Voila. Nothing may be asked of another machine.
"""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sim.base.units import show

pytest.importorskip("voila", reason="Voila is missing: pip install -e '.[lab]'")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.environ.get("MINGLM_COURSE") != "1", reason="a long walk: make course-check")
ANSWER = ".planner-top .said"


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory, ending):
    """The served page's address with its token."""
    home = tmp_path_factory.mktemp("planner")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "sim", "dashboard", "--json", "--port", str(port)]
    with (
        open(home / "log", "w") as log,
        ending(
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "MINGLM_RUNS": str(home / "runs")},
            )
        ) as server,
    ):
        assert select.select([server.stdout], [], [], 240)[0], (home / "log").read_text()
        yield json.loads(server.stdout.readline())


def opened(page, address: dict):
    """The page with its pictures drawn."""
    page.goto(address["address"], wait_until="commit")
    page.wait_for_selector(ANSWER)
    page.wait_for_selector(".bars .bar b", state="attached")
    return page


@pytest.fixture(scope="module")
def desk(new_page, address):
    return opened(new_page(1280, 900), address)


@pytest.fixture(scope="module")
def phone(new_page, address):
    return opened(new_page(390, 844), address)


def typed(page, label: str, text: str) -> None:
    box = page.get_by_label(label, exact=False).first
    box.fill(text)
    box.press("Enter")


def until(page, words: str, selector: str = ANSWER) -> None:
    page.wait_for_function("([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words])


def drawn(page) -> list[int]:
    """Bars drawn in each picture."""
    return page.evaluate(
        "() => [...document.querySelectorAll('.planner .bars')].map(p => p.querySelectorAll('.bar b').length)"
    )


def test_without_the_token_nothing_is_shown(browser, address):
    page = browser.new_page()
    page.goto(address["address"].split("?")[0], timeout=240_000, wait_until="commit")
    page.wait_for_timeout(1000)
    assert page.locator(ANSWER).count() == 0 and page.locator(".bars").count() == 0
    page.close()


def test_opening_the_page_changes_no_control(desk):
    until(desk, "20,000 × H100")
    assert (
        desk.get_by_label("How many chips").first.input_value() == "20,000"
        and desk.get_by_label("Training tokens").first.input_value() == ""  # the model's own
    )


def test_the_budget_question_is_answered_and_says_what_the_library_says(desk):
    from sim.dashboard import state

    typed(desk, "Rent of a chip", "2-3")
    want = state.sentence(state.answer({"rent_usd_per_hour": "2-3"}))
    until(desk, want.split("days ")[1][:30])
    assert desk.locator(ANSWER).inner_text() == want
    assert "moved most by" in desk.locator(".planner .cards").inner_text().lower()


def test_an_arrow_key_on_a_slider_moves_answer_and_pictures(desk):
    typed(desk, "How many chips", "20,000")
    until(desk, "20,000")
    before, handle = desk.locator(ANSWER).inner_text(), desk.locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowLeft")
    desk.wait_for_function("([s, w]) => document.querySelector(s).innerText != w", arg=[ANSWER, before])
    assert all(n >= 1 for n in drawn(desk)), drawn(desk)


MOVED = {
    "How many chips": [
        "19,000",
        "17,000",
        "12,000",
        "24,000",
        "20,000",
        "9,000",
        "18,000",
        "16,000",
        "15,000",
        "20,000",
    ],
    "Batch, tokens": ["15M", "18M", "24M", "32M", "48M", "12M", "20M", "28M", "40M", "64M"],
    "Rent of a chip": ["2", "3", "4", "1.5", "2.5", "3.5", "2-3", "1-2", "5", "2-4"],
}


@pytest.mark.parametrize("label", MOVED)
def test_pictures_follow_every_move_under_load(desk, label):
    """Ten moves with both cores busy: the pictures on the page are those of the sentence's own answer."""
    from sim.dashboard import state, svg

    key = {"How many chips": "chips", "Batch, tokens": "batch", "Rent of a chip": "rent_usd_per_hour"}[label]
    desk.get_by_role("button", name="All controls to their defaults").click()
    until(desk, state.sentence(state.answer({}))[:60])
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for text in MOVED[label]:
            typed(desk, label, text)
            a = state.answer({key: text})
            until(desk, state.sentence(a))
            for picture, alt in (svg.memory(a), svg.step(a), svg.tornado(a, "rent_usd")):
                desk.wait_for_function(
                    "w => [...document.querySelectorAll('.bars')].some(p => p.getAttribute('aria-label') == w)",
                    arg=alt,
                )
                assert picture.count("<b ") in drawn(desk)
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_a_first_look_is_shown_before_the_full_answer(desk):
    """What a control says at once is said to be a first look; the full answer takes its place by itself."""
    from sim.dashboard import state

    desk.get_by_role("button", name="All controls to their defaults").click()
    until(desk, state.sentence(state.answer({})))
    typed(desk, "How many chips", "13,000")
    desk.wait_for_function(
        "() => { const top = document.querySelector('.planner-top').innerText;"
        " return top.includes('13,000') && top.includes('first look'); }",
        polling=20,
    )
    until(desk, state.sentence(state.answer({"chips": "13,000"})))
    assert "first look" not in desk.locator(".planner-top").inner_text()
    typed(desk, "How many chips", "20,000")
    until(desk, state.sentence(state.answer({})))


def test_the_question_turned_round_is_answered_on_the_page(desk):
    """The page's figures are the library's, and the command beside them asks the same."""
    from sim.dashboard import inverse

    desk.get_by_label("Turned round").select_option("When do more chips stop paying?")
    desk.get_by_role("button", name="Answer it").click()
    desk.wait_for_selector("svg.curve")
    words = inverse.answered({}, {**inverse.DEFAULT, "asked": "growth"})[1]
    assert desk.locator("pre[role=status]").inner_text().strip() == words.strip()
    assert "--ask growth" in desk.locator("code", has_text="--ask growth").inner_text()


def test_is_my_number_normal_is_answered_on_the_page(desk):
    """The section says what the command prints, which stands beside it; a bad figure is one line and leaves it."""
    from sim.dashboard import normal

    desk.get_by_label("Of what").select_option("serving: serving_glm5_h200")
    figure = desk.get_by_label("Measured", exact=True)
    figure.fill("30 ms")
    figure.press("Enter")
    desk.get_by_role("button", name="Is it normal?").click()
    asked = {**normal.DEFAULT, "of": "serving_glm5_h200", "quantity": "tpot", "value": "30 ms"}
    answer = normal.answered({}, asked, {})
    until(desk, normal.figure_words("tpot", answer.result["predicted"]), ".normal .said")
    assert desk.locator(".normal code").inner_text() == answer.command
    assert desk.locator(".normal table").count() == 2 and desk.locator(".normal .ruler").is_visible()
    figure.fill("-3 ms")
    figure.press("Enter")
    desk.get_by_role("button", name="Is it normal?").click()
    until(desk, "must be more than 0", ".planner .error")
    assert "\n" not in desk.locator(".planner .error").inner_text()


def test_what_comes_to_the_browser_is_small(new_page, address):
    """No library in a frame: the pictures are text."""
    page, frames = new_page(1280, 900), []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(len(frame))))
    opened(page, address)
    assert frames and max(frames) < 1_000_000 and sum(frames) < 2_000_000
    page.close()


def test_an_address_carries_the_question(new_page, address):
    from sim.dashboard import state

    page = new_page(1280, 900)
    asked = {"model": "llama3_8b", "chips": "64", "tokens": "1T", "batch": "4M"}
    a = state.answer(asked)
    page.goto(address["address"] + "&" + state.link(a).lstrip("?"), wait_until="commit")
    page.wait_for_selector(ANSWER)
    until(page, state.sentence(a))  # a first look may stand there before
    assert page.get_by_label("How many chips").first.input_value() == "64"
    page.close()


def test_an_address_carries_a_measured_figure(new_page, address):
    from sim.dashboard import normal, state

    page = new_page(1280, 900)
    asked = {**normal.DEFAULT, "quantity": "mfu", "value": "38%", "set": "plan.tp=2"}
    a = state.answer({"model": "llama3_8b", "chips": "64"}, samples=2)
    page.goto(address["address"] + "&" + normal.link(a, asked).lstrip("?"), wait_until="commit")
    page.wait_for_selector(ANSWER)
    assert page.get_by_label("Measured", exact=True).input_value() == "38%"
    assert page.get_by_label("What your run had otherwise").input_value() == "plan.tp=2"
    page.close()


def test_a_bad_value_is_one_kind_line_and_the_answer_stays(desk):
    before = desk.locator(ANSWER).inner_text()
    typed(desk, "How many chips", "lots")
    until(desk, "How many chips", ".planner .error")
    assert desk.locator(ANSWER).inner_text() == before and "\n" not in desk.locator(".planner .error").inner_text()
    typed(desk, "How many chips", "20,000")
    desk.wait_for_function("() => !document.querySelector('.planner .error')")


def test_is_the_910b_cheaper(desk):
    desk.get_by_role("button", name="Save this scenario").click()
    desk.wait_for_selector("a.file[download$='.yaml']:not([download='scenario.yaml'])")
    desk.get_by_label("Chip and its nodes").select_option("910B in Atlas 800T A2")
    until(desk, "× 910B")
    desk.wait_for_function("() => [...document.querySelectorAll('.said')].some(e => e.innerText.startsWith('B takes'))")
    said = desk.locator(".said", has_text="B takes").inner_text()
    assert "to rent" in said and "a chip-hour B would cost as much" in said
    assert desk.locator(".versus .bar").count() >= 3
    from sim.dashboard import state

    step = show(state.simulated_step(state.answer({"machine": "chip:910b"})).result.step_s, "time")
    desk.wait_for_function("s => document.querySelector('svg.strip')?.getAttribute('aria-label').includes(s)", arg=step)
    assert all(n >= 1 for n in drawn(desk)) and desk.locator("svg.strip rect").count() > 10


def test_what_would_serving_earn(desk):
    from sim.dashboard import serving

    desk.get_by_role("button", name="What would serving earn?").click()
    for label, key in (("Output, $ a million tokens", "output"), ("Input, $ a million tokens", "input")):
        typed(desk, label, {"input": "0.80", "output": "2.56"}[key])
    row = serving.earned("glm5", "chip:h200", "wide", "0.80", "2.56")["rows"][0]
    want = (
        f"At $0.80 a million tokens in and $2.56 out, serving glm5 on H200 keeps {row['likely']:.0%} of its income "
        f"({row['p5']:.0%} to {row['p95']:.0%}"
    )
    desk.wait_for_function(
        "w => [...document.querySelectorAll('.said')].some(e => e.innerText.startsWith(w))", arg=want
    )


def test_every_control_is_reached_by_the_tab_key_with_an_outline(phone):
    """What can be pressed, chosen or typed into, from first to last, on the narrow screen."""
    wanted = phone.evaluate(
        "() => [...document.querySelectorAll('.planner-page input[type=text], .planner-page select, .planner-page "
        "button, .planner-page .noUi-handle')]"
        ".filter(e => e.offsetParent && !e.disabled).length"
    )
    phone.evaluate(
        "() => { document.activeElement.blur(); window.reached = new Set(); window.bare = []; "
        "document.addEventListener('focusin', e => {"
        " if (!e.target.closest('.planner-page')) return; window.reached.add(e.target);"
        " const s = getComputedStyle(e.target); if (s.outlineStyle == 'none' && s.boxShadow == 'none') "
        "window.bare.push(e.target.outerHTML.slice(0, 200)); }) }"
    )
    for _ in range(3 * wanted):
        phone.keyboard.press("Tab")
        if phone.evaluate("() => window.reached.size") >= wanted:
            break
    assert phone.evaluate("() => window.reached.size") >= wanted and phone.evaluate("() => window.bare") == []


def test_the_report_comes_as_files(desk):
    desk.get_by_role("button", name="Make the report").click()
    desk.wait_for_selector("a.file[download='plan.html']")
    for name in ("plan.json", "plans.csv"):
        assert desk.locator(f"a.file[download='{name}']").count() == 1


def test_a_phone_shows_all_of_it_without_scrolling_sideways(phone):
    wide = phone.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.planner-page .planner-field, .planner-page .card, "
        ".planner-page .bars')].map(e => e.getBoundingClientRect().right))"
    )
    assert wide <= 390 and phone.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert (
        phone.evaluate("() => parseFloat(getComputedStyle(document.querySelector('.planner-top .said')).fontSize)")
        >= 14
    )


def test_pictures_have_text_alternatives_and_controls_have_labels(desk):
    assert desk.locator(".planner .note", has_text="Memory of the peak-memory rank in GiB").count() == 1
    unlabelled = desk.evaluate(
        "() => [...document.querySelectorAll('.planner-page input[type=text], .planner-page select')].filter(e => "
        "!e.labels?.length && !e.getAttribute('aria-label')).length"
    )
    assert unlabelled == 0


def test_nothing_was_asked_of_the_network(desk, phone):
    assert desk.elsewhere == [] and phone.elsewhere == []
