"""A launch of another tool as a scenario document: which format a file is, what the formats have in common, the YAML.

launch = read_launch("pretrain_glm.sh")
print(as_yaml(scenario_of(launch, "pretrain_glm"), launch))
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from minglm.errors import InputError, nearest
from sim.base.documents import MAX_BYTES, decode_text, parse_text
from sim.base.fields import shorten
from sim.scenario.file import set_value
from sim.scenario.launch import deepspeed, megatron, mindformers, nemo, torchtitan, trainer
from sim.scenario.launch.arguments import Launch
from sim.scenario.launch.shell import flags
from sim.scenario.training import resolve

FORMATS = ("megatron", "mindformers", "deepspeed", "torchtitan", "nemo", "trainer")


def read_launch(
    path: str | Path, format: str | None = None, defined: Sequence[str] = (), ignore: Collection[str] = ()
) -> Launch:
    """What a file says of a run.

    Args:
        format: one of `FORMATS`; found by the file where it is None.
        defined: NAME=VALUE, what a script takes from outside.
        ignore: arguments to pass over.

    Raises:
        InputError: the file cannot be read, is of no known format, or says what no scenario key says.
    """
    text = _text(Path(path))
    format = format or _format(str(path), text)
    if format not in FORMATS:
        raise InputError(f"format {shorten(format)}: not one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")
    where = Path(path).name
    passed = {name.lstrip("-") for name in ignore}
    passed |= {name.replace("_", "-") for name in passed}
    if format == "megatron":
        values = _megatron(text, where, _variables(defined))
        kept = {k: v for k, v in values.items() if k not in passed}
        launch = megatron.read(kept, where)
    else:
        if format == "trainer" and not where.lower().endswith((".yaml", ".yml", ".json")):
            document: Any = _of_a_script(text, where, _variables(defined))
        else:
            text = deepspeed.plain_json(text) if format == "deepspeed" else text
            document = _toml(text, where) if format == "torchtitan" else parse_text(text, where)
        if not isinstance(document, Mapping):
            raise InputError(f"{where}: holds no keys and values; give a {format} configuration")
        values = deepspeed.flat(document)
        kept = {k: v for k, v in values.items() if k not in passed}
        if format == "trainer":
            launch = trainer.read(kept, where, Path(path).parent)
        else:
            readers = {"deepspeed": deepspeed, "torchtitan": torchtitan, "mindformers": mindformers, "nemo": nemo}
            launch = readers[format].read(kept, where)
    unknown = passed - {n.replace("_", "-") for n in values} - set(values)
    if unknown and {n.replace("-", "_") for n in unknown} - set(values):
        name = min(unknown)
        raise InputError(f"--ignore {name}: {where} has no such argument{nearest(name, values)}")
    launch.ignored += [name for name in values if name in passed]
    return launch


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file; give the file inside it")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: more than the limit of {MAX_BYTES:,} bytes; give the launch alone")
        return decode_text(path.read_bytes(), path, "a launch script, YAML, JSON or TOML")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: cannot be read ({getattr(err, 'strerror', None) or err}); check the path") from None


def _format(path: str, text: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix == ".toml":
        return "torchtitan"
    if suffix == ".json":
        return "deepspeed"
    if suffix in (".yaml", ".yml"):
        if re.search(r"^(parallel_config|runner_config|moe_config|run_mode) *:", text, re.M):
            return "mindformers"
        document = parse_text(text, Path(path).name)
        keys = document if isinstance(document, Mapping) else {}
        return "nemo" if nemo.known(keys) else "trainer" if trainer.known(keys) else "megatron"
    if re.search(r"--(model[_-]name[_-]or[_-]path|per[_-]device[_-]train[_-]batch[_-]size)\b", text):
        return "trainer"
    if re.search(r"--[A-Za-z]", text):
        return "megatron"
    raise InputError(f"{path}: no launch that is known by its name or contents; give --format {', '.join(FORMATS)}")


def _variables(defined: Sequence[str]) -> dict[str, str]:
    out = {}
    for text in defined:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"--define {shorten(text)}: must be NAME=VALUE, such as --define TP=8")
        out[name] = value
    return out


def _of_a_script(text: str, where: str, defined: Mapping[str, str]) -> dict[str, Any]:
    """Flags of a script that starts a Trainer, under the names that its YAML has."""
    found = flags(text, where, defined)
    return {name.replace("-", "_"): "true" if value is True else value for name, value in found.items()}


def _megatron(text: str, where: str, defined: Mapping[str, str]) -> dict[str, Any]:
    """Flags of a script, or of a YAML as Megatron-LM's own tests keep them (MODEL_ARGS), or `num_layers: 32`."""
    if not where.endswith((".yaml", ".yml")):
        return flags(text, where, defined)
    document = parse_text(text, where)
    if not isinstance(document, Mapping):
        raise InputError(f"{where}: holds no keys and values; give arguments such as num_layers: 32")
    parts = [v for k, v in document.items() if str(k).upper() in ("MODEL_ARGS", "ARGS") and isinstance(v, Mapping)]
    values = deepspeed.flat(parts[0] if parts else document)
    plain = {str(k).rpartition(".")[2].lstrip("-").replace("_", "-"): v for k, v in values.items()}
    return {k: v for k, v in plain.items() if v is not False}


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as err:
        raise InputError(f"{where}: not valid TOML ({' '.join(str(err).split())}); check the file") from None


