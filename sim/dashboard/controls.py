"""The planner page's controls: one table with a unit, a default and a range for each, and the question that they ask.

Nothing here draws. A control's value is what a person typed ("20k", "28.5T", "2-3"); `question_of` reads all of them by
the same functions as the command line, so that the page refuses what `clustersim plan` refuses, in the same words.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from minglm.errors import InputError, nearest
from sim.base.figure import Figure, figure
from sim.base.units import parse, show
from sim.cost.money import DEFAULTS
from sim.cost.stacks import list_stacks, load_stack
from sim.planner.question import Question, question
from sim.scenario.defaults import with_defaults
from sim.spec.hardware import Cluster, cluster_for_chip, list_clusters, load_chip, load_cluster, usual_clusters
from sim.spec.model_loader import list_models, load_model


@dataclass(frozen=True)
class Control:
    """One input. `kind`: choice, or a dimension of `sim.base.units`; a slider spans `low` … `high` on a log
    scale.

    A price (`fact`) that is left empty takes the fact file's figure with its range; others have a `default`.
    """

    key: str
    label: str
    unit: str
    kind: str
    default: str = ""
    low: float = 0.0
    high: float = 0.0
    help: str = ""
    fact: bool = False


CONTROLS: tuple[Control, ...] = (
    Control("model", "Model", "name", "choice", "glm5", help="what is trained; a name in data/models"),
    Control(
        "machine",
        "Chip and its nodes",
        "name",
        "choice",
        "chip:h100",
        help="each chip in the nodes and network it usually comes in",
    ),
    Control(
        "chips",
        "How many chips",
        "chips",
        "count",
        "20,000",
        8,
        200_000,
        "the most that a plan may use; it may leave some spare",
    ),
    Control(
        "tokens",
        "Training tokens",
        "tokens",
        "count",
        "",
        1e10,
        1e14,
        "of the whole run",
    ),
    Control(
        "batch",
        "Batch",
        "tokens a step",
        "count",
        "",
        1e5,
        1e9,
        "met within 2%, so that it divides over the replicas; what is empty is as in every command",
    ),
    Control("seq", "Context", "tokens a sequence", "length", "4096", 512, 262_144, "length of a training sequence"),
    Control(
        "attention",
        "Attention",
        "kind",
        "choice",
        "dense",
        help="dense, as models with an indexer are pre-trained, or sparse with their indexer",
    ),
    Control(
        "phases",
        "Phases",
        "name",
        "choice",
        "one",
        help="one of all tokens at one length, or those of the GLM-5 report, which set tokens, context and batch",
    ),
    Control("stack", "Software", "name", "choice", "", help="the framework release that trains; data/stacks.yaml"),
    Control("precision", "Precision", "number format", "choice", "bf16", help="of the matrix multiplications"),
    Control(
        "objective",
        "Best plan means",
        "aim",
        "choice",
        "tokens",
        help="shortest time, lowest cost (fewest chip-hours), or least energy (the same chips, needing no price)",
    ),
    Control(
        "rent_usd_per_hour",
        "Rent of a chip",
        "$ an hour",
        "money_per_hour",
        "",
        0.1,
        30.0,
        "one price, or a range such as 2-3",
        True,
    ),
    Control(
        "system_price_usd",
        "Price of a chip with its system",
        "$",
        "money",
        "",
        1e3,
        2e5,
        "chip, host and network; one price or a range",
        True,
    ),
    Control(
        "electricity_usd_per_kwh",
        "Electricity",
        "$ a kWh",
        "money_per_kwh",
        "",
        0.01,
        0.5,
        "at the meter; one price or a range",
        True,
    ),
    Control("pue", "PUE", "ratio", "ratio", "", 1.0, 2.5, "energy of the building over that of the machines", True),
    Control(
        "years",
        "Years in use",
        "years",
        "count",
        f"{DEFAULTS['years']:g}",
        1,
        10,
        "over which the price of an owned system is spread",
    ),
    Control(
        "utilization",
        "In use",
        "share of the time",
        "ratio",
        f"{DEFAULTS['utilization']:.0%}",
        0.1,
        1.0,
        "of an owned system, by this run and others",
    ),
    Control(
        "interest",
        "Interest",
        "a year",
        "ratio",
        f"{DEFAULTS['interest']:.0%}",
        0.001,
        0.3,
        "on the price of an owned system",
    ),
)
BY_KEY = {c.key: c for c in CONTROLS}
QUESTION = (
    "model",
    "machine",
    "chips",
    "tokens",
    "batch",
    "seq",
    "rent_usd_per_hour",
)  # shown at once; the rest on request
DEFAULT = {c.key: c.default for c in CONTROLS}
FIRST = (
    "glm5",
    "glm5_2",
    "deepseek_v3",
    "deepseek_v3_2",
    "kimi_k2",
    "qwen3_235b_a22b",
    "llama3_405b",
    "llama3_70b",
    "llama3_8b",
)
NAMES = {"tokens": "shortest time", "cost": "lowest cost", "energy": "least energy"}


# ------------------------------------------------------------------ what can be chosen


@functools.cache
def choices(key: str) -> tuple[tuple[str, str], ...]:
    """(label, value) of a choice."""
    if key == "model":
        names = [*FIRST, *(n for n in list_models() if n not in FIRST and n not in ("nano", "mini", "small"))]
        return tuple((f"{n} ({show(load_model(n).total_params(), 'count')} parameters)", n) for n in names)
    if key == "machine":
        homes = usual_clusters()
        usual = [(f"{load_chip(c).name} in {load_cluster(n).name}", f"chip:{c}") for c, n in homes.items()]
        rest = [c for c in list_clusters() if c not in homes.values()]
        return tuple(usual + [(f"{load_cluster(c).chip.name} in {load_cluster(c).name}", f"cluster:{c}") for c in rest])
    if key == "attention":
        return (("dense", "dense"), ("sparse, with the model's indexer", "sparse"))
    if key == "phases":
        return (("one of all tokens", "one"), ("as the GLM-5 report", "glm5"))
    if key == "stack":
        return (("as in every command for this chip", ""), *((load_stack(n).title or n, n) for n in list_stacks()))
    if key == "precision":
        return tuple((p, p) for p in ("bf16", "fp8", "fp16"))
    if key == "objective":
        return tuple((label, value) for value, label in NAMES.items())
    raise InputError(f"control {key!r} has no list of choices{nearest(key, BY_KEY)}")


def machine(value: str) -> Cluster:
    """The cluster that a machine's value names: 'chip:h100' in its usual nodes, or 'cluster:llama3_meta'."""
    kind, _, name = str(value).partition(":")
    if kind == "chip" and name:
        return cluster_for_chip(name)
    if kind == "cluster" and name:
        return load_cluster(name)
    raise InputError(f"machine {value!r}: must be chip:NAME or cluster:NAME, such as chip:h100")


