"""Recomputation: how many seconds of a layer's forward pass run again in its backward pass, one function a policy.

Policies: none; selective (core attention, arXiv 2205.05198 §5); selective_ops (PyTorch's selective activation
checkpointing); full (the whole layer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sim.cost.operators import Op, OperatorTrace
from sim.cost.stacks import Stack
from sim.spec.plan import RECOMPUTE_MODULES


class OperatorSeconds:
    """Device seconds of operators, added up by class as they are asked for."""

    def __init__(self, time: Callable[[Op], float]) -> None:
        self.time = time
        self.classes: dict[str, float] = {}
        self._known: dict[int, float] = {}  # by the operator itself, which its trace keeps: many run again

    def total(self, ops: Iterable[Op]) -> float:
        """Seconds of these operators, counted in their classes."""
        out = 0.0
        for op in ops:
            seconds = self._known.get(id(op))
            if seconds is None:
                seconds = self._known[id(op)] = self.time(op)
            out += seconds
            self.classes[op.group] = self.classes.get(op.group, 0.0) + seconds
        return out

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that are no operator's."""
        self.classes[name] = self.classes.get(name, 0.0) + seconds


def _recompute_none(trace: OperatorTrace, seconds: OperatorSeconds, stack: Stack) -> float:
    return 0.0


def _recompute_full(trace: OperatorTrace, seconds: OperatorSeconds, stack: Stack) -> float:
    again = seconds.total(trace.forward)
    if stack.early_stop:  # nothing after the last matmul is needed for a gradient
        last = next((op for op in reversed(trace.forward) if op.kind == "matmul"), None)
        again -= seconds.time(last) if last else 0.0
    return again


def _recompute_selective(trace: OperatorTrace, seconds: OperatorSeconds, stack: Stack) -> float:
    return seconds.total(trace.core)


def _recompute_selective_ops(trace: OperatorTrace, seconds: OperatorSeconds, stack: Stack) -> float:
    """PyTorch's selective activation checkpointing: all memory passes and every second matmul."""
    return seconds.total(op for op in trace.forward if op.kind == "memory") + 0.5 * seconds.total(
        op for op in trace.forward if op.kind == "matmul"
    )


RECOMPUTE: Mapping[str, Callable[[OperatorTrace, OperatorSeconds, Stack], float]] = {
    "none": _recompute_none,
    "selective": _recompute_selective,
    "selective_ops": _recompute_selective_ops,
    "full": _recompute_full,
}


# Operators whose kept input a small part gives up when it runs again. Norms, activations and up-projections discard
# their output too, which the operator after them would keep (Megatron-Core: CheckpointWithoutOutput); the other parts
# keep the input of their first operator and give up what lies inside.
_NORM_OUTPUTS = ("qkv", "q_a", "kv_a", "ffn up", "router")
_GIVEN_UP = {
    "norm": _NORM_OUTPUTS,
    "layernorm": _NORM_OUTPUTS,
    "mla_up_proj": ("attention",),
    "moe_act": ("experts down",),
    "core_attn": ("scores",),
}


def run_again(
    trace: OperatorTrace, seconds: OperatorSeconds, modules: Iterable[str], experts_messages_s: float
) -> float:
    """Seconds of the small parts of `plan.recompute_modules`: the expert layer sends its tokens again too."""
    names = {name for module in modules for name in RECOMPUTE_MODULES[module]}
    again = seconds.total(op for op in trace.forward if op.name in names)
    return again + (experts_messages_s if "moe" in modules else 0.0)


def freed_bytes(trace: OperatorTrace, modules: Iterable[str]) -> float:
    """Activation bytes of a layer that the small parts of `plan.recompute_modules` need not keep."""
    names: set[str] = set()
    for module in modules:
        names |= set(_GIVEN_UP[module] if module in _GIVEN_UP else RECOMPUTE_MODULES[module][1:])
    return sum(size for name, size in trace.kept.items() if name in names)
