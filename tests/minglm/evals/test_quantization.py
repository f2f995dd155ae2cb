"""What a quantised run is measured on: the unseen rows of its own training."""

import pytest

pytest.importorskip("torch")
import torch

from minglm import datafiles
from minglm.data.tiny_world.chats import TinyWorldChats
from minglm.data.tiny_world.vocabulary import tokenizer
from minglm.evals import quantization
from minglm.tools import qat_vs_ptq
from minglm.training import recipe
from minglm.training.tiny_world import VALIDATION_SEED


@pytest.mark.parametrize("stage", ["tiny_sft", "tiny_sparse"])
def test_a_run_of_the_tiny_world_is_measured_on_its_unseen_rows(tmp_path, stage):
    text = datafiles.data("recipes", f"{stage}.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    r = recipe.load(stage)
    found = quantization.validation_batches(tmp_path, tokenizer(), r.config(), 2)
    assert [b.tokens.shape for b in found] == [(r.batch_size, r.seq_len)] * 2
    if r.stage == "sft":
        rows = TinyWorldChats(r.batch_size, r.seq_len, r.tasks, VALIDATION_SEED, validation=True)
        for i, batch in enumerate(found):
            assert all(torch.equal(a, b) for a, b in zip(batch, rows.batch(i), strict=True))


def test_the_recorder_trains_the_chat_stage_that_the_demo_ends_with():
    before, stage = recipe.load("tiny_sparse"), recipe.load(qat_vs_ptq.RECIPE)
    assert stage.stage == "sft" and stage.corpus == before.corpus
    assert stage.config().vocab_size == before.config().vocab_size
