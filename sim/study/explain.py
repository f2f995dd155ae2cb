"""Where a step's time goes: a tree of seconds that adds up, the operators on the roofline, two plans term by term.

    tree = step_tree(scenario, point)          # {"name", "seconds", "parts": [...]}; parts sum to their parent
    difference(tree, other)                    # name, seconds here, there, more here; the last column sums to the gap

The tree is of an average pipeline rank: what it computes, which messages it waits for, what busier ranks do beyond it,
then the idle time of the pipeline and what comes once a step. All of it is taken from the events, so it sums to their
step; operators are split as the cost model has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sim.cost.chunks import chunks_by_rank
from sim.cost.layer import LayerEstimator
from sim.cost.layer_cost import LayerCost
from sim.cost.operators import Op
from sim.scenario.training import Scenario
from sim.training.evaluate import Point

Tree = dict[str, Any]
LARGEST = 10  # operators on the roofline


def _node(name: str, seconds: float, parts: Sequence[Tree] = ()) -> Tree:
    return {"name": name, "seconds": seconds, "parts": list(parts)}


def step_tree(s: Scenario, p: Point) -> Tree:
    """The step of a point without jitter as a tree; every node's parts sum to it."""
    r, costs = p.result, p.estimate.costs
    mean, busiest = sum(r.busy_s) / len(r.busy_s), max(r.busy_s)
    classes = _classes_of_a_rank(s, p)
    compute = {k: v for k, v in classes.items() if "communication" not in k and "messages" not in k}
    messages = {k: v for k, v in classes.items() if k not in compute}
    work = [
        _node("computing", sum(compute.values()), _sorted(compute)),
        _node("waiting for messages", sum(messages.values()), _sorted(messages)),
        _node("waiting for the host, less what paired micro-batches hide", mean - sum(classes.values())),
    ]
    idle = [
        _node("uneven ranks: the busiest works on", busiest - mean),
        _node("schedule: the busiest is idle too", r.pipeline_s - busiest),
    ]
    return _node(
        "step",
        r.step_s,
        [
            _node("work of an average rank", mean, work),
            _node("pipeline bubble: an average rank idle", r.pipeline_s - mean, idle),
            _node("gradient reduction that nothing hides", r.grad_exposed_s),
            _node("parameter gather", costs.param_gather_s),
            _node("optimizer", r.step_s - r.pipeline_s - r.grad_exposed_s - costs.param_gather_s - costs.fixed_s),
            _node("host's own work of a step", costs.fixed_s),
        ],
    )


def _sorted(parts: Mapping[str, float]) -> list[Tree]:
    return [_node(name, seconds) for name, seconds in sorted(parts.items(), key=lambda x: -x[1])]


def _classes_of_a_rank(s: Scenario, p: Point) -> dict[str, float]:
    """Seconds of a step by operator class on an average rank, at the speed of the expected slowest chip."""
    total = LayerCost()
    for cost, count in _pieces(s):
        total = total.plus(cost, count)
    plan = s.plan
    share = 0.5 if plan.schedule == "dualpipe" else 1.0  # each half of the batch passes a chunk of two
    copies = 2 if plan.schedule == "dualpipe" else 1
    scale = p.estimate.costs.micro_batches * share * copies * p.straggler / plan.pp
    return {name: seconds * scale for name, seconds in total.classes}


def _pieces(s: Scenario) -> list[tuple[LayerCost, float]]:
    """Cost of each kind of layer and of the ends, with how many of them the model has."""
    estimator, plan = _estimator(s), s.plan
    counts: Counter[tuple[str, str]] = Counter()
    ranks = plan.pp // 2 if plan.schedule == "dualpipe" else plan.pp  # DualPipe's other half holds the same chunks
    for chunk in (c for held in chunks_by_rank(s.model, plan, s.workload.mtp)[:ranks] for c in held):
        for kind, again, others in chunk.layers():
            counts[kind, plan.recompute] += again
            counts[kind, "none"] += others
    out = [(estimator.layer(kind, recompute), n) for (kind, recompute), n in counts.items() if n]
    return out + [(end, 1.0) for end in estimator.ends()]


