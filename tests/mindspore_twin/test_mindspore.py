"""The MindSpore model equals the torch model: logits, loss and the gradient of one training step, k < S. `make
test-mindspore`.

The torch side is read from files (`write_reference.py`), because the two frameworks live in environments of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed here; make test-mindspore sets it up")
FOLDER = Path(
    os.environ.get("MINGLM_MINDSPORE_REFERENCE", Path(__file__).resolve().parents[2] / "runs" / "mindspore-reference")
)
CASES = sorted(p.parent.name for p in FOLDER.glob("*/reference.npz"))
TOLERANCE = 1e-4

from minglm.config import ModelConfig  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.interop import mindspore  # noqa: E402


@pytest.fixture(autouse=True)
def eager():
    ms.set_context(mode=ms.PYNATIVE_MODE)


def read(case):
    folder = FOLDER / case
    model = mindspore.load(
        folder / "model.safetensors", ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    )
    data = dict(np.load(folder / "reference.npz"))
    return model, ms.Tensor(data["tokens"].astype(np.int32)), ms.Tensor(data["targets"].astype(np.int32)), data


def check_step(model, made, data):
    (loss, parts), gradients = made
    assert abs(float(loss.asnumpy()) - float(data["loss"])) <= TOLERANCE
    assert np.abs(np.array([float(p.asnumpy()) for p in parts]) - data["parts"]).max() <= TOLERANCE
    names = [p.name for p in model.trainable_params()]
    assert set(names) == {n.removeprefix("grad:") for n in data if n.startswith("grad:")}
    for name, gradient in zip(names, gradients, strict=False):
        assert np.abs(gradient.asnumpy() - data[f"grad:{name}"]).max() <= TOLERANCE, name
    assert max(np.abs(g.asnumpy()).max() for g in gradients) > 10 * TOLERANCE, "gradients too small to tell anything"


def test_the_reference_was_written():
    assert len(CASES) >= 20, f"{FOLDER}: run tests/mindspore_twin/write_reference.py in the torch environment first"


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradient(case):
    model, tokens, targets, data = read(case)
    for mode in ("dense", "sparse"):
        assert np.abs(model(tokens, mode).asnumpy() - data[f"logits_{mode}"]).max() <= TOLERANCE, mode
    if case.startswith("plain"):
        assert np.abs(data["logits_dense"] - data["logits_sparse"]).max() > 100 * TOLERANCE, "the choice must matter"
    check_step(model, mindspore.training_step(model)(tokens, targets), data)


@pytest.mark.parametrize("case", [c for c in CASES if c in ("plain-0", "shared-indexer-1")])
def test_graph_mode_gives_the_same(case):
    model, tokens, targets, data = read(case)
    check_step(model, ms.jit(mindspore.training_step(model))(tokens, targets), data)


def test_a_few_training_steps_lower_the_loss():
    model, tokens, targets, _ = read(CASES[0])
    step, optimizer = mindspore.training_step(model), ms.nn.Adam(model.trainable_params(), 3e-3)
    losses = []
    for _ in range(4):
        (loss, _), gradients = step(tokens, targets)
        optimizer(gradients)
        losses.append(float(loss.asnumpy()))
    assert losses[-1] < losses[0] - 0.1, losses


def test_equal_scores_go_to_the_lowest_position():
    scores = ms.Tensor(
        np.array([[[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 2, 0, 2, 0, 9], [0, 0, 5, 0, 0, 0]]], np.float32)
    )
    seen = ms.Tensor(np.array([[[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]], bool))
    got = [sorted(p for p in row if p < 6) for row in mindspore.choose(scores, seen, 3).asnumpy()[0].tolist()]
    assert got == [[0], [0, 1], [0, 1, 3], [0, 1, 2]]


def test_weights_that_do_not_fit_are_named(tmp_path):
    config = ModelConfig.from_dict(json.loads((FOLDER / "plain-0" / "config.json").read_text()))
    import dataclasses

    for change, says in (
        ({"index_n_heads": 4}, "calls for"),
        ({"num_nextn_predict_layers": 0}, "not part of the model"),
        ({"num_hidden_layers": 4, "indexer_types": None}, "missing"),
    ):
        with pytest.raises(InputError, match=says):
            mindspore.load(FOLDER / "plain-0" / "model.safetensors", dataclasses.replace(config, **change))
    with pytest.raises(InputError, match="no checkpoint here"):
        mindspore.load(tmp_path)
    with pytest.raises(InputError, match="give a ModelConfig"):
        mindspore.load(FOLDER / "plain-0" / "model.safetensors")


def test_it_needs_no_torch():
    code = "import sys, minglm.interop.mindspore; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
