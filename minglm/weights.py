"""The weights of a layer by name and shape: the one table that every parameter and FLOP count is made from.

`minglm.config.ModelConfig` (the model that is built), `sim.spec.model.ModelSpec` (the model that is simulated) and
`sim.cost.parameters` (what a plan puts on one chip) all sum these rows, so they agree by construction; a test compares
them with the tensors of the built model. Names follow transformers; a projection's row is (inputs, outputs).

    >>> [w.name for w in swiglu(64, 160)], matmul_params(swiglu(64, 160))
    (['gate_proj', 'up_proj', 'down_proj'], 30720)

Symbols: C hidden, H heads, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Weight(NamedTuple):
    """One tensor: a matrix (inputs, outputs), or a vector (norm, bias)."""

    name: str
    shape: tuple[int, ...]
    sharded: bool = False  # tensor parallelism cuts it; otherwise every rank of a group holds it whole

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether a token is multiplied with it."""
        return len(self.shape) == 2


def total_params(weights: Iterable[Weight]) -> int:
    """Values of all weights."""
    return sum(w.size for w in weights)


def matmul_params(weights: Iterable[Weight]) -> int:
    """Values of the matrices alone: each costs one multiply-add a token."""
    return sum(w.size for w in weights if w.is_matrix)


def mla(C: int, H: int, q_lora: int, kv_lora: int, nope: int, rope: int, v_dim: int) -> tuple[Weight, ...]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). q_lora=0: queries straight from the hidden state."""
    query: tuple[Weight, ...]
    if q_lora:
        query = (
            Weight("q_a_proj", (C, q_lora)),
            Weight("q_a_layernorm", (q_lora,)),
            Weight("q_b_proj", (q_lora, H * (nope + rope)), True),
        )
    else:
        query = (Weight("q_proj", (C, H * (nope + rope)), True),)
    return (
        *query,
        Weight("kv_a_proj_with_mqa", (C, kv_lora + rope)),
        Weight("kv_a_layernorm", (kv_lora,)),
        Weight("kv_b_proj", (kv_lora, H * (nope + v_dim)), True),
        Weight("o_proj", (H * v_dim, C), True),
    )


def gqa(
    C: int,
    H: int,
    kv_heads: int,
    D: int,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    qk_norm_full: bool = False,
) -> tuple[Weight, ...]:
    """Grouped-query attention with heads of width D; multi-head and multi-query are its ends.

    qk_norm: queries and keys are normalised, one weight a value of a head; qk_norm_full: one a value of all heads.
    """
    norms = (("q_norm", H * D if qk_norm_full else D), ("k_norm", kv_heads * D if qk_norm_full else D))
    widths = (("q_proj", H * D), ("k_proj", kv_heads * D), ("v_proj", kv_heads * D))
    return (
        *(Weight(name, (C, width), True) for name, width in widths),
        *(Weight(f"{name}.bias", (width,), True) for name, width in widths if qkv_bias),
        *(Weight(name, (width,)) for name, width in norms if qk_norm),
        Weight("o_proj", (H * D, C), True),
    )


def indexer(C: int, q_in: int, heads: int, dim: int) -> tuple[Weight, ...]:
    """The lightning indexer of DeepSeek Sparse Attention; `q_in`: the query latent, or C where there is none."""
    return (
        Weight("wq_b", (q_in, heads * dim)),
        Weight("wk", (C, dim)),
        Weight("k_norm.weight", (dim,)),
        Weight("k_norm.bias", (dim,)),
        Weight("weights_proj", (C, heads)),
    )


def swiglu(C: int, width: int, gated: bool = True, bias: bool = False) -> tuple[Weight, ...]:
    """A feed-forward block: three matrices, or two without the gate."""
    rising = ("gate_proj", "up_proj") if gated else ("up_proj",)
    return (
        *(Weight(name, (C, width), True) for name in rising),
        Weight("down_proj", (width, C), True),
        *(Weight(f"{name}.bias", (width,), True) for name in rising if bias),
        *((Weight("down_proj.bias", (C,)),) if bias else ()),
    )


def router(C: int, E: int, balance_bias: bool = True, bias: bool = False) -> tuple[Weight, ...]:
    """Scores of E experts. The balance bias is a buffer, moved by the balance rule; published counts include it."""
    return (
        Weight("gate", (C, E)),
        *((Weight("gate.bias", (E,)),) if bias else ()),
        *((Weight("e_score_correction_bias", (E,)),) if balance_bias else ()),
    )


def mtp_join(C: int) -> tuple[Weight, ...]:
    """What a multi-token prediction module has beside its layer:
    two norms, their projection, the norm of its output.
    """
    return (
        Weight("enorm", (C,)),
        Weight("hnorm", (C,)),
        Weight("eh_proj", (2 * C, C)),
        Weight("shared_head.norm", (C,)),
    )
