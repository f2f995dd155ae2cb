"""Changes that save memory: the whole list for a small plan, written by hand, and each one followed."""

from dataclasses import replace

import pytest

from sim.cost import memory
from sim.scenario.file import set_value
from sim.scenario.training import resolve
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload

MODEL = ModelSpec("m", layers=4, hidden=1024, heads=8, kv_heads=4, head_dim=128, ffn=2816, vocab=1000)
PLAN = Plan(dp=8, micro_batch=2, zero=0, recompute="none")
WORK = Workload(seq=2048, global_batch=64)
BY_HAND = [  # pp=8 has more stages than layers, tp=8 more ranks than key-value heads
    "micro_batch=1",
    "options.zero=1",
    "recompute=full",
    "options.zero=3",
    "options.zero=3 recompute=full",
    "plan.pp=2 plan.dp=4 recompute=full",
    "plan.pp=4 plan.dp=2 recompute=full",
    "plan.tp=2 plan.dp=4 recompute=full",
    "plan.tp=4 plan.dp=2 recompute=full",
    "options.optimizer_offload=true",
    "options.activation_offload=true",
    "plan.cp=2 plan.dp=4",
]


def offered(plan, model=MODEL, work=WORK):
    return [words for words, _, _ in memory._changes(plan, model, work)]


def test_the_list_is_the_one_by_hand():
    assert offered(PLAN) == BY_HAND


@pytest.mark.parametrize(
    "changed, gone",
    [
        (dict(micro_batch=1), {"micro_batch=1"}),
        (dict(zero=1), {"options.zero=1"}),
        (dict(zero=3), {"options.zero=1", "options.zero=3", "options.zero=3 recompute=full"}),
        (dict(recompute="full"), {"recompute=full", "options.zero=3 recompute=full"}),
        (dict(offload=True), {"options.optimizer_offload=true"}),
        (dict(activation_offload=True), {"options.activation_offload=true"}),
        (dict(recompute="selective_ops"), {"options.activation_offload=true"}),  # not simulated together
        (dict(vpp=2), {"plan.pp=4 plan.dp=2 recompute=full"}),  # four stages of two chunks: more than four layers
    ],
)
def test_what_a_plan_has_is_not_offered_again(changed, gone):
    assert offered(replace(PLAN, **changed)) == [words for words in BY_HAND if words not in gone]


def test_a_length_that_does_not_halve_is_not_cut_over_chips():
    assert "plan.cp=2 plan.dp=4" not in offered(PLAN, work=Workload(seq=2047, global_batch=64))
    assert "plan.cp=2 plan.dp=4" not in offered(replace(PLAN, cp=2))


def test_one_chip_has_nothing_to_shard_over():
    assert offered(replace(PLAN, dp=1)) == ["micro_batch=1", "recompute=full", *BY_HAND[-3:-1]]


DOCUMENT = {
    "model": {k: getattr(MODEL, k) for k in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")},
    "cluster": "dgx_h100",
    "chips": 8,
    "plan": {"dp": 8},
    "micro_batch": 2,
    "options": {"zero": 0},
    "recompute": "none",
    "seq": WORK.seq,
    "global_batch": WORK.global_batch,
    "tokens": 1e9,
}


@pytest.mark.parametrize("words, changed, work", [*memory._changes(PLAN, MODEL, WORK)], ids=BY_HAND)
def test_followed_as_keys_of_a_scenario_it_is_the_plan_that_was_weighed(words, changed, work):
    document = DOCUMENT
    for one in words.split():
        document = set_value(document, one)
    found = resolve(document, "followed").plan
    keys = ("tp", "pp", "dp", "cp", "micro_batch", "zero", "recompute", "offload", "activation_offload", "num_chips")
    assert {k: getattr(found, k) for k in keys} == {k: getattr(changed, k) for k in keys}
    assert found.num_chips == PLAN.num_chips
    before, after = (memory.peak(MODEL, plan, work).total_bytes for plan in (PLAN, changed))
    assert after < before


@pytest.mark.parametrize("words, changed", [*memory._more_chips(PLAN)], ids=str)
def test_more_chips_are_as_many_as_its_words_say(words, changed):
    said = dict(pair.split("=") for pair in words.split())
    assert int(said["chips"]) == changed.num_chips > PLAN.num_chips
    assert changed.recompute == "full" and changed.micro_batch == 1 and changed.dp == PLAN.dp
    ((width, ranks),) = [(k.removeprefix("plan."), int(v)) for k, v in said.items() if k in ("plan.tp", "plan.pp")]
    assert getattr(changed, width) == ranks and (width == "pp" or ranks <= 8) and changed.sp == (width == "tp")


def test_widths_of_more_chips_double_from_two():
    said = [next(w for w in words.split() if "p=" in w and "dp" not in w) for words, _ in memory._more_chips(PLAN)]
    tensor = [f"plan.tp={n}" for n in (2, 4, 8)]
    assert [w for w in said if "tp" in w] == tensor
    assert [w for w in said if "pp" in w] == [f"plan.pp={2**k}" for k in range(1, 9)]
    assert not [*memory._more_chips(replace(PLAN, pp=2, dp=4, stages=(3, 1)))]
