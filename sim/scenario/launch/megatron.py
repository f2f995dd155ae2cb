"""Arguments of Megatron-LM and Megatron-Core (`megatron/training/arguments.py`): model, plan, batch, switches.

What a launch leaves out has Megatron's own default, not this simulator's: positions learned, biases on, embeddings
tied, sequence parallelism and overlap off, experts cut as wide as the rest.
"""

from __future__ import annotations

import re
from typing import Any

from minglm.errors import InputError
from sim.base.fields import located
from sim.scenario.launch.arguments import Arguments, Launch
from sim.spec.plan import stages_with_ends

# Neither time nor memory of a step: files, logs, learning, numerics, the launcher's own.
IGNORED = re.compile(
    r"^(lr|min-lr|weight-decay|adam|sgd|clip-grad|init|seed$|save|load|log|tensorboard|wandb|eval|data-|dataset|train-data|"
    r"valid|test|split|vocab-file|merge-file|tokenizer|mock-data|num-workers|distributed-(backend|timeout)|exit|ckpt|"
    r"dist-ckpt|profile|use-pytorch-profiler|manual-gc|norm-eps|layernorm-eps|rotary|rope|apply-layernorm|moe-aux|"
    r"moe-z-loss|moe-router-(load|dtype|score|bias|topk-scaling|pre-soft|force)|moe-permute-fusion|"
    r"moe-grouped-gemm|moe-use-legacy|moe-per-layer|attention-softmax|use-mcore|transformer-impl|no-load|no-save|"
    r"no-create|no-(bias|masked|rope|persist)|no-async|no-barrier|no-check|no-strict|no-ckpt|override|finetune|"
    r"auto-detect|start-weight|end-weight|empty-unused|check-|num-dataset|reset-|eod-|create-attention|initial-loss|"
    r"loss-scale|hysteresis|fp16-lm|fp8-(amax|margin|interval|recipe)|ddp|async-save|use-checkpoint|use-persistent|"
    r"use-dist-ckpt|use-rotary|use-tp-pp|no-initialization|delay|align-|enable-|node-rank|master|rdzv|standalone|"
    r"local-rank|max-restarts|tee|redirects|mtp-loss|qk-clip|muon-|sequence-parallel-comm|nccl|high-priority|"
    r"deterministic|inference|position-embedding-interp|use-cpu-init|cross-entropy-fusion-impl|te-rng|calculate|data$|"
    r"train-sync|config-logger|kill-|disable-straggler|result-|record-|timing|barrier|decoupled|skip-train|"
    r"num-layers-at|accumulate-allreduce|make-vocab|main-params|exp-avg-sq|hidden-dropout-|moe-layer-recompute-|"
    r"fsdp-double-buffer|use-nccl-ub)"
)
# MindSpeed's kernels for Ascend, which its stack here has; they also say that a launch is MindSpeed's.
MINDSPEED = re.compile(
    r"^(use-fused-(rmsnorm|swiglu|rotary-pos-emb|moe-token-permute-and-unpermute|ring-attention-update|mlp|moe|cross)|"
    r"use-(ascend-)?mc2$|gemm-gradient-accumulation-fusion$|use-ascend-coc$|npu-|context-parallel-algo$|"
    r"use-cp-send-recv-overlap$|reuse-fp32-param$|swap-attention$|recompute-in-bubble$|recompute-in-advance$|"
    r"moe-alltoall-overlap-comm$|moe-allgather-overlap-comm$|moe-tp-extend-ep$)"
)


def read(values: dict[str, Any], where: str) -> Launch:
    """A scenario's keys from the flags of a launch, names with hyphens.

    Raises:
        InputError: a value that cannot be, a flag that changes time or memory and is not known.
    """
    a, out = Arguments(values, where, "--"), Launch("megatron")
    out.run["stack"] = "Megatron-Core"
    if any(MINDSPEED.search(name) for name in values):
        out.run["stack"], out.cluster = "MindSpeed-LLM 2.3.0", "atlas_800t_a2"
    _chips(a, out)
    _plan(a, out)
    _model(a, out)
    _batch(a, out)
    _switches(a, out)
    _recompute(a, out)
    _mindspeed(a, out)
    a.finish(out, IGNORED)
    return out


