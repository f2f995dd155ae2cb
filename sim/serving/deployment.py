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
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from minglm.errors import InputError, nearest
from sim.serving.engine_memory import ENGINES, EngineMemory, is_large
from sim.serving.formats import KV_FORMATS, Format, format_name, format_of
from sim.serving.stacks import ServingStack, load_stack
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model


@dataclass(frozen=True, eq=False)  # compared by identity: the rooflines of a deployment are kept with it
class Deployment:
    """One serving instance.

    pp: pipeline stages; an instance's chips are pp × the chips of a stage.
    memory_share: of a chip that the engine takes; by default the engine's own. max_model_len: longest context served;
    by default the model's. max_num_seqs, max_num_batched_tokens: of an engine's pass; by default the engine's own.
    whole_experts: each lies on one chip though one attention group spans all (tensor with expert parallelism): the chip
    with most of the chosen ones ends last.
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
    memory_share: float | None = None
    redundant_experts: int = 0
    pp: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    whole_experts: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stack", self.stack.for_chip(self.cluster.chip))
        object.__setattr__(self, "precision", format_name(self.precision))

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
        if self.kv not in KV_FORMATS:
            raise InputError(f"kv {self.kv!r}: not one of {', '.join(KV_FORMATS)}{nearest(str(self.kv), KV_FORMATS)}")
        if self.chips % self.pp or self.pp > self.model.layers:
            raise InputError(
                f"pp={self.pp}: must divide chips={self.chips} and not exceed the {self.model.layers} layers of "
                f"{self.model.name}; use for example {_largest_divisor(self.chips, min(self.pp, self.model.layers))}"
            )
        stage_chips = self.chips // self.pp
        for what, count in (("chips of a stage", stage_chips), (f"heads of {self.model.name}", self.model.heads)):
            if count % self.attention_tp:
                raise InputError(
                    f"attention_tp={self.attention_tp}: must divide the {count} {what}; "
                    f"use for example {_largest_divisor(math.gcd(stage_chips, self.model.heads), self.attention_tp)}"
                )
        if not isinstance(self.whole_experts, bool) or (self.whole_experts and not self.model.experts):
            has = f"{self.model.experts} experts" if self.model.experts else "no experts"
            raise InputError(
                f"whole_experts={self.whole_experts!r}: must be true or false, and {self.model.name} has {has}; "
                f"use {'true or false' if self.model.experts else 'false'}"
            )
        if self.drafts and not self.model.mtp_modules:
            raise InputError(
                f"drafts={self.drafts}: {self.model.name} has no multi-token-prediction module; use drafts: 0"
            )
        for name, least, most in (("acceptance", 0.0, 1.0), ("memory_share", 0.05, 1.0)):
            value = getattr(self, name)
            if value is None and name == "memory_share":
                continue
            if not _is_number(value) or not least <= value <= most:
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
            ("pp", 1, 1000),
            ("max_model_len", 1, 10**9),
            ("max_num_seqs", 1, 10**6),
            ("max_num_batched_tokens", 1, 10**7),
        ):
            value = getattr(self, name)
            if value is None and name.startswith("max_"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name}={value!r}: must be a whole number from {least} to {most:,}")

    def with_changes(self, **fields: Any) -> Deployment:
        """The same deployment with some fields replaced, checked."""
        return replace(self, **fields).check()

    @functools.cached_property
    def stage(self) -> Deployment:
        """The chips of one pipeline stage, with all the layers: what a token's time is made of."""
        return replace(self, chips=self.chips // self.pp, pp=1)

    @functools.cached_property
    def rooflines(self) -> dict[str, Any]:
        """Where `sim.serving.step_time` keeps what it worked out for this deployment, by mode."""
        return {}

    @property
    def format(self) -> Format:
        """Of the weights."""
        return format_of(self.precision, bool(self.model.experts))

    @property
    def engine(self) -> EngineMemory:
        """How the software accounts for memory."""
        return ENGINES[self.stack.engine]

    @property
    def usable_share(self) -> float:
        """Share of a chip that the engine takes: `memory_share`, or the engine's default."""
        if self.memory_share is not None:
            return self.memory_share
        return self.engine.default_share(self.cluster.chip.memory_bytes.value, self.attention_tp)

    @property
    def requests_of_a_pass(self) -> int:
        """`max_num_seqs`: as given, or the engine's default on this chip."""
        return self.max_num_seqs or self.engine.max_num_seqs[is_large(self.cluster.chip.memory_bytes.value)]

    @property
    def attention_bytes(self) -> float:
        """Bytes of a stored weight of attention."""
        return self.format.dense_bytes if self._attention_quantised else 2.0

    @property
    def attention_compute(self) -> str:
        """Precision of attention's projections."""
        return self.format.dense_compute if self._attention_quantised else "bf16"

    @property
    def output_bytes(self) -> float:
        """Bytes of a stored weight of attention's output."""
        return self.format.ffn_bytes if self.format.wide else self.attention_bytes

    @property
    def output_compute(self) -> str:
        """Precision of attention's output product."""
        return self.format.ffn_compute if self.format.wide else self.attention_compute

    @property
    def quantises_activations(self) -> bool:
        """Products run in a low precision, so that activations are quantised before each."""
        return self.format.dense_compute != "bf16" or self.format.expert_compute not in ("bf16",)

    @property
    def _attention_quantised(self) -> bool:
        return self.precision != "fp8" or self.model.fp8_attention

    @property
    def groups(self) -> int:
        """Attention groups of a pipeline stage: requests are spread over them."""
        return self.chips // self.pp // self.attention_tp

    @property
    def tensor_experts(self) -> bool:
        """All chips see all tokens: no all-to-all reaches the experts, which are sliced unless `whole_experts`."""
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
        tp += f"×PP{self.pp}" if self.pp > 1 else ""
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
