"""Checkpoints of several processes, by torch.distributed.checkpoint as safetensors: each process writes its shards, and any
number of processes reads them.

    run/checkpoints/step_00000100/
        shard-00001-model-00001-of-00001.safetensors …   weights and optimiser state, one file to a process
        state.json                                       as in minglm/checkpoint.py, with `processes`

The folder gets its name when all files are on the disk. Tensors carry the names they have in a single process's two files,
so both kinds are read by the same call, and `minglm.checkpoint.read` puts shards together. Nothing is pickled. All
processes must see the same folder.
"""
from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from minglm import checkpoint
from minglm.config import ModelConfig
from minglm.distributed.mesh import Mesh

OPTIMIZER = ("momentum.", "exp_avg.", "exp_avg_sq.")


def save(run_dir: Path, step: int, config: ModelConfig, tensors: dict[str, Tensor], mesh: Mesh, extra: dict | None = None) -> Path:
    """Write the checkpoint of `step` finished steps, all processes together. Returns its folder.

    tensors: name → DTensor, or a plain tensor that is the same on all processes.
    """
    temporary = mesh.first_does(lambda: checkpoint.begin(run_dir, step))
    _quiet(dcp.save, tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    mesh.wait()
    names = sorted(p.name for p in temporary.glob("*.safetensors"))
    mine = {name: checkpoint.sha256(temporary / name) for name in names[mesh.rank::mesh.layout.world]}
    hashes: list[dict] = [{}] * mesh.layout.world
    dist.all_gather_object(hashes, mine)
    notes = {**(extra or {}), "processes": mesh.layout.world, "layout": str(mesh.layout)}
    return mesh.first_does(lambda: checkpoint.commit(temporary, step, config, {k: v for part in hashes for k, v in part.items()}, notes))


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` (as for `save`) in place from a checkpoint of any number of processes; each reads what it holds."""
    _quiet(dcp.load, tensors, storage_reader=HuggingFaceStorageReader(str(path)))


def assemble(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors of a checkpoint's shards, whole, in this process: (model, optimiser)."""
    reader = HuggingFaceStorageReader(str(path))
    whole = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    _quiet(dcp.load, whole, storage_reader=reader, no_dist=True)
    mine = {name for name in whole if name.startswith(OPTIMIZER) or name == "steps"}
    return {n: t for n, t in whole.items() if n not in mine}, {n: whole[n] for n in mine}


def to_single(path: Path, run_dir: Path) -> Path:
    """Write a checkpoint of several processes as one of a single process, in another run's folder. Returns its folder."""
    found = checkpoint.read(path)
    notes = {k: v for k, v in found.state.items() if k in ("recipe", "seed", "versions")}
    return checkpoint.save(run_dir, found.step, found.config, found.model, found.optimizer, notes)


def _quiet(call, *args, **options) -> None:
    """torch explains itself at length on every save."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args, **options)
    finally:
        logging.disable(level)
