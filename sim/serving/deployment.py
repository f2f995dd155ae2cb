"""A serving deployment and what fits in its memory: weights, latent key-value cache, indexer keys, per chip.

An instance is `chips` chips that hold one copy of the model. Attention runs on groups of `attention_tp` chips; the
chips / attention_tp groups serve different requests (attention data parallelism). Routed experts are spread over all
chips of the instance. MLA's latent is one head wide, so every chip of an attention group holds all of it.

    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, precision="fp8", kv="fp8", attention_tp=8)
    >>> m = memory(d)
    >>> round(m.weights_bytes / 2**30, 1), round(m.kv_bytes_per_token)
    (86.9, 61464)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from minglm.errors import InputError, nearest
from sim.serving.stacks import ServingStack, load_stack
from sim.spec.hardware import Cluster, cluster_from, list_clusters
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

GIB = 2.0**30


@dataclass(frozen=True)
class Format:
    """Bytes of a stored weight (scales included) and the precision its matmuls run at."""

    dense_bytes: float
    expert_bytes: float
    dense_compute: str
    expert_compute: str
    source: str


# Embedding, head, router and norms stay in bf16 in every format, as in the published checkpoints.
FORMATS = {
    "bf16": Format(2.0, 2.0, "bf16", "bf16", "two bytes a weight"),
    "fp8": Format(
        1.0 + 4 / 16384,
        1.0 + 4 / 16384,
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
        2.0, 0.5 + 1 / 16, "bf16", "fp4", "experts in NVFP4: a scale byte per 16 weights; the rest in bf16"
    ),
}
KV_FORMATS = ("bf16", "fp8")
MEMORY_SHARE = 0.9  # published: vLLM's default gpu_memory_utilization; the rest is activations, graphs, buffers


@dataclass(frozen=True, eq=False)  # compared by identity: the rooflines of a deployment are kept with it
class Deployment:
    """One serving instance.

    accept_length: mean tokens that one decode step yields (1 without drafts); `acceptance`: chance that a draft token is
    right given the ones before it, used when accept_length is not given.
    """

    model: ModelSpec
    cluster: Cluster
    chips: int
    precision: str = "fp8"
    kv: str = "bf16"
    attention_tp: int = 1
    drafts: int = 0
    acceptance: float = 0.7
    accept_length: float | None = None
    stack: ServingStack = field(default_factory=lambda: load_stack("generic"))
    memory_share: float = MEMORY_SHARE
    redundant_experts: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", self.stack.for_chip(self.cluster.chip.name))

    @classmethod
    def of(cls, model, cluster, chips: int, stack="generic", **rest) -> Deployment:
        """From names or objects; checks every value.

        Raises:
            InputError: unknown name, or a value that cannot be; one line with the rule and the remedy.
        """
        return cls(load_model(model), cluster_from(cluster), chips, stack=load_stack(stack), **rest).check()

    def check(self) -> Deployment:
        for name, low, high in (
            ("chips", 1, 100_000),
            ("attention_tp", 1, 100_000),
            ("drafts", 0, 16),
            ("redundant_experts", 0, 100_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name}={value!r}: must be a whole number from {low} to {high:,}")
        if not isinstance(self.precision, str) or self.precision not in FORMATS:
            raise InputError(
                f"precision {self.precision!r}: not one of {', '.join(FORMATS)}{nearest(str(self.precision), FORMATS)}"
            )
        if self.kv not in KV_FORMATS:
            raise InputError(f"kv {self.kv!r}: not one of {', '.join(KV_FORMATS)}{nearest(str(self.kv), KV_FORMATS)}")
        if self.chips % self.attention_tp:
            near = max(t for t in range(1, self.attention_tp + 1) if self.chips % t == 0)
            raise InputError(
                f"attention_tp={self.attention_tp}: must divide chips={self.chips}; use for example {near}"
            )
        if self.model.heads % self.attention_tp:
            near = max(t for t in range(1, self.attention_tp + 1) if self.model.heads % t == 0)
            raise InputError(
                f"attention_tp={self.attention_tp}: must divide the {self.model.heads} heads of {self.model.name}; use for example {near}"
            )
        if self.drafts and not self.model.mtp_modules:
            raise InputError(
                f"drafts={self.drafts}: {self.model.name} has no multi-token-prediction module; use drafts: 0"
            )
        for name, low, high in (("acceptance", 0.0, 1.0), ("memory_share", 0.05, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(f"{name}={value!r}: must be between {low:g} and {high:g}")
        length = self.accept_length
        if length is not None and (
            isinstance(length, bool) or not isinstance(length, (int, float)) or not 1 <= length <= self.drafts + 1
        ):
            raise InputError(
                f"accept_length={length!r}: a step with {self.drafts} drafts yields 1 to {self.drafts + 1} tokens"
            )
        return self

    def with_(self, **changes) -> Deployment:
        return replace(self, **changes).check()

    @functools.cached_property
    def rooflines(self) -> dict:
        """Where `sim.serving.step_time` keeps what it worked out for this deployment, by mode."""
        return {}

    @property
    def format(self) -> Format:
        return FORMATS[self.precision]

    @property
    def groups(self) -> int:
        """Attention groups: requests are spread over them."""
        return self.chips // self.attention_tp

    @property
    def tensor_experts(self) -> bool:
        """Experts sliced like the rest (all chips see all tokens) rather than reached by an all-to-all."""
        return self.groups == 1

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that one decode step yields for each request."""
        if self.accept_length is not None:
            return self.accept_length
        return 1.0 + sum(self.acceptance**i for i in range(1, self.drafts + 1))

    def describe(self) -> str:
        tp = f"attention TP{self.attention_tp}×DP{self.groups}" if self.chips > 1 else "one chip"
        mtp = (
            f", {self.drafts} draft token{'s' if self.drafts > 1 else ''} ({self.tokens_per_step:.2f} a step)"
            if self.drafts
            else ""
        )
        return f"{self.model.name} {self.precision}, KV {self.kv}, {self.chips} × {self.cluster.chip.name}, {tp}{mtp}, {self.stack.name}"


