"""The model's one configuration object, and every figure that follows from it by arithmetic.

`ModelConfig` uses the field names of Hugging Face's `glm_moe_dsa`, reads and writes that `config.json` unchanged, and
owns the counts of parameters, FLOPs and cache bytes. The toy on your laptop and the 744B model are two values of this
one class, and the simulator reads the same object. Nothing here imports torch or numpy.

    >>> glm5 = ModelConfig.named("glm5")
    >>> f"{glm5.num_params() / 1e9:.3f}B, {glm5.num_active_params() / 1e9:.2f}B active"
    '743.911B, 40.83B active'
    >>> glm5.kv_cache_bytes_per_token("bf16"), glm5.indexer_cache_bytes_per_token("bf16")
    (89856, 19968)

Symbols: C hidden, H heads, E experts, K chosen experts, V vocabulary, S sequence length.
Sources: GLM-5 report (arXiv 2602.15763, §2.1 and App. A); DeepSeek-V3.2 (DSA); transformers 5.23 `glm_moe_dsa`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import config_file, weights
from minglm.errors import InputError, nearest
from minglm.sizes import NAMED_SIZES
from minglm.weights import Weight, matmul_params, swiglu, total_params

BYTES_PER_VALUE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}

_POSITIVE = tuple(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads q_lora_rank kv_lora_rank
    qk_nope_head_dim qk_rope_head_dim v_head_dim index_topk index_n_heads index_head_dim
    n_routed_experts num_experts_per_tok moe_intermediate_size intermediate_size
    max_position_embeddings mtp_depth
    """.split()
)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a GLM-5-like model: MLA attention, DSA indexer, mixture of experts, multi-token prediction.

    Raises:
        InputError: a value breaks a rule; the message names the value, the rule and a remedy.
    """

    # ---- width and depth
    vocab_size: int = 154880
    hidden_size: int = 6144
    num_hidden_layers: int = 78
    first_k_dense_replace: int = 3  # the first layers keep a dense FFN
    intermediate_size: int = 12288  # width of that dense FFN
    # ---- attention: multi-head latent attention (MLA)
    num_attention_heads: int = 64
    q_lora_rank: int = 2048  # queries pass through a latent of this width
    kv_lora_rank: int = 512  # keys and values are rebuilt from a cached latent of this width
    qk_nope_head_dim: int = 192  # per head, the part without rotary position
    qk_rope_head_dim: int = 64  # per head, the rotary part; its key is shared by all heads
    v_head_dim: int = 256
    # ---- DeepSeek Sparse Attention (DSA): the lightning indexer chooses `index_topk` keys for each query
    index_topk: int = 2048
    index_n_heads: int = 32
    index_head_dim: int = 128
    indexer_types: tuple[
        str, ...
    ] = ()  # all full where left out; per layer: "full" runs the indexer, "shared" reuses the last choice
    # ---- mixture of experts
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    moe_intermediate_size: int = 2048
    routed_scaling_factor: float = 2.5
    # ---- multi-token prediction: `num_nextn_predict_layers` stored modules, applied `mtp_depth` times
    num_nextn_predict_layers: int = 1
    mtp_depth: int = 3  # depths that share the module's parameters (GLM-5 report §2.1)
    # the module reads hidden states after a norm (the final one, then its own), as published checkpoints expect
    mtp_normed_hidden: bool = False
    # ---- the rest
    max_position_embeddings: int = 202752
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("indexer_types", "eos_token_id"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.indexer_types:
            object.__setattr__(self, "indexer_types", ("full",) * int(self.num_hidden_layers))
        self._check()

    def _check(self) -> None:
        self._check_numbers()
        self._check_indexers()
        if self.qk_rope_head_dim % 2:
            raise InputError(
                f"qk_rope_head_dim={self.qk_rope_head_dim}: rotary position turns pairs of values, so the width "
                f"must be even; use {self.qk_rope_head_dim + 1}"
            )
        if self.index_head_dim < self.qk_rope_head_dim:
            raise InputError(
                f"index_head_dim={self.index_head_dim}: must hold the rotary part qk_rope_head_dim="
                f"{self.qk_rope_head_dim}; use index_head_dim of at least {self.qk_rope_head_dim}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise InputError(
                f"num_experts_per_tok={self.num_experts_per_tok}: a token cannot choose more experts than the "
                f"n_routed_experts={self.n_routed_experts} there are; lower it to {self.n_routed_experts} or add "
                "experts"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise InputError(
                f"first_k_dense_replace={self.first_k_dense_replace}: more dense layers than "
                f"num_hidden_layers={self.num_hidden_layers}; use at most {self.num_hidden_layers}"
            )
        if self.num_nextn_predict_layers > 1:
            raise InputError(
                f"num_nextn_predict_layers={self.num_nextn_predict_layers}: one stored MTP module is supported, shared "
                "by all depths as in GLM-5; use 0 or 1 and set mtp_depth"
            )

    def _check_numbers(self) -> None:
        for name in (*_POSITIVE, "first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers"):
            value, least = getattr(self, name), 1 if name in _POSITIVE else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name}={value!r}: must be a whole number of at least {least}; give {name}: {max(least, 1)} or "
                    "more"
                )
        for name in ("rope_theta", "rms_norm_eps", "initializer_range", "routed_scaling_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{name}={value!r}: must be a positive finite number; leave it out for the default")
            object.__setattr__(self, name, float(value))  # a whole number too: readers of the file tell them apart
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            said = getattr(self, name)
            ids = said if isinstance(said, tuple) and name == "eos_token_id" else () if said is None else (said,)
            if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
                raise InputError(
                    f"{name}={said!r}: must be the number of a token, of at least 0; leave it out or give null for none"
                )
        if not isinstance(self.mtp_normed_hidden, bool):
            raise InputError(f"mtp_normed_hidden={self.mtp_normed_hidden!r}: must be true or false")

    def _check_indexers(self) -> None:
        if not isinstance(self.indexer_types, tuple):
            raise InputError(
                f"indexer_types={self.indexer_types!r}: must list 'full' or 'shared' for each layer; leave it out for "
                "'full' everywhere"
            )
        if len(self.indexer_types) != self.num_hidden_layers:
            raise InputError(
                f"indexer_types has {len(self.indexer_types)} entries: it needs one for each of the "
                f"num_hidden_layers={self.num_hidden_layers}; leave it out for 'full' everywhere"
            )
        for kind in self.indexer_types:
            if kind not in ("full", "shared"):
                raise InputError(
                    f"indexer_types contains {kind!r}: each entry is 'full' or "
                    f"'shared'{nearest(kind, ('full', 'shared'))}"
                )
        if self.indexer_types[0] != "full":
            raise InputError(
                "indexer_types[0]='shared': the first layer has no earlier choice to reuse; make it 'full'"
            )

    # ------------------------------------------------------------------ making one

    @classmethod
    def named(cls, name: str, **changes: Any) -> ModelConfig:
        """A named size (`NAMED_SIZES`), with optional changes: `ModelConfig.named("mini", index_topk=32)`."""
        if name not in NAMED_SIZES:
            raise InputError(f"model size {name!r}: not one of {', '.join(NAMED_SIZES)}{nearest(name, NAMED_SIZES)}")
        return cls.from_dict({**NAMED_SIZES[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from our own keys; an unknown key is refused with the nearest known one."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise InputError(
                    f"model config key {key!r}: not a known key{nearest(key, known)}; see minglm/config.py for the list"
                )
        return cls(**values)

    @classmethod
    def from_hf(cls, source: str | Path | dict[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json` of type `glm_moe_dsa` (a path, a folder, or the parsed dict).

        Raises:
            InputError: it cannot be read, or would be another computation (`minglm.config_file`).
        """
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        return cls.from_dict(config_file.fields_of(config_file.read_json(source), defaults))

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers' `GlmMoeDsaConfig` reads, as a dict."""
        out = {
            key: list(v) if isinstance(v := getattr(self, key), tuple) else v
            for key in (f.name for f in dataclasses.fields(self))
            if key != "rope_theta"
        }
        return out | {
            "model_type": "glm_moe_dsa",
            "architectures": ["GlmMoeDsaForCausalLM"],
            **config_file.FIXED,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "num_key_value_heads": self.num_attention_heads,
        }

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready; `from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    # ------------------------------------------------------------------ derived widths

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: position-free part plus rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers with experts."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def num_full_indexers(self) -> int:
        """Layers that run an indexer of their own; the others reuse the last choice."""
        return sum(kind == "full" for kind in self.indexer_types)

    # ------------------------------------------------------------------ parameters

    def attention_weights(self) -> tuple[Weight, ...]:
        """Weights of one layer's attention by name and shape, the indexer left out."""
        return weights.mla(
            self.hidden_size,
            self.num_attention_heads,
            self.q_lora_rank,
            self.kv_lora_rank,
            self.qk_nope_head_dim,
            self.qk_rope_head_dim,
            self.v_head_dim,
        )

    def indexer_weights(self) -> tuple[Weight, ...]:
        """Weights of one lightning indexer by name and shape."""
        return weights.indexer(self.hidden_size, self.q_lora_rank, self.index_n_heads, self.index_head_dim)

    def params_breakdown(self) -> dict[str, int]:
        """Parameters of each part, whole model. `router_bias` are buffers (moved by the balance rule, not by
        gradients).

        The keys `embedding … final_norm` sum to `num_params()`; `mtp` comes on top.
        """
        C, E, layers, moe_layers = self.hidden_size, self.n_routed_experts, self.num_hidden_layers, self.num_moe_layers
        attention, indexer = total_params(self.attention_weights()), total_params(self.indexer_weights())
        expert = total_params(swiglu(C, self.moe_intermediate_size))
        router, router_bias = matmul_params(weights.router(C, E)), E
        parts = {
            "embedding": self.vocab_size * C,
            "attention": layers * attention,
            "indexer": self.num_full_indexers * indexer,
            "dense_ffn": self.first_k_dense_replace * total_params(swiglu(C, self.intermediate_size)),
            "routed_experts": moe_layers * E * expert,
            "shared_experts": moe_layers * self.n_shared_experts * expert,
            "router": moe_layers * router,
            "router_bias": moe_layers * router_bias,
            "norms": layers * 2 * C,
            "head": self.vocab_size * C,
            "final_norm": C,
        }
        # One MTP module: a whole MoE layer, the projection of [embedding; hidden], two norms for those, one for the
        # output.
        layer = attention + indexer + (E + self.n_shared_experts) * expert + router + router_bias + 2 * C
        parts["mtp"] = self.num_nextn_predict_layers * (layer + total_params(weights.mtp_join(C)))
        return parts

    def num_params(self, mtp: bool = False) -> int:
        """Total parameters with embedding and head, balance-bias buffers included as in the published count."""
        parts = self.params_breakdown()
        return sum(parts.values()) - (0 if mtp else parts["mtp"])

    def num_active_params(self, embedding: bool = False, head: bool = True) -> int:
        """Parameters that touch one token: K of E experts, all else.

        The embedding is a lookup, so it is off by default.
        """
        parts = self.params_breakdown()
        routed = self.num_moe_layers * self.num_experts_per_tok * 3 * self.hidden_size * self.moe_intermediate_size
        total = self.num_params() - parts["routed_experts"] - parts["embedding"] - parts["head"] + routed
        return total + embedding * parts["embedding"] + head * parts["head"]

    # ------------------------------------------------------------------ FLOPs

    def flops_breakdown(self, seq: int, sparse: bool = True) -> dict[str, float]:
        """Forward FLOPs for one token of a causal sequence of `seq` tokens, averaged over its positions.

        A multiply-add counts as 2. `linear` is every matmul with a weight; `attention` is scores and values over the
        keys that a query reads (all visible ones, or at most index_topk when `sparse`), at the widths of single heads:
        model FLOPs. Gathered keys are read absorbed, which takes (2·kv_lora_rank + qk_rope_head_dim) / (qk_head_dim +
        v_head_dim) times that, 2.1 for GLM-5. `indexer` scores every visible key.
        """
        if seq < 1:
            raise InputError(f"seq={seq}: a sequence has at least one token; give seq of 1 or more")
        H, visible = self.num_attention_heads, (seq + 1) / 2
        read = visible
        if sparse and seq > self.index_topk:
            k = self.index_topk
            read = (k * (k + 1) / 2 + (seq - k) * k) / seq
        C, full = self.hidden_size, self.num_full_indexers
        # A query that sees index_topk keys or fewer reads them all: the weights of the indexer still run.
        matmul = (
            self.num_hidden_layers * matmul_params(self.attention_weights())
            + full * matmul_params(self.indexer_weights()) * sparse
            + self.first_k_dense_replace * matmul_params(swiglu(C, self.intermediate_size))
            + self.num_moe_layers * self._moe_matmul_params()
            + self.vocab_size * C
        )
        return {
            "linear": 2.0 * matmul,
            "attention": self.num_hidden_layers * 2.0 * H * (self.qk_head_dim + self.v_head_dim) * read,
            "indexer": full * 2.0 * self.index_n_heads * (self.index_head_dim + 1) * visible if sparse else 0.0,
        }

    def _moe_matmul_params(self) -> int:
        """Weights that multiply one token in one expert layer: the router, K routed experts and the shared ones."""
        experts = self.num_experts_per_tok + self.n_shared_experts
        router = weights.router(self.hidden_size, self.n_routed_experts)
        return experts * matmul_params(swiglu(self.hidden_size, self.moe_intermediate_size)) + matmul_params(router)

    def train_flops_per_token(self, seq: int, sparse: bool = True, mtp: bool = False) -> float:
        """Model FLOPs to train on one token: 3× forward (backward costs two forwards), no recomputation counted.

        This is the numerator of MFU. `mtp` adds the prediction module, run `mtp_depth` times with its own head matmul.
        """
        one = self.flops_breakdown(seq, sparse)
        forward = sum(one.values())
        if mtp and self.num_nextn_predict_layers:
            layer = (
                matmul_params(self.attention_weights())
                + (matmul_params(self.indexer_weights()) if sparse else 0)
                + self._moe_matmul_params()
                + matmul_params(weights.mtp_join(self.hidden_size))
            )
            head = self.vocab_size * self.hidden_size
            read = (one["attention"] + one["indexer"]) / self.num_hidden_layers
            forward += self.mtp_depth * (2.0 * (layer + head) + read)
        return 3.0 * forward

    # ------------------------------------------------------------------ cache

    def kv_cache_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Bytes of MLA cache for one token over all layers: the KV latent and the shared rotary key."""
        return (self.kv_lora_rank + self.qk_rope_head_dim) * _width(dtype) * self.num_hidden_layers

    def indexer_cache_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Bytes of indexer keys for one token over the layers that run an indexer."""
        return self.index_head_dim * _width(dtype) * self.num_full_indexers


def _width(dtype: str) -> int:
    if dtype not in BYTES_PER_VALUE:
        raise InputError(f"dtype {dtype!r}: not one of {', '.join(BYTES_PER_VALUE)}{nearest(dtype, BYTES_PER_VALUE)}")
    return BYTES_PER_VALUE[dtype]
