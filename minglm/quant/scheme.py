"""A number format with its settings. All of them quantise a weight (…, O, I), its leading axes experts, to a few
tensors named by `parts`, and share these calls:

    quantize(weight)         (…, O, I) → its parts
    dequantize(*parts)       parts → (…, O, I) fp32
    fake_quantize(weight)    (…, O, I) → the same as inference will see it
    shapes(rows, width)      shape and dtype of each part of a matrix
    linear(x, *parts)        x (…, I) → (…, O), in two steps:
    rounding                 the same for compiled experts
    inputs(x)                x as a product takes it, rounded where the format rounds activations
    rows_apart               whether rows of two matrices may be put together, part by part
    product(inputs, *parts)  → (…, O); one call of `inputs` serves every matrix that reads x
"""

from __future__ import annotations

from typing import TypeAlias

from minglm.quant.fp8 import Fp8
from minglm.quant.int4 import Int4
from minglm.quant.int8 import Int8

Scheme: TypeAlias = Fp8 | Int4 | Int8
