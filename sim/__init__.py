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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.cost.evaluate import in_closed_form as closed_form
    from sim.cost.step import estimate as estimate
    from sim.planner.planner import answer as plan
    from sim.planner.planner import question as question
    from sim.scenario.training import Scenario as Scenario
    from sim.scenario.training import load_scenario as load_scenario
    from sim.spec.hardware import Chip as Chip
    from sim.spec.hardware import Cluster as Cluster
    from sim.spec.hardware import load_cluster as load_cluster
    from sim.spec.model import ModelSpec as ModelSpec
    from sim.spec.model_loader import load_model as load_model
    from sim.spec.plan import Plan as Plan
    from sim.spec.plan import Workload as Workload
    from sim.study.projection import project as project
    from sim.training.step import simulate as simulate

# name → where it is, and its name there
_WHERE = {
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
    "question": ("sim.planner.planner", "question"),
    "simulate": ("sim.training.step", "simulate"),
}
__all__ = [*_WHERE]  # noqa: PLE0604 (the keys are names)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
