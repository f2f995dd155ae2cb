"""The process groups of `ParallelDims`, and how a process enters and leaves them.

Processes are numbered with tp innermost, then cp, ep, dp: what talks most sits closest together. Weights that every
process needs are sharded over dp·ep·cp; experts over dp·cp within their part of ep.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from minglm.errors import InputError
from minglm.training.parallel_dims import ParallelDims

Result = TypeVar("Result")
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}  # nccl and hccl: not run
TIMEOUT_VARIABLE = "MINGLM_TIMEOUT_S"  # seconds that one exchange may take before peers count as lost
TIMEOUT_S = 600


class PeerLost(ConnectionError):
    """Another process of the run has gone or does not answer; this one cannot go on alone."""


class Mesh:
    """Groups, ranks and placements of this process. Made by `init_process_group`; `destroy_process_group` ends it."""

    def __init__(self, dims: ParallelDims, device: torch.device) -> None:
        self.dims, self.device = dims, device
        kind = device.type
        axes = init_device_mesh(kind, (dims.dp, dims.ep, dims.cp, dims.tp), mesh_dim_names=("dp", "ep", "cp", "tp"))
        self.rank, self.first = dist.get_rank(), dist.get_rank() == 0
        self.ep, self.cp, self.tp = (axes.get_local_rank(n) for n in ("ep", "cp", "tp"))
        self.row = axes.get_local_rank("dp") * dims.ep + self.ep
        self.data_mesh = axes["dp", "ep", "cp"]._flatten("data")  # noqa: SLF001  (torch has no public name for it)
        self.expert_mesh = axes["dp", "cp"]._flatten("expert_data")  # noqa: SLF001
        self.data, self.experts = self.data_mesh.get_group(), self.expert_mesh.get_group()
        self.ep_group, self.cp_group, self.tp_group = (axes.get_group(n) for n in ("ep", "cp", "tp"))
        ranks = torch.arange(dims.world).view(dims.dp, dims.ep, dims.cp, dims.tp)
        # Only to say where a shard lies; they talk to nobody and need no groups.
        self._whole = DeviceMesh(kind, ranks.permute(3, 0, 1, 2).reshape(dims.tp, -1), _init_backend=False)
        self._split = DeviceMesh(kind, ranks.permute(3, 1, 0, 2).reshape(dims.tp, dims.ep, -1), _init_backend=False)

    # ------------------------------------------------------------------ what is whose

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch."""
        each = batch // (self.dims.dp * self.dims.ep)
        return slice(self.row * each, (self.row + 1) * each)

    def start(self, length: int) -> tuple[int, int]:
        """(first position, number of positions) of this process in a sequence of `length`."""
        each = length // self.dims.cp
        return self.cp * each, each

    @staticmethod
    def tp_axis(name: str) -> int | None:
        """Axis along which tensor parallelism cuts a parameter, None for those it leaves whole."""
        if ".q_b_proj." in name or ".kv_b_proj." in name:
            return 0
        return 1 if ".o_proj." in name else None

    @staticmethod
    def is_expert(name: str) -> bool:
        """Whether a parameter is split over ep."""
        return ".mlp.experts." in name

    def as_dtensor(self, name: str, local: Tensor, shape: torch.Size) -> DTensor:
        """The local shard of the parameter `name` (or of its optimiser state) with its place in the whole."""
        if self.is_expert(name):
            mesh, placements = self._split, [Replicate(), Shard(0), Shard(0)]
        else:
            axis = self.tp_axis(name)
            mesh, placements = self._whole, [Replicate() if axis is None else Shard(axis), Shard(0)]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)

    # ------------------------------------------------------------------ collectives

    def wait(self) -> None:
        """Until all processes are here."""
        dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        vote = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        return bool(vote)

    def sum(self, value: float) -> float:
        """Over all processes."""
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(box)
        return float(box)

    def on_rank_zero(self, work: Callable[[], Result]) -> Result:
        """Process 0 calls `work`, all get what it returned; when it refuses its input,
        the others end without a word."""
        box: list = [None, None]
        if self.first:
            try:
                box[0] = work()
            except InputError as err:
                box[1] = err
            except OSError as err:
                box[1] = err
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type != "cpu" else None)
        if box[1] is not None:
            if not self.first:
                exit_quietly(2 if isinstance(box[1], InputError) else 1)
            raise box[1]
        return box[0]


def init_process_group(dims: ParallelDims, device: str) -> Mesh:
    """Meet the other processes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment, as torchrun sets them).

    Every process but the first stops writing to standard output, so that a run speaks once.

    Raises:
        InputError: a device without a backend for several processes.
    """
    kind = torch.device(device).type
    if kind not in BACKENDS:
        raise InputError(f"--device {device}: several processes need one of {', '.join(BACKENDS)}; use --device cpu")
    where = torch.device(kind)
    if kind != "cpu":  # not run: one accelerator to a process
        where = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(where.index)
    if int(os.environ["RANK"]):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if not dist.is_initialized():
        seconds = float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_S))
        dist.init_process_group(BACKENDS[kind], timeout=datetime.timedelta(seconds=seconds))
    signal.signal(signal.SIGTERM, _terminated)
    return Mesh(dims, where)


def destroy_process_group() -> None:
    """End the groups, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise PeerLost("ended by the launcher (SIGTERM), which does so when another process has died")


def exit_quietly(code: int) -> NoReturn:
    """End a process that is not the first without a word. The launcher ends all as soon as one is gone, so the first is
    given time to say why."""
    time.sleep(3)
    raise SystemExit(code)
