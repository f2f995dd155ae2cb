"""Facts about machines: chips, links, clusters. Every figure carries its value, range, source and confidence.

The files are in `data/chips` and `data/clusters`; human units there become SI here, once. An unknown chip is refused
with the nearest name: it is never silently another chip. A user's own chip or cluster is a mapping with the same keys.

    >>> chip = load_chip("910B2")
    >>> round(chip.peak_flops["bf16"].value / 1e12, 1), chip.memory_bytes.unit
    (353.9, 'B')
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_mapping
from sim.base.figure import Figure, figure, known_keys
from sim.base.plausible import plausible_figure
from sim.base.units import parse, whole
from sim.spec.hardware_fields import (
    CHIP,
    CHIP_KEYS,
    CHIP_TEXTS,
    CLUSTER,
    CLUSTER_DEFAULTS,
    CLUSTER_KEYS,
    TIER_KEYS,
    attention_points,
    matmul_points,
)

PRECISIONS = ("bf16", "fp16", "fp8", "int8", "fp4", "fp32")
TOPOLOGIES = ("mesh", "switch", "rail", "clos")
EVERYTHING = 10**8  # size of a tier that joins all chips there are


@dataclass(frozen=True)
class Chip:
    """One accelerator as software sees it (one rank). `peak_flops` is dense, per precision, in FLOP/s."""

    name: str
    peak_flops: Mapping[str, Figure]
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    power_w: Figure
    price_usd: Figure | None = None
    rent_usd_per_hour: Figure | None = None
    max_matmul_flops: Figure | None = None  # best measured bf16/fp16 matmul
    max_matmul_flops_fp8: Figure | None = None
    matmul_points: tuple[tuple[int, int, int, float], ...] = ()  # measured (m, n, k, FLOP/s)
    attention_points: tuple[
        tuple[int, int, int, float, float], ...
    ] = ()  # length, heads, width, FLOP/s, backward/forward
    host_op_s: Figure | None = None  # measured time to issue an operation of the forward pass under autograd
    host_backward: float = 0.0  # of the backward pass, as a share of that; 0: the stack's
    matmul_source: str = ""
    sustained: Figure | None = None  # speed of matmuls in a long run over short ones; None: fitted, or expected
    tables: str = ""  # the chip of data/measured whose kernels and links stand for this one's
    family: str = ""  # of chips with alike kernels: "ascend", "blackwell"; its long-run speed where no `tables` say so
    cores: int = 0  # that matmul tiles are spread over; 0: not published, 128 are assumed
    attention: str = "flash2"  # the attention kernel that current stacks use on it
    attention_as: str = ""  # the chip whose measured shares of that kernel hold for this one; "": those of any chip
    cluster: str = ""  # the file of data/clusters with the nodes it usually sits in
    failures_per_chip_hour: Figure | None = None
    denominators: tuple[tuple[str, float], ...] = ()  # peaks in use elsewhere for MFU: (who, FLOP/s)
    file: str = ""  # of data/chips, that it was read from or is `like`: what was fitted on that chip holds for this one
    vendor: str = ""
    notes: str = ""

    def peak(self, precision: str) -> Figure:
        """Dense peak at `precision`; a chip without that unit runs it at its bf16 rate (no speed-up is invented)."""
        if precision not in PRECISIONS:
            raise InputError(
                f"precision {precision!r}: not one of {', '.join(PRECISIONS)}{nearest(precision, PRECISIONS)}"
            )
        if precision in self.peak_flops:
            return self.peak_flops[precision]
        return self.peak_flops["bf16"] if "bf16" in self.peak_flops else self.peak_flops["fp16"]


@dataclass(frozen=True)
class Tier:
    """One level of the network, from the inside out.

    `bytes_per_s` is one way per chip with all its links of this tier in use. In a `mesh` every pair of the `size` chips
    has its own link, so a group of n chips uses n−1 of `links`; behind a switch any group has the whole rate.
    """

    name: str
    topology: str
    size: int
    bytes_per_s: Figure
    links: int
    latency_s: Figure
    efficiency: Figure
    oversubscription: float = 1.0
    sustained: Figure | None = None  # speed of matmuls in a long run over short ones; None: fitted, or expected
    tables: str = ""  # the chip of data/measured whose collectives inside a node stand for this tier's


@dataclass(frozen=True)
class Cluster:
    """Chips in nodes in a network. Prices and powers are per chip unless the name says otherwise."""

    name: str
    chip: Chip
    chips_per_node: int
    tiers: tuple[Tier, ...]
    num_chips: int
    host_bytes_per_s: Figure  # chip to host memory, one way (offload)
    host_memory_bytes: Figure  # per chip
    storage_bytes_per_s: Figure  # whole cluster, checkpoints
    host_power_w: Figure  # CPU, NIC, fans and switches, per chip
    pue: Figure
    electricity_usd_per_kwh: Figure
    system_price_usd: Figure | None = None  # whole system (chips, hosts, network) per chip
    notes: str = ""

    def tier(self, name: str) -> Tier:
        """The tier called `name`; InputError with those there are."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise InputError(f"cluster {self.name} has no tier {name!r}: it has {', '.join(t.name for t in self.tiers)}")


