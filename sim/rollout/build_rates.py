"""Speeds of a rollout case, given or of a chip and a model: decode, prefill and cache of an engine, an update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError
from sim.base.fields import shorten
from sim.base.units import parse, whole
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.lengths import Lengths
from sim.rollout.placement import FRAMEWORKS
from sim.rollout.rates import EngineRates, cluster_of, engine_rates, train_seconds_per_token

_SERVING = ("precision", "kv", "drafts", "accept_length", "stack", "memory_share")  # of a deployment, by the same names
_UNMEASURED_PROMPT = 256  # tokens, where a case names none


@dataclass(frozen=True)
class EngineSpeed:
    """What one engine does: seconds by batch, prefill seconds a token, cached tokens that it holds (None: no limit)."""

    curve: DecodeCurve
    prefill_s_per_token: float
    kv_limit: float | None


def build_engine_speed(
    values: Mapping[str, Any], lengths: Lengths, chips_per_engine: int, colocated: bool, notes: list[str]
) -> EngineSpeed:
    """Speeds that the case gives, the rest from the rooflines of its chip and model.

    Raises:
        InputError: neither a decode rate nor a chip and a model.
    """
    prefill_s = 1.0 / values["prefill"] if values.get("prefill") else 0.0
    kv_limit = values.get("kv_limit")
    if values.get("decode") is not None:
        curve = decode_curve(values["decode"], values)
    else:
        if "cluster" not in values or "model" not in values:
            raise InputError("no decode rate; give decode (tokens/s of a request), or a chip and a model")
        rates = _rates(values, lengths, chips_per_engine, colocated, notes)
        curve = rates.curve
        prefill_s = prefill_s or rates.prefill_s_per_token
        kv_limit = kv_limit or rates.kv_limit
        notes.append(f"rates of {rates.describe}")
    scale = values.get("decode_scale", 1.0)
    if not scale > 0:
        raise InputError(f"decode_scale={scale:g}: must be above 0")
    return EngineSpeed(curve.times(scale) if scale != 1.0 else curve, prefill_s, kv_limit)


def _rates(
    values: Mapping[str, Any], lengths: Lengths, chips_per_engine: int, colocated: bool, notes: list[str]
) -> EngineRates:
    """From chip and model; what is not said of the software is the framework's."""
    options = {"attention_tp": values.get("tp"), **{name: values.get(name) for name in _SERVING}}
    prompt = lengths.prompt or _UNMEASURED_PROMPT
    framework = FRAMEWORKS.get(values.get("framework", ""))

    def rates_with(more: Mapping[str, Any]) -> EngineRates:
        told = {**options, **more}
        return engine_rates(values["model"], values["cluster"], chips_per_engine, lengths.mean(), prompt, told)

    if framework is None:
        return rates_with({})
    own = (
        {"stack": framework.engine}
        if not options["stack"] and cluster_of(values["cluster"]).chip.vendor == "NVIDIA"
        else {}
    )
    share = framework.memory_share
    if share is None or not colocated or options["memory_share"]:
        return rates_with(own)
    with contextlib.suppress(InputError):  # a model too large for the framework's default is run with more memory
        rates = rates_with({**own, "memory_share": share})
        if rates.kv_limit >= lengths.longest + prompt:
            notes.append(f"memory_share {share:g} ({values['framework']}'s default; a trainer keeps the rest)")
            return rates
    return rates_with(own)


def decode_curve(raw: Any, values: Mapping[str, Any]) -> DecodeCurve:
    """Seconds of a token by requests running: from a rate, a list of points, or tokens/s of the engine by requests."""
    slope = values.get("kv_slope", 0.0)
    slopes = ((1.0, slope),) if slope else ()
    if isinstance(raw, Mapping):
        rates = sorted(
            (float(whole(b, "decode", 1, 10**6)), parse(r, "count", "decode", low=1e-9)) for b, r in raw.items()
        )
        return DecodeCurve(tuple((b, b / r) for b, r in rates), slopes)
    if isinstance(raw, list):
        try:
            points = [(parse(b, "count", "decode", low=1e-9), parse(s, "time", "decode", low=1e-12)) for b, s in raw]
        except (TypeError, ValueError):
            raise InputError(f"decode={shorten(raw)}: give [[requests running, seconds per token], …]") from None
        return DecodeCurve(tuple(sorted(points)), slopes)
    alone = 1.0 / parse(raw, "count", "decode", low=1e-9)
    half = values.get("decode_half")
    if half is None and values.get("decode_per_engine"):
        half = max(
            1e-6, values["decode_per_engine"] * alone
        )  # b / (alone (1 + b/half)) → half / alone for a large batch
    if half is None:
        return DecodeCurve(((1.0, alone),), slopes)
    if not half > 0:
        raise InputError(f"decode_half={half:g}: must be above 0")
    return DecodeCurve(((1.0, alone), (1025.0, alone * (1.0 + 1024.0 / half))), slopes)


def update_seconds(values: Mapping[str, Any], trainer_chips: int, lengths: Lengths) -> tuple[float, float]:
    """(seconds a token, fixed seconds) of an update, on `trainer_chips` chips where only an MFU is given."""
    fixed = values.get("train_fixed", 0.0)
    if "train" in values:
        return 0.0, values["train"] + fixed
    if values.get("train_tokens_per_s"):
        return 1.0 / values["train_tokens_per_s"], fixed
    if "mfu" not in values:
        return 0.0, fixed
    mfu = values["mfu"]
    if not 0 < mfu <= 1 or "model" not in values or "cluster" not in values or not trainer_chips:
        raise InputError(
            f"mfu={mfu:g}: must be above 0 and at most 1, and needs model, cluster and train_chips (or colocated)"
        )
    tokens = lengths.mean() + lengths.prompt
    forward = values.get("extra_forward", 0.0)
    return train_seconds_per_token(values["model"], values["cluster"], trainer_chips, mfu, tokens, forward), fixed
