"""Recipes: files in step with the code, values checked, errors kind."""

import math
from itertools import pairwise

import pytest

from minglm import datafiles
from minglm.errors import InputError
from minglm.settings import parse_override
from minglm.training import recipe as recipes
from minglm.training.recipe import Recipe


@pytest.mark.parametrize("name", recipes.names())
def test_every_file_is_what_render_writes(name):
    path = datafiles.data("recipes", f"{name}.yaml")
    text = path.read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix("# ")
    assert text == recipes.render(recipes.load(name), title), f"rewrite {path} with minglm.training.recipe.render"


def test_there_is_a_recipe_for_every_stage_in_both_sizes():
    names = recipes.names()
    for stage in recipes.STAGES:
        assert recipes.load(stage).stage == stage and recipes.load(stage).model == "mini"
        assert recipes.load(f"ci_{stage}").stage == stage and recipes.load(f"ci_{stage}").model == "nano"
    assert len(names) >= 10


def test_the_stages_of_one_size_fit_each_other():
    for prefix in ("", "ci_"):
        configs = [recipes.load(prefix + s).config().to_dict() for s in recipes.STAGES]
        for before, after in pairwise(configs):
            assert {k for k in before if before[k] != after[k]} <= set(recipes.RESUMABLE_OVERRIDES)


def test_mini_is_sparse_in_its_own_context():
    config = recipes.load("sparse").config()
    assert config.num_moe_layers >= 4 and config.n_routed_experts == 16
    assert (
        config.max_position_embeddings > 4 * config.index_topk
        and recipes.load("sparse").seq_len > 4 * config.index_topk
    )


@pytest.mark.parametrize(
    "values, says",
    [
        ({"batchsize": 4}, "did you mean 'batch_size'"),
        ({"lr": "fast"}, "must be a number"),
        ({"lr": 0}, "nothing would be learnt"),
        ({"lr": float("nan")}, "finite"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1.5}, "whole number"),
        ({"compile": "yes"}, "true or false"),
        ({"stage": "sparce"}, "did you mean 'sparse'"),
        ({"stage": "sft"}, "needs something to teach"),
        ({"tasks": {"copy": 1}}, "only stage sft"),
        ({"model": "glm5"}, "744B"),
        ({"model": "minni"}, "did you mean 'mini'"),
        ({"model_changes": {"index_topk": 0}}, "index_topk=0"),
        ({"model_changes": {"index_top": 4}}, "did you mean 'index_topk'"),
        ({"model_changes": 3}, "a mapping"),
        ({"seq_len": 10**6}, "max_position_embeddings"),
        ({"lookup_share": 1.5}, "at most 1"),
        ({"corpus": 5}, "must be text"),
    ],
)
def test_bad_values_are_one_line(values, says):
    with pytest.raises(InputError) as caught:
        recipes.Recipe.from_dict(values)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [math.inf, math.nan, -0.1, True, "1"])
def test_a_share_of_a_task_is_a_number(share):
    with pytest.raises(InputError, match="must be a number of at least 0"):
        recipes.load("ci_sft").changed(tasks={"lookup": 1.0, "copy": share})
    assert recipes.load("ci_sft").changed(tasks={"lookup": 1.0, "copy": 0}).tasks["copy"] == 0


@pytest.mark.parametrize("key", ["pairs_words", "lookup_facts", "val_every", "checkpoint_every", "steps"])
def test_one_is_the_least_of_what_is_counted(key):
    assert getattr(recipes.load("ci_pretrain").changed(**{key: 1}), key) == 1
    with pytest.raises(InputError, match=key):
        recipes.load("ci_pretrain").changed(**{key: 0})


def test_files_that_are_not_recipes(tmp_path):
    for text, says in (("a: [1", "not readable as YAML"), ("just words", "must be key: value")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(InputError, match=says):
            recipes.load(tmp_path / "x.yaml")
    with pytest.raises(InputError, match="no such recipe file"):
        recipes.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="did you mean 'pretrain'"):
        recipes.load("pretran")


def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path):
    (tmp_path / "x.yaml").write_text("lr: 3e-4\nmodel: nano\n")
    assert recipes.load(tmp_path / "x.yaml").lr == 3e-4


def test_changes_from_the_command_line():
    assert parse_override("lr=0.01") == ("lr", 0.01)
    assert parse_override("tasks={copy: 1}") == ("tasks", {"copy": 1})
    for text, value in (
        ("corpus=folder:notes #1", "folder:notes #1"),
        ("corpus=folder:my#dir", "folder:my#dir"),
        ("conversations=#talks.jsonl", "#talks.jsonl"),
        ('corpus="folder:a #b"', "folder:a #b"),
        ("model_changes={x: '#'}", {"x": "#"}),
        ("lr=0.01 # a note", "0.01 # a note"),
    ):
        assert parse_override(text)[1] == value, text
    with pytest.raises(InputError, match="nothing may follow the closing"):
        parse_override('corpus="a" # b')
    with pytest.raises(InputError, match="must be a number"):
        Recipe.from_dict(dict([parse_override("lr=0.01 # a note")]))
    assert recipes.load("ci_pretrain", {"steps": 3}).steps == 3
    for bad in ("lr", "=3", "a={"):
        with pytest.raises(InputError, match="--set"):
            parse_override(bad)


def test_changed_keeps_the_rest():
    assert Recipe(model="nano", lr=0.5).changed(steps=7) == Recipe(model="nano", lr=0.5, steps=7)
