"""Bytes that a step sends, counted against what the layout's arithmetic says; processes started and ended with
bounds."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from minglm.config import ModelConfig  # noqa: E402
from minglm.distributed import launch, traffic  # noqa: E402
from minglm.errors import InputError  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        not torch.distributed.is_available() or sys.platform == "win32", reason="torch without gloo here"
    ),
]
ROWS, LENGTH = 4, 32


@pytest.fixture(scope="module")
def counted() -> dict:
    arguments = ["--rows", str(ROWS), "--length", str(LENGTH)]
    rows = json.loads(launch.finish(launch.start(2, arguments, "minglm.distributed.traffic"), 600))
    assert max(r["loss"] for r in rows) - min(r["loss"] for r in rows) < 1e-5, "the layouts compute one loss"
    return {(r["layout"].split("=2")[0].split()[-1], r["phase"], r["kind"]): r for r in rows}


def test_data_parallel_gathers_weights_once_and_reduces_gradients_once(counted):
    config = ModelConfig.named("nano")
    gathered, reduced = counted["dp", "forward", "all-gather"], counted["dp", "backward", "reduce-scatter"]
    assert gathered["calls"] == reduced["calls"] == 1 and ("dp", "backward", "all-gather") not in counted
    assert gathered["bytes"] == pytest.approx(config.num_params(mtp=True) * 4 / 2, rel=0.01)  # half the weights, fp32
    assert 0.9 * gathered["bytes"] < reduced["bytes"] <= gathered["bytes"]  # the indexer has no gradient here


def test_experts_send_tokens_and_not_their_weights(counted):
    config = ModelConfig.named("nano")
    experts = config.num_moe_layers + 1  # and the MTP layer
    rows = ROWS * LENGTH // 2 * config.num_experts_per_tok * config.hidden_size * 4  # one layer's pairs of one process
    assert 0.1 * 2 * experts * rows < counted["ep", "forward", "all-to-all"]["bytes"] < 2 * experts * rows
    assert counted["ep", "forward", "all-gather"]["bytes"] < 0.7 * counted["dp", "forward", "all-gather"]["bytes"]


def test_tensor_parallel_sums_activations_and_context_parallel_gathers_keys(counted):
    assert ("tp", "forward", "all-gather") not in counted and counted["tp", "forward", "all-reduce"][
        "bytes"
    ] > ROWS * LENGTH * 4
    extra = counted["cp", "forward", "all-gather"]["bytes"] - counted["dp", "forward", "all-gather"]["bytes"]
    config = ModelConfig.named("nano")
    width = config.kv_lora_rank + config.qk_rope_head_dim
    layers = config.num_hidden_layers + 1
    assert extra == pytest.approx(
        ROWS * LENGTH / 2 * width * 4 * layers, rel=0.35
    )  # latents (and indexer keys), not keys and values


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--rows", "3"], "--rows 3"),
        (["--length", "0"], "--length 0"),
        (["--layout", "dp=x"], "dp=x"),
        (["--layout", "xp=2"], "xp"),
        (["--model", "nanno"], "did you mean 'nano'"),
        (["--layout", "dp=3"], "torchrun started 2"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_input_is_one_line_from_the_first_process_alone(arguments, says, monkeypatch, capsys):
    """What each of two processes would say, asked of one: arguments are read before the two meet."""
    for rank in ("0", "1"):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert traffic.main(arguments) == 2
        said = capsys.readouterr().err
        assert (said.count("\n") == 1 and says in said) if rank == "0" else said == "", said


def test_processes_that_fail_or_hang_are_told_and_none_is_left():
    with pytest.raises(InputError, match="processes=0"):
        launch.start(0, [])
    with pytest.raises(RuntimeError, match="process 0 ended with 2: recipe 'nothing'"):
        launch.finish(launch.start(1, ["train", "nothing"]))
    sleeper = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ]
    with pytest.raises(RuntimeError, match="had not ended after 1 s"):
        launch.finish(sleeper, 1)
    assert sleeper[0].poll() is not None
