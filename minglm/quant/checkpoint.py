"""Quantised checkpoints: codes and scales as safetensors, verified when read, loaded by `minglm generate --checkpoint`.

    DIR/model.safetensors     codes, scales, and the tensors that stay as they are
        quantization.json     format, settings, config, sizes, SHA-256 of the tensors; written last
        tokenizer.json config.json

What is read is checked before it is used: the file against its hash, every tensor's presence, shape and dtype against
the config, every scale for being a positive finite number, INT4 codes for the one value that the format leaves out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minglm import atomic
from minglm.config import ModelConfig
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.model.model import Model
from minglm.quant.formats import Spec
from minglm.quant.modules import PackedExperts, PackedLinear, empty_packed

NOTE = "quantization.json"
_FORMAT = "minglm-quantized-1"


def is_quantised(path: str | Path) -> bool:
    """Whether `path` is a folder that `save` wrote."""
    return (Path(path) / NOTE).is_file()


def save(model: Model, tokenizer, folder: str | Path, made_from: str = "", extra: dict | None = None) -> Path:
    """Write a packed model. The folder must be new, empty, or hold an earlier result of this function.

    Raises:
        InputError: the model is not quantised, or the folder holds something else.
    """
    spec, folder = getattr(model, "quantization", None), Path(folder)
    if spec is None:
        raise InputError(
            "model is not quantised: call minglm.quant.modules.pack first, or save it with minglm.training.checkpoint"
        )
    if folder.exists() and not is_quantised(folder) and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty and not a quantised checkpoint; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    with atomic.beside(folder / "model.safetensors") as place:
        save_file(tensors, place, {"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    atomic.write_json(folder / "config.json", model.config.to_hf())
    note = {
        "format": _FORMAT,
        "spec": dataclasses.asdict(spec),
        "config": model.config.to_dict(),
        "made_from": made_from,
        "sha256": _sha256(folder / "model.safetensors"),
        **(extra or {}),
    }
    atomic.write_json(folder / NOTE, note)
    return folder


def read_note(folder: str | Path) -> dict:
    """quantization.json, with `spec` and `config` as objects.

    Raises:
        InputError: missing or damaged.
    """
    path = Path(folder) / NOTE
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["format"] != _FORMAT:
            raise ValueError(f"format {note['format']!r}")
        return {
            **note,
            "spec": Spec(**note["spec"]),
            "config": ModelConfig.from_dict(note["config"]),
            "sha256": str(note["sha256"]),
        }
    except FileNotFoundError:
        raise InputError(f"{path}: missing; give a folder that `minglm quantize` wrote") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: damaged ({err}); make it again with `minglm quantize`") from None


def load(folder: str | Path, device: str = "cpu") -> tuple[Model, Tokenizer, dict]:
    """(model in evaluation mode, tokenizer, quantization.json) of a quantised checkpoint.

    Raises:
        InputError: names the file, and the tensor, that is missing, damaged or does not fit.
    """
    folder = Path(folder)
    note, file = read_note(folder), folder / "model.safetensors"
    if not file.is_file():
        raise InputError(f"{file}: missing; make it again with `minglm quantize`")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as err:
        raise InputError(f"{file}: not readable as safetensors ({err}); make it again with `minglm quantize`") from None
    with torch.device("meta"):
        model = empty_packed(Model(note["config"]), note["spec"])
    _check(file, tensors, model)
    if _sha256(file) != note["sha256"]:
        raise InputError(
            f"{file}: changed since it was written, its hash does not fit {NOTE}; make it again with `minglm quantize`"
        )
    model.load_state_dict(tensors, assign=True)
    for p in model.parameters():
        p.requires_grad_(False)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json; copy the one of the run it was made from there")
    return model.to(device).eval(), Tokenizer.load(folder), note


def _check(file: Path, tensors: dict[str, Tensor], model: Model) -> None:
    wanted = model.state_dict()
    for name, want in wanted.items():
        if name not in tensors:
            raise InputError(f"{file}: tensor {name!r} is missing; the file does not belong to this {NOTE}")
        if tensors[name].shape != want.shape or (tensors[name].dtype != want.dtype and not want.is_floating_point()):
            raise InputError(
                f"{file}: tensor {name!r} is {tensors[name].dtype} {list(tensors[name].shape)}, {NOTE} calls for "
                f"{want.dtype} {list(want.shape)}; use the {NOTE} that was written with it"
            )
    if extra := set(tensors) - set(wanted):
        raise InputError(
            f"{file}: tensor {min(extra)!r} (one of {len(extra)}) has no place in the model of {NOTE}; use the one "
            f"written with it"
        )
    for name, module in model.named_modules():
        if not isinstance(module, (PackedLinear, PackedExperts)):
            continue
        for part, _ in module.named_buffers(recurse=False):
            values = tensors[f"{name}.{part}"]
            if part.endswith(("scale", "scale_inv")):
                bad = ~(values.float().isfinite() & (values > 0))
                if bool(bad.any()):
                    place = bad.nonzero()[0].tolist()
                    raise InputError(
                        f"{file}: scale {name}.{part}{place} is {float(values[tuple(place)])}: every scale is a "
                        f"positive "
                        f"finite number; "
                        "the file is damaged, make it again with `minglm quantize`"
                    )
            elif part.endswith("packed") and bool(((values & 15 == 0) | (values >> 4 == 0)).any()):
                raise InputError(
                    f"{file}: {name}.{part} holds the code -8, which the format does not use; the file is damaged, "
                    f"make it again "
                    "with `minglm quantize`"
                )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
