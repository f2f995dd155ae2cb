"""Settings: typed dataclasses whose every key says what it means, checked before anything runs.

Their values come from YAML files and from `--set key=value`.

A class of settings inherits from `BaseSettings` and declares its keys with `setting`:

    @dataclass(frozen=True)
    class Recipe(BaseSettings):
        KIND = "recipe"
        seq_len: int = setting(256, "sequence length", "tokens", minimum=2)

`explained` writes the keys back with their meaning, unit and default as comments, so a file that it wrote cannot
drift from the code. Torch-free; PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from minglm import datafiles
from minglm.errors import InputError, nearest

MOST_SEED = 2**64 - 1  # what torch's generator takes
_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ ")


def setting(
    default: Any,
    doc: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    check: Callable[[Any], Any] | None = None,
) -> Any:
    """A key of a settings class: a dataclass field that knows its meaning.

    Args:
        default: its value where none is given; {} makes a new mapping each time.
        doc: what it means, in a few words.
        unit: such as "tokens"; empty where there is none.
        minimum, maximum: bounds of a number, both allowed themselves.
        check: takes the value in the field's type, returns it as it is to be kept, or raises ValueError with the rule
            that it breaks ("must be ..."). A field of type list has one.
    """
    metadata = {
        "doc": doc,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "check": check,
        "default": default,
    }
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nonzero(value: float) -> float:
    """A check: zero is not allowed where nothing would be learnt with it."""
    if value == 0:
        raise ValueError("nothing would be learnt")
    return value


def whole_numbers(value: object) -> list[int]:
    """A check: one whole number of at least 1 or several, kept as a list; None is [1].

    >>> whole_numbers(None), whole_numbers(2), whole_numbers((1, 4))
    ([1], [2], [1, 4])
    """
    numbers: list[Any] = [1] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ValueError("must be whole numbers of at least 1, such as [1, 2, 4]")
    return numbers


@dataclass(frozen=True)
class BaseSettings:
    """Settings whose values are checked when they are made. Raises InputError for any value that breaks a rule."""

    KIND: ClassVar[str] = "settings"  # the word for them in messages

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings of these keys, the others at their defaults; an unknown key is refused."""
        known = [spec.name for spec in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                home = cls.__module__.replace(".", "/") + ".py"
                raise InputError(
                    f"{cls.KIND} key {key!r}: not a known key{nearest(str(key), known)}; see {home} for the list"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values; `from_dict` of it gives equal settings."""
        return dataclasses.asdict(self)

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked like a new one."""
        return self.from_dict({**self.to_dict(), **changes})

    def explained(self) -> str:
        """The keys as YAML, each with its meaning, unit and default behind it."""
        lines = []
        for spec in dataclasses.fields(self):
            unit = f", {spec.metadata['unit']}" if spec.metadata["unit"] else ""
            entry = f"{spec.name}: {to_yaml(getattr(self, spec.name))}"
            lines.append(f"{entry:<27} # {spec.metadata['doc']}{unit} (default {to_yaml(spec.metadata['default'])})")
        return "\n".join(lines) + "\n"


def _checked(spec: dataclasses.Field[Any], value: Any) -> Any:
    """The value in its field's type and bounds, or InputError with the rule and the default."""
    if value is None and str(spec.type).endswith("| None"):
        return None
    minimum, maximum, check = (spec.metadata[key] for key in ("minimum", "maximum", "check"))
    try:
        converted = _converted(str(spec.type), value)
        if (minimum is not None and converted < minimum) or (maximum is not None and converted > maximum):
            limits = f"at least {minimum}" + (f" and at most {maximum}" if maximum is not None else "")
            raise ValueError(f"must be {limits}")
        return check(converted) if check else converted
    except ValueError as rule:
        default = to_yaml(spec.metadata["default"])
        raise InputError(f"{spec.name}={value!r}: {rule}; the default is {spec.name}: {default}") from None


def _converted(annotation: str, value: Any) -> Any:
    """The value in the type that a field's annotation names, or ValueError; YAML gives 3e-4 as text and 1 for 1.0."""
    kind = annotation.partition(" ")[0].partition("[")[0]
    if kind == "float" and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError("must be a number") from None
        if not math.isfinite(number):
            raise ValueError("must be a finite number")
        return number
    right, expected = {
        "float": (False, "a number"),
        "int": (isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        "bool": (isinstance(value, bool), "true or false"),
        "str": (isinstance(value, str), "text"),
        "dict": (
            isinstance(value, dict) and all(isinstance(key, str) for key in value),
            "a mapping such as {key: value}",
        ),
        "list": (True, ""),  # its own check looks into it
    }[kind]
    if not right:
        raise ValueError(f"must be {expected}")
    return value


def read_yaml(name: str | Path, folder: Path, kind: str) -> dict[str, Any]:
    """The keys of a YAML file, by path or by its name in `folder`, not checked yet; `kind` names it in messages.

    Raises:
        InputError: no such file (the nearest name is given), or not YAML.
    """
    import yaml

    path, named, shown = Path(name), list(datafiles.catalogue(folder, ".yaml")), datafiles.shown(folder)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name}.yaml"
        if not path.is_file():
            raise InputError(
                f"{kind} {str(name)!r}: not one of {', '.join(named)}{nearest(str(name), named)}; "
                "or give a path ending in .yaml"
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe file; named {kind}s are {', '.join(named)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as err:
        raise InputError(
            f"{path}: not readable as YAML ({' '.join(str(err).split())}); see {shown} for examples"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be key: value lines; see {shown} for examples")
    return values


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` of `--set` on the command line, the value read as YAML: ("lr", 0.01).

    Raises:
        InputError: no key, no =, or a value that is not YAML.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r}: must be key=value; for example --set lr=0.01")
    value = value.strip()
    if "#" in value:  # which begins a comment in a file, and means nothing here
        closing = {'"': '"', "'": "'", "[": "]", "{": "}"}.get(value[0])
        if closing is None:
            return key.strip(), value
        if len(value) < 2 or not value.endswith(closing):
            raise InputError(
                f"--set {text!r}: nothing may follow the closing {closing}; leave out what stands behind it"
            )
    try:
        return key.strip(), yaml.safe_load(uncommented(value))
    except yaml.YAMLError:
        raise InputError(f"--set {text!r}: the value is not readable as YAML; for example --set lr=0.01") from None


def uncommented(text: str) -> str:
    """A value from a command line, so that YAML reads all of it: where it would take a part as a comment, in quotes.

    >>> uncommented("[1, 2]"), uncommented("texts #1")
    ('[1, 2]', '"texts #1"')
    """
    if "#" not in text:
        return text
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return text  # whoever reads it says so
    read = text[: node.end_mark.index] if node else ""
    return text if read.strip() == text.strip() else json.dumps(text, ensure_ascii=False)


def to_yaml(value: Any) -> str:
    """A value as YAML on one line: text bare where that reads back as the same text, else in quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {to_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_yaml, value)) + "]"
    if isinstance(value, str):
        import yaml

        plain = set(value) <= _PLAIN and value[:1].isalpha()
        if plain and value == value.strip() and yaml.safe_load(value) == value:
            return value
        return yaml.safe_dump(value, default_style='"', width=10**9).strip()
    return str(value)
