"""A serving scenario: deployments, load, target and prices in one file, run to one dict.

>>> result = run(load("serving_glm5_h200"), simulate_requests=False)
>>> result["memory"]["decode"]["contexts_that_fit"] > 0
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_document
from sim.base.figure import Figure
from sim.base.units import parse
from sim.serving.calibration import fitted
from sim.serving.defaults import default_stack, rent_of
from sim.serving.deployment import Deployment
from sim.serving.error import interval
from sim.serving.memory import GIB, chip_memory, shortfall
from sim.serving.remedies import require_fit
from sim.serving.simulate import Fleet, ServingResult, simulate
from sim.serving.stacks import load_stack
from sim.serving.step_time import MODES, decode_step, describe_parts, prefill
from sim.serving.workload import RequestLengths, ServingWorkload, number
from sim.spec.hardware import cluster_from

KEYS = {
    "version",
    "kind",
    "name",
    "question",
    "model",
    "decode",
    "prefill",
    "workload",
    "target",
    "prices",
    "mode",
    "seed",
    "assumptions",
}
_OTHER_ENGINES = ("vllm", "vllm-v0")  # vLLM of today, and of 2024, which profiles a whole prompt
_FLEET_KEYS = {"instances", "max_batch", "batch_tokens", "chunk_tokens", "transfer"}
_DEPLOYMENT_KEYS = {
    "cluster",
    "chips",
    "precision",
    "kv",
    "attention_tp",
    "drafts",
    "acceptance",
    "accept_length",
    "stack",
    "memory_share",
    "redundant_experts",
    "whole_experts",
    "pp",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    *_FLEET_KEYS,
}
PARTS = {
    "decode": _DEPLOYMENT_KEYS,
    "prefill": _DEPLOYMENT_KEYS,
    "workload": {
        "rate",
        "concurrency",
        "users",
        "requests",
        "prompt",
        "output",
        "cached_share",
        "arrivals",
        "warmup",
    },
    "target": {"ttft", "tpot"},
    "prices": {"rent", "input", "cached_input", "output", "utilisation"},
}
NEEDED = ("model", "decode", "workload")


def load(scenario: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A scenario by name, path or mapping; checked.

    Raises:
        InputError: no such file, an unknown key, or a missing part.
    """
    values, where = (dict(scenario), "scenario") if isinstance(scenario, Mapping) else _read(scenario)
    if values.get("kind") != "serving":
        raise InputError(
            f"{where}: kind={values.get('kind')!r} must be 'serving'; other scenarios go to clustersim run"
        )
    _check_keys(values, KEYS, where)
    if values.get("version", 1) != 1:
        raise InputError(f"{where}: version {values['version']!r} is not known; this program reads version 1")
    for key in NEEDED:
        if values.get(key) is None:
            raise InputError(f"{where}: has no {key!r}; a serving scenario needs model, decode and workload")
    for key, known in PARTS.items():
        if values.get(key) is not None:
            if not isinstance(values[key], Mapping):
                raise InputError(f"{where}: {key} must be a mapping of {', '.join(sorted(known))}")
            _check_keys(values[key], known, f"{where}: {key}")
    _check_values(values, where)
    values.setdefault("name", Path(where).stem)
    return values


def _read(scenario: str | Path) -> tuple[dict[str, Any], str]:
    """(values, path) of a scenario file, given by path or by a shipped one's name."""
    path = Path(scenario)
    if not path.suffix and not path.exists():
        shipped = [datafiles.data("scenarios") / f"{scenario}{suffix}" for suffix in (".yaml", ".json")]
        path = next((p for p in shipped if p.exists()), path)
    if not path.suffix and not path.exists():
        names = [n for n in datafiles.catalogue("scenarios", ".yaml") if n.startswith("serving_")]
        raise InputError(
            f"serving scenario {str(scenario)[:60]!r}: no such file or name{nearest(str(scenario), names)}; "
            f"known: {', '.join(names)}"
        )
    values = read_document(path)
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: must be a mapping with kind: serving, model, decode and workload")
    return dict(values), str(path)


