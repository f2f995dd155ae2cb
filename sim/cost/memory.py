"""Peak memory of the fullest chip, by component, and what to change when it does not fit.

Weights, gradients and optimiser states follow ZeRO's shards; activations are what each layer keeps for its backward
pass (arXiv 2205.05198 eq. 1–6) times the micro-batches that the schedule has in flight on a rank; recomputation keeps
each layer's input instead. What a plan offloads lies in the host's memory, which must hold it too. Buffers: gathered
layers of ZeRO-3, logits of the loss, and a share for collectives and fragmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from minglm.errors import InputError
from sim.cost.chunks import Chunk, chunks_by_rank
from sim.cost.operators import WIDTH, OperatorTrace, ParallelContext, embedding, loss_chunks, vocabulary
from sim.cost.operators_layer import record_layer
from sim.cost.parameters import layer_params, rank_params
from sim.cost.recompute import freed_bytes
from sim.cost.stacks import Stack, load_stack
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import OFFLOADED, Plan, Workload, check

# bytes that the runtime, the communicators and kernels' workspaces hold (assumed; NCCL and a CUDA context take 1-2 GiB)
RUNTIME_BYTES = 1.5 * 2**30
# bytes per logit at the peak of the loss: unfused holds bf16 logits, their fp32 copy, its log-softmax and the gradient;
# fused writes the gradient over the logits
LOGIT_BYTES = {"unfused": 14.0, "torch": 14.0, "fused": 4.0, "chunked": 14.0, "liger": 4.0}


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest chip."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    runtime: float
    rank: int
    in_flight: float
    host: float = 0.0  # in host memory, for the chip that has most there: what the plan offloads

    @property
    def total_bytes(self) -> float:
        """All components together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers + self.runtime

    def breakdown(self) -> dict[str, float]:
        """Bytes by component."""
        return {k: getattr(self, k) for k in ("weights", "gradients", "optimizer", "activations", "buffers", "runtime")}


class Pipeline(Protocol):
    """What memory in flight depends on: a `Plan` has it, and so has a search's layout of chunks."""

    @property
    def pp(self) -> int: ...  # noqa: D102
    @property
    def vpp(self) -> int: ...  # noqa: D102
    @property
    def schedule(self) -> str: ...  # noqa: D102


def in_flight(plan: Pipeline, rank: int, micro_batches: int) -> list[float]:
    """Micro-batches whose activations each chunk of a rank holds at the worst moment."""
    P, v, m = plan.pp, plan.vpp, micro_batches
    if P == 1:
        return [1.0] * v
    if plan.schedule == "gpipe":
        return [float(m)]
    if plan.schedule in ("1f1b", "zb-h1"):
        return [float(min(m, P - rank))]
    if plan.schedule == "interleaved":
        # warm-up holds (P−r−1)·2 + (v−1)·P chunk passes, plus the one at work (arXiv 2104.04473; Megatron-LM)
        held = min(m * v, (P - rank - 1) * 2 + (v - 1) * P + 1)
        return [held / v] * v
    if plan.schedule == "zb-v":
        return [min(m, P / 1.0)] * 2  # peak of 1F1B: P chunk pairs
    return [min(m, (P + 1) / 2.0 + 0.5)] * 2  # DualPipe: P+1 micro-batches of half-size stages


def layer_activations(
    model: ModelSpec, plan: Plan, workload: Workload, stack: Stack, kind: str
) -> tuple[float, float, float]:
    """Bytes a micro-batch leaves in a layer: as `recompute` has it, with small parts alone run again, with nothing."""
    ctx = ParallelContext(plan.micro_batch, workload.seq, plan.tp, bool(plan.sp), plan.cp, plan.ep, plan.etp)
    trace = record_layer(stack.style(False, workload.busiest, plan.ep), ctx, model, kind)
    full = sum(trace.saved.values())
    entry = ctx.tokens_sp * model.hidden * WIDTH
    held = full - freed_bytes(trace, plan.recompute_modules)
    if plan.recompute == "full":
        return entry, held, full
    if plan.recompute == "selective":
        return full - freed_bytes(trace, {*plan.recompute_modules, "core_attn"}), held, full
    if plan.recompute == "selective_ops":
        kept = 0.5 * trace.outputs + ctx.tokens * model.heads * model.value_dim / plan.tp * WIDTH + entry
        return min(kept, held), held, full
    return held, held, full


