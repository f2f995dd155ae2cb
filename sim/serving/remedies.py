"""When a deployment does not fit: by how much it is over, and the mildest changes after which it would fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError
from sim.serving.deployment import Deployment
from sim.serving.formats import format_of
from sim.serving.memory import GIB, ChipMemory, chip_memory, shortfall
from sim.spec.hardware import cluster_from, list_clusters

WORTH = 0.9  # of the bytes: a format that saves less is no remedy


@dataclass(frozen=True)
class Remedy:
    """One change after which it fits, in words and as what would then run."""

    text: str
    deployment: Deployment
    context: float
    requests: float


def remedies(d: Deployment, context: float = 0.0, requests: float = 0.0, most: int = 3) -> list[Remedy]:
    """Up to `most` changes after which `requests` contexts per attention group fit, each of another kind and checked.

    Single changes come first, then fewer or shorter contexts, then two changes together, then changes with a smaller
    load.
    """
    search = _RemedySearch(d, context, requests, most)
    kinds = _changes(d)
    pairs = [
        [(f"{a} and {b}", {**x, **y}) for a, x in kinds[one] for b, y in kinds[two]]
        for one, two in itertools.combinations(kinds, 2)
    ]
    for options in kinds.values():
        search.offer_mildest(options)
    search.offer_smaller_load("", {})
    for options in pairs:
        search.offer_mildest(options)
    for options in (*kinds.values(), *pairs):
        for text, changes in options:
            search.offer_smaller_load(text, changes)
    return search.remedies[:most]


def _changes(d: Deployment) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Changes of the deployment by kind, mildest first: (words, fields)."""
    chip = d.cluster.chip
    chip_seqs = d.requests_of_a_pass
    by_memory = sorted((cluster_from(n).chip.memory_bytes.value, n) for n in list_clusters())
    return {
        "chips": _more_chips(d),
        "memory_share": [("gpu_memory_utilization 0.95", {"memory_share": 0.95})]
        if d.engine.activations_inside and d.usable_share < 0.95
        else [],
        "precision": [
            (f"precision {f} instead of {d.precision}", {"precision": f})
            for f in _narrower(d)
            if format_of(f, bool(d.model.experts)).expert_bytes < WORTH * d.format.expert_bytes
        ],
        "chip": [
            (f"{d.chips} × {cluster_from(n).chip.name} ({size / GIB:.0f} GiB)", {"cluster": cluster_from(n)})
            for size, n in by_memory
            if size > chip.memory_bytes.value
        ],
        "kv": [] if d.kv == "fp8" else [("KV cache in fp8", {"kv": "fp8"})],
        "max_num_seqs": [
            (f"max_num_seqs {n} instead of {chip_seqs}", {"max_num_seqs": n})
            for n in (512, 256, 128, 64, 32, 16)
            if n < chip_seqs
        ],
        "tp": [
            (f"attention_tp {t} instead of {d.attention_tp}", {"attention_tp": t})
            for t in (2, 4, 8, 16, 32, 64)
            if t > d.attention_tp
        ],
    }


def _more_chips(d: Deployment) -> list[tuple[str, dict[str, Any]]]:
    """More chips: in the node with attention over all of them where it was, then whole nodes."""
    node, name = d.cluster.chips_per_node, d.cluster.chip.name
    inside = [
        (f"{n} × {name} instead of {d.chips}", {"chips": n, "attention_tp": n // d.pp})
        for n in (d.chips * 2**i for i in range(1, 8))
        if n < node and d.groups == 1
    ]
    counts = sorted({math.ceil(d.chips * t / node) * node for t in (1.5, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)})
    return inside + [(f"{n} × {name} instead of {d.chips}", {"chips": n}) for n in counts if n > d.chips]


def _narrower(d: Deployment) -> tuple[str, ...]:
    """Formats of narrower weights that the chip's software runs, widest first."""
    if d.cluster.chip.vendor == "NVIDIA":
        return ("fp8", "awq")
    return ("w8a8", "w4a8") if "int8" in d.cluster.chip.peak_flops else ("fp8",)


class _RemedySearch:
    """Tries changes and keeps those that fit, until there are enough."""

    def __init__(self, d: Deployment, context: float, requests: float, most: int):
        self.d, self.context, self.requests, self.most = d, context, requests, most
        self.remedies: list[Remedy] = []

    def offer_mildest(self, options: list[tuple[str, dict[str, Any]]]) -> None:
        """Keep the first of one kind of change that fits."""
        for text, changes in options:
            if self._offer(text, changes, self.context, self.requests):
                return

    def offer_smaller_load(self, text: str, changes: dict[str, Any]) -> None:
        """Keep the change with fewer or with shorter contexts, as many or as long as then fit."""
        if len(self.remedies) >= self.most:
            return
        try:
            m = chip_memory(self.d.with_changes(**changes))
        except InputError:
            return
        lead, requests, context = text + " and " if text else "", self.requests, self.context
        if requests > 1 and 1 <= m.requests(context) < requests:
            fewer = m.requests(context)
            some = f"{fewer} request{'s' if fewer > 1 else ''} per attention group instead of {requests:g}"
            self._offer(lead + some, changes, context, fewer)
        shorter = m.longest_context(requests) if requests else 0
        if 1 <= shorter < context:
            self._offer(f"{lead}contexts of {shorter:,} tokens instead of {context:,.0f}", changes, shorter, requests)

    def _offer(self, text: str, changes: Mapping[str, Any], context: float, requests: float) -> bool:
        if len(self.remedies) >= self.most:
            return False
        try:
            changed = self.d.with_changes(**changes)
        except InputError:
            return False
        if shortfall(changed, context, requests) > 0:
            return False
        self.remedies.append(Remedy(text, changed, context, requests))
        return True


def require_fit(d: Deployment, context: float = 0.0, requests: float = 0.0) -> ChipMemory:
    """What a chip holds, when `requests` contexts of `context` tokens fit into each attention group.

    Raises:
        InputError: longer than the `max_model_len` that was given; or by how many GiB a chip is over, and changes that
            would fit.
    """
    if d.max_model_len and context > d.max_model_len:
        raise InputError(
            f"max_model_len={d.max_model_len:,}: requests of {context:,.0f} tokens, prompt and answer together, are "
            f"longer; give max_model_len: {math.ceil(context)} or shorter requests"
        )
    missing_bytes = shortfall(d, context, requests)
    if missing_bytes > 0:
        need = (
            f" with {requests:g} context{'s' if requests != 1 else ''} of {context:,.0f} tokens per attention group"
            if requests and context
            else ""
        )
        fits = (
            "; ".join(f"({i}) {r.text}" for i, r in enumerate(remedies(d, context, requests), 1))
            or "no single change; combine them"
        )
        m = chip_memory(d)
        kept = " and ".join(f"{size / GIB:.1f} GiB of {name}" for name, size in m.engine_parts.items())
        kept = f", of which the engine keeps {kept}" if kept else ""
        raise InputError(
            f"{d.model.name} in {d.precision} on {d.chips} × {d.cluster.chip.name}{need}: "
            f"{missing_bytes / GIB:.1f} GiB a chip over the {m.usable_bytes / GIB:.1f} GiB usable{kept} "
            f"({m.weights_bytes / GIB:.1f} of weights); would fit: {fits}"
        )
    return chip_memory(d)
