"""The training loop of `minglm.training.loop` on a mesh: the same steps; process 0 alone writes notes,
logs and the one line at the end.

Every process builds the seeded model whole once, so that a run starts from the same weights on any mesh, then keeps its
shards. A process that loses another ends with one line and exit code 1; the same command goes on from the last
checkpoint. Run with gloo on CPU; on CUDA and Ascend not run.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.distributed import DistError

from minglm.distributed import checkpoint
from minglm.distributed.mesh import Mesh, PeerLost, destroy_process_group, exit_quietly, init_process_group
from minglm.distributed.model import ShardedModel
from minglm.distributed.optim import ShardedMuonAdamW
from minglm.errors import InputError
from minglm.runtime import device as devices
from minglm.runtime import machine
from minglm.training import checkpoint as single
from minglm.training import loop as trainer
from minglm.training import parallel_dims
from minglm.training.recipe import Recipe

LOST = (
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "connection refused",
    "gloo",
    "nccl",
    "hccl",
)


def train(
    recipe: Recipe,
    run_dir: Path,
    init_from: str | Path | None,
    resume: bool,
    progress: bool,
    device: str,
    parallel: dict[str, int | None] | None = None,
) -> dict:
    """As `minglm.training.loop.train`, in a process that torchrun started.

    Raises:
        InputError: on process 0; the others end with exit code 2 and say nothing.
        PeerLost: another process has gone, or did not answer in time.
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        if not parallel_dims.launched():
            raise InputError(
                f"{' '.join(f'--{k} {v}' for k, v in (parallel or {}).items() if v)}: needs several processes; start "
                f"with "
                "torchrun --nproc-per-node N -m -- minglm train …"
            )
        chosen = parallel_dims.choose(parallel, int(os.environ["WORLD_SIZE"]))
        parallel_dims.check(chosen, recipe, recipe.config())
        if recipe.qat:
            raise InputError(
                f"qat={recipe.qat}: rounding during training works in one process; leave out torchrun or qat"
            )
        device = devices.resolve(device)
        mesh = init_process_group(chosen, device)
        mesh.on_rank_zero(lambda: trainer.claim_run_folder(run_dir, recipe, resume))
        with trainer.deterministic(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="FSDP2-wrapped module .* returned a view"
            )  # nothing changes it in place
            row = _ShardedRun(recipe, run_dir, init_from, device, mesh).loop(progress)
        mesh.wait()
    except InputError:
        if not first:
            exit_quietly(2)
        raise
    except trainer.Interrupted:
        if not first:
            exit_quietly(130)
        raise
    except (DistError, RuntimeError, PeerLost) as err:
        if not isinstance(err, (DistError, PeerLost)) and not any(word in str(err).lower() for word in LOST):
            raise
        _end_lost(err, run_dir)
    destroy_process_group()
    return row


def _end_lost(err: Exception, run_dir: Path):
    """One line, then out: what is left of the process group may hang when it is taken down in order."""
    found = single.find(run_dir)
    kept = f"the last checkpoint is {found[0]}" if found else "no checkpoint had been written yet"
    why = str(err).strip().splitlines()[0]
    print(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: lost another process ({why[:160]}); {kept}; the "
        f"same command goes on from there",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class _NoLog:
    """What a process writes that is not the first."""

    def write(self, row: dict) -> None:
        pass

    def flush_to_disk(self) -> None:
        pass

    def close(self) -> None:
        pass


class _ShardedRun(trainer.TrainingRun):
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, run_dir: Path, init_from: str | Path | None, device: str, mesh: Mesh) -> None:
        self.mesh, self.first = mesh, mesh.first
        super().__init__(recipe, run_dir, init_from, mesh.device)

    def load_latest(self, path: str | Path) -> single.Checkpoint | None:
        """Verified once, by process 0; weights are read later, each process its own."""
        return self.mesh.on_rank_zero(lambda: single.latest(path, tensors=False))

    def _data(self, tokenizer_from):
        """Process 0 makes the shards when there are none, the others find them there."""
        if self.first:
            made = super()._data(tokenizer_from)
        self.mesh.wait()
        return made if self.first else super()._data(tokenizer_from)

    def to_device(self, model) -> ShardedModel:
        accelerator = self.mesh.device.type != "cpu"  # bf16 and ZeRO-3 there: not run
        return ShardedModel(model, self.mesh, bf16=accelerator, reshard=accelerator and self.recipe.mode != "warmup")

    def _optimizer(self, **options) -> ShardedMuonAdamW:
        return ShardedMuonAdamW(self.named, self.model.shapes, self.mesh, self.config, **options)

    def _tensors(self, optimizer: bool) -> dict[str, torch.Tensor]:
        """Weights, buffers and optimiser state by the names of a single process, with the place of each shard."""
        shapes, out = self.model.shapes, {}
        for name, t in self.model.state_dict().items():
            out[name] = self.mesh.as_dtensor(name, t.detach().to_local(), shapes[name]) if name in shapes else t
        if optimizer:
            for key, t in self.optimizer.state_dict().items():
                name = key.partition(".")[2]
                out[key] = self.mesh.as_dtensor(name, t, shapes[name]) if name in shapes else t
        return out

    def _restore(self, found: single.Checkpoint, optimizer: bool) -> None:
        tensors = self._tensors(optimizer)
        checkpoint.load(found.path, tensors)
        if optimizer:
            self.optimizer.steps = int(tensors["steps"])

    def save(self) -> Path:
        return checkpoint.save(
            self.dir, self.step, self.config, self._tensors(optimizer=True), self.mesh, self._notes()
        )

    def before_forward(self, last: bool) -> None:
        self.model.accumulate(last)

    def all_ranks_agree(self, stop: bool) -> bool:
        return self.mesh.any(stop)

    def _log(self, name: str, columns: tuple[str, ...]):
        return super()._log(name, columns) if self.first else _NoLog()

    def _write_notes(self, init_from, start) -> None:
        if self.first:
            super()._write_notes(init_from, start)

    def _peak(self) -> float:
        """Of all processes together: the denominator of MFU."""
        kind = self.mesh.device.type
        return self.mesh.sum(machine.matmul_flops_per_s("fp32" if kind == "cpu" else "bf16", kind))

    def last_metrics(self) -> dict:
        self.mesh.wait()  # process 0 has closed its log
        return super().last_metrics()