# ------------------------------------------------------------------ reading


def chip_from(raw: str | Mapping | Chip, name: str = "chip") -> Chip:
    """A chip by name, or from a mapping. `like: NAME` in a mapping starts from that chip and changes some figures."""
    if isinstance(raw, Chip):
        return raw
    if isinstance(raw, str):
        return _chip_of_file(raw) if raw.lower().endswith((".yaml", ".yml", ".json")) else load_chip(raw)
    if not isinstance(raw, Mapping):
        raise InputError(f"{name}: {raw!r} is not a chip; give a name from `data/chips` or a mapping of its figures")
    known_keys(raw, CHIP_KEYS, name)
    base = load_chip(str(raw["like"])) if "like" in raw else None
    values = _chip_values(raw, name)
    values["name"] = str(raw.get("name", f"{base.name} (changed)" if base else "unnamed chip"))
    if base is not None:
        if "peak_flops" in values:
            # The measured matmuls of the base were made at the base's peak: they do not describe the changed chip.
            if "bf16" in values["peak_flops"] and "max_matmul_flops" not in values:
                values |= {"max_matmul_flops": None, "matmul_points": values.get("matmul_points", ())}
            values["peak_flops"] = {**base.peak_flops, **values["peak_flops"]}
        return replace(base, **values)
    for key in ("peak_flops", "memory_bytes", "memory_bytes_per_s"):
        if key not in values:
            raise InputError(f"{name}: has no {key!r}; a chip needs peak_flops, memory_bytes and memory_bytes_per_s")
    values.setdefault("power_w", Figure(500.0, 300.0, 1000.0, "W", "not given: a common accelerator board", "assumed"))
    return Chip(**values)


@functools.cache
def _chip_of_file(path: str) -> Chip:
    """The chip of a file in the format of data/chips, such as `minglm probe` writes."""
    if not Path(path).is_file():
        raise InputError(f"chip {path!r}: no such file; make one with minglm probe, or give a name from data/chips")
    return chip_from({"name": Path(path).stem, **read_mapping(Path(path))}, path)


