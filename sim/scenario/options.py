"""The schema of a rows file, and the checks of plan and options that scenarios and rows share.

`data/published_runs/schema.json` is `json_schema()` written out (a test keeps them equal); `sim/validation/rows.py` reads the rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.units import parse, whole
from sim.spec.plan import OPTIMIZERS, RECOMPUTE, SCHEDULES

FLOPS = ("model", "model_full", "megatron_2021", "hardware")

# option → (type, what it means). The first group goes to the plan, the second to the workload, the third to the stack.
OPTIONS: dict[str, tuple[str, str]] = {
    "sequence_parallel": ("bool", "norms and residuals divided over tensor-parallel ranks; default: on when tp > 1"),
    "zero": ("int", "ZeRO stage 0-3"),
    "distributed_optimizer": ("bool", "same as zero: 1"),
    "fsdp": ("bool", "same as zero: 3"),
    "hsdp": ("int", "ZeRO shards inside groups of this many ranks"),
    "expert_tp": ("int", "tensor parallelism inside experts"),
    "optimizer": ("text", "adam or muon"),
    "optimizer_offload": ("bool", "optimiser states in host memory"),
    "recompute_layers": ("int", "layers of each pipeline rank that are recomputed; default: all"),
    "stages": ("list", "layers of each chunk in model order"),
    "overlap_grad_reduce": ("bool", "gradient reduction under the backward pass"),
    "overlap_param_gather": ("bool", "parameter gather under compute"),
    "overlap_tp": ("bool", "tensor-parallel collectives pipelined with matmuls"),
    "overlap_p2p": ("bool", "pipeline transfers under compute"),
    "overlap_all_to_all": ("bool", "expert all-to-all under compute"),
    "precision_aware_optimizer": ("bool", "bf16 moments and gradients"),
    "causal": ("bool", "attention computes the causal half; default true"),
    "imbalance": ("number", "slowest expert rank's tokens / mean"),
    "mtp": ("bool", "train the multi-token prediction modules"),
    "window": ("bool", "use the model's sliding windows"),
    "attention": ("text", "flash, unfused, flash1, flash2, flash3, sdpa or npu_fusion"),
    "fusion": ("text", "fused, eager or compiled"),
    "loss": ("text", "fused or unfused cross-entropy"),
    "dropout": ("bool", "dropout kernels run"),
    "node_limited": ("int", "most nodes a token's experts may lie on"),
    "dedup": ("bool", "one copy of a token per node crosses the network"),
    "graphs": ("bool", "whole layers captured in graphs: no launch cost"),
    "bf16_grads": ("bool", "gradients reduced in bf16"),
    "accumulate_fused": ("bool", "gradient accumulation inside the weight-gradient matmul"),
    "recompute_modules": (
        "list",
        "small parts run again beside `recompute`: mla_up_proj, norm (or layernorm), moe_act, mlp, core_attn, moe, shared_experts",
    ),
}

# Words people use → ours.
PLAN_WORDS = {
    "tensor": "tp",
    "tensor_parallel": "tp",
    "pipeline": "pp",
    "pipeline_parallel": "pp",
    "data": "dp",
    "data_parallel": "dp",
    "context": "cp",
    "context_parallel": "cp",
    "expert": "ep",
    "expert_parallel": "ep",
    "vp": "vpp",
    "virtual_stages": "vpp",
    "interleave": "vpp",
    "vp_size": "vpp",
    "expert_tensor_parallel": "etp",
    "sequence_parallel": "sp",
}
SCHEDULE_WORDS = {
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
MEASURED = {
    "seconds_per_step": "time",
    "tokens_per_s_per_chip": "count",
    "tokens_per_s": "count",
    "tflops_per_chip": "count",
    "mfu": "ratio",
    "peak_tflops": "count",
    "bubble": "ratio",
    "memory_gib": "count",
    "linearity": "ratio",
}
PLAN_KEYS = ("tp", "pp", "dp", "vpp", "cp", "ep", "etp", "sp")


def rename(given: Mapping, words: Mapping[str, str], known: tuple[str, ...], where: str) -> dict:
    """The same mapping under our names: `words` are other names that people use. `where` begins the message of a refusal."""
    out: dict = {}
    for key, value in given.items():
        word = str(key).strip().lower()
        word = word if word in known else words.get(word, word)
        if word not in known:
            raise InputError(
                f"{where}unknown key {key!r}{nearest(str(key), [*known, *words])}; known: {', '.join(known)}"
            )
        if word in out:
            raise InputError(f"{where}{word!r} is given twice; keep one")
        out[word] = value
    return out


def clean_plan(given: object) -> dict:
    """Plan widths as whole numbers under our names; common other names are understood."""
    if not isinstance(given, Mapping):
        raise InputError(f"plan: {str(given)[:40]!r} must be a mapping such as {{tp: 8, pp: 4, dp: 2}}")
    out: dict = {}
    for word, value in rename(given, PLAN_WORDS, tuple(PLAN_KEYS), "plan: ").items():
        if value is None:
            continue
        if word == "sp" and not isinstance(value, bool):
            raise InputError(f"plan sp={value!r}: must be true or false")
        out[word] = value if word == "sp" else whole(value, f"plan {word}", high=10**7)
    return out


def clean_schedule(given: object) -> str:
    """A schedule by our name."""
    text = str(given).strip().lower()
    text = SCHEDULE_WORDS.get(text, text)
    if text not in SCHEDULES:
        raise InputError(f"schedule {str(given)[:40]!r}: not one of {', '.join(SCHEDULES)}{nearest(text, SCHEDULES)}")
    return text


def clean_recompute(given: object) -> dict | str:
    """`recompute` as one of RECOMPUTE, or {kind, layers}."""
    if isinstance(given, Mapping):
        for key in given:
            if key not in ("kind", "layers"):
                raise InputError(f"recompute: unknown key {key!r}; use kind and layers")
        out = {"kind": clean_recompute(given.get("kind", "full"))}
        if given.get("layers") is not None:
            out["layers"] = whole(given["layers"], "recompute layers", low=0, high=10**6)
        return out
    text = {"true": "full", "false": "none"}.get(str(given).strip().lower(), str(given).strip().lower())
    if text not in RECOMPUTE:
        raise InputError(f"recompute {str(given)[:40]!r}: not one of {', '.join(RECOMPUTE)}{nearest(text, RECOMPUTE)}")
    return text


def clean_options(given: object) -> dict:
    if not isinstance(given, Mapping):
        raise InputError(
            f"options: {str(given)[:40]!r} must be a mapping; see {datafiles.where('published_runs', 'schema.json')}"
        )
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
            value = [
                whole(v, f"option {key}", low=0) if key == "stages" else str(v)
                for v in (value if isinstance(value, list) else [value])
            ]
        elif kind == "text":
            value = str(value)
        out[key] = value
    if "imbalance" in out and out["imbalance"] < 1:
        raise InputError(
            f"option imbalance={out['imbalance']:g}: the slowest rank has at least the mean; give 1 or more"
        )
    if out.get("optimizer", "adam") not in OPTIMIZERS:
        raise InputError(
            f"option optimizer {out['optimizer']!r}: not one of {', '.join(OPTIMIZERS)}{nearest(out['optimizer'], OPTIMIZERS)}"
        )
    if out.get("zero", 0) > 3:
        raise InputError(f"option zero={out['zero']}: ZeRO has stages 0 to 3; give one of them")
    return out
