"""A remedy that a refusal names is followed, and the scenario then runs."""

from __future__ import annotations

import copy
import re

import pytest

from minglm.errors import InputError
from sim.cost.evaluate import in_closed_form
from sim.scenario.file import set_value
from sim.scenario.training import resolve

DENSE = {
    "model": {"layers": 28, "hidden": 3584, "heads": 28, "kv_heads": 4, "head_dim": 128, "ffn": 18944, "vocab": 152064},
    "cluster": "dgx_h100",
    "chips": 64,
    "plan": {"tp": 4, "pp": 1, "dp": 8},
    "global_batch": 64,
    "seq": 4096,
    "tokens": "1B",
}
MOE = {
    "model": "qwen3_30b_a3b",
    "cluster": "dgx_h100",
    "chips": 64,
    "plan": {"tp": 1, "pp": 2, "dp": 32, "ep": 8},
    "recompute": "full",
    "global_batch": 64,
    "seq": 4096,
    "tokens": "1B",
}


def runs(document: dict) -> None:
    """Costed, memory included; raises what a command would say."""
    s = resolve(document)
    in_closed_form(s.model, s.cluster, s.plan, s.workload, s.precision, s.stack)


def changes_of(message: str) -> list[str]:
    """KEY=VALUE lists of the ways out that a refusal names, a key with its section."""
    remedy = message.split(";")[-1]
    if remedy.strip().startswith("set "):
        return [way.strip().removeprefix("set ").split() for way in remedy.split(" or ")]
    ways = []
    for way in remedy.split(" or "):
        named = re.findall(r"\b(tp|pp|dp|cp|ep|etp|global_batch|stages)(?:=| to |: )(\[[^\]]*\]|[\d,]+)", way)
        sections = {"global_batch": "", "stages": "options."}
        changed = [
            f"{sections.get(key, 'plan.')}{key}={value if '[' in value else value.replace(',', '')}"
            for key, value in named
        ]
        if found := re.search(r"give (?:at least )?([\d,]+) chips", way):
            changed.append(f"chips={found[1].replace(',', '')}")
        if found := re.search(r"schedule ([\w-]+)", way):
            changed.append(f"schedule={found[1]}")
        if changed:
            ways.append(changed)
    return ways


def follow(document: dict) -> tuple[str, list[list[str]]]:
    """The refusal, and the ways out that it names; each of them is taken and runs."""
    with pytest.raises(InputError) as caught:
        runs(document)
    message = str(caught.value)
    assert not re.search(r";\s*[\w.]+=\S+( or|$)", message), "a remedy is a sentence: it says what to do"
    ways = changes_of(message)
    assert ways, message
    for way in ways:
        taken = document
        for one in way:
            taken = set_value(taken, one)
        runs(taken)
    return message, ways


def changed(document: dict, **values) -> dict:
    out = copy.deepcopy(document)
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (out.setdefault(section, {}) if section else out)[name] = value
    return out


def test_heads_and_key_value_heads_name_a_width_that_both_take():
    message, ways = follow(changed(DENSE, plan__tp=8, plan__dp=1, chips=8, global_batch=8))
    assert ways == [["plan.tp=4"]] and "28 attention heads" in message


@pytest.mark.parametrize(
    "document",
    [
        changed(DENSE, plan__tp=7),  # divides 28 heads and not the 4 of the keys
        changed(DENSE, plan__tp=5),
        changed(DENSE, plan__tp=14, chips=112),
        changed(DENSE, plan__cp=3, plan__dp=1),
        changed(DENSE, plan__dp=32),
        changed(DENSE, plan__dp=24),
        changed(DENSE, plan__pp=4, plan__dp=4, options={"stages": [7, 7, 7, 8]}),
        changed(DENSE, plan__pp=2, plan__vpp=2, plan__dp=8, global_batch=8),
        changed(DENSE, plan__pp=4, plan__dp=4, schedule="zb-v", global_batch=8),
        changed(DENSE, plan__pp=4, plan__dp=4, schedule="dualpipe-v", global_batch=8),
        changed(DENSE, plan__pp=4, plan__dp=4, schedule="dualpipe", global_batch=8),
        changed(DENSE, plan__pp=4, plan__dp=4, schedule="dualpipe", global_batch=36),
        changed(MOE, plan__ep=48),
        changed(MOE, plan__ep=64),
        changed(MOE, plan__ep=8, plan__etp=3),
        changed(MOE, plan__ep=6),
        changed(MOE, plan__dp=40),
        changed(DENSE, plan={"tp": 4, "pp": 7}, chips=8, global_batch=56),  # a width short of chips
        changed(DENSE, plan={"tp": 4, "pp": 1, "cp": 3}, chips=8),
    ],
    ids=lambda d: str({**d["plan"], **{k: d[k] for k in ("schedule", "options") if k in d}}),
)
def test_a_plan_that_cannot_run_names_one_that_can(document):
    follow(document)


@pytest.mark.parametrize(
    "document",
    [
        changed(DENSE, plan={"tp": 1, "dp": 64}, options={"zero": 0}),
        changed(DENSE, plan={"tp": 1, "dp": 64}, options={"zero": 1}, micro_batch=4, global_batch=256),
        changed(DENSE, plan={"tp": 1, "dp": 64}, options={"zero": 3}, seq=65536),
        changed(DENSE, chips=1, plan={"tp": 1, "dp": 1}, global_batch=1),
        changed(DENSE, model="llama3_70b", plan={"tp": 1, "dp": 64}, options={"zero": 0}),
        changed(DENSE, model="llama3_70b", chips=8, plan={"tp": 8, "dp": 1}, global_batch=8),
        changed(MOE, plan={"tp": 1, "pp": 1, "dp": 8, "ep": 1}, chips=8),
        changed(MOE, plan={"tp": 2, "pp": 1, "dp": 4, "ep": 1}, chips=8),
        {
            **DENSE,
            "model": {"layers": 32, "hidden": 4096, "heads": 32, "ffn": 11008, "vocab": 32000},
            "chip": {"like": "a100_40", "name": "16 GB card", "memory_bytes": "16 GiB"},
            "cluster": "dgx_a100",
            "chips": 2,
            "plan": {"dp": 2},
            "global_batch": 2,
            "seq": 512,
            "recompute": "full",
            "options": {"zero": 2, "optimizer_offload": True},
        },
    ],
    ids=lambda d: f"{d['model'] if isinstance(d['model'], str) else 'dense'} {d['plan']} {d.get('options', '')}",
)
def test_what_does_not_fit_names_changes_that_do(document):
    message, _ = follow(document)
    assert "GiB over" in message


def test_more_chips_are_not_the_remedy_where_no_number_of_chips_is():
    """64 stages of 28 layers: whoever got 64 chips would be refused then."""
    with pytest.raises(InputError, match=r"more than the model's 28 layers; use pp × vpp of at most 28"):
        runs(changed(DENSE, plan={"pp": 64}, chips=8))
