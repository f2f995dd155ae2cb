"""Which plans a search looks at: a finite set of widths and switches, listed before anything is costed.

The set is explicit, so "exhaustive" has a meaning: every combination of the axes below that the rules of
`sim.spec.plan.check` and `sim.training.schedules.check` allow, on at most the chips at hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError, nearest
from sim.planner.candidate import Candidate
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import OFFLOADED, OPTIMIZERS, RECOMPUTE, SCHEDULES, Plan
from sim.training.schedules import CHUNKS

OFFLOADS = ("activation_offload", "offload")  # fields of `Plan` that put something in host memory
VIRTUAL = (*range(2, 11), 12, 13, 16, 20)  # virtual stages of interleaving
# Shares of the cluster that a plan may use, where the batch does not have to divide exactly.
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
MOST_TOKENS = 65_536  # of a micro-batch on more chips than these
FEW_CHIPS = 256  # up to here every micro-batch that divides the batch is tried
FIXED = (
    "sp",
    "hsdp",
    "recompute_modules",
    "offload",
    "activation_offload",
    "optimizer",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "overlap_tp",
    "overlap_p2p",
    "overlap_all_to_all",
    "precision_aware_optimizer",
)


AXES = ("tp", "pp", "cp", "ep", "etp", "micro_batch", "zero", "recompute", "mtp_before_head")


@dataclass(frozen=True)
class Space:
    """Axes of a search. `pipelines`: (schedule, virtual stages); `switches`: settings of further `Plan` fields.

    tolerance: the batch may differ by this share, so that replicas that do not divide it can be used; 0 keeps it exact.
    """

    tp: tuple[int, ...]
    pp: tuple[int, ...]
    cp: tuple[int, ...]
    ep: tuple[int, ...]
    etp: tuple[int, ...]
    micro_batch: tuple[int, ...]
    zero: tuple[int, ...]
    recompute: tuple[str, ...]
    pipelines: tuple[tuple[str, int], ...]
    switches: tuple[Mapping[str, object], ...] = ({},)
    mtp_before_head: tuple[int, ...] = (0,)
    dp: tuple[int, ...] = ()  # (): whatever fills the chips
    stages: tuple[int, ...] = ()  # (): balanced
    tolerance: float = 0.0
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        for axis in (*AXES, "pipelines", "switches"):
            if not getattr(self, axis):
                raise InputError(f"search axis {axis} is empty: nothing to search; give at least one value")
        if not 0.0 <= self.tolerance < 0.5:
            raise InputError(
                f"batch tolerance {self.tolerance:g}: must be a share from 0 to 0.5; give for example 0.02"
            )


def _values(value: object) -> list[Any]:
    """A pinned value as the list of one, a list of values as it is."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _tensor_widths(model: ModelSpec, cluster: Cluster, chips: int) -> list[int]:
    """Divisors of a node's chips that divide the heads."""
    inner = cluster.tiers[0].size
    node = min(inner, max(cluster.chips_per_node, 1)) if inner < 1024 else cluster.chips_per_node
    return [
        t
        for t in divisors(node)
        if t <= chips
        and model.heads % t == 0
        and (model.attention != "gqa" or model.kv_heads % t == 0 or t % model.kv_heads == 0)
    ]


def _even_counts(model: ModelSpec, mtp: bool) -> set[int]:
    """Layers that a pipeline may divide evenly: with and without the two ends and the prediction depths counted."""
    return {model.layers, model.layers + 2, model.layers + 2 + (model.mtp_depth if mtp else 0)}


def _pipeline_widths(model: ModelSpec, chips: int, mtp: bool) -> list[int]:
    """Up to ten stages any number, then powers of two and what divides the layers."""
    even = _even_counts(model, mtp)
    most = min(model.layers, chips, 128)
    return [p for p in range(1, most + 1) if p <= 10 or p & (p - 1) == 0 or any(n % p == 0 for n in even)]


