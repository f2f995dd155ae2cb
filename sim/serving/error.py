"""How wrong a decode step may be: the range that holds 80% of engines and models not seen, by kind of model.

>>> from sim.spec.model_loader import load_model
>>> low, high = interval(load_model("glm5"))
>>> low < 1.0 < high
True
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from minglm import datafiles
from sim.base.documents import read_document
from sim.spec.model import ModelSpec


def kind_of(model: ModelSpec) -> str:
    """Of question: dense, or mixture of experts with grouped-query or latent attention."""
    if not model.experts:
        return "dense"
    return "MoE, latent attention" if model.attention == "mla" else "MoE, grouped-query attention"


@functools.cache
def _intervals() -> dict[str, tuple[float, float]]:
    document: Any = read_document(datafiles.data("serving", "intervals.yaml"))
    return {kind: (float(low), float(high)) for kind, (low, high) in document["intervals"].items()}


def interval(model: ModelSpec) -> tuple[float, float]:
    """(low, high) of measured over predicted seconds of a decode step, for a model of that kind.

    Source: `sim.validation.engine_summary.measured_intervals` over data/serving/engines.csv.gz.
    """
    return _intervals()[kind_of(model)]


def interval_text(intervals: Mapping[str, tuple[float, float]]) -> str:
    """The content of data/serving/intervals.yaml, which `interval` reads."""
    head = (
        "# Measured over predicted seconds of a decode step: the range that holds 80% of further groups of model, chip "
        "and engine,\n# from the supported rows of engines.csv.gz (hierarchical conformal prediction).\n# Made by "
        "`python -m sim.validation.engine_rows_rebuild`; do not edit.\nintervals:\n"
    )
    return head + "".join(f'  "{kind}": [{low:.3f}, {high:.3f}]\n' for kind, (low, high) in sorted(intervals.items()))