def kv_row_bytes(model: ModelSpec, kv: str) -> float:
    """Bytes of one token's cache in one layer, without indexer keys."""
    if model.attention == "mla":
        if (
            kv == "fp8"
        ):  # FlashMLA: fp8 latent, an fp32 scale per 128 values, the rotary part in bf16 (656 for 512 + 64)
            return model.kv_lora + 4.0 * math.ceil(model.kv_lora / 128) + 2.0 * model.rope
        return 2.0 * (model.kv_lora + model.rope)
    return 2.0 * model.kv_heads * model.head_dim * (1.0 if kv == "fp8" else 2.0)


def index_row_bytes(model: ModelSpec, kv: str) -> float:
    """Bytes of one token's indexer key in one layer that runs an indexer."""
    if not model.index_heads:
        return 0.0
    return model.index_dim + 4.0 if kv == "fp8" else 2.0 * model.index_dim


def kv_bytes_per_token(model: ModelSpec, kv: str) -> float:
    """All layers, indexer keys included; the MTP module's layer is left out (one layer more)."""
    return model.layers * kv_row_bytes(model, kv) + model.indexer_full_layers * index_row_bytes(model, kv)


def weight_bytes(model: ModelSpec, precision: str, mtp: bool = True) -> dict[str, float]:
    """Bytes of the whole model by part: experts, dense (attention, shared experts, dense FFN, indexer), bf16 (embedding …)."""
    form, parts = FORMATS[precision], model.params()
    experts = parts["routed_experts"]
    dense = parts["attention"] + parts["indexer"] + parts["dense_ffn"] + parts["shared_experts"]
    wide = sum(parts[k] for k in ("embedding", "positions", "router", "norms", "head", "final_norm"))
    if mtp and model.mtp_modules:
        routed = model.experts * model.expert_params() if model.experts else 0
        experts += model.mtp_modules * routed
        dense += parts["mtp"] - model.mtp_modules * routed
    return {"experts": experts * form.expert_bytes, "dense": dense * form.dense_bytes, "bf16": 2.0 * wide}


