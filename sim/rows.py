"""Rows of measured runs: `data/published_runs/*.yaml` and a user's own file, in one documented schema.

A row names a chip or a cluster, the chip count, a model (name, Hugging Face config or plain dimensions), the parallel
plan, batch, sequence, precision, recomputation, schedule, options from `OPTIONS`, and what was measured. JSON Schema:
`data/published_runs/schema.json` (kept equal to `json_schema()` by a test).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minglm.errors import InputError, nearest
from sim.documents import read_document
from sim.facts import DATA, PRECISIONS, Cluster, cluster_for_chip, cluster_from
from sim.models import ModelSpec, load_model
from sim.plan import OPTIMIZERS, RECOMPUTE, SCHEDULES, Plan, Workload
from sim.units import parse, whole

PUBLISHED = DATA / "published_runs"
KINDS = ("fit", "predict", "listed")
FLOPS = ("model", "model_full", "megatron_2021", "hardware")

# option → (type, what it means). The first group goes to the plan, the second to the workload, the third to the stack.
OPTIONS: dict[str, tuple[str, str]] = {
    "sequence_parallel": ("bool", "norms and residuals divided over tensor-parallel ranks; default: on when tp > 1"),
    "zero": ("int", "ZeRO stage 0-3"), "distributed_optimizer": ("bool", "same as zero: 1"), "fsdp": ("bool", "same as zero: 3"),
    "hsdp": ("int", "ZeRO shards inside groups of this many ranks"), "expert_tp": ("int", "tensor parallelism inside experts"),
    "optimizer": ("text", "adam or muon"), "optimizer_offload": ("bool", "optimiser states in host memory"),
    "recompute_layers": ("int", "layers of each pipeline rank that are recomputed; default: all"),
    "stages": ("list", "layers of each chunk in model order"),
    "overlap_grad_reduce": ("bool", "gradient reduction under the backward pass"), "overlap_param_gather": ("bool", "parameter gather under compute"),
    "overlap_tp": ("bool", "tensor-parallel collectives pipelined with matmuls"), "overlap_p2p": ("bool", "pipeline transfers under compute"),
    "overlap_all_to_all": ("bool", "expert all-to-all under compute"),
    "precision_aware_optimizer": ("bool", "bf16 moments and gradients"),
    "causal": ("bool", "attention computes the causal half; default true"), "imbalance": ("number", "slowest expert rank's tokens / mean"),
    "mtp": ("bool", "train the multi-token prediction modules"), "window": ("bool", "use the model's sliding windows"),
    "attention": ("text", "flash, unfused, flash1, flash2, flash3, sdpa or npu_fusion"), "fusion": ("text", "fused, eager or compiled"),
    "loss": ("text", "fused or unfused cross-entropy"), "dropout": ("bool", "dropout kernels run"),
    "node_limited": ("int", "most nodes a token's experts may lie on"), "dedup": ("bool", "one copy of a token per node crosses the network"),
    "graphs": ("bool", "whole layers captured in graphs: no launch cost"), "bf16_grads": ("bool", "gradients reduced in bf16"),
    "accumulate_fused": ("bool", "gradient accumulation inside the weight-gradient matmul"),
    "recompute_modules": ("list", "small parts recomputed beside `recompute` (recorded, not simulated)"),
}
_PLAN = {"sequence_parallel": "sp", "zero": "zero", "hsdp": "hsdp", "expert_tp": "etp", "optimizer": "optimizer", "optimizer_offload": "offload",
         "recompute_layers": "recompute_layers", "stages": "stages", "precision_aware_optimizer": "precision_aware_optimizer",
         **{o: o for o in OPTIONS if o.startswith("overlap_")}}
_WORKLOAD = ("causal", "imbalance", "mtp", "window")
_STACK = ("attention", "fusion", "loss", "dropout", "node_limited", "dedup", "graphs", "bf16_grads", "accumulate_fused")

# Words people use → ours.
WORDS = {
    "gpus": "chips", "npus": "chips", "num_gpus": "chips", "devices": "chips", "mbs": "micro_batch", "micro_batch_size": "micro_batch",
    "gbs": "global_batch", "global_batch_size": "global_batch", "batch": "global_batch", "seq_len": "seq", "sequence": "seq", "seq_length": "seq",
    "sequence_length": "seq", "dtype": "precision", "framework": "stack", "name": "id", "parallel": "plan", "parallelism": "plan",
    "recomputation": "recompute", "activation_recompute": "recompute", "gpu": "chip", "accelerator": "chip"}
PLAN_WORDS = {
    "tensor": "tp", "tensor_parallel": "tp", "pipeline": "pp", "pipeline_parallel": "pp", "data": "dp", "data_parallel": "dp", "context": "cp",
    "context_parallel": "cp", "expert": "ep", "expert_parallel": "ep", "vp": "vpp", "virtual_stages": "vpp", "interleave": "vpp", "vp_size": "vpp",
    "expert_tensor_parallel": "etp", "sequence_parallel": "sp"}
SCHEDULE_WORDS = {"zero_bubble": "zb-h1", "zero-bubble": "zb-h1", "zb_h1": "zb-h1", "zbh1": "zb-h1", "zbv": "zb-v", "zb_v": "zb-v",
                  "dualpipev": "dualpipe-v", "dualpipe_v": "dualpipe-v", "interleaved_1f1b": "interleaved", "interleaved-1f1b": "interleaved"}
MEASURED = {"seconds_per_step": "time", "tokens_per_s_per_chip": "count", "tokens_per_s": "count", "tflops_per_chip": "count", "mfu": "ratio",
            "peak_tflops": "count", "bubble": "ratio", "memory_gib": "count", "linearity": "ratio"}
MEASURED_WORDS = {"step_time": "seconds_per_step", "iteration_s": "seconds_per_step", "seconds_per_iteration": "seconds_per_step",
                  "s_per_iteration": "seconds_per_step", "iteration_time": "seconds_per_step", "tokens_per_s_per_gpu": "tokens_per_s_per_chip",
                  "tokens_per_s_per_npu": "tokens_per_s_per_chip", "tflops_per_gpu": "tflops_per_chip", "tflops": "tflops_per_chip",
                  "bubble_ratio": "bubble", "peak": "peak_tflops"}
_ROW_KEYS = ("id", "kind", "chip", "cluster", "chips", "model", "plan", "schedule", "micro_batch", "global_batch", "global_tokens", "seq",
             "precision", "recompute", "options", "stack", "measured", "assumed", "reason", "note", "source")


@dataclass(frozen=True)
class Row:
    """One measured run, resolved. A `listed` row may lack a model, plan or workload (None): it is shown, not scored."""

    id: str
    kind: str
    cluster: Cluster
    chips: int
    model: ModelSpec | None
    model_name: str
    plan: Plan | None
    workload: Workload | None
    precision: str
    stack: str | None
    stack_changes: Mapping[str, object]
    measured: Mapping[str, float]            # as in MEASURED; rates per second, tflops in TFLOPS
    flops: str                               # what a TFLOPS or MFU figure counts, one of FLOPS
    assumed: tuple[str, ...] = ()
    reason: str = ""
    note: str = ""
    source: str = ""
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def quantity(self) -> str | None:
        """The measured quantity that is scored: the most direct one given."""
        for name in ("seconds_per_step", "tokens_per_s_per_chip", "tokens_per_s", "tflops_per_chip", "mfu", "bubble", "memory_gib"):
            if name in self.measured:
                return name
        return None


def flops_per_token(model: ModelSpec, workload: Workload, convention: str = "model", recompute: str = "none") -> float:
    """FLOPs per trained token as a source counts them.

    model: 3 × forward with the causal half of attention; model_full: with all positions; hardware: model_full plus what is
    recomputed; megatron_2021: 96·s·l·h²·(1 + s/6h + V/16lh) per sequence, recomputation included (arXiv 2104.04473 eq. 3).
    """
    seq = workload.seq
    if convention == "megatron_2021":
        h, layers = model.hidden, model.layers
        return 96.0 * layers * h * h * (1 + seq / (6 * h) + model.vocab / (16 * layers * h))
    if convention == "model":
        return model.train_flops_per_token(seq, causal=workload.causal, mtp=workload.mtp)
    full = model.train_flops_per_token(seq, causal=False, mtp=workload.mtp)
    if convention == "hardware":
        parts = model.flops_breakdown(seq, causal=False)
        full += {"full": parts["linear"] - 2.0 * model.vocab * model.hidden + parts["attention"] + parts["indexer"],
                 "selective": parts["attention"]}.get(recompute, 0.0)
    return full


# ------------------------------------------------------------------ reading

def _rename(given: Mapping, words: Mapping[str, str], known, where: str) -> dict:
    out: dict = {}
    for key, value in given.items():
        word = str(key).strip().lower() if str(key).strip().lower() in known else words.get(str(key).strip().lower(), str(key))
        if word not in known:
            raise InputError(f"{where}: unknown key {key!r}{nearest(str(key), [*known, *words])}; known: {', '.join(known)}")
        if word in out:
            raise InputError(f"{where}: {word!r} is given twice; keep one")
        out[word] = value
    return out


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a YAML or JSON file: a list of rows, one row, or {rows: [...], defaults: {...}}.

    Raises:
        InputError: with the file, the row and the key in one line.
    """
    document = read_document(path)
    defaults: Mapping = {}
    if isinstance(document, Mapping) and "rows" in document:
        extra = set(document) - {"rows", "defaults", "version", "$schema"}
        if extra:
            raise InputError(f"{path}: unknown key {sorted(map(str, extra))[0]!r}{nearest(str(sorted(map(str, extra))[0]), ('rows', 'defaults'))}; use rows and defaults")
        defaults = document.get("defaults") or {}
        document = document["rows"]
    if isinstance(document, Mapping):
        document = [document]
    if not isinstance(document, list) or not document:
        raise InputError(f"{path}: holds no rows; give a list of rows, or rows: with such a list")
    rows, seen = [], set()
    for i, given in enumerate(document):
        if not isinstance(given, Mapping):
            raise InputError(f"{path} row {i + 1}: {str(given)[:40]!r} is not a row; give a mapping with chip, chips, model, plan, measured")
        row = read_row({**defaults, **given}, f"{Path(path).name} row {i + 1}")
        if row.id in seen:
            raise InputError(f"{path}: two rows are called {row.id!r}; give each its own id")
        seen.add(row.id)
        rows.append(row)
    return rows