def _pipelines(model: ModelSpec, schedules: tuple[str, ...] | None, pp: list[int]) -> list[tuple[str, int]]:
    """(schedule, virtual stages) to try; chunks need not come out equal."""
    names = tuple(schedules or (s for s in SCHEDULES if s != "gpipe"))  # gpipe: 1F1B's bubble with more memory
    for name in names:
        if name not in SCHEDULES:
            raise InputError(f"schedule {name!r}: not one of {', '.join(SCHEDULES)}{nearest(str(name), SCHEDULES)}")
    virtual = [v for v in VIRTUAL if any(p > 1 and p * v <= model.layers + 2 for p in pp)]
    return [(s, v) for s in names for v in (virtual if CHUNKS[s] is None else [CHUNKS[s] or 1])]


def _with_chunks(pipelines: list[tuple[str, int]], virtual: list[int], any_schedule: bool) -> list[tuple[str, int]]:
    """The pipelines with as many chunks a rank as `virtual` names; all where it names none."""
    if not virtual:
        return pipelines
    free = [s for s in dict(pipelines) if CHUNKS[s] is None] or ["interleaved"] * any_schedule
    out = [(s, v) for s, v in pipelines if CHUNKS[s] is not None and v in virtual]
    out += [(s, v) for s in free for v in virtual if v > 1]
    if not out:
        raise InputError(f"vpp={virtual[0]}: no schedule of the search has so many chunks a rank; leave vpp out")
    return out


