"""Find a model by name or file: `data/models`, a config.json, a YAML of dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.sizes import NAMED_SIZES
from sim.base.documents import read_document, read_mapping
from sim.spec.dimensions import from_dimensions
from sim.spec.huggingface import from_hf
from sim.spec.model import ModelSpec, from_config
from sim.spec.published_params import are_params, as_config


def list_models() -> list[str]:
    """Names that `load_model` knows: the files of `data/models` and the named sizes of `ModelConfig`."""
    return sorted({*datafiles.catalogue("models", ".json", ".yaml"), *NAMED_SIZES})


def load_model(source: str | Path | Mapping | ModelConfig | ModelSpec) -> ModelSpec:
    """A model by name, by path of a `config.json`/YAML, from a parsed dict, or from a `ModelConfig`.

    Raises:
        InputError: unknown name (nearest one given), unsupported family, or impossible dimensions.
    """
    if isinstance(source, ModelSpec):
        return source.check()
    if isinstance(source, ModelConfig):
        return from_config(source)
    if isinstance(source, Mapping):
        return _from_mapping(
            source, str(source.get("name", source.get("_name_or_path") or source.get("model_type", "plain dimensions")))
        )
    text = str(source)
    name = text.strip().lower().replace("-", "_").replace(".", "_")
    names = list_models()
    flat = {n.replace("_", ""): n for n in names}
    stem = flat.get(name.replace("_", "").replace(" ", ""))
    if stem is not None and not ("/" in text or text.endswith((".json", ".yaml", ".yml"))):
        path = datafiles.catalogue("models", ".json", ".yaml").get(stem)
        if path is not None:
            return _from_mapping(read_mapping(path), stem)
        return from_config(ModelConfig.named(stem), stem)
    path = Path(text)
    try:
        is_file, is_dir = path.is_file(), path.is_dir()
    except (OSError, ValueError):
        is_file = is_dir = False
    if is_dir:
        path, is_file = path / "config.json", (path / "config.json").is_file()
    if is_file:
        values = read_document(path)
        if not isinstance(values, Mapping):
            raise InputError(
                f"{path}: holds a {type(values).__name__}, not a mapping; give a config.json or plain dimensions"
            )
        return _from_mapping(values, path.parent.name if path.name == "config.json" else path.stem)
    shown = text if len(text) <= 60 else text[:57] + "…"
    raise InputError(
        f"model {shown!r}: neither a known name{nearest(name, names)} nor a file; known: {', '.join(names)}"
    )


def _from_mapping(values: Mapping, name: str) -> ModelSpec:
    if "model_type" in values or "architectures" in values:
        return from_hf(values, name)
    if are_params(values):
        return from_hf(as_config(values), name)
    return from_dimensions(values, name)
