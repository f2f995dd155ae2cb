"""The serving scenario that flags make: from nothing, or on top of a file's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TypeAlias

ModelSource: TypeAlias = str | Mapping  # a name, or its dimensions


def scenario_from(args: argparse.Namespace, rent: float | None) -> dict:
    """The scenario's document. `rent`: price of a chip-hour in USD, None for the chip's own."""
    from sim.serving.scenario import load

    base = load(args.scenario) if args.scenario else _default()
    model = args.model or base["model"]
    prices = dict(base.get("prices") or {})
    if rent is not None:
        prices["rent"] = rent
    if args.token_price:
        prices["input"], prices["output"] = args.token_price
    document = {
        **base,
        "model": model,
        "decode": _decode(args, base["decode"], model),
        "workload": _workload(args, base["workload"]),
        "prices": prices,
        "mode": args.mode or base.get("mode", "hybrid"),
    }
    target = dict(base.get("target") or {}) | _stated(ttft=args.ttft, tpot=args.tpot)
    return {**document, "target": target} if target else document


def _default() -> dict:
    return {
        "version": 1,
        "kind": "serving",
        "name": "from the command line",
        "model": "glm5",
        "decode": {"cluster": "dgx_h200"},
        "workload": {},
    }


def _decode(args: argparse.Namespace, base: Mapping, model: ModelSource) -> dict:
    decode = dict(base) | _stated(
        cluster=args.cluster[0] if args.cluster else None,
        chips=args.chips,
        precision=args.precision,
        kv=args.kv,
        attention_tp=args.tp,
        pp=args.pp,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        memory_share=args.gpu_memory_utilization,
        drafts=args.num_speculative_tokens,
        accept_length=args.acceptance_length,
        stack=args.stack,
        instances=args.instances,
    )
    if args.tp is None and not args.scenario:
        decode["attention_tp"] = _attention_tp(decode, model)
    return decode


def _attention_tp(decode: Mapping, model: ModelSource) -> int:
    """Attention over all chips of an instance inside a node, else data parallel."""
    from sim.spec.hardware import cluster_from
    from sim.spec.model_loader import load_model

    node = cluster_from(decode["cluster"]).chips_per_node
    chips = decode.get("chips", node) // max(int(decode.get("pp", 1)), 1)
    return chips if 1 <= chips <= node and load_model(model).heads % chips == 0 else 1


def _workload(args: argparse.Namespace, base: Mapping) -> dict:
    workload = dict(base) | _stated(
        prompt=args.prompt,
        output=args.output,
        cached_share=args.prefix_cache_hit_rate,
        requests=args.requests,
    )
    if args.cv is not None:
        for key, default in (("prompt", 1024), ("output", 256)):
            length = workload.get(key, default)
            workload[key] = {"mean": length["mean"] if isinstance(length, dict) else length, "cv": args.cv}
    if args.rate is not None or args.concurrency is not None:
        workload = {k: v for k, v in workload.items() if k not in ("rate", "concurrency")}
        workload |= _stated(rate=args.rate, concurrency=args.concurrency)
    elif "rate" not in workload and "concurrency" not in workload:
        workload["concurrency"] = 8
    return workload


def _stated(**values: object) -> dict:
    """Those values that the command line gives."""
    return {name: value for name, value in values.items() if value is not None}
