"""`minglm export-hf`: a run's model as a folder that transformers opens."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "write a run's model for transformers (GlmMoeDsaForCausalLM)"
EXAMPLES = "minglm export-hf runs/demo/sft exported"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder or checkpoint folder")
    parser.add_argument("folder", help="where to write")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras

    extras.require("train")
    from minglm.inference.load import load_model
    from minglm.interop import hf_tokenizer
    from minglm.interop.huggingface import export_hf

    model, tokenizer, _ = load_model(args.run)
    folder = export_hf(model, Path(args.folder))
    hf_tokenizer.export_tokenizer(tokenizer, model.config, folder)
    print(f"{folder}: config.json, model.safetensors, {', '.join(hf_tokenizer.FILES)} written")
    return 0
