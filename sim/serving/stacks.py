"""Serving software as the simulator sees it: shares of the roofs, all-to-all latencies, fixed costs of a step.

Read from `data/serving/stacks.yaml`; every constant keeps its label (measured, published, fitted, assumed) and source,
and each answer lists those it used.

    >>> stack = load_stack("cloudmatrix-infer")
    >>> stack["attention_compute"], stack.label("attention_compute")
    (0.654, 'measured')
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.documents import read_document
from sim.base.units import parse
from sim.serving.engine_memory import ENGINES, VLLM_RELEASES
from sim.spec.hardware import Chip

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
    "host_per_request_s": "time",
    "one_shot_s": "time",
    "eager_op_s": "time",
    "prefill_op_s": "time",
    "front_s": "time",
    "front_token_s": "time",
    "first_token_steps": "count",
    "poll_steps": "count",
    "prefill_mla_ops": "count",
    "prefill_expert_ops": "count",
    "expert_block_rows": "count",
    "expert_kernels": "count",
    "fp8_cache_memory": "ratio",
    "grouped_compute_block": "ratio",
    "grouped_compute_bf16": "ratio",
    "two_batch": "count",
    "gather_tokens": "count",
    "scale": "ratio",
}


RELEASE = re.compile(r"vllm[-@ ]v?(?P<major>\d{1,2})\.(?P<minor>\d{1,3})(\.[\w.]+)?")  # vllm-0.19, vllm-v0.10.2
_AT_LEAST_ONE = ("imbalance", "prefill_imbalance", "grouped_compute_block", "grouped_compute_bf16")
_SHARES = {name for name, kind in _DIMENSIONS.items() if kind == "ratio"} - {*_AT_LEAST_ONE, "scale"}
_NOT_CONSTANTS = ("like", "name", "notes", "inherit_as", "chips", "ep_table", "engine")


@dataclass(frozen=True)
class Constant:
    """A value in SI units; `label` (one of LABELS) says how strong it is, `source` where it comes from."""

    value: float
    label: str
    source: str


@dataclass(frozen=True)
class ServingStack:
    """A named serving software. `stack["host_s"]` is a constant in SI units; `label` says how strong it is."""

    name: str
    constants: tuple[tuple[str, Constant], ...]
    ep_table: tuple[tuple[int, float, float], ...] = ()  # (width, dispatch s, combine s) for 128 × 7,168 values × top-8
    ep_label: str = "assumed"
    ep_source: str = ""
    notes: str = ""
    # constants that differ on a family of chips (`Chip.family`), or on those with one chip's tables (`Chip.tables`)
    chips: tuple[tuple[str, tuple[tuple[str, Constant], ...]], ...] = ()
    engine: str = "vllm"  # whose accounting of memory it follows (`sim.serving.engine_memory.ENGINES`)

    @functools.cached_property
    def _by_name(self) -> dict[str, Constant]:
        return dict(self.constants)

    def __getitem__(self, name: str) -> float:
        return self._by_name[name].value

    def get(self, name: str, default: float) -> float:
        """The constant, or `default` where the stack has none of that name."""
        constant = self._by_name.get(name)
        return default if constant is None else constant.value

    def label(self, name: str) -> str:
        """How strong a constant is: one of LABELS."""
        return self._by_name[name].label

    def with_changes(self, label: str = "assumed", source: str = "given by the user", **values: float) -> ServingStack:
        """The same stack with some constants replaced."""
        kept = [(k, c) for k, c in self.constants if k not in values]
        return replace(
            self, constants=tuple(kept + [(k, Constant(float(v), label, source)) for k, v in values.items()])
        )

    def for_chip(self, chip: Chip) -> ServingStack:
        """The stack as it runs on `chip`: its own constants there, where the file gives some."""
        if not self.chips:
            return self
        chips, constants = dict(self.chips), dict(self.constants)
        for key in (chip.family, chip.tables):
            constants |= dict(chips.get(key, ()))
        return replace(self, constants=tuple(sorted(constants.items())), chips=())

    def ep_latency(self, width: int) -> tuple[float, float] | None:
        """(dispatch, combine) seconds of the table's message, interpolated in log(width); None without a table."""
        if not self.ep_table:
            return None
        rows = self.ep_table
        if width <= rows[0][0]:
            return rows[0][1:]
        for (a, d0, c0), (b, d1, c1) in itertools.pairwise(rows):
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


def load_stack(stack: str | Mapping[str, Any] | ServingStack) -> ServingStack:
    """A stack by name, or from a mapping with `like` and changed constants.

    Raises:
        InputError: unknown stack, constant, label or value.
    """
    if isinstance(stack, ServingStack):
        return stack
    if isinstance(stack, Mapping):
        base = stack.get("like")
        if not isinstance(base, str):
            raise InputError("stack: a mapping needs 'like', the stack it starts from, such as {like: sglang-ep}")
        return _read(str(stack.get("name", base + " (changed)")), stack, load_stack(base))
    known = _document()
    name = str(stack).strip().lower()
    release = RELEASE.fullmatch(name)
    if release and name not in known:
        return _released(name, int(release["major"]), int(release["minor"]))
    if name not in known:
        raise InputError(
            f"stack {str(stack)[:60]!r}: not one of {', '.join(known)}, or vllm of a release, such as vllm-0.19"
            f"{nearest(name, known)}"
        )
    return _load(name)


