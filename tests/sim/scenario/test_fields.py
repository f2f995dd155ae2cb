"""One table of fields: a scenario and a published row read every spelling of every key as the same run."""

import pytest

from minglm.errors import InputError
from sim.base.fields import Field, Section
from sim.cost.evaluate import in_closed_form
from sim.scenario.fields import OPTIONS, PLAN, RUN, SCENARIO, SCHEDULE_SPELLINGS
from sim.scenario.file import set_value
from sim.scenario.training import resolve
from sim.validation.fields import ROW
from sim.validation.rows import parse

BASE = {
    "model": "mixtral_8x7b",
    "cluster": "dgx_h100",
    "chips": 64,
    "plan": {"tp": 2, "pp": 2, "dp": 16, "ep": 2, "cp": 1, "etp": 1, "vpp": 1, "sp": True},
    "schedule": "1f1b",
    "micro_batch": 1,
    "global_batch": 64,
    "seq": 4096,
    "precision": "bf16",
    "recompute": "full",
    "options": {"zero": 1},
    "stack": "megatron-core-0.12",
}
VALUES = {
    "model": "mixtral_8x7b",
    "cluster": "dgx_h200",
    "chip": "h200",
    "chips": "64",
    "plan": {"tp": 4, "dp": 16},
    "schedule": "zb-h1",
    "micro_batch": "2",
    "global_batch": "128",
    "global_tokens": "512K",
    "seq": "2K",
    "precision": "fp8",
    "recompute": {"kind": "full", "layers": 4},
    "options": {"zero": 2, "overlap_tp": True},
    "stack": "generic",
}
OPTION_TEXTS = {"optimizer": "muon", "attention": "flash2", "fusion": "eager", "loss": "unfused"}
OPTION_LISTS = {"stages": [16, 16], "recompute_modules": ["norm"]}


def both(changes: dict) -> tuple:
    """The run that a scenario and a row make of the same keys."""
    document = {**BASE, **changes}
    if "global_tokens" in changes:
        document.pop("global_batch")
    scenario = resolve(document)
    row = parse({**document, "measured": {"seconds_per_step": 1.0}})
    return scenario.run, row.run


def same(changes: dict):
    scenario, row = both(changes)
    for part in ("model", "cluster", "plan", "workload", "precision", "stack"):
        assert getattr(scenario, part) == getattr(row, part), part
    return row.plan, row.workload, row.precision, row.stack.name, row.cluster.chip.name, row.cluster.name


SPELLINGS = [(one.name, text) for one in RUN.fields for text in (one.name, *one.aliases)]


@pytest.mark.parametrize("name, spelling", SPELLINGS)
def test_a_scenario_and_a_row_take_the_same_spellings(name, spelling):
    batch = ("global_batch",) if name == "global_tokens" else ()
    base = {key: value for key, value in BASE.items() if key not in (name, *batch)}
    own = {**base, name: VALUES[name]}
    other = {**base, spelling: VALUES[name]}
    runs = []
    for document in (own, other):
        scenario = resolve(document).run
        row = parse({**document, "measured": {"seconds_per_step": 1.0}}).run
        for part in ("model", "cluster", "plan", "workload", "precision", "stack"):
            assert getattr(scenario, part) == getattr(row, part), part
        runs.append((scenario, row))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "name, spelling", [(one.name, text) for one in PLAN.fields for text in (one.name, *one.aliases)]
)
def test_widths_of_a_plan(name, spelling):
    value = {"sp": False, "auto": False, "dp": 16, "pp": 2, "tp": 2}.get(name, 1)
    widths = {key: v for key, v in BASE["plan"].items() if key != name}
    assert same({"plan": {**widths, spelling: value}}) == same({"plan": {**widths, name: value}})


@pytest.mark.parametrize("option", OPTIONS.fields, ids=lambda one: one.name)
def test_options(option):
    value = {"bool": True, "whole": 1, "ratio": 1.5}.get(option.kind)
    value = OPTION_TEXTS.get(option.name, OPTION_LISTS.get(option.name, value))
    plan, work, _, stack, *_ = same({"options": {option.name: value}})
    assert plan.tp == 2 and work.seq == 4096 and stack


@pytest.mark.parametrize("spelling, schedule", [*SCHEDULE_SPELLINGS.items(), ("1F1B", "1f1b"), (" GPipe ", "gpipe")])
def test_schedules(spelling, schedule):
    changes = {"model": "llama3_8b", "plan": {"tp": 2, "pp": 2, "dp": 16, "vpp": 2}}
    if schedule in ("1f1b", "gpipe", "zb-h1"):
        changes["plan"]["vpp"] = 1
    assert same({**changes, "schedule": spelling})[0].schedule == schedule


def test_keys_of_a_scenario_and_of_a_row_hold_those_of_a_run():
    assert set(RUN.names) <= set(SCENARIO.names) and set(RUN.names) <= set(ROW.names)


