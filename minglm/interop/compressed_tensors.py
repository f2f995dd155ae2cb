"""Quantised weights as transformers reads them (`GlmMoeDsaForCausalLM.from_pretrained`),
names as in `minglm.interop.huggingface`.

    fp8     quant_method "fp8": weight (e4m3) and weight_scale_inv; transformers needs the package accelerate
    int4    quant_method "compressed-tensors", pack-quantized: weight_packed (eight codes in an int32, the same nibbles
            as ours), weight_scale, weight_shape; transformers needs the package compressed-tensors
    w4a8    the same with two groups: experts pack-quantized, other matrices int-quantized, int8 inputs per token
    plain   any format multiplied out: loads everywhere, saves nothing; the rounding is in the values

transformers 5.23 without a GPU multiplies FP8 out and takes the height of a block to be rows / scale rows. That is
wrong for a last block that is smaller, so such matrices are written multiplied out and listed in
`modules_to_not_convert`. Ask for `from_pretrained(DIR, quantization_config=CompressedTensorsConfig(dequantize=True))`
with int4 and w4a8: without it transformers 5.23 leaves this architecture's experts as they were initialised.
Activations are rounded by whoever runs the checkpoint; transformers on a CPU does not round them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minglm import atomic
from minglm.errors import InputError
from minglm.interop.huggingface import hf_name, tensors_on_disk
from minglm.model.model import Model
from minglm.quant.formats import MODULES_TO_NOT_CONVERT, Spec
from minglm.quant.fp8 import Fp8
from minglm.quant.int4 import Int4
from minglm.quant.modules import PackedExperts, PackedLinear
from minglm.quant.scheme import Scheme
from minglm.runtime import run_folder


def write(model: Model, folder: str | Path, plain: bool = False) -> Path:
    """Write config.json and model.safetensors of a packed model.

    Raises:
        InputError: the model is not quantised, or the folder holds other files.
    """
    spec, folder = model.quantization, Path(folder)
    if not isinstance(spec, Spec):
        raise InputError("model is not quantised: use `minglm export-hf` for it")
    run_folder.refuse_foreign(folder, "export")
    run_folder.claim(folder, "export")
    dtype, layers = model.embed_tokens.weight.dtype, model.config.num_hidden_layers
    tensors: dict[str, Tensor] = {}
    kept: list[str] = []
    for name, matrix, scheme, parts in _matrices(model):
        name = hf_name(f"{name}.weight", layers).removesuffix(".weight")
        if plain or not _fits(scheme, matrix):
            tensors[f"{name}.weight"] = scheme.dequantize(*parts).to(dtype)
            kept.append(name)
        else:
            tensors |= {f"{name}.{part}": t for part, t in _serialised(scheme, parts, matrix, dtype)}
    inside = {f"{name}." for name, module in model.named_modules() if isinstance(module, (PackedLinear, PackedExperts))}
    for ours, tensor in model.state_dict().items():
        if not any(ours.startswith(prefix) for prefix in inside):
            tensors |= dict(tensors_on_disk(hf_name(ours, layers), tensor))
    config = {**model.config.to_hf(), "dtype": str(dtype).removeprefix("torch.")}
    if not plain:
        config["quantization_config"] = _config(spec, kept, layers)
    with atomic.beside(folder / "model.safetensors") as place:
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, place, {"format": "pt"})
    atomic.write_json(folder / "config.json", config, indent=2)
    return folder


def _matrices(model: Model) -> Iterator[tuple[str, tuple[int, int], Scheme, list[Tensor]]]:
    """(our name, (rows, width), number format, parts) of every quantised matrix, experts one by one."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, (module.out_features, module.in_features), module.scheme, list(module.quantised_parts())
        elif isinstance(module, PackedExperts):
            for stack in module.STACKS:
                rows, width = module.scheme.dequantize(*module.one_expert(stack, 0)).shape
                for e in range(module.quantised_parts(stack)[0].shape[0]):
                    yield f"{name}.{e}.{stack}", (rows, width), module.scheme, module.one_expert(stack, e)


def _fits(scheme: Scheme, matrix: tuple[int, int]) -> bool:
    if isinstance(scheme, Fp8):
        return all(size <= scheme.block or size % scheme.block == 0 for size in matrix)
    return matrix[1] % 8 == 0 or not isinstance(scheme, Int4)  # whole int32 words


def _serialised(
    scheme: Scheme, parts: list[Tensor], matrix: tuple[int, int], dtype: torch.dtype
) -> list[tuple[str, Tensor]]:
    if isinstance(scheme, Fp8):
        return [("weight", parts[0]), ("weight_scale_inv", parts[1])]
    if isinstance(scheme, Int4):  # four bytes with the even input low are one little-endian int32
        return [
            ("weight_packed", parts[0].contiguous().view(torch.int32)),
            ("weight_scale", parts[1].to(dtype)),
            ("weight_shape", torch.tensor(matrix, dtype=torch.int64)),
        ]
    return [("weight", parts[0]), ("weight_scale", parts[1].to(dtype))]


def _config(spec: Spec, kept: list[str], layers: int) -> dict:
    names = {".indexer.": "indexer", "mlp.gate.": "mlp.gate"}
    patterns = [names.get(part, part) for part in MODULES_TO_NOT_CONVERT]
    if spec.format == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [spec.block, spec.block],
            "modules_to_not_convert": [*patterns, *kept],
        }
    inputs = (
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        if spec.rounds_activations
        else None
    )
    int4 = {
        "format": "pack-quantized",
        "input_activations": inputs,
        "output_activations": None,
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": spec.group},
    }
    if spec.format == "int4":
        groups = {"group_0": {**int4, "targets": ["Linear"]}}
    else:
        int8 = {
            "format": "int-quantized",
            "input_activations": inputs,
            "output_activations": None,
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        }
        groups = {
            "group_0": {**int4, "targets": [r"re:.*\.mlp\.experts\..*"]},
            "group_1": {**int8, "targets": ["Linear"]},
        }
        patterns.append("kv_b_proj")
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if spec.format == "int4" else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "kv_cache_scheme": None,
        "ignore": [*(rf"re:.*{p.replace('.', chr(92) + '.')}.*" for p in patterns), *kept],
    }
