"""Is my TPOT normal: the prediction is validation's own, the load is Little's law, a planted cause is found."""

import copy
import math

import pytest

from minglm.errors import InputError
from sim.cli.main import main
from sim.planner.normal_serving import load_of, normal, tpot_s
from sim.serving.scenario import fleet_and_work, load
from sim.validation import engine_rows

SCENARIO = load("serving_glm5_h200")


def closed_loop(concurrency):
    s = copy.deepcopy(SCENARIO)
    s["workload"] = {"concurrency": concurrency, "requests": 100, "prompt": 4000, "output": 800}
    return s


def test_a_row_of_a_measured_engine_is_predicted_as_validation_does():
    row = next(
        r
        for r in engine_rows.load()
        if engine_rows.use_of(r)[0] != "unsupported" and r.mode == "agg" and r.running > 8 and r.layout.groups == 1
    )
    d = engine_rows.deployment_of(row)
    scenario = {
        "kind": "serving",
        "model": d.model,
        "decode": {
            "cluster": d.cluster,
            "chips": d.chips,
            "precision": d.precision,
            "kv": d.kv,
            "attention_tp": d.attention_tp,
            "stack": d.stack,
            "max_batch": 4096,
        },
        "workload": {"concurrency": int(row.running), "requests": 10, "prompt": row.prompt, "output": row.output},
    }
    fleet, work = fleet_and_work(scenario)
    at = load_of(fleet, work)
    assert at.requests == row.running
    lengths = row.mean_prompt / row.prompt  # a benchmark draws shorter ones than it names
    at = type(at)(at.requests, at.prompt * lengths, row.mean_output, 0.0, True)
    assert 1e3 * tpot_s(d, at) == pytest.approx(engine_rows.predict_ms(row), rel=1e-9)


def test_a_rate_keeps_in_flight_what_littles_law_says():
    fleet, work = fleet_and_work(SCENARIO)
    at = load_of(fleet, work)
    groups = fleet.decode.groups * fleet.decode_instances
    assert at.requests == pytest.approx(work.rate_per_s * 800 * tpot_s(fleet.decode, at) / groups, rel=1e-6)


def test_the_place_among_measured_engines_is_that_of_their_interval():
    r = normal(SCENARIO, 0.02)
    low, high = r["interval"]
    shares = [normal(SCENARIO, x)["faster_than"] for x in (low, math.sqrt(low * high), high)]
    assert shares == pytest.approx([0.9, 0.5, 0.1])
    assert not normal(SCENARIO, 1.01 * high)["normal"] and normal(SCENARIO, 0.99 * high)["normal"]


def test_a_planted_load_is_found():
    """Three times as many in flight as the scenario says: that knob explains it, at three times."""
    crowded = normal(closed_loop(24), 1.0)["predicted"]
    cause = next(c for c in normal(closed_loop(8), crowded)["causes"] if c["name"] == "more requests in flight")
    assert cause["explains"] and cause["needs"] == pytest.approx(24, rel=0.01)


def test_counting_a_step_with_drafts_as_one_token_is_found():
    r = normal(SCENARIO, 1.0)
    counted = normal(SCENARIO, 2.76 * r["predicted"])
    assert counted["causes"][0]["name"] == "a step with its drafts counted as one token"


def test_like_engines_come_first():
    chips = [x["chip"] for x in normal(SCENARIO, 0.02)["nearest"]]
    assert chips == ["h200"] * 5


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--measured", "tpot=0ms"], "more than 0"),
        (["--measured", "tpot=30 GB"], "measures bytes"),
        (["--measured", "tpot=30ms", "--chip", "h100"], "use --cluster"),
        (["--measured", "tpot=30ms", "--set", "decode.chips=1"], "must divide"),
    ],
)
def test_bad_input_is_one_line(argv, words, capsys):
    assert main(["normal", "serving_glm5_h200", *argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_command_says_place_engines_and_causes(capsys):
    assert main(["normal", "serving_glm5_h200", "--measured", "tpot=14ms"]) == 0
    said = capsys.readouterr().out
    assert "is inside" in said and "h200" in said and "what would explain" in said
    with pytest.raises(InputError):
        normal(SCENARIO, float("nan"))
