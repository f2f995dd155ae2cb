"""What a training question takes where it says nothing: the one table of defaults, for a file and for every command.

    with_defaults({"model": "glm5", "chip": "910b", "chips": 100_000})      # attention dense, 64M tokens a step, …

What a plan leaves open is not decided here: a plan of a file is completed by `sim.scenario.build`, an automatic one by
the planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.cost.stacks import stack_key
from sim.scenario.build import read_cluster
from sim.scenario.fields import RUN
from sim.scenario.phases import read_phases
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

EVERY: Mapping[str, Any] = {
    "attention": "dense",  # of a model with an indexer too: sparse attention comes after pre-training
    "precision": "bf16",
    "global_tokens": "16M",
    "tokens": "1T",
    "objective": "tokens",
}
# What a model's own report says of its pre-training (sources: data/scenarios/glm5_100k_910b.yaml).
MODELS: Mapping[str, Mapping[str, Any]] = {
    "glm5": {"global_tokens": "64M", "tokens": "28.5T", "options": {"optimizer": "muon"}},
}
VENDORS: Mapping[str, Mapping[str, Any]] = {"huawei": {"stack": "MindSpeed-LLM 2026-06"}}
# What a release's own recipes switch on, beside what data/stacks.yaml says of it.
STACKS: Mapping[str, Mapping[str, Any]] = {"mindspeed-llm-2026-06": {"overlap_all_to_all": True}}
SEQ = 4096  # or the model's own length where that is shorter


def with_defaults(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document (its keys under their own names) with every key that it leaves out.

    Raises:
        InputError: no model, neither cluster nor chip, or a name that is not known.
    """
    if document.get("model") is None:
        raise InputError("has no model; a question needs a model, and a cluster or a chip")
    model = load_model(RUN["model"].read(document["model"], "model"))
    machine, _ = read_cluster({k: document[k] for k in ("cluster", "chip") if document.get(k) is not None})
    own = {**EVERY, **VENDORS.get(machine.chip.vendor.lower(), {}), **_recipe(model), "seq": min(model.max_seq, SEQ)}
    out = {**{k: v for k, v in own.items() if k != "options"}, **{k: v for k, v in document.items() if v is not None}}
    if document.get("global_batch") is not None:
        out.pop("global_tokens", None)
        if document.get("global_tokens") is not None:
            raise InputError("global_batch and global_tokens are both given; keep one")
    if document.get("chips") is None:
        out["chips"] = machine.num_chips
    if document.get("tokens") is None and "tokens" not in _recipe(model):
        phases = read_phases(document.get("phases"))
        out["tokens"] = sum(phase.tokens for phase in phases) or out["tokens"]
    options = {**own.get("options", {}), **_switches(out.get("stack"), model)}
    out["options"] = {**options, **(document.get("options") or {})}
    return out


def _recipe(model: ModelSpec) -> Mapping[str, Any]:
    return MODELS.get(model.name.lower(), {})


def _switches(stack: object, model: ModelSpec) -> Mapping[str, Any]:
    switches = STACKS.get(stack_key(str(stack)), {}) if stack else {}
    return {k: v for k, v in switches.items() if model.experts or k != "overlap_all_to_all"}
