"""A trained model and its tokenizer, from a run folder or a checkpoint."""

from __future__ import annotations

from pathlib import Path

from minglm.config import ModelConfig
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.model.model import Model
from minglm.quant import checkpoint as quantised
from minglm.training.checkpoint import Checkpoint, latest


def load_model(path: str | Path, device: str = "cpu") -> tuple[Model, Tokenizer, Checkpoint]:
    """The model of a run folder or checkpoint folder, ready to use (eval mode); returns (model, tokenizer, checkpoint).

    Raises:
        InputError: no checkpoint there, or only damaged ones.
    """
    if (Path(path) / "quantization.json").is_file():  # written by `minglm quantize`
        model, tokenizer, note = quantised.load(path, device)
        return model, tokenizer, Checkpoint(Path(path), 0, model.config, note, {}, {})
    checkpoint = latest(path)
    if checkpoint is None:
        raise InputError(
            f"{path}: no checkpoint here; give a run folder such as runs/pretrain, or train one with `minglm train`"
        )
    model = Model(checkpoint.config)
    model.load_state_dict(checkpoint.model)
    run = checkpoint.path.parent.parent
    places = [p for p in (checkpoint.path, run, run / "data") if (p / "tokenizer.json").is_file()]
    if not places:
        raise InputError(f"{run}: no tokenizer.json beside the checkpoint; copy the one of its training run there")
    return model.to(device).eval(), Tokenizer.load(places[0]), checkpoint


def model_of(run: str | Path, device: str = "cpu") -> tuple[Model, Tokenizer, ModelConfig]:
    """The trained model of a run, in eval mode, with its tokenizer and config."""
    model, tokenizer, checkpoint = load_model(run, device)
    return model, tokenizer, checkpoint.config