@dataclass(frozen=True)
class SavedActivations:
    """Bytes that one micro-batch leaves on a chip: whatever dp, pp and ZeRO are, plans of the same layers share it."""

    kinds: Mapping[
        str, tuple[float, float, float]
    ]  # kind of layer → bytes kept as the plan recomputes it, with small parts alone run again, with nothing
    embedding: float
    head: float
    loss: float  # peak of logits and loss


def saved_activations(model: ModelSpec, plan: Plan, workload: Workload, stack: Stack) -> SavedActivations:
    """Activations by part for the plan's tp, cp, ep, etp, micro-batch and recomputation."""
    vocab = padded(model.vocab, plan.tp)
    kinds = {
        k: layer_activations(model, plan, workload, stack, k)
        for k in (["dense"] if model.dense_ffn_layers else []) + (["moe"] if model.experts else [])
    }
    ctx = ParallelContext(plan.micro_batch, workload.seq, plan.tp, bool(plan.sp), plan.cp)
    head, first = OperatorTrace(stack.style(False)), OperatorTrace(stack.style(False))
    vocabulary(head, ctx, model.hidden, vocab)
    embedding(first, ctx, model.hidden, vocab)
    chunks = loss_chunks(stack.loss, ctx.tokens, model.hidden, vocab / plan.tp)
    loss = ctx.tokens / chunks * vocab / plan.tp * LOGIT_BYTES[stack.loss]
    if chunks > 1:  # the gradient of the hidden states is collected chunk by chunk
        loss += ctx.tokens * model.hidden * WIDTH
    if plan.sp:  # the head's gathered input and its gradient
        loss += 2 * ctx.tokens * model.hidden * WIDTH
    return SavedActivations(
        kinds, sum(first.saved.values()), sum(size for part, size in head.saved.items() if part != "logits"), loss
    )