def published_rows() -> list[Row]:
    """Every row of `data/published_runs/*.yaml` (not the held-out folder)."""
    return [row for path in sorted(PUBLISHED.glob("*.yaml")) for row in read_rows(path)]


def read_row(given: Mapping, where: str = "row") -> Row:
    """One row from a mapping. Missing dp follows from the chip count; missing tp, pp, cp, ep are 1."""
    row = _rename(given, WORDS, _ROW_KEYS, where)
    name = str(row.get("id", where))
    where = f"{where} ({name})" if "id" in row else where
    kind = row.get("kind", "predict")
    if kind not in KINDS:
        raise InputError(f"{where}: kind {kind!r} is not one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    try:
        return _read(row, name, kind, where)
    except InputError as err:
        raise InputError(str(err) if str(err).startswith(where) else f"{where}: {err}") from None


def _read(row: dict, name: str, kind: str, where: str) -> Row:
    if "cluster" in row:
        cluster = cluster_from(row["cluster"])
        if "chip" in row:
            from dataclasses import replace

            from sim.facts import chip_from
            cluster = replace(cluster, chip=chip_from(row["chip"]))
    elif "chip" in row:
        cluster = cluster_for_chip(row["chip"])
    else:
        raise InputError("has neither chip nor cluster; name one, such as chip: a100, or describe it inline")
    assumed = [str(a) for a in _list(row.get("assumed"), "assumed")]
    if "cluster" not in row:
        assumed.append(f"nodes and network: {cluster.name}")
    options = _options(row.get("options") or {})
    measured, flops = _measured(row.get("measured") or {}, kind)
    common = dict(id=name, kind=kind, cluster=cluster, precision=_choice(row, "precision", PRECISIONS, "bf16"),
                  stack=str(row["stack"]) if row.get("stack") else None,
                  stack_changes={k: options[k] for k in _STACK if k in options and not (k == "attention" and options[k] == "flash")},
                  measured=measured, flops=flops, assumed=tuple(assumed), reason=str(row.get("reason") or ""),
                  note=str(row.get("note") or ""), source=str(row.get("source") or ""), options=options)
    if kind == "listed":
        if not row.get("reason"):
            raise InputError("kind: listed needs a reason (why it is not scored); give reason: ...")
        try:
            model = load_model(row["model"]) if row.get("model") else None
        except InputError:
            model = None                       # listed rows may name a model whose shape nobody published
        shown = model.name if model else str(row.get("model", ""))
        return Row(chips=whole(row.get("chips", 1), "chips"), model=model, model_name=shown, plan=None, workload=None, **common)
    for key in ("model", "seq"):
        if row.get(key) is None:
            raise InputError(f"has no {key!r}; a scored row needs model, chips or plan, global_batch, seq and measured")
    if not measured:
        raise InputError("measured is empty; give seconds_per_step, tokens_per_s_per_chip, tflops_per_chip or mfu")
    model = load_model(row["model"])
    seq = whole(row["seq"], "seq", high=10**8)
    plan, chips = _plan(row, options)
    if row.get("global_batch") is not None:
        batch = whole(row["global_batch"], "global_batch", high=10**9)
    elif row.get("global_tokens") is not None:
        batch = max(1, round(parse(row["global_tokens"], "count", "global_tokens") / seq))
    else:
        batch = plan.dp * plan.micro_batch * plan.pp * 4
        common["assumed"] = (*common["assumed"], f"global batch of {batch}: not given, four micro-batches a stage")
    workload = Workload(global_batch=batch, seq=seq, **{k: options[k] for k in _WORKLOAD if k in options})
    return Row(chips=chips, model=model, model_name=model.name, plan=plan, workload=workload, **common)


def _list(value: object, name: str) -> list:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        raise InputError(f"{name}: must be a list; write {name}: [one, two]")
    return [value]


def _choice(row: Mapping, key: str, known, default: str, words: Mapping[str, str] | None = None) -> str:
    value = row.get(key)
    if value is None or value is False:
        return default
    text = str(value).strip().lower()
    text = (words or {}).get(text, text)
    if text not in known:
        raise InputError(f"{key} {value!r}: not one of {', '.join(known)}{nearest(text, known)}")
    return text


def _options(given: object) -> dict:
    if not isinstance(given, Mapping):
        raise InputError(f"options: {str(given)[:40]!r} must be a mapping; see OPTIONS in sim/rows.py or schema.json")
    out = {}
    for key, value in given.items():
        if key not in OPTIONS:
            raise InputError(f"option {key!r}: not known{nearest(str(key), OPTIONS)}; known: {', '.join(OPTIONS)}")
        kind = OPTIONS[key][0]
        if value is None:
            continue
        if kind == "bool" and not isinstance(value, bool):
            raise InputError(f"option {key}={value!r}: must be true or false")
        if kind == "int":
            value = whole(value, f"option {key}", low=0, high=10**7)
        elif kind == "number":
            value = parse(value, "ratio", f"option {key}", high=1e6)
        elif kind == "list":
            value = [whole(v, f"option {key}", low=0) if key == "stages" else str(v) for v in _list(value, f"option {key}")]
        elif kind == "text":
            value = str(value)
        out[key] = value
    if "imbalance" in out and out["imbalance"] < 1:
        raise InputError(f"option imbalance={out['imbalance']:g}: the slowest rank has at least the mean; give 1 or more")
    return out


def _plan(row: Mapping, options: Mapping) -> tuple[Plan, int]:
    """The plan and the chip count; dp follows from the other."""
    known = ("tp", "pp", "dp", "vpp", "cp", "ep", "etp", "sp")
    given = row.get("plan") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"plan: {str(given)[:40]!r} must be a mapping such as {{tp: 8, pp: 4, dp: 2}}")
    words = _rename({k: v for k, v in given.items() if v is not None}, PLAN_WORDS, known, "plan")
    values: dict = {k: (v if k == "sp" else whole(v, f"plan {k}", high=10**7)) for k, v in words.items()}
    inner = values.get("tp", 1) * values.get("pp", 1) * values.get("cp", 1)
    chips = whole(row["chips"], "chips", high=10**8) if row.get("chips") is not None else None
    if "dp" not in values:
        if chips is None:
            raise InputError("has neither chips nor plan.dp; give the number of chips")
        if chips < inner:
            raise InputError(f"chips={chips}: fewer than tp × pp × cp = {inner}; give at least {inner} chips or a smaller plan")
        values["dp"] = chips // inner
    if chips is None:
        chips = inner * values["dp"]
    if inner * values["dp"] > chips:
        raise InputError(f"chips={chips}: the plan needs {inner * values['dp']} (tp × pp × cp × dp); lower dp to {max(1, chips // inner)}")
    values["schedule"] = _choice(row, "schedule", SCHEDULES, "interleaved" if values.get("vpp", 1) > 1 else "1f1b", SCHEDULE_WORDS)
    recompute = row.get("recompute")
    if isinstance(recompute, Mapping):
        extra = dict(recompute)
        values["recompute"] = _choice({"recompute": extra.pop("kind", "full")}, "recompute", RECOMPUTE, "none")
        if "layers" in extra:
            values["recompute_layers"] = whole(extra.pop("layers"), "recompute layers", low=0)
        if extra:
            raise InputError(f"recompute: unknown key {next(iter(extra))!r}; use kind and layers")
    else:
        values["recompute"] = "full" if recompute is True else _choice(row, "recompute", RECOMPUTE, "none")
    values["micro_batch"] = whole(row.get("micro_batch", 1), "micro_batch", high=10**6)
    if options.get("fsdp"):
        values["zero"] = 3
    elif options.get("distributed_optimizer"):
        values["zero"] = 1
    for key, name in _PLAN.items():
        if key in options:
            values[name] = options[key]
    if isinstance(values.get("stages"), list):
        values["stages"] = tuple(values["stages"])
    if values.get("optimizer", "adam") not in OPTIMIZERS:
        raise InputError(f"option optimizer {values['optimizer']!r}: not one of {', '.join(OPTIMIZERS)}{nearest(values['optimizer'], OPTIMIZERS)}")
    return Plan(**values), chips


