"""A scenario file: reading it with includes, changing one value. Its keys are in `sim/scenario/fields.py`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from minglm.settings import uncommented
from sim.base.documents import parse_text, read_document
from sim.base.fields import Section, shorten
from sim.scenario.fields import SCENARIO

VERSION = 1


def canonical_document(document: Mapping[str, Any], where: str, section: Section = SCENARIO) -> dict[str, Any]:
    """The document under the tables' own names, sections within it too, values of possible types but not yet parsed.

    Raises:
        InputError: an unknown key, a key twice, or a value of a type that its field cannot have.
    """
    out = section.canonical(document, where)
    if section is SCENARIO:
        out = _open_plan(out)
    for key, value in out.items():
        one = section[key]
        one.check_type(value, f"{where}: {key}")
        if one.section is not None and value is not None:
            out[key] = canonical_document(value, f"{where}: {key}", one.section)
    return out


def _open_plan(document: dict[str, Any]) -> dict[str, Any]:
    """`auto` as the plan, or as the value of one of its fields, told by the plan's own field `auto`."""
    out, found = dict(document), False
    for key in ("schedule", "micro_batch", "recompute"):
        if _is_auto(out.get(key)):
            del out[key]
            found = True
    if _is_auto(out.get("plan")):
        out["plan"], found = {}, True
    for key in ("plan", "options"):
        inner = out.get(key)
        if isinstance(inner, Mapping) and any(_is_auto(v) for v in inner.values()):
            out[key], found = {k: v for k, v in inner.items() if not _is_auto(v)}, True
    if found and isinstance(out.get("plan") or {}, Mapping):
        out["plan"] = {**(out.get("plan") or {}), "auto": True}
    return out


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() == "auto"


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
    document = canonical_document(document, path.name)
    if document.get("version", VERSION) != VERSION:
        raise InputError(
            f"{path}: version {document['version']!r}: this program reads version {VERSION}; write version: {VERSION} "
            "and check the keys"
        )
    merged: dict = {}
    includes = document.get("include") or []
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise InputError(f"{path}: include {str(name)[:40]!r} is not a file name; give include: other.yaml")
        merged = merge(merged, read_scenario_document(path.parent / name, (*_open, here)))
    return merge(merged, {k: v for k, v in document.items() if k != "include"})


def _scenario_path(name: str | Path) -> Path:
    """A path, or the name of a file in `data/scenarios`."""
    path = Path(name)
    named = datafiles.data("scenarios") / f"{name}.yaml"
    try:
        if not path.exists() and "/" not in str(name) and named.exists():
            return named
        if not path.exists():
            names = [
                n for n in datafiles.catalogue("scenarios", ".yaml") if not n.startswith(("serving_", "rollouts_"))
            ]
            shown = str(name) if len(str(name)) <= 80 else str(name)[:77] + "…"
            raise InputError(
                f"{shown}: no such scenario file{nearest(Path(str(name)).stem, names)}; shipped: {', '.join(names)}"
            )
    except InputError:
        raise
    except (OSError, ValueError):
        raise InputError(f"{str(name)[:80]!r}: not a usable path; give a scenario file") from None
    return path


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` on `base`; mappings merge key by key, all else replaces."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = (
            merge(out[key], value)
            if isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            else copy.deepcopy(value)
        )
    return out


def with_open_plan(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document's question: one whose plan is open already keeps the fields that it pins, a whole plan goes."""
    read = canonical_document(document, "scenario")
    return read if (read.get("plan") or {}).get("auto") else without_plan(read)


def without_plan(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with an automatic plan: what its own plan brought along goes too."""
    layout = (
        *("zero", "distributed_optimizer", "fsdp", "expert_tp", "recompute_layers", "stages", "mtp_before_head"),
        *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
    )
    out = {k: v for k, v in document.items() if k not in ("schedule", "micro_batch", "recompute")}
    out["options"] = {k: v for k, v in (document.get("options") or {}).items() if k not in layout}
    return {**out, "plan": {"auto": True}}


def set_value(document: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Apply one `--set key.sub=value`; the value is read as YAML. `resolve` refuses unknown keys."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text!r}: must be key=value, such as --set plan.tp=4")
    return set_path(document, key.strip().split("."), parse_text(uncommented(value), f"--set {key.strip()}"))


def set_path(
    document: Mapping[str, Any], path: list[str], value: object, section: Section | None = SCENARIO
) -> dict[str, Any]:
    """A copy of the document with the value at a dotted path changed; its keys may be any that a file may use."""
    out = dict(document)
    key = (section.name_of(path[0]) if section else None) or path[0]
    if len(path) == 1:
        out[key] = value
        if key == "plan" and section is SCENARIO and _is_auto(value):
            return without_plan(out)
        if key in ("global_batch", "global_tokens"):
            out.pop("global_tokens" if key == "global_batch" else "global_batch", None)
        return out
    inner = out.get(key)
    if inner is not None and not isinstance(inner, Mapping):
        raise InputError(f"--set {'.'.join(path)}: {key} is {shorten(inner)}, not a mapping; set {key} as a whole")
    inner_section = section[key].section if section is not None and key in section else None
    out[key] = set_path(inner or {}, path[1:], value, inner_section)
    return out
