"""A rollout case from a file: whatever keys a source gives, under the names that people use. Keys: data/rollouts/README.md.

case = read("case.yaml")            # → RolloutScenario: .case (sim.rollout.case.Case), .published, .against, .notes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_document
from sim.base.fields import located
from sim.rollout.build import build_case
from sim.rollout.case import Case
from sim.rollout.fields import CASE, GROUPS

# What belongs to a measurement or to one mode: a baseline in another mode leaves it out.
_MEASURED_KEYS = ("published", "published_seconds", "published_speedup", "against")
_MODE_KEYS = (
    "over_sampling",
    "over_sampling_prompts",
    "max_staleness",
    "weight_sync_interval",
    "filter_staleness_above",
    "parts",
    "interruptible",
)
_RATIOS = {"speedup", "rollout_speedup", "gain"}  # published figures that need a baseline


@dataclass(frozen=True)
class RolloutScenario:
    """A case that was read, and what to compare it with.

    values: the file's own values under the table's names. published: figure by quantity, SI. against: keys of the baseline
    that differ. notes: what was assumed.
    """

    case: Case
    values: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)
    against: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def canonical(raw: object, where: str = "case") -> dict[str, Any]:
    """The same mapping under the table's names, values untouched; sections are opened up.

    Raises:
        InputError: an unknown key (with the nearest), or a key twice.
    """
    if not isinstance(raw, Mapping):
        return CASE.canonical(raw, where)  # refused there
    out: dict[str, Any] = {}
    for key, value in raw.items():
        group = str(key).strip().lower().replace("-", "_").replace(" ", "_")
        if group in GROUPS and isinstance(value, Mapping):
            inner = canonical(value, f"{where}: {key}")
        else:
            inner = CASE.canonical({key: value}, where)
        for name, one in inner.items():
            if one is None:
                continue
            if name in out:
                raise InputError(f"{where}: {name!r} is given twice (once as {str(key)!r}); keep one")
            out[name] = one
    return out


def load(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Canonical values of a mapping, a file, or a name in data/scenarios (rollouts_*)."""
    if isinstance(source, Mapping):
        return canonical(source)
    path = _path(source)
    values = canonical(read_document(path), str(path))
    values.setdefault("name", path.stem)
    if isinstance(values.get("lengths"), str):
        beside = path.parent / values["lengths"]
        values["lengths"] = str(beside if beside.exists() else values["lengths"])
    return values


def _path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix or path.exists():
        return path
    for name in (str(source), f"rollouts_{source}"):
        for suffix in (".yaml", ".json"):
            shipped = datafiles.data("scenarios") / f"{name}{suffix}"
            if shipped.exists():
                return shipped
    names = [n for n in datafiles.catalogue("scenarios", ".yaml") if n.startswith("rollouts_")]
    guess = nearest(str(source), names)
    raise InputError(f"rollout case {str(source)[:60]!r}: no such file or name{guess}; known: {', '.join(names)}")


def read(source: str | Path | Mapping[str, Any], **changes: Any) -> RolloutScenario:
    """A case, ready to simulate; `changes` are keys of a file that replace its own.

    Raises:
        InputError: one line with the value, the rule and the remedy.
    """
    values = canonical({**load(source), **changes}) if changes else load(source)
    where = str(values.get("name", "case"))
    parsed = CASE.read(values, where)
    notes: list[str] = []
    with located(where):
        case = build_case(parsed, notes)
    published = dict(parsed.get("published", {}))
    for key, quantity in (("published_seconds", "step_s"), ("published_speedup", "speedup")):
        if key in parsed:
            if not parsed[key] > 0:
                raise InputError(f"{where}: {key}=0: a measured figure must be above 0")
            published[quantity] = parsed[key]
    against = parsed.get("against")
    if against is not None and not isinstance(against, Mapping):
        against = {"mode": against}
    if against is None and _RATIOS & set(published):
        against = {"mode": "sync"}
    against = None if against is None else canonical(against, f"{where}: against")
    return RolloutScenario(case, values, published, against, tuple(notes))


def baseline(scenario: RolloutScenario) -> RolloutScenario:
    """The case that a speed-up is measured against."""
    values = {key: value for key, value in scenario.values.items() if key not in _MEASURED_KEYS}
    changes = dict(scenario.against or {"mode": "sync"})
    if "mode" in changes:
        values = {key: value for key, value in values.items() if key not in _MODE_KEYS}
    return read({**values, **changes})