def _mindspeed(a: Arguments, out: Launch) -> None:
    """What MindSpeed adds; its other switches are refused or passed over as Megatron's are."""
    for name in a.values:
        if name.startswith("use-fused-") and MINDSPEED.search(name):
            a.raw(name, becomes="stack")
    if a.flag("use-ascend-mc2", "use-mc2", "use-ascend-coc", becomes="options.overlap_tp"):
        out.options["overlap_tp"] = True
    if a.flag("gemm-gradient-accumulation-fusion", becomes="options.accumulate_fused"):
        out.options["accumulate_fused"] = True
    if a.flag("moe-alltoall-overlap-comm", becomes="options.overlap_all_to_all"):
        out.options["overlap_all_to_all"] = True
    a.choice("context-parallel-algo", table={"megatron_cp_algo": None}, becomes="plan.cp")
    if a.flag("use-cp-send-recv-overlap", becomes="plan.cp"):
        out.notes.append("keys and values travel round the ring while attention computes, as without the switch")
    if a.flag("reuse-fp32-param", becomes="nothing: bf16 weights are kept beside the fp32 ones"):
        out.notes.append("bf16 weights that are a part of the fp32 ones are left out: each has its own memory")


def _chips(a: Arguments, out: Launch) -> None:
    # the last one that is given holds: what the launcher says before what the job asked for
    a.whole("local-worker-num", becomes="chips", low=1)
    nodes = a.whole("sbatch-nodes", "num-nodes", "nnodes", becomes="chips", low=1)
    each = a.whole(
        "sbatch-ntasks-per-node", "sbatch-gpus-per-node", "num-gpus", "nproc-per-node", becomes="chips", low=1
    )
    if each:
        out.chips = (nodes or 1) * each
    elif workers := a.whole("worker-num", becomes="chips", low=1):  # msrun
        out.chips = workers
    elif nodes:
        out.notes.append("chips of a node: 8")
        out.chips = nodes * 8


def _plan(a: Arguments, out: Launch) -> None:
    plan = {
        "tp": a.whole("tensor-model-parallel-size", "model-parallel-size", becomes="plan.tp", low=1),
        "pp": a.whole("pipeline-model-parallel-size", becomes="plan.pp", low=1),
        "cp": a.whole("context-parallel-size", becomes="plan.cp", low=1),
        "ep": a.whole("expert-model-parallel-size", becomes="plan.ep", low=1),
        "etp": a.whole("expert-tensor-parallel-size", becomes="plan.etp", low=1),
        "vpp": a.whole("num-virtual-stages-per-pipeline-rank", becomes="plan.vpp", low=1),
    }
    out.plan = {k: v for k, v in plan.items() if v is not None}
    for key in ("tp", "pp"):
        out.plan.setdefault(key, 1)
    if a.has("num-experts") and "etp" not in out.plan:
        out.plan["etp"] = out.plan["tp"]  # Megatron's default
    out.plan["sp"] = a.flag("sequence-parallel", becomes="plan.sp") and out.plan["tp"] > 1
    a.choice("cp-comm-type", table={"p2p": None, "allgather": None}, becomes="plan.cp")


