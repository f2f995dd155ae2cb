"""The `clustersim` command: exit codes, one-line errors, JSON, run folders, pages."""

import json
import subprocess
import sys

import pytest

from minglm import datafiles
from sim.cli.main import PROGRAM, main


def call(capsys, *argv):
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_help_lists_commands_with_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "exit codes: 0 done, 1 ran and failed, 2 bad input" in text
    for name in ("run", "campaign", "validate", "trace", "claims", "report"):
        assert name in PROGRAM.commands() and name in text
    for name in PROGRAM.commands():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"clustersim {name}" in capsys.readouterr().out.split("examples:")[1]


def test_no_arguments_shows_help(capsys):
    code, out, _ = call(capsys)
    assert code == 0 and "COMMAND" in out


def test_run_writes_a_folder_and_prints_a_table(capsys, in_tmp):
    code, out, err = call(capsys, "run", "glm5_100k_910b")
    assert code == 0 and err == ""
    for words in (
        "99,840",
        "160 are spares",
        "20 micro-batches",
        "MFU",
        "of 313 TFLOPS",
        "of 354 TFLOPS",
        "of 376 TFLOPS",
        "chip-hours",
        "[vendor claim]",
        "[unknown]",
        "inherited from GLM-4.5",
    ):
        assert words in out
    folder = in_tmp / "runs" / "glm_5_on_100_000_ascend_910b"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert json.loads((folder / "config.json").read_text())["chips"] == 100000 and "simpy" in json.loads(
        (folder / "versions.json").read_text()
    )
    assert metrics["plan"]["chips"] == 99840
    code, out, _ = call(capsys, "report", str(folder))
    page = (folder / "report.html").read_text()
    assert code == 0 and "plotly" in page and "Assumptions" in page and 'src="http' not in page


def test_run_json_is_json_and_equal_to_the_library(capsys, in_tmp):
    from sim.study.projection import project_file

    code, out, _ = call(capsys, "run", "glm5_mini_smoke", "--json", "--out", "none")
    shown, made = json.loads(out), json.loads(json.dumps(project_file("glm5_mini_smoke")))
    for r in (shown, made):
        r["step"].pop("wall_s")
    assert code == 0 and shown == made and not (in_tmp / "runs").exists()