# ------------------------------------------------------------------ what a launch becomes


def scenario_of(
    launch: Launch,
    name: str,
    *,
    model: str | None = None,
    cluster: str | None = None,
    chips: int | None = None,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """The scenario document; `clustersim run` accepts it, as far as it fits its chips.

    model, cluster, chips: what the file does not say, or in its place. changes: `key=value`, as `--set`.

    Raises:
        InputError: something is still missing, or the plan cannot run.
    """
    run = dict(launch.run)
    if model is not None:
        run["model"] = model
    document: dict[str, Any] = {"version": 1, "name": name, "cluster": cluster or launch.cluster}
    given = {text.partition("=")[0].strip() for text in changes}
    for key, flag in (("model", "--model llama3_8b"), ("seq", "--set seq=4096")):
        if run.get(key) is None and key not in given:
            raise InputError(f"{name}: says no {key}; give it, such as {flag}")
    chips = chips or launch.chips
    plan, options = dict(launch.plan), dict(launch.options)
    dp = _replicas(launch, plan, run, options, chips, name)
    plan["dp"] = dp
    document["chips"] = chips or dp * plan.get("tp", 1) * plan.get("pp", 1) * plan.get("cp", 1)
    micro = run.get("micro_batch") or 1
    batch = run.get("global_batch") or run.get("local_batch", micro * run.get("passes", 1)) * dp
    _layers_of_flavors(run, plan, document)
    document |= {
        "model": run.get("model"),
        "plan": plan,
        "micro_batch": micro,
        "global_batch": batch,
        "seq": run.get("seq"),
    }
    document |= {k: run[k] for k in ("precision", "schedule", "recompute", "stack") if run.get(k) is not None}
    if options:
        document["options"] = options
    samples = launch.samples or (launch.steps * batch if launch.steps else None)
    if samples and run.get("seq"):
        document["tokens"] = samples * run["seq"]
    notes = list(launch.notes)
    if cluster is None:
        notes.append(f"cluster {launch.cluster}: the file names none")
    document["assumptions"] = [{"text": text, "kind": "assumed"} for text in notes]
    for text in changes:
        document = set_value(document, text)
    document = {k: v for k, v in document.items() if v not in (None, [], {})}
    resolve(document, name)
    return document


def _replicas(
    launch: Launch, plan: Mapping[str, int], run: dict[str, Any], options: dict[str, Any], chips: int | None, name: str
) -> int:
    """Data-parallel width: of the file, or what fills the chips."""
    inner = plan.get("tp", 1) * plan.get("pp", 1) * plan.get("cp", 1)
    shards, replicas = run.get("shards"), run.get("replicas", 1)
    if shards is not None and shards > 0:
        chips = chips or inner * shards * replicas
    if "dp" in plan:
        return int(plan["dp"])
    if chips is None:
        raise InputError(f"{name}: says not how many chips; give --chips {8 * inner}")
    if chips % inner:
        raise InputError(
            f"{name}: {chips} chips are no multiple of tp × pp × cp = {inner}; give --chips "
            f"{max(1, round(chips / inner)) * inner}"
        )
    dp = chips // inner
    if shards is not None:  # torchtitan: copies of groups that shard
        if dp % replicas or (shards > 0 and shards * replicas != dp):
            raise InputError(
                f"{name}: {replicas} copies of {shards} shards are not the {dp} replicas that {chips} chips make; give "
                f"--chips {inner * replicas * max(shards, 1)}"
            )
        if replicas == dp:
            options["zero"] = 0
        elif replicas > 1:
            options["hsdp"] = dp // replicas
    return dp


def _layers_of_flavors(run: dict[str, Any], plan: dict[str, Any], document: Mapping[str, Any]) -> None:
    """What torchtitan says by layers, once the model is known."""
    per, every = run.pop("layers_per_stage", None), run.pop("recompute_every", None)
    if (per is None and every is None) or run.get("model") is None:
        return
    layers = resolve(
        {"model": run["model"], "cluster": document["cluster"], "chips": 1, "global_batch": 1}, ""
    ).model.layers
    ranks = plan.get("pp", 1)
    if per and ranks > 1:
        plan["vpp"] = max(1, -(-layers // (per * ranks)))
    if every is not None:
        run["recompute"] = "full" if every == 1 else {"kind": "full", "layers": -(-layers // (ranks * every))}


def as_yaml(document: Mapping[str, Any], launch: Launch) -> str:
    """The scenario as YAML that begins with what became of every argument."""
    lines = [f"# From a {launch.format} launch, by clustersim import-args."]
    lines += [f"#   {argument} -> {becomes}" for argument, becomes in launch.mapped.items()]
    if launch.ignored:
        lines.append(f"# Neither time nor memory: {', '.join(launch.ignored)}")
    text = "\n".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", line) for line in lines)
    body = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=True)}" for key, value in document.items())
    return f"{text}\n{body}\n"