def _released(name: str, major: int, minor: int) -> ServingStack:
    """vLLM of one release: it counts memory as that release does."""
    engine = next(how for since, how in VLLM_RELEASES if major > 0 or minor >= since)
    base = _load("vllm-v0" if engine == "vllm-v0" else "vllm")
    return replace(base, name=name, engine=engine, notes=f"{base.notes}; memory as release {major}.{minor} counts it")


def list_stacks() -> list[str]:
    """Names in `data/serving/stacks.yaml`."""
    return list(_document())


@functools.lru_cache(maxsize=1)
def _document() -> dict[str, Mapping[str, Any]]:
    document: Any = read_document(datafiles.data("serving", "stacks.yaml"))
    return dict(document["stacks"])


@functools.lru_cache(maxsize=64)
def _load(name: str) -> ServingStack:
    values = _document()[name]
    return _read(name, values, _load(values["like"]) if "like" in values else None)


def _read(name: str, values: Mapping[str, Any], base: ServingStack | None) -> ServingStack:
    """The stack of one entry of the file, over the one that it is `like`."""
    known = {*_DIMENSIONS, *_NOT_CONSTANTS}
    for key in values:
        if key not in known:
            raise InputError(
                f"stack {name}: unknown constant {key!r}{nearest(str(key), known)}; known: {', '.join(sorted(known))}"
            )
    start = base or ServingStack(name, ())
    if values.get("inherit_as"):
        start = _weakened(name, start, values["inherit_as"])
    constants, chips = dict(start.constants), dict(start.chips)
    table, table_label, table_source = start.ep_table, start.ep_label, start.ep_source
    for key, given in values.items():
        if key == "chips":
            for chip, own in given.items():
                changed = dict(_read(f"{name}.chips.{chip}", own, None).constants)
                chips[chip] = tuple((dict(chips.get(chip, ())) | changed).items())
        elif key == "ep_table":
            table, table_label, table_source = _read_ep_table(name, given)
        elif key not in _NOT_CONSTANTS:
            constants[key] = _read_constant(name, key, given)
    return ServingStack(
        name,
        tuple(sorted(constants.items())),
        table,
        table_label,
        table_source,
        str(values.get("notes", start.notes)),
        tuple(chips.items()),
        _read_engine(name, values.get("engine", start.engine)),
    )


def _read_engine(name: str, engine: object) -> str:
    if engine not in ENGINES:
        raise InputError(
            f"stack {name}.engine {engine!r}: not one of {', '.join(ENGINES)}{nearest(str(engine), ENGINES)}"
        )
    return str(engine)


def _weakened(name: str, base: ServingStack, label: str) -> ServingStack:
    """`base` as another chip inherits it: every label weaker, nothing that held on its chips alone."""
    _check_label(f"{name}.inherit_as", label)
    return replace(
        base,
        constants=tuple((k, Constant(c.value, label, f"as {base.name}: {c.source}")) for k, c in base.constants),
        ep_label=label,
        ep_source=f"as {base.name}: {base.ep_source}",
        chips=(),
    )


def _with_origin(name: str, key: str, given: Any) -> tuple[Any, str, str]:
    """(value, label, source) of an entry; a bare value is the user's own assumption."""
    if not (isinstance(given, Mapping) and "value" in given):
        return given, "assumed", "given by the user"
    label = given.get("label", "assumed")
    _check_label(f"{name}.{key}.label", label)
    return given["value"], label, str(given.get("source", ""))


def _check_label(where: str, label: object) -> None:
    if label not in LABELS:
        raise InputError(f"stack {where} {label!r}: not one of {', '.join(LABELS)}{nearest(str(label), LABELS)}")


def _read_ep_table(name: str, given: Any) -> tuple[tuple[tuple[int, float, float], ...], str, str]:
    value, label, source = _with_origin(name, "ep_table", given)
    where = f"{name}.ep_table"
    rows = ((int(w), parse(d, "time", where), parse(c, "time", where)) for w, (d, c) in value.items())
    return tuple(sorted(rows)), label, source


def _read_constant(name: str, key: str, given: Any) -> Constant:
    raw, label, source = _with_origin(name, key, given)
    value = parse(raw, _DIMENSIONS[key], f"stack {name}.{key}")
    if key in _SHARES and not 0 <= value <= 1:
        raise InputError(f"stack {name}.{key}: {value:g} is more than all of it; give a share between 0 and 1")
    if key in _AT_LEAST_ONE and value < 1:
        raise InputError(
            f"stack {name}.{key}: {value:g} is below 1 (the busiest chip cannot be below the mean); give 1 or more"
        )
    return Constant(value, label, source)
