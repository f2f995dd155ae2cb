"""From a model, a cluster, a plan and a batch to the `StepCosts` that the simulator spends.

    costs = build(load_model("gpt3_175b"), load_cluster("dgx_a100"), Plan(tp=8, pp=8, dp=4), Workload(512, 2048))

`estimate` returns the same with a breakdown by operator class. Layers are priced in `sim/cost/layer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.base.tape import most
from sim.cost import collectives
from sim.cost.chunks import Chunk, chunks_by_rank
from sim.cost.kernels import Kernels
from sim.cost.layer import LayerEstimator
from sim.cost.layer_cost import LayerCost
from sim.cost.operators import WIDTH
from sim.cost.optimizer import optimizer_ops
from sim.cost.parameters import rank_params
from sim.cost.stacks import Stack, load_stack
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload, check


@dataclass(frozen=True)
class Estimate:
    """Costs and where they come from."""

    costs: StepCosts
    ranks: tuple[LayerCost, ...]  # of each kind of pipeline rank, all its chunks, for one micro-batch
    rank_params: tuple[tuple[float, float], ...]  # per rank: weights replicated over DP, expert weights
    layer_saved: dict[str, dict[str, float]]  # kind → part → activation bytes of one layer and micro-batch
    stack: Stack
    kernels: Kernels
    assumptions: list[str] = field(default_factory=list)

    @property
    def classes(self) -> dict[str, float]:
        """Seconds per micro-batch on the busiest rank, by operator class."""
        busiest = max(self.ranks, key=lambda rank: rank.forward_s + rank.backward_input_s + rank.backward_weight_s)
        return dict(busiest.classes)


def estimate(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str = "bf16",
    stack: Stack | str | None = None,
) -> Estimate:
    """Costs of one training step with their breakdown.

    Args:
        precision: 'bf16', 'fp16' or 'fp8' (linear layers in fp8; attention, router and logits stay in bf16).
        stack: a `Stack`, the name of one in data/stacks.yaml, or None for 'generic'.
    Raises:
        InputError: the plan cannot run (`sim.spec.plan.check`), or an unknown stack.
    """
    stack = stack if isinstance(stack, Stack) else load_stack(stack or "generic")
    check(plan, model, workload)
    estimator = LayerEstimator(model, cluster, plan, workload, precision, stack)
    full = plan.recompute
    kinds = (["dense"] if model.dense_ffn_layers else []) + (["moe"] if model.experts else [])
    per_layer = {kind: estimator.layer(kind, full) for kind in kinds}
    plain = (
        per_layer
        if full == "none" or plan.recompute_layers is None
        else {kind: estimator.layer(kind, "none") for kind in kinds}
    )
    if plan.activation_offload:
        per_layer = {kind: offloaded_layer(estimator, cost, full) for kind, cost in per_layer.items()}
        plain = {k: offloaded_layer(estimator, c, "none") for k, c in plain.items()} if full == "full" else per_layer
    first, heads, depths = estimator.ends()
    size = plan.micro_batch * workload.seq / plan.cp * model.hidden * WIDTH
    p2p_s = stage_message_s(cluster, size, plan.tp, plan.pp_stride(), bool(plan.sp)) if plan.pp > 1 else 0.0

    chunks: list[tuple[ChunkCost, ...]] = []
    ranks: list[LayerCost] = []
    known: dict[Chunk, LayerCost] = {}
    rows: dict[tuple[Chunk, ...], tuple[ChunkCost, ...]] = {}  # ranks that hold the same take as long
    for held in chunks_by_rank(model, plan, workload.mtp):
        if held in rows:
            chunks.append(rows[held])
            continue
        row, busy = [], LayerCost()
        for chunk in held:
            if chunk not in known:
                cost = _chunk_cost(chunk, per_layer, plain, first, depths, heads)
                known[chunk] = cost.plus(extra_hop(plan, model, workload, p2p_s, chunk))
            cost = known[chunk]
            busy = busy.plus(cost)
            row.append(
                ChunkCost(
                    cost.forward_s,
                    cost.backward_input_s,
                    cost.backward_weight_s,
                    cost.hideable_forward_s,
                    cost.hideable_backward_s,
                )
            )
        rows[held] = tuple(row)
        chunks.append(rows[held])
        ranks.append(busy)
    params = rank_params(model, plan, estimator.padded_vocab, workload.mtp)
    reduce_s, gather_s, optimizer_s = data_parallel(estimator, params)
    p2p_bytes = size / plan.tp if plan.tp > 1 else size  # tensor-parallel ranks send their slice each
    costs = StepCosts(
        chunks=tuple(chunks),
        micro_batches=plan.micro_batches(workload),
        p2p_s=p2p_s,
        p2p_bytes=p2p_bytes,
        grad_reduce_s=reduce_s,
        param_gather_s=gather_s,
        overlap_grad_reduce=estimator.switch("overlap_grad_reduce"),
        optimizer_s=optimizer_s,
        fixed_s=stack.overhead_s(plan.num_chips),
        tokens=workload.tokens,
        replicas=plan.dp,
        chips_per_rank=plan.tp * plan.cp,
    )
    saved = {kind: dict(cost.saved) for kind, cost in per_layer.items()}
    saved["embedding"], saved["head"] = dict(first.saved), dict(heads.plus(depths).saved)
    return Estimate(costs, tuple(ranks), params, saved, stack, estimator.kernels)


def _chunk_cost(
    chunk: Chunk,
    again: Mapping[str, LayerCost],
    plain: Mapping[str, LayerCost],
    first: LayerCost,
    depths: LayerCost,
    heads: LayerCost,
) -> LayerCost:
    """A chunk's layers, by kind those that are run again and the others, and what else lies on it."""
    cost = LayerCost()
    for kind, repeated, others in chunk.layers():
        if repeated:
            cost = cost.plus(again[kind], repeated)
        if others:
            cost = cost.plus(plain[kind], others)
    if chunk.is_first:
        cost = cost.plus(first)
    if chunk.tail == 0:
        cost = cost.plus(depths)
    return cost.plus(heads) if chunk.is_last else cost


