"""Serving software as the simulator sees it: shares of the roofs, all-to-all latencies, fixed costs of a step.

Read from `data/serving/stacks.yaml`; every constant keeps its label (measured, published, fitted, assumed) and source, and
each answer lists those it used.

    >>> stack = load_stack("cloudmatrix-infer")
    >>> stack["attention_compute"], stack.label("attention_compute")
    (0.654, 'measured')
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_document
from sim.base.units import parse

LABELS = ("measured", "published", "fitted", "assumed")
_DIMENSIONS = {
    "small_kernel_s": "time",
    "matmul_floor_s": "time",
    "shared_spread": "count",
    "small_kernels": "count",
    "attention_compute": "ratio",
    "attention_memory": "ratio",
    "sparse_compute": "ratio",
    "prefill_attention": "ratio",
    "sparse_prefill": "ratio",
    "matmul_share": "ratio",
    "ep_floor_s": "time",
    "ep_overlap": "ratio",
    "prefill_ep_bytes_per_s": "bytes_per_s",
    "prefill_core_share": "ratio",
    "prefill_node_limit": "count",
    "imbalance": "ratio",
    "prefill_imbalance": "ratio",
    "host_s": "time",
    "one_shot_s": "time",
    "two_batch": "count",
    "scale": "ratio",
}


@dataclass(frozen=True)
class Constant:
    value: float
    label: str
    source: str


@dataclass(frozen=True)
class ServingStack:
    """A named serving software. `stack["host_s"]` is a constant in SI units; `label` and `source` say how strong it is."""

    name: str
    constants: tuple[tuple[str, Constant], ...]
    ep_table: tuple[tuple[int, float, float], ...] = ()  # (width, dispatch s, combine s) for 128 × 7,168 values × top-8
    ep_label: str = "assumed"
    ep_source: str = ""
    notes: str = ""
    chips: tuple[
        tuple[str, tuple[tuple[str, Constant], ...]], ...
    ] = ()  # constants that differ on a chip, by name prefix

    @functools.cached_property
    def _by_name(self) -> dict[str, Constant]:
        return dict(self.constants)

    def __getitem__(self, name: str) -> float:
        return self._by_name[name].value

    def get(self, name: str, default: float) -> float:
        found = self._by_name.get(name)
        return default if found is None else found.value

    def label(self, name: str) -> str:
        return self._by_name[name].label

    def changed(self, label: str = "assumed", source: str = "given by the user", **values: float) -> ServingStack:
        """The same stack with some constants replaced."""
        kept = [(k, c) for k, c in self.constants if k not in values]
        return replace(
            self, constants=tuple(kept + [(k, Constant(float(v), label, source)) for k, v in values.items()])
        )

    def for_chip(self, chip: str) -> ServingStack:
        """The stack as it runs on `chip`: its own constants there, where the file gives some."""
        if not self.chips:
            return self
        own = {k: c for prefix, found in self.chips if chip.upper().startswith(prefix.upper()) for k, c in found}
        return replace(self, constants=tuple(sorted((dict(self.constants) | own).items())), chips=())

    def ep_latency(self, width: int) -> tuple[float, float] | None:
        """(dispatch, combine) seconds of the table's message at `width`, between its points in log(width); None without one."""
        if not self.ep_table:
            return None
        rows = self.ep_table
        if width <= rows[0][0]:
            return rows[0][1:]
        for (a, d0, c0), (b, d1, c1) in zip(rows, rows[1:]):
            if width <= b:
                x = math.log(width / a) / math.log(b / a)
                return d0 + x * (d1 - d0), c0 + x * (c1 - c0)
        return rows[-1][1:]

    def describe(self) -> list[dict]:
        """Every constant with its label and source, JSON-ready."""
        rows = [{"constant": k, "value": c.value, "label": c.label, "source": c.source} for k, c in self.constants]
        if self.ep_table:
            rows.append(
                {
                    "constant": "ep_table",
                    "value": {w: [d, c] for w, d, c in self.ep_table},
                    "label": self.ep_label,
                    "source": self.ep_source,
                }
            )
        return rows


