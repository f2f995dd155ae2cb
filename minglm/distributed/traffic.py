"""What a training step says to other processes, counted while it runs:

    torchrun --nproc-per-node 2 -m -- minglm.distributed.traffic --model nano --rows 8 --length 128

One JSON row for each layout, phase (forward, backward, optimizer) and kind of exchange: calls, and the bytes that leave
this process when the exchange is done by a ring: an all-gather or a reduce-scatter of n parts sends n−1 of them, an
all-reduce twice that, an all-to-all what is not for itself (Thakur, Rabenseifner and Gropp 2005). The counter sits
where torch hands tensors to the backend, so that it counts what FSDP2 sends too. It measures no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from minglm.config import ModelConfig
from minglm.distributed.mesh import Mesh, destroy_process_group, init_process_group
from minglm.distributed.model import ShardedModel
from minglm.distributed.optim import ShardedMuonAdamW
from minglm.errors import InputError, Parser
from minglm.model.model import Model
from minglm.training import parallel_dims

NAMES = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
}


class Counter(TorchDispatchMode):
    """Counts exchanges by (phase, kind): [calls, bytes sent by this process]."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.seen: dict[tuple[str, str], tuple[int, float]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.split("::")[1]  # noqa: SLF001  (torch has no public name for it)
            key = self.phase, NAMES.get(name, name)
            calls, sent = self.seen.get(key, (0, 0.0))
            self.seen[key] = calls + 1, sent + _bytes_sent(name, args)
        return function(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what is said inside this block under `phase`."""
        self.phase = phase
        with self:
            yield


def _bytes_sent(name: str, args: tuple) -> float:
    """Bytes that one exchange sends from this process; 0 for kinds that a step does not use."""
    group = next((g for g in map(_group, args) if g is not None), dist.group.WORLD)
    assert group is not None  # something was sent, so there are groups
    n, me = group.size(), group.rank()

    def size(what: object) -> int:
        return sum(t.numel() * t.element_size() for t in tree_flatten(what)[0] if isinstance(t, torch.Tensor))

    if name == "allreduce_":
        return 2 * (n - 1) / n * size(args[0])
    if name in ("_allgather_base_", "allgather_"):
        return (n - 1) * size(args[1])  # (output, input, group, …)
    if name == "_reduce_scatter_base_":
        return (n - 1) * size(args[0])
    if name == "alltoall_base_":  # (output, input, group, output sizes, input sizes, …)
        rows = list(args[4]) or [args[1].shape[0] // n] * n
        return size(args[1]) * (1 - rows[me] / max(1, sum(rows)))
    return 0.0


def _group(value: object) -> dist.ProcessGroup | None:
    if isinstance(value, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(value)
        except (RuntimeError, TypeError):
            return None  # the kind of reduction is such an object too
    return value if isinstance(value, dist.ProcessGroup) else None


def step(dims: parallel_dims.ParallelDims, model_name: str, rows: int, length: int, seed: int = 0) -> list[dict]:
    """Count one training step of a seeded model on seeded tokens, dense attention; all processes together."""
    mesh = Mesh(dims, torch.device("cpu"))
    torch.manual_seed(seed)
    config = ModelConfig.named(model_name)
    model = ShardedModel(Model(config), mesh)
    optimizer = ShardedMuonAdamW([(n, p) for n, p in model.named_parameters()], model.shapes, mesh, config)
    tokens = torch.randint(0, config.vocab_size, (rows, length))
    counter = Counter()
    with counter.during("forward"):
        out = model(tokens, tokens.roll(-1, 1), mode="dense", indexer_loss=False)
    loss = out.lm_loss + 0.3 * out.mtp_loss if out.mtp_loss is not None else out.lm_loss
    with counter.during("backward"):
        loss.backward()
    with counter.during("optimizer"):
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    return [
        {
            "layout": str(dims),
            "rows": rows,
            "phase": phase,
            "kind": kind,
            "calls": calls,
            "bytes": round(sent),
            "loss": float(out.lm_loss.detach()),
        }
        for (phase, kind), (calls, sent) in counter.seen.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    p = Parser(prog="minglm.distributed.traffic", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--model", default="nano", help="named size (default nano)")
    p.add_argument("--rows", type=int, action="append", help="rows of the batch; repeatable (default 8)")
    p.add_argument("--length", type=int, default=128, help="tokens of a row (default 128)")
    p.add_argument(
        "--layout",
        action="append",
        metavar="dp=2,ep=2",
        help="repeatable (default: all processes along dp, ep, tp, cp, each alone)",
    )
    try:
        args = p.parse_args(argv)
        if not parallel_dims.launched():
            raise InputError(
                "traffic: counts what several processes say; start it with torchrun --nproc-per-node 2 -m -- "
                "minglm.distributed.traffic"
            )
        world = int(os.environ["WORLD_SIZE"])
        requested = [
            dict(part.partition("=")[::2] for part in text.split(","))
            for text in args.layout or [f"{k}={world}" for k in parallel_dims.KINDS]
        ]
        for one in requested:
            if wrong := next((f"{k}={v}" for k, v in one.items() if not v.isdigit()), None):
                raise InputError(f"--layout {wrong}: must be kind=number, such as dp=2,ep=2")
        plans = [parallel_dims.choose({k: int(v) for k, v in one.items()}, world) for one in requested]
        batches = args.rows or [8]
        for name, value, parts in (
            *(("rows", b, max(q.dp * q.ep for q in plans)) for b in batches),
            ("length", args.length, max(q.cp for q in plans)),
        ):
            if value < 1 or value % parts:
                raise InputError(f"--{name} {value}: must be a positive multiple of {parts}, which it is split over")
        ModelConfig.named(args.model)
    except InputError as err:
        if first:
            print(err, file=sys.stderr)
        return 2
    init_process_group(plans[0], "cpu")
    counts = [row for plan in plans for rows in batches for row in step(plan, args.model, rows, args.length)]
    if first:
        print(json.dumps(counts))
    destroy_process_group()
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