def offloaded_layer(estimator: LayerEstimator, cost: LayerCost, recompute: str) -> LayerCost:
    """A layer with what it keeps in host memory; of one that is run again whole that is its input."""
    kept_input = estimator.ctx.tokens_sp * estimator.model.hidden * WIDTH
    return offloaded(cost, kept_input if recompute == "full" else None, estimator.cluster)


def offloaded(cost: LayerCost, kept: float | None, cluster: Cluster) -> LayerCost:
    """A layer whose `kept` bytes (None: all that it saves) go to host memory beside its forward pass and come back
    beside its backward pass; what takes longer than the pass is waited for.
    """
    kept = sum(size for _, size in cost.saved) if kept is None else kept
    copy_s = kept / cluster.host_bytes_per_s.value
    out = most(copy_s - cost.forward_s, 0.0)
    back = most(copy_s - cost.backward_input_s - cost.backward_weight_s, 0.0)
    return cost.plus(LayerCost(out, back, classes=(("activation offload", out + back),) if out + back else ()))


def extra_hop(plan: Plan, model: ModelSpec, workload: Workload, p2p_s: float, chunk: Chunk) -> LayerCost:
    """What the streams of the prediction depths add on their way to a head that lies in a later chunk than their
    layers.

    Each depth is one more message a hop, which its sender waits for.
    """
    depth = model.mtp_depth if workload.mtp and model.mtp_modules else 0
    if not plan.mtp_before_head or not depth or chunk.tail < 0:
        return LayerCost()
    forward, backward = depth * p2p_s * (not chunk.is_last), depth * p2p_s * (chunk.tail > 0)
    classes = (("pipeline messages of prediction depths", forward + backward),)
    return LayerCost(forward, backward, classes=classes)


