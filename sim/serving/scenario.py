"""A serving scenario: deployments, load, target and prices in one file, run to one dict.

>>> result = run(load("serving_glm5_h200"), simulate_requests=False)
>>> result["memory"]["decode"]["contexts_that_fit"] > 0
True
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_document
from sim.base.units import parse
from sim.serving.calibration import fitted
from sim.serving.deployment import GIB, Deployment, memory, require_fit
from sim.serving.simulate import Fleet, simulate
from sim.serving.sizing import default_stack, rent_of
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
_DEPLOYMENT = {
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
    "instances",
    "max_batch",
    "batch_tokens",
    "chunk_tokens",
    "transfer",
}
_WORKLOAD = {"rate", "concurrency", "requests", "prompt", "output", "cached_share", "arrivals", "warmup"}
_TARGET = {"ttft", "tpot"}
_PRICES = {"rent", "input", "cached_input", "output", "utilisation"}


def load(given: str | Path | Mapping) -> dict:
    """A scenario by name, path or mapping; checked.

    Raises:
        InputError: no such file, an unknown key, or a missing part.
    """
    if isinstance(given, Mapping):
        values, where = dict(given), "scenario"
    else:
        path = Path(given)
        if not path.suffix and not path.exists():
            found = [datafiles.data("scenarios") / f"{given}{s}" for s in (".yaml", ".json")]
            path = next((p for p in found if p.exists()), path)
        if not path.suffix and not path.exists():
            names = [n for n in datafiles.catalogue("scenarios", ".yaml") if n.startswith("serving_")]
            raise InputError(
                f"serving scenario {str(given)[:60]!r}: no such file or name{nearest(str(given), names)}; known: {', '.join(names)}"
            )
        values, where = read_document(path), str(path)
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: must be a mapping with kind: serving, model, decode and workload")
        values = dict(values)
    if values.get("kind") != "serving":
        raise InputError(
            f"{where}: kind={values.get('kind')!r} must be 'serving'; other scenarios go to clustersim run"
        )
    _known(values, KEYS, where)
    if values.get("version", 1) != 1:
        raise InputError(f"{where}: version {values['version']!r} is not known; this program reads version 1")
    for key in ("model", "decode", "workload"):
        if values.get(key) is None:
            raise InputError(f"{where}: has no {key!r}; a serving scenario needs model, decode and workload")
    for key, known in (
        ("decode", _DEPLOYMENT),
        ("prefill", _DEPLOYMENT),
        ("workload", _WORKLOAD),
        ("target", _TARGET),
        ("prices", _PRICES),
    ):
        if values.get(key) is not None:
            if not isinstance(values[key], Mapping):
                raise InputError(f"{where}: {key} must be a mapping of {', '.join(sorted(known))}")
            _known(values[key], known, f"{where}: {key}")
    for key in ("name", "question"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"{where}: {key}={values[key]!r} must be text")
    told = values.get("assumptions")
    if told is not None and not (isinstance(told, list) and all(isinstance(a, str) for a in told)):
        raise InputError(f"{where}: assumptions must be a list of sentences")
    if not isinstance(values.get("mode", "hybrid"), str) or values.get("mode", "hybrid") not in MODES:
        raise InputError(
            f"{where}: mode {values['mode']!r} must be one of {', '.join(MODES)}{nearest(str(values['mode']), MODES)}"
        )
    seed = values.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"{where}: seed={seed!r} must be a whole number")
    values.setdefault("name", Path(where).stem)
    return values


def _known(values: Mapping, known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise InputError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )


def deployment(values: Mapping, model, mode: str = "hybrid") -> Deployment:
    """A deployment from a scenario's mapping; software as named, else by the chip; with its fitted scalar in hybrid mode."""
    values = {
        k: v
        for k, v in values.items()
        if k not in ("instances", "max_batch", "batch_tokens", "chunk_tokens", "transfer")
    }
    if "cluster" not in values:
        raise InputError("deployment: has no 'cluster'; give a name from data/clusters, such as dgx_h200")
    cluster = cluster_from(values.pop("cluster"))
    chips = values.pop("chips", cluster.chips_per_node)
    tp, stack = values.get("attention_tp", 1), values.pop("stack", None)
    d = Deployment.of(
        model, cluster, chips, stack=load_stack(stack) if stack else default_stack(cluster, tp == chips), **values
    )
    return fitted(d) if mode == "hybrid" else d


