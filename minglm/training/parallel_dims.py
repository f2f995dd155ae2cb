"""How the processes of one run share the work: four numbers whose product is the number of processes.

    dp  data parallel      each process trains on its own rows; weights and optimiser state are sharded (FSDP2)
    ep  expert parallel    as dp, and each process holds only its part of the experts; tokens travel to them
    tp  tensor parallel    attention heads are split; every process of the group sees the same rows
    cp  context parallel   each process has its part of the sequence; latents and indexer keys are gathered

Rows are split over dp·ep, positions over cp, heads over tp, experts over ep. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.training.recipe import Recipe

KINDS = ("dp", "ep", "tp", "cp")
VARIABLE = "MINGLM_PARALLEL"  # "ep=2 tp=2": the same as the flags, for launchers that pass none


@dataclass(frozen=True)
class ParallelDims:
    """Processes along each axis. Raises InputError when one is not a whole number of at least 1."""

    dp: int = 1
    ep: int = 1
    tp: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for kind in KINDS:
            n = getattr(self, kind)
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise InputError(f"--{kind} {n!r}: must be a whole number of at least 1; leave it out for 1")

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.dp * self.ep * self.tp * self.cp

    def __str__(self) -> str:
        return " ".join(f"{kind}={getattr(self, kind)}" for kind in KINDS)


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def choose(flags: Mapping[str, int | None] | None, world: int) -> ParallelDims:
    """The dimensions for `world` processes. What is not asked for is 1, and dp takes what is left.

    Args:
        flags: kind → number or None, from the command line; without any, the variable MINGLM_PARALLEL is read.

    Raises:
        InputError: an unknown kind, or a product that is not `world`.
    """
    sizes = {k: v for k, v in (flags or {}).items() if v is not None} or _from_environment()
    for kind in sizes:
        if kind not in KINDS:
            raise InputError(f"{kind}={sizes[kind]!r}: not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    dims = ParallelDims(**sizes)
    if "dp" not in sizes and world % dims.world == 0:
        dims = ParallelDims(**{**sizes, "dp": world // dims.world})
    if dims.world != world:
        raise InputError(
            f"{dims}: makes {dims.world} processes, torchrun started {world}; change one of "
            f"{' '.join('--' + k for k in KINDS)} or start --nproc-per-node {dims.world}"
        )
    return dims


def _from_environment() -> dict[str, int]:
    out = {}
    for part in os.environ.get(VARIABLE, "").replace(",", " ").split():
        kind, _, number = part.partition("=")
        if not number.isdigit():
            raise InputError(f"{VARIABLE}: {part!r} is not kind=number; for example {VARIABLE}='ep=2 tp=2'")
        out[kind] = int(number)
    return out


def check(dims: ParallelDims, recipe: Recipe, config: ModelConfig) -> None:
    """Refuse what cannot be divided.

    Raises:
        InputError: rows, experts, heads or positions do not split evenly.
    """

    def even(total: int, name: str, parts: int, flags: str) -> None:
        if total % parts:
            raise InputError(
                f"{flags}: {name}={total} does not split over {parts} processes; use a multiple of {parts}"
            )

    even(recipe.batch_size, "batch_size", dims.dp * dims.ep, f"dp·ep={dims.dp * dims.ep}")
    even(config.n_routed_experts, "n_routed_experts", dims.ep, f"ep={dims.ep}")
    even(config.num_attention_heads, "num_attention_heads", dims.tp, f"tp={dims.tp}")
    even(recipe.seq_len, "seq_len", dims.cp, f"cp={dims.cp}")
    if dims.cp > 1 and recipe.seq_len // dims.cp <= config.mtp_depth:
        raise InputError(
            f"cp={dims.cp}: leaves {recipe.seq_len // dims.cp} positions to a process, fewer than mtp_depth + 1="
            f"{config.mtp_depth + 1}; use a longer seq_len or a smaller --cp"
        )
    if recipe.compile:
        raise InputError("compile=True: not supported together with torchrun; use --set compile=false")
