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
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.cost.kernels import Kernels
from sim.cost.operators import Style
from sim.cost.scales import expected
from sim.spec.hardware import Chip

# Attention kernels: (kernel, chip family or '') → share of the best bf16 matmul forward, backward, keys at half of it.
# Published curves for causal attention, head width 128: FlashAttention-2 on A100 and H100 (arXiv 2307.08691 Fig. 5-7),
# FlashAttention-3 on H100 (arXiv 2407.08608 Fig. 5-6); cuDNN's is of FlashAttention-3's class. The rest is assumed.
ATTENTION = {
    ("flash1", ""): (0.40, 0.35, 400.0, "assumed"),
    ("flash1", "A100"): (0.42, 0.36, 400.0, "published"),
    ("flash1", "H100"): (0.27, 0.23, 400.0, "assumed"),  # the same kernel, no faster units used
    ("flash2", ""): (0.65, 0.55, 500.0, "assumed"),
    ("flash2", "A100"): (0.74, 0.63, 500.0, "published"),
    ("flash2", "H100"): (0.50, 0.42, 450.0, "published"),
    ("flash3", ""): (0.80, 0.65, 900.0, "assumed"),
    ("flash3", "H100"): (0.86, 0.72, 950.0, "published"),
    ("flash3", "A100"): (0.74, 0.63, 500.0, "published"),
    ("npu_fusion", ""): (0.62, 0.50, 800.0, "assumed"),
    ("sdpa", ""): (0.60, 0.50, 500.0, "assumed"),
    ("sdpa", "A100"): (0.74, 0.63, 500.0, "published"),
    ("sdpa", "H100"): (0.55, 0.46, 450.0, "published"),
}
ATTENTION_SCALE = 1.0
_FAMILY = {"H800": "H100", "H200": "H100", "GH200": "H100", "A800": "A100"}


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
    loss: str = "fused"  # fused | torch | unfused
    dropout: bool = False
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
    fsdp_hidden: float = 0.75  # the rest is what compute loses to communication kernels beside it
    all_to_all_hidden: float = 0.8
    dedup: bool = False  # expert rows cross the network once per node
    node_limited: float = 0.0
    imbalance: float = 1.0
    router_passes: float = 6.0
    grouped: str = "fused"  # fused | loop over experts
    expert_sync: bool = False  # the host waits for the experts' token counts in each layer: it cannot run ahead
    comm_cores: float = 0.0  # share of the chip's cores given to communication kernels
    host_op_s: float = 50e-6  # host's time to issue one operator of the forward pass (framework, Python)
    host_backward: float = 0.5  # of the backward pass, as a share of that (autograd runs in C++)
    host_message_s: float = 60e-6  # host's time to issue one tensor- or expert-parallel collective
    graphs: bool = False  # whole layers captured in graphs: host time vanishes
    fixed_s: float = 10e-3  # per step: data, logging, gradient norm's sync
    scale: float = 0.0  # kernel speed / modelled speed where none is fitted; 0: expected from the others
    jitter: float = 0.01  # spread of compute speed between chips (standard deviation / mean)
    bf16_grads: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)  # constant → label and source
    fitted: Mapping[str, Mapping] = field(default_factory=dict)  # chip → {name, value, rows}

    def style(self, fp8: bool, imbalance: float | None = None, **changes: Any) -> Style:
        """How this stack runs a layer's operators; `changes` win."""
        values: dict[str, Any] = dict(
            attention="unfused" if self.attention == "unfused" else "flash",
            fusion=self.fusion,
            loss=self.loss,
            dropout=self.dropout,
            fp8=fp8,
            fp8_passes=self.fp8_passes,
            accumulate_fused=self.accumulate_fused,
            node_limited=self.node_limited,
            dedup=self.dedup,
            router_passes=self.router_passes,
            grouped=self.grouped,
            imbalance=self.imbalance if imbalance is None else imbalance,
        )
        return Style(**{**values, **changes})

    def scalar(self, chip: Chip, name: str, default: float) -> float:
        """The fitted value called `name` for this chip, or for another bin of it (910B2 for 910B), else `default`."""
        bin_of = chip.name.rstrip("0123456789")
        bins = [f for other, f in self.fitted.items() if len(bin_of) >= 4 and other.rstrip("0123456789") == bin_of]
        fit = self.fitted.get(chip.name) or (bins[0] if bins else None)
        return float(fit["value"]) if fit and fit.get("name") == name else default

    def kernels(self, chip: Chip) -> Kernels:
        """Kernel times of this stack on a chip, fitted where a fit exists."""
        kernel = best_attention(chip) if self.attention in ("unfused", "auto") else self.attention
        forward, backward, half, _ = attention_shares(kernel, chip)
        cores = 1.0 - self.comm_cores
        return _kernels(
            chip_key(chip),
            forward,
            backward,
            half,
            forward / attention_shares(best_attention(chip), chip)[0],
            self.scalar(chip, "scale", self.scale or default_scale(chip, self.name)) * cores,
            ATTENTION_SCALE * cores,
            self.fp8_kernel,
        )


