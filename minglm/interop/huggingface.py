"""Weights to and from Hugging Face: a folder with `config.json` and `model.safetensors` of type `glm_moe_dsa`.

Most names differ by the prefix `model.` only. Experts are stored one by one on disk (`experts.7.gate_proj.weight`) and
stacked here; the MTP module is stored as one more layer after the last, as in the published checkpoint, where
transformers has no place for it and leaves it out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minglm import atomic
from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.model.model import Model
from minglm.runtime import run_folder

_MTP_NAMES = {
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}
# The published MTP layer repeats the model's embedding and head; they are the same tensors there.
_MTP_REPEATS = ("embed_tokens.weight", "shared_head.head.weight")
_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")


def hf_name(name: str, layers: int) -> str:
    """Our state-dict name → theirs, experts still stacked."""
    if name.startswith("lm_head."):
        return name
    if name.startswith("mtp."):
        rest = name.removeprefix("mtp.")
        return f"model.layers.{layers}." + (_MTP_NAMES.get(rest) or rest.removeprefix("layer."))
    return "model." + name


def tensors_on_disk(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One of our tensors under its name(s) on disk: a stack of experts becomes one matrix per expert and projection."""
    if not (match := _STACKED.match(name)):
        yield name, tensor
        return
    for e, matrix in enumerate(tensor):
        parts = {"down_proj": matrix}
        if match[2] == "gate_up_proj":
            parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))
        for kind, part in parts.items():
            yield f"{match[1]}.{e}.{kind}.weight", part


def export_hf(model: Model, folder: str | Path) -> Path:
    """Write `config.json` and `model.safetensors` that transformers' `GlmMoeDsaForCausalLM.from_pretrained` loads.

    Each file appears under its name only when complete. Returns the folder.

    Raises:
        InputError: the model is quantised, or the folder holds something that is no export of ours.
    """
    if getattr(model, "quantization", None) is not None:
        raise InputError("the model is quantised: `minglm quantize RUN --hf DIR` writes it for transformers")
    folder = Path(folder)
    run_folder.refuse_foreign(folder, "export")
    run_folder.claim(folder, "export")
    layers = model.config.num_hidden_layers
    tensors = {
        name: part.detach().contiguous().cpu()
        for ours, tensor in model.state_dict().items()
        for name, part in tensors_on_disk(hf_name(ours, layers), tensor)
    }
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    with atomic.beside(folder / "model.safetensors") as place:
        save_file({k: v.clone() for k, v in tensors.items()}, place, metadata={"format": "pt"})
    atomic.write_json(folder / "config.json", {**model.config.to_hf(), "dtype": dtype}, indent=2)
    return folder


class _Checkpoint:
    """The tensors of a folder by name, whether in one file or in shards; opened lazily, errors named."""

    def __init__(self, folder: Path):
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if index.exists():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as err:
                raise InputError(f"{index}: not a safetensors index ({err}); download the checkpoint again") from None
            if outside := [f for f in files if not isinstance(f, str) or Path(f).name != f or "\\" in f]:
                raise InputError(f"{index}: {outside[0]!r} is not a file of this folder; download the checkpoint again")
            paths = [folder / f for f in files]
        else:
            paths = [single]
        self.where: dict[str, tuple[Path, Any]] = {}  # tensor → file, and its handle (`safetensors.safe_open`)
        for path in paths:
            try:
                handle = safe_open(path, framework="pt")
                self.where |= {name: (path, handle) for name in handle.keys()}
            except FileNotFoundError:
                raise InputError(
                    f"{path}: no such file; a checkpoint folder holds config.json and model.safetensors"
                ) from None
            except (SafetensorError, OSError) as err:
                raise InputError(
                    f"{path}: truncated or not a safetensors file ({err}); copy or download it again"
                ) from None
        self.unused = set(self.where)

    def is_empty(self, name: str) -> bool:
        """Whether the tensor holds no number."""
        return 0 in self.where[name][1].get_slice(name).get_shape()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, checked against the shape the config calls for."""
        path = next(iter(self.where.values()))[0] if self.where else Path("model.safetensors")
        if name not in self.where:
            raise InputError(
                f"{path}: tensor {name!r} is missing{nearest(name, self.unused)}; the file does not belong to this "
                f"config.json"
            )
        path, handle = self.where[name]
        if (on_disk := tuple(handle.get_slice(name).get_shape())) != tuple(shape):
            raise InputError(
                f"{path}: tensor {name!r} has shape {list(on_disk)}, config.json calls for {list(shape)}; "
                "use the config.json that was saved with these weights"
            )
        self.unused.discard(name)
        return handle.get_tensor(name)


def import_hf(folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Build the model that a Hugging Face folder of type `glm_moe_dsa` holds, in evaluation mode.

    Raises:
        InputError: config.json or weights are missing, truncated, of another model, or hold a tensor too many or too
            few; the message names the file and the tensor.
    """
    folder = Path(folder)
    config, checkpoint, state = ModelConfig.from_hf(folder), _Checkpoint(folder), {}
    layers = config.num_hidden_layers
    if config.num_nextn_predict_layers and not any(
        name.startswith(f"model.layers.{layers}.") for name in checkpoint.where
    ):
        # transformers drops the MTP layer when it loads, yet keeps the config's mention of it when it saves.
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = Model(config)
    for ours, want in model.state_dict().items():
        name = hf_name(ours, layers)
        if name in checkpoint.where or not (match := _STACKED.match(name)):
            tensor = checkpoint.take(name, want.shape)
        else:
            parts = [(n, p.shape) for n, p in tensors_on_disk(name, want)]
            flat = [checkpoint.take(n, s) for n, s in parts]
            per_expert = 2 if match[2] == "gate_up_proj" else 1
            tensor = torch.stack([torch.cat(flat[i : i + per_expert]) for i in range(0, len(flat), per_expert)])
        state[ours] = tensor.to(torch.float32 if ours.endswith("e_score_correction_bias") else dtype).clone()
    checkpoint.unused -= {f"model.layers.{layers}.{name}" for name in _MTP_REPEATS}
    if not config.n_shared_experts:  # transformers writes one of no width
        checkpoint.unused -= {name for name in checkpoint.unused if checkpoint.is_empty(name)}
    if checkpoint.unused:
        name = min(checkpoint.unused)
        raise InputError(
            f"{checkpoint.where[name][0]}: tensor {name!r} (one of {len(checkpoint.unused)}) has no place in the model "
            f"of "
            "config.json; use the config.json that was saved with these weights"
        )
    model.load_state_dict(state, assign=True)
    for p in model.parameters():
        p.requires_grad_(True)
    return model.eval()
