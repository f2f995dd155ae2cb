"""The planner page without a browser: controls, answers, files, the report, and the command that serves it."""

import html
import json
import re
import shlex
import socket
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.cli.main import main as clustersim
from sim.dashboard import controls, figures, files, state, svg
from sim.planner.quick import quick
from sim.spec.hardware import load_cluster
from sim.study.campaign import phase_facts

SMALL = {"model": "llama3_8b", "machine": "chip:h100", "chips": "64", "tokens": "1T", "batch": "4M"}


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def budget():
    """The question of a person with a budget."""
    return state.answer({"model": "glm5", "machine": "chip:h100", "chips": "20k", "rent_usd_per_hour": "2-3"})


# ------------------------------------------------------------------ controls


def test_every_control_has_a_unit_a_help_and_a_default_in_words():
    at = controls.machine(controls.DEFAULT["machine"])
    for c in controls.CONTROLS:
        assert c.unit and c.help and controls.default_words(c, at)
        assert c.kind == "choice" or 0 < c.low < c.high
    assert set(controls.QUESTION) <= set(controls.DEFAULT)


def test_choices_name_what_can_be_computed():
    for _, value in controls.choices("machine"):
        assert controls.machine(value).chip.name
    assert len(controls.choices("model")) > 30


@pytest.mark.parametrize(
    "text, low, value, high",
    [("2.5", 2.5, 2.5, 2.5), ("2-3", 2, 2.5, 3), ("$2/h to $3/h", 2, 2.5, 3), (" 2 – 3 ", 2, 2.5, 3)],
)
def test_a_price_is_one_or_a_range(text, low, value, high):
    f = controls.price(text, "money_per_hour", "rent")
    assert (f.low, f.value, f.high) == (low, value, high)
    assert controls.price("  ", "money_per_hour", "rent") is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"chips": "abc"}, "How many chips: 'abc' is not a quantity"),
        ({"chips": "12.5"}, "not a whole number"),
        ({"chips": "0"}, "How many chips"),
        ({"chips": "-3"}, "below 1"),
        ({"tokens": "1e99"}, "larger"),
        ({"rent_usd_per_hour": "3-2"}, "from high to low"),
        ({"rent_usd_per_hour": "2 GiB"}, "Rent of a chip"),
        ({"rent_usd_per_hour": "0"}, "must be more than 0"),
        ({"pue": "0.5"}, "below 1"),
        ({"batch": "100"}, "less than one sequence"),
        ({"machine": "h100"}, "chip:NAME"),
        ({"machine": "chip:h1000"}, "not known"),
        ({"model": "glm55"}, "neither a known name"),
        ({"precision": "fp9"}, "not one of"),
        ({"utilization": "130%"}, "larger than 1"),
        ({"chps": "3"}, "did you mean 'chips'"),
        ({"chips": "4", "model": "glm5"}, "no plan"),
        ({"seq": "9" * 70}, "characters"),
    ],
)
def test_bad_values_are_one_line(changes, words):
    with pytest.raises(InputError) as caught:
        state.answer({**SMALL, **changes})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([c.key for c in controls.CONTROLS]), st.text(max_size=12))
def test_any_text_is_read_or_refused_in_words(key, text):
    try:
        controls.question_of({**SMALL, key: text})
    except InputError as err:
        assert "\n" not in str(err) or "\n" in text


# ------------------------------------------------------------------ answers


def test_the_budget_question(budget):
    r = budget.row
    assert r["chips"] <= 20_000 and 20 < r["days"] < 200
    assert r["rent_usd"] == pytest.approx(2.5 * r["chip_hours"])
    low, high = budget.interval("rent_usd")
    assert low < r["rent_usd"] < high
    assert sum(budget.memory.values()) == pytest.approx(r["memory_gib"]) and r["memory_gib"] <= budget.capacity_gib
    assert "days" in state.sentence(budget) and "to rent" in state.sentence(budget)


