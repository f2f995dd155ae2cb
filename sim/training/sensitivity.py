"""Sensitivity of a step: what it would save if one thing were better and all else stayed."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.step_costs import ChunkCost, StepCosts
from sim.training.step import simulate


def step_sensitivity(costs: StepCosts, schedule: str, gain: float = 2.0) -> list[tuple[str, float]]:
    """What the step would save, in seconds, if one part were `gain` times better and all else stayed: largest first.

    Each answer is a step simulated again with that one cost divided, so that overlap and bubbles have their say.
    """

    def chunks(compute: float = 1.0, comm: float = 1.0) -> tuple[tuple[ChunkCost, ...], ...]:
        return tuple(
            tuple(
                replace(
                    c,
                    forward_s=(c.forward_s - c.forward_comm_s) / compute + c.forward_comm_s / comm,
                    backward_input_s=(c.backward_input_s - c.backward_comm_s) / compute + c.backward_comm_s / comm,
                    backward_weight_s=c.backward_weight_s / compute,
                    forward_comm_s=c.forward_comm_s / comm,
                    backward_comm_s=c.backward_comm_s / comm,
                )
                for c in row
            )
            for row in costs.chunks
        )

    improved = {
        "compute (chips or kernels)": replace(costs, chunks=chunks(compute=gain)),
        "expert all-to-all": replace(costs, chunks=chunks(comm=gain)),
        "pipeline links": replace(costs, p2p_s=costs.p2p_s / gain),
        "gradient reduction": replace(costs, grad_reduce_s=costs.grad_reduce_s / gain),
        "optimiser and parameter gather": replace(
            costs, optimizer_s=costs.optimizer_s / gain, param_gather_s=costs.param_gather_s / gain
        ),
        "host work": replace(costs, fixed_s=costs.fixed_s / gain),
    }
    now_s = simulate(costs, schedule).step_s
    saved = [(part, now_s - simulate(better, schedule).step_s) for part, better in improved.items()]
    return sorted(saved, key=lambda item: -item[1])
