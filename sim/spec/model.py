"""What the simulator needs to know of a model: shapes, and the arithmetic that follows from them.

`ModelSpec` covers the families people train: dense and mixture-of-experts decoders with grouped-query attention or MLA,
the DSA indexer, multi-token prediction. `minglm.config.ModelConfig` (GLM-5 and its miniatures) becomes one by
`from_config`; a Hugging Face `config.json` by `sim.spec.huggingface.from_hf`; plain dimensions by
`sim.spec.dimensions.from_dimensions`.

    >>> from sim.spec.model_loader import load_model
    >>> llama = load_model("llama3_405b")
    >>> f"{llama.total_params() / 1e9:.2f}B"
    '405.85B'

Symbols: C hidden, H heads, E experts, K chosen experts, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minglm import weights
from minglm.config import BYTES_PER_VALUE, ModelConfig
from minglm.errors import InputError, nearest
from minglm.weights import Weight, matmul_params, total_params


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a decoder. Widths are in values, not bytes. Zero turns a part off.

    Raises:
        InputError: from `check()`, which every constructor function here calls.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # query/key/value head width (gqa); MLA uses the five below
    ffn: int  # width of the dense FFN
    vocab: int
    gated_ffn: bool = True  # SwiGLU: three matrices; otherwise two
    tied: bool = False  # head shares the embedding
    attention: str = "gqa"  # "gqa" (MHA and MQA are its ends) | "mla"
    # ---- MLA
    q_lora: int = 0  # 0: queries straight from the hidden state
    kv_lora: int = 0
    nope: int = 0
    rope: int = 0
    v_dim: int = 0
    # ---- DeepSeek Sparse Attention
    index_topk: int = 0
    index_heads: int = 0
    index_dim: int = 0
    indexer_full_layers: int = 0  # layers that run their own indexer (the others reuse a choice)
    # ---- mixture of experts
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    moe_ffn: int = 0  # width of one routed expert
    shared_ffn: int = 0  # width of all shared experts together; 0 means shared_experts × moe_ffn
    dense_layers: int = 0  # layers with a dense FFN (assumed first) in a model with experts
    router_groups: int = 0  # group-limited routing: experts are in this many groups …
    groups_per_token: int = 0  # … and a token's choice stays within this many (0: no limit)
    router_bias: bool = False  # loss-free balance bias, one per expert (a buffer, counted as published)
    shared_gate: bool = False  # Qwen2-MoE: a scalar gate on the shared expert
    # ---- multi-token prediction
    mtp_modules: int = 0  # stored modules
    mtp_depth: int = 0  # how often they are applied in training
    # ---- small parts that exact counts need
    norm: str = "rms"  # "rms" (C values) | "layer" (2C) | "bare" (no weights)
    norms_per_layer: int = 2
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    router_has_bias: bool = False
    qk_norm: bool = False
    qk_norm_full: bool = False  # over all heads together (OLMo 2, MiniMax-M2), not over each
    sinks: bool = False  # GPT-OSS: one learned sink logit per head
    positions: int = 0  # learned position embeddings
    extra_params: int = 0  # weights of still smaller parts: a bias of the head, a norm after the embedding
    window: int = 0  # sliding window in tokens …
    window_layers: int = 0  # … of this many layers
    max_seq: int = 4096
    # ---- what the published FP8 checkpoint leaves in bf16
    fp8_attention: bool = True  # False: attention
    fp8_skipped_layers: int = 0  # whole layers
    source: str = ""

    # ------------------------------------------------------------------ checks

    def check(self) -> ModelSpec:
        """Return self when the shape is possible.

        Raises:
            InputError: one line with the value, the rule and a value that would do.
        """
        for name in ("layers", "hidden", "heads", "kv_heads", "vocab", "max_seq"):
            _at_least(self, name, 1)
        for field in dataclasses.fields(self):
            if field.type == "int":
                _at_least(self, field.name, 0)
        if self.layers > 100_000:
            raise InputError(f"model layers={self.layers:,}: more than 100,000; check the number")
        self._check_attention()
        if self.experts:
            self._check_experts()
        if self.dense_ffn_layers:
            _at_least(self, "ffn", 1)
        if self.window_layers > self.layers or self.indexer_full_layers > self.layers:
            raise InputError(
                f"window_layers={self.window_layers}, indexer_full_layers={self.indexer_full_layers}: "
                f"cannot exceed layers={self.layers}; lower them"
            )
        return self

    def _check_attention(self) -> None:
        if self.attention not in ("gqa", "mla"):
            raise InputError(
                f"attention={self.attention!r}: must be 'gqa' or 'mla'{nearest(self.attention, ('gqa', 'mla'))}"
            )
        if self.attention == "mla":
            for name in ("kv_lora", "nope", "rope", "v_dim"):
                _at_least(self, name, 1)
            return
        _at_least(self, "head_dim", 1)
        if self.heads % self.kv_heads:
            raise InputError(
                f"kv_heads={self.kv_heads}: must divide heads={self.heads}; use for example kv_heads={self.heads}"
            )

    def _check_experts(self) -> None:
        _at_least(self, "experts_per_token", 1)
        _at_least(self, "moe_ffn", 1)
        if self.experts_per_token > self.experts:
            raise InputError(
                f"experts_per_token={self.experts_per_token}: a token cannot choose more experts than the "
                f"experts={self.experts} there are; lower it to {self.experts}"
            )
        if self.dense_layers > self.layers:
            raise InputError(
                f"dense_layers={self.dense_layers}: more than layers={self.layers}; use at most {self.layers}"
            )

    # ------------------------------------------------------------------ derived widths

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def dense_ffn_layers(self) -> int:
        """Layers with a dense FFN."""
        return self.layers - self.moe_layers

    @property
    def qk_dim(self) -> int:
        """Width of one query or key head."""
        return self.nope + self.rope if self.attention == "mla" else self.head_dim

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.v_dim if self.attention == "mla" else self.head_dim

    @property
    def shared_width(self) -> int:
        """Width of the shared experts of one MoE layer together."""
        return self.shared_ffn or self.shared_experts * self.moe_ffn

    @property
    def ffn_matrices(self) -> int:
        """Weight matrices of an FFN."""
        return 3 if self.gated_ffn else 2

    # ------------------------------------------------------------------ parameters

    def attention_weights(self) -> tuple[Weight, ...]:
        """Weights of one layer's attention by name and shape, the indexer left out."""
        if self.attention == "mla":
            out = weights.mla(self.hidden, self.heads, self.q_lora, self.kv_lora, self.nope, self.rope, self.v_dim)
        else:
            out = weights.gqa(
                self.hidden, self.heads, self.kv_heads, self.head_dim, self.qkv_bias, self.qk_norm, self.qk_norm_full
            )
        if self.out_bias:
            out += (Weight("o_proj.bias", (self.hidden,)),)
        return (*out, Weight("sinks", (self.heads,), True)) if self.sinks else out

    def indexer_weights(self) -> tuple[Weight, ...]:
        """Weights of one lightning indexer; none where the model has none."""
        if not self.index_heads:
            return ()
        return weights.indexer(self.hidden, self.q_lora or self.hidden, self.index_heads, self.index_dim)

    def ffn_weights(self, width: int, bias: bool = False) -> tuple[Weight, ...]:
        """Weights of a feed-forward block of this model: the dense one, one expert, or the shared experts together."""
        return weights.swiglu(self.hidden, width, self.gated_ffn, bias)

    def router_weights(self) -> tuple[Weight, ...]:
        """Weights of one router, with the balance bias where the family has it."""
        return weights.router(self.hidden, self.experts, self.router_bias, self.router_has_bias)

    def attention_matmul_params(self) -> int:
        """Values of one layer's attention projections (no norms, biases or indexer)."""
        return matmul_params(self.attention_weights())

    def indexer_matmul_params(self) -> int:
        """Values of one lightning indexer's matrices."""
        return matmul_params(self.indexer_weights())

    def norm_params(self) -> int:
        """Weights of one norm of the stream."""
        return self.hidden * {"rms": 1, "layer": 2, "bare": 0}[self.norm]

    def expert_params(self) -> int:
        """Weights of one routed expert (biases included where the family has them)."""
        return total_params(self.ffn_weights(self.moe_ffn, self.ffn_bias))

    def params(self) -> dict[str, int]:
        """Parameters by part. `embedding … final_norm` sum to `total_params()`; `mtp` comes on top."""
        C, E = self.hidden, self.experts
        attention, indexer = total_params(self.attention_weights()), total_params(self.indexer_weights())
        dense = total_params(self.ffn_weights(self.ffn, self.ffn_bias))
        shared = total_params(self.ffn_weights(self.shared_width))
        shared += C if self.shared_gate and self.shared_width else 0
        balance = E * self.router_bias
        router, norm = total_params(self.router_weights()) - balance, self.norm_params()
        parts = {
            "embedding": self.vocab * C,
            "positions": self.positions * C,
            "attention": self.layers * attention,
            "indexer": self.indexer_full_layers * indexer,
            "dense_ffn": self.dense_ffn_layers * dense,
            "routed_experts": self.moe_layers * E * self.expert_params(),
            "shared_experts": self.moe_layers * shared,
            "router": self.moe_layers * router,
            "router_bias": self.moe_layers * balance,
            "norms": self.layers * self.norms_per_layer * norm + self.extra_params,
            "head": 0 if self.tied else self.vocab * C,
            "final_norm": norm,
        }
        layer = attention + (indexer if self.indexer_full_layers else 0) + 2 * norm
        layer += E * self.expert_params() + shared + router + balance if E else dense
        parts["mtp"] = self.mtp_modules * (layer + total_params(weights.mtp_join(C)))
        return parts

    def total_params(self, mtp: bool = False) -> int:
        """All parameters with embedding and head."""
        parts = self.params()
        return sum(parts.values()) - (0 if mtp else parts["mtp"])

    def active_params(self, embedding: bool = False, head: bool = True) -> int:
        """Parameters that touch one token: K of E experts, all else. The embedding is a lookup: off by default."""
        parts = self.params()
        total = self.total_params() - parts["routed_experts"] - parts["embedding"] - parts["positions"] - parts["head"]
        total += self.moe_layers * self.experts_per_token * self.expert_params()
        return total + embedding * (parts["embedding"] + parts["positions"]) + head * self.vocab * self.hidden

    # ------------------------------------------------------------------ FLOPs

    def keys_read(self, seq: int, causal: bool = True, sparse: bool = True) -> float:
        """Mean number of keys a query attends to, averaged over positions and layers."""

        def capped(k: int) -> float:
            if not k or seq <= k:
                return (seq + 1) / 2 if causal else float(seq)
            return (k * (k + 1) / 2 + (seq - k) * k) / seq if causal else float(k)

        full = capped(self.index_topk if sparse else 0)
        return full + (capped(self.window) - full) * self.window_layers / self.layers

    def flops_breakdown(self, seq: int, causal: bool = True, sparse: bool = True) -> dict[str, float]:
        """Forward FLOPs for one token of a sequence of `seq`; a multiply-add counts as 2; split as in `ModelConfig`."""
        dsa = sparse and self.index_heads > 0
        linear = (
            self.layers * self.attention_matmul_params()
            + self.dense_ffn_layers * matmul_params(self.ffn_weights(self.ffn))
            + self.moe_layers * self._moe_matmul_params()
            + self.vocab * self.hidden
            + (self.indexer_full_layers * self.indexer_matmul_params() if dsa else 0)
        )
        scored = (seq + 1) / 2 if causal else float(seq)
        return {
            "linear": 2.0 * linear,
            "attention": self.layers
            * 2.0
            * self.heads
            * (self.qk_dim + self.value_dim)
            * self.keys_read(seq, causal, sparse),
            "indexer": self.indexer_full_layers * 2.0 * self.index_heads * (self.index_dim + 1) * scored
            if dsa
            else 0.0,
        }

    def _moe_matmul_params(self) -> int:
        """Weights that multiply one token in one expert layer: the router, K routed experts and the shared ones."""
        routed, shared = self.ffn_weights(self.moe_ffn), self.ffn_weights(self.shared_width)
        return (
            self.experts_per_token * matmul_params(routed)
            + matmul_params(shared)
            + matmul_params(self.router_weights())
        )

    def train_flops_per_token(self, seq: int, causal: bool = True, sparse: bool = True, mtp: bool = False) -> float:
        """Model FLOPs to train on one token (3 × forward, no recomputation): the numerator of MFU."""
        parts = self.flops_breakdown(seq, causal, sparse)
        forward = sum(parts.values())
        if mtp and self.mtp_modules:
            dsa = self.indexer_matmul_params() if sparse and self.indexer_full_layers else 0
            ffn = self._moe_matmul_params() if self.experts else matmul_params(self.ffn_weights(self.ffn))
            join = matmul_params(weights.mtp_join(self.hidden))
            layer = self.attention_matmul_params() + dsa + ffn + join + self.vocab * self.hidden
            forward += self.mtp_depth * (2.0 * layer + (parts["attention"] + parts["indexer"]) / self.layers)
        return 3.0 * forward

    # ------------------------------------------------------------------ cache

    def kv_bytes_per_token(self, dtype: str = "bf16", indexer: bool = False) -> int:
        """Bytes of key-value cache for one token over all layers; `indexer` adds the indexer's keys."""
        if dtype not in BYTES_PER_VALUE:
            raise InputError(
                f"dtype {dtype!r}: not one of {', '.join(BYTES_PER_VALUE)}{nearest(dtype, BYTES_PER_VALUE)}"
            )
        width = self.kv_lora + self.rope if self.attention == "mla" else 2 * self.kv_heads * self.head_dim
        keys = self.indexer_full_layers * self.index_dim if indexer else 0
        return (self.layers * width + keys) * BYTES_PER_VALUE[dtype]