def _model(a: Arguments, out: Launch) -> None:
    m: dict[str, Any] = {
        "layers": a.whole("num-layers", "encoder-num-layers", becomes="model.layers", low=1),
        "hidden": a.whole("hidden-size", becomes="model.hidden", low=1),
        "heads": a.whole("num-attention-heads", becomes="model.heads", low=1),
        "ffn": a.whole("ffn-hidden-size", becomes="model.ffn", low=1),
        "head_dim": a.whole("kv-channels", becomes="model.head_dim", low=1),
        "mtp_modules": a.whole("mtp-num-layers", becomes="model.mtp_modules"),
        "window": _first(a.raw("window-size", becomes="model.window")),
    }
    groups = a.whole("num-query-groups", becomes="model.kv_heads", low=1)
    if a.flag("group-query-attention", becomes="model.kv_heads"):
        m["kv_heads"] = groups or 1
    m["gated_ffn"] = a.flag("swiglu", becomes="model.gated_ffn")
    if m["gated_ffn"] and m["ffn"] is None and m["hidden"]:
        m["ffn"] = int(4 * m["hidden"] * 2 / 3 / 64) * 64  # Megatron keeps the number of weights
    m["tied"] = not a.flag("untie-embeddings-and-output-weights", becomes="model.tied")
    m["qk_norm"] = a.flag("qk-layernorm", becomes="model.qk_norm")
    m["norm"] = (
        a.choice("normalization", table={"layernorm": "layer", "rmsnorm": "rms"}, becomes="model.norm") or "layer"
    )
    bias = not a.flag("disable-bias-linear", becomes="model.*_bias")
    m["out_bias"] = m["ffn_bias"] = bias
    m["qkv_bias"] = a.flag("add-qkv-bias", becomes="model.qkv_bias") or bias
    m["max_seq"] = a.whole("max-position-embeddings", becomes="model.max_seq", low=1)
    rotary = a.flag("use-rotary-position-embeddings", becomes="model.positions")
    kinds = {"learned_absolute": True, "rope": False, "none": False, "mrope": False, "yarn": False}
    learned = a.choice("position-embedding-type", table=kinds, becomes="model.positions")
    if learned is not False and not rotary:
        m["positions"] = m["max_seq"]
    _experts(a, m)
    _latent(a, m)
    m["vocab"] = _vocabulary(a, out)
    out.run["model"] = {k: v for k, v in m.items() if v is not None}
    if not any(m[k] for k in ("layers", "hidden", "heads")):
        del out.run["model"]  # of a name, or of a checkpoint: said beside the file


def _first(value: Any) -> int | None:
    """The left side of a window, which Megatron writes as `4096,0`."""
    if value is None:
        return None
    text = str(value[0] if isinstance(value, list) else value).strip("() ")
    return int(text.split(",")[0]) + 1 if re.fullmatch(r"\d+( *, *\d+)?", text) else None


def _experts(a: Arguments, m: dict[str, Any]) -> None:
    m["experts"] = a.whole("num-experts", becomes="model.experts", low=1)
    top = a.whole("moe-router-topk", becomes="model.experts_per_token", low=1)
    m["moe_ffn"] = a.whole("moe-ffn-hidden-size", becomes="model.moe_ffn", low=1)
    shared = a.whole("moe-shared-expert-intermediate-size", becomes="model.shared_ffn")
    m["router_groups"] = a.whole("moe-router-num-groups", becomes="model.router_groups", low=1)
    m["groups_per_token"] = a.whole("moe-router-group-topk", becomes="model.groups_per_token", low=1)
    m["router_bias"] = a.flag("moe-router-enable-expert-bias", becomes="model.router_bias") or None
    m["shared_gate"] = a.flag("moe-shared-expert-gate", becomes="model.shared_gate") or None
    frequency = a.text("moe-layer-freq", becomes="model.dense_layers")
    if not m["experts"]:
        for key in ("experts", "moe_ffn", "router_groups", "groups_per_token", "router_bias", "shared_gate"):
            m.pop(key)
        return
    m["experts_per_token"] = top or 2
    m["moe_ffn"] = m["moe_ffn"] or m["ffn"]
    if shared:
        m["shared_ffn"], m["shared_experts"] = shared, 1
    if frequency not in (None, "1"):
        m["dense_layers"] = _dense_layers(str(frequency), m["layers"] or 0, a)