def test_what_a_table_says_is_what_its_schema_and_its_page_say():
    schema = ROW.json_schema()
    assert set(schema["properties"]) == {*ROW.names, *ROW.aliases} and not schema["additionalProperties"]
    assert set(schema["properties"]["plan"]["properties"]) == {*PLAN.names, *PLAN.aliases}
    page = RUN.markdown()
    assert page.count("\n") == 2 + len(RUN.fields) and all(f"| `{name}` |" in page for name in RUN.names)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PLAN.read({"tp": 2, "tensor_parallel": 2}, "x: plan"), "x: plan: 'tp' is given twice"),
        (lambda: PLAN.read({"tq": 2}, "x: plan"), "x: plan: unknown key 'tq' (did you mean 'tp'?)"),
        (lambda: PLAN.read([1], "x: plan"), "x: plan: [1] must be a mapping such as {tp: 8"),
        (lambda: RUN.read({"plan": {"tp": -1}}, "x"), "x: plan.tp"),
        (lambda: RUN.read({"plan": {"sp": 3}}, "x"), "x: plan.sp=3 must be true or false"),
        (lambda: RUN.read({"options": {"stages": [1, "x"]}}, "x"), "x: options.stages"),
        (lambda: RUN.read({"options": {"imbalance": "nan"}}, "x"), "x: options.imbalance"),
        (lambda: RUN.read({"options": {"fusion": "none"}}, "x"), "not one of fused, eager, compiled"),
        (lambda: RUN.read({"options": 3}, "x"), "x: options=3 must be a mapping of keys"),
        (lambda: RUN.read({"schedule": {"a": 1}}, "x"), "x: schedule={'a': 1} must be a text"),
        (lambda: RUN.read({"recompute": {"kind": "none", "layer": 1}}, "x"), "x: recompute: unknown key 'layer'"),
        (lambda: RUN.read({"recompute": "half"}, "x"), "x: recompute 'half': not one of"),
        (lambda: Section("s", (Field("a", "text", ""), Field("b", "text", "", ("a",)))), "names two fields"),
    ],
)
def test_refusals_name_the_key(make, words):
    with pytest.raises((InputError, ValueError)) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "said", "means"),
    [
        ("attention", "flash_attention_2", "flash2"),  # transformers' attn_implementation
        ("attention", "FlashAttention-3", "flash3"),
        ("attention", "FA2", "flash2"),
        ("attention", "flash_attn", "flash"),
        ("attention", "SDPA", "sdpa"),
        ("attention", "eager", "unfused"),
        ("optimizer", "AdamW", "adam"),
        ("zero_stage", 3, 3),
    ],
)
def test_options_as_other_tools_write_them(key, said, means):
    name = OPTIONS.name_of(key)
    assert OPTIONS.read({key: said}) == {name: means}
    assert same({"options": {key: said}}) == same({"options": {name: means}})


@pytest.mark.parametrize(
    ("said", "means"), [("bfloat16", "bf16"), ("Float16", "fp16"), ("half", "fp16"), ("float8", "fp8")]
)
def test_precisions_as_torch_writes_them(said, means):
    assert RUN.read({"precision": said}) == {"precision": means}


@pytest.mark.parametrize(("said", "tokens"), [("8k", 8192), ("8K", 8192), ("8Ki", 8192), ("8192", 8192), ("20k", None)])
@pytest.mark.parametrize("door", ["seq", "phase", "model", "--set"])
def test_a_length_in_thousands_is_the_same_at_every_door(door, said, tokens):
    """8k is 8,192 tokens, as models have them; of 20k nobody knows."""
    changes: dict = {
        "seq": {"seq": said},
        "phase": {"phases": [{"name": "a", "tokens": "1T", "seq": said, "batch": "1M"}]},
        "model": {"model": {"layers": 32, "hidden": 4096, "heads": 32, "max_seq": said}},
        "--set": {},
    }[door]
    document = set_value({**BASE}, f"seq={said}") if door == "--set" else {**BASE, **changes}
    if door == "model":
        document |= {"plan": {"tp": 2, "pp": 2, "dp": 16}}
    if tokens is None:
        with pytest.raises(InputError, match="20k' reads two ways, k being metric or binary; write 20000 or 20480"):
            resolve(document)
        return
    run = resolve(document)
    assert {"phase": run.phases and run.phases[0].seq, "model": run.model.max_seq}.get(door, run.workload.seq) == tokens


ENUMERATED = [
    *((f"options.{one.name}", "frobnicated") for one in OPTIONS.fields if one.kind == "text"),
    ("schedule", "frobnicated"),
    ("precision", "frobnicated"),
    ("recompute", "frobnicated"),
    ("checkpoint.kind", "frobnicated"),
    ("failures.level", "frobnicated"),
]


@pytest.mark.parametrize("key, value", ENUMERATED)
def test_a_text_that_no_option_knows_is_refused_in_one_line(key, value):
    from sim.study.projection import project

    with pytest.raises(InputError, match="frobnicated") as caught:
        project(resolve(set_value({**BASE, "tokens": "1B"}, f"{key}={value}")), what_ifs=False)
    assert "\n" not in str(caught.value) and "not one of" in str(caught.value)


@pytest.mark.parametrize("loss", ["fused", "torch", "unfused", "chunked", "liger", "fused_linear"])
@pytest.mark.parametrize("fusion", ["fused", "eager", "compiled", "inductor"])
def test_every_loss_and_fusion_runs(loss, fusion):
    s = resolve({**BASE, "options": {"zero": 1, "loss": loss, "fusion": fusion}})
    assert in_closed_form(s.model, s.cluster, s.plan, s.workload, s.precision, s.stack, True)[2] > 0
