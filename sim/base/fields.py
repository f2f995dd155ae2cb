"""Tables of fields: what a file may say, told once. Reader, JSON Schema and reference page all come from here.

A `Section` is one mapping in a file (`plan`, `options`, a published row, a rollout case) and a `Field` one key of it,
with the other names that people use for it. Keys are read case-insensitively; names that differ in case alone (H heads,
h hidden) are told apart.

    >>> layers = Field("layers", "whole", "how many", aliases=("num_layers", "L"))
    >>> SIZES = Section("sizes", (layers, Field("wait", "time", "until it starts")))
    >>> SIZES.read({"num_layers": 4, "Wait": "2 min"})
    {'layers': 4, 'wait': 120.0}
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.units import LARGEST, UNITS, parse, whole

# What a value may be before it is parsed, in words; every dimension of `sim.base.units` is a kind too.
KINDS = {
    "whole": "a number, or a text with a unit",  # a count that must come out whole: 4096, '16M'
    "length": "a number, or a text with a unit",  # whole too, but k is 1,024 in it: 4096, '4k'
    "mean_length": "a number, or a text with a unit",  # the same, of many sequences: no whole number
    "int": "a whole number",  # a bare one: a version, a seed
    "bool": "true or false",
    "text": "a text",
    "list": "a list",
    "mapping": "a mapping of keys",
    "named": "a name or a mapping",
    "any": "anything",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "text": (str, int, float),
    "list": (list, tuple),
    "mapping": (Mapping,),
    "named": (str, Mapping),
    "any": (object,),
}
_QUANTITY = (int, float, str)


@dataclass(frozen=True)
class Field:
    """One key. `kind` is a key of `KINDS` or a dimension of `sim.base.units.UNITS`, in which the value becomes SI.

    aliases: other names of the key. choices: the values it may have; spellings: other names of those.
    low, high: bounds of a number. items: kind of a list's entries; a single value is taken as a list of one.
    section: a mapping with a table of its own. read_value: a reader of its own, (value, label) → value, with its
    `schema`.
    """

    name: str
    kind: str
    doc: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    items: str = ""
    section: Section | None = None
    read_value: Callable[[Any, str], Any] | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS and self.kind not in UNITS:
            raise ValueError(f"field {self.name}: kind {self.kind!r} is not known")

    def check_type(self, value: object, label: str) -> None:
        """Refuse a value of a type that this field cannot have; None and what a reader of its own takes pass."""
        if value is None or self.kind == "any" or self.read_value is not None:
            return
        allowed = _TYPES.get(self.kind, _QUANTITY)
        if self.items:
            allowed = (*allowed, *_QUANTITY)
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind != "bool"):
            needs = KINDS.get(self.kind, KINDS["whole"])
            raise InputError(f"{label}={shorten(value)} must be {needs}")

    def read(self, value: Any, label: str) -> Any:
        """The value in SI units and of its type.

        Raises:
            InputError: the wrong type or unit, out of range, or not one of the choices.
        """
        self.check_type(value, label)
        if self.read_value is not None:
            return self.read_value(value, label)
        if self.choices:
            return self._choice(str(value).strip().lower(), f"{label} {shorten(value)}")
        if self.items:
            return [_one(self.items, v, label, self.low, self.high) for v in _as_list(value)]
        return _one(self.kind, value, label, self.low, self.high)

    def _choice(self, text: str, shown: str) -> str:
        for spelling in (text, text.replace("-", "_").replace(" ", "_")):
            name = self.spellings.get(spelling, spelling)
            if name in self.choices:
                return name
        guess = nearest(text, [*self.choices, *self.spellings])
        raise InputError(f"{shown}: not one of {', '.join(self.choices)}{guess}")

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the value."""
        return {**self.value_schema(), **({"description": self.doc} if self.doc else {})}

    def value_schema(self) -> dict[str, Any]:
        """`json_schema` without the description."""
        if self.schema is not None:
            return dict(self.schema)
        if self.section is not None:
            return self.section.json_schema()
        if self.choices:
            return {"enum": [*self.choices, *self.spellings]}
        if self.items:
            return {"type": "array"}
        plain = {"int": "integer", "bool": "boolean", "text": "string", "list": "array", "mapping": "object"}
        if self.kind in plain:
            return {"type": plain[self.kind]}
        if self.kind == "named":
            return {"anyOf": [{"type": "string"}, {"type": "object"}]}
        if self.kind == "any":
            return {}
        number: dict[str, Any] = {"type": "number"}
        if self.kind in ("whole", "length"):
            number = {"type": "integer", "minimum": 1 if self.low is None else self.low}
        return {"anyOf": [number, {"type": "string"}]}


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Errors inside begin with the place they are of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def shorten(value: object) -> str:
    """`value` as it is written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _one(kind: str, value: Any, label: str, low: float | None, high: float | None) -> Any:
    if kind in ("whole", "length"):
        ends = 1 if low is None else int(low), 10**15 if high is None else int(high)
        return whole(value, label, *ends, "length" if kind == "length" else "count")
    if kind == "text":
        return str(value)
    kind = "length" if kind == "mean_length" else kind
    if kind in UNITS:
        return parse(value, kind, label, low=0.0 if low is None else low, high=LARGEST if high is None else high)
    return value


@dataclass(frozen=True)
class Section:
    """The fields of one mapping, in the order that they are documented in.

    example: a mapping, for messages. listed_in: the file of data/ that lists the fields, where they are too many for a
    message.
    """

    name: str
    fields: tuple[Field, ...]
    example: str = ""
    listed_in: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        every = [text for one in self.fields for text in (one.name, *one.aliases)]
        twice = {text for text in every if every.count(text) > 1}
        if twice:
            raise ValueError(f"section {self.name}: {', '.join(sorted(twice))} names two fields")

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Field]:
        return {one.name: one for one in self.fields}

    @functools.cached_property
    def _spelt(self) -> dict[str, str]:
        return {name: name for name in self.names} | self.aliases

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' own names."""
        return tuple(one.name for one in self.fields)

    @property
    def aliases(self) -> dict[str, str]:
        """Other name → name."""
        return {text: one.name for one in self.fields for text in one.aliases}

    def name_of(self, key: object) -> str | None:
        """The field that `key` names, or None."""
        text = str(key).strip()
        return self._spelt.get(text) or self._spelt.get(text.lower().replace("-", "_").replace(" ", "_"))

    def canonical(self, raw: object, where: str = "") -> dict[str, Any]:
        """The same mapping under the fields' own names, values untouched. `where` begins every message.

        Raises:
            InputError: not a mapping, an unknown key (with the nearest), or a key twice.
        """
        start = f"{where}: " if where else ""
        if not isinstance(raw, Mapping):
            example = f" such as {self.example}" if self.example else ""
            raise InputError(f"{where or self.name}: {shorten(raw)} must be a mapping{example}")
        out: dict[str, Any] = {}
        for key, value in raw.items():
            name = self.name_of(key)
            if name is None:
                guess = self._inside(key) or nearest(str(key), [*self.names, *self.aliases])
                known = (
                    f"see {datafiles.where(*self.listed_in)}" if self.listed_in else f"known: {', '.join(self.names)}"
                )
                raise InputError(f"{start}unknown key {shorten(str(key))}{guess}; {known}")
            if name in out:
                raise InputError(f"{start}{name!r} is given twice (once as {shorten(str(key))}); keep one")
            out[name] = value
        return out

    def _inside(self, key: object) -> str:
        """Where a section of this one has the key: a person wrote it a level too high."""
        dotted = [f"{one.name}.{name}" for one in self.fields if one.section and (name := one.section.name_of(key))]
        return f" (did you mean {' or '.join(map(repr, dotted))}?)" if dotted else ""

    def read(self, raw: object, where: str = "", key: str = "") -> dict[str, Any]:
        """Values in SI units under the fields' own names; what is None is left out.

        where: begins every message. key: the key that holds this mapping.
        """
        start, dot = f"{where}: " if where else "", f"{key}." if key else ""
        out: dict[str, Any] = {}
        for name, value in self.canonical(raw, f"{start}{key}" if key else where).items():
            if value is None:
                continue
            one = self[name]
            if one.section is not None:
                one.check_type(value, f"{start}{dot}{name}")
                out[name] = one.section.read(value, where, f"{dot}{name}")
            else:
                out[name] = one.read(value, f"{start}{dot}{self._as_written(name, raw)}")
        return out

    def _as_written(self, name: str, raw: object) -> str:
        """The field's name, and the other name that stands in the file: that one its writer looks for."""
        keys = raw if isinstance(raw, Mapping) else ()
        written = next((str(key).strip() for key in keys if self.name_of(key) == name), name)
        same = written.lower().replace("-", "_").replace(" ", "_") == name.lower()
        return name if same else f"{name} ({written})"

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the mapping: every name that the reader takes, and no other."""
        properties: dict[str, Any] = {one.name: one.json_schema() for one in self.fields}
        for one in self.fields:
            for text in one.aliases:
                properties[text] = {**one.value_schema(), "description": f"another name of {one.name}"}
        return {"type": "object", "additionalProperties": False, "properties": properties}

    def markdown(self) -> str:
        """The fields as a table for a reference page."""
        lines = ["| key | type | meaning | other names understood |", "|---|---|---|---|"]
        for one in self.fields:
            doc = one.doc + (f": {', '.join(one.choices)}" if one.choices else "")
            lines.append(f"| `{one.name}` | {one.kind} | {doc.strip(': ')} | {', '.join(one.aliases)} |")
        return "\n".join(lines) + "\n"
