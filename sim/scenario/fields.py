"""The keys of a training run in a file: the same table for a scenario, a published row and a reference page.

`RUN` is what a scenario and a row of measured runs share; `sim.scenario.build` makes a run from it. `SCENARIO` adds
what a question has besides (tokens, phases, prices, failures, what-ifs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minglm.errors import InputError, nearest
from sim.base.fields import Field, Section, shorten
from sim.base.plausible import plausible, plausible_figure
from sim.base.units import parse, whole
from sim.cost.stacks import ATTENTION
from sim.spec.hardware import PRECISIONS
from sim.spec.plan import OPTIMIZERS, RECOMPUTE, SCHEDULES

_FLASH_NAMES = ("flash_attention", "flashattention", "flash_attn", "fa")
ASSUMPTION_KINDS = ("vendor claim", "third-party", "published", "computed", "assumed", "unknown")
MAX_WIDTH = 10**7  # of a kind of parallelism
MAX_CHIPS = 10**8

PLAN = Section(
    "plan",
    (
        Field("tp", "whole", "tensor parallelism", ("tensor", "tensor_parallel"), high=MAX_WIDTH),
        Field("pp", "whole", "pipeline parallelism", ("pipeline", "pipeline_parallel"), high=MAX_WIDTH),
        Field(
            "dp", "whole", "data parallelism; default: what fills the chips", ("data", "data_parallel"), high=MAX_WIDTH
        ),
        Field(
            "vpp",
            "whole",
            "chunks of the model on each pipeline rank",
            ("vp", "virtual_stages", "interleave", "vp_size"),
            high=MAX_WIDTH,
        ),
        Field("cp", "whole", "context parallelism", ("context", "context_parallel"), high=MAX_WIDTH),
        Field("ep", "whole", "expert parallelism", ("expert", "expert_parallel"), high=MAX_WIDTH),
        Field("etp", "whole", "tensor parallelism inside experts", ("expert_tensor_parallel",), high=MAX_WIDTH),
        Field("sp", "bool", "norms and residuals divided over tensor-parallel ranks", ("sequence_parallel",)),
        Field("auto", "bool", "search what is not given; plan: auto, or auto as any field's value, says the same"),
    ),
    example="{tp: 8, pp: 4, dp: 2}",
)


@dataclass(frozen=True)
class Recompute:
    """How much of the forward pass runs again, in `layers` of each pipeline rank (None: in all)."""

    kind: str
    layers: int | None = None


def read_recompute(value: object, label: str) -> Recompute:
    """One of `sim.spec.plan.RECOMPUTE`, true, false, or {kind, layers}."""
    if isinstance(value, Mapping):
        unknown = next((key for key in value if key not in ("kind", "layers")), None)
        if unknown is not None:
            raise InputError(f"{label}: unknown key {shorten(unknown)}; use kind and layers")
        layers = value.get("layers")
        kind = read_recompute(value.get("kind", "full"), label).kind
        return Recompute(kind, None if layers is None else whole(layers, f"{label} layers", low=0, high=10**6))
    text = str(value).strip().lower()
    text = {"true": "full", "false": "none"}.get(text, text)
    if text not in RECOMPUTE:
        raise InputError(f"{label} {shorten(value)}: not one of {', '.join(RECOMPUTE)}{nearest(text, RECOMPUTE)}")
    return Recompute(text)


_RECOMPUTE_SCHEMA = {
    "anyOf": [
        {"enum": list(RECOMPUTE)},
        {"type": "boolean"},
        {"type": "object", "properties": {"kind": {"enum": list(RECOMPUTE)}, "layers": {"type": "integer"}}},
    ]
}

# Options by what they change. A field of `Plan` and of `Stack` has the option's name, unless `sim.scenario.build` says
# otherwise.
PLAN_OPTIONS = (
    Field(
        "sequence_parallel", "bool", "norms and residuals divided over tensor-parallel ranks; default: on when tp > 1"
    ),
    Field("zero", "whole", "ZeRO stage 0-3", ("zero_stage",), low=0, high=MAX_WIDTH),
    Field("distributed_optimizer", "bool", "same as zero: 1"),
    Field("fsdp", "bool", "same as zero: 3"),
    Field("hsdp", "whole", "ZeRO shards inside groups of this many ranks", low=0, high=MAX_WIDTH),
    Field("expert_tp", "whole", "tensor parallelism inside experts", high=MAX_WIDTH),
    Field("optimizer", "text", "optimizer", choices=OPTIMIZERS, spellings={"adamw": "adam"}),
    Field("optimizer_offload", "bool", "optimiser states in host memory"),
    Field(
        "activation_offload",
        "bool",
        "what layers keep for their backward pass (with recompute: full, their inputs) waits in host memory",
    ),
    Field(
        "recompute_layers",
        "whole",
        "layers of each pipeline rank that are recomputed; default: all",
        low=0,
        high=MAX_WIDTH,
    ),
    Field("stages", "list", "layers of each chunk in model order", items="whole", low=0),
    Field(
        "decoder_first_pipeline_num_layers",
        "whole",
        "layers of the first pipeline rank, the others share the rest evenly; in place of stages",
        low=0,
        high=MAX_WIDTH,
    ),
    Field(
        "decoder_last_pipeline_num_layers",
        "whole",
        "the same of the last pipeline rank",
        low=0,
        high=MAX_WIDTH,
    ),
    Field(
        "mtp_before_head",
        "whole",
        "chunks between the one with the multi-token prediction layers and the last, which holds all heads; default 0",
        low=0,
        high=MAX_WIDTH,
    ),
    Field("overlap_grad_reduce", "bool", "gradient reduction under the backward pass"),
    Field("overlap_param_gather", "bool", "parameter gather under compute"),
    Field("overlap_tp", "bool", "tensor-parallel collectives pipelined with matmuls"),
    Field("overlap_p2p", "bool", "pipeline transfers under compute"),
    Field("overlap_all_to_all", "bool", "expert all-to-all under compute"),
    Field("precision_aware_optimizer", "bool", "bf16 moments and gradients"),
    Field(
        "recompute_modules",
        "list",
        "small parts run again beside `recompute`: mla_up_proj, norm (or layernorm), moe_act, mlp, core_attn, moe, "
        "shared_experts",
        items="text",
    ),
)
WORKLOAD_OPTIONS = (
    Field("causal", "bool", "attention computes the causal half; default true"),
    Field("imbalance", "ratio", "slowest expert rank's tokens / mean, so at least 1", low=1.0, high=1e6),
    Field(
        "capacity_factor",
        "ratio",
        "rows that every expert takes over the mean: more are dropped, fewer padded, and nobody waits for a count; in "
        "place of imbalance",
        ("moe_expert_capacity_factor",),
        low=0.01,
        high=1e6,
    ),
    Field("mtp", "bool", "train the multi-token prediction modules"),
    Field("window", "bool", "use the model's sliding windows"),
)
_ATTENTION_SPELLINGS = {  # as transformers, torchtitan and Megatron write them
    **{f"{name}{sign}{n}": f"flash{n}" for n in "123" for name in _FLASH_NAMES for sign in ("", "_")},
    **dict.fromkeys(_FLASH_NAMES, "flash"),
    **dict.fromkeys(("eager", "naive", "local"), "unfused"),
}
STACK_OPTIONS = (
    Field(
        "attention",
        "text",
        "kernel of attention; flash: the chip's best",
        choices=("flash", "unfused", *sorted({kernel for kernel, _ in ATTENTION})),
        spellings=_ATTENTION_SPELLINGS,
    ),
    Field(
        "fusion",
        "text",
        "fusion of small operators",
        choices=("fused", "eager", "compiled"),
        spellings={"inductor": "compiled", "torch.compile": "compiled", "compile": "compiled"},
    ),
    Field(
        "loss",
        "text",
        "cross-entropy; chunked and liger hold the logits of one chunk of tokens at a time",
        choices=("fused", "torch", "unfused", "chunked", "liger"),
        spellings={"fused_linear": "liger", "liger_kernel": "liger", "eager": "torch"},
    ),
    Field("dropout", "bool", "dropout kernels run"),
    Field("node_limited", "whole", "most nodes a token's experts may lie on", low=0, high=MAX_WIDTH),
    Field("dedup", "bool", "one copy of a token goes to a node, one to a chip"),
    Field("router_fused", "bool", "the router's scores, choice and balancing loss run in a few kernels"),
    Field(
        "graphs",
        "text",
        "captured in graphs, without launch cost; partial: all but the experts",
        choices=("none", "partial", "full"),
    ),
    Field("bf16_grads", "bool", "gradients reduced in bf16"),
    Field("accumulate_fused", "bool", "gradient accumulation inside the weight-gradient matmul"),
)
OPTIONS = Section("options", PLAN_OPTIONS + WORKLOAD_OPTIONS + STACK_OPTIONS, example="{zero: 1, attention: flash}")

SCHEDULE_SPELLINGS = {
    "zero_bubble": "zb-h1",
    "zero-bubble": "zb-h1",
    "zb_h1": "zb-h1",
    "zbh1": "zb-h1",
    "zbv": "zb-v",
    "zb_v": "zb-v",
    "dualpipev": "dualpipe-v",
    "dualpipe_v": "dualpipe-v",
    "interleaved_1f1b": "interleaved",
    "interleaved-1f1b": "interleaved",
}
RUN_FIELDS = (
    Field(
        "model",
        "named",
        "a name of data/models, a path, a Hugging Face config, or plain dimensions: layers, hidden, heads, kv_heads, "
        "ffn, vocab, experts, experts_per_token, moe_ffn, gated_ffn …",
    ),
    Field(
        "cluster",
        "named",
        "a name of data/clusters, or a mapping with chip, chips_per_node, tiers (like: starts from a cluster)",
    ),
    Field(
        "chip",
        "named",
        "a name of data/chips, or a mapping with peak_flops, memory_bytes, memory_bytes_per_s (like: starts from a "
        "chip)",
        ("gpu", "accelerator"),
    ),
    Field(
        "chips",
        "whole",
        "chips there are; a plan that names its dp may use fewer",
        ("gpus", "npus", "num_gpus", "devices"),
        high=MAX_CHIPS,
    ),
    Field("plan", "mapping", "widths of each kind of parallelism", ("parallel", "parallelism"), section=PLAN),
    Field("schedule", "text", "order of a pipeline's micro-batches", choices=SCHEDULES, spellings=SCHEDULE_SPELLINGS),
    Field("micro_batch", "whole", "sequences of a micro-batch; default 1", ("mbs", "micro_batch_size"), high=10**6),
    Field("global_batch", "whole", "sequences of a step", ("gbs", "global_batch_size", "batch"), high=10**8),
    Field("global_tokens", "count", "tokens of a step, in place of global_batch: the nearest that divides", low=1.0),
    Field(
        "seq", "length", "tokens of a sequence", ("seq_len", "sequence", "seq_length", "sequence_length"), high=10**8
    ),
    Field(
        "precision",
        "text",
        "of the matmuls; default bf16",
        ("dtype",),
        choices=PRECISIONS,
        spellings={"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float8": "fp8", "float32": "fp32"},
    ),
    Field(
        "recompute",
        "any",
        "none, selective, selective_ops, full, or {kind: full, layers: 4}",
        ("recomputation", "activation_recompute"),
        read_value=read_recompute,
        schema=_RECOMPUTE_SCHEMA,
    ),
    Field("options", "mapping", "switches of the plan, the workload and the software", section=OPTIONS),
    Field("stack", "text", "a named framework release", ("framework",)),
)
RUN = Section("run", RUN_FIELDS)

# ------------------------------------------------------------------ what a scenario has besides


def _figure(name: str, dimension: str, doc: str) -> Field:
    """A field that takes a bare quantity or {value, low, high, source, confidence}."""
    return Field(
        name,
        dimension,
        doc,
        read_value=lambda value, label: plausible_figure(value, dimension, name, label),
        schema={},
    )


def read_storage(value: object, label: str) -> float:
    """Bytes/s of a storage.

    Raises:
        InputError: fewer than any storage takes, as a bare number of GB/s is.
    """
    return plausible(parse(value, "bytes_per_s", label, low=0.0), "storage", label)


PRICES = Section(
    "prices",
    (
        _figure("rent_usd_per_hour", "money_per_hour", "rent of a chip, such as $2/h"),
        _figure("system_price_usd", "money", "price of a chip with its share of host and network"),
        _figure("electricity_usd_per_kwh", "money_per_kwh", "such as $0.08/kWh"),
        _figure("pue", "ratio", "power of the building over power of the machines"),
        _figure("power_w", "power", "board power of a chip"),
        Field("years", "count", "of use", high=50.0),
        Field("utilization", "ratio", "share of those years in use", high=1.0),
        Field("interest", "ratio", "a year", high=1.0),
        Field("staff_usd_per_year", "money", "of the whole cluster", high=1e15),
        _figure(
            "carbon_kg_per_kwh", "carbon_per_kwh", "kg of CO2 of a kWh of electricity, or a text such as 385 g/kWh"
        ),
        _figure("storage_share", "ratio", "of the system's price, on top"),
    ),
)
FAILURES = Section(
    "failures",
    (
        Field("level", "text", "low, mid or high: published rates"),
        Field("per_chip_day", "count", "failures of a chip a day"),
        Field("detect", "time", "until a failure is noticed"),
        Field("restart", "time", "from noticing to training again"),
        Field("repair", "time", "until a failed server is back"),
        Field("elastic", "bool", "go on with fewer replicas where no spare is left"),
        Field("slow_servers", "bool", "servers turn slow for good"),
    ),
)
CHECKPOINT = Section(
    "checkpoint",
    (
        Field("kind", "text", "sync, async or memory"),
        Field("interval", "time", "between checkpoints; default: the best"),
        Field("write", "bytes_per_s", "to storage, the whole cluster", read_value=read_storage),
        Field("read", "bytes_per_s", "from storage, the whole cluster", read_value=read_storage),
        Field("storage_every", "int", "every so many go to storage (kind memory)"),
    ),
)
CAMPAIGN = Section(
    "campaign",
    (Field("seeds", "int", "runs, 2 to 100,000"), Field("horizon", "time", "give up after", low=1.0)),
)
JITTER = Section(
    "jitter",
    (
        Field("noise", "ratio", "spread of the logarithm of every kernel's time", high=2.0),
        Field("spread", "ratio", "spread of the logarithm of chips' speeds", high=2.0),
        Field("slow_share", "ratio", "share of chips that are slow for good", high=1.0),
        Field("slow_factor", "ratio", "how many times longer they take", high=100.0),
        Field("expert_spread", "ratio", "spread of the logarithm of experts' loads", high=2.0),
        Field("expert_share", "ratio", "share of a layer's time that the loads stretch", high=1.0),
    ),
)
PHASE = Section(
    "phase",
    (
        Field("name", "text", "what it is called"),
        Field("tokens", "count", "trained on in it", low=1.0),
        Field(
            "seq",
            "length",
            "tokens of a sequence",
            ("seq_len", "sequence", "seq_length", "sequence_length"),
            high=10**8,
        ),
        Field("batch", "count", "tokens of a step", low=1.0),
        Field("first_batch", "count", "tokens of its first step", low=1.0),
        Field("ramp", "count", "tokens over which the batch grows to its size"),
        Field("note", "text", "anything"),
        Field("attention", "text", "sparse (with the model's indexer) or dense", choices=("sparse", "dense")),
    ),
)
WHAT_IF = Section(
    "what_if",
    (
        Field("name", "text", "what it is called"),
        Field("set", "mapping", "keys of the scenario that differ"),
        Field("note", "text", "anything"),
    ),
)
ASSUMPTION = Section(
    "assumption",
    (
        Field("text", "text", "what is assumed"),
        Field("kind", "text", "how strong", choices=ASSUMPTION_KINDS),
        Field("source", "text", "where it is printed"),
    ),
)
SCENARIO = Section(
    "scenario",
    (
        Field("version", "int", "1"),
        Field("kind", "text", "training"),
        Field("name", "text", "what it is called"),
        Field("question", "text", "what it asks"),
        Field("include", "any", "a scenario file, or a list of them, whose keys this one overrides"),
        *RUN_FIELDS,
        Field("attention", "text", "sparse (with the model's indexer) or dense", choices=("sparse", "dense")),
        Field("allow_oom", "bool", "show a plan that is over the memory estimate instead of refusing it"),
        Field("tokens", "count", "of the whole training; default 1T, or what the model's report says", low=1.0),
        Field(
            "objective",
            "text",
            "what an automatic plan is best at: tokens (throughput), time, cost (chip-hours) or energy",
            ("goal",),
            choices=("tokens", "time", "cost", "energy"),
        ),
        Field("batch_tolerance", "ratio", "share by which an automatic plan's batch may differ", high=0.49),
        Field("phases", "any", "glm5, or a list of phases"),
        Field("plans", "list", "further plans that a phase may choose"),
        Field("jitter", "mapping", "what makes chips uneven", section=JITTER),
        Field("prices", "mapping", "in place of the catalogue's", section=PRICES),
        Field("failures", "mapping", "of chips, and getting over them", section=FAILURES),
        Field("checkpoint", "mapping", "how state is saved", section=CHECKPOINT),
        Field("campaign", "mapping", "of the whole training as events", section=CAMPAIGN),
        Field("seed", "int", "of everything random", low=0),
        Field("what_if", "list", "changes whose effect is shown"),
        Field("assumptions", "list", "inputs that no source gives"),
        Field("notes", "text", "anything"),
        Field("planner", "mapping", "what the planner's page saves"),
    ),
)
