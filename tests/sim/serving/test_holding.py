"""What one deployment holds: counts by hand, a load that fits or not, changes after which it does; the command."""

import json

import pytest

from minglm.errors import InputError
from sim.cli.main import main
from sim.serving.deployment import Deployment
from sim.serving.holding import holding
from sim.serving.memory import GIB, chip_memory


def four(**changes):
    fields = dict(precision="fp8", kv="bf16", attention_tp=4, stack="vllm-0.19")
    return Deployment.of("qwen3_235b_a22b", "dgx_h100", 4, **{**fields, **changes})


def test_contexts_are_the_room_over_their_blocks():
    d = four()
    told = holding(d)
    row = 2 * 1 * 128 * 2 * 94  # one of four key-value heads on a chip, keys and values in two bytes, 94 layers
    room = told["receipt_gib"]["cache"] * GIB
    assert told["asked"] is None and told["kv_bytes_per_token"] == row
    assert told["contexts"] == {n: int(room / (row * n)) for n in (4096, 8192, 16384, 32768, 40960)}
    assert told["longest_context"] == 40960  # the model's own, for which there is room


def test_groups_hold_their_own_requests():
    d = Deployment.of("qwen3_235b_a22b", "dgx_h200", 8, precision="fp8", kv="fp8", stack="vllm-0.19")
    each = chip_memory(d).requests(40_960)
    assert d.groups == 8 and each >= 2
    assert holding(d)["contexts"][40_960] == 8 * each
    assert holding(d, 40_960, 8 * each)["asked"]["fits"] and not holding(d, 40_960, 8 * each + 1)["asked"]["fits"]


def test_what_does_not_fit_is_said_with_changes_after_which_it_does():
    d = four()
    most = holding(d)["contexts"][32768]
    assert holding(d, 32768, most)["asked"]["fits"]
    asked = holding(d, 32768, 3 * most)["asked"]
    assert not asked["fits"] and asked["missing_gib"] > 0 and len(asked["remedies"]) == 3
    assert asked["remedies"][0] == "8 × H100 instead of 4"
    assert holding(four_on(8), 32768, 3 * most)["asked"]["fits"]
    alone = holding(Deployment.of("gpt_oss_120b", "dgx_h100", 1, precision="mxfp4", kv="bf16", stack="vllm"), 131_072)
    assert alone["asked"]["remedies"][0] == "2 × H100 instead of 1"  # not a whole node
    assert not any("precision" in r for r in alone["asked"]["remedies"])  # four bits already
    beyond = holding(d, 100_000)["asked"]
    assert beyond["beyond_model_len"] and not beyond["fits"] and not beyond["remedies"]
    with pytest.raises(InputError, match="context"):
        holding(d, 0)


def four_on(chips):
    return four().with_changes(chips=chips, attention_tp=4)


def test_the_command_answers_for_one_deployment(capsys):
    flags = "--cluster dgx_h100 --chips 4 --kv bf16 --stack vllm-0.19 --context 32768 --concurrency 100 --json".split()
    assert main(["serving", "--ask", "fits", "--model", "qwen3_235b_a22b", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["contexts"]["32768"] == 7 and told["asked"]["fits"] is False
    assert main(["serving", "--ask", "fits", "--model", "qwen3_235b_a22b", *flags[:-1]]) == 0
    assert "do not fit" in capsys.readouterr().out