def test_another_model_and_chips(capsys, in_tmp):
    (in_tmp / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "num_hidden_layers": 8,
                "hidden_size": 512,
                "num_attention_heads": 8,
                "intermediate_size": 1024,
                "vocab_size": 32000,
            }
        )
    )
    code, out, _ = call(
        capsys,
        "run",
        "glm5_mini_smoke",
        "--model",
        "config.json",
        "--chips",
        "16",
        "--set",
        "plan.dp=16",
        "--json",
        "--out",
        "none",
    )
    r = json.loads(out)
    assert code == 0 and r["cluster"]["used"] == 16 and r["model"]["layers"] == 8 and r["model"]["experts"] == 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (["run"], "required"),
        (["rnu", "x"], "did you mean 'run'"),
        (["run", "nope"], "no such scenario"),
        (["run", "glm5_100k_910b", "--chips", "5000"], "needs 99,840 chips"),
        (["run", "glm5_100k_910b", "--set", "plan.ep=7"], "does not divide the model's 256 experts"),
        (["run", "glm5_100k_910b", "--set", "x"], "must be key=value"),
        (["run", "glm5_100k_910b", "--set", "plan.dp=1.5"], "not a whole number"),
        (["run", "glm5_100k_910b", "--seed", "x"], "must be a whole number"),
        (["run", "glm5_100k_910b", "--model", "nope.json"], "neither a known name"),
        (["run", "glm5_100k_910b", "--chip", "910x"], "not known"),
        (
            ["run", "glm5_100k_910b", "--set", "plan={tp: 1, pp: 16, dp: 780, ep: 4}", "--set", "recompute=none"],
            "GiB over",
        ),
        (["run", "glm5_100k_910b", "--out", "/dev/null/x"], "cannot be written"),
        (["run", "glm5_100k_910b", "--frobnicate"], "unrecognized"),
        (["report", "nowhere"], "no such folder"),
        (["run", "serving_glm5_h200"], "use clustersim serving"),
        (["validate", "nope.yaml"], "no such file"),
        (["campaign", "glm5_mini_smoke", "--horizon", "3 GiB"], "measures bytes"),
        (["campaign", "glm5_mini_smoke", "--seeds", "1"], "give 2 to 100,000"),
        (["trace", "glm5_mini_smoke", "--out", "/nowhere/at/all.json"], "not a file in an existing folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, in_tmp, argv, words):
    code, _out, err = call(capsys, *argv)
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and words in err and "Traceback" not in err


def test_report_of_something_else(capsys, in_tmp):
    for text in ("{", "[]", '{"step": 1}', "\0"):
        (in_tmp / "metrics.json").write_text(text)
        code, _, err = call(capsys, "report", str(in_tmp))
        assert code == 2 and err.count("\n") == 1


def test_campaign(capsys, in_tmp):
    code, out, _ = call(capsys, "campaign", "glm5_mini_smoke", "--seeds", "5", "--json")
    r = json.loads(out)
    assert code == 0 and r["draws"] == 5
    low, middle, high = r["interval_80"]["days"]
    assert low <= middle <= high and r["days"] == middle  # what is printed is the median of the draws, not one of them
    code, out, _ = call(capsys, "campaign", "glm5_100k_910b", "--seeds", "2", "--horizon", "2 days")
    assert (
        code == 0
        and "not finished within the horizon" in out
        and "28.55T, 28.57T with DSA" in out
        and "lost hours by cause" in out
    )


def test_trace(capsys, in_tmp):
    code, out, _ = call(capsys, "trace", "glm5_mini_smoke", "--out", "t.json", "--json")
    assert (
        code == 0
        and json.loads((in_tmp / "t.json").read_text())
        and sum(json.loads(out)["critical_path"].values()) == pytest.approx(1.0)
    )


def test_timeline_chakra_and_replay(capsys, in_tmp):
    code, out, _ = call(capsys, "trace", "llama3_405b_16k_h100", "--timeline", "t.html", "--chakra", "et", "--json")
    step = json.loads(out)["step_s"]
    assert code == 0 and "plotly" in (in_tmp / "t.html").read_text() and not (in_tmp / "step.json").exists()
    code, out, _ = call(capsys, "trace", "--replay", "et", "--json")
    assert code == 0 and json.loads(out)["step_s"] == pytest.approx(step, rel=1e-3) and json.loads(out)["files"] == 16
    for argv in (
        ["trace"],
        ["trace", "--replay", "nowhere"],
        ["trace", "glm5_mini_smoke", "--chakra", "/dev/null/x"],
        ["trace", "glm5_mini_smoke", "--timeline", "t.txt"],
    ):
        code, _, err = call(capsys, *argv)
        assert code == 2 and err.count("\n") == 1
    code, _, _ = call(capsys, "campaign", "glm5_mini_smoke", "--seeds", "2", "--trace", "c.json")
    assert code == 0 and json.loads((in_tmp / "c.json").read_text())["traceEvents"]


def test_user_rows(capsys, in_tmp):
    (in_tmp / "mine.yaml").write_text("""rows:
  - id: mine
    chip: {name: X1, peak_flops: 400 TFLOPS, memory_bytes: 64 GiB, memory_bytes_per_s: 2 TB/s}
    chips: 16
    model: {layers: 24, hidden: 2048, heads: 16, ffn: 8192, vocab: 50304}
    plan: {tp: 2, pp: 2}
    micro_batch: 2
    global_batch: 64
    seq: 2048
    measured: {seconds_per_step: 1.1}
""")
    code, out, _ = call(capsys, "validate", "mine.yaml", "--json")
    row = json.loads(out)["rows"][0]
    assert code == 0 and row["kind"] == "holdout" and row["predicted"] > 0 and row["error"] is not None


def test_validation_of_nothing_is_a_failure(capsys, monkeypatch):
    from sim.validation import training

    whole = training.run([datafiles.data("published_runs", "held_out", "megatron_bridge.yaml")])
    monkeypatch.setattr(training, "run", lambda *a, **k: {**whole, "rows": []})
    code, _, err = call(capsys, "validate")
    assert code == 1 and "no row was compared" in err and len(err.splitlines()) == 1


def test_module_and_import_need_neither_torch_nor_numpy():
    program = (
        "import sys; from sim.cli.main import main; code = main(['run', 'glm5_mini_smoke', '--json', '--out', "
        "'none']); "
        "bad = {'torch', 'numpy'} & set(sys.modules); sys.exit(code or (3 if bad else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=datafiles.root())
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "sim", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("clustersim")
