"""One layer's seconds on one chip for one micro-batch: its recorded operators and messages, priced under a stack.

Device time is the sum of its kernels and of the collectives that nothing hides; host time is what issuing its operators
takes; the longer one counts. `sim.cost.step` puts layers together to stages and a step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sim.base.same import Same
from sim.base.tape import least, most
from sim.cost import collectives
from sim.cost.layer_cost import LayerCost, LayerWork
from sim.cost.operators import WIDTH, Message, Op, OperatorTrace, ParallelContext, Style, embedding, norm, vocabulary
from sim.cost.operators_layer import record_layer
from sim.cost.parameters import layer_params
from sim.cost.recompute import RECOMPUTE, OperatorSeconds, run_again
from sim.cost.stacks import Stack
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload

# ------------------------------------------------------------------ messages and host


@dataclass
class Communication:
    """Seconds of a layer's messages: what is exposed at once, and what runs beside which work."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    experts_forward_s: float = 0.0  # inside forward_s: dispatch and combine
    hideable_forward_s: float = 0.0  # inside the above; a schedule with paired micro-batches hides it
    hideable_backward_s: float = 0.0
    beside_weight_gradient_s: float = 0.0
    beside_attention_s: float = 0.0
    beside_layer_s: float = 0.0  # all-to-all under the whole layer's work

    def expose(self, message: Message, seconds: float) -> None:
        """Seconds that the message's phase waits for it."""
        if message.phase == "forward":
            self.forward_s += seconds
            self.experts_forward_s += seconds if message.group in ("ep", "etp") else 0.0
        else:
            self.backward_s += seconds

    def hide_by_schedule(self, phase: str, seconds: float) -> None:
        """Seconds of a phase that a schedule may hide behind another micro-batch."""
        if phase == "forward":
            self.hideable_forward_s += seconds
        else:
            self.hideable_backward_s += seconds


