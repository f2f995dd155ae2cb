"""The planner: evaluations per second, the spaces that other tools walk, published plans met, events beside the closed
form."""

from __future__ import annotations

import dataclasses
import os
import random
import statistics
import tempfile
import time

from minglm import datafiles
from minglm.tools.bench_summary import answer
from sim.cost.evaluate import in_closed_form
from sim.planner.candidates import PlanCosts
from sim.planner.planner import find, run_facts, scenario_of
from sim.planner.question import question, space_of
from sim.planner.refine import refined
from sim.planner.search import RankedPlan, search
from sim.planner.space import every
from sim.scenario.training import load_scenario
from sim.study.answer import simulate
from sim.study.monte_carlo import monte_carlo
from sim.training.evaluate import evaluate
from sim.validation.rows import read_rows

NAME = "planner"


def _row(
    name: str, value: float, unit: str, target: str | None = None, met: bool | None = None, ratio: float | None = None
) -> dict:
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "target": target, "met": met}


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as place:  # nothing that was found before is read
        before, os.environ["MINGLM_RUNS"] = os.environ.get("MINGLM_RUNS"), place
        try:
            return _run()
        finally:
            os.environ.pop("MINGLM_RUNS")
            os.environ |= {"MINGLM_RUNS": before} if before else {}


def _run() -> list[dict]:
    out = [_fast_model()]
    # every plan costed, whether it fits or not: memory by formula and the step in closed form for each
    q = question("recompute_530b", "dgx_a100", 280, seq=2048, batch=280, stack="Megatron-LM 2022-05")
    space = space_of(q)
    costs = PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
    costs.memory_capacity = float("inf")
    start = time.process_time()
    found = search(costs, space, q.cluster.num_chips, q.batch, top_k=None)
    spent = time.process_time() - start
    out.append(
        _row(
            f"530B on 280 A100, all {found.evaluated:,} plans costed in closed form",
            found.evaluated / spent,
            "plans/s of CPU",
            "at least 5,000",
            found.evaluated / spent >= 5000,
        )
    )
    spent = _searched(q)[0]
    out.append(_row("the same space, memory by formula and pruned", spent, "s of CPU", "under 5 s", spent < 5))

    switches = {
        "sp": [True, False],
        "overlap_tp": [False, True],
        "overlap_grad_reduce": [True, False],
        "overlap_param_gather": [True, False],
        "offload": [False, True],
    }
    q = question("recompute_175b", "dgx_a100", 64, seq=2048, batch=64, stack="Megatron-LM 2022-05", fixed=switches)
    spent, outcome, _ = _searched(q)
    # how many the search decides on: most of them unseen, as a bound or a lighter plan that fits settles many at once
    plans = sum(1 for _ in every(space_of(q), q.model, q.cluster.num_chips, q.batch))
    out.append(
        _row(
            f"175B on 64 A100, the best of {plans:,} plans with switches, {outcome.looked_at:,} of them looked at",
            spent,
            "s of CPU",
            "under 60 s, of at least 666,368",
            spent < 60 and plans >= 666_368,
        )
    )

    q = question("glm5", "atlas_800t_a2", 100_000, seq=4096, batch_tokens="64M", stack="MindSpeed-LLM 2026-06")
    spent, outcome, costs = _searched(q)
    out.append(
        _row(f"GLM-5 on 100,000 910B, {outcome.looked_at:,} plans", spent, "s of CPU", "under 20 s", spent < 20)
        | answer("headline search", spent)
    )
    out.append(_events("GLM-5 on 100,000 910B", q, costs, outcome))

    rows = {
        r.id: r
        for r in read_rows([datafiles.data("published_runs", f"{n}.yaml") for n in ("recompute_2022", "h100_h800")])
    }
    for name, cluster in (("recompute2022-175b-selective", "dgx_a100"), ("llama3-405b-16384-8192", "dgx_h100")):
        run = rows[name].run
        q = dataclasses.replace(
            question(
                run.model.name, cluster, run.plan.num_chips, seq=run.workload.seq, batch=run.workload.global_batch
            ),
            model=run.model,
            cluster=run.cluster,
            precision=run.precision,
            stack=run.stack,
        )
        spent, outcome, costs = _searched(q)
        published = in_closed_form(
            run.model, run.cluster, run.plan, run.workload, run.precision, run.stack, allow_oom=True
        )[2]
        out.append(
            _row(
                f"{name}: the search's step over the published plan's",
                outcome.best[0].step_s / published,
                "1",
                "at most 1",
                outcome.best[0].step_s <= published,
                ratio=published / outcome.best[0].step_s,
            )
        )
        out.append(_events(name, q, costs, outcome))

    samples, spent, scenario = 10_000, [], load_scenario("glm5_100k_910b")
    for seed in range(3):
        start = time.perf_counter()
        monte_carlo(scenario, samples, seed=seed, workers=min(2, os.cpu_count() or 1))
        spent.append(time.perf_counter() - start)
    median = statistics.median(spent)
    out.append(
        _row(
            f"Monte Carlo, {samples:,} samples of GLM-5 on 100,000 910B, 2 processes",
            median,
            "s",
            "<= 8 s",
            median <= 8,
        )
        | answer("10,000 Monte Carlo draws", median, spent)
    )
    return out


def _fast_model(count: int = 1000) -> dict:
    """The step that a search ranks by against the events, on random plans, folded and without jitter."""
    rng, worst, done = random.Random(0), 0.0, 0
    questions = [
        ("llama3_8b", "dgx_h100", 32, 64),
        ("mixtral_8x7b", "dgx_h100", 64, 128),
        ("llama2_13b", "atlas_800t_a2", 32, 64),
    ]
    for model, cluster, chips, batch in questions:
        q = question(model, cluster, chips, seq=4096, batch=batch)
        space = space_of(q)
        costs = PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space.switches)
        fitting = [c for c in every(space, q.model, chips, batch) if c.micro_batch < 3]
        rng.shuffle(fitting)
        wanted = count * (questions.index((model, cluster, chips, batch)) + 1) // len(questions)
        for c in fitting:
            if done >= wanted:
                break
            need = costs.memory_bytes(c)
            if need > costs.memory_capacity:
                continue
            fast = refined(costs, RankedPlan(c, 0.0, need, batch * 4096)).step_s
            plan, load = costs.plan(c), costs.load(c)
            slow = evaluate(q.model, q.cluster, plan, load, q.precision, q.stack).result.step_s
            worst, done = max(worst, abs(fast / slow - 1)), done + 1
    name = f"{done:,} random plans: fast model against events, the worst"
    return _row(name, 100 * worst, "%", "within 1 %", worst < 0.01)


def _searched(q):
    start = time.process_time()
    outcome, costs = find(q)
    return time.process_time() - start, outcome, costs


def _events(name, q, costs, outcome) -> dict:
    apart = run_facts(simulate(scenario_of(q, costs, outcome.best[0])))["verified"]["difference"]
    return _row(
        f"{name}: the winner played as events against the closed form",
        100 * apart,
        "%",
        "within 5 %",
        abs(apart) < 0.05,
    )
