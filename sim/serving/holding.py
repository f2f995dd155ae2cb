"""What one deployment holds: which contexts, how many at once, and what to turn so that the asked ones fit."""

from __future__ import annotations

from typing import Any

from sim.serving.deployment import Deployment
from sim.serving.memory import GIB, ChipMemory, chip_memory, shortfall
from sim.serving.remedies import remedies
from sim.serving.workload import number

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)


def holding(d: Deployment, context: float | None = None, requests: float | None = None) -> dict[str, Any]:
    """The receipt of a chip, contexts that fit by length, and whether `requests` contexts of `context` tokens do.

    requests: of the whole instance, spread evenly over its attention groups; one where only a context is asked for.

    Returns: question, answer, receipt_gib, contexts (length → how many at once), longest_context, asked (context,
    requests, fits, missing_gib, remedies; None where nothing is asked), assumptions and mode. JSON-ready.

    Raises:
        InputError: a context or a number of requests that cannot be.
    """
    m = chip_memory(d)
    lengths = sorted({min(length, m.max_model_len) for length in LENGTHS})
    contexts = {length: m.requests(length) * d.groups for length in lengths}
    asked = None
    if context is not None or requests is not None:
        wanted = number(context if context is not None else m.max_model_len, "context", 1, 1e9)
        count = number(requests if requests is not None else 1, "requests", 1)
        asked = _asked(d, m, wanted, count)
    return {
        "question": f"What does {d.describe()} hold?",
        "answer": _answer(d, m, contexts, asked),
        "mode": "memory (counted)",
        "receipt_gib": {name: size / GIB for name, size in m.receipt().items()},
        "kv_bytes_per_token": m.kv_bytes_per_token,
        "kv_tokens": int(m.kv_tokens * d.groups),
        "longest_context": m.longest_context(),
        "contexts": contexts,
        "asked": asked,
        "assumptions": [
            f"{d.usable_share:.0%} of a chip for the engine; memory as {d.stack.engine} counts it: {d.engine.source}",
            f"{d.requests_of_a_pass} requests in a pass",
        ],
    }


def _asked(d: Deployment, m: ChipMemory, context: float, requests: float) -> dict[str, Any]:
    """Whether the asked contexts fit and, where not, changes after which they do."""
    each = max(1.0, -(-requests // d.groups))  # of the fullest attention group
    too_long = context > m.max_model_len
    missing = shortfall(d, context, each)
    fits = missing <= 0 and not too_long
    return {
        "context": context,
        "requests": requests,
        "fits": fits,
        "beyond_model_len": too_long,
        "missing_gib": missing / GIB,
        "remedies": [] if fits or too_long else [r.text for r in remedies(d, context, each)],
    }


def _answer(d: Deployment, m: ChipMemory, contexts: dict[int, int], asked: dict[str, Any] | None) -> str:
    taken = {name: size for name, size in m.receipt().items() if name not in ("chip", "usable", "cache") and size}
    items = ", ".join(f"{name} {size / GIB:.1f}" for name, size in taken.items())
    text = f"Of {m.usable_bytes / GIB:.1f} GiB usable on a chip of {m.capacity_bytes / GIB:.1f}: {items}; "
    if m.free_bytes <= 0:
        text += f"{m.over_bytes / GIB:.1f} GiB too much, so that no context fits."
    else:
        counts = ", ".join(f"{n:,} of {length:,}" for length, n in contexts.items() if n)
        text += (
            f"{m.free_bytes / GIB:.1f} GiB of cache at {m.kv_bytes_per_token:,.0f} bytes a token. "
            f"The longest context is {m.longest_context():,} tokens; at once fit {counts or 'none of 4,096'} tokens."
        )
    if asked is None:
        return text
    one = asked["requests"] == 1
    what = f"{asked['requests']:,.0f} context{'' if one else 's'} of {asked['context']:,.0f} tokens"
    if asked["fits"]:
        return f"{text} {what} fit{'s' if one else ''}."
    if asked["beyond_model_len"]:
        text = f"{text} {what}: longer than the {m.max_model_len:,} tokens served; give "
        return f"{text}{m.max_model_len:,} or fewer, or a longer max_model_len where the model has one."
    turn = "; ".join(f"({i}) {r}" for i, r in enumerate(asked["remedies"], 1)) or "none that was tried"
    verb = "does" if one else "do"
    return (
        f"{text} {what} {verb} not fit: {asked['missing_gib']:.1f} GiB a chip lack. What would make them fit: {turn}."
    )
