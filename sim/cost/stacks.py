"""Software stacks: how a named framework release runs a training step, and its constants.

`data/stacks.yaml` holds one entry per release: which attention kernel, what is fused, which collectives hide behind
compute, the host's time per operator. `data/fitted.yaml` holds at most one fitted scalar per release and chip, with the
rows it was fitted on. A stack that
is not listed falls back to `generic` and says so; the values a row names itself (attention, fusion, overlap) win over
both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.base.same import Same
from sim.cost import measured
from sim.cost.kernels import Kernels
from sim.cost.operators import Style
from sim.spec.hardware import Chip

# Attention kernels: (kernel, chip family or '') → share of the best bf16 matmul forward, backward, keys at half of it.
# Published curves for causal attention, head width 128: FlashAttention-2 on A100 and H100 (arXiv 2307.08691 Fig. 5-7),
# FlashAttention-3 on H100 (arXiv 2407.08608 Fig. 5-6); cuDNN's is of FlashAttention-3's class. The rest is assumed.
ATTENTION = {
    ("flash1", ""): (0.40, 0.35, 400.0, "assumed"),
    ("flash1", "a100"): (0.42, 0.36, 400.0, "published"),
    ("flash1", "h100"): (0.27, 0.23, 400.0, "assumed"),  # the same kernel, no faster units used
    ("flash2", ""): (0.65, 0.55, 500.0, "assumed"),
    ("flash2", "a100"): (0.74, 0.63, 500.0, "published"),
    ("flash2", "h100"): (0.50, 0.42, 450.0, "published"),
    ("flash3", ""): (0.80, 0.65, 900.0, "assumed"),
    ("flash3", "h100"): (0.86, 0.72, 950.0, "published"),
    ("flash3", "a100"): (0.74, 0.63, 500.0, "published"),
    ("npu_fusion", ""): (0.62, 0.50, 800.0, "assumed"),
    ("sdpa", ""): (0.60, 0.50, 500.0, "assumed"),
    ("sdpa", "a100"): (0.74, 0.63, 500.0, "published"),
    ("sdpa", "h100"): (0.50, 0.42, 450.0, "published"),  # scaled_dot_product_attention runs FlashAttention-2
}
# A long run slows attention less than matmuls: it draws less power. On one machine of eight B200 matmuls reach 0.71 of
# short runs and attention 0.80 (measured: MooreThreads/SimuMax e691807, configs/system), so 0.71^0.65 = 0.80.
ATTENTION_EXPONENT = 0.65


GRAPHS = ("none", "partial", "full")


@dataclass(frozen=True)
class Stack:
    """One software release. Shares are of a collective's time hidden behind compute when overlap is on."""

    name: str
    title: str = ""
    attention: str = "auto"  # key of ATTENTION, 'unfused', or 'auto': the vendor's best
    family: str = ""  # releases of one family stand in for each other
    fsdp: bool = False  # shards parameters when a row does not say
    early_stop: bool = False  # recomputation stops before the last matmul, whose output nothing needs
    fusion: str = "fused"  # fused | eager | compiled
    loss: str = "fused"  # a key of `sim.cost.operators.LOSSES`
    dropout: bool = False
    cp: str = "ring"  # context parallelism: ring, or gather: all keys first
    accumulate_fused: bool = True
    fp8_passes: float = 2.0
    fp8_kernel: str = "fp8"  # one scale a tensor (fp8), or a block of 128 (fp8_block)
    overlap_tp: bool = False
    overlap_p2p: bool = True  # with interleaving only
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    overlap_all_to_all: bool = False
    tp_hidden: float = 0.6  # share of TP collectives hidden when pipelined with matmuls
    wgrad_hidden: float = 0.8  # share hidden of those that run beside the weight-gradient matmul
    dp_hidden: float = 0.9
    fsdp_hidden: float = 0.6  # the rest is what compute loses to communication kernels beside it
    all_to_all_hidden: float = 0.8
    dedup: bool = False  # expert rows go once to a node, and once to a chip
    node_limited: float = 0.0
    imbalance: float | None = None  # slowest rank's expert time / mean; None: as measured for a power law at this EP
    router_passes: float = 6.0
    router_fused: bool = True  # see `sim.cost.operators.Style`
    counts_apart: bool = False
    grouped: str = "fused"  # fused | loop over experts
    expert_sync: bool = False  # the host waits for the experts' token counts in each layer: it cannot run ahead
    comm_cores: float = 0.0  # share of the chip's cores given to communication kernels
    host_op_s: float = 50e-6  # host's time to issue one operator of the forward pass (framework, Python)
    host_backward: float = 0.5  # of the backward pass, as a share of that (autograd runs in C++)
    host_message_s: float = 60e-6  # host's time to issue one tensor- or expert-parallel collective
    host_norm: float = 4.0  # how host and device run side by side: a p-norm, 1 where the host waits for each operator
    graphs: str = "none"  # captured in graphs: none | partial (all but the experts) | full: no host time there
    fixed_s: float = 20e-3  # per step and host: data, logging, gradient norm's sync (see `overhead_s`)
    scale: float = 0.0  # long-run speed of matmuls and attention / measured in short runs; 0: the chip's
    jitter: float = 0.01  # spread of compute speed between chips (standard deviation / mean)
    bf16_grads: bool = False
    muon: str = "owned"  # who takes Newton–Schulz: a key of `sim.cost.optimizer.MUON_SHARES`
    labels: Mapping[str, str] = field(default_factory=dict)  # constant → label and source
    fitted: Mapping[str, Mapping] = field(default_factory=dict)  # family of chips → {name, value, rows}

    def __post_init__(self) -> None:
        if self.graphs not in GRAPHS:
            raise InputError(f"graphs {self.graphs!r}: not one of {', '.join(GRAPHS)}; give none, partial or full")

    def style(self, fp8: bool, imbalance: float | None = None, ep: int = 1, **changes: Any) -> Style:
        """How this stack runs a layer's operators; `changes` win."""
        values: dict[str, Any] = dict(
            attention="unfused" if self.attention == "unfused" else "flash",
            fusion=self.fusion,
            loss=self.loss,
            dropout=self.dropout,
            cp=self.cp,
            fp8=fp8,
            fp8_passes=self.fp8_passes,
            accumulate_fused=self.accumulate_fused,
            node_limited=self.node_limited,
            dedup=self.dedup,
            router_passes=self.router_passes,
            router_fused=self.router_fused,
            counts_apart=self.counts_apart,
            # a whole iteration is captured where one kernel runs the experts without a host that counts tokens
            grouped="joined" if self.graphs == "full" and fp8 else self.grouped,
            imbalance=self._imbalance(ep) if imbalance is None else imbalance,
        )
        return Style(**{**values, **changes})

    def _imbalance(self, ep: int) -> float:
        return measured.imbalance(ep) if self.imbalance is None else self.imbalance

    def overhead_s(self, num_chips: int) -> float:
        """Seconds of a step that nothing hides: every host's own work, waited for by all.

        Each host takes a time of its own (exponential, mean `fixed_s`), so the slowest of N takes 1 + ln N of it.
        """
        return self.fixed_s * (1.0 + math.log(max(1.0, num_chips / 8)))

    def scalar(self, chip: Chip, name: str, default: float) -> float:
        """The fitted value called `name` for chips of this one's family, else `default`."""
        fit = self.fitted.get(family_of(chip))
        return float(fit["value"]) if fit and fit.get("name") == name else default

    def kernels(self, chip: Chip) -> Kernels:
        """Kernel times of this stack on a chip, at the speed that the chip holds in a long run."""
        kernel = chip.attention if self.attention in ("unfused", "auto") else self.attention
        forward, backward, half, _ = attention_shares(kernel, chip)
        cores, held = 1.0 - self.comm_cores, self.scale or sustained(chip)[0]
        return _kernels(
            Same(chip),
            forward,
            backward,
            half,
            forward / attention_shares(chip.attention, chip)[0],
            held * cores,
            held**ATTENTION_EXPONENT * cores,
            self.fp8_kernel,
            True,
        )


