"""`clustersim serving`: the same figures as the library, and one line for every fault."""

import json

import pytest

from sim.cli.main import main
from sim.serving.scenario import load, run
from sim.validation.serving import validate


def call(capsys, *argv):
    code = main(list(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", ["serving_glm5_h200", "serving_glm5_cloudmatrix"])
def test_scenarios_run_and_the_command_gives_the_librarys_figures(capsys, name):
    code, out, _ = call(capsys, "serving", name, "--json")
    result = run(name)
    assert json.loads(out) == json.loads(json.dumps(result))
    assert code == (0 if all(t["met"] for t in result["target"].values()) else 1)
    assert (
        result["mode"] == "hybrid"
        and result["simulated"]["finished"] > 100
        and result["money"]["usd_per_million_output"] > 0
    )


def test_deepseeks_published_load_runs_at_the_published_speed():
    """14.8k output tokens/s a node at 20-22 tokens/s a user: the simulated users get 20 or more at that load's
    order."""
    result = run(
        dict(
            load("serving_deepseek_h800"),
            workload={
                "rate": 180,
                "requests": 30000,
                "warmup": 0.5,
                "prompt": 4300,
                "output": 1190,
                "cached_share": 0.563,
            },
        )
    )
    speed = 1 / result["simulated"]["tpot_s"]["p50"]
    assert 17 < speed < 27
    assert result["target"]["ttft"]["met"] and not result["simulated"]["saturated"]


def test_flags_alone_and_flags_on_a_file(capsys):
    flags = [
        "--model",
        "glm5",
        "--cluster",
        "dgx_h200",
        "--tp",
        "8",
        "--kv",
        "fp8",
        "--num-speculative-tokens",
        "3",
        "--acceptance-length",
        "2.76",
        "--concurrency",
        "4",
        "--requests",
        "60",
        "--prompt",
        "2048",
        "--output",
        "128",
    ]
    code, out, _ = call(capsys, "serving", *flags)
    assert code == 0 and "TTFT" in out and "8 × H200" in out and "mode         hybrid" in out
    code, out, _ = call(capsys, "serving", "serving_glm5_h200", "--requests", "100", "--seed", "3", "--json")
    assert code == 0 and json.loads(out)["simulated"]["finished"] == 100
    code, out, _ = call(capsys, "serving", *flags, "--tpot", "1ms")
    assert code == 1 and "missed" in out  # it ran, and the target is not kept


def test_roofline_mode_is_named(capsys):
    code, out, _ = call(capsys, "serving", "--concurrency", "2", "--requests", "20", "--mode", "roofline", "--json")
    assert code == 0 and json.loads(out)["mode"] == "roofline"


@pytest.mark.parametrize("question", ["fits", "speed", "context"])
def test_questions(capsys, question):
    code, out, _ = call(capsys, "serving", "--ask", question)
    assert code == 0 and "mode:" in out and "assumed:" in out
    code, out, _ = call(capsys, "serving", "--ask", question, "--json")
    assert json.loads(out)["answer"]


def test_size(capsys):
    code, out, _ = call(
        capsys, "serving", "--size", "--cluster", "dgx_h200", "--ttft", "2s", "--tpot", "30ms", "--json"
    )
    result = json.loads(out)
    assert code == 0 and result["smallest"]["mode"] == "hybrid" and result["smallest"]["simulated"]["keeps_tpot"]


def test_validate_serving(capsys):
    code, out, _ = call(capsys, "validate", "--serving", "--json")
    assert code == 0 and json.loads(out)["mape_decode"] == pytest.approx(validate()["mape_decode"])
    code, out, _ = call(capsys, "validate", "--serving")
    assert code == 0 and "cm384-decode-50ms-4k" in out


@pytest.mark.parametrize(
    "argv, says",
    [
        (["serving_glm6"], "did you mean 'serving_glm5_h200'"),
        (["glm5_100k_910b"], "go to clustersim run"),
        (["--cluster", "dgx_h209"], "did you mean 'dgx_h200'"),
        (["--cluster", "dgx_h100", "--chips", "8"], "GiB a chip over"),
        (["--prompt", "-3"], "--prompt: -3"),
        (["--tpot", "x"], "'x' is not a quantity"),
        (["--size", "--tpot", "1us"], "no deployment of glm5"),
        (["--size", "--concurrency", "3"], "give --rate"),
        (["--model", "nothing"], "model 'nothing'"),
        (["--stack", "sglag-tp"], "did you mean"),
        (["--rate", "1", "--concurrency", "2"], "not both"),
        (["--ask", "weather"], "invalid choice"),
        (["--precision", "fp7"], "precision 'fp7'"),
        (["--prefix-cache-hit-rate", "1.5"], "--prefix-cache-hit-rate: 1.5"),
        (["--requests", "0"], "--requests: 0"),
        (["--chip-hour-price", "$-2/h"], "--chip-hour-price"),
        (["--acceptance-length", "9"], "yields 1 to 1"),
        (["--chips", "0"], "--chips: 0"),
    ],
)
def test_bad_input_is_one_line_and_code_two(capsys, argv, says):
    code, out, err = call(capsys, "serving", *argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err, err


@pytest.mark.parametrize(
    "change, says",
    [
        ({"kind": "training"}, "must be 'serving'"),
        ({"version": 9}, "version 9"),
        ({"decod": {}}, "did you mean 'decode'"),
        ({"decode": None}, "decode"),
        ({"decode": {"cluster": "dgx_h200", "chip": 8}}, "did you mean 'chips'"),
        ({"decode": {}}, "has no 'cluster'"),
        ({"workload": {}}, "either rate_per_s"),
        ({"workload": {"rate": 1, "prompt": {"mean": -1}}}, "prompt.mean"),
        ({"mode": "exact"}, "mode 'exact'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"workload": {"rate": 1, "warmup": 2}}, "warmup"),
        ({"prices": {"output": -1}}, "prices.output"),
        ({"target": {"ttft": "-1 s"}}, "target.ttft"),
    ],
)
def test_bad_scenarios(change, says):
    from minglm.errors import InputError

    good = {
        "version": 1,
        "kind": "serving",
        "model": "glm5",
        "decode": {"cluster": "dgx_h200", "attention_tp": 8},
        "workload": {"rate": 1, "requests": 20},
    }
    with pytest.raises(InputError) as refusal:
        run({**good, **change})
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
