"""Rates of a rollout engine and of a trainer from a chip and a model: the rooflines of `sim.serving.step_time` as a
decode curve.

The seconds of a decode step are nearly straight in the cached tokens of the batch, so each batch size becomes a base
and a slope through two contexts around the mean one (with DeepSeek Sparse Attention the slope is the indexer's).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.rollout.decode_curve import DecodeCurve
from sim.serving.calibration import fitted
from sim.serving.defaults import default_stack
from sim.serving.deployment import Deployment
from sim.serving.memory import chip_memory
from sim.serving.remedies import require_fit
from sim.serving.stacks import ServingStack, load_stack
from sim.serving.step_time import decode_step, prefill
from sim.spec.hardware import Cluster, cluster_from, list_clusters
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

ModelLike: TypeAlias = str | Path | Mapping[str, Any] | ModelConfig | ModelSpec
ClusterLike: TypeAlias = str | Mapping[str, Any] | Cluster
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class EngineRates:
    """What a chip and a model give for one engine."""

    curve: DecodeCurve
    prefill_s_per_token: float
    kv_limit: float
    describe: str


def cluster_of(chip: ClusterLike) -> Cluster:
    """A cluster built of the chip of this name (the first by name), or the cluster of this name.

    Raises:
        InputError: no cluster has such a chip.
    """
    names = list_clusters()
    if str(chip) in names:
        return cluster_from(chip)
    with contextlib.suppress(InputError):
        return cluster_from(chip)
    wanted = str(chip).strip().lower().replace("-", "_").replace(" ", "_")
    chips: dict[str, Cluster] = {}
    for name in names:
        cluster = cluster_from(name)
        chips.setdefault(cluster.chip.name.lower().replace("-", "_").replace(" ", "_"), cluster)
    if wanted not in chips:
        raise InputError(
            f"chip {str(chip)[:40]!r}: no cluster of data/clusters has it"
            f"{nearest(wanted, [*chips, *names])}; give a cluster, such as dgx_h100"
        )
    return chips[wanted]


def engine_rates(
    model: ModelLike, cluster: ClusterLike, chips: int, context: float, prompt: float, options: Mapping[str, Any]
) -> EngineRates:
    """Decode curve, prefill and cache of `chips` chips that serve `model`.

    Args:
        context, prompt: mean tokens of a response and of a prompt.
        options: precision, kv, attention_tp, drafts, accept_length, stack, memory_share where known.
    Raises:
        InputError: a model that does not fit, unknown names.
    """
    spec, place = load_model(model), cluster_of(cluster)
    values = {k: v for k, v in options.items() if v is not None}
    tp = values.pop("attention_tp", None) or _width(spec, chips, place.chips_per_node)
    stack = values.pop("stack", None)
    values.setdefault("precision", "bf16")
    d = fitted(
        Deployment.of(
            spec,
            place,
            chips,
            stack=load_stack(stack) if stack else _default_stack(place, tp == chips),
            attention_tp=tp,
            **values,
        )
    )
    require_fit(d, prompt + context, 1)
    low, high = max(1.0, 0.5 * context), max(2.0, 1.5 * context)
    points, slopes = [], []
    for b in BATCHES:
        running = b * d.groups
        near, far = (decode_step(d, b, prompt + c).total_s / d.tokens_per_step for c in (low, high))
        slope = max(0.0, (far - near) / ((high - low) * running))
        points.append((float(running), near - slope * running * (prompt + low)))
        slopes.append((float(running), slope))
    if any(s <= 0 for _, s in points):
        points = [(b, decode_step(d, b / d.groups, prompt + low).total_s / d.tokens_per_step) for b, _ in points]
        slopes = []
    count = max(1, round(8192 / max(prompt, 1)))
    fill = prefill(d, max(prompt, 1.0), 0.0, count)
    return EngineRates(
        DecodeCurve(tuple(points), tuple(slopes)),
        fill.total_s / (count * max(prompt, 1.0) * d.groups),
        chip_memory(d).kv_tokens * d.groups,
        d.describe(),
    )


def _default_stack(place: Cluster, tensor: bool) -> ServingStack:
    """Where none is named: as for an endpoint, but in a node of GPUs the vLLM that RL frameworks run."""
    return load_stack("vllm-sync") if tensor and place.chip.vendor == "NVIDIA" else default_stack(place, tensor)


def _width(spec: ModelSpec, chips: int, node: int) -> int:
    """Attention over all chips inside a node, else data parallel."""
    return chips if chips <= node and spec.heads % chips == 0 else 1


def train_seconds_per_token(
    model: ModelLike, cluster: ClusterLike, chips: int, mfu: float, seq: float, extra_forward: float = 0.0
) -> float:
    """Seconds of training per token on `chips` chips at a share `mfu` of the bf16 peak.

    extra_forward: forward passes beside the training one (reference or recomputed log-probs), a third of its FLOPs
        each.
    """
    spec, place = load_model(model), cluster_of(cluster)
    flops = spec.train_flops_per_token(max(1, round(seq)), causal=True) * (1.0 + extra_forward / 3.0)
    return flops / (place.chip.peak("bf16").value * mfu * chips)