@functools.lru_cache(maxsize=512)
def _kernels(chip: Same[Chip], *values: Any) -> Kernels:
    return Kernels(chip.value, *values)


def attention_shares(kernel: str, chip: Chip) -> tuple[float, float, float, str]:
    """(forward share, backward share, keys at half, label) of an attention kernel on a chip."""
    kernels = sorted({k for k, _ in ATTENTION})
    if kernel not in kernels:
        raise InputError(
            f"attention kernel {kernel!r}: not one of {', '.join(kernels)}, unfused{nearest(kernel, kernels)}"
        )
    return ATTENTION.get((kernel, chip.attention_as), ATTENTION[kernel, ""])


@functools.cache
def _read() -> dict[str, Any]:
    return read_mapping(datafiles.data("stacks.yaml"))


@functools.cache
def read_fitted() -> dict[str, Any]:
    """`chips`: family → its long-run speed; `stacks`: stack → family → a fitted constant. Empty before a fit."""
    path = datafiles.data("fitted.yaml")  # written by `python -m sim.validation.fit --write`, which starts without it
    return read_mapping(path) if path.exists() else {}


def family_of(chip: Chip) -> str:
    """Whose long-run speed is a chip's: the chip that was measured for it, its family, else itself."""
    return chip.tables or chip.family or chip.file or chip.name


