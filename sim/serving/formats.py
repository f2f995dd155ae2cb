"""How weights and cache are stored while serving, and at which precision the products of each part run.

A checkpoint in a low precision is never low throughout: embedding, head, router and norms stay in bf16, and some leave
attention, or whole layers, in bf16 too (`ModelSpec.fp8_attention`, `ModelSpec.fp8_skipped_layers`).

    >>> FORMATS["awq"].dense_bytes, FORMATS["awq"].dense_compute
    (0.51953125, 'bf16')
"""

from __future__ import annotations

from dataclasses import dataclass

from minglm.errors import InputError, nearest


@dataclass(frozen=True)
class Format:
    """Bytes of a stored weight (scales included) and the precision its matmuls run at."""

    dense_bytes: float
    expert_bytes: float
    dense_compute: str
    expert_compute: str
    source: str
    expert_width_multiple: int = 1  # kernels that need expert widths of a multiple store the padding
    wide: bool = False  # dense and shared feed-forwards and attention's output are stored as the experts are

    @property
    def ffn_bytes(self) -> float:
        """Of a weight of dense and shared feed-forwards and, where `wide`, of attention's output."""
        return self.expert_bytes if self.wide else self.dense_bytes

    @property
    def ffn_compute(self) -> str:
        """Precision of their products."""
        return self.expert_compute if self.wide else self.dense_compute


_BLOCK_FP8 = 1.0 + 4 / 16384
_INT4 = 0.5 + 2.5 / 128

# Embedding, head, router and norms stay in bf16 in every format, as in the published checkpoints.
FORMATS = {
    "bf16": Format(2.0, 2.0, "bf16", "bf16", "two bytes a weight"),
    "fp8": Format(
        _BLOCK_FP8,
        _BLOCK_FP8,
        "fp8",
        "fp8",
        "one byte, one fp32 scale per 128×128 block (DeepSeek-V3, GLM-5-FP8)",
    ),
    "w8a8": Format(1.0, 1.0, "int8", "int8", "INT8 weights and activations (CloudMatrix-Infer, GLM-5 report §5)"),
    "w4a8": Format(
        1.0,
        0.5 + 2 / 256,
        "int8",
        "int8",
        "attention and dense W8A8, experts W4A8 (GLM-5 report §5); a 16-bit scale per 256 weights assumed",
    ),
    "nvfp4": Format(
        2.0,
        0.5 + 1 / 16,
        "bf16",
        "fp4",
        "routed experts in NVFP4: a scale byte per 16 weights; the rest in bf16 (Kimi K2)",
    ),
    "nvfp4-mlp": Format(
        2.0,
        0.5 + 1 / 16,
        "bf16",
        "fp4",
        "all feed-forwards and attention's output in NVFP4 (nvidia/DeepSeek-R1-0528-FP4-v2: its tensor list, and "
        "'including the wo module' in the card of a checkpoint of the same scheme)",
        wide=True,
    ),
    "mxfp4": Format(
        2.0,
        0.5 + 1 / 32,
        "bf16",
        "bf16",
        "experts in MXFP4: a scale byte per 32 weights, multiplied in bf16; widths padded to 256 by the kernels "
        "(GPT-OSS-120B takes 64.38 GiB in vLLM, issue 33155)",
        256,
    ),
    "awq": Format(
        _INT4, _INT4, "bf16", "bf16", "weight-only: four bits, a 16-bit scale and a 4-bit zero per 128 weights"
    ),
    "w4a16-experts": Format(
        2.0,
        0.5 + 2 / 32,
        "bf16",
        "bf16",
        "weight-only: routed experts alone in four bits, a 16-bit scale per 32 weights (Kimi K2 Thinking and K2.5: "
        "attention, shared experts, dense layers and head are on the ignore list of their config)",
    ),
    "int8": Format(
        1.0 + 2 / 128, 1.0 + 2 / 128, "bf16", "bf16", "weight-only: eight bits and a 16-bit scale per 128 weights"
    ),
}
# A model without experts stores all its layers in the format that a mixture keeps for its experts (NVIDIA's NVFP4
# checkpoints of Llama and Qwen quantise attention and feed-forward alike).
DENSE_NVFP4 = Format(0.5 + 1 / 16, 0.5 + 1 / 16, "fp4", "fp4", "all matrices of layers in NVFP4")
ALIASES = {"gptq": "awq", "int4": "awq", "w4a16": "awq", "w8a16": "int8", "bfloat16": "bf16", "fp16": "bf16"}
KV_FORMATS = ("bf16", "fp8")


def format_of(precision: str, has_experts: bool) -> Format:
    """How a model in `precision` is stored."""
    return DENSE_NVFP4 if precision.startswith("nvfp4") and not has_experts else FORMATS[precision]


def format_name(precision: object) -> str:
    """The name of a format as `FORMATS` has it, however it was spelt.

    Raises:
        InputError: no such format.
    """
    name = str(precision).strip().lower()
    name = ALIASES.get(name, name)
    if not isinstance(precision, str) or name not in FORMATS:
        known = (*FORMATS, *ALIASES)
        raise InputError(f"precision {precision!r}: not one of {', '.join(known)}{nearest(str(precision), known)}")
    return name
