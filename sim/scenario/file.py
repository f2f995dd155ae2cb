"""A scenario file: its shape, reading it with includes, changing one value.

The shape is in `SHAPE`, one table for both readers: pydantic where its compiled core is there, plain checks where it is
not (a browser). Every fault is one line.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import parse_text, read_document

VERSION = 1
ASSUMPTION_KINDS = ("vendor claim", "third-party", "published", "computed", "assumed", "unknown")

# section → key → type. quantity: a number or a text with a unit; named: a name or a mapping; ref: see the section.
SHAPE: dict[str, dict[str, str]] = {
    "": {
        "version": "int",
        "kind": "text",
        "name": "text",
        "question": "text",
        "include": "any",
        "model": "named",
        "cluster": "named",
        "chip": "named",
        "chips": "quantity",
        "plan": "mapping",
        "schedule": "text",
        "micro_batch": "quantity",
        "global_batch": "quantity",
        "global_tokens": "quantity",
        "seq": "quantity",
        "precision": "text",
        "recompute": "any",
        "options": "mapping",
        "stack": "text",
        "attention": "text",
        "allow_oom": "bool",
        "tokens": "quantity",
        "phases": "any",
        "plans": "list",
        "jitter": "mapping",
        "prices": "mapping",
        "failures": "mapping",
        "checkpoint": "mapping",
        "campaign": "mapping",
        "seed": "int",
        "what_if": "list",
        "assumptions": "list",
        "notes": "text",
        "planner": "mapping",
    },
    "prices": {
        "rent_usd_per_hour": "any",
        "system_price_usd": "any",
        "electricity_usd_per_kwh": "any",
        "pue": "any",
        "power_w": "any",
        "years": "quantity",
        "utilization": "quantity",
        "interest": "quantity",
        "staff_usd_per_year": "quantity",
        "carbon_kg_per_kwh": "any",
        "storage_share": "any",
    },
    "failures": {
        "level": "text",
        "per_chip_day": "quantity",
        "detect": "quantity",
        "restart": "quantity",
        "repair": "quantity",
        "elastic": "bool",
        "slow_servers": "bool",
    },
    "checkpoint": {
        "kind": "text",
        "interval": "quantity",
        "write": "quantity",
        "read": "quantity",
        "storage_every": "int",
    },
    "campaign": {"seeds": "int", "horizon": "quantity"},
    "jitter": {
        "noise": "quantity",
        "spread": "quantity",
        "slow_share": "quantity",
        "slow_factor": "quantity",
        "expert_spread": "quantity",
        "expert_share": "quantity",
    },
    "phase": {
        "name": "text",
        "tokens": "quantity",
        "seq": "quantity",
        "batch": "quantity",
        "first_batch": "quantity",
        "ramp": "quantity",
        "note": "text",
        "attention": "text",
    },
    "what_if": {"name": "text", "set": "mapping", "note": "text"},
    "assumption": {"text": "text", "kind": "text", "source": "text"},
}
_TYPES = {
    "int": (int,),
    "text": (str, int, float),
    "bool": (bool,),
    "list": (list,),
    "mapping": (dict,),
    "named": (str, dict),
    "quantity": (int, float, str),
    "any": (object,),
}
_NEEDS = {
    "int": "a whole number",
    "text": "a text",
    "bool": "true or false",
    "list": "a list",
    "mapping": "a mapping of keys",
    "named": "a name or a mapping",
    "quantity": "a number, or a text with a unit",
    "any": "anything",
}


def check_shape(document: Mapping, section: str = "", where: str = "scenario") -> None:
    """Refuse unknown keys and wrong types, by pydantic where it works and by plain checks where it does not."""
    table = SHAPE[section]
    for key in document:
        if key not in table:
            raise InputError(
                f"{where}: unknown key {str(key)[:60]!r}{nearest(str(key), table)}; known: {', '.join(table)}"
            )
    try:
        _model(section).model_validate(dict(document))
    except ImportError:
        for key, value in document.items():
            kind = table[key]
            ok = (
                value is None
                or isinstance(value, _TYPES[kind])
                and not (isinstance(value, bool) and kind in ("int", "quantity", "text"))
            )
            if not ok:
                raise InputError(_wrong(where, key, value, kind)) from None
    except ValueError as err:
        key = str(err.errors()[0]["loc"][0])
        raise InputError(_wrong(where, key, document[key], table[key])) from None


def _wrong(where: str, key: str, value: object, kind: str) -> str:
    shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "…"
    return f"{where}: {key}={shown} must be {_NEEDS[kind]}"


_MODELS: dict[str, object] = {}


def _model(section: str):
    """The pydantic model of a section, made from `SHAPE`."""
    if section not in _MODELS:
        from typing import Any

        from pydantic import ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr, create_model

        number = StrictInt | StrictFloat
        types = {
            "int": StrictInt,
            "text": StrictStr | number,
            "bool": StrictBool,
            "list": list,
            "mapping": dict,
            "named": StrictStr | dict,
            "quantity": number | StrictStr,
            "any": Any,
        }
        fields = {key: (types[kind] | None if kind != "any" else Any, None) for key, kind in SHAPE[section].items()}
        _MODELS[section] = create_model(
            f"Scenario_{section or 'file'}", __config__=ConfigDict(extra="forbid"), **fields
        )
    return _MODELS[section]


# ------------------------------------------------------------------ reading a file


def read_scenario_document(path: str | Path, _open: tuple[Path, ...] = ()) -> dict:
    """The mapping of a scenario file with its includes merged (the file wins over what it includes)."""
    path = _scenario_path(path) if not _open else Path(path)
    try:
        here = path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise InputError(f"{path}: cannot be read; check the path") from None
    if here in _open:
        raise InputError(
            f"{path}: include goes in a circle ({' → '.join(p.name for p in (*_open, here))}); remove one of them"
        )
    if len(_open) > 10:
        raise InputError(f"{path}: includes nested more than 10 deep; flatten them")
    document = read_document(path)
    if not isinstance(document, Mapping):
        kind = "is empty" if document is None else f"holds a {type(document).__name__}, not a mapping"
        raise InputError(f"{path}: {kind}; a scenario needs keys such as model, cluster, chips, plan")
    if any(not isinstance(k, str) for k in document):
        bad = next(k for k in document if not isinstance(k, str))
        raise InputError(f"{path}: key {bad!r} is not a word; scenario keys are words such as model")
    if document.get("kind", "training") != "training":
        kind = str(document["kind"])[:40]
        raise InputError(
            f"{path}: kind {kind!r}: this command reads training scenarios; "
            + (f"use clustersim {kind}" if kind.isidentifier() else "write kind: training")
        )
    check_shape(document, "", str(path.name))
    if document.get("version", VERSION) != VERSION:
        raise InputError(
            f"{path}: version {document['version']!r}: this program reads version {VERSION}; write version: {VERSION} and check the keys"
        )
    merged: dict = {}
    includes = document.get("include") or []
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise InputError(f"{path}: include {str(name)[:40]!r} is not a file name; give include: other.yaml")
        merged = merge(merged, read_scenario_document(path.parent / name, (*_open, here)))
    return merge(merged, {k: v for k, v in document.items() if k != "include"})


def _scenario_path(given: str | Path) -> Path:
    """A path, or the name of a file in `data/scenarios`."""
    path = Path(given)
    named = datafiles.data("scenarios") / f"{given}.yaml"
    try:
        if not path.exists() and "/" not in str(given) and named.exists():
            return named
        if not path.exists():
            names = [
                n for n in datafiles.catalogue("scenarios", ".yaml") if not n.startswith(("serving_", "rollouts_"))
            ]
            shown = str(given) if len(str(given)) <= 80 else str(given)[:77] + "…"
            raise InputError(
                f"{shown}: no such scenario file{nearest(Path(str(given)).stem, names)}; shipped: {', '.join(names)}"
            )
    except InputError:
        raise
    except (OSError, ValueError):
        raise InputError(f"{str(given)[:80]!r}: not a usable path; give a scenario file") from None
    return path


def merge(base: Mapping, over: Mapping) -> dict:
    """`over` on `base`; mappings merge key by key, all else replaces."""
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            merge(out[key], value)
            if isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            else copy.deepcopy(value)
        )
    return out


def set_value(document: dict, text: str) -> dict:
    """Apply one `--set key.sub=value`; the value is read as YAML. Unknown keys are refused when the result is resolved."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text!r}: must be key=value, such as --set plan.tp=4")
    return set_path(document, key.strip().split("."), parse_text(value, f"--set {key.strip()}"))


def set_path(document: Mapping, path: list[str], value: object) -> dict:
    """A copy of the document with the value at a dotted path changed."""
    out = dict(document)
    if len(path) == 1:
        out[path[0]] = value
        if path[0] in ("global_batch", "global_tokens"):
            out.pop("global_tokens" if path[0] == "global_batch" else "global_batch", None)
        return out
    inner = out.get(path[0])
    if inner is not None and not isinstance(inner, Mapping):
        raise InputError(
            f"--set {'.'.join(path)}: {path[0]} is {str(inner)[:30]!r}, not a mapping; set {path[0]} as a whole"
        )
    out[path[0]] = set_path(inner or {}, path[1:], value)
    return out