def run(scenario: str | Path | Mapping, simulate_requests: bool = True, seed: int | None = None) -> dict:
    """Memory, rooflines, simulated latencies, throughput and money of a scenario.

    Raises:
        InputError: bad input, or a deployment that does not fit (with changes that would).
    """
    s = load(scenario)
    mode, money = s.get("mode", "hybrid"), s.get("prices") or {}
    work = s["workload"]
    load_ = ServingWorkload(
        rate_per_s=work.get("rate"),
        concurrency=work.get("concurrency"),
        requests=int(number(work.get("requests", 1000), "requests", 1, 1e6)),
        prompt=RequestLengths.of(work.get("prompt", 1024), "prompt"),
        output=RequestLengths.of(work.get("output", 256), "output"),
        cached_share=work.get("cached_share", 0.0),
        arrivals=work.get("arrivals", "poisson"),
    ).check()
    prompt, output = RequestLengths.of(load_.prompt).mean, RequestLengths.of(load_.output).mean
    decode = deployment(s["decode"], s["model"], mode)
    fill = deployment(s["prefill"], s["model"], mode) if s.get("prefill") else None
    room = require_fit(decode, prompt + output, 1)
    if fill:
        require_fit(fill, prompt, 1)
    context = prompt + output / 2
    most = int(number(s["decode"].get("max_batch", 256), "max_batch", 1))
    batch = max(1, min(most, room.requests(prompt + output)))
    step = decode_step(decode, batch, context, mode)
    cached = prompt * load_.cached_share
    first = prefill(fill or decode, prompt, cached, 1, mode)
    result: dict = {
        "name": s["name"],
        "question": s.get("question", ""),
        "mode": mode,
        "deployment": {"decode": decode.describe(), "prefill": fill.describe() if fill else "shared with decode"},
        "memory": {"decode": _memory(decode, prompt + output), **({"prefill": _memory(fill, prompt)} if fill else {})},
        "full_batch": {
            "requests_per_group": batch,
            "tpot_ms": 1e3 * step.total_s / decode.tokens_per_step,
            "tokens_per_s_chip": step.tokens_per_s / decode.chips,
            "time_goes_to": describe_parts(step),
            "parts_ms": {k: 1e3 * v for k, v in step.parts.items()},
        },
        "one_prompt": {"prefill_ms": 1e3 * first.total_s, "time_goes_to": describe_parts(first)},
        "constants": [r for r in decode.stack.describe()],
        "assumptions": list(s.get("assumptions") or []),
    }
    if not simulate_requests:
        return result
    fleet = Fleet(
        decode=decode,
        decode_instances=int(number(s["decode"].get("instances", 1), "decode.instances", 1)),
        prefill=fill,
        prefill_instances=int(number((s.get("prefill") or {}).get("instances", 1), "prefill.instances", 1))
        if fill
        else 0,
        max_batch=most,
        prefill_batch_tokens=int(
            number((s.get("prefill") or {}).get("batch_tokens", 16384), "prefill.batch_tokens", 1)
        ),
        chunk_tokens=int(number(s["decode"].get("chunk_tokens", 8192), "decode.chunk_tokens", 1)),
        transfer_bytes_per_s=parse(
            (s.get("prefill") or {}).get("transfer", "25 GB/s"), "bytes_per_s", "prefill.transfer", low=1.0
        ),
        mode=mode,
    )
    found = simulate(
        fleet,
        load_,
        seed=s.get("seed", 0) if seed is None else seed,
        warmup=number(work.get("warmup", 0.1), "workload.warmup", 0.0, 0.9),
    )
    result["simulated"] = found.to_dict()
    if s.get("target"):
        limits = {k: parse(v, "time", f"target.{k}", low=1e-9) for k, v in s["target"].items()}
        seen = {"ttft": found.ttft_s["p95"], "tpot": found.tpot_s["p95"]}
        result["target"] = {k: {"limit_s": v, "p95_s": seen[k], "met": seen[k] <= v} for k, v in limits.items()}
    result["money"] = _money(fleet, found, money, load_.cached_share)
    return result


def _memory(d: Deployment, context: float) -> dict:
    m = memory(d)
    return {
        "chip_gib": m.capacity_bytes / GIB,
        "usable_gib": m.usable_bytes / GIB,
        "weights_gib": m.weights_bytes / GIB,
        "parts_gib": {k: v / GIB for k, v in m.parts.items()},
        "kv_bytes_per_token": m.kv_bytes_per_token,
        "kv_tokens_per_group": int(m.kv_tokens),
        "contexts_that_fit": m.requests(context) * d.groups,
        "context": context,
    }


def _money(fleet: Fleet, found, money: Mapping, cached_share: float) -> dict:
    """Cost of the simulated tokens and the margin at the given prices; nothing when no rent is known."""
    given = money.get("rent")
    rents = [
        rent_of(d.cluster, None if given is None else parse(given, "money_per_hour", "prices.rent", low=1e-9))
        for d in (fleet.decode, fleet.prefill or fleet.decode)
    ]
    if any(r is None for r in rents):
        return {"note": f"{fleet.decode.cluster.chip.name} has no rent in data/chips: give prices.rent, such as $2/h"}
    use = parse(money.get("utilisation", 1.0), "ratio", "prices.utilisation", low=0.01, high=1.0)
    chips = (
        fleet.decode.chips * fleet.decode_instances,
        fleet.prefill.chips * fleet.prefill_instances if fleet.prefill else 0,
    )
    out: dict = {"utilisation": use, "rent_usd_per_chip_hour": rents[0].value, "rent_source": rents[0].source}
    for name, pick in (("", "value"), ("_low", "low"), ("_high", "high")):
        hourly = sum(n * getattr(r, pick) for n, r in zip(chips, rents)) / use
        out[f"usd_per_million_output{name}"] = hourly / 3600 / found.output_tokens_per_s * 1e6
    if money.get("output") is not None or money.get("input") is not None:
        price = {k: number(money.get(k, 0.0), f"prices.{k}", 0) for k in ("input", "output")}
        price["cached_input"] = number(money.get("cached_input", price["input"]), "prices.cached_input", 0)
        earned = (
            found.output_tokens_per_s * price["output"]
            + found.input_tokens_per_s * ((1 - cached_share) * price["input"] + cached_share * price["cached_input"])
        ) / 1e6
        for name, pick in (("", "value"), ("_low", "high"), ("_high", "low")):
            spent = sum(n * getattr(r, pick) for n, r in zip(chips, rents)) / use / 3600
            out[f"margin{name}"] = 1.0 - spent / earned if earned else None
    return out