def _dense_layers(text: str, layers: int, a: Arguments) -> int:
    """`([0]*3+[1]*58)`: so many dense layers come first."""
    pattern: list[int] = []
    for kinds, times in re.findall(r"\[([01, ]+)\](?:\*(\d+))?", text):
        pattern += [int(k) for k in re.findall(r"[01]", kinds)] * min(int(times or 1), 10_000)
    dense = pattern.count(0)
    if not pattern or len(pattern) != layers or pattern != [0] * dense + [1] * (layers - dense):
        raise InputError(
            f"{a.label('moe-layer-freq')} {text!r}: dense layers must come first, one entry for each of {layers} "
            f"layers; use such as ([0]*1+[1]*{max(layers - 1, 1)})"
        )
    return dense


def _latent(a: Arguments, m: dict[str, Any]) -> None:
    widths = {
        "kv_lora": (a.whole("kv-lora-rank", becomes="model.kv_lora", low=1), 32),
        "nope": (a.whole("qk-head-dim", becomes="model.nope", low=1), 128),
        "rope": (a.whole("qk-pos-emb-head-dim", becomes="model.rope", low=1), 64),
        "v_dim": (a.whole("v-head-dim", becomes="model.v_dim", low=1), 128),
    }
    query = a.whole("q-lora-rank", becomes="model.q_lora", low=1)
    if a.flag("multi-latent-attention", becomes="model.attention"):
        m.update({k: v or default for k, (v, default) in widths.items()}, attention="mla", q_lora=query)
        m.pop("kv_heads", None)
        m.pop("head_dim", None)