def _check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise InputError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Names, texts, mode and seed; parts are checked by what is built of them."""
    for key in ("name", "question"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"{where}: {key}={values[key]!r} must be text")
    assumptions = values.get("assumptions")
    if assumptions is not None and not (isinstance(assumptions, list) and all(isinstance(a, str) for a in assumptions)):
        raise InputError(f"{where}: assumptions must be a list of sentences")
    mode, seed = values.get("mode", "hybrid"), values.get("seed", 0)
    if not isinstance(mode, str) or mode not in MODES:
        raise InputError(f"{where}: mode {mode!r} must be one of {', '.join(MODES)}{nearest(str(mode), MODES)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"{where}: seed={seed!r} must be a whole number")


def deployment(values: Mapping[str, Any], model: Any, mode: str = "hybrid") -> Deployment:
    """A deployment from a scenario's mapping; software as named, else by the chip. Hybrid mode: with its scalar.

    Raises:
        InputError: no cluster, or a value that cannot be.
    """
    fields = {k: v for k, v in values.items() if k not in _FLEET_KEYS}
    if "cluster" not in fields:
        raise InputError("deployment: has no 'cluster'; give a name from data/clusters, such as dgx_h200")
    cluster = cluster_from(fields.pop("cluster"))
    chips = fields.pop("chips", cluster.chips_per_node)
    tp, name = fields.get("attention_tp", 1), fields.pop("stack", None)
    stack = load_stack(name) if name else default_stack(cluster, tp == chips or fields.get("pp", 1) != 1)
    d = Deployment.of(model, cluster, chips, stack=stack, **fields)
    return fitted(d) if mode == "hybrid" else d


def run(
    scenario: str | Path | Mapping[str, Any], simulate_requests: bool = True, seed: int | None = None
) -> dict[str, Any]:
    """Memory, rooflines, simulated latencies, throughput and money of a scenario, JSON-ready.

    Raises:
        InputError: bad input, or a deployment that does not fit (with changes that would).
    """
    s = load(scenario)
    mode, work, decode, fill, max_batch = _parts(s)
    result: dict[str, Any] = {
        "name": s["name"],
        "question": s.get("question", ""),
        "mode": mode,
        "deployment": {"decode": decode.describe(), "prefill": fill.describe() if fill else "shared with decode"},
        **_without_queues(decode, fill, work, max_batch, mode),
        "constants": decode.stack.describe(),
        "assumptions": list(s.get("assumptions") or []) + ([] if s["decode"].get("stack") else _engines(decode, work)),
    }
    if not simulate_requests:
        return result
    fleet = _fleet(s, decode, fill, max_batch, mode)
    simulated = simulate(
        fleet,
        work,
        seed=s.get("seed", 0) if seed is None else seed,
        warmup=number(s["workload"].get("warmup", 0.1), "workload.warmup", 0.0, 0.9),
    )
    result["simulated"] = simulated.to_dict()
    if s.get("target"):
        limits = {k: parse(v, "time", f"target.{k}", low=1e-9) for k, v in s["target"].items()}
        p95 = {"ttft": simulated.ttft_s["p95"], "tpot": simulated.tpot_s["p95"]}
        result["target"] = {k: {"limit_s": v, "p95_s": p95[k], "met": p95[k] <= v} for k, v in limits.items()}
    result["money"] = _money(fleet, simulated, s.get("prices") or {}, work.cached_share)
    return result


def fleet_and_work(scenario: Mapping[str, Any]) -> tuple[Fleet, ServingWorkload]:
    """The instances and the requests of a scenario.

    Raises:
        InputError: bad input, or a deployment that does not fit (with changes that would).
    """
    s = load(scenario)
    mode, work, decode, fill, max_batch = _parts(s)
    require_fit(decode, RequestLengths.of(work.prompt).mean + RequestLengths.of(work.output).mean, 1)
    return _fleet(s, decode, fill, max_batch, mode), work


def _parts(s: Mapping[str, Any]) -> tuple[str, ServingWorkload, Deployment, Deployment | None, int]:
    """(mode, workload, deployment that decodes, one that reads prompts if it is another, largest batch)."""
    mode, work = s.get("mode", "hybrid"), _workload(s["workload"])
    decode = deployment(s["decode"], s["model"], mode)
    fill = deployment(s["prefill"], s["model"], mode) if s.get("prefill") else None
    return mode, work, decode, fill, int(number(s["decode"].get("max_batch", 256), "max_batch", 1))


def _workload(values: Mapping[str, Any]) -> ServingWorkload:
    if values.get("users") is not None and values.get("concurrency") is not None:
        raise InputError("workload: users and concurrency name the same; keep concurrency")
    return ServingWorkload(
        rate_per_s=values.get("rate"),
        concurrency=values.get("concurrency", values.get("users")),
        requests=int(number(values.get("requests", 1000), "requests", 1, 1e6)),
        prompt=RequestLengths.of(values.get("prompt", 1024), "prompt"),
        output=RequestLengths.of(values.get("output", 256), "output"),
        cached_share=values.get("cached_share", 0.0),
        arrivals=values.get("arrivals", "poisson"),
    ).check()


def _without_queues(
    decode: Deployment, fill: Deployment | None, work: ServingWorkload, max_batch: int, mode: str
) -> dict[str, Any]:
    """Memory, a step of the full batch and the prefill of one prompt, for mean lengths."""
    prompt, output = RequestLengths.of(work.prompt).mean, RequestLengths.of(work.output).mean
    fitting = require_fit(decode, prompt + output, 1).requests(prompt + output)
    if fill:
        require_fit(fill, prompt, 1)
    batch = max(1, min(max_batch, fitting))
    step = decode_step(decode, batch, prompt + output / 2, mode)
    first = prefill(fill or decode, prompt, prompt * work.cached_share, 1, mode)
    return {
        "memory": {"decode": _memory(decode, prompt + output), **({"prefill": _memory(fill, prompt)} if fill else {})},
        "full_batch": {
            "requests_per_group": batch,
            "tpot_ms": 1e3 * step.total_s / decode.tokens_per_step,
            **_interval(decode, 1e3 * step.total_s / decode.tokens_per_step, mode),
            "tokens_per_s_chip": step.tokens_per_s / decode.chips,
            "time_goes_to": describe_parts(step),
            "parts_ms": {k: 1e3 * v for k, v in step.parts.items()},
        },
        "one_prompt": {"prefill_ms": 1e3 * first.total_s, "time_goes_to": describe_parts(first)},
    }


def _engines(d: Deployment, work: ServingWorkload) -> list[str]:
    """Where no software is named: that the load does not fit under another that people run on such chips."""
    context = RequestLengths.of(work.prompt).mean + RequestLengths.of(work.output).mean
    longest = d.max_model_len or math.ceil(context)
    out = []
    for name in _OTHER_ENGINES if d.stack.engine == "sglang" else ():
        other = dataclasses.replace(d, stack=load_stack(name), max_model_len=longest)
        if (lacks := shortfall(other, context, 1) / GIB) > 0:
            out.append(f"stack: {name} would not hold a context of {context:,.0f} tokens, {lacks:.1f} GiB a chip lack")
    return [f"stack: {d.stack.name}, since none is named", *out] if out else []


def _interval(d: Deployment, tpot_ms: float, mode: str) -> dict[str, float]:
    """The range that holds 80% of measured engines of that kind (`sim.serving.error.interval`), around a TPOT."""
    if mode != "hybrid":
        return {}
    low, high = interval(d.model)
    return {"tpot_ms_low": tpot_ms * low, "tpot_ms_high": tpot_ms * high}


def _fleet(s: Mapping[str, Any], decode: Deployment, fill: Deployment | None, max_batch: int, mode: str) -> Fleet:
    on_decode, on_prefill = s["decode"], s.get("prefill") or {}
    return Fleet(
        decode=decode,
        decode_instances=int(number(on_decode.get("instances", 1), "decode.instances", 1)),
        prefill=fill,
        prefill_instances=int(number(on_prefill.get("instances", 1), "prefill.instances", 1)) if fill else 0,
        max_batch=max_batch,
        prefill_batch_tokens=int(number(on_prefill.get("batch_tokens", 16384), "prefill.batch_tokens", 1)),
        chunk_tokens=int(number(on_decode.get("chunk_tokens", 8192), "decode.chunk_tokens", 1)),
        transfer_bytes_per_s=parse(on_prefill.get("transfer", "25 GB/s"), "bytes_per_s", "prefill.transfer", low=1.0),
        mode=mode,
    )


def _memory(d: Deployment, context: float) -> dict[str, Any]:
    m = chip_memory(d)
    return {
        "chip_gib": m.capacity_bytes / GIB,
        "usable_gib": m.usable_bytes / GIB,
        "weights_gib": m.weights_bytes / GIB,
        "receipt_gib": {k: v / GIB for k, v in m.receipt().items()},
        "kv_bytes_per_token": m.kv_bytes_per_token,
        "kv_tokens_per_group": int(m.kv_tokens),
        "contexts_that_fit": m.requests(context) * d.groups,
        "context": context,
    }


def fleet_rent(fleet: Fleet, prices: Mapping[str, Any]) -> tuple[Figure, dict[str, float]] | None:
    """(rent of a decode chip-hour, USD an hour of the whole fleet, each side's chips at their own rent, at the figures'
    `value`, `low` and `high`); None where a rent is not known."""
    rent = prices.get("rent")
    usd_per_hour = None if rent is None else parse(rent, "money_per_hour", "prices.rent", low=1e-9)
    decode_rent = rent_of(fleet.decode.cluster, usd_per_hour)
    prefill_rent = rent_of((fleet.prefill or fleet.decode).cluster, usd_per_hour)
    if decode_rent is None or prefill_rent is None:
        return None
    decode_chips = fleet.decode.chips * fleet.decode_instances
    prefill_chips = fleet.chips - decode_chips
    return decode_rent, {
        pick: decode_chips * getattr(decode_rent, pick) + prefill_chips * getattr(prefill_rent, pick)
        for pick in ("value", "low", "high")
    }


def _money(fleet: Fleet, result: ServingResult, prices: Mapping[str, Any], cached_share: float) -> dict[str, Any]:
    """Cost of the simulated tokens and the margin at the given prices; only a note when no rent is known."""
    rent = fleet_rent(fleet, prices)
    if rent is None:
        return {"note": f"{fleet.decode.cluster.chip.name} has no rent in data/chips: give prices.rent, such as $2/h"}
    use = parse(prices.get("utilisation", 1.0), "ratio", "prices.utilisation", low=0.01, high=1.0)
    decode_rent, whole = rent
    hourly = {pick: usd / use for pick, usd in whole.items()}  # for the fleet's useful time
    out: dict[str, Any] = {
        "utilisation": use,
        "rent_usd_per_chip_hour": decode_rent.value,
        "rent_source": decode_rent.source,
    }
    for name, pick in (("", "value"), ("_low", "low"), ("_high", "high")):
        out[f"usd_per_million_output{name}"] = hourly[pick] / 3600 / result.output_tokens_per_s * 1e6
    if prices.get("output") is not None or prices.get("input") is not None:
        price = {k: number(prices.get(k, 0.0), f"prices.{k}", 0) for k in ("input", "output")}
        price["cached_input"] = number(prices.get("cached_input", price["input"]), "prices.cached_input", 0)
        earned = (
            result.output_tokens_per_s * price["output"]
            + result.input_tokens_per_s * ((1 - cached_share) * price["input"] + cached_share * price["cached_input"])
        ) / 1e6
        for name, pick in (("", "value"), ("_low", "high"), ("_high", "low")):
            out[f"margin{name}"] = 1.0 - hourly[pick] / 3600 / earned if earned else None
    return out