@dataclass(frozen=True)
class HostTime:
    """Seconds that the host takes to issue a layer's operators; all 0 where graphs are replayed."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    weight_s: float = 0.0
    per_op_s: float = 0.0


# ------------------------------------------------------------------ kept work of layers


@dataclass(frozen=True)
class LayerKey:
    """All that the work of a kind of layer depends on; plans that agree in it share the work."""

    shape: tuple[object, ...]
    ctx: ParallelContext
    kind: str
    recompute: str
    style: Style
    paired: bool
    recompute_modules: tuple[str, ...]
    window: bool
    mtp: bool
    counted: bool
    overlap_tp: bool | None
    overlap_all_to_all: bool | None
    stack: Same
    cluster: Same
    estimator: LayerEstimator = field(compare=False, repr=False)  # who computes it the first time


def _recorded(key: LayerKey, window: int, indexer: bool) -> OperatorTrace:
    return record_layer(key.style, key.ctx, key.estimator.model, key.kind, window, indexer)


@functools.lru_cache(maxsize=4096)
def _layer_work(key: LayerKey) -> tuple[tuple[float, LayerWork], ...]:
    return tuple(
        (share, key.estimator.compute(_recorded(key, window, indexer), key.recompute, sync))
        for share, window, indexer, sync in key.estimator.variants(key.kind)
    )


@functools.lru_cache(maxsize=1024)
def _end_work(key: LayerKey) -> tuple[LayerWork, LayerWork, LayerWork | None]:
    estimator = key.estimator
    first, last, extra = _record_ends(key.style, key.ctx, estimator.model.hidden, estimator.padded_vocab)
    join = estimator.compute(extra) if estimator.model.mtp_modules and key.mtp else None
    return estimator.compute(first), estimator.compute(last), join


@functools.lru_cache(maxsize=256)
def _record_ends(
    style: Style, ctx: ParallelContext, hidden: float, padded_vocab: float
) -> tuple[OperatorTrace, OperatorTrace, OperatorTrace]:
    """The operators of the embedding, of the head with its loss, and of what joins two streams for multi-token
    prediction. To be read only."""
    first, last, join = (OperatorTrace(style) for _ in range(3))
    embedding(first, ctx, hidden, padded_vocab)
    vocabulary(last, ctx, hidden, padded_vocab)
    norm(join, ctx, hidden)
    join.linear("mtp project", "linear", ctx.tokens_sp, 2 * hidden, hidden)
    return first, last, join


class LayerEstimator:
    """Layer costs of one (model, cluster, plan, workload, precision, stack)."""

    def __init__(
        self, model: ModelSpec, cluster: Cluster, plan: Plan, workload: Workload, precision: str, stack: Stack
    ) -> None:
        self.model, self.cluster, self.plan, self.workload, self.stack = model, cluster, plan, workload, stack
        self._same_stack, self._same_cluster = Same(stack), Same(cluster)
        self.counted = workload.capacity_factor is None  # padded to a capacity, experts' rows are known beforehand
        self.kernels = stack.kernels(cluster.chip)
        changes = {} if self.counted else {"counts_apart": False}
        self.style: Style = stack.style(precision == "fp8", workload.busiest, plan.ep, **changes)
        stride = 1 if plan.etp <= 1 else plan.etp
        ep = collectives.place(cluster, plan.ep, stride, tables=True)
        inside = min(plan.ep, max(1, cluster.tiers[0].size // stride)) if plan.ep > 1 else 1
        self.ctx = ParallelContext(
            plan.micro_batch, workload.seq, plan.tp, bool(plan.sp), plan.cp, plan.ep, plan.etp, plan.ep / inside
        )
        self.groups = {
            "tp": collectives.place(cluster, plan.tp, tables=True),
            "cp": collectives.place(cluster, plan.cp, plan.tp, tables=True),
            "ep": ep,
            "etp": collectives.place(cluster, plan.etp, tables=True),
        }
        self.shards = collectives.place(
            cluster, plan.zero_shards, plan.dp_stride() if plan.cp == 1 else plan.tp, tables=True
        )
        self.expert_shards = collectives.place(cluster, plan.expert_dp, plan.ep * plan.etp, tables=True)

    def switch(self, name: str) -> bool:
        """A switch of the plan, or the stack's default where the plan leaves it open."""
        value = getattr(self.plan, name)
        return bool(getattr(self.stack, name) if value is None else value)

    # -------------------------------------------------------------- one trace → seconds

    def estimate(
        self,
        trace: OperatorTrace,
        params: tuple[float, float] = (0.0, 0.0),
        recompute: str = "none",
        sync: bool = False,
    ) -> LayerCost:
        """Seconds of a recorded layer. `params`: its weights on this chip, for ZeRO-3 gathers."""
        return self.apply_sharding(self.compute(trace, recompute, sync), params)

    def compute(self, trace: OperatorTrace, recompute: str = "none", sync: bool = False) -> LayerWork:
        """Device and host seconds of a recorded layer before any sharding of its weights: the same for every dp.

        Args:
            recompute: a key of `RECOMPUTE`.
            sync: the host waits for the device before the layer's operators, so it cannot run ahead.
        """
        stack, seconds = self.stack, OperatorSeconds(self.kernels.time)
        forward = seconds.total(trace.forward)
        backward = seconds.total(trace.backward_input)
        weight = seconds.total(trace.backward_weight)
        attention = seconds.classes.get("attention", 0.0)
        again = RECOMPUTE[recompute](trace, seconds, stack)
        comm, host = self._communication(trace, seconds), self._host_time(trace, recompute)
        if self.plan.recompute_modules and recompute != "full":
            again += run_again(trace, seconds, self.plan.recompute_modules, comm.experts_forward_s)

        # What is left of messages when the work beside them is done; it follows the weight gradient.
        paced_weight = _longer(weight, host.weight_s, stack.host_norm)
        layer = (
            _longer(forward, host.forward_s, stack.host_norm)
            + _longer(backward, host.backward_s, stack.host_norm)
            + paced_weight
        )
        left_tp = _after(comm.beside_weight_gradient_s, paced_weight, stack.wgrad_hidden)
        left_ep = _after(comm.beside_layer_s, layer, stack.all_to_all_hidden)
        if comm.beside_weight_gradient_s:
            seconds.add("tp communication", left_tp)
        if comm.beside_layer_s:
            seconds.add("ep communication", left_ep)
        if comm.beside_attention_s:
            left = comm.beside_attention_s - stack.wgrad_hidden * least(comm.beside_attention_s, attention)
            seconds.classes["cp communication"] = left
            comm.forward_s += left / 3
            comm.backward_s += 2 * left / 3
        if recompute == "full":
            again += comm.forward_s
        forward_s, backward_s = forward + comm.forward_s, backward + comm.backward_s + again
        if sync and host.forward_s:
            # no running ahead: each operator that no graph replays takes the longer of its device and its host time
            issued = _experts_only(trace.forward) if stack.graphs == "partial" else trace.forward
            late = sum(most(host.per_op_s * op.kernels - self.kernels.time(op), 0.0) for op in issued)
            forward_s, backward_s = forward_s + late, backward_s + (late if recompute == "full" else 0.0)
        return LayerWork(
            forward_s,
            backward_s,
            paced_weight + (left_tp + left_ep),
            host.forward_s,
            host.backward_s,
            comm.hideable_forward_s,
            comm.hideable_backward_s,
            tuple(seconds.classes.items()),
            tuple(trace.saved.items()),
        )

    def _communication(self, trace: OperatorTrace, seconds: OperatorSeconds) -> Communication:
        """Seconds of the messages, by what they may run beside; exposed ones are counted in their class."""
        stack, comm = self.stack, Communication()
        overlap_tp, overlap_all_to_all = self.switch("overlap_tp"), self.switch("overlap_all_to_all")
        paired = self.plan.schedule.startswith("dualpipe")
        known: dict[tuple[str, float, str, float], float] = {}  # most messages of the forward come again
        for message in trace.messages:
            same = message.kind, message.bytes, message.group, message.dedup
            if same not in known:
                known[same] = collectives.time(
                    message.kind, message.bytes, self.groups[message.group], dedup=message.dedup
                )
            t = known[same]
            if message.hidden_by == "attention":
                comm.beside_attention_s += t
                continue
            if message.hidden_by == "wgrad":
                comm.beside_weight_gradient_s += t
                t *= 1.0 - stack.wgrad_hidden
            elif message.hidden_by == "matmul" and overlap_tp:
                t *= 1.0 - stack.tp_hidden
            elif message.hidden_by == "schedule" and paired:
                comm.hide_by_schedule(message.phase, t * stack.all_to_all_hidden)
            elif message.hidden_by == "schedule" and overlap_all_to_all:
                comm.beside_layer_s += t
                t *= 1.0 - stack.all_to_all_hidden
            comm.expose(message, t)
            seconds.add(f"{message.group} communication", t)
        return comm

    def _host_time(self, trace: OperatorTrace, recompute: str) -> HostTime:
        stack = self.stack
        if stack.graphs == "full":
            return HostTime()
        forward_ops, backward_ops, weight_ops = trace.forward, trace.backward_input, trace.backward_weight
        if stack.graphs == "partial":  # attention, router and what prepares the dispatch are replayed
            forward_ops, backward_ops, weight_ops = map(_experts_only, (forward_ops, backward_ops, weight_ops))
        chip = self.cluster.chip
        issue = stack.scalar(chip, "host_op_s", chip.host_op_s.value if chip.host_op_s else stack.host_op_s)
        issue_backward, messages = (
            issue * (chip.host_backward or stack.host_backward),
            stack.host_message_s * len(trace.messages) / 2,
        )
        forward = issue * sum(op.kernels for op in forward_ops) + messages
        backward = issue_backward * sum(op.kernels for op in backward_ops) + messages
        return HostTime(
            forward,
            backward + (forward if recompute == "full" else 0.0),
            issue_backward * sum(op.kernels for op in weight_ops),
            issue,
        )

    # -------------------------------------------------------------- weights sharded over data parallelism

    def apply_sharding(self, work: LayerWork, params: tuple[float, float] = (0.0, 0.0)) -> LayerCost:
        """The layer's cost under this plan's sharding of its weights (`params`: how many are on this chip)."""
        f, bi, bw, classes = work.forward_s, work.backward_input_s, work.backward_weight_s, work.classes
        norm = self.stack.host_norm
        if self.plan.zero == 3 and self.plan.zero_shards > 1:
            by_class = dict(classes)
            f, bi, bw = self._sharded(work, params, by_class)
            classes = tuple(by_class.items())
        return LayerCost(
            _longer(f, work.host_forward_s, norm),
            _longer(bi, work.host_backward_s, norm),
            bw,
            _saved_by_hiding(f, work.host_forward_s, work.hideable_forward_s, norm),
            _saved_by_hiding(bi, work.host_backward_s, work.hideable_backward_s, norm),
            classes,
            work.saved,
        )

    def _sharded(
        self, work: LayerWork, params: tuple[float, float], classes: dict[str, float]
    ) -> tuple[float, float, float]:
        """ZeRO-3: gather the layer's weights before the forward and the backward, scatter its gradient after."""
        f, bi, bw, gather, scatter = work.forward_s, work.backward_input_s, work.backward_weight_s, 0.0, 0.0
        for count, levels in zip(params, (self.shards, self.expert_shards), strict=True):
            gather += collectives.time("all_gather", count * WIDTH, levels)
            scatter += collectives.time("reduce_scatter", count * (WIDTH if self.stack.bf16_grads else 4), levels)
        hidden = self.stack.fsdp_hidden
        both, paced = gather + scatter, _longer(bi, work.host_backward_s, self.stack.host_norm) + bw
        extra_f = gather - hidden * least(gather, f)
        extra_bi, extra_bw = (1.0 - hidden) * both, _after(both, paced, hidden)
        classes["dp communication"] = classes.get("dp communication", 0.0) + extra_f + extra_bi + extra_bw
        return f + extra_f, bi + extra_bi, bw + extra_bw

    # -------------------------------------------------------------- layers

    def trace(self, kind: str, window: int = 0, indexer: bool = True) -> OperatorTrace:
        """The operators of a layer of this kind (dense or moe) on this plan's chips."""
        return _recorded(self._key(kind), window, indexer)

    def layer(self, kind: str, recompute: str) -> LayerCost:
        """Cost of a layer of this kind, averaged over its window and indexer variants."""
        params, cost = layer_params(self.model, kind, self.plan.tp, self.plan.ep, self.plan.etp), LayerCost()
        for weight, work in self.layer_work(kind, recompute):
            cost = cost.plus(self.apply_sharding(work, params), weight)
        return cost

    def layer_work(self, kind: str, recompute: str) -> tuple[tuple[float, LayerWork], ...]:
        """(share of the layers, work) of each variant of a kind of layer; kept for the next plan that shares it."""
        return _layer_work(self._key(kind, recompute))

    def _key(self, kind: str, recompute: str = "none") -> LayerKey:
        """What the work of a kind of layer, or of the ends, depends on: of the plan's experts that of expert layers
        alone."""
        shape = tuple(self.model.__dict__.values())  # every field; the name and the depth (first two) change no layer …
        if not (self.model.window_layers or self.model.index_topk):
            shape = shape[2:]  # … unless only some of the layers have a window or an indexer
        plan, experts = self.plan, kind == "moe"
        return LayerKey(
            shape,
            self.ctx if experts else replace(self.ctx, ep=1, etp=1, nodes=1.0),
            kind,
            recompute,
            self.style if experts else replace(self.style, imbalance=1.0),
            experts and plan.schedule.startswith("dualpipe"),
            plan.recompute_modules,
            self.workload.window,
            self.workload.mtp,
            self.counted,
            plan.overlap_tp,
            plan.overlap_all_to_all,
            self._same_stack,
            self._same_cluster,
            self,
        )

    def variants(self, kind: str) -> Iterator[tuple[float, int, bool, bool]]:
        """(share of the layers, window, runs an indexer, host waits) of each variant of a kind of layer."""
        model = self.model
        sync = kind == "moe" and self.counted and self.stack.expert_sync and self.stack.graphs != "full"
        variants = [(1.0, 0, True)]
        if model.window_layers and self.workload.window:
            share = model.window_layers / model.layers
            variants = [(1 - share, 0, True), (share, model.window, True)]
        if model.index_topk and 0 < model.indexer_full_layers < model.layers:
            share = model.indexer_full_layers / model.layers
            variants = [(share, 0, True), (1 - share, 0, False)]
        return ((share, window, indexer, sync) for share, window, indexer in variants if share > 0)

    @functools.cached_property
    def padded_vocab(self) -> float:
        """Megatron pads the vocabulary to a multiple of 128 × TP."""
        block = 128 * self.plan.tp
        return -(-self.model.vocab // block) * block

    def ends(self) -> tuple[LayerCost, LayerCost, LayerCost]:
        """(embedding, heads with their losses, layers of the prediction depths)."""
        return self.shard_ends(self.end_work())

    def end_work(self) -> tuple[LayerWork, LayerWork, LayerWork | None]:
        """Work of the embedding, of the head with its loss, of what joins two streams for multi-token prediction."""
        return _end_work(self._key("ends"))

    def shard_ends(self, ends: tuple[LayerWork, LayerWork, LayerWork | None]) -> tuple[LayerCost, LayerCost, LayerCost]:
        """`ends`, from their work. Every prediction depth has a head of its own pass and a layer with what joins it."""
        table = (self.padded_vocab * self.model.hidden / self.plan.tp, 0.0)
        first, head, join = self.apply_sharding(ends[0], table), self.apply_sharding(ends[1], table), ends[2]
        if join is None:
            return first, head, LayerCost()
        depth = self.model.mtp_depth
        one = self.apply_sharding(join).plus(self.layer("moe" if self.model.experts else "dense", self.plan.recompute))
        return first, head.plus(head, depth), LayerCost().plus(one, depth)


def _experts_only(ops: Sequence[Op]) -> list[Op]:
    """What partial graphs leave to the host: experts, and the permutations around them."""
    return [op for op in ops if op.group in ("expert", "permutation") or op.name.startswith("experts")]


def _longer(device_s: float, host_s: float, sharpness: float) -> float:
    """Device and host work side by side, each sometimes waiting for the other: a p-norm, close to the longer one."""
    return (device_s**sharpness + host_s**sharpness) ** (1.0 / sharpness) if host_s else device_s


def _saved_by_hiding(device_s: float, host_s: float, hidden_s: float, sharpness: float) -> float:
    """Seconds that hiding `hidden_s` of the device's work saves: nothing where the host sets the pace."""
    if not hidden_s:
        return 0.0
    return _longer(device_s, host_s, sharpness) - _longer(most(device_s - hidden_s, 0.0), host_s, sharpness)


def _after(messages_s: float, work_s: float, hidden: float) -> float:
    """Seconds of messages that are left when the work beside them is done; the other (1 − hidden) of them slows that
    work.

    They follow the last part of the backward, the weight gradient. Were they counted with the input gradient, which
    zero-bubble schedules have on their critical path, then quicker weight gradients would make a step longer.
    """
    return hidden * most(messages_s - work_s, 0.0)
