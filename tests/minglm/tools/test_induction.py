"""The experiments about looking back: attention maps against the layer's own output, head scores by hand."""

from unittest import mock

import pytest
import torch

from minglm.config import ModelConfig
from minglm.data.key_value import KeyValueRows
from minglm.data.shards import Batch
from minglm.evals import induction_heads
from minglm.model.model import Model
from minglm.tools import induction

ROWS = KeyValueRows(4, 16, words=12, pairs=(2, 3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = induction.tiny(ModelConfig.named("nano"), ROWS)
    made = Model(config).eval()
    with torch.no_grad():  # far from uniform attention, so that the comparison says something
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return made


def test_attention_maps_give_back_the_output_of_the_layer(model):
    tokens = ROWS.batch(0).tokens
    outputs, inputs = [], []

    def remember(block, args, out):
        inputs.append(args)
        outputs.append(out[0])

    handles = [layer.self_attn.register_forward_hook(remember) for layer in model.layers]
    maps = induction_heads.attention(model, tokens)
    for handle in handles:
        handle.remove()
    assert torch.allclose(maps.sum(-1), torch.ones(()))
    for layer, attention, (x, ctx, *_), out in zip(model.layers, maps, inputs, outputs, strict=True):
        block = layer.self_attn
        values = block.expand(block.project(x, ctx)[1])[1]
        attended = torch.einsum("bhts,bshv->bthv", attention, values)
        assert torch.allclose(block.o_proj(attended.flatten(-2)), out, atol=1e-5)


def test_head_scores_of_heads_made_by_hand():
    #              0  1  2  3  4  5      keys 1, 2, 1: the value after the first 1 stands at place 2
    tokens = torch.tensor([[0, 1, 7, 2, 8, 1]])
    targets = torch.full((1, 6), -100)
    targets[0, 5] = 7
    previous = torch.zeros(6, 6)
    previous[0, 0] = 1
    previous[torch.arange(1, 6), torch.arange(5)] = 1
    induct = torch.eye(6)
    induct[5] = torch.tensor([0, 0, 0.75, 0.25, 0, 0])
    maps = torch.stack([previous, induct])[None, None]  # one layer, one row, two heads
    with mock.patch.object(induction_heads, "attention", lambda model, tokens: maps):
        scores = induction_heads.head_scores(None, Batch(tokens, targets, torch.zeros_like(tokens)))
    assert scores.previous.tolist() == [[1.0, 0.0]]
    assert scores.induction.tolist() == [[0.0, 0.75]]
    assert scores.chance == pytest.approx(1 / 6)
    assert induction_heads.strongest(scores.induction, 1) == [(0, 1)]


def test_without_any_head_a_place_knows_its_own_token_alone(model):
    tokens = ROWS.batch(0).tokens
    tokens[:, -1] = 5  # rows that differ everywhere but here
    heads = [(layer, head) for layer in range(3) for head in range(4)]

    def last():
        with torch.no_grad():
            return model(tokens).logits[:, -1]

    before = last()
    assert not torch.allclose(before[0], before[1], atol=1e-3)
    with induction_heads.without_heads(model, heads):
        assert torch.allclose(last(), last()[:1].expand(4, -1), atol=1e-4)
    with induction_heads.without_heads(model, heads[:-1]):
        assert not torch.allclose(last()[0], last()[1], atol=1e-3)
    assert torch.equal(last(), before)


def test_formed_is_the_first_step_whose_mean_of_three_is_low(model):
    def formed(losses):
        return induction.Training(model, losses).formed_at

    assert formed([3.0, 0.4, 0.4, 0.4, 0.1]) == 4
    assert formed([3.0, 0.4, 0.3, 2.0, 1.0]) is None
    assert formed([0.1, 0.1]) is None


def test_training_learns_and_is_the_same_again():
    rows = KeyValueRows(16, 16, words=8, pairs=(1, 2))
    config = induction.tiny(ModelConfig.named("nano"), rows)
    trained = induction.train(config, rows, 60)
    assert trained.losses[-1] < trained.losses[0] - 0.5
    assert induction.train(config, rows, 3).losses == trained.losses[:3]


def test_the_record_is_whole_and_says_what_the_notebook_says():
    rows = induction.read()
    formed = {}
    for row in rows:
        assert row["setting"] in induction.SETTINGS
        s = induction.SETTINGS[row["setting"]]
        assert row["tokens"] == row["step"] * s.seq_len * s.batch_size
        formed.setdefault(row["setting"], {})[row["seed"]] = row["formed_at"]
    assert set(formed) == set(induction.SETTINGS) and all(set(seeds) == {0, 1, 2} for seeds in formed.values())
    assert all(step for step in formed["wide"].values())
    for name in ("control", "shallow", "long"):
        assert set(formed[name].values()) == {None}


def test_a_recorded_run_can_be_made_again():
    """The first rows of a seed, from the command's own function; other machines round differently."""
    again = induction.measure("wide", 0, 10)
    recorded = [r for r in induction.read() if (r["setting"], r["seed"]) == ("wide", 0)][: len(again)]
    assert [r["step"] for r in again] == [5, 10] == [r["step"] for r in recorded]
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in recorded], abs=0.02)


def test_the_command_keeps_what_it_does_not_measure_and_refuses_in_one_line(tmp_path, capsys):
    out = tmp_path / "induction.csv"
    assert induction.main(["--settings", "wide", "--seeds", "0", "--steps", "6", "--out", str(out)]) == 0
    assert induction.main(["--settings", "narrow", "--seeds", "1", "--steps", "6", "--out", str(out)]) == 0
    assert [(r["setting"], r["seed"], r["step"]) for r in induction.read(out)] == [
        *(("wide", 0, s) for s in (5, 6)),
        *(("narrow", 1, s) for s in (5, 6)),
    ]
    assert "no, 3." in induction.table(induction.read(out))
    (tmp_path / "odd.csv").write_text(out.read_text(encoding="utf-8").replace("narrow", "nowhere"), encoding="utf-8")
    (tmp_path / "short.csv").write_text("setting,seed\nwide,0\n", encoding="utf-8")
    capsys.readouterr()
    for wrong, says in (
        (["--summary", str(tmp_path / "odd.csv")], "'nowhere' is none of"),
        (["--summary", str(tmp_path / "short.csv")], "cannot be read"),
        (["--settings", "wade"], "did you mean 'wide'"),
        (["--steps", "0"], "at least 1"),
        (["--seeds", "x"], "whole number"),
        (["--summary", str(tmp_path / "none.csv")], "minglm.tools.induction"),
    ):
        try:
            code = induction.main([*wrong, "--out", str(out)])
        except SystemExit as stopped:  # what the parser itself refuses
            code = stopped.code
        told = capsys.readouterr().err
        assert code == 2
        assert says in told and told.count("\n") == 1


def test_the_embedding_starts_as_wide_as_asked_and_the_rest_as_ever():
    config = induction.tiny(ModelConfig.named("nano"), ROWS)
    wide, usual = induction.train(config, ROWS, 0, 0.5).model, induction.train(config, ROWS, 0, None).model
    assert torch.allclose(wide.embed_tokens.weight * 0.02 / 0.5, usual.embed_tokens.weight)
    assert wide.lm_head.weight.equal(usual.lm_head.weight)