def _switches(fixed: Mapping[str, object], axes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every setting of the further `Plan` fields that are pinned or searched."""
    out: list[dict[str, Any]] = [{}]
    for key, value in fixed.items():
        if key not in FIXED:
            raise InputError(
                f"search key {key!r}: not known{nearest(str(key), (*axes, *FIXED))}; known: "
                f"{', '.join((*axes, *FIXED))}"
            )
        if key == "optimizer" and value not in OPTIMIZERS:
            raise InputError(
                f"optimizer {value!r}: not one of {', '.join(OPTIMIZERS)}{nearest(str(value), OPTIMIZERS)}"
            )
        values = value if isinstance(value, (tuple, list)) and key != "recompute_modules" else [value]
        out = [{**s, key: v} for s in out for v in values]
    return out


def _with_offloads(settings: list[dict[str, Any]], fixed: Mapping[str, object]) -> list[dict[str, Any]]:
    """The settings, and each with what is not pinned of `OFFLOADS` in host memory, little first."""
    free = [key for key in OFFLOADS if key not in fixed]
    ways = [some for n in range(len(free) + 1) for some in itertools.combinations(free, n)]
    return [{**s, **dict.fromkeys(away, True)} for away in ways for s in settings]


def lighter(switches: tuple[Mapping[str, Any], ...]) -> list[frozenset[int]]:
    """For each setting the places of those that differ in nothing but that less of `OFFLOADS` lies in host memory.

    Copies to the host take time or none, never less: a setting is a plan of the search only where none of these fits.
    """
    away = [frozenset(key for key in OFFLOADS if s.get(key)) for s in switches]
    rest = [{k: v for k, v in s.items() if k not in OFFLOADS} for s in switches]
    places = range(len(switches))
    return [frozenset(j for j in places if rest[j] == rest[i] and away[j] < away[i]) for i in places]


def _micro_batches(chips: int, seq: int, batch: int, tolerance: float) -> list[int]:
    """Powers of two up to 16 sequences or 64K tokens; on few chips, where people fill the memory with short rows,
    whatever divides the batch."""
    if chips <= FEW_CHIPS and not tolerance:
        return divisors(batch)
    most = min(batch, max(16, MOST_TOKENS // seq))
    return [2**k for k in range(most.bit_length())]


def default_space(
    model: ModelSpec,
    cluster: Cluster,
    seq: int,
    batch: int,
    *,
    tolerance: float = 0.0,
    fixed: Mapping[str, object] | None = None,
    mtp: bool = True,
    unfused: bool = True,
) -> Space:
    """Every width that frameworks accept for this model on this machine.

    tp: divisors of a node's chips that divide the heads. pp: up to ten, powers of two, and what divides the layers with
    or without the two ends counted; chunks need not hold as many layers. cp: powers of two with at least 2,048 tokens a
    chip. ep: divisors of the experts. etp: 1 or tp. micro_batch: powers of two up to 16 sequences or 64K tokens, on few
    chips every divisor of the batch. Activations and optimiser states in host memory: where the plan without does not
    fit. zero: 0, 1, 3; 2 is left out, as its reduction after every micro-batch is not
    priced (`zero=(0, 1, 2, 3)` adds it). `fixed` pins axes (`tp=8`), dp, vpp, schedule, stages or other fields of
    `Plan`; a tuple or list of values searches those.
    """
    fixed, chips = dict(fixed or {}), cluster.num_chips
    schedules: tuple[str, ...] | None = None
    tp, pp = _tensor_widths(model, cluster, chips), _pipeline_widths(model, chips, mtp)
    depths = mtp and model.mtp_modules
    axes: dict[str, list[Any]] = {
        "tp": tp,
        "pp": pp,
        "cp": [c for c in (2**k for k in range(8)) if c <= chips and seq % c == 0 and (c == 1 or seq // c >= 2048)],
        "ep": [e for e in divisors(model.experts) if e <= chips] if model.experts else [1],
        "etp": sorted({1, *tp}) if model.experts else [1],
        "micro_batch": _micro_batches(chips, seq, batch, tolerance),
        "zero": [0, 1, 3],
        # without scores in memory there is nothing for "selective" to recompute
        "recompute": [r for r in RECOMPUTE if r != "selective" or unfused],
        "mtp_before_head": [0, 1] if depths else [0],
    }
    known = (*axes, "dp", "vpp", "schedule", "stages")
    for axis in axes:
        if axis in fixed:
            axes[axis] = _values(fixed.pop(axis))
    dp, virtual = _values(fixed.pop("dp", ())), _values(fixed.pop("vpp", ()))
    if "schedule" in fixed:
        schedules = tuple(_values(fixed.pop("schedule")))
    stages: tuple[int, ...] = tuple(_values(fixed.pop("stages", ())))
    pipelines = _with_chunks(_pipelines(model, schedules, axes["pp"]), virtual, schedules is None)
    switches = _with_offloads(_switches(fixed, known), fixed)
    space = Space(
        **{k: tuple(v) for k, v in axes.items()},
        pipelines=tuple(pipelines),
        switches=tuple(switches),
        tolerance=tolerance,
        dp=tuple(dp),
        stages=stages,
    )
    for axis in (*AXES, "dp"):
        for value in getattr(space, axis):
            Plan(**{axis: value})  # refuses what no plan takes
    for switch in switches:
        Plan(**switch)
    if stages and sum(stages) != model.layers:
        raise InputError(f"stages sum to {sum(stages)}: must be the model's {model.layers} layers; leave stages out")
    if not model.experts and (1 not in space.ep or 1 not in space.etp):
        raise InputError(
            f"ep={space.ep[0]}, etp={space.etp[0]}: {model.name} has no experts; give ep=1 and etp=1, or leave them out"
        )
    for axis, of, what in (
        ("tp", model.heads, "attention heads"),
        ("ep", model.experts or 1, "experts"),
        ("cp", seq, "tokens of a sequence"),
    ):
        refused = [v for v in getattr(space, axis) if of % v]
        if len(refused) == len(getattr(space, axis)):
            raise InputError(
                f"{axis}={refused[0]}: does not divide the {of:,} {what}; give one of "
                f"{', '.join(map(str, divisors(of)[:12]))}"
            )
    return space


def has_shape(space: Space, model: ModelSpec, pp: int, schedule: str, vpp: int, mtp_before_head: int) -> bool:
    """Whether a pipeline of this shape is searched: enough layers for its chunks, and as many as pinned stages say."""
    n = pp if schedule == "dualpipe" else pp * vpp
    if mtp_before_head >= n or (space.stages and len(space.stages) != n):
        return False
    if space.stages and mtp_before_head and sum(space.stages[n - mtp_before_head :]):
        return False
    if pp == 1:
        return schedule == "1f1b"
    return n <= model.layers + 2 and not (schedule == "dualpipe" and pp % 2)


def replicas(space: Space, batch: int, micro_batch: int, most: int, multiple: int) -> list[tuple[int, int]]:
    """(dp, batch in sequences) to try, most replicas first: `dp` is a multiple of `multiple` and at most `most`.

    A pinned dp takes the batch nearest to what is asked. An exact batch takes every dp that divides it. With a
    tolerance, the most replicas within each of `shares` of the cluster whose micro-batches come out at a batch near
    enough are added.
    """
    options = {}
    if space.dp:
        for dp in space.dp:
            size = max(1, round(batch / (dp * micro_batch))) * dp * micro_batch
            near = space.tolerance or size == batch  # a pinned plan takes the nearest batch in tokens that divides
            if dp <= most and dp % multiple == 0 and near:
                options[dp] = size
        return sorted(options.items(), reverse=True)
    if batch % micro_batch == 0:
        options = {d: batch for d in divisors(batch // micro_batch) if d <= most and d % multiple == 0}
    if space.tolerance:
        options = {d: b for d, b in options.items() if d * 8 >= most}
        for share in space.shares:
            widest = int(most * share)
            first = max(1, math.ceil(batch * (1 - space.tolerance) / (micro_batch * widest))) if widest else 0
            for m in (first, first + 1) if first else ():
                dp = (
                    min(
                        widest, int(batch * (1 + space.tolerance) / (micro_batch * m)), round(batch / (micro_batch * m))
                    )
                    // multiple
                    * multiple
                )
                if dp and abs(dp * m * micro_batch / batch - 1) <= space.tolerance:
                    options.setdefault(dp, dp * m * micro_batch)
    return sorted(options.items(), reverse=True)


def goes_with(setting: Mapping[str, Any], recompute: str) -> bool:
    """Whether a setting of the further fields can be had with that kind of recomputation."""
    return not setting.get("activation_offload") or recompute in OFFLOADED


def shards(zero: int, ranks: int) -> bool:
    """Whether a stage of ZeRO over so many ranks is a plan of its own: over one rank there is nothing to shard, but the
    stacks of stage 3 keep weights in fp32 alone (`sim.cost.memory.state_bytes`), two bytes less a parameter."""
    return zero in (0, 3) or ranks > 1


def enough_micro_batches(schedule: str, pp: int, m: int) -> bool:
    """The schedules' own rules (`sim.training.schedules.check`)."""
    if schedule == "interleaved":
        return m >= pp
    if schedule in ("dualpipe", "dualpipe-v"):
        return m >= 2 * pp and (schedule != "dualpipe" or m % 2 == 0)
    return schedule != "zb-v" or m >= 2 * pp - 1


def every(space: Space, model: ModelSpec, chips: int, batch: int) -> Iterator[Candidate]:
    """All candidates, without any pruning or cost: what a search must not miss."""
    for tp, cp, ep, etp in itertools.product(space.tp, space.cp, space.ep, space.etp):
        if etp not in (1, tp):
            continue
        multiple = ep * etp // math.gcd(ep * etp, tp * cp)
        for pp, (schedule, vpp), micro, ahead in itertools.product(
            space.pp, space.pipelines, space.micro_batch, space.mtp_before_head
        ):
            most = chips // (tp * cp * pp)
            if not most or not has_shape(space, model, pp, schedule, vpp, ahead):
                continue
            for dp, size in replicas(space, batch, micro, most, multiple):
                if not enough_micro_batches(schedule, pp, size // (dp * micro)):
                    continue
                for recompute, zero, switch in itertools.product(
                    space.recompute, space.zero, range(len(space.switches))
                ):
                    if shards(zero, dp * cp) and goes_with(space.switches[switch], recompute):
                        yield Candidate(
                            tp,
                            cp,
                            ep,
                            etp,
                            micro,
                            recompute,
                            pp,
                            vpp,
                            schedule,
                            dp,
                            zero,
                            size,
                            switch,
                            ahead,
                            space.stages,
                        )