_CHIPS: dict[tuple[str, int], Chip] = {}


def chip_key(chip: Chip) -> tuple[str, int]:
    """A key for caches of what belongs to this chip object; the chip is kept, so that its identity stays its own."""
    key = (chip.name, id(chip))
    _CHIPS[key] = chip
    return key


@functools.lru_cache(maxsize=512)
def _kernels(key: tuple[str, int], *values: Any) -> Kernels:
    return Kernels(_CHIPS[key], *values)


def best_attention(chip: Chip) -> str:
    """The attention kernel that current stacks use: the vendor's fused one on Ascend, flash2 on A100, flash3 later."""
    name = chip.name.upper()
    if "huawei" in chip.vendor.lower() or "910" in name or "950" in name:
        return "npu_fusion"
    if any(new in name for new in ("H100", "H200", "H800", "H20", "GH200", "B200", "B300", "B100")):
        return "flash3"
    return "flash2"


def attention_shares(kernel: str, chip: Chip) -> tuple[float, float, float, str]:
    """(forward share, backward share, keys at half, label) of an attention kernel on a chip."""
    kernels = sorted({k for k, _ in ATTENTION})
    if kernel not in kernels:
        raise InputError(
            f"attention kernel {kernel!r}: not one of {', '.join(kernels)}, unfused{nearest(kernel, kernels)}"
        )
    name = chip.name.upper()
    for family in ("A100", "H100", *_FAMILY):
        if family in name and (kernel, _FAMILY.get(family, family)) in ATTENTION:
            return ATTENTION[kernel, _FAMILY.get(family, family)]
    return ATTENTION[kernel, ""]


@functools.cache
def _read() -> dict[str, Any]:
    return read_mapping(datafiles.data("stacks.yaml"))


@functools.cache
def read_fitted() -> dict[str, Any]:
    """stack → chip → its fitted scalar; empty before the first fit."""
    path = datafiles.data("fitted.yaml")  # written by `python -m sim.validation.fit --write`, which starts without it
    return read_mapping(path).get("fitted") or {} if path.exists() else {}


def default_scale(chip: Chip, stack: str = "") -> float:
    """Kernel speed / modelled speed expected of a stack without a fitted value on this chip (see
    `sim/cost/scales.py`).
    """
    return _default_scale(chip.name, product_of(stack)[0])


@functools.cache
def _default_scale(chip_name: str, product: str) -> float:
    fits = [
        (chip, product_of(stack)[0], float(fit["value"]))
        for stack, entry in read_fitted().items()
        for chip, fit in entry.items()
        if fit.get("name") == "scale"
    ]
    return expected(fits, chip_name, product)


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
    return Stack(**{**values, "name": key, "fitted": read_fitted().get(key) or {}})


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
    # its defaults, not its scalar: that belongs to the release it was fitted on
    return dataclasses.replace(load_stack(chosen), name=key, fitted={}), [
        f"software stack {str(name)[:60]!r} is not listed: taken as {chosen}, with the kernel speed expected of it"
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