def _chip_values(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of a `Chip` that a mapping gives, checked, in SI units."""
    values: dict[str, Any] = {
        key: plausible_figure(raw[key], dimension, key, f"{name}.{key}")
        for key, dimension in CHIP.items()
        if raw.get(key) is not None
    }
    if "peak_flops" in raw:
        peaks = raw["peak_flops"]
        if not isinstance(peaks, Mapping):
            peaks = {"bf16": peaks}
        known_keys(peaks, PRECISIONS, f"{name}.peak_flops")
        values["peak_flops"] = {
            p: plausible_figure(v, "flops", "peak_flops", f"{name}.peak_flops.{p}") for p, v in peaks.items()
        }
        if not {"bf16", "fp16"} & set(values["peak_flops"]):
            raise InputError(
                f"{name}.peak_flops: needs bf16 or fp16 at least; give the dense bf16 peak such as '312 TFLOPS'"
            )
    if "matmul_points" in raw:
        values["matmul_points"] = matmul_points(raw["matmul_points"], name)
    if "attention_points" in raw:
        values["attention_points"] = attention_points(raw["attention_points"], name)
    if "host_backward" in raw:
        values["host_backward"] = parse(raw["host_backward"], "ratio", f"{name}.host_backward", low=0.0)
    if "denominators" in raw:
        if not isinstance(raw["denominators"], Mapping):
            raise InputError(
                f"{name}.denominators: must map who uses a peak to that peak, such as {{paper: 354 TFLOPS}}"
            )
        values["denominators"] = tuple(
            (str(who), parse(v, "flops", f"{name}.denominators")) for who, v in raw["denominators"].items()
        )
    if "cores" in raw:
        values["cores"] = whole(raw["cores"], f"{name}.cores", 1)
    values |= {key: str(raw[key]) for key in CHIP_TEXTS if key in raw}
    return values


def tier_from(raw: Mapping, name: str) -> Tier:
    """A tier from a mapping; `size` may be left out for the outermost, which then joins any number of chips."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{name}: {raw!r} is not a tier; give name, topology, size, bytes_per_s")
    known_keys(raw, TIER_KEYS, name)
    topology = raw.get("topology", "switch")
    if topology not in TOPOLOGIES:
        raise InputError(
            f"{name}.topology {topology!r}: not one of {', '.join(TOPOLOGIES)}{nearest(str(topology), TOPOLOGIES)}"
        )
    if "bytes_per_s" not in raw:
        raise InputError(f"{name}: has no 'bytes_per_s'; give the one-way rate per chip, such as '200 Gbps'")
    if topology == "mesh" and "size" not in raw:
        raise InputError(
            f"{name}: a mesh needs its size (how many chips are linked pair by pair); give for example size: 8"
        )
    size = whole(raw.get("size", EVERYTHING), f"{name}.size", low=2, high=EVERYTHING)
    oversubscription = parse(raw.get("oversubscription", 1.0), "ratio", f"{name}.oversubscription", low=1.0, high=1e4)
    return Tier(
        name=str(raw.get("name", topology)),
        topology=topology,
        size=size,
        bytes_per_s=figure(raw["bytes_per_s"], "bytes_per_s", f"{name}.bytes_per_s"),
        links=whole(raw.get("links", size - 1 if topology == "mesh" else 1), f"{name}.links", high=10**6),
        latency_s=figure(raw.get("latency_s", "5 us"), "time", f"{name}.latency_s", positive=False),
        efficiency=_share(
            figure(
                raw.get(
                    "efficiency",
                    {
                        "value": 0.8,
                        "low": 0.6,
                        "high": 0.95,
                        "source": "common share of line rate reached by large messages",
                        "confidence": "assumed",
                    },
                ),
                "ratio",
                f"{name}.efficiency",
            ),
            f"{name}.efficiency",
        ),
        oversubscription=oversubscription,
        tables=str(raw.get("tables", "")),
    )


def _share(raw: Figure, name: str) -> Figure:
    if raw.high > 1:
        raise InputError(f"{name}: {raw.high:g} is more than all of the link; give a share of at most 1")
    return raw


def cluster_from(raw: str | Mapping | Cluster, name: str = "cluster") -> Cluster:
    """A cluster by name, or from a mapping with the keys of the files in `data/clusters` (`like:` starts from one)."""
    if isinstance(raw, Cluster):
        return raw
    if isinstance(raw, str):
        return load_cluster(raw)
    if not isinstance(raw, Mapping):
        raise InputError(
            f"{name}: {raw!r} is not a cluster; give a name from `data/clusters` or a mapping of its figures"
        )
    known_keys(raw, CLUSTER_KEYS, name)
    base = load_cluster(str(raw["like"])) if "like" in raw else None
    values = _cluster_values(raw, name)
    values["name"] = str(raw.get("name", f"{base.name} (changed)" if base else "unnamed cluster"))
    if base is not None:
        return replace(base, **values)
    for key in ("chip", "tiers"):
        if key not in values:
            raise InputError(
                f"{name}: has no {key!r}; a cluster needs a chip, chips_per_node and tiers (or like: a known cluster)"
            )
    values.setdefault("chips_per_node", 8)
    if "num_chips" not in values:
        outer = values["tiers"][-1].size
        values["num_chips"] = outer if outer < EVERYTHING else values["chips_per_node"]
    for key, default in CLUSTER_DEFAULTS.items():
        values.setdefault(
            key,
            replace(figure(default, CLUSTER[key], f"{name}.{key}"), source="default for a cluster that does not say"),
        )
    return Cluster(**values)