def fact_of(key: str, at: Cluster) -> Figure | None:
    """The fact file's figure behind an empty price."""
    return getattr(at.chip, key) if key == "rent_usd_per_hour" else getattr(at, key)


def table_default(key: str, model: str, at: Cluster) -> str:
    """What an empty tokens or batch means for this model, by the table of all commands."""
    taken = with_defaults({"model": model, "cluster": at})
    return str(taken[{"batch": "global_tokens"}.get(key, key)])


def default_words(control: Control, at: Cluster, model: str = "glm5") -> str:
    """What an empty or untouched control means, in words."""
    if not control.fact and control.kind != "choice" and not control.default:
        return f"empty: {table_default(control.key, model, at)}"
    if not control.fact:
        label = (
            dict((v, n) for n, v in choices(control.key)).get(control.default, control.default)
            if control.kind == "choice"
            else control.default
        )
        return f"default {label}"
    f = fact_of(control.key, at)
    if f is None:
        return f"no figure of {at.chip.name} is known: empty gives no answer"
    span = "" if f.certain else f" ({f.low:,.4g} to {f.high:,.4g})"
    return f"empty: {f.value:,.4g}{span}, {f.confidence}"


# ------------------------------------------------------------------ reading them

_RANGE = re.compile(r"^\s*(.+?)\s*(?:-|–|—|\bto\b)\s*(.+?)\s*$")


