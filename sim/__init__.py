"""sim: a SimPy model of training, serving and reinforcement learning of GLM-5 on a cluster.

What most programs need, by name:

    what is bought      Chip, Cluster, load_cluster        ModelSpec, load_model       Plan, Workload
    a question as file  Scenario, load_scenario
    its answer          project (one step and the whole run, with its range)           simulate (one step as events)
    the best plan       question, plan
    cost of one step    estimate (by operator)             closed_form (memory and seconds of one plan)

    >>> import sim
    >>> sim.load_model("glm5").layers
    78

Names are loaded when they are first asked for: `import sim` takes no time, and needs neither torch nor numpy.
"""

from __future__ import annotations

import importlib

# public name → (module, its name there)
_PUBLIC = {
    "Chip": ("sim.spec.hardware", "Chip"),
    "Cluster": ("sim.spec.hardware", "Cluster"),
    "ModelSpec": ("sim.spec.model", "ModelSpec"),
    "Plan": ("sim.spec.plan", "Plan"),
    "Scenario": ("sim.scenario.training", "Scenario"),
    "Workload": ("sim.spec.plan", "Workload"),
    "closed_form": ("sim.cost.evaluate", "in_closed_form"),
    "estimate": ("sim.cost.step", "estimate"),
    "load_cluster": ("sim.spec.hardware", "load_cluster"),
    "load_model": ("sim.spec.model_loader", "load_model"),
    "load_scenario": ("sim.scenario.training", "load_scenario"),
    "plan": ("sim.planner.planner", "answer"),
    "project": ("sim.study.projection", "project"),
    "question": ("sim.planner.question", "question"),
    "simulate": ("sim.training.step", "simulate"),
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):  # unannotated, which means of any type: `typing` need not be loaded
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