def _cluster_values(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of a `Cluster` that a mapping gives, checked, in SI units."""
    values: dict[str, Any] = {}
    if "chip" in raw:
        values["chip"] = chip_from(raw["chip"], f"{name}.chip")
    if "chips_per_node" in raw:
        values["chips_per_node"] = whole(raw["chips_per_node"], f"{name}.chips_per_node", high=100_000)
    if "chips" in raw:
        values["num_chips"] = whole(raw["chips"], f"{name}.chips", high=10**8)
    if "tiers" in raw:
        tiers = raw["tiers"]
        if not isinstance(tiers, list) or not tiers:
            raise InputError(f"{name}.tiers: must be a list of at least one tier, inner to outer")
        values["tiers"] = tuple(tier_from(t, f"{name}.tiers[{i}]") for i, t in enumerate(tiers))
        if any(a.size > b.size for a, b in itertools.pairwise(values["tiers"])):
            raise InputError(f"{name}.tiers: sizes must grow from the inner tier to the outer; order them inner first")
    for key, dimension in CLUSTER.items():
        if raw.get(key) is not None:
            values[key] = plausible_figure(raw[key], dimension, key, f"{name}.{key}")
    if "pue" in values and values["pue"].low < 1:
        raise InputError(
            f"{name}.pue: {values['pue'].low:g} is below 1 (a building cannot use less than its machines); give 1 or "
            "more"
        )
    if "notes" in raw:
        values["notes"] = str(raw["notes"])
    return values


def cluster_for_chip(raw: str | Mapping | Chip) -> Cluster:
    """The usual nodes and network of a chip, for a row or scenario that names a chip only.

    Those that its `cluster` names (a changed chip has the one of the chip it is `like`); otherwise a common node of 8
    on a switch with 200G a chip, whose every figure says that it is assumed.
    """
    chip = chip_from(raw)
    if chip.cluster:
        return replace(load_cluster(chip.cluster), chip=chip)
    assumed = {
        "confidence": "assumed",
        "source": "no cluster is named: a common node of 8 on a switch with 200G a chip",
    }
    return cluster_from(
        {
            "name": f"common nodes of {chip.name}",
            "chips_per_node": 8,
            "notes": "network assumed: name a cluster or give tiers to replace it",
            "tiers": [
                {
                    "name": "node",
                    "topology": "switch",
                    "size": 8,
                    "bytes_per_s": {"value": "300 GB/s", "low": "100 GB/s", "high": "900 GB/s", **assumed},
                },
                {
                    "name": "network",
                    "topology": "rail",
                    "bytes_per_s": {"value": "200 Gbps", "low": "100 Gbps", "high": "400 Gbps", **assumed},
                },
            ],
            "chip": chip,
        }
    )


def usual_clusters() -> dict[str, str]:
    """Chip → cluster, of the chips in data/chips that say which nodes they usually sit in."""
    return {name: cluster for name in list_chips() if (cluster := load_chip(name).cluster)}


# ------------------------------------------------------------------ by name


def _names(folder: str) -> dict[str, Path]:
    return datafiles.catalogue(folder, ".yaml")


@functools.cache
def _aliases(folder: str) -> dict[str, str]:
    """Lower-case name or alias → file stem."""
    stems: dict[str, str] = {}
    for stem, path in _names(folder).items():
        stems[stem.lower()] = stem
        for alias in read_mapping(path).get("aliases", ()):
            stems.setdefault(str(alias).lower(), stem)
    return stems


def _find(folder: str, name: str, what: str) -> tuple[str, Path]:
    known = _aliases(folder)
    stem = known.get(str(name).strip().lower())
    if stem is None:
        names = _names(folder)
        shown = str(name) if len(str(name)) <= 60 else str(name)[:57] + "…"
        hint = nearest(shown.lower(), known)
        chip = _aliases("chips").get(str(name).strip().lower()) if folder == "clusters" else None
        if chip is not None and (usual := _load_chip(chip).cluster):
            hint = f" (a chip; it usually sits in {usual})"
        raise InputError(
            f"{what} {shown!r}: not known{hint}; known: {', '.join(names)}; "
            f"or describe it in the file (see {datafiles.where(folder)})"
        )
    return stem, _names(folder)[stem]


@functools.cache
def _load_chip(stem: str) -> Chip:
    values = read_mapping(datafiles.data("chips", f"{stem}.yaml"))
    return replace(chip_from({"name": stem, **values}, f"chips/{stem}"), file=stem)


@functools.cache
def _load_cluster(stem: str) -> Cluster:
    values = read_mapping(datafiles.data("clusters", f"{stem}.yaml"))
    return cluster_from({"name": stem, **values}, f"clusters/{stem}")


def load_chip(name: str) -> Chip:
    """The chip called `name` (or one of its aliases); InputError with the nearest name when unknown."""
    return _load_chip(_find("chips", name, "chip")[0])


def load_cluster(name: str) -> Cluster:
    """The cluster called `name`; InputError with the nearest name when unknown."""
    return _load_cluster(_find("clusters", name, "cluster")[0])


def list_chips() -> list[str]:
    """Names of the chips in data/chips."""
    return list(_names("chips"))


def list_clusters() -> list[str]:
    """Names of the clusters in data/clusters."""
    return list(_names("clusters"))