def sustained(chip: Chip) -> tuple[float, str]:
    """(speed of matmuls in a long run over short ones, where it comes from): power and clocks, not a product.

    What the chip says itself, else what was fitted for its family on calibration rows, else the middle of all families.
    """
    if chip.sustained:
        return chip.sustained.value, f"{chip.sustained.confidence}: {chip.sustained.source}"
    fits, family = read_fitted().get("chips") or {}, family_of(chip)
    if family in fits:
        return float(fits[family]["value"]), "fitted on " + ", ".join(map(str, fits[family]["rows"]))
    if not fits:
        return 1.0, "assumed: nothing is fitted"
    return statistics.median(float(fit["value"]) for fit in fits.values()), "assumed: the middle of the fitted chips"


def list_stacks() -> list[str]:
    """Names of the stacks in data/stacks.yaml."""
    return sorted(_read()["stacks"])


def stack_key(name: str) -> str:
    """A stack's name as it is listed: lower case, words joined by hyphens."""
    return "-".join(str(name).strip().lower().replace("_", "-").split())


@functools.cache
def load_stack(name: str) -> Stack:
    """The stack called `name`.

    Raises:
        InputError: not listed; the nearest name is given.
    """
    entries = _read()["stacks"]
    key = stack_key(name)
    if key not in entries:
        raise InputError(
            f"software stack {name!r}: not listed in data/stacks.yaml{nearest(key, entries)}; known: "
            f"{', '.join(sorted(entries))}; leave it out for 'generic'"
        )
    entry = dict(entries[key] or {})
    while entry.get("like"):
        parent = dict(entries[entry.pop("like")])
        parent.pop("title", None)
        entry = {**parent, **entry, "labels": {**(parent.get("labels") or {}), **(entry.get("labels") or {})}}
    known = {f.name for f in dataclasses.fields(Stack)}
    for word in entry:
        if word not in known:
            raise InputError(f"stack {key}: unknown key {word!r}{nearest(word, known)}; see sim/cost/stacks.py's Stack")
    values: dict[str, Any] = {
        word: value or {} if word in ("labels", "fitted") else value for word, value in entry.items()
    }
    return Stack(**{**values, "name": key, "fitted": (read_fitted().get("stacks") or {}).get(key) or {}})


def resolve(name: str | None, chip: Chip) -> tuple[Stack, list[str]]:
    """A stack for a row, and what had to be assumed.

    An unlisted release stands on its family, an unknown one on 'generic'.
    """
    if not name:
        return load_stack("generic"), ["software stack not named: 'generic'"]
    entries, key = _read()["stacks"], stack_key(name)
    if key in entries:
        return load_stack(key), []
    product, release = product_of(key)
    same = [k for k in entries if product_of(k)[0] == product and product]
    chosen = (
        min(same, key=lambda k: (abs(product_of(k)[1] - release), k))
        if same
        else next(
            (family for family, words in _read()["families"].items() if any(word in key for word in words)), "generic"
        )
    )
    # its habits, not its fitted constants: those belong to the release they were fitted on
    return dataclasses.replace(load_stack(chosen), name=key, fitted={}), [
        f"software stack {str(name)[:60]!r} is not listed: taken as {chosen}"
    ]


def product_of(key: str) -> tuple[str, float]:
    """'megatron-bridge-25.11' → ('megatron-bridge', 25.11): the words before the first number, and that number."""
    match = re.search(r"(^|[-vr])(\d+(?:\.\d+)?)", key)
    if not match:
        return key, 0.0
    return key[: match.start()].strip("-"), float(match.group(2))


def with_changes(stack: Stack, **changes: Any) -> Stack:
    """The stack with some defaults changed by a row or a what-if; unknown ones are refused."""
    known = {f.name for f in dataclasses.fields(Stack)}
    for key in changes:
        if key not in known:
            raise InputError(f"stack option {key!r}: not known{nearest(key, known)}; known: {', '.join(sorted(known))}")
    return dataclasses.replace(stack, **changes)
