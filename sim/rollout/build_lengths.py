"""Response lengths of a rollout case: drawn from a log, from a list, or log-normal by mean, median or percentiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from minglm.errors import InputError
from sim.base.fields import shorten
from sim.base.units import parse, whole
from sim.rollout.lengths import EXPLAINED, LONGEST, SIGMA, Lengths, from_rows, read_log

_PERCENTILES = ("p99", "p95", "p90", "p75")


def build_lengths(values: Mapping[str, Any], notes: list[str]) -> Lengths:
    """The lengths that the values of `sim.rollout.fields.CASE` describe; what is assumed is added to `notes`.

    Raises:
        InputError: a cap below the prompt, percentiles that do not rise, or what lengths cannot be read from.
    """
    prompt, cap = values.get("prompt", 0), _cap(values)
    explained = values.get("explained", EXPLAINED)
    if values.get("lengths") is not None:
        return _listed(values["lengths"], cap, explained, prompt)
    percentiles = [(int(name[1:]) / 100, values[name]) for name in _PERCENTILES if name in values]
    sigma = values.get("sigma")
    if sigma is None and "cv" in values:
        sigma = math.sqrt(math.log(1 + values["cv"] ** 2))
    mean, median = values.get("mean"), values.get("median")
    if mean is None and median is None and percentiles:
        sigma, median = _of_percentiles(percentiles, sigma, notes)
        return Lengths.lognormal(median=median, sigma=sigma, cap=cap, explained=explained, prompt=prompt)
    if sigma is None and not percentiles and (mean is None or median is None):
        notes.append(f"sigma of log length {SIGMA:g} assumed")
    percentile = percentiles[0] if percentiles and sigma is None else None
    return Lengths.lognormal(mean, cap, sigma, percentile, median, explained, prompt)


def _cap(values: Mapping[str, Any]) -> int:
    """Longest response, tokens: `max_response`, `max`, or what `max_context` leaves beside the prompt."""
    prompt = values.get("prompt", 0)
    cap = values.get("max_response", values.get("max"))
    if "max" in values and values["max"] < prompt:
        raise InputError(
            f"max={values['max']:,}: the length cap is smaller than the prompt of {prompt:,} tokens; raise it, or name it "
            "max_response if it is for the response alone"
        )
    context = values.get("max_context")
    if context is not None:
        if context <= prompt:
            raise InputError(
                f"max_context={context:,}: the length cap is not above the prompt of {prompt:,} tokens; raise it or "
                "shorten the prompt"
            )
        cap = min(cap or LONGEST, context - prompt)
    cap = LONGEST if cap is None else int(cap)
    if not 1 <= cap <= LONGEST:
        raise InputError(f"max={cap}: must be from 1 to {LONGEST:,} tokens")
    return cap


def _listed(raw: object, cap: int, explained: float, prompt: int) -> Lengths:
    """Lengths that the case lists itself, or the log that holds them."""
    if isinstance(raw, str):
        return from_rows(read_log(raw), None if cap == LONGEST else cap)
    if isinstance(raw, list) and raw and all(isinstance(group, list) and group for group in raw):
        groups = tuple(tuple(min(cap, whole(n, "lengths", 1, LONGEST)) for n in group) for group in raw)
        return Lengths(cap=cap, prompt=prompt, groups=groups)
    if isinstance(raw, list):
        counts = [parse(n, "count", "lengths", low=1, high=LONGEST) for n in raw]
        return Lengths.measured(counts, cap, explained, prompt)
    raise InputError(
        f"lengths={shorten(raw)}: give a list of token counts, a list of groups, or the path of a trajectories.jsonl"
    )


def _of_percentiles(
    percentiles: list[tuple[float, float]], sigma: float | None, notes: list[str]
) -> tuple[float, float]:
    """(sigma, median) of the log-normal through the highest percentile, and through the lowest where there are two."""
    (share, tokens), (low_share, low_tokens) = percentiles[0], percentiles[-1]
    quantile = NormalDist().inv_cdf
    if len(percentiles) > 1:
        if not tokens > low_tokens > 0:
            raise InputError("lengths: a higher percentile must be longer; check p90, p95 and p99")
        sigma = math.log(tokens / low_tokens) / (quantile(share) - quantile(low_share))
    else:
        sigma = SIGMA if sigma is None else sigma
        notes.append(f"sigma of log length {sigma:g} assumed")
    return sigma, max(1.0, tokens / math.exp(sigma * quantile(share)))
