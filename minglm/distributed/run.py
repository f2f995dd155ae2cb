"""The training loop of `minglm.training.loop` on a mesh: the same steps; process 0 alone writes notes,
logs and the one line at the end.

Every process builds the seeded model whole once, so that a run starts from the same weights on any mesh, then keeps its
shards. A process that loses another ends with one line and exit code 1; the same command goes on from the last
checkpoint. Run with gloo on CPU; on CUDA and Ascend not run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed import DistError

from minglm.data import shards
from minglm.distributed import checkpoint
from minglm.distributed.mesh import Mesh, PeerLost, destroy_process_group, exit_quietly, init_process_group
from minglm.distributed.model import ShardedModel
from minglm.distributed.optim import ShardedMuonAdamW
from minglm.errors import InputError
from minglm.model.model import Model
from minglm.runtime import device as devices
from minglm.runtime import machine
from minglm.training import checkpoint as single
from minglm.training import metrics, parallel_dims
from minglm.training.data import Data
from minglm.training.loop import TrainingRun, claimed
from minglm.training.process import Interrupted, deterministic
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
    own = contextlib.ExitStack()  # process 0's hold on the folder
    try:
        if not parallel_dims.launched():
            flags = " ".join(f"--{kind} {n}" for kind, n in (parallel or {}).items() if n)
            raise InputError(
                f"{flags}: needs several processes; start with torchrun --nproc-per-node N -m -- minglm train …"
            )
        dims = parallel_dims.choose(parallel, int(os.environ["WORLD_SIZE"]))
        parallel_dims.check(dims, recipe, recipe.config())
        if recipe.qat:
            raise InputError(
                f"qat={recipe.qat}: rounding during training works in one process; leave out torchrun or qat"
            )
        mesh = init_process_group(dims, devices.resolve(device))
        mesh.on_rank_zero(lambda: own.enter_context(claimed(run_dir, recipe, resume)))
        with deterministic(), warnings.catch_warnings():
            # Nothing changes it in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            row = ShardedRun(recipe, run_dir, init_from, mesh).loop(progress)
        mesh.wait()
    except InputError:
        if not first:
            exit_quietly(2)
        raise
    except Interrupted:
        if not first:
            exit_quietly(130)
        raise
    except (DistError, RuntimeError, PeerLost) as err:
        if not isinstance(err, (DistError, PeerLost)) and not any(word in str(err).lower() for word in LOST):
            raise
        _end_lost(err, run_dir)
    finally:
        own.close()
    destroy_process_group()
    return row


def _end_lost(err: Exception, run_dir: Path) -> NoReturn:
    """One line, then out: what is left of the process group may hang when it is taken down in order."""
    checkpoints = single.find(run_dir)
    last = f"the last checkpoint is {checkpoints[0]}" if checkpoints else "no checkpoint had been written yet"
    why = str(err).strip().splitlines()[0]
    print(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: lost another process ({why[:160]}); {last}; the "
        f"same command goes on from there",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class _NoLog:
    """What a process writes that is not the first: nothing."""

    def write(self, row: dict) -> None:
        """As `minglm.training.metrics.Log`."""

    def flush_to_disk(self) -> None:
        """As `minglm.training.metrics.Log`."""

    def close(self) -> None:
        """As `minglm.training.metrics.Log`."""


class ShardedRun(TrainingRun):
    """One process's part of a run: the hooks of `TrainingRun`, for a mesh."""

    model: ShardedModel

    def __init__(self, recipe: Recipe, run_dir: Path, init_from: str | Path | None, mesh: Mesh) -> None:
        self.mesh, self.first = mesh, mesh.first
        super().__init__(recipe, run_dir, init_from, mesh.device)

    def load_latest(self, path: str | Path) -> single.Checkpoint | None:
        """Verified once, by process 0; weights are read later, each process its own."""
        return self.mesh.on_rank_zero(lambda: single.latest(path, tensors=False))

    def open_data(self, tokenizer_from: str | Path | None) -> Data:
        """Process 0 makes the shards when there are none, the others find them there."""
        made: list[Data] = []
        self.mesh.on_rank_zero(lambda: made.append(super(ShardedRun, self).open_data(tokenizer_from)))
        return made[0] if made else super().open_data(tokenizer_from)

    def to_device(self, model: Model) -> ShardedModel:
        """Each process keeps its shards of the whole model."""
        accelerator = self.mesh.device.type != "cpu"  # bf16 and ZeRO-3 there: not run
        return ShardedModel(model, self.mesh, bf16=accelerator, reshard=accelerator and self.recipe.mode != "warmup")

    def make_optimizer(self, lr: float, adam_lr: float | None, weight_decay: float) -> ShardedMuonAdamW:
        """Each process updates its shards."""
        shapes = self.model.shapes
        return ShardedMuonAdamW(
            self.named, shapes, self.mesh, self.config, lr=lr, adam_lr=adam_lr, weight_decay=weight_decay
        )

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

    def restore(self, start: single.Checkpoint, optimizer: bool) -> None:
        """Each process reads its shards from the checkpoint's files."""
        tensors = self._tensors(optimizer)
        checkpoint.load(start.path, tensors)
        if optimizer:
            self.optimizer.steps = int(tensors["steps"])

    def save(self) -> Path:
        """All processes together; each writes its shards."""
        return checkpoint.save(
            self.dir, self.step, self.config, self._tensors(optimizer=True), self.mesh, self._notes()
        )

    def before_forward(self, last: bool) -> None:
        """Gradients are summed over processes once an update."""
        self.model.accumulate(last)

    def parts(self, batch: shards.Batch) -> list[shards.Batch]:
        """All rows at once: another process has the others."""
        return [batch]

    def all_ranks_agree(self, stop: bool) -> bool:
        """One that wants to stop stops all."""
        return self.mesh.any(stop)

    def open_log(self, name: str, columns: tuple[str, ...]) -> metrics.Log:
        """Process 0's only."""
        return super().open_log(name, columns) if self.first else _NoLog()

    def write_notes(self, init_from: str | Path | None, start: single.Checkpoint | None) -> None:
        """Process 0 only."""
        if self.first:
            super().write_notes(init_from, start)

    def peak_flops_per_s(self) -> float:
        """Of all processes together."""
        kind = self.mesh.device.type
        return self.mesh.sum(machine.matmul_flops_per_s("fp32" if kind == "cpu" else "bf16", kind))

    def last_metrics(self) -> dict:
        """When process 0 has closed its log."""
        self.mesh.wait()
        return super().last_metrics()