@dataclass(frozen=True)
class ChipMemory:
    """Bytes of one chip. `kv_tokens`: tokens of context that one attention group can hold."""

    capacity_bytes: float
    usable_bytes: float
    weights_bytes: float
    parts: Mapping[str, float]
    kv_bytes_per_token: float  # on one chip of the group, all layers
    kv_tokens: float

    @property
    def over_bytes(self) -> float:
        """By how much the weights alone exceed what is usable (0 when they fit)."""
        return max(0.0, self.weights_bytes - self.usable_bytes)

    def requests(self, context: float) -> int:
        """Requests of `context` tokens that one attention group can hold."""
        return int(self.kv_tokens // max(context, 1.0))


def memory(d: Deployment) -> ChipMemory:
    """What one chip of the instance holds. Dense parts are cut by attention_tp and replicated over the groups."""
    whole = weight_bytes(d.model, d.precision, mtp=d.drafts > 0)
    slots = 1.0 + d.redundant_experts / d.model.experts if d.model.experts else 1.0
    parts = {
        "experts": whole["experts"] * slots / d.chips,
        "dense": whole["dense"] / d.attention_tp,
        "bf16": whole["bf16"] / d.attention_tp,
    }
    capacity = d.cluster.chip.memory_bytes.value
    usable = capacity * d.memory_share
    per_token = kv_bytes_per_token(d.model, d.kv) * (d.model.layers + (d.drafts > 0)) / d.model.layers
    if d.model.attention != "mla":
        per_token /= min(d.attention_tp, d.model.kv_heads)
    weights = sum(parts.values())
    return ChipMemory(capacity, usable, weights, parts, per_token, max(0.0, usable - weights) / per_token)


def shortfall(d: Deployment, context: float = 0.0, requests: float = 0.0) -> float:
    """Bytes a chip lacks for the weights and `requests` contexts per attention group (0 when it fits)."""
    m = memory(d)
    return max(0.0, m.weights_bytes + m.kv_bytes_per_token * context * requests - m.usable_bytes)


@dataclass(frozen=True)
class Remedy:
    """One change after which it fits, in words and as what would then run."""

    text: str
    deployment: Deployment
    context: float
    requests: float


def _hardware(d: Deployment) -> dict[str, list[tuple[str, dict]]]:
    """Changes of the deployment by kind, mildest first: (words, fields)."""
    node, chip = d.cluster.chips_per_node, d.cluster.chip
    counts = sorted({math.ceil(d.chips * t / node) * node for t in (1.5, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)})
    bigger = sorted((cluster_from(n).chip.memory_bytes.value, n) for n in list_clusters())
    return {
        "chips": [(f"{n} × {chip.name} instead of {d.chips}", {"chips": n}) for n in counts if n > d.chips],
        "precision": [
            (f"precision {f} instead of {d.precision}", {"precision": f})
            for f in ("fp8", "w8a8", "w4a8")
            if FORMATS[f].expert_bytes < d.format.expert_bytes
        ],
        "chip": [
            (f"{d.chips} × {cluster_from(n).chip.name} ({size / GIB:.0f} GiB)", {"cluster": cluster_from(n)})
            for size, n in bigger
            if size > chip.memory_bytes.value
        ],
        "kv": [] if d.kv == "fp8" else [("KV cache in fp8", {"kv": "fp8"})],
        "tp": [
            (f"attention_tp {t} instead of {d.attention_tp}", {"attention_tp": t})
            for t in (2, 4, 8, 16, 32, 64)
            if t > d.attention_tp
        ],
    }


def remedies(d: Deployment, context: float = 0.0, requests: float = 0.0, most: int = 3) -> list[Remedy]:
    """Up to `most` changes after which it fits, each checked and of another kind: single ones first, then two together."""
    found: list[Remedy] = []

    def offer(text: str, changes: Mapping, c: float = context, r: float = requests) -> bool:
        try:
            other = d.with_(**changes)
        except InputError:
            return False
        if len(found) < most and shortfall(other, c, r) <= 0:
            found.append(Remedy(text, other, c, r))
            return True
        return False

    def offer_load(text: str, changes: Mapping) -> None:
        """The same with fewer or with shorter contexts, as many or as long as then fit."""
        try:
            m = memory(d.with_(**changes))
        except InputError:
            return
        lead = text + " and " if text else ""
        if requests > 1 and 1 <= m.requests(context) < requests:
            offer(
                f"{lead}{m.requests(context)} requests per attention group instead of {requests:g}",
                changes,
                context,
                m.requests(context),
            )
        if requests and 1 <= int(m.kv_tokens / requests) < context:
            offer(
                f"{lead}contexts of {int(m.kv_tokens / requests):,} tokens instead of {context:,.0f}",
                changes,
                int(m.kv_tokens / requests),
                requests,
            )

    kinds = _hardware(d)
    pairs = [
        [(f"{a} and {b}", {**x, **y}) for a, x in kinds[one] for b, y in kinds[two]]
        for one, two in itertools.combinations(kinds, 2)
    ]
    for options in kinds.values():
        any(offer(text, changes) for text, changes in options)
    offer_load("", {})
    for options in pairs:
        if len(found) < most:
            any(offer(text, changes) for text, changes in options)
    for options in (*kinds.values(), *pairs):
        for text, changes in options:
            if len(found) < most:
                offer_load(text, changes)
    return found[:most]


def require_fit(d: Deployment, context: float = 0.0, requests: float = 0.0) -> ChipMemory:
    """The memory report, or a refusal.

    Raises:
        InputError: by how many GiB a chip is over, and changes that would fit.
    """
    over = shortfall(d, context, requests)
    if over > 0:
        need = (
            f" with {requests:g} context{'s' if requests != 1 else ''} of {context:,.0f} tokens per attention group"
            if requests and context
            else ""
        )
        fits = (
            "; ".join(f"({i}) {r.text}" for i, r in enumerate(remedies(d, context, requests), 1))
            or "no single change; combine them"
        )
        raise InputError(
            f"{d.model.name} in {d.precision} on {d.chips} × {d.cluster.chip.name}{need}: {over / GIB:.1f} GiB a chip over the "
            f"{d.memory_share * d.cluster.chip.memory_bytes.value / GIB:.1f} GiB usable; would fit: {fits}"
        )
    return memory(d)
