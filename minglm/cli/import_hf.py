"""`minglm import-hf`: a folder that transformers wrote as a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError

TEXT = "make a run of a Hugging Face folder of type glm_moe_dsa, to train on or generate from"
EXAMPLES = "minglm import-hf exported runs/imported"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder with config.json and safetensors")
    parser.add_argument("run", help="run folder to make")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras

    extras.require("train")
    from minglm.interop.huggingface import import_hf
    from minglm.training import checkpoint

    source, run = Path(args.folder), Path(args.run)
    if checkpoint.find(run):
        raise InputError(f"{run}: holds checkpoints already; give a new folder")
    model = import_hf(source)
    state = {"recipe": None, "imported_from": source.name}
    saved = checkpoint.save(run, 0, model.config, model.state_dict(), {}, state)
    atomic.write_json(run / "config.json", model.config.to_hf())
    if (source / "tokenizer.json").is_file():
        atomic.copy(source / "tokenizer.json", run / "tokenizer.json")
    else:
        print(f"{source}: no tokenizer.json; to generate or train on text, put the model's at {run / 'tokenizer.json'}")
    print(f"{saved}: {model.config.num_params():,} parameters")
    return 0
