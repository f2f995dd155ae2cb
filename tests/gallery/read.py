"""What the product makes of an input of the gallery, as figures by name: one function a kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def entries() -> list[dict[str, Any]]:
    """The index."""
    return yaml.safe_load((HERE / "index.yaml").read_text(encoding="utf-8"))


def _spec(spec) -> dict[str, Any]:
    counted = {"weights_b": spec.total_params() / 1e9, "active_b": spec.active_params() / 1e9}
    return counted | {k: getattr(spec, k) for k in spec.__dataclass_fields__}


def model(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.spec.model_loader import load_model

    return _spec(load_model(path))


def toy(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from minglm.config import ModelConfig

    return ModelConfig.from_hf(path).to_dict()


def table(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.validation.csv_tables import read_table

    runs = read_table(path)
    first = runs[0]
    return {"rows": len(runs), "gpus": first.plan.num_chips, "hidden": first.model.hidden, "seconds": first.seconds}


def _scenario(scenario) -> dict[str, Any]:
    stack, plan, work = scenario.stack, scenario.plan, scenario.workload
    carbon = scenario.prices.get("carbon_kg_per_kwh")
    named = {k: getattr(plan, k) for k in plan.__dataclass_fields__} | {"optimizer_offload": plan.offload}
    named |= {"loss": stack.loss, "fusion": stack.fusion, "dedup": stack.dedup, "dropout": stack.dropout}
    return {
        **_spec(scenario.model),
        **named,
        "stages": list(plan.stages or ()),
        "chips": scenario.cluster.num_chips,
        "global_batch": work.global_batch,
        "seq": work.seq,
        "tokens": scenario.tokens,
        "precision": scenario.precision,
        "carbon": getattr(carbon, "value", carbon),
    }


def scenario(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.scenario.training import load_scenario

    return _scenario(load_scenario(path))


def memory(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """GiB of the fullest chip."""
    from sim.cost.memory import peak
    from sim.scenario.training import load_scenario

    s = load_scenario(path)
    return {"memory_gib": peak(s.model, s.plan, s.workload, s.precision, s.stack).total_bytes / 2**30}


def rows(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.validation.rows import read_rows

    (row,) = read_rows([path])
    return {"id": row.id, "seconds": row.measured}


def serving(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.serving import scenario as serving_scenario

    work = serving_scenario._workload(serving_scenario.load(path)["workload"])
    return {"concurrency": work.concurrency}


def served(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """As `clustersim serving FILE`: what the cache of one attention group holds."""
    from sim.serving.scenario import run

    memory = run(path)["memory"]["decode"]
    return {"cache_tokens": memory["kv_tokens_per_group"], "contexts": memory["contexts_that_fit"]}


def rollouts(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.rollout.scenario import load

    return dict(load(path))


def launch(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """As `clustersim import-args FILE --out X` and `clustersim run X` read it."""
    from sim.base.documents import parse_text
    from sim.scenario.launch.read import as_yaml, read_launch, scenario_of
    from sim.scenario.training import resolve

    found = read_launch(path, defined=entry.get("define", ()), ignore=entry.get("ignore", ()))
    said = {"model": entry.get("model"), "chips": entry.get("chips"), "changes": entry.get("set", ())}
    document = scenario_of(found, "gallery", **said)
    return _scenario(resolve(parse_text(as_yaml(document, found), "gallery"), "gallery"))


def trace(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    from sim.spec.hardware import load_cluster
    from sim.trace.replay import replay

    cluster = load_cluster(entry["cluster"]) if "cluster" in entry else None
    return {"step_us": replay(path, cluster=cluster).step_us}


def profile(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """As `clustersim trace --profile FILE`; seconds by class in microseconds."""
    from sim.trace.profile import read_profile

    found = read_profile(path)
    plain = {key: found[key] for key in ("format", "kernels", "devices", "idle_share") if key in found}
    plain |= {f"{kind}_us": one["seconds"] * 1e6 for kind, one in found["classes"].items()}
    return plain | {
        f"{key}_us": found[f"{key}_s"] * 1e6 for key in ("span", "busy", "exposed_communication") if "span_s" in found
    }


def predicted(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the simulator says of each measured row, by its id."""
    from sim.validation import training

    return {row["id"]: row["predicted"] for row in training.run([path])["rows"]}


def answered(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What `clustersim normal` says of each row's step: predicted seconds, and between which it expects them to lie."""
    from sim.base.distributions import DRAWS
    from sim.base.documents import read_mapping
    from sim.planner.normal import normal
    from sim.scenario.training import resolve
    from sim.validation.rows import read_rows

    rows, document, found = read_rows([path]), read_mapping(path), {}
    for row, said in zip(rows, document["rows"], strict=True):
        asked = {**document.get("defaults", {}), **said, "tokens": "1T"}
        asked["cluster"] = asked.get("cluster") or {"like": f"dgx_{asked.pop('chip')}"}
        scenario = resolve({k: v for k, v in asked.items() if k not in ("id", "measured", "chip")}, "gallery")
        answer = normal(scenario, "step_s", seconds_of(row), entry.get("samples", DRAWS))
        found[row.id] = {"measured": answer["measured"], "predicted": answer["predicted"]}
        found[row.id] |= dict(zip(("low", "high"), answer["interval"], strict=True))
    return found


def seconds_of(row: Any) -> float:
    """A row's measured quantity as seconds a step: a rate times the step it goes with is the same for both."""
    from sim.validation.predict import predict, step_of

    if row.quantity == "seconds_per_step":
        return row.measured
    return step_of(row.run)[0].total_s * predict(row) / row.measured


def campaign(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """As `clustersim campaign FILE --json`: medians of its draws, and the checkpoint."""
    from sim.scenario.training import load_scenario
    from sim.study.answer import campaign_draws, point, simulated_with
    from sim.study.campaign import campaign_input, campaign_segments

    s = load_scenario(path)
    segments = campaign_segments(s)
    draws = simulated_with(s, point(s), segments, campaign_draws(s, segments, to_the_end=False))
    saved = campaign_input(s, segments).checkpoint
    return {
        "days": draws.share("days", 0.5),
        "interruptions": draws.share("interruptions", 0.5),
        "checkpoint_tb": saved.bytes / 1e12,
        "checkpoint_s": saved.bytes / saved.write_bytes_per_s,
    }


KINDS = (
    model,
    toy,
    table,
    scenario,
    memory,
    rows,
    serving,
    served,
    rollouts,
    launch,
    trace,
    profile,
    predicted,
    answered,
    campaign,
)
READERS = {f.__name__: f for f in KINDS}


def read(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of an entry's input.

    Raises:
        InputError: the product refuses it.
    """
    return READERS[entry["reader"]](HERE / "inputs" / entry["file"], entry)
