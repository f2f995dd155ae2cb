"""Checkpoints of several processes, by torch.distributed.checkpoint as safetensors: each process writes its shards, and
any number of processes reads them.

    run/checkpoints/step_00000100/
        shard-00001-model-00001-of-00001.safetensors …   weights and optimiser state, one file to a process
        state.json                                       as in minglm/training/checkpoint.py, with `processes`

The folder gets its name when all files are on the disk. Tensors carry the names they have in a single process's two
files, so both kinds are read by the same call, and `minglm.training.checkpoint.read` puts shards together. Nothing is
pickled. All processes must see the same folder.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as torch_checkpoint_load
from torch.distributed.checkpoint.state_dict_saver import save as torch_checkpoint_save

from minglm.config import ModelConfig
from minglm.distributed.mesh import Mesh
from minglm.training import checkpoint
from minglm.training.sharded import quietly


def save(
    run_dir: Path, step: int, config: ModelConfig, tensors: dict[str, Tensor], mesh: Mesh, extra: dict | None = None
) -> Path:
    """Write the checkpoint of `step` finished steps, all processes together. Returns its folder.

    tensors: name → DTensor, or a plain tensor that is the same on all processes.
    """
    temporary = mesh.on_rank_zero(lambda: checkpoint.begin(run_dir, step))
    quietly(
        torch_checkpoint_save, tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    )
    mesh.wait()
    names = sorted(p.name for p in temporary.glob("*.safetensors"))
    mine = {name: checkpoint.sha256(temporary / name) for name in names[mesh.rank :: mesh.dims.world]}
    hashes: list[dict] = [{}] * mesh.dims.world
    dist.all_gather_object(hashes, mine)
    notes = {**(extra or {}), "processes": mesh.dims.world, "layout": str(mesh.dims)}
    return mesh.on_rank_zero(
        lambda: checkpoint.commit(temporary, step, config, {k: v for part in hashes for k, v in part.items()}, notes)
    )


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` (as for `save`) in place from a checkpoint of any number of processes;
    each reads what it holds."""
    quietly(torch_checkpoint_load, tensors, storage_reader=HuggingFaceStorageReader(str(path)))