def test_each_result_says_what_moves_it_most(budget):
    for key, _, _ in budget.results:
        moved = budget.mover(key)
        assert moved["name"] and moved["low"] < budget.row[key] * 1.3 and moved["high"] >= moved["low"]
        for row in budget.sure["tornado"]:
            assert abs(row[f"high_{key}"] - row[f"low_{key}"]) <= (moved["high"] - moved["low"]) * (1 + 1e-9)


def test_command_line_library_and_page_give_the_same_figures(budget, capsys):
    words = shlex.split(state.command(budget))
    assert words[0] == "clustersim" and clustersim([*words[1:], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["winner"]
    for key in ("plan", "chips", "step_s", "days", "rent_usd", "own_usd", "energy_kwh", "memory_gib", "mfu", "goodput"):
        assert (
            said[key] == pytest.approx(budget.row[key])
            if isinstance(said[key], float)
            else said[key] == budget.row[key]
        ), key
    assert state.answer(budget.values, budget.kept).row == budget.row


def test_the_command_of_a_run_in_phases_carries_their_plans(capsys):
    """A phase whose sequences or batch are of another size has a plan of its own, without which nothing can run it."""
    a = state.answer({"machine": "chip:910b", "chips": "100000", "phases": "glm5", "batch": "64M"}, samples=2)
    assert a.document["plans"]
    assert clustersim([*shlex.split(state.command(a))[1:], "--samples", "0", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    said = answered["winner"]
    for key in ("step_s", "days", "rent_usd", "goodput"):
        assert said[key] == pytest.approx(a.row[key]), key
    run = a.simulated
    facts = phase_facts(run.scenario, run.segments)
    assert answered["phases"] == facts["phases"] and answered["plan_changes"] == facts["plan_changes"]


def test_a_link_and_a_file_carry_the_question(budget, tmp_path):
    from sim.scenario.training import load_scenario
    from sim.study.answer import figures, simulate

    values = state.from_link(state.link(budget))
    assert values == {"chips": "20k", "rent_usd_per_hour": "2-3"}  # the others are the page's defaults
    path = tmp_path / "copied.yaml"
    path.write_text(state.yaml_text(budget))
    assert figures(simulate(load_scenario(path))) == budget.row
    assert state.from_link("token=ca545&chips=20k&voila-theme=light") == {"chips": "20k"}  # as the server's address is
    with pytest.raises(InputError, match="did you mean 'chips'"):
        state.from_link("?chps=3")


def test_a_quick_plan_is_real_and_never_better_than_the_proven_best():
    from sim.planner.planner import find

    for values in (SMALL, {**SMALL, "model": "mixtral_8x7b", "chips": "128"}):
        q = controls.question_of(values)
        fast, best = quick(q)[0], find(q, 1)[0].best[0]
        assert best.value("tokens") <= fast.value("tokens") * (1 + 1e-9) <= best.value("tokens") * 1.1
        assert fast.memory_bytes <= q.cluster.chip.memory_bytes.value


def test_the_answer_does_not_depend_on_what_was_asked_before():
    alone = state.answer(SMALL).row
    state._KNOWN.clear(), state._FOUND.clear()
    state.answer({**SMALL, "chips": "128"})
    state.answer({**SMALL, "batch": "8M"})
    assert state.answer(SMALL).row == alone


def test_a_kept_plan_stays_while_chips_move(budget):
    fewer = state.answer({**budget.values, "chips": "10k"}, budget.kept)
    assert {k: fewer.row[k] for k in state.AXES} == budget.kept and fewer.row["chips"] <= 10_000


# ------------------------------------------------------------------ files


def test_what_is_saved_is_a_scenario_and_comes_back_the_same(budget, monkeypatch, own_runs):
    from sim.scenario.training import load_scenario
    from sim.study.monte_carlo import outcome

    path = files.save(budget, "H100 at $2-3")
    assert path.parent == own_runs / "planner" and "h100_at_2_3" in files.saved()
    values, keep, name = files.load(path)
    assert name == "H100 at $2-3" and state.answer(values, keep).row == budget.row
    assert outcome(load_scenario(path))["rent_usd"] == pytest.approx(budget.row["rent_usd"])
    monkeypatch.setitem(sys.modules, "yaml", None)  # a browser without PyYAML
    assert files.load(path) == (values, keep, name)
    assert files.load_upload("mine.yaml", path.read_bytes())[0] == values


def test_a_scenario_that_was_not_saved_here_opens_with_its_own_plan():
    values, keep, _ = files.load("llama3_405b_16k_h100")
    a = state.answer(values, keep)
    assert values["machine"] == "cluster:llama3_meta" and a.row["tp"] == 8 and a.row["pp"] == 16


@pytest.mark.parametrize(
    "change, words",
    [
        (("version: 1", "version: 0"), "version 0"),
        (("version: 1", "version: 7"), "version 7"),
        (('"chips": "64"', '"chip_count": "64"'), "saved by another version"),
        (('"chips": "64"', '"chips": "many"'), "How many chips"),
        (('"keep": {}', '"keep": {"tpp": 1}'), "not a width"),
        (('"keep": {}', '"keep": 3'), "mapping"),
        (("model:", "modle:"), "unknown key"),
    ],
)
def test_old_and_broken_files_are_refused_in_words(change, words):
    text = files.text(state.answer(SMALL))
    assert change[0] in text
    with pytest.raises(InputError) as caught:
        files.load_upload("old.yaml", text.replace(*change).encode())
    assert words in str(caught.value) and "\n" not in str(caught.value) and "/tmp" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"[1, 2]", b"a: &a [*a]", b"x" * (2**20 + 1), b"kind: serving\nmodel: glm5\n"]
)
def test_uploads_that_are_no_scenario(content):
    with pytest.raises(InputError):
        files.load_upload("x.yaml", content)


def test_no_name_and_no_folder(monkeypatch, tmp_path):
    a = state.answer(SMALL)
    with pytest.raises(InputError, match="name is empty"):
        files.save(a, " ")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        files.save(a, "x")


def test_the_report_holds_question_sources_interval_errors_and_what_would_change(own_runs):
    made = files.report(state.answer({**SMALL, "rent_usd_per_hour": "2-3"}), samples=20)
    page, figures = made["html"].read_text(), json.loads(made["json"].read_text())
    for words in (
        "Answer",
        "90% of samples",
        "What would change the answer",
        "moved most by",
        "Assumptions",
        "source",
        "How wrong the simulator is",
        "Rent of a chip: 2-3",
        "clustersim plan",
    ):
        assert words in page, words
    assert 'src="http' not in page and "Plotly.newPlot" in page
    assert figures["winner"]["days"] == state.answer(SMALL).row["days"] and made["csv"].read_text().startswith(
        "list,plan"
    )


# ------------------------------------------------------------------ the page's widgets

widgets = pytest.importorskip("ipywidgets", reason="ipywidgets is missing: pip install -e '.[lab]'")


def side(days, **row):
    """An answer's figures and the 90% interval of its rent, 10% either way."""
    rent = row.get("rent_usd", 0.0)
    return SimpleNamespace(row={"days": days, **row}, interval=lambda key: (0.9 * rent, 1.1 * rent))


@pytest.mark.parametrize(
    "first, second, words",
    [
        (
            side(10, rent_usd=100.0, chip_hours=50.0),
            side(20, rent_usd=300.0, chip_hours=200.0),
            "B takes 2.00 times as long as A and is dearer to rent: 3.00 times A's cost (the 90% intervals do not "
            "overlap); at $0.50 a chip-hour B would cost as much as A to rent.",
        ),
        (
            side(10, rent_usd=300.0, chip_hours=50.0),
            side(5, rent_usd=150.0, chip_hours=75.0),
            "B takes 0.50 times as long as A and is cheaper to rent: 0.50 times A's cost (the 90% intervals do not "
            "overlap); at $4.00 a chip-hour B would cost as much as A to rent.",
        ),
        (
            side(10, rent_usd=100.0, chip_hours=50.0),
            side(10, rent_usd=100.0, chip_hours=50.0),
            "B takes 1.00 times as long as A and is as dear to rent: 1.00 times A's cost (their 90% intervals "
            "overlap, so that is not sure); at $2.00 a chip-hour B would cost as much as A to rent.",
        ),
        (
            side(10, own_usd=100.0),
            side(10, own_usd=150.0, rent_usd=3.0),
            "B takes 1.00 times as long as A and costs 1.50 times as much to own.",
        ),
        (side(10, own_usd=100.0), side(10), "B takes 1.00 times as long as A and no price is known for both."),
    ],
)
def test_two_answers_beside_each_other_in_words(first, second, words):
    assert figures.versus_words(first, second) == words


def test_a_rent_is_said_with_its_range_where_it_has_one():
    def said(**rent):
        figure = Figure(**({"value": 2.0, "unit": "USD/h", "source": "", "confidence": "assumed"} | rent))
        question = SimpleNamespace(cluster=load_cluster("dgx_h100"), prices={"rent_usd_per_hour": figure})
        return figures._rent(SimpleNamespace(question=question))

    assert said(low=1.0, high=4.0) == "$2.00 ($1.00 to $4.00)" and said(low=2.0, high=2.0) == "$2.00"


def test_what_is_at_its_default_is_no_assumption_of_the_user():
    label = next(c.label for c in state.CONTROLS if c.key == "chips")
    default = next(c.default for c in state.CONTROLS if c.key == "chips")
    answer = SimpleNamespace(values={"chips": default}, document={})
    assert not any(text.startswith(label) for text in state.assumptions(answer))
    answer.values["chips"] = "12345"
    assert [text for text in state.assumptions(answer) if "12345" in text]


def test_memory_of_a_chip_in_gib():
    chip = SimpleNamespace(memory_bytes=SimpleNamespace(value=80 * 2**30))
    question = SimpleNamespace(cluster=SimpleNamespace(chip=chip))
    assert state.Answer.capacity_gib.fget(SimpleNamespace(question=question)) == 80


@pytest.fixture(scope="module")
def opened():
    from sim.dashboard.page import Page

    return Page(SMALL)


def set_(page, key, text):
    page.inputs.fields[key].box.value = text


@pytest.mark.parametrize(
    "query, words, chips",
    [
        ("token=ca545&model=llama3_8b&machine=chip%3Ah100&chips=64&tokens=1T&batch=4M", "", "64"),
        ("token=ca545", "", controls.DEFAULT["chips"]),
        ("chps=3", "did you mean &#x27;chips&#x27;", controls.DEFAULT["chips"]),
        ("chips=many", "How many chips", controls.DEFAULT["chips"]),
    ],
)
def test_the_page_opens_from_any_address(query, words, chips, monkeypatch):
    from sim.dashboard.page import open_page

    monkeypatch.setenv("QUERY_STRING", query)
    page = open_page()
    assert page.inputs.fields["chips"].text == chips and page.answer.row["days"] > 0
    assert words in page.error.value if words else not page.error.value


def test_a_slider_writes_the_text_and_the_answer_follows(opened):
    set_(opened, "chips", "64")
    before, field = opened.answer.row["days"], opened.inputs.fields["chips"]
    field.slider.value += 10
    assert field.text != "64" and opened.answer.row["days"] < before
    field.slider.value = field.slider.value  # the page's own move does not change what was typed
    set_(opened, "chips", "64")
    assert opened.answer.row["days"] == before and field.text == "64"


def test_a_refused_value_leaves_the_last_answer_and_says_why(opened):
    set_(opened, "chips", "64")
    cards = opened.cards.value
    set_(opened, "chips", "sixty")
    assert (
        opened.cards.value == cards and "How many chips" in opened.error.value and 'role="alert"' in opened.error.value
    )
    set_(opened, "chips", "64")
    assert opened.error.value == ""


def test_prices_belong_to_their_chip(opened):
    set_(opened, "rent_usd_per_hour", "2-3")
    set_(opened, "machine", "chip:910b")
    assert opened.inputs.fields["rent_usd_per_hour"].text == "" and opened.answer.question.cluster.chip.name == "910B"
    set_(opened, "machine", "chip:h100")
    assert opened.inputs.fields["rent_usd_per_hour"].text == "2-3"


def test_two_saved_scenarios_are_compared(opened):
    set_(opened, "machine", "chip:h100")
    opened.name.value = "on H100"
    opened._save()
    set_(opened, "machine", "chip:910b")
    assert (
        "B takes" in opened.versus_words.value
        and "on H100" in opened.versus_words.value
        and opened.pictures["versus"].value.count('class="bar"') >= 3
    )
    opened.name.value = "on 910B"
    opened._save()
    opened.a.value, opened.b.value = "on H100", "on 910B"
    assert "A: on H100" in opened.versus_words.value and "B: on 910B" in opened.versus_words.value
    set_(opened, "machine", "chip:h100")


def test_every_picture_has_a_text_alternative(opened):
    strip = opened.pictures["timeline"].value
    assert strip.count("<rect") > 1 and 'role="img" aria-label="One step of one replica as events' in strip
    for key in ("memory", "step", "tornado"):
        picture, alt = getattr(svg, key)(opened.answer, *(["rent_usd"] if key == "tornado" else []))
        assert len(alt) > 40 and alt in html.unescape(opened.alts[key].value)
        assert opened.pictures[key].value.count("<b ") >= 1 and picture in opened.pictures[key].value


def test_pictures_are_small_and_follow_every_control(opened):
    """Each is a few kilobytes made from the answer that the sentence is of; no script and no library comes along."""
    moves = {"chips": "128", "batch": "8M", "seq": "8192", "tokens": "2T", "rent_usd_per_hour": "4", "precision": "fp8"}
    for key, text in moves.items():
        set_(opened, key, text)
        assert not opened.error.value
        a = opened.answer
        assert html.unescape(opened.top.value).count(state.sentence(a)) == 1
        copied = html.unescape(opened.plan_note.value)
        assert state.yaml_text(a) in copied and state.command(a) in copied and state.link(a) in copied
        want = {"memory": svg.memory(a), "step": svg.step(a), "tornado": svg.tornado(a, opened.metric.value)}
        for name, (picture, _) in want.items():
            assert picture in opened.pictures[name].value, (key, name)
        shown = sum(len(p.value) for p in opened.pictures.values())
        assert shown < 400_000 and "<script" not in "".join(p.value for p in opened.pictures.values())
    for key in moves:
        set_(opened, key, SMALL.get(key, controls.DEFAULT[key]))


def test_the_bars_of_a_picture_are_its_figures(budget):
    """Widths against the answer: memory's parts sum to the filled share of the chip, the step's to its shares."""
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", svg.memory(budget)[0])]
    filled = sum(budget.memory.values()) / (1.05 * budget.capacity_gib)
    assert sum(widths) == pytest.approx(100 * filled, abs=0.5)
    shares = [float(w) for w in re.findall(r": ([\d.]+)%</span>", svg.step(budget)[0])]
    assert sum(shares) == pytest.approx(100, abs=3) and shares == sorted(shares, reverse=True)
    bars = svg.tornado(budget, "days")[0]
    assert bars.count('class="bar"') == min(8, sum("low_days" in r for r in budget.sure["tornado"]))
    assert budget.mover("days")["name"] in html.unescape(bars.split('class="bar"')[1])


def test_looking_at_every_plan_keeps_the_best(opened):
    set_(opened, "chips", "64")
    opened._search()
    assert (
        opened.fixed == opened.answer.kept
        and "is kept" in opened.plan_note.value
        and opened.search.layout.display == "none"
    )
    opened._release()
    assert opened.fixed == {} and "found at once" in opened.plan_note.value


def live(act):
    """What `act` does while an event loop runs, as in a notebook's kernel or Voila's."""
    import asyncio

    async def inside():
        return act()

    return asyncio.run(inside())


def test_a_first_look_comes_at_once_and_the_full_answer_follows():
    """Moves of a slider are followed by first looks; of their full answers the last alone is worked out."""
    import time

    from sim.dashboard.page import Page

    page, drawn = Page(SMALL), []
    draw, page._draw = page._draw, lambda answer, before: (drawn.append(answer), draw(answer, before))
    for chips in ("72", "80", "96"):
        live(lambda chips=chips: set_(page, "chips", chips))
        assert page.answer.is_first_look and page.answer.values["chips"] == chips and "first look" in page.top.value
        assert html.unescape(page.top.value).count(state.sentence(page.answer)) == 1
        assert svg.memory(page.answer)[0] in page.pictures["memory"].value
    deadline = time.monotonic() + 60
    while page.work.busy and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not page.answer.is_first_look and page.answer.row == state.answer({**SMALL, "chips": "96"}).row
    assert "first look" not in page.top.value and page.alts["timeline"].value.count("One step of one replica") == 1
    assert [a.values["chips"] for a in drawn if not a.is_first_look] == ["96"]


def test_a_button_waits_for_the_full_answer_and_a_refusal_leaves_the_last(opened):
    set_(opened, "chips", "64")
    live(lambda: set_(opened, "chips", "many"))
    assert "How many chips" in opened.error.value and not opened.answer.is_first_look and not opened.work.busy
    live(lambda: set_(opened, "chips", "72"))
    assert opened.answer.is_first_look
    live(lambda: set_(opened, "chips", "many"))
    assert opened.work.busy and "How many chips" in opened.error.value  # the first look is still followed up
    opened.name.value = "of 72"
    opened.save_button.click()
    assert opened.kept["of 72"].row == state.answer({**SMALL, "chips": "72"}).row
    set_(opened, "chips", "64")


@pytest.mark.parametrize("change", [{"chips": "96"}, {"rent_usd_per_hour": "3"}, {"machine": "chip:910b"}])
def test_a_first_look_is_near_what_follows(change):
    """Half as long to twice as long; the same chip-hours at another price are the same days."""
    from sim.dashboard.first_look import first_look

    before = state.answer(SMALL)
    look, full = first_look({**SMALL, **change}, None, before), state.answer({**SMALL, **change})
    assert look.is_first_look and 0.5 < look.row["days"] / full.row["days"] < 2
    if "rent_usd_per_hour" in change:
        assert look.row["days"] == pytest.approx(full.row["days"], rel=0.02)


@pytest.mark.parametrize("asked", [SMALL, {"model": "qwen3_30b_a3b", "chips": "128"}])
def test_a_first_look_at_another_model_is_near_what_follows(asked):
    """Small models want no tensor parallelism, which the last one's plan may have: such looks were up to four times as
    long as what followed."""
    from sim.dashboard.first_look import first_look

    look, full = first_look(asked, None, state.answer({}, samples=2)), state.answer(asked, samples=2)
    assert look.is_first_look and 0.99 < look.row["days"] / full.row["days"] < 1.3


# ------------------------------------------------------------------ the question turned round

TURNED = {
    "buys": {"budget": "20k", "deadline": "5 days"},
    "within": {"deadline": "2 days"},
    "growth": {},
    "failures": {"deadline": "30 days"},
    "cheapest": {"deadline": "2 days", "others": "b200"},
    "break-even": {"others": "910b"},
}
FEW_TOKENS = {**SMALL, "tokens": "20B", "batch": "500k"}


@pytest.mark.parametrize("kind", TURNED)
def test_the_question_turned_round_says_what_the_command_prints(opened, kind, capsys):
    from sim.dashboard import inverse

    opened.inputs.show(FEW_TOKENS)
    section = opened.inverse
    section.boxes["asked"].value = kind
    for key, text in TURNED[kind].items():
        section.boxes[key].value = text
        assert section.fields[key].layout.display == ""
    section.button.click()
    assert not opened.error.value
    line = inverse.command(opened.inputs.values, section.asked)
    assert clustersim(shlex.split(line)[1:]) == 0
    said = capsys.readouterr().out.strip()
    shown = html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", section.answer.value, re.S).group(1))
    assert shown.strip() == said and html.escape(line) in section.answer.value
    assert ("<polyline" in section.answer.value) == (kind == "growth")


@pytest.mark.parametrize(
    "kind, fields, words",
    [
        ("buys", {"budget": "much"}, "Budget"),
        ("buys", {"budget": "0"}, "less than a dollar"),
        ("within", {"deadline": ""}, "Deadline: is empty"),
        ("within", {"deadline": "1 min"}, "give --deadline"),
        ("break-even", {"others": " , "}, "none is named"),
        ("cheapest", {"others": "h1000"}, "did you mean"),
    ],
)
def test_what_cannot_be_turned_round_is_one_line(opened, kind, fields, words):
    from sim.dashboard import inverse

    with pytest.raises(InputError) as caught:
        inverse.answered(FEW_TOKENS, {**inverse.DEFAULT, "asked": kind, **fields})
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------ the command


def test_port_in_use_and_voila_absent_are_one_line(capsys, monkeypatch):
    pytest.importorskip("voila", reason="Voila is missing: pip install -e '.[lab]'")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert clustersim(["dashboard", "--port", str(port), "--no-browser"]) == 2
        err = capsys.readouterr().err
        assert f"port {port} cannot be used" in err and err.count("\n") == 1
    assert clustersim(["dashboard", "--port", "0"]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "voila", None)
    assert clustersim(["dashboard"]) == 2
    err = capsys.readouterr().err
    assert "voila is not installed" in err and "pip install" in err and err.count("\n") == 1


def test_the_served_page_links_to_no_other_machine(tmp_path):
    pytest.importorskip("voila", reason="Voila is missing: pip install -e '.[lab]'")
    from sim.cli.dashboard import local_template

    made = tmp_path / "voila" / "templates" / local_template(tmp_path)
    for name in ("index.html.j2", "page.html"):
        text = (made / name).read_text()
        assert "http" not in text.replace("https://github.com", "").replace("http-equiv", "") and "{%" in text


def test_what_serving_earns_is_what_the_command_line_prints(capsys):
    from sim.dashboard import serving

    found = serving.earned("glm5", "chip:h200", "wide", "0.80", "2.56", "2-3")
    words = shlex.split(serving.command("glm5", "chip:h200", "0.80", "2.56", "2.5"))
    assert words[0] == "clustersim" and clustersim([*words[1:], "--json"]) == 0
    said = next(iter(json.loads(capsys.readouterr().out)["cases"].values()))["rows"][0]
    assert (
        said["likely"] == pytest.approx(found["rows"][0]["likely"]) and said["p5"] != found["rows"][0]["p5"]
    )  # one rent against a range
    assert f"{abs(said['likely']):.0%} of its income" in serving.words(found) and found["mode"] in serving.words(found)
    for refused in (("x", "3.2", ""), ("1", "0", ""), ("1", "3.2", "-2")):
        with pytest.raises(InputError):
            serving.earned("glm5", "chip:h200", "wide", *refused)
    with pytest.raises(InputError, match="910C-die"):
        serving.earned("glm5", "chip:910c_die", "wide", "1", "3.2")


def test_a_served_page_opens_with_a_first_look_and_refines_it(monkeypatch):
    """What is served has pictures before the plan is worked out; a notebook, whose output is kept, waits for it."""
    from sim.dashboard import page as served
    from sim.planner.quick import once

    assert not served.Page(SMALL).answer.is_first_look
    monkeypatch.setenv(served.SERVED, "a kernel")
    monkeypatch.setattr(served, "can_wait", lambda: True)
    page = served.Page(SMALL)
    assert page.answer.is_first_look and served.FIRST_LOOK in page.top.value and "bar" in page.pictures["memory"].value
    page.settle()
    assert not page.answer.is_first_look and served.FIRST_LOOK not in page.top.value
    assert state.sentence(page.answer) == state.sentence(state.answer(SMALL))
    q = controls.question_of(controls.DEFAULT)
    glance, best = once(q, state.known_costs(q)), quick(q)[0]
    assert best.step_s <= glance.step_s * (1 + 1e-9) and glance.value("tokens") < 1.15 * best.value("tokens")
