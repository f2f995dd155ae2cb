"""Reading a YAML or JSON file that somebody else wrote: bounded, never executing, every fault one line.

Used for facts, scenarios and rows alike. PyYAML is imported here only, and only for a file that is not JSON.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from minglm.errors import InputError, keys_once

MAX_BYTES = 4 * 2**20
MAX_NODES = 200_000  # after aliases are expanded: a "billion laughs" file is refused, not built
MAX_DEPTH = 40


def read_document(path: str | Path) -> object:
    """The parsed contents of a YAML or JSON file.

    Raises:
        InputError: missing, a folder, too large, binary, not YAML/JSON, duplicate keys, an alias bomb, not finite
            numbers.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file; give the file inside it")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size:,} bytes is more than the limit of {MAX_BYTES:,}; give a smaller file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except InputError:
        raise
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: cannot be read ({getattr(err, 'strerror', None) or err}); check the path") from None
    return parse_text(decode_text(data, path, "YAML or JSON"), str(path))


def read_bytes(path: Path, most: int, remedy: str, count: int = -1) -> bytes:
    """The first `count` bytes of a file, or all of them.

    Raises:
        InputError: no such file, or more than `most` bytes; `remedy` says what to do then.
    """
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path}: more than {most:,} bytes; {remedy}")
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _encoding(data: bytes) -> str:
    """By a file's mark, else by where the zeros of its first character stand (as RFC 4627 tells JSON's apart)."""
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = [byte == 0 for byte in data[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8-sig"


def decode_text(data: bytes, path: str | Path, formats: str) -> str:
    """Text of a file in UTF-8, or in UTF-16 or UTF-32 as editors, spreadsheets and shells on Windows save it.

    Raises:
        InputError: another encoding, or no text at all.
    """
    try:
        text = data.decode(_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8 ({formats})") from None
    if "\0" in text:
        raise InputError(f"{path}: a binary file; give a text file in {formats}")
    return text


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The contents of a YAML or JSON file of keys and values; empty for an empty file.

    Raises:
        InputError: as `read_document`, or the file holds something else than keys and values.
    """
    document = read_document(path)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a {type(document).__name__}, not keys and values; give `key: value` lines")
    return document


def parse_text(text: str, where: str) -> object:
    """Parse YAML or JSON text; `where` names the source in messages."""
    try:
        if where.endswith(".json"):
            try:
                value = json.loads(text, object_pairs_hook=keys_once)
            except ValueError as err:
                raise InputError(f"{where}: not valid JSON ({_one_line(err)}); check the file") from None
        else:
            value = _yaml(text, where)
        _check(value, where)
    except RecursionError:
        raise InputError(f"{where}: nested more than {MAX_DEPTH} levels deep; flatten it") from None
    return value


def _yaml(text: str, where: str) -> object:
    try:
        import yaml
    except ImportError:
        try:
            return json.loads(text)  # JSON is YAML: where PyYAML is missing, JSON files still work
        except ValueError:
            return _lines(text, where)
    try:
        return yaml.load(text, Loader=_loader(yaml))
    except yaml.YAMLError as err:
        tab = next((n for n, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)), 0)
        if tab:
            raise InputError(f"{where}: line {tab} is indented with a tab; YAML is indented with spaces") from None
        raise InputError(f"{where}: not valid YAML ({_one_line(err)}); check the indentation and quotes") from None
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as err:
        raise InputError(f"{where}: not valid YAML ({_one_line(err)}); check the values") from None


def _lines(text: str, where: str) -> dict[str, Any]:
    """Files with one `key: JSON value` a line, as the planner page saves them: all that is read without PyYAML."""
    out: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, colon, value = line.partition(": ")
        try:
            if not colon or not key.isidentifier() or key in out:
                raise ValueError(line)
            out[key] = json.loads(value)
        except ValueError:
            raise InputError(
                f"{where}: PyYAML is missing, so only JSON and files saved by the planner page can be read; "
                f"{line[:40]!r} is neither; pip install pyyaml"
            ) from None
    return out


_LOADER: Any = None
_OLD_NUMBER = re.compile(r"[+-]?0[0-9_]+|.*:.*")  # octal and in sixties, in YAML 1.1 alone


def _loader(yaml: Any) -> Any:
    """SafeLoader that refuses duplicate keys and non-text keys, reads 1e12 as a number, and takes 010 and 1:30 for the
    texts that they are in YAML 1.2: nobody means eight, or ninety, as YAML 1.1 does.
    """
    global _LOADER
    if _LOADER is not None:
        return _LOADER

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    def mapping(loader: Any, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is a list or a mapping", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return yaml.constructor.SafeConstructor.construct_yaml_map(loader, node)

    def number(construct: Any) -> Any:
        def read(loader: Any, node: Any) -> Any:
            return node.value if _OLD_NUMBER.fullmatch(node.value) else construct(loader, node)

        return read

    constructor = yaml.constructor.SafeConstructor
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", number(constructor.construct_yaml_int))
    Loader.add_constructor("tag:yaml.org,2002:float", number(constructor.construct_yaml_float))
    # YAML 1.1 dates are never wanted here: leave them as text, so that release names like 2025-09-01 survive.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[+-]?\d+(?:\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
    )
    _LOADER = Loader
    return Loader


def _check(root: object, where: str) -> None:
    """Count nodes as if every alias were written out; refuse depth, cycles and non-finite numbers."""
    sizes: dict[int, int] = {}
    open_ids: set[int] = set()

    def size(value: object, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: nested more than {MAX_DEPTH} levels deep; flatten it")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: contains {value}; every number must be finite")
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) in open_ids:
            raise InputError(f"{where}: an alias that contains itself; write the values out")
        if id(value) in sizes:
            return sizes[id(value)]
        open_ids.add(id(value))
        total = 1
        for child in value.values() if isinstance(value, dict) else value:
            total += size(child, depth + 1)
            if total > MAX_NODES:
                raise InputError(
                    f"{where}: more than {MAX_NODES:,} values once aliases are expanded; write a smaller file"
                )
        open_ids.discard(id(value))
        sizes[id(value)] = total
        return total

    size(root, 0)


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]