def load_stack(given: str | Mapping | ServingStack) -> ServingStack:
    """A stack by name, or from a mapping with `like` and changed constants.

    Raises:
        InputError: unknown stack, constant, label or value.
    """
    if isinstance(given, ServingStack):
        return given
    if isinstance(given, Mapping):
        base = given.get("like")
        if not isinstance(base, str):
            raise InputError("stack: a mapping needs 'like', the stack it starts from, such as {like: sglang-ep}")
        return _read(str(given.get("name", base + " (changed)")), given, load_stack(base))
    known = _document()
    name = str(given).strip().lower()
    if name not in known:
        raise InputError(f"stack {str(given)[:60]!r}: not one of {', '.join(known)}{nearest(name, known)}")
    return _load(name)


def list_stacks() -> list[str]:
    return list(_document())


@functools.lru_cache(maxsize=1)
def _document() -> dict:
    return dict(read_document(datafiles.data("serving", "stacks.yaml"))["stacks"])


@functools.lru_cache(maxsize=64)
def _load(name: str) -> ServingStack:
    values = _document()[name]
    return _read(name, values, _load(values["like"]) if "like" in values else None)


def _read(name: str, values: Mapping, base: ServingStack | None) -> ServingStack:
    constants = dict(base.constants) if base else {}
    table, label, source = (base.ep_table, base.ep_label, base.ep_source) if base else ((), "assumed", "")
    chips = dict(base.chips) if base else {}
    weaker = values.get("inherit_as")
    if weaker:
        if weaker not in LABELS:
            raise InputError(
                f"stack {name}.inherit_as {weaker!r}: not one of {', '.join(LABELS)}{nearest(str(weaker), LABELS)}"
            )
        constants = {k: Constant(c.value, weaker, f"as {base.name}: {c.source}") for k, c in constants.items()}
        label, source, chips = weaker, f"as {base.name}: {source}", {}
    known = {*_DIMENSIONS, "ep_table", "like", "name", "notes", "inherit_as", "chips"}
    for key, given in values.items():
        if key not in known:
            raise InputError(
                f"stack {name}: unknown constant {key!r}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )
        if key in ("like", "name", "notes", "inherit_as"):
            continue
        if key == "chips":
            chips |= {prefix: _read(f"{name}.chips.{prefix}", own, None).constants for prefix, own in given.items()}
            continue
        full = (
            given
            if isinstance(given, Mapping) and "value" in given
            else {"value": given, "label": "assumed", "source": "given by the user"}
        )
        said = full.get("label", "assumed")
        if said not in LABELS:
            raise InputError(
                f"stack {name}.{key}.label {said!r}: not one of {', '.join(LABELS)}{nearest(str(said), LABELS)}"
            )
        if key == "ep_table":
            table = tuple(
                sorted(
                    (int(w), parse(d, "time", f"{name}.ep_table"), parse(c, "time", f"{name}.ep_table"))
                    for w, (d, c) in full["value"].items()
                )
            )
            label, source = said, str(full.get("source", ""))
            continue
        value = parse(full["value"], _DIMENSIONS[key], f"stack {name}.{key}")
        if (
            _DIMENSIONS[key] == "ratio"
            and key not in ("imbalance", "prefill_imbalance", "scale")
            and not 0 <= value <= 1
        ):
            raise InputError(f"stack {name}.{key}: {value:g} is more than all of it; give a share between 0 and 1")
        if key in ("imbalance", "prefill_imbalance") and value < 1:
            raise InputError(
                f"stack {name}.{key}: {value:g} is below 1 (the busiest chip cannot be below the mean); give 1 or more"
            )
        constants[key] = Constant(value, said, str(full.get("source", "")))
    return ServingStack(
        name,
        tuple(sorted(constants.items())),
        table,
        label,
        source,
        str(values.get("notes", base.notes if base else "")),
        tuple(chips.items()),
    )