def padded(vocab: int, tp: int) -> int:
    """Megatron pads the vocabulary to a multiple of 128 × TP."""
    return -(-vocab // (128 * tp)) * 128 * tp


def state_bytes(
    plan: Plan, stack: Stack, base: float, expert: float, shards: float, expert_shards: float, zero: int
) -> tuple[float, float, float]:
    """(weights, gradients, optimiser states) of a chip that holds `base` replicated and `expert` expert weights."""
    grad = WIDTH if stack.bf16_grads or plan.precision_aware_optimizer else 4
    whole, part = base + expert, base / max(shards, 1) + expert / expert_shards
    weights = (part if zero == 3 else whole) * (4 if zero == 3 else WIDTH)
    gradients = (part if zero >= 2 else whole) * (4 if zero == 3 else grad)
    states = 0.0 if plan.offload else _optimizer_bytes(plan, base, expert, shards, expert_shards, zero)
    return weights, gradients, states


def host_state_bytes(plan: Plan, base: float, expert: float, shards: float, expert_shards: float, zero: int) -> float:
    """Bytes of a chip's optimiser states that lie in host memory, of the weights as in `state_bytes`."""
    return _optimizer_bytes(plan, base, expert, shards, expert_shards, zero) if plan.offload else 0.0


def _optimizer_bytes(plan: Plan, base: float, expert: float, shards: float, expert_shards: float, zero: int) -> float:
    """Bytes of a chip's optimiser states, wherever they lie; ZeRO-3's fp32 weights are counted with the weights."""
    state = 2 + 2 + 2 if plan.precision_aware_optimizer else 4 + (4 if plan.optimizer == "muon" else 8)
    held = base / max(shards, 1) + expert / expert_shards if zero else base + expert
    return held * (state - (4 if zero == 3 else 0))


def checkpoint_bytes(plan: Plan, params: float) -> float:
    """Bytes of a checkpoint of `params` weights.

    Fully sharded (ZeRO-3) stacks keep fp32 weights alone beside two fp32 moments: 12 bytes a parameter. The others keep
    bf16 weights too: 14. Moments that are narrower in memory are written in fp32 (Transformer Engine's FusedAdam).
    Muon, which has one moment for most weights, is counted as Adam.
    """
    return float(params) * (4 + 8 + (0 if plan.zero == 3 else WIDTH))


def gathered_bytes(model: ModelSpec, plan: Plan, stack: Stack) -> float:
    """Buffers of ZeRO-3: two gathered layers (or the table) and one gradient."""
    grad = WIDTH if stack.bf16_grads or plan.precision_aware_optimizer else 4
    one = layer_params(model, "moe" if model.experts else "dense", plan.tp, plan.ep, plan.etp)
    largest = max(sum(one), padded(model.vocab, plan.tp) * model.hidden / plan.tp)
    return 2 * largest * WIDTH + largest * grad


def peak(
    model: ModelSpec, plan: Plan, workload: Workload, precision: str = "bf16", stack: Stack | str | None = None
) -> Memory:
    """Memory of the fullest chip of a plan."""
    stack = stack if isinstance(stack, Stack) else load_stack(stack or "generic")
    params = rank_params(model, plan, padded(model.vocab, plan.tp), workload.mtp)
    parts = saved_activations(model, plan, workload, stack)
    m = max(1, plan.micro_batches(workload))
    worst: Memory | None = None
    host = 0.0
    for rank, chunks in enumerate(chunks_by_rank(model, plan, workload.mtp)):
        weights, gradients, states = state_bytes(
            plan, stack, *params[rank], plan.zero_shards, plan.expert_dp, plan.zero
        )
        loss, held = 0.0, in_flight(plan, rank, m)
        kept, away, transient = _layers_keep(plan, parts, chunks, held)
        away += host_state_bytes(plan, *params[rank], plan.zero_shards, plan.expert_dp, plan.zero)
        host = max(host, away)
        for chunk, flights in zip(chunks, held, strict=False):
            if chunk.is_first:
                kept += flights * parts.embedding
            if plan.mtp_before_head and chunk.tail == 0 and workload.mtp:
                kept += flights * model.mtp_depth * parts.kinds["moe" if model.experts else "dense"][0]
            if chunk.is_last:
                loss = parts.loss
                kept += parts.head
        buffers = max(transient, loss)  # the loss is over before the first layer is run again
        if plan.zero == 3:
            buffers += gathered_bytes(model, plan, stack)
        rank_memory = Memory(weights, gradients, states, kept, buffers, RUNTIME_BYTES, rank, held[0])
        if worst is None or rank_memory.total_bytes > worst.total_bytes:
            worst = rank_memory
    assert worst is not None  # a plan has at least one rank
    return replace(worst, host=host)


def _layers_keep(
    plan: Plan, parts: SavedActivations, chunks: Sequence[Chunk], held: Sequence[float]
) -> tuple[float, float, float]:
    """(bytes that a rank's layers keep on the chip, in host memory, the most that one of them is run again with)."""
    kept = transient = largest = 0.0
    for chunk, flights in zip(chunks, held, strict=False):  # GPipe holds one figure for all
        for kind, again, others in chunk.layers():
            short, held_by_others, whole = parts.kinds.get(kind, (0.0, 0.0, 0.0))
            kept += flights * (again * short + others * held_by_others)
            largest = max(largest, short * bool(again), held_by_others * bool(others))
            if again or others:
                transient = max(transient, whole if plan.recompute != "none" else whole - held_by_others)
    # one layer's goes out or comes in while the next is at work
    stays = min(kept, 2 * largest) if plan.activation_offload else kept
    return stays, kept - stays, transient


def check_fits(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str = "bf16",
    stack: Stack | str | None = None,
) -> Memory:
    """The plan's memory, when it fits.

    Raises:
        InputError: how many GiB over the chip's memory, or its share of the host's, and up to three changes that would
            fit.
    """
    need, capacity = peak(model, plan, workload, precision, stack), cluster.chip.memory_bytes.value
    host = cluster.host_memory_bytes.value
    if need.total_bytes <= capacity and need.host <= host:
        return need

    def fits(changed: Plan, work: Workload) -> bool:
        try:
            check(changed, model, work)
        except InputError:
            return False
        changed_need = peak(model, changed, work, precision, stack)
        return changed_need.total_bytes <= capacity and changed_need.host <= host

    back = _back_on_the_chip(plan, workload) if need.host > host else ()
    changes = (*back, *_changes(plan, model, workload))
    found = [words for words, changed, work in changes if fits(changed, work)][:3]
    if not found:
        found = [words for words, changed in _more_chips(plan) if fits(changed, workload)][:1]
    if need.total_bytes <= capacity:
        gib = need.host / 2**30
        remedy = "set " + " or ".join(found) if found else f"take hosts with {math.ceil(gib)} GiB a chip"
        raise InputError(
            f"what the plan offloads needs {gib:.1f} GiB of host memory for the fullest chip, "
            f"{gib - host / 2**30:.1f} GiB over the {host / 2**30:.1f} GiB a chip of {cluster.name}; {remedy}"
        )
    excess = (need.total_bytes - capacity) / 2**30
    remedy = "set " + " or ".join(found) if found else f"use a chip with {math.ceil(need.total_bytes / 2**30)} GiB"
    raise InputError(
        f"the model needs {need.total_bytes / 2**30:.1f} GiB on the fullest chip, {excess:.1f} GiB over the "
        f"{capacity / 2**30:.1f} GiB "
        f"of {cluster.chip.name}; {remedy}"
    )


Change = tuple[str, Plan, Workload]  # words, plan, workload


def _back_on_the_chip(plan: Plan, workload: Workload) -> Iterator[Change]:
    """Single changes that leave less in host memory."""
    if plan.activation_offload:
        yield "options.activation_offload=false", replace(plan, activation_offload=False), workload
    if plan.offload:
        yield "options.optimizer_offload=false", replace(plan, offload=False), workload


def _changes(plan: Plan, model: ModelSpec, workload: Workload) -> Iterator[Change]:
    """Single changes that save memory, mildest first, as the keys of a scenario (`--set KEY=VALUE`)."""
    if plan.micro_batch > 1:
        yield "micro_batch=1", replace(plan, micro_batch=1), workload
    if plan.zero < 1 and plan.dp > 1:
        yield "options.zero=1", replace(plan, zero=1), workload
    if plan.recompute != "full":
        yield "recompute=full", replace(plan, recompute="full", recompute_layers=None), workload
    if plan.zero < 3 and plan.dp > 1:
        yield "options.zero=3", replace(plan, zero=3), workload
        if plan.recompute != "full":
            yield (
                "options.zero=3 recompute=full",
                replace(plan, zero=3, recompute="full", recompute_layers=None),
                workload,
            )
    for words, changed in (*_wider_pipelines(plan, model), *_wider_tensors(plan, model)):
        if changed.tp * changed.cp * changed.dp % (changed.ep * changed.etp) == 0:
            yield f"{words} recompute=full", changed, workload
    if not plan.offload:
        yield "options.optimizer_offload=true", replace(plan, offload=True), workload
    if not plan.activation_offload and plan.recompute in OFFLOADED:
        yield "options.activation_offload=true", replace(plan, activation_offload=True), workload
    if plan.cp == 1 and plan.dp % 2 == 0 and workload.seq % 2 == 0:
        yield f"plan.cp=2 plan.dp={plan.dp // 2}", replace(plan, cp=2, dp=plan.dp // 2), workload


def _more_chips(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Wider tensor, data and pipeline parallelism on more chips, fewest first, everything recomputed and sharded."""
    if plan.stages is not None:
        return
    least = replace(plan, recompute="full", recompute_layers=None, micro_batch=1)
    for n in (2, 4, 8, 16, 32, 64, 128, 256):
        for width in ("tp", "pp"):
            wider = getattr(plan, width) * n
            if width == "tp" and wider > 8:
                continue
            changed = replace(least, tp=wider, sp=True) if width == "tp" else replace(least, pp=wider)
            words = f"chips={changed.num_chips} plan.{width}={wider} plan.dp={plan.dp} recompute=full micro_batch=1"
            words += f" plan.etp={plan.etp}" if plan.ep * plan.etp > 1 else ""
            yield words, changed


def _wider_pipelines(plan: Plan, model: ModelSpec) -> Iterator[tuple[str, Plan]]:
    for n in (2, 4, 8, 16, 32, 64):
        if plan.dp % n == 0 and plan.pp * n * plan.vpp <= model.layers and plan.stages is None:
            pp, dp = plan.pp * n, plan.dp // n
            yield f"plan.pp={pp} plan.dp={dp}", replace(plan, pp=pp, dp=dp, recompute="full", recompute_layers=None)


def _wider_tensors(plan: Plan, model: ModelSpec) -> Iterator[tuple[str, Plan]]:
    for n in (2, 4, 8):
        tp = plan.tp * n
        if plan.dp % n == 0 and tp <= 8 and model.heads % tp == 0 and model.kv_heads % tp == 0:
            dp = plan.dp // n
            yield (
                f"plan.tp={tp} plan.dp={dp}",
                replace(plan, tp=tp, dp=dp, sp=True, recompute="full", recompute_layers=None),
            )
