"""Is my number normal, on the page: the figures are the command's, a link carries them, faults are one line."""

import json
import shlex

import pytest

from minglm.errors import InputError
from sim.cli.main import main
from sim.dashboard import normal, state
from sim.study.answer import figures, simulate

VALUES = {"model": "llama3_8b", "machine": "chip:h100", "chips": "64", "tokens": "100G", "rent_usd_per_hour": "2-3"}


@pytest.fixture(scope="module")
def shown():
    return state.answer(VALUES, samples=2)


def asked(**fields):
    return {**normal.DEFAULT, **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"quantity": "mfu", "value": "38%"},
        {"quantity": "step_s", "value": "9 s", "set": "plan.tp=2 recompute=full"},
        {"of": "llama3_405b_16k_h100", "quantity": "tflops", "value": "400"},
        {"of": "serving_glm5_h200", "quantity": "tpot", "value": "30ms", "set": "decode.chips=16"},
    ],
)
def test_page_and_command_say_the_same(fields, shown, capsys):
    answer = normal.answered(VALUES, asked(**fields), shown.document)
    code = main([*shlex.split(answer.command)[1:], "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(answer.result))
    assert code == (0 if answer.result["normal"] else 1)
    said = normal.words(answer)
    assert normal.figure_words(fields["quantity"], answer.result["predicted"]) in said
    assert answer.result["nearest"][0]["chip"] in said and answer.result["causes"][0]["name"] in said


def test_without_a_change_the_plan_is_the_one_that_is_shown(shown):
    step_s = figures(simulate(shown.scenario))["step_s"]
    answer = normal.answered(VALUES, asked(quantity="step_s", value=f"{step_s}"), shown.document)
    assert answer.result["predicted"] == pytest.approx(step_s, rel=1e-12) and answer.result["normal"]


def test_every_quantity_of_a_published_run_has_words():
    from sim.validation.fields import QUANTITIES

    speeds = [q for q in QUANTITIES if q not in ("memory_gib", "bubble")]  # `nearest_rows` leaves these out
    assert {normal.ROWS_NAMES.get(q, q) for q in speeds} <= set(normal.MEASURED)


def test_a_link_carries_the_figure_with_the_question(shown):
    fields = asked(of="glm5_100k_910b", quantity="mfu", value="38%", set="plan.ep=16 'options={mtp: false}'")
    address = normal.link(shown, fields)
    assert normal.from_link(address) == fields and {**VALUES, **state.from_link(address)} == VALUES
    assert normal.from_link(state.link(shown)) == {}
    for wrong in ("?normal_off=glm5", "?normal_of=glm5_100k", "?normal_quantity=mfus"):
        with pytest.raises(InputError, match="open the page without it"):
            normal.from_link(wrong)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"value": " "}, "Measured: is empty; give what was measured, such as 300"),
        ({"quantity": "mfu", "value": "lots"}, "Measured mfu: 'lots' is not a quantity"),
        ({"quantity": "mfu", "value": "-3%"}, "must be more than 0"),
        ({"quantity": "tpot", "value": "3 ms"}, "of a serving scenario; choose one"),
        ({"of": "serving_glm5_h200", "quantity": "mfu", "value": "3%"}, "of training"),
        ({"value": "9", "set": "tp=8"}, "did you mean 'plan.tp'?"),
        ({"value": "9", "set": "plan.tp='8"}, "quotation mark that is not closed"),
        ({"value": "9", "set": "plan.tp=7"}, "tp=7"),
        ({"of": "serving_glm5_h200", "quantity": "tpot", "value": "3 ms", "set": "decode.chipz=3"}, "'chips'"),
    ],
)
def test_what_is_refused_is_one_line(fields, words, shown):
    with pytest.raises(InputError) as refused:
        normal.answered(VALUES, asked(**fields), shown.document)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_section_offers_what_can_be_measured_and_answers_on_the_page(shown):
    pytest.importorskip("ipywidgets")

    def guard(act):
        act()

    section = normal.Normal(lambda: VALUES, lambda: shown, guard, str)
    section.set(asked(of="serving_glm5_h200", quantity="tpot", value="30ms"))
    assert section.asked["quantity"] == "tpot" and section.boxes["value"].placeholder == "30 ms"
    section.button.click()
    assert "is outside of what is predicted for GLM-5" in section.answer.value
    assert "clustersim normal serving_glm5_h200 --measured tpot=30ms" in section.answer.value
    section.set(asked(quantity="mfu", value="38%"))
    assert section.answer.value == "" and dict(map(reversed, section.boxes["quantity"].options)).keys() >= {"mfu"}