def _at_least(spec: ModelSpec, name: str, least: int) -> None:
    value = getattr(spec, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"model {name}={value!r}: must be a whole number of at least {least}; give {name}: {max(least, 1)} or more"
        )
    if value > 10**9:
        raise InputError(f"model {name}={value!r}: larger than 1,000,000,000; check the number")


# ------------------------------------------------------------------ making one


def from_config(config: ModelConfig, name: str = "glm_moe_dsa") -> ModelSpec:
    """The same model that `minglm` trains, as the simulator's spec: every count agrees with `ModelConfig`'s."""
    c = config
    return ModelSpec(
        name=name,
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_attention_heads,
        head_dim=c.qk_head_dim,
        ffn=c.intermediate_size,
        vocab=c.vocab_size,
        attention="mla",
        q_lora=c.q_lora_rank,
        kv_lora=c.kv_lora_rank,
        nope=c.qk_nope_head_dim,
        rope=c.qk_rope_head_dim,
        v_dim=c.v_head_dim,
        index_topk=c.index_topk,
        index_heads=c.index_n_heads,
        index_dim=c.index_head_dim,
        indexer_full_layers=sum(k == "full" for k in c.indexer_types),
        experts=c.n_routed_experts,
        experts_per_token=c.num_experts_per_tok,
        shared_experts=c.n_shared_experts,
        moe_ffn=c.moe_intermediate_size,
        dense_layers=c.first_k_dense_replace,
        router_bias=True,
        mtp_modules=c.num_nextn_predict_layers,
        mtp_depth=c.mtp_depth if c.num_nextn_predict_layers else 0,
        max_seq=c.max_position_embeddings,
        source="minglm.config.ModelConfig",
    ).check()