def stage_message_s(cluster: Cluster, size: float, tp: int, stride: int, sp: bool) -> float:
    """Seconds to hand a micro-batch's `size` bytes of hidden states to the next pipeline stage, `stride` chips away."""
    seconds = collectives.p2p(cluster, size / tp, stride)  # tensor-parallel ranks send their slice each
    if tp > 1 and not sp:
        seconds += collectives.time("all_gather", size, collectives.place(cluster, tp, tables=True))
    return seconds


def data_parallel(estimator: LayerEstimator, params: tuple[tuple[float, float], ...]) -> tuple[float, float, float]:
    """(gradient reduction, parameter gather, optimiser step) of the slowest rank, in seconds."""
    plan, stack, cluster = estimator.plan, estimator.stack, estimator.cluster
    grad_width = WIDTH if stack.bf16_grads else 4
    whole = collectives.place(cluster, plan.dp * plan.cp, plan.tp, tables=True)
    reduce_s = gather_s = optimizer_s = 0.0
    for base, expert in dict.fromkeys(params):  # ranks that hold as much take as long
        reduce = gather = 0.0
        for count, levels in ((base, whole), (expert, estimator.expert_shards)):
            if plan.zero == 3:
                # gathered and scattered layer by layer; hybrid shards are then reduced over their copies
                copies = plan.dp * plan.cp // plan.zero_shards
                if copies > 1:
                    reduce += collectives.time(
                        "all_reduce",
                        count / plan.zero_shards * grad_width,
                        collectives.place(cluster, copies, plan.tp * plan.zero_shards, tables=True),
                    )
                continue
            kind = "reduce_scatter" if plan.zero else "all_reduce"
            share = collectives.CONSTANTS["gradient_share"][0] if collectives.leaves_node(cluster, levels) else 1.0
            reduce += collectives.time(kind, count * grad_width, levels) / share
            if plan.zero:
                gather += collectives.time("all_gather", count * WIDTH, levels)
        shards = plan.zero_shards if plan.zero else 1
        mine = base / shards + expert / (plan.expert_dp if plan.zero else 1)
        step = _optimizer_s(estimator, base, expert, grad_width)
        if plan.offload:
            step = most(step, mine * 2 * 16 / cluster.host_bytes_per_s.value)
        reduce_s, gather_s, optimizer_s = most(reduce_s, reduce), most(gather_s, gather), most(optimizer_s, step)
    if estimator.switch("overlap_param_gather"):
        gather_s *= 1.0 - stack.dp_hidden
    return reduce_s, gather_s, optimizer_s


def _optimizer_s(estimator: LayerEstimator, base: float, expert: float, grad_width: int) -> float:
    """Seconds of the optimiser over a rank's weights: those replicated over data parallelism, and its experts'."""
    plan, model, muon = estimator.plan, estimator.model, estimator.stack.muon
    shards, experts = (plan.zero_shards, plan.expert_dp) if plan.zero else (1, 1)
    if plan.optimizer != "muon":
        ops = optimizer_ops(base / shards + expert / experts, plan.optimizer, 1.0, model.layers, grad_bytes=grad_width)
        return sum(map(estimator.kernels.time, ops))
    layers, side = model.layers, model.hidden / plan.tp
    ops = optimizer_ops(base / shards, "muon", side, layers, shards, grad_width, muon)
    if expert:
        side = min(model.hidden, model.moe_ffn / plan.etp)
        ops += optimizer_ops(expert / experts, "muon", side, layers, experts, grad_width, muon)
    return sum(map(estimator.kernels.time, ops))


def build(
    model: ModelSpec,
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    precision: str = "bf16",
    stack: Stack | str | None = None,
) -> StepCosts:
    """`estimate(...)`'s costs alone: what the simulator takes."""
    return estimate(model, cluster, plan, workload, precision, stack).costs
