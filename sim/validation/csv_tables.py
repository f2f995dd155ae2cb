"""A table of measured iteration times of GPT models on one node or several, checked in closed form.

Columns (as in VIA-Research/vTrain's public data): # GPUs, global batch, micro batch, hidden size, attention heads,
# layers, sequence length, tensor parallelism, data parallelism, pipeline parallelism, iteration time (ms). Instead of
# GPUs: nodes, and GPUs per node (8 without). Besides, where they are: network (line rate of a GPU's port between nodes:
`200 Gbps`, a bare number is Gb/s; 200 without), stack (what trained), vocabulary.

Not in the file, so assumed: vocabulary of 51,200 (padded), A100-SXM4-80GB behind 300 GB/s NVLink, fp16, full
recomputation, 1F1B, gradients reduced after the last backward, learned positions, unfused attention.

The stack's one scalar, the host's time per operator, is fitted on a random tenth of the rows without a stack of their
own; the rest is predicted. A line that cannot be read is shown with the reason and does not stop the others.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
import time
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base import spreadsheet, units
from sim.cost.closed_form import step_time
from sim.cost.stacks import Stack, family_of, load_stack, resolve
from sim.cost.step import estimate
from sim.spec.hardware import Chip, Cluster, load_cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload
from sim.validation.predict import scores

STACK = "megatron-deepspeed-2023-vtrain"
VOCABULARY = 51200
COLUMNS = (
    "gpus",
    "global batch",
    "micro batch",
    "hidden size",
    "attention heads",
    "layers",
    "sequence length",
    "tensor parallelism",
    "data parallelism",
    "pipeline parallelism",
    "iteration time (ms)",
)
TIMES = {"iteration time (ms)": 1e-3, "iteration time (s)": 1.0, "iteration time (us)": 1e-6}  # seconds of one
TIMES |= {"iteration time (min)": 60.0, "iteration time": 0.0}  # the last: each cell says its unit
_OTHER_NAMES = {  # of a column, as launch scripts and people write it
    "gpus": ("gpu", "num gpus", "number of gpus", "world size", "chips"),
    "global batch": ("gbs", "global batch size"),
    "micro batch": ("mbs", "micro batch size"),
    "hidden size": ("hidden",),
    "attention heads": ("heads", "num attention heads", "num heads"),
    "layers": ("num layers", "number of layers"),
    "sequence length": ("seq", "seq len", "seq length", "seqlen"),
    "tensor parallelism": ("tp", "tp size", "tensor parallel", "tensor parallel size", "tensor model parallel size"),
    "data parallelism": ("dp", "dp size", "data parallel", "data parallel size"),
    "pipeline parallelism": (
        "pp",
        "pp size",
        "pipeline parallel",
        "pipeline parallel size",
        "pipeline model parallel size",
    ),
}
_NAME_OF = {other: name for name, others in _OTHER_NAMES.items() for other in others}
ASSUMPTIONS = (
    "vocabulary of 51,200 (padded)",
    "DGX A100 node, NVLink 300 GB/s each way",
    "fp16, full recomputation, 1F1B",
    "gradients reduced after the last backward",
)


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One line of the table: what was trained, where, and the seconds that it took."""

    model: ModelSpec
    plan: Plan
    workload: Workload
    seconds: float
    cluster: Cluster
    stack: str = ""  # its own; empty: `STACK`


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A line of the table that is no run, and why."""

    line: int
    reason: str


def _column(name: str) -> str:
    """A column's name as it is known: `iteration_time_ms`, `Iteration Time [ms]` and `# GPUs` are."""
    words = re.sub(r"[#_\s-]+", " ", name.lower().replace("[", "(").replace("]", ")")).strip()
    words = re.sub(r"^(step|iteration) time(?: in|,|)(?: \(?(ms|s|us|min)\)?)?$", _time, words)
    return _NAME_OF.get(words, words)


def _time(match: re.Match[str]) -> str:
    return f"iteration time ({match[2]})" if match[2] else "iteration time"


