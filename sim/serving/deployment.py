"""A serving deployment: which model on which chips, in which formats, and how it is cut.

An instance is `chips` chips that hold one copy of the model. Attention runs on groups of `attention_tp` chips; the
chips / attention_tp groups serve different requests (attention data parallelism). Routed experts are spread over all
chips of the instance. MLA's latent is one head wide, so every chip of an attention group holds all of it.

    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, precision="fp8", kv="fp8", attention_tp=8)
    >>> d.groups, d.tensor_experts, d.tokens_per_step
    (1, True, 1.0)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from minglm.errors import InputError, nearest
from sim.serving.stacks import ServingStack, load_stack
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model


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

    accept_length: mean tokens that one decode step yields (1 without drafts).
    acceptance: chance that a draft token is right given the ones before it; used when accept_length is not given.
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
    def of(
        cls,
        model: str | ModelSpec,
        cluster: str | Cluster,
        chips: int,
        stack: str | Mapping[str, Any] | ServingStack = "generic",
        **fields: Any,
    ) -> Deployment:
        """From names or objects; checks every value.

        Raises:
            InputError: unknown name, or a value that cannot be; one line with the rule and the remedy.
        """
        return cls(load_model(model), cluster_from(cluster), chips, stack=load_stack(stack), **fields).check()

    def check(self) -> Deployment:
        """Itself, when every value can be.

        Raises:
            InputError: the first value that cannot.
        """
        self._check_numbers()
        if not isinstance(self.precision, str) or self.precision not in FORMATS:
            raise InputError(
                f"precision {self.precision!r}: not one of {', '.join(FORMATS)}{nearest(str(self.precision), FORMATS)}"
            )
        if self.kv not in KV_FORMATS:
            raise InputError(f"kv {self.kv!r}: not one of {', '.join(KV_FORMATS)}{nearest(str(self.kv), KV_FORMATS)}")
        if self.chips % self.attention_tp:
            raise InputError(
                f"attention_tp={self.attention_tp}: must divide chips={self.chips}; "
                f"use for example {_largest_divisor(self.chips, self.attention_tp)}"
            )
        if self.model.heads % self.attention_tp:
            raise InputError(
                f"attention_tp={self.attention_tp}: must divide the {self.model.heads} heads of {self.model.name}; "
                f"use for example {_largest_divisor(self.model.heads, self.attention_tp)}"
            )
        if self.drafts and not self.model.mtp_modules:
            raise InputError(
                f"drafts={self.drafts}: {self.model.name} has no multi-token-prediction module; use drafts: 0"
            )
        for name, least, most in (("acceptance", 0.0, 1.0), ("memory_share", 0.05, 1.0)):
            if not _is_number(value := getattr(self, name)) or not least <= value <= most:
                raise InputError(f"{name}={value!r}: must be between {least:g} and {most:g}")
        length = self.accept_length
        if length is not None and (not _is_number(length) or not 1 <= length <= self.drafts + 1):
            raise InputError(
                f"accept_length={length!r}: a step with {self.drafts} drafts yields 1 to {self.drafts + 1} tokens"
            )
        return self

    def _check_numbers(self) -> None:
        for name, least, most in (
            ("chips", 1, 100_000),
            ("attention_tp", 1, 100_000),
            ("drafts", 0, 16),
            ("redundant_experts", 0, 100_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name}={value!r}: must be a whole number from {least} to {most:,}")

    def with_changes(self, **fields: Any) -> Deployment:
        """The same deployment with some fields replaced, checked."""
        return replace(self, **fields).check()

    @functools.cached_property
    def rooflines(self) -> dict[str, Any]:
        """Where `sim.serving.step_time` keeps what it worked out for this deployment, by mode."""
        return {}

    @property
    def format(self) -> Format:
        """Of the weights."""
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
        """One line: model, formats, chips, cut, drafts, software."""
        tp = f"attention TP{self.attention_tp}×DP{self.groups}" if self.chips > 1 else "one chip"
        mtp = (
            f", {self.drafts} draft token{'s' if self.drafts > 1 else ''} ({self.tokens_per_step:.2f} a step)"
            if self.drafts
            else ""
        )
        return (
            f"{self.model.name} {self.precision}, KV {self.kv}, {self.chips} × {self.cluster.chip.name}, "
            f"{tp}{mtp}, {self.stack.name}"
        )


def _largest_divisor(n: int, most: int) -> int:
    return max(t for t in range(1, most + 1) if n % t == 0)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
