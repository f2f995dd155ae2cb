"""What a step would save if one thing were better and all else stayed."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.step_costs import StepCosts


def what_to_buy(costs: StepCosts, schedule: str, gain: float = 2.0) -> list[tuple[str, float]]:
    """What the step would save, in seconds, if one thing were `gain` times better and all else stayed: best first.

    Each answer is a step played again with that one cost divided, so that overlap and bubbles have their say.
    """
    from sim.training.step import simulate

    def chunks(compute: float = 1.0, comm: float = 1.0):
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

    offers = {
        "compute (chips or kernels)": replace(costs, chunks=chunks(compute=gain)),
        "expert all-to-all": replace(costs, chunks=chunks(comm=gain)),
        "pipeline links": replace(costs, p2p_s=costs.p2p_s / gain),
        "gradient reduction": replace(costs, grad_reduce_s=costs.grad_reduce_s / gain),
        "optimiser and parameter gather": replace(
            costs, optimizer_s=costs.optimizer_s / gain, param_gather_s=costs.param_gather_s / gain
        ),
        "host work": replace(costs, fixed_s=costs.fixed_s / gain),
    }
    now = simulate(costs, schedule).step_s
    saved = [(name, now - simulate(offer, schedule).step_s) for name, offer in offers.items()]
    return sorted(saved, key=lambda item: -item[1])