def read_table(path: str | Path) -> list[Iteration]:
    """Runs of a CSV with these columns, in any order; lines that cannot be read are passed over.

    Raises:
        InputError: no such file, a missing column, or what is wrong with the first line where none can be read.
    """
    return [run for run in read_lines(path) if isinstance(run, Iteration)]


def read_lines(path: str | Path) -> list[Iteration | Unreadable]:
    """The lines of a CSV with these columns, in their order. Raises as `read_table`."""
    lines, decimal = spreadsheet.read_table(path)
    if len(lines) < 2:
        raise InputError(f"{path}: holds no rows; the first line names the columns {', '.join(COLUMNS)}")
    titles = [[_column(c) for c in line] for line in lines[:10]]  # what a sheet says above its table is passed over
    first = next((i for i, line in enumerate(titles) if not _missing(line)), 0)
    have, missing = titles[first], _missing(titles[first])
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    out: list[Iteration | Unreadable] = []
    twice = next((name for name in have if name and have.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: has two columns {twice!r}; give one of them another title")
    for number, line in enumerate(lines[first + 1 :], first + 2):
        over = [cell for cell in line[len(have) :] if cell]
        cells = {name: cell.strip() for name, cell in zip(have, line, strict=False) if cell.strip()}
        try:
            if over:  # a decimal comma without quotes: its digits would be lost
                raise InputError(
                    f"{path} line {number}: has {len(line)} cells for {len(have)} columns, {over[0]!r} is over; put "
                    "numbers with a decimal comma in quotes, or part the cells by semicolons"
                )
            out.append(_iteration(cells, decimal, f"{path} line {number}"))
        except InputError as error:
            out.append(Unreadable(number, str(error)))
    if all(isinstance(one, Unreadable) for one in out):
        raise InputError(next(one.reason for one in out if isinstance(one, Unreadable)))
    return out


def _missing(have: list[str]) -> list[str]:
    """The columns that a first line lacks."""
    other = {"gpus": ["nodes"], COLUMNS[-1]: list(TIMES)}
    return [c for c in COLUMNS if c not in have and not any(name in have for name in other.get(c, ()))]


def _iteration(cells: dict[str, str], decimal: str, where: str) -> Iteration:
    def whole(name: str, otherwise: int | None = None) -> int:
        if name in cells:
            kind = "length" if name in ("hidden size", "sequence length") else "count"
            return spreadsheet.cell_whole(cells[name], decimal, f"{where}: {name}", kind)
        if otherwise is None:
            raise InputError(f"{where}: is not a line of numbers for {', '.join(COLUMNS)}")
        return otherwise

    nodes = whole("nodes", 1) * whole("gpus per node", 8)
    gpus = whole("gpus", nodes if "nodes" in cells else None)
    batch, micro, hidden, heads, layers, seq, tp, dp, pp = (whole(c) for c in COLUMNS[1:-1])
    time_column = next((name for name in TIMES if name in cells), None)
    if time_column is None:
        raise InputError(f"{where}: is not a line of numbers for {', '.join(COLUMNS)}")
    seconds = _seconds(cells[time_column], time_column, decimal, f"{where}: {time_column}")
    vocabulary = whole("vocabulary", VOCABULARY)
    if (
        min(gpus, batch, micro, hidden, heads, layers, seq, tp, dp, pp, seconds, vocabulary) <= 0
        or tp * dp * pp != gpus
        or batch % (dp * micro)
    ):
        raise InputError(
            f"{where}: needs positive values with tensor × data × pipeline = GPUs and a batch that is a multiple of "
            "data × micro batch"
        )
    rate = cells.get("network")
    if rate and rate.replace(".", "", 1).isdigit():
        rate += " Gbps"
    return Iteration(
        _gpt(layers, hidden, heads, seq, vocabulary),
        Plan(tp=tp, dp=dp, pp=pp, micro_batch=micro, sp=False, recompute="full"),
        Workload(batch, seq),
        seconds,
        _cluster(units.parse(rate, "bytes_per_s", f"{where}: network") if rate else None),
        cells.get("stack", ""),
    )


def _seconds(cell: str, column: str, decimal: str, where: str) -> float:
    """The time of a cell in seconds; a unit may stand in the cell, and must where the column has none.

    Raises:
        InputError: no time, none of a known unit, or a unit other than the column's.
    """
    named = re.fullmatch(r"(.*\d)\s*(ms|s|us|µs|min)", cell.strip())
    unit = f"iteration time ({named[2].replace('µ', 'u')})" if named else column
    if unit not in (column, "iteration time") and column != "iteration time":
        raise InputError(f"{where}: {cell!r} has another unit than its column; give one of them")
    if not TIMES[unit]:
        raise InputError(f"{where}: {cell!r} has no unit; name it in the column, such as {COLUMNS[-1]!r}")
    return spreadsheet.cell_number(named[1] if named else cell, decimal, where) * TIMES[unit]


@functools.cache
def _gpt(layers: int, hidden: int, heads: int, seq: int, vocabulary: int) -> ModelSpec:
    return ModelSpec(
        name="GPT",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=4 * hidden,
        vocab=vocabulary,
        gated_ffn=False,
        tied=True,
        norm="layer",
        positions=seq,
        max_seq=seq,
    ).check()


@functools.cache
def _cluster(bytes_per_s: float | None) -> Cluster:
    """DGX A100, with this line rate of a GPU's port between nodes."""
    cluster = load_cluster("dgx_a100")
    if bytes_per_s is None:
        return cluster
    *inner, outer = cluster.tiers
    rate = dataclasses.replace(outer.bytes_per_s, value=bytes_per_s, low=bytes_per_s, high=bytes_per_s)
    return dataclasses.replace(cluster, tiers=(*inner, dataclasses.replace(outer, bytes_per_s=rate)))


def seconds_of(iteration: Iteration, stack: Stack) -> float:
    """Seconds of the iteration as the simulator has them, in closed form. `stack`: of a line without its own."""
    if iteration.stack:
        stack = resolve(iteration.stack, iteration.cluster.chip)[0]
    costs = estimate(iteration.model, iteration.cluster, iteration.plan, iteration.workload, "fp16", stack).costs
    return step_time(costs, iteration.plan.schedule).total_s


def with_host(stack: Stack, chip: Chip, value: float) -> Stack:
    """The stack with `value` as the host's seconds per operator on chips of this family."""
    return dataclasses.replace(stack, fitted={family_of(chip): {"name": "host_op_s", "value": value, "rows": []}})


def mean_error(runs: list[Iteration], stack: Stack) -> float:
    """Mean absolute relative error over `runs`."""
    return sum(abs(seconds_of(r, stack) / r.seconds - 1) for r in runs) / len(runs)


def fit_host(runs: list[Iteration], stack: Stack, low: float = 20e-6, high: float = 200e-6) -> float:
    """Host time per operator with the least mean absolute error on `runs` (golden section)."""
    ratio = (5**0.5 - 1) / 2

    def error(value: float) -> float:
        return mean_error(runs, with_host(stack, runs[0].cluster.chip, value))

    c, d = high - ratio * (high - low), low + ratio * (high - low)
    at_c, at_d = error(c), error(d)
    for _ in range(9):
        if at_c < at_d:
            high, d, at_d = d, c, at_c
            c = high - ratio * (high - low)
            at_c = error(c)
        else:
            low, c, at_c = c, d, at_d
            d = low + ratio * (high - low)
            at_d = error(d)
    return (low + high) / 2


def run_csv(path: str | Path, seed: int = 0, fit: bool = True) -> dict:
    """Fit on a random tenth, predict the rest, and also rotate: each tenth fitted once, errors on the other nine.

    Returns the dict of `sim.validation.training.run` with, besides, host_op_s, evaluation_s (all rows once in closed
    form), by_tensor_parallel and rotation (lowest and highest error of ten).
    """
    lines, cluster, stack = read_lines(path), _cluster(None), load_stack(STACK)
    runs = [run for run in lines if isinstance(run, Iteration)]
    order = [i for i, run in enumerate(runs) if not run.stack]
    random.Random(seed).shuffle(order)
    folds = [order[i::10] for i in range(10)] if len(order) >= 20 else [order]
    rotation = []
    if fit and len(folds) == 10:
        for fold in folds:
            value = fit_host([runs[i] for i in fold], stack)
            chosen = set(fold)
            others = [runs[i] for i in order if i not in chosen]
            rotation.append((value, mean_error(others, with_host(stack, cluster.chip, value))))
        value = rotation[0][0]
    else:
        value = stack.scalar(cluster.chip, "host_op_s", stack.host_op_s)
    used = with_host(stack, cluster.chip, value)
    start = time.perf_counter()
    predicted = [seconds_of(r, used) for r in runs]
    evaluation = time.perf_counter() - start
    fitted = set(folds[0]) if rotation else set()
    rows: list[dict[str, Any]] = []
    for i, (r, seconds) in enumerate(zip(runs, predicted, strict=True)):
        plan = r.plan
        name = (
            f"h{r.model.hidden}-L{r.model.layers}-tp{plan.tp}-dp{plan.dp}-pp{plan.pp}-mb{plan.micro_batch}"
            f"-gb{r.workload.global_batch}"
        )
        rows.append(
            {
                "id": name,
                "kind": "calibration" if i in fitted else "holdout",
                "quantity": "seconds_per_step",
                "measured": r.seconds,
                "predicted": seconds,
                "error": seconds / r.seconds - 1,
                "assumptions": list(ASSUMPTIONS),
                "chip": cluster.chip.name,
                "stack": r.stack or STACK,
                "reason": "",
                "source": str(path),
                "tp": r.plan.tp,
            }
        )
    unread = [one for one in lines if isinstance(one, Unreadable)]
    rows += [
        {
            "id": f"line {one.line}",
            "kind": "unsupported",
            "quantity": "",
            "measured": 0.0,
            "predicted": None,
            "error": None,
            "assumptions": [],
            "chip": "",
            "stack": "",
            "reason": one.reason,
            "source": str(path),
            "tp": 0,
        }
        for one in unread
    ]
    result = {
        "rows": rows,
        **scores(rows),
        "host_op_s": value,
        "evaluation_s": evaluation,
        "constants": None,
        "cross_validated": None,
        "rotation": None,
    }
    scored = rows[: len(runs)]
    result["by_tensor_parallel"] = {
        tp: sum(abs(r["error"]) for r in scored if r["tp"] == tp) / sum(r["tp"] == tp for r in scored)
        for tp in sorted({r["tp"] for r in scored})
    }
    if rotation:
        errors = [e for _, e in rotation]
        result["rotation"] = {
            "mean": sum(errors) / 10,
            "low": min(errors),
            "high": max(errors),
            "host_op_s": [v for v, _ in rotation],
        }
    return result


def summary(result: dict) -> str:
    """The outcome of a table in a few lines (it is too long to print whole)."""
    text = [
        f"{len(result['rows']) - result['count_unsupported']} measured iterations; assumed: {'; '.join(ASSUMPTIONS)}",
        f"mean absolute error, {result['count_holdout']} holdout rows: {100 * result['mape_holdout']:.2f}%   worst: "
        f"{100 * result['worst_holdout']:.1f}% ({result['worst_row']})",
        f"one scalar: host time per operator {1e6 * result['host_op_s']:.1f} µs, on {result['count_calibration']} rows "
        f"({_percent(result['mape_calibration'])})",
        f"all rows evaluated in {result['evaluation_s']:.2f} s",
        "by tensor parallelism: "
        + "  ".join(f"{tp}: {100 * e:.1f}%" for tp, e in result["by_tensor_parallel"].items()),
    ]
    if result["rotation"]:
        r = result["rotation"]
        text.append(
            f"each tenth fitted in turn: {100 * r['mean']:.2f}% on the other nine "
            f"({100 * r['low']:.2f} to {100 * r['high']:.2f}%)"
        )
    text += [f"not read: {row['reason']}" for row in result["rows"] if row["kind"] == "unsupported"]
    return "\n".join(text)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"
