"""Any words after `minglm serve`, `quantize`, `train --dp…`, fault injection, the load test and the traffic counter:
one line and exit code 2 where they make no sense, never a traceback. No run exists here, so that nothing starts."""

import contextlib
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("fastapi")
COMMON = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
word = st.sampled_from(
    [
        "0",
        "-1",
        "1",
        "7",
        "1e9",
        "nan",
        "inf",
        "-inf",
        "1.5",
        "",
        " ",
        "x",
        "int4",
        "int5",
        "fp8",
        "w4a8",
        "sparse",
        "cuda",
        "::",
        "0.0.0.0",
        "99999999999999999999",
        "../x",
        "é\u2028",
    ]
) | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
SERVE = (
    "--host",
    "--port",
    "--api-key",
    "--served-model-name",
    "--max-batch",
    "--max-model-len",
    "--max-tokens",
    "--max-concurrent",
    "--max-body",
    "--timeout",
    "--drain",
    "--num-speculative-tokens",
    "--mode",
    "--device",
    "--bogus",
)
QUANTIZE = (
    "--format",
    "--out",
    "--group",
    "--block",
    "--questions",
    "--hf",
    "--hf-plain",
    "--weights-only",
    "--eval",
    "--json",
    "--record",
    "--bogus",
)
TRAIN = ("--dp", "--ep", "--tp", "--cp", "--set", "--device", "--init-from", "--bogus")


def flags(names):
    return st.lists(st.tuples(st.sampled_from(names), word), max_size=4).map(
        lambda pairs: [x for pair in pairs for x in pair]
    )


def call(main, argv) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as leave:  # --help
            code = leave.code
    return code or 0, err.getvalue()


def refused(code: int, err: str) -> None:
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in err and len(err) < 700, (code, err)


@COMMON
@given(flags(SERVE))
def test_serve(tmp_path_factory, words):
    from minglm.cli.main import main

    words = [w for w in words if w not in ("-h", "--help")]
    refused(*call(main, ["serve", "--checkpoint", str(tmp_path_factory.getbasetemp() / "nothing"), *words]))


@COMMON
@given(flags(QUANTIZE))
def test_quantize(tmp_path_factory, words):
    from minglm.cli.main import main

    base = tmp_path_factory.getbasetemp()
    words = [w for w in words if w not in ("-h", "--help")]
    refused(*call(main, ["quantize", str(base / "nothing"), "--format", "int4", "--out", str(base / "out"), *words]))
    assert not (base / "out").exists()


@COMMON
@given(flags(TRAIN), st.sampled_from(["ci_pretrain", "sft"]))
def test_train_on_axes_without_torchrun(tmp_path_factory, words, recipe):
    from minglm.cli.main import main

    run = tmp_path_factory.getbasetemp() / "run"
    words = [w for w in words if w not in ("-h", "--help") and not "--print-config".startswith(w)]
    refused(*call(main, ["train", recipe, "--run", str(run), "--json", "--tp", "2", *words, "--dp", "2"]))
    assert not run.exists()


@pytest.mark.parametrize(
    "module, argv",
    [
        ("tools.fault_injection", ["--count", "0"]),
        ("tools.fault_injection", ["--count", "ten"]),
        ("tools.fault_injection", ["--only", "ray"]),
        ("tools.fault_injection", ["--seed", "x"]),
        ("tools.fault_injection", ["--bogus"]),
        ("tools.fault_injection", ["--out", "/dev/null/x"]),
        ("serving.load_test", ["--clients", "0"]),
        ("serving.load_test", ["--seconds", "nan"]),
        ("serving.load_test", ["--checkpoint", "nothing"]),
        ("serving.load_test", ["--seconds", "inf"]),
        ("serving.load_test", ["words"]),
        ("distributed.traffic", []),
        ("distributed.traffic", ["--rows", "x"]),
        ("tools.qat_vs_ptq", ["nothing", "--runs", "/dev/null/x"]),
        ("tools.qat_vs_ptq", ["--seeds", "a"]),
        ("tools.qat_vs_ptq", ["--summary", "nothing.csv"]),
        ("tools.qat_vs_ptq", ["--bogus"]),
    ],
)
def test_modules(module, argv, monkeypatch, tmp_path):
    import importlib

    monkeypatch.chdir(tmp_path)
    refused(*call(importlib.import_module(f"minglm.{module}").main, argv))
