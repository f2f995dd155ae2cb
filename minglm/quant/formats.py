"""Which matrix gets which number format. Three formats by name, and one table of what stays in high precision and why.

int4   every matrix of attention and feed-forward: INT4, a scale for each group of inputs
fp8    the same matrices: e4m3 in blocks; activations e4m3 as well, as a rollout engine runs them
w4a8   routed experts INT4 weights, the other matrices INT8 weights, activations INT8 per token (GLM-5 report §5:
       experts W4A8, attention and dense feed-forward W8A8; its rotations and outlier smoothing are not done here)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minglm.errors import InputError, nearest

if TYPE_CHECKING:
    from minglm.quant.scheme import Scheme

FORMATS = {
    "int4": "INT4 weights, scale per group",
    "fp8": "FP8 e4m3 weights in scaled blocks, FP8 activations",
    "w4a8": "INT4 experts, INT8 other matrices, INT8 activations per token",
}

# Part of a name → why it keeps its precision. Looked up in order; vectors (norms, biases) are kept by rule.
MODULES_TO_NOT_CONVERT = {
    ".indexer.": "its scores decide by rank which keys are read: a small error changes the choice, "
    "and it holds 0.1% of GLM-5",
    "mlp.gate.": "the router decides by rank too: a token that changes its expert is wrong by a whole expert",
    "embed_tokens": "a lookup: each row is read alone, nothing averages its error",
    "lm_head": "its error lands on the logits, and the loss sees it undamped",
    "eh_proj": "the MTP module's entry; its error reaches everything behind it, with no path around",
}
VECTORS = "norms and biases are a few thousand numbers that scale everything after them"
ABSORBED = "kv_b_proj is folded into queries and outputs where activations are not rounded"


@dataclass(frozen=True)
class Spec:
    """A format and its settings.

    Raises:
        InputError: unknown format, or a group or block that cannot be.
    """

    format: str = "int4"
    group: int = 32  # int4 and w4a8: inputs that share a scale
    block: int = 128  # fp8: edge of a block
    activations: bool = True  # fp8 and w4a8: round activations too; False for weights alone

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format {self.format!r}: not one of {', '.join(FORMATS)}{nearest(self.format, FORMATS)}")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 2 or self.group % 2:
            raise InputError(f"group={self.group!r}: must be an even whole number; use 32, as many INT4 checkpoints do")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise InputError(
                f"block={self.block!r}: must be a whole number of at least 1; published checkpoints use 128"
            )

    @property
    def rounds_activations(self) -> bool:
        """Whether inference rounds activations too, so that matrices may not be multiplied into each other."""
        return self.format != "int4" and self.activations

    def scheme(self, name: str, expert: bool = False) -> Scheme | None:
        """The number format of the matrix called `name`, or None when it stays as it is."""
        # Here, because they need torch and the table of formats does not.
        from minglm.quant.fp8 import Fp8
        from minglm.quant.int4 import Int4
        from minglm.quant.int8 import Int8

        if self.reason_kept(name):
            return None
        if self.format == "int4":
            return Int4(self.group)
        if (
            self.format == "fp8"
        ):  # kv_b_proj meets inputs in one form of attention, queries in the other: neither is rounded
            return Fp8(self.block, self.activations and "kv_b_proj" not in name)
        return Int4(self.group, self.activations) if expert else Int8(self.activations)

    def reason_kept(self, name: str) -> str | None:
        """Why the tensor called `name` is not quantised; None when it is."""
        if name.endswith(("norm.weight", ".bias", "_bias")):
            return VECTORS
        if self.format == "w4a8" and "kv_b_proj" in name:
            return ABSORBED
        return next((reason for part, reason in MODULES_TO_NOT_CONVERT.items() if part in f".{name}"), None)
