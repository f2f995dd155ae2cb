"""Scenario files: what is good resolves, what is bad is one line that says what to do."""

import builtins

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.base import documents
from sim.scenario.file import read_scenario_document, set_value
from sim.scenario.training import load_scenario, resolve

GOOD = {
    "model": "llama3_8b",
    "cluster": "dgx_h100",
    "chips": 64,
    "plan": {"tp": 2, "pp": 4},
    "global_batch": 64,
    "seq": 4096,
    "tokens": "1T",
}


def write(tmp_path, text, name="s.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(make) -> str:
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500
    return message


TRAINING = [
    p
    for p in datafiles.catalogue("scenarios", ".yaml").values()
    if documents.read_document(p).get("kind", "training") == "training"
]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_shipped_scenarios_resolve(path):
    s = load_scenario(path)
    assert s.plan.num_chips <= s.cluster.num_chips and s.run.spares >= 0 and s.tokens > 0


def test_the_headline():
    s = load_scenario("glm5_100k_910b")
    assert (s.cluster.num_chips, s.plan.num_chips, s.run.spares) == (
        100_000,
        99_840,
        160,
    ) and s.plan.num_chips == 128 * 780
    assert s.plan.tp == 8 and s.plan.pp == 16 and s.model.experts % s.plan.ep == 0
    assert s.plan.micro_batches(s.workload) == 20 and abs(s.workload.tokens / 64e6 - 1) < 0.01
    assert {a["kind"] for a in s.assumptions} >= {"vendor claim", "third-party", "unknown", "assumed", "published"}


def test_the_rest_of_the_inventory_is_spare():
    s = resolve({**GOOD, "chips": 67})
    assert s.plan.dp == 8 and s.plan.num_chips == 64 and s.run.spares == 3
    assert "needs 64 chips" in refused(lambda: resolve({**GOOD, "chips": 63, "plan": {"tp": 2, "pp": 4, "dp": 8}}))


def test_tokens_become_the_nearest_batch_that_divides():
    s = resolve({**{k: v for k, v in GOOD.items() if k != "global_batch"}, "global_tokens": "4M"})
    assert s.workload.global_batch % s.plan.dp == 0 and abs(s.workload.tokens / 4e6 - 1) < 0.05


@pytest.mark.parametrize(
    "change, words",
    [
        ({"modle": 1}, "did you mean 'model'"),
        ({"model": None}, "has no 'model'"),
        ({"cluster": None}, "has neither cluster nor chip"),
        ({"chips": -5}, "below 1"),
        ({"chips": "many"}, "not a quantity"),
        ({"chips": 10**30}, "larger"),
        ({"chips": 1.5}, "whole number"),
        ({"chips": True}, "must be a number"),
        ({"plan": {"tp": 3}}, "does not divide"),
        ({"plan": {"tq": 3}}, "did you mean 'tp'"),
        ({"plan": [1]}, "must be a mapping"),
        ({"plan": {"tp": 0}}, "below 1"),
        ({"plan": {"tp": "x"}}, "not a quantity"),
        ({"plan": {"tp": 2, "pp": 64}, "chips": 1280}, "more than the model's 32 layers"),
        ({"plan": {"ep": 4}}, "has no experts"),
        (
            {"model": "mixtral_8x7b", "plan": {"ep": 3}, "chips": 48, "global_batch": 48},
            "does not divide the model's 8 experts",
        ),
        ({"schedule": "1f2b"}, "did you mean '1f1b'"),
        ({"recompute": "ful"}, "did you mean 'full'"),
        ({"precision": "bf17"}, "did you mean 'bf16'"),
        ({"options": {"zero": 7}}, "stages 0 to 3"),
        ({"options": {"zeroo": 1}}, "did you mean 'zero'"),
        ({"options": {"dropout": 3}}, "true or false"),
        ({"options": {"optimizer": "adamv"}}, "did you mean 'adam"),
        ({"options": {"imbalance": 0.5}}, "below 1"),
        ({"seq": 0}, "below 1"),
        ({"seq": "90 min"}, "measures time, not length"),
        ({"tokens": "64 GiB"}, "measures bytes"),
        ({"tokens": -1}, "below 1"),
        ({"global_tokens": "1M"}, "keep one"),
        ({"cluster": "dgx_h10"}, "did you mean"),
        ({"chip": "h1000"}, "did you mean"),
        ({"model": "lama3_8b"}, "did you mean 'llama3_8b'"),
        ({"model": {"layers": 2}}, "has no 'hidden'"),
        ({"model": 5}, "must be a name or a mapping"),
        ({"attention": "sparse"}, "has no indexer"),
        ({"phases": "glm6"}, "must be glm5"),
        ({"phases": [{"tokens": "1T"}]}, "has no 'seq'"),
        ({"prices": {"rent_usd": 1}}, "did you mean 'rent_usd_per_hour'"),
        ({"prices": {"utilization": 0}}, "more than 0"),
        ({"prices": {"utilization": 1.5}}, "larger than 1"),
        ({"failures": {"detect": "3 GiB"}}, "measures bytes"),
        ({"failures": {"levle": "mid"}}, "did you mean 'level'"),
        ({"what_if": [{"name": "x"}]}, "must have name and set"),
        ({"assumptions": [{"text": "x", "kind": "sure"}]}, "not one of vendor claim"),
        ({"jitter": {"noise": "big"}}, "not a quantity"),
        ({"jitter": {"noise": 1e20}}, "larger than 2"),
        ({"global_batch": 10**9}, "larger than 100,000,000"),
        ({"seed": "x"}, "must be a whole number"),
        ({"campaign": {"seeds": 1}}, "give 2 to 100,000"),
        ({"plans": [3]}, "is not a plan"),
        ({"version": 2}, None),
    ],
)
def test_bad_values_are_one_line(change, words):
    if words is None:
        return
    message = refused(lambda: resolve({**GOOD, **change}))
    assert words in message


def test_another_kind_names_its_command(tmp_path):
    assert "clustersim serving" in refused(lambda: load_scenario(write(tmp_path, "kind: serving\nmodel: glm5\n")))
    refused(lambda: load_scenario(write(tmp_path, "kind: [1]\n")))


def test_a_newer_version_is_refused_in_words(tmp_path):
    assert "this program reads version 1" in refused(
        lambda: read_scenario_document(write(tmp_path, "version: 2\nmodel: mini\n"))
    )


def test_model_that_does_not_fit_says_how_much_and_what_would():
    from sim.study.projection import point

    s = resolve({**GOOD, "model": "llama3_70b", "plan": {"tp": 1, "pp": 1, "dp": 64}, "options": {"zero": 0}})
    message = refused(lambda: point(s))
    assert "GiB over" in message and message.count(" or ") >= 2


def test_include_and_override(tmp_path):
    write(tmp_path, "model: llama3_8b\ncluster: dgx_h100\nchips: 64\nplan: {tp: 2, pp: 4}\nseq: 4096\n", "base.yaml")
    top = write(tmp_path, "include: base.yaml\nplan: {pp: 2}\nglobal_batch: 64\n")
    s = load_scenario(top, ["plan.tp=4"])
    assert (s.plan.tp, s.plan.pp, s.plan.dp) == (4, 2, 8)


def test_cyclic_include(tmp_path):
    write(tmp_path, "include: b.yaml\n", "a.yaml")
    write(tmp_path, "include: a.yaml\n", "b.yaml")
    assert "in a circle" in refused(lambda: load_scenario(tmp_path / "a.yaml"))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    "text, words",
    [
        (BOMB, "once aliases are expanded"),
        ("a: &a [*a]\n", ""),
        ("model: [\n", "not valid YAML"),
        ("\tmodel: x", "indented with a tab"),
        ("", "is empty"),
        ("- 1\n- 2\n", "holds a list"),
        ("just text", "holds a str"),
        (b"\x00\x01\x02", "binary"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        ("model: x\nmodel: y\n", "twice"),
        ("chips: .nan\n", "finite"),
        ("chips: .inf\n", "finite"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("1: 2\n", "not a word"),
        ("model: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("model: " + "[" * 60 + "]" * 60, "nested"),
        ("x: " + "9" * 5000, ""),
        ("a: " + "b" * (5 * 2**20), "more than the limit"),
        ("seq: 1:2:3:4\n", ""),
    ],
    ids=[
        "bomb",
        "self",
        "broken",
        "tab",
        "empty",
        "list",
        "text",
        "binary",
        "latin",
        "twice",
        "nan",
        "inf",
        "complexkey",
        "numkey",
        "object",
        "deep",
        "bignum",
        "big",
        "sexagesimal",
    ],
)
def test_hostile_files(tmp_path, text, words):
    assert words in refused(lambda: load_scenario(write(tmp_path, text)))


def test_paths(tmp_path):
    assert "no such scenario" in refused(lambda: load_scenario(tmp_path / "none.yaml"))
    assert "did you mean 'glm5_100k_910b'" in refused(lambda: load_scenario("glm5_100k_910"))
    assert "folder" in refused(lambda: load_scenario(tmp_path))
    refused(lambda: load_scenario("x" * 5000))
    refused(lambda: load_scenario("\0"))


def test_set():
    assert set_value({"plan": {"tp": 1}}, "plan.tp=4") == {"plan": {"tp": 4}}
    assert set_value({"global_tokens": "1M"}, "global_batch=8") == {"global_batch": 8}
    for bad in ("plan.tp", "=3", "plan.tp=[", "name.x=1"):
        refused(lambda bad=bad: resolve(set_value({**GOOD, "name": "n"}, bad)))


def test_json_scenarios_need_no_yaml(tmp_path, monkeypatch):
    import json

    path = write(tmp_path, json.dumps(GOOD), "s.json")
    assert load_scenario(path).plan.tp == 2
    assert "not valid JSON" in refused(lambda: load_scenario(write(tmp_path, "{", "t.json")))
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name)) if name == "yaml" else real(name, *a, **k),
    )
    assert documents.parse_text(json.dumps(GOOD), "x.yaml") == GOOD
    assert "PyYAML is missing" in refused(lambda: documents.parse_text("a: b", "x.yaml"))


@pytest.mark.parametrize(
    "model", ["llama3_8b", "mixtral_8x7b", "deepseek_v3", "kimi_k2", "gpt3_175b", "data/models/glm5.json"]
)
def test_another_model_keeps_plan_and_batch(model, monkeypatch):
    monkeypatch.chdir(datafiles.root())
    s = load_scenario("glm5_100k_910b", model=model)
    assert s.plan.num_chips == 99_840 and s.plan.stages is None and s.workload.global_batch == 15_600
    assert not s.model.experts or s.model.experts % s.plan.ep == 0
    assert any(a["source"] == "--model" for a in s.assumptions)


def test_a_run_that_is_known_to_fit_may_be_over_the_estimate():
    from sim.study.projection import project

    document = {
        **GOOD,
        "model": "llama3_70b",
        "plan": {"tp": 1, "pp": 1, "dp": 64},
        "options": {"zero": 0},
        "allow_oom": True,
    }
    r = project(resolve(document))
    assert r["memory"]["share"] > 1 and "although the memory estimate" in r["assumptions"][0]["text"]
    assert "allow_oom" in refused(lambda: resolve({**document, "allow_oom": "ignore"}))
