"""The shards that several processes wrote of one checkpoint, as whole tensors in one process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

OPTIMIZER = ("momentum.", "exp_avg.", "exp_avg_sq.")


def assemble(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors of a checkpoint's shards, whole, in this process: (model, optimiser)."""
    reader = HuggingFaceStorageReader(str(path))
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)  # safetensors hold nothing else
    }
    quietly(load, whole, storage_reader=reader, no_dist=True)
    mine = {name for name in whole if name.startswith(OPTIMIZER) or name == "steps"}
    return {n: t for n, t in whole.items() if n not in mine}, {n: whole[n] for n in mine}


def quietly(call: Callable[..., object], *args: object, **options: object) -> None:
    """Call without log or warnings: torch explains itself at length on every save."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args, **options)
    finally:
        logging.disable(level)