def _vocabulary(a: Arguments, out: Launch) -> int | None:
    """The vocabulary padded as Megatron pads it: to a multiple of 128 × tensor parallelism."""
    padded = a.whole("padded-vocab-size", becomes="model.vocab", low=1)
    size = a.whole("vocab-size", becomes="model.vocab", low=1)
    step = (a.whole("make-vocab-size-divisible-by", becomes="model.vocab", low=1) or 128) * out.plan["tp"]
    if padded:
        return padded
    if size is None and str(a.values.get("tokenizer-type", "")).startswith("GPT2BPE"):
        size = 50_257
    if size is None:
        out.notes.append(
            "the vocabulary is the tokenizer's, which is not read: 51,200 (--set model.vocab=… says another)"
        )
        return None
    return -(-size // step) * step


def _batch(a: Arguments, out: Launch) -> None:
    out.run["micro_batch"] = a.whole("micro-batch-size", "batch-size", becomes="micro_batch", low=1)
    out.run["global_batch"] = a.whole("global-batch-size", becomes="global_batch", low=1)
    out.run["seq"] = a.whole("seq-length", "encoder-seq-length", becomes="seq", low=1)
    if a.has("rampup-batch-size"):
        a.raw("rampup-batch-size", becomes="nothing: the whole batch")
        out.notes.append("the batch's ramp is left out: every step has the whole batch")
    out.steps = a.whole("train-iters", becomes="tokens", low=1)
    out.samples = a.whole("train-samples", becomes="tokens", low=1)
    bf16, fp16 = a.flag("bf16", becomes="precision"), a.flag("fp16", becomes="precision")
    eight = a.text("fp8-format", "fp8", becomes="precision") if a.values.get("fp8") is not True else "hybrid"
    if a.flag("fp8-param-gather", "fp8-param", becomes="nothing: weights are gathered and kept in bf16"):
        out.notes.append("weights that are gathered and kept in fp8 are left out: they are in bf16")
    out.run["precision"] = "fp8" if eight else "bf16" if bf16 else "fp16" if fp16 else None
    if out.run["precision"] is None:
        out.notes.append("precision bf16: neither --bf16 nor --fp16 is given, and training in fp32 is not simulated")


def _switches(a: Arguments, out: Launch) -> None:
    o = out.options
    o["zero"] = 1 if a.flag("use-distributed-optimizer", becomes="options.zero") else 0
    stages = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
    sharded = a.choice("data-parallel-sharding-strategy", table=stages, becomes="options.zero")
    if a.flag("use-megatron-fsdp", "use-custom-fsdp", becomes="options.zero"):
        o["zero"] = 0 if sharded is None else sharded
    if a.flag("use-torch-fsdp2", becomes="options.zero"):
        o["zero"] = 3
    if (stage := a.whole("zero-stage", becomes="options.zero")) is not None:  # Megatron-DeepSpeed
        o["zero"] = stage
    for name, key in (
        ("overlap-grad-reduce", "overlap_grad_reduce"),
        ("overlap-param-gather", "overlap_param_gather"),
        ("tp-comm-overlap", "overlap_tp"),
        ("overlap-moe-expert-parallel-comm", "overlap_all_to_all"),
        ("optimizer-cpu-offload", "optimizer_offload"),
        ("grad-reduce-in-bf16", "bf16_grads"),
    ):
        o[key] = a.flag(name, becomes=f"options.{key}")
    if a.flag("no-overlap-p2p-communication", becomes="options.overlap_p2p"):
        o["overlap_p2p"] = False
    elif a.flag("overlap-p2p-communication", becomes="options.overlap_p2p"):
        o["overlap_p2p"] = True
    o["accumulate_fused"] = not a.flag("no-gradient-accumulation-fusion", becomes="options.accumulate_fused")
    small = [a.text(k, becomes="options.precision_aware_optimizer") for k in ("main-grads-dtype", "exp-avg-dtype")]
    if a.flag("use-precision-aware-optimizer", becomes="options.precision_aware_optimizer") and "bf16" in small:
        o["precision_aware_optimizer"] = True
    dropped = [a.number(k, becomes="options.dropout") for k in ("attention-dropout", "hidden-dropout")]
    o["dropout"] = any(d is None or d > 0 for d in dropped)
    backends = {"flash": "flash", "fused": "flash", "unfused": "unfused", "local": "unfused", "auto": None}
    o["attention"] = a.choice("attention-backend", table=backends, becomes="options.attention")
    if a.flag("use-flash-attn", "use-flash-attn-v2", becomes="options.attention"):
        o["attention"] = "flash"
    if a.flag("cross-entropy-loss-fusion", becomes="options.loss"):
        o["loss"] = "fused"
    graphs = {"none": None, "local": "full", "transformer_engine": "full"}
    o["graphs"] = a.choice("cuda-graph-impl", table=graphs, becomes="options.graphs")
    if a.flag("enable-cuda-graph", "external-cuda-graph", becomes="options.graphs"):
        o["graphs"] = "full"
    o["optimizer"] = a.choice(
        "optimizer", table={"adam": "adam", "muon": "muon", "dist_muon": "muon"}, becomes="options.optimizer"
    )
    _dispatch(a, o)
    _stages(a, out)
    out.options = {k: v for k, v in o.items() if v is not None}


def _dispatch(a: Arguments, o: dict[str, Any]) -> None:
    """How tokens reach their experts."""
    a.choice("moe-token-dispatcher-type", table={"alltoall": None, "flex": None}, becomes="options.dedup")
    copies = {"deepep": True, "hybridep": True}  # one of a token a node
    once = a.choice("moe-flex-dispatcher-backend", table=copies, becomes="options.dedup")
    if a.flag("moe-enable-deepep", becomes="options.dedup") or once:
        o["dedup"] = True
    if a.flag("moe-router-fusion", becomes="options.router_fused"):
        o["router_fused"] = True
    if a.flag("moe-pad-expert-input-to-capacity", becomes="options.capacity_factor"):
        # without padding tokens are dropped and counted all the same: that is refused
        o["capacity_factor"] = a.number("moe-expert-capacity-factor", becomes="options.capacity_factor")


def _stages(a: Arguments, out: Launch) -> None:
    """Layers of each chunk where they are not equal."""
    layers, pp = (out.run.get("model") or {}).get("layers") or 0, out.plan["pp"]
    per_chunk = a.whole("num-layers-per-virtual-pipeline-stage", becomes="plan.vpp", low=1)
    layout = a.text("pipeline-model-parallel-layout", becomes="options.stages")
    first = a.whole("decoder-first-pipeline-num-layers", becomes="options.stages")
    last = a.whole("decoder-last-pipeline-num-layers", becomes="options.stages")
    embedding = int(a.flag("account-for-embedding-in-pipeline-split", becomes="options.stages"))
    loss = int(a.flag("account-for-loss-in-pipeline-split", becomes="options.stages"))
    if per_chunk and pp > 1:
        # rounded up: with accounted embedding and loss the last chunks have fewer
        out.plan["vpp"] = max(1, (layers + embedding + loss) // (pp * per_chunk))
    vpp = out.plan.get("vpp", 1)
    if layout:
        chunks, ahead = _layout(layout, a)
        out.options["stages"] = chunks
        if len(chunks) % pp:
            raise InputError(
                f"{a.label('pipeline-model-parallel-layout')}: {len(chunks)} chunks do not divide over {pp} stages"
            )
        out.plan["vpp"] = len(chunks) // pp
        if ahead:
            out.options["mtp_before_head"] = ahead
    elif first is not None or last is not None:
        with located(a.label("decoder-first-pipeline-num-layers")):
            out.options["stages"] = list(stages_with_ends(layers, pp, vpp, first, last))
    elif embedding or loss:
        n = pp * vpp
        each = (layers + embedding + loss) // n
        stages = [each] * n
        stages[0], stages[-1] = stages[0] - embedding, stages[-1] - loss
        if sum(stages) != layers:
            raise InputError(
                f"{a.label('account-for-embedding-in-pipeline-split')}: {layers + embedding + loss} units do not "
                f"divide over {n} chunks"
            )
        out.options["stages"] = stages


def _layout(text: str, a: Arguments) -> tuple[list[int], int]:
    """Layers of each chunk of `Et*3|(tt|)*29m|L`, and the chunks between the prediction layers and the loss."""
    plain = text.replace(",", "").replace(" ", "")
    for _ in range(20):
        opened = re.sub(r"\(([^()]*)\)\*(\d{1,4})|(\w)\*(\d{1,4})", _repeat, plain)
        if opened == plain or len(opened) > 100_000:
            break
        plain = opened
    if not re.fullmatch(r"[EtmL|]+", plain):
        raise InputError(
            f"{a.label('pipeline-model-parallel-layout')} {text[:40]!r}: not of E, t, m, L and |; use such as "
            "Et|(tt|)*30L"
        )
    chunks = plain.split("|")
    with_m = [i for i, chunk in enumerate(chunks) if "m" in chunk]
    return [chunk.count("t") for chunk in chunks], len(chunks) - 1 - with_m[-1] if with_m else 0


def _repeat(match: re.Match[str]) -> str:
    return match[1] * int(match[2]) if match[2] else match[3] * int(match[4])


def _recompute(a: Arguments, out: Launch) -> None:
    kind = a.choice("recompute-granularity", table={"full": "full", "selective": "selective"}, becomes="recompute") or (
        "selective" if a.flag("recompute-activations", becomes="recompute") else "none"
    )
    if a.flag("checkpoint-activations", becomes="recompute"):
        kind = "full"
    method = a.choice(
        "recompute-method",
        "checkpoint-activations-method",
        table={"uniform": "uniform", "block": "block"},
        becomes="recompute",
    )
    layers = a.whole("recompute-num-layers", "checkpoint-num-layers", becomes="recompute", low=1)
    modules = a.raw("recompute-modules", becomes="options.recompute_modules")
    if kind == "selective" and modules is not None:
        names = ",".join(map(str, modules if isinstance(modules, list) else [modules])).split(",")
        kind = "selective" if "core_attn" in names else "none"
        out.options["recompute_modules"] = [n for n in names if n != "core_attn"]
    if kind == "full" and method == "block" and layers:
        out.run["recompute"] = {"kind": "full", "layers": layers * out.plan.get("vpp", 1)}
    else:
        out.run["recompute"] = kind
        if kind == "full" and method == "uniform" and (layers or 1) > 1:
            out.notes.append(f"full recomputation of every layer: chunks of {layers} layers keep less")
