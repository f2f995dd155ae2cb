"""One layer's seconds on one chip for one micro-batch: its recorded operators and messages, priced under a stack.

Device time is the sum of its kernels and of the collectives that nothing hides; host time is what issuing its operators
takes; the longer one counts. `step_cost` puts layers together to stages and a step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sim.cost import collectives
from sim.cost.operators import (
    WIDTH,
    OperatorTrace,
    ParallelContext,
    Style,
    dense_ffn,
    embedding,
    gqa,
    mla,
    norm,
    vocabulary,
)
from sim.cost.operators_moe import moe_ffn
from sim.cost.parameters import layer_params
from sim.cost.stacks import Stack
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import RECOMPUTE_MODULES, Plan, Workload


@dataclass(frozen=True)
class LayerCost:
    """One layer (or embedding, or head) on one chip for one micro-batch, in seconds. `hideable_*` are inside `*_s`."""

    forward_s: float = 0.0
    backward_input_s: float = 0.0
    backward_weight_s: float = 0.0
    hideable_forward_s: float = 0.0
    hideable_backward_s: float = 0.0
    classes: tuple[tuple[str, float], ...] = ()  # operator class → seconds, forward + backward
    saved: tuple[tuple[str, float], ...] = ()  # activation bytes kept, by part

    def plus(self, other: LayerCost, times: float = 1.0) -> LayerCost:
        def merge(a, b):
            out = dict(a)
            for key, value in b:
                out[key] = out.get(key, 0.0) + times * value
            return tuple(out.items())

        return LayerCost(
            *(
                getattr(self, f) + times * getattr(other, f)
                for f in (
                    "forward_s",
                    "backward_input_s",
                    "backward_weight_s",
                    "hideable_forward_s",
                    "hideable_backward_s",
                )
            ),
            merge(self.classes, other.classes),
            merge(self.saved, other.saved),
        )


@dataclass(frozen=True)
class LayerWork:
    """What one layer asks of device and host, in seconds, before its weights are sharded over data parallelism."""

    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    host_forward_s: float
    host_backward_s: float
    hideable_forward_s: float
    hideable_backward_s: float
    classes: tuple[tuple[str, float], ...]
    saved: tuple[tuple[str, float], ...]


_LAYERS: dict[tuple, tuple[tuple[tuple[float, LayerWork], ...], Stack, Cluster]] = {}


class LayerEstimator:
    """Layer costs of one (model, cluster, plan, workload, precision, stack)."""

    def __init__(
        self, model: ModelSpec, cluster: Cluster, plan: Plan, workload: Workload, precision: str, stack: Stack
    ) -> None:
        self.model, self.cluster, self.plan, self.workload, self.stack = model, cluster, plan, workload, stack
        self.kernels = stack.kernels(cluster.chip)
        self.style: Style = stack.style(precision == "fp8", workload.imbalance)
        stride = 1 if plan.etp <= 1 else plan.etp
        ep = collectives.place(cluster, plan.ep, stride)
        inside = min(plan.ep, max(1, cluster.tiers[0].size // stride)) if plan.ep > 1 else 1
        self.ctx = ParallelContext(
            plan.micro_batch, workload.seq, plan.tp, bool(plan.sp), plan.cp, plan.ep, plan.etp, plan.ep / inside
        )
        self.groups = {
            "tp": collectives.place(cluster, plan.tp),
            "cp": collectives.place(cluster, plan.cp, plan.tp),
            "ep": ep,
            "etp": collectives.place(cluster, plan.etp),
        }
        self.shards = collectives.place(cluster, plan.zero_shards, plan.dp_stride() if plan.cp == 1 else plan.tp)
        self.expert_shards = collectives.place(cluster, plan.expert_dp, plan.ep * plan.etp)

    def switch(self, name: str) -> bool:
        """A switch of the plan, or the stack's default where the plan leaves it open."""
        value = getattr(self.plan, name)
        return bool(getattr(self.stack, name) if value is None else value)

    # -------------------------------------------------------------- one trace → seconds

    def price(
        self,
        trace: OperatorTrace,
        params: tuple[float, float] = (0.0, 0.0),
        recompute: str = "none",
        sync: bool = False,
    ) -> LayerCost:
        """Seconds of a recorded layer. `params`: its weights on this chip, for ZeRO-3 gathers."""
        return self.finish(self.work(trace, recompute, sync), params)

    def work(self, trace: OperatorTrace, recompute: str = "none", sync: bool = False) -> LayerWork:
        """Device and host seconds of a recorded layer before any sharding of its weights: the same for every dp."""
        time, stack, classes = self.kernels.time, self.stack, {}

        def total(ops) -> float:
            out = 0.0
            for op in ops:
                t = time(op)
                out += t
                classes[op.group] = classes.get(op.group, 0.0) + t
            return out

        forward, backward, weight = total(trace.forward), total(trace.backward_input), total(trace.backward_weight)
        attention = classes.get("attention", 0.0)
        again = 0.0
        if recompute == "full":
            again = total(trace.forward)
            if stack.early_stop:
                last = next((op for op in reversed(trace.forward) if op.kind == "matmul"), None)
                again -= time(last) if last else 0.0
        elif recompute == "selective":
            again = total(trace.core)
        elif recompute == "selective_ops":
            again = total(op for op in trace.forward if op.kind == "memory") + 0.5 * total(
                op for op in trace.forward if op.kind == "matmul"
            )
        if self.plan.recompute_modules and recompute != "full":
            names = {n for module in self.plan.recompute_modules for n in RECOMPUTE_MODULES[module]}
            again += total(op for op in trace.forward if op.name in names)
        comm = {"forward": 0.0, "backward_input": 0.0}
        hide = {"forward": 0.0, "backward_input": 0.0}
        wgrad = under = beside = 0.0
        for message in trace.messages:
            t = collectives.time(message.kind, message.bytes, self.groups[message.group], dedup=message.dedup)
            if message.hidden_by == "wgrad":
                wgrad += t
                t *= 1.0 - stack.wgrad_hidden
            elif message.hidden_by == "matmul" and self.switch("overlap_tp"):
                t *= 1.0 - stack.tp_hidden
            elif message.hidden_by == "attention":
                under += t
                continue
            elif message.hidden_by == "schedule":
                if self.plan.schedule.startswith("dualpipe"):
                    hide[message.phase] += t * stack.all_to_all_hidden
                elif self.switch("overlap_all_to_all"):
                    beside += t
                    t *= 1.0 - stack.all_to_all_hidden
            comm[message.phase] += t
            classes[message.group + " communication"] = classes.get(message.group + " communication", 0.0) + t
        host_f = host_b = host_w = 0.0
        if not stack.graphs:
            issue = stack.scalar(self.cluster.chip, "host_op_s", stack.host_op_s)
            later, messages = issue * stack.host_backward, stack.host_message_s * len(trace.messages) / 2
            host_f = issue * sum(op.kernels for op in trace.forward) + messages
            host_b = (
                later * sum(op.kernels for op in trace.backward_input)
                + messages
                + (host_f if recompute == "full" else 0.0)
            )
            host_w = later * sum(op.kernels for op in trace.backward_weight)
        bw = _longer(weight, host_w)
        after = {
            "tp": _after(wgrad, bw, stack.wgrad_hidden),
            "ep": _after(beside, _longer(forward, host_f) + _longer(backward, host_b) + bw, stack.all_to_all_hidden),
        }
        for group, left in after.items():
            if left:
                classes[group + " communication"] = classes.get(group + " communication", 0.0) + left
        if under:
            left = under - stack.wgrad_hidden * min(under, attention)
            classes["cp communication"] = left
            comm["forward"] += left / 3
            comm["backward_input"] += 2 * left / 3
        if recompute == "full":
            again += comm["forward"]
        f, bi = forward + comm["forward"], backward + comm["backward_input"] + again
        if sync and host_f:
            # no running ahead: each operator takes the longer of its device and its host time
            late = sum(max(issue * op.kernels - time(op), 0.0) for op in trace.forward)
            f, bi = f + late, bi + (late if recompute == "full" else 0.0)
        return LayerWork(
            f,
            bi,
            bw + sum(after.values()),
            host_f,
            host_b,
            hide["forward"],
            hide["backward_input"],
            tuple(classes.items()),
            tuple(trace.saved.items()),
        )

    def finish(self, work: LayerWork, params: tuple[float, float] = (0.0, 0.0)) -> LayerCost:
        """The layer's cost under this plan's sharding of its weights (`params`: how many are on this chip)."""
        f, bi, bw, classes = work.forward_s, work.backward_input_s, work.backward_weight_s, work.classes
        if self.plan.zero == 3 and self.plan.zero_shards > 1:
            classes = dict(classes)
            f, bi, bw = self._sharded(work, params, classes)
            classes = tuple(classes.items())
        # what hiding saves: nothing where the host sets the pace
        saved = [
            _longer(t, host) - _longer(max(t - hidden, 0.0), host) if hidden else 0.0
            for t, host, hidden in (
                (f, work.host_forward_s, work.hideable_forward_s),
                (bi, work.host_backward_s, work.hideable_backward_s),
            )
        ]
        return LayerCost(
            _longer(f, work.host_forward_s), _longer(bi, work.host_backward_s), bw, *saved, classes, work.saved
        )

    def _sharded(self, work: LayerWork, params: tuple[float, float], classes: dict) -> tuple[float, float, float]:
        """ZeRO-3: gather the layer's weights before the forward and the backward, scatter its gradient after."""
        f, bi, bw, gather, scatter = work.forward_s, work.backward_input_s, work.backward_weight_s, 0.0, 0.0
        for count, levels in zip(params, (self.shards, self.expert_shards)):
            gather += collectives.time("all_gather", count * WIDTH, levels)
            scatter += collectives.time("reduce_scatter", count * (WIDTH if self.stack.bf16_grads else 4), levels)
        hidden = self.stack.fsdp_hidden
        both, paced = gather + scatter, _longer(bi, work.host_backward_s) + bw
        extra_f = gather - hidden * min(gather, f)
        extra_bi, extra_bw = (1.0 - hidden) * both, _after(both, paced, hidden)
        classes["dp communication"] = classes.get("dp communication", 0.0) + extra_f + extra_bi + extra_bw
        return f + extra_f, bi + extra_bi, bw + extra_bw

    # -------------------------------------------------------------- layers

    def trace(self, kind: str, window: int = 0, indexer: bool = True) -> OperatorTrace:
        trace = OperatorTrace(self.style)
        if self.model.attention == "mla":
            mla(trace, self.ctx, self.model, indexer)
        else:
            gqa(trace, self.ctx, self.model, window)
        if kind == "moe":
            moe_ffn(trace, self.ctx, self.model)
        else:
            dense_ffn(trace, self.ctx, self.model.hidden, self.model.ffn, self.model.gated_ffn, self.model.norm)
        return trace

    def layer(self, kind: str, recompute: str) -> LayerCost:
        """Cost of a layer of this kind, averaged over its window and indexer variants."""
        params, cost = layer_params(self.model, kind, self.plan.tp, self.plan.ep, self.plan.etp), LayerCost()
        for weight, work in self.layer_work(kind, recompute):
            cost = cost.plus(self.finish(work, params), weight)
        return cost

    def layer_work(self, kind: str, recompute: str) -> tuple[tuple[float, LayerWork], ...]:
        """(share of the layers, work) of each variant of a kind of layer; kept for the next plan that shares it."""
        shape = tuple(self.model.__dict__.values())  # every field; the name and the depth (first two) change no layer …
        if not (self.model.window_layers or self.model.index_topk):
            shape = shape[2:]  # … unless only some of the layers have a window or an indexer
        key = (
            shape,
            self.ctx,
            kind,
            recompute,
            self.style,
            self.plan.schedule.startswith("dualpipe"),
            self.plan.recompute_modules,
            self.workload.window,
            self.plan.overlap_tp,
            self.plan.overlap_all_to_all,
            id(self.stack),
            id(self.cluster),
        )
        found = _LAYERS.get(key)
        if found is None:
            if len(_LAYERS) > 4096:
                _LAYERS.clear()
            # the stack and the cluster are kept, so that their identities stay theirs
            found = _LAYERS[key] = (self._layer_work(kind, recompute), self.stack, self.cluster)
        return found[0]

    def _layer_work(self, kind: str, recompute: str) -> tuple[tuple[float, LayerWork], ...]:
        model = self.model
        sync = kind == "moe" and self.stack.expert_sync
        variants = [(1.0, 0, True)]
        if model.window_layers and self.workload.window:
            share = model.window_layers / model.layers
            variants = [(1 - share, 0, True), (share, model.window, True)]
        if model.index_topk and 0 < model.indexer_full_layers < model.layers:
            share = model.indexer_full_layers / model.layers
            variants = [(share, 0, True), (1 - share, 0, False)]
        return tuple(
            (weight, self.work(self.trace(kind, window, indexer), recompute, sync))
            for weight, window, indexer in variants
            if weight > 0
        )

    @functools.cached_property
    def padded_vocab(self) -> float:
        """Megatron pads the vocabulary to a multiple of 128 × TP."""
        block = 128 * self.plan.tp
        return -(-self.model.vocab // block) * block

    def ends(self) -> tuple[LayerCost, LayerCost]:
        """(embedding, head with loss; multi-token prediction included in the head)."""
        return self.finish_ends(self.end_work())

    def end_work(self) -> tuple[LayerWork, LayerWork, LayerWork | None]:
        """Work of the embedding, of the head with its loss, and of what joins two streams for multi-token prediction."""
        model, ctx = self.model, self.ctx
        first = OperatorTrace(self.style)
        embedding(first, ctx, model.hidden, self.padded_vocab)
        last = OperatorTrace(self.style)
        vocabulary(last, ctx, model.hidden, self.padded_vocab)
        join = None
        if model.mtp_modules and self.workload.mtp:
            extra = OperatorTrace(self.style)
            norm(extra, ctx, model.hidden)
            extra.linear("mtp project", "linear", ctx.tokens_sp, 2 * model.hidden, model.hidden)
            join = self.work(extra)
        return self.work(first), self.work(last), join

    def finish_ends(self, ends: tuple[LayerWork, LayerWork, LayerWork | None]) -> tuple[LayerCost, LayerCost]:
        """`ends`, from their work."""
        table = (self.padded_vocab * self.model.hidden / self.plan.tp, 0.0)
        first, head, join = self.finish(ends[0], table), self.finish(ends[1], table), ends[2]
        if join is not None:
            one = (
                self.finish(join)
                .plus(self.layer("moe" if self.model.experts else "dense", self.plan.recompute))
                .plus(head)
            )
            head = head.plus(one, self.model.mtp_depth)
        return first, head


def _longer(device_s: float, host_s: float, sharpness: float = 4.0) -> float:
    """Device and host work side by side, each sometimes waiting for the other: a p-norm, close to the longer of the two."""
    return (device_s**sharpness + host_s**sharpness) ** (1.0 / sharpness) if host_s else device_s


def _after(messages_s: float, work_s: float, hidden: float) -> float:
    """Seconds of messages that are left when the work beside them is done; the other (1 − hidden) of them slows that work.

    They follow the last part of the backward, the weight gradient. Were they counted with the input gradient, which
    zero-bubble schedules have on their critical path, then quicker weight gradients would make a step longer.
    """
    return hidden * max(messages_s - work_s, 0.0)