def _estimator(s: Scenario) -> LayerEstimator:
    return LayerEstimator(s.model, s.cluster, s.plan, s.workload, s.precision, s.stack)


def leaves(tree: Tree, prefix: str = "") -> dict[str, float]:
    """Seconds of the nodes that have no parts, by name."""
    if not tree["parts"]:
        return {tree["name"]: tree["seconds"]}
    return {name: x for part in tree["parts"] for name, x in leaves(part).items()}


def difference(here: Tree, there: Tree) -> list[tuple[str, float, float, float]]:
    """(term, seconds here, seconds there, more here) of every leaf, largest change first; the last ones sum to the
    difference of the two steps."""
    a, b = leaves(here), leaves(there)
    rows = [(name, a.get(name, 0.0), b.get(name, 0.0), a.get(name, 0.0) - b.get(name, 0.0)) for name in {**a, **b}]
    return sorted(rows, key=lambda row: -abs(row[3]))


def text(tree: Tree) -> list[str]:
    """The tree for a terminal: seconds and share of the step."""
    whole, lines = tree["seconds"], []

    def add(node: Tree, depth: int) -> None:
        if depth and abs(node["seconds"]) < 1e-9 * whole:
            return
        label = "  " * depth + node["name"]
        lines.append(f"{label:60}{node['seconds']:>10.4f} s{node['seconds'] / whole:>8.1%}")
        for part in node["parts"]:
            add(part, depth + 1)

    add(tree, 0)
    return lines


# ------------------------------------------------------------------ operators on the roofline


def rooflines(s: Scenario, most: int = LARGEST) -> list[dict[str, Any]]:
    """The operators that take most of a micro-batch of the whole model: seconds, FLOPs a byte, and which roof binds."""
    estimator, model = _estimator(s), s.model
    kernels = estimator.kernels
    ridge = kernels.matmul_flops[s.precision == "fp8"] / kernels.bandwidth
    rows: dict[str, dict[str, Any]] = {}

    def add(op: Op, count: float) -> None:
        row = rows.setdefault(op.name, {"name": op.name, "group": op.group, "seconds": 0.0, "flops": 0.0, "bytes": 0.0})
        row["seconds"] += count * kernels.time(op)
        row["flops"] += count * op.flops
        row["bytes"] += count * op.bytes

    for kind, count in (("dense", model.dense_ffn_layers), ("moe", model.moe_layers)):
        if count:
            trace = estimator.trace(kind)
            for op in (*trace.forward, *trace.backward_input, *trace.backward_weight):
                add(op, count)
    out = sorted(rows.values(), key=lambda row: -row["seconds"])[:most]
    total = sum(row["seconds"] for row in rows.values())
    for row in out:
        row["share"] = row["seconds"] / total
        row["flops_per_byte"] = row["flops"] / row["bytes"] if row["bytes"] else 0.0
        row["bound"] = "compute" if row["flops_per_byte"] > ridge else "memory"
        row["tflops"] = row["flops"] / row["seconds"] / 1e12 if row["seconds"] else 0.0
    return out


def roofline_text(s: Scenario) -> list[str]:
    """`rooflines` for a terminal."""
    lines = [f"{'operator':26}{'ms a micro-batch':>18}{'of layers':>11}{'FLOP/byte':>11}{'TFLOPS':>9}  bound by"]
    for row in rooflines(s):
        lines.append(
            f"{row['name'][:25]:26}{row['seconds'] * 1e3:>18.2f}{row['share']:>11.1%}{row['flops_per_byte']:>11.0f}"
            f"{row['tflops']:>9.1f}  {row['bound']}"
        )
    return lines