def _measured(given: object, kind: str) -> tuple[dict[str, float], str]:
    if not isinstance(given, Mapping):
        raise InputError("measured: must be a mapping such as {seconds_per_step: 1.42}")
    named = _rename(given, MEASURED_WORDS, (*MEASURED, "flops"), "measured")
    flops = named.pop("flops", "model")
    if flops not in FLOPS:
        raise InputError(f"measured flops {flops!r}: not one of {', '.join(FLOPS)}{nearest(str(flops), FLOPS)}")
    out = {}
    for key, value in named.items():
        if value is None:
            continue
        out[key] = parse(value, MEASURED[key], f"measured {key}")
        if out[key] <= 0:
            raise InputError(f"measured {key}={value!r}: must be more than 0")
    if "mfu" in out:
        if out["mfu"] > 1:
            raise InputError(f"measured mfu={out['mfu']:g}: is above 1; give a share such as 0.42 or '42%'")
        if "peak_tflops" not in out and kind != "listed":
            raise InputError("measured mfu needs peak_tflops, the peak it was divided by; without it MFU says nothing (give peak_tflops: 312)")
    return out, flops


def json_schema() -> dict:
    """The JSON Schema of a rows file."""
    number = {"anyOf": [{"type": "number"}, {"type": "string"}]}
    types = {"bool": {"type": "boolean"}, "int": {"type": "integer"}, "number": number, "text": {"type": "string"},
             "list": {"type": "array"}}
    named = {"anyOf": [{"type": "string"}, {"type": "object"}]}
    row = {
        "type": "object", "required": ["measured"], "additionalProperties": False,
        "anyOf": [{"required": ["chip"]}, {"required": ["cluster"]}],
        "properties": {
            "id": {"type": "string"},
            "kind": {"enum": list(KINDS), "description": "fit: its stack's one scalar may be fitted on it; predict: scored; listed: shown with the reason"},
            "chip": {**named, "description": "a name of data/chips, or a mapping with peak_flops, memory_bytes, memory_bytes_per_s (like: starts from a chip)"},
            "cluster": {**named, "description": "a name of data/clusters, or a mapping with chip, chips_per_node, tiers (like: starts from a cluster)"},
            "chips": {"type": "integer", "minimum": 1},
            "model": {**named, "description": "a name of data/models, a path, a Hugging Face config, or plain dimensions: layers, hidden, heads, kv_heads, ffn, vocab, experts, experts_per_token, moe_ffn, gated_ffn …"},
            "plan": {"type": "object", "additionalProperties": False,
                     "properties": {k: {"type": "integer", "minimum": 1} for k in ("tp", "pp", "dp", "vpp", "cp", "ep", "etp")} | {"sp": {"type": "boolean"}}},
            "schedule": {"enum": list(SCHEDULES)}, "micro_batch": {"type": "integer", "minimum": 1, "description": "sequences"},
            "global_batch": {"type": "integer", "minimum": 1, "description": "sequences"}, "global_tokens": number,
            "seq": {"type": "integer", "minimum": 1}, "precision": {"enum": list(PRECISIONS)},
            "recompute": {"anyOf": [{"enum": list(RECOMPUTE)}, {"type": "boolean"}, {"type": "object", "properties": {"kind": {"enum": list(RECOMPUTE)}, "layers": {"type": "integer"}}}]},
            "options": {"type": "object", "additionalProperties": False,
                        "properties": {k: {**types[t], "description": text} for k, (t, text) in OPTIONS.items()}},
            "stack": {"type": "string", "description": "a named framework release"},
            "measured": {"type": "object", "additionalProperties": False,
                         "properties": {k: number for k in MEASURED} | {"flops": {"enum": list(FLOPS), "description": "what TFLOPS or MFU counts"}}},
            "assumed": {"type": "array", "items": {"type": "string"}, "description": "inputs that the source does not give"},
            "reason": {"type": "string"}, "note": {"type": "string"}, "source": {"type": "string"},
        },
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Measured training runs for clustersim validate",
            "type": "object", "required": ["rows"], "properties": {"rows": {"type": "array", "minItems": 1, "items": row}, "defaults": {"type": "object"}}}