def price(text: object, dimension: str, name: str) -> Figure | None:
    """'2.5', '2-3' or '$2/h to $3/h' as a figure; None when empty.

    Raises:
        InputError: not a price, ends in the wrong order, or zero.
    """
    entered = str(text).strip()
    if not entered:
        return None
    match = _RANGE.match(entered) if not re.match(r"^[+-]", entered) else None
    source = {"source": "set on the planner page", "confidence": "assumed"}
    if match is None:
        return figure({"value": entered, **source}, dimension, name)
    low, high = parse(match.group(1), dimension, name), parse(match.group(2), dimension, name)
    if low > high:
        raise InputError(
            f"{name}: {entered!r} runs from high to low; give the low end first, such as "
            f"{match.group(2)}-{match.group(1)}"
        )
    return figure({"value": (low + high) / 2, "low": low, "high": high, **source}, dimension, name)


def prices_of(values: Mapping[str, str]) -> dict[str, object]:
    """The prices that are set, as `sim.planner.question.question` takes them; those left empty stay with the fact
    files."""
    out: dict[str, object] = {}
    for c in CONTROLS:
        if c.fact:
            entered = price(values.get(c.key, ""), c.kind, c.label)
            if entered is not None:
                out[c.key] = entered
                if c.key == "pue" and entered.low < 1:
                    raise InputError(
                        f"{c.label}: {entered.low:g} is below 1 (a building cannot use less than its machines); give "
                        "1 or more"
                    )
    for key, low, high in (("years", 0.01, 50.0), ("utilization", 0.01, 1.0), ("interest", 0.0, 1.0)):
        c, text = BY_KEY[key], str(values.get(key, "")).strip()
        if text and text != c.default:
            out[key] = parse(text, c.kind, c.label, low=low, high=high)
    return out


def question_of(values: Mapping[str, str], fixed: Mapping[str, object] | None = None) -> Question:
    """The question that the controls ask.

    Args:
        values: by control key; a missing or empty one takes its default.
        fixed: fields of a plan to keep, as `sim.planner.question.question` takes them.
    Raises:
        InputError: one line that starts with the control's name.
    """
    for key in values:
        if key not in BY_KEY:
            raise InputError(
                f"control {str(key)[:40]!r}: not known{nearest(str(key), BY_KEY)}; known: {', '.join(BY_KEY)}"
            )
    v = {c.key: str(values.get(c.key, "")).strip() or c.default for c in CONTROLS}
    amounts: dict[str, float | None] = {}
    for key in ("chips", "tokens", "batch", "seq"):
        c = BY_KEY[key]
        if not v[key]:
            amounts[key] = None
            continue
        amounts[key] = amount = parse(v[key], c.kind, c.label, low=1.0)
        if key in ("chips", "seq") and amount != int(amount):
            raise InputError(f"{c.label}: {v[key]!r} is not a whole number; give for example {max(1, int(amount)):,}")
    if (amounts["batch"] or math.inf) < (amounts["seq"] or 0):
        raise InputError(
            f"{BY_KEY['batch'].label}: {v['batch']} tokens is less than one sequence of {v['seq']}; give at least "
            f"{show(amounts['seq'] or 0, 'count')}"
        )
    machine(v["machine"])  # refuses what is no machine
    kind, name = v["machine"].split(":", 1)
    return question(
        v["model"],
        name if kind == "cluster" else None,
        amounts["chips"],
        chip=name if kind == "chip" else None,
        seq=amounts["seq"],
        batch_tokens=amounts["batch"],
        tokens=amounts["tokens"],
        attention=v["attention"],
        phases=None if v["phases"] == "one" else v["phases"],
        stack=v["stack"] or None,
        objective=v["objective"],
        precision=v["precision"],
        prices=prices_of(values),
        fixed={k: x for k, x in (fixed or {}).items() if x not in ([], (), None)},
    )
