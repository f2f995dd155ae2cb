"""A rollout case from a file: whatever keys a source gives, under the names that people use. Schema: data/rollouts/README.md.

case = read("case.yaml")            # → Given: .case (sim.rollout.simulate.Case), .published, .against, .notes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from minglm.rl.policy import MODES, Policy
from sim.base.documents import read_document
from sim.base.units import parse, whole
from sim.rollout.case import Case
from sim.rollout.engine import DecodeCurve
from sim.rollout.lengths import EXPLAINED, LONGEST, Lengths, from_rows, read_log

# key → (type, meaning). count and time accept units ('16K', '90 min').
KEYS: dict[str, tuple[str, str]] = {
    "name": ("text", "what it is called"),
    "question": ("text", "what it asks"),
    "source": ("text", "where the figures are printed"),
    "note": ("text", "anything"),
    "assumed": ("list", "inputs that the source does not give"),
    "version": ("any", "1"),
    "kind": ("text", "rollouts"),
    "mode": ("text", ", ".join(MODES)),
    "prompts_per_batch": ("count", "groups that make a training batch"),
    "requests": ("count", "trajectories of a batch: prompts_per_batch × samples_per_prompt"),
    "samples_per_prompt": (
        "count",
        "samples of a prompt (default 8; 1 when neither this nor prompts_per_batch is given)",
    ),
    "mean": ("count", "mean response, tokens"),
    "median": ("count", "median response, tokens"),
    "max": ("count", "longest response, tokens; must be at least the prompt (name it max_response where it need not)"),
    "max_response": ("count", "longest response, tokens"),
    "max_context": ("count", "prompt and response together"),
    "sigma": ("ratio", "spread of log length (default 1)"),
    "cv": ("ratio", "standard deviation over mean of the length"),
    "p75": ("count", "percentile"),
    "p90": ("count", "percentile"),
    "p95": ("count", "percentile"),
    "p99": ("count", "percentile"),
    "lengths": ("any", "a list of lengths, a list of lists (groups), or a trajectories.jsonl"),
    "explained": ("ratio", f"share of the variance of log length that the prompt explains (default {EXPLAINED})"),
    "prompt": ("count", "tokens of a prompt (default 0)"),
    "engines": ("count", "rollout instances"),
    "chips_per_engine": ("count", "chips of an instance"),
    "train_chips": ("count", "chips of the trainer"),
    "chips": ("count", "all chips; with rollout_share it gives engines and train_chips"),
    "rollout_share": ("ratio", "share of the chips that roll out"),
    "cluster": ("any", "a name of data/clusters, or a chip"),
    "model": ("any", "a name of data/models, a path, or dimensions"),
    "precision": ("text", "bf16, fp8, w8a8 …"),
    "kv": ("text", "bf16 or fp8"),
    "tp": ("count", "attention tensor parallelism of an instance"),
    "drafts": ("count", "draft tokens by multi-token prediction"),
    "accept_length": ("ratio", "mean tokens of a decode step"),
    "stack": ("text", "serving software"),
    "memory_share": ("ratio", "share of the chip's memory that weights and cache may use"),
    "decode": (
        "any",
        "tokens/s of one request; or [[running, seconds per token], …]; or {running: tokens/s of the engine}",
    ),
    "decode_half": (
        "count",
        "requests at which a token takes twice as long as alone (with decode as one number; default: never)",
    ),
    "decode_per_engine": ("count", "most tokens/s of an engine (with decode as one number, in place of decode_half)"),
    "decode_scale": ("ratio", "all decode times multiplied by this"),
    "kv_slope": ("any", "seconds per cached token in a step"),
    "prefill": ("count", "prefill tokens/s of an instance"),
    "prefill_fixed": ("time", "fixed seconds of a prefill"),
    "kv_limit": ("count", "cached tokens of an instance"),
    "max_running": ("count", "requests that an instance runs at once"),
    "train": ("time", "seconds of an update"),
    "train_tokens_per_s": ("count", "of the whole trainer"),
    "train_fixed": ("time", "fixed seconds of an update"),
    "mfu": ("ratio", "of the trainer, of bf16 peak (with model, cluster, train_chips)"),
    "extra_forward": ("ratio", "forward passes beside training, in forward passes"),
    "weight_sync": ("time", "seconds of a weight sync from trainer to engines"),
    "overhead": ("time", "seconds of a step beside rollout, training and weight sync"),
    "over_sampling": ("ratio", "april: prompts submitted over prompts trained, at least 1"),
    "over_sampling_prompts": ("count", "the same as a count of prompts"),
    "max_staleness": ("any", "async: batches started ahead of the one in training (η of AReaL)"),
    "weight_sync_interval": ("count", "glm5: updates between weight syncs"),
    "filter_staleness_above": ("count", "glm5: drop a group whose oldest token is more versions behind (τ)"),
    "max_concurrent": ("count", "prompts in flight at most"),
    "filter_keep": ("ratio", "share of groups that a dynamic filter keeps"),
    "parts": ("count", "async: updates per weight sync that start as groups come"),
    "colocated": ("bool", "rollout and training on the same chips"),
    "interruptible": ("bool", "weight syncs go into running requests"),
    "reuse_kv_cache": ("bool", "caches survive weight syncs and aborts"),
    "strict": ("bool", "async: wait for the oldest, so that max_staleness is a bound"),
    "steps": ("count", "steps to simulate"),
    "warmup": ("count", "first steps left out"),
    "seed": ("any", "whole number"),
    "published": (
        "any",
        "what was measured: a mapping of " + "step_s, rollout_s, speedup, gain, tokens_per_s, tokens_per_s_per_chip",
    ),
    "published_seconds": ("time", "measured seconds of a step"),
    "published_speedup": ("ratio", "measured speed-up over `against`"),
    "against": ("any", "keys of the baseline that differ (default: mode sync)"),
    "prices": ("any", "as in other scenarios: rent_usd_per_hour …"),
}
WORDS = {
    "prompts": "prompts_per_batch",
    "num_prompts": "prompts_per_batch",
    "rollout_batch_size": "prompts_per_batch",
    "train_batch_size": "prompts_per_batch",
    "batch": "prompts_per_batch",
    "batch_prompts": "prompts_per_batch",
    "n_requests": "requests",
    "num_requests": "requests",
    "trajectories": "requests",
    "samples": "requests",
    "responses": "requests",
    "total_requests": "requests",
    "group_size": "samples_per_prompt",
    "group": "samples_per_prompt",
    "n_samples_per_prompt": "samples_per_prompt",
    "n": "samples_per_prompt",
    "rollouts_per_prompt": "samples_per_prompt",
    "mean_length": "mean",
    "length_mean": "mean",
    "mean_tokens": "mean",
    "avg_length": "mean",
    "average_length": "mean",
    "mean_response": "mean",
    "mean_output": "mean",
    "mean_response_length": "mean",
    "mean_len": "mean",
    "output_mean": "mean",
    "median_length": "median",
    "p50": "median",
    "length_median": "median",
    "max_length": "max",
    "cap": "max",
    "length_cap": "max",
    "maximum": "max",
    "max_tokens": "max",
    "maximum_length": "max",
    "max_len": "max",
    "max_response_length": "max_response",
    "rollout_max_response_len": "max_response",
    "max_new_tokens": "max_response",
    "max_output": "max_response",
    "max_model_len": "max_context",
    "context": "max_context",
    "p90_length": "p90",
    "p95_length": "p95",
    "p99_length": "p99",
    "length_file": "lengths",
    "lengths_file": "lengths",
    "trajectories_file": "lengths",
    "length_values": "lengths",
    "length_sigma": "sigma",
    "std_log": "sigma",
    "prompt_length": "prompt",
    "prompt_tokens": "prompt",
    "mean_prompt": "prompt",
    "input": "prompt",
    "input_length": "prompt",
    "explained_variance": "explained",
    "prompt_explained": "explained",
    "instances": "engines",
    "n_engines": "engines",
    "num_engines": "engines",
    "num_instances": "engines",
    "rollout_engines": "engines",
    "replicas": "engines",
    "rollout_instances": "engines",
    "chips_each": "chips_per_engine",
    "chips_per_instance": "chips_per_engine",
    "gpus_per_engine": "chips_per_engine",
    "gpus_per_instance": "chips_per_engine",
    "instance_chips": "chips_per_engine",
    "engine_chips": "chips_per_engine",
    "npus_per_instance": "chips_per_engine",
    "trainer_chips": "train_chips",
    "training_chips": "train_chips",
    "train_gpus": "train_chips",
    "total_chips": "chips",
    "gpus": "chips",
    "npus": "chips",
    "inference_share": "rollout_share",
    "rollout_fraction": "rollout_share",
    "chip": "cluster",
    "hardware": "cluster",
    "gpu": "cluster",
    "npu": "cluster",
    "attention_tp": "tp",
    "tensor_parallel": "tp",
    "rollout_tp": "tp",
    "decode_rate": "decode",
    "decode_tokens_per_s": "decode",
    "decode_step_s": "decode",
    "decode_curve": "decode",
    "decode_tokens_per_second": "decode",
    "tokens_per_s_per_request": "decode",
    "decode_per_request": "decode",
    "b0": "decode_half",
    "batch_half": "decode_half",
    "half_batch": "decode_half",
    "decode_max_tokens_per_s": "decode_per_engine",
    "engine_tokens_per_s": "decode_per_engine",
    "prefill_rate": "prefill",
    "prefill_tokens_per_s": "prefill",
    "prefill_tokens_per_second": "prefill",
    "prefill_fixed_s": "prefill_fixed",
    "kv_tokens": "kv_limit",
    "kv_capacity": "kv_limit",
    "kv_limit_tokens": "kv_limit",
    "cache_tokens": "kv_limit",
    "kv_cache_tokens": "kv_limit",
    "max_batch": "max_running",
    "max_num_seqs": "max_running",
    "max_concurrency_per_engine": "max_running",
    "max_requests": "max_running",
    "train_s": "train",
    "train_seconds": "train",
    "train_time": "train",
    "training_s": "train",
    "update_s": "train",
    "update_actor": "train",
    "train_rate": "train_tokens_per_s",
    "train_fixed_s": "train_fixed",
    "train_mfu": "mfu",
    "weight_sync_s": "weight_sync",
    "weight_sync_seconds": "weight_sync",
    "sync_s": "weight_sync",
    "overhead_s": "overhead",
    "other_s": "overhead",
    "over_sampling_factor": "over_sampling",
    "oversampling": "over_sampling",
    "oversample": "over_sampling",
    "over_sample": "over_sampling",
    "over_sampling_batch_size": "over_sampling_prompts",
    "staleness": "max_staleness",
    "eta": "max_staleness",
    "staleness_threshold": "max_staleness",
    "staleness_bound": "max_staleness",
    "max_head_offpolicyness": "max_staleness",
    "k": "weight_sync_interval",
    "update_weights_interval": "weight_sync_interval",
    "tau": "filter_staleness_above",
    "version_gap": "filter_staleness_above",
    "max_version_gap": "filter_staleness_above",
    "keep_share": "filter_keep",
    "colocate": "colocated",
    "partial_rollout": "interruptible",
    "strict_staleness": "strict",
    "measured": "published",
    "published_step_s": "published_seconds",
    "measured_seconds": "published_seconds",
    "measured_speedup": "published_speedup",
    "baseline": "against",
    "random_seed": "seed",
}
MODE_WORDS = {
    "synchronous": "sync",
    "on_policy": "sync",
    "one_step": "one_step_off",
    "one_step_off": "one_step_off",
    "one_step_ahead": "one_step_off",
    "one_step_off_policy": "one_step_off",
    "fully_async": "async",
    "asynchronous": "async",
    "areal": "async",
    "partial": "april",
    "partial_rollout": "april",
    "active_partial_rollouts": "april",
    "glm": "glm5",
    "glm_5": "glm5",
    "slime": "april",
}
SECTIONS = ("lengths", "rollout", "engine", "training", "trainer", "policy", "workload", "decode_rates", "requests_of")
QUANTITIES = (
    "step_s",
    "rollout_s",
    "speedup",
    "rollout_speedup",
    "gain",
    "tokens_per_s",
    "tokens_per_s_per_chip",
    "trained_tokens_per_s",
    "makespan_s",
)
_QUANTITY_WORDS = {
    "seconds": "step_s",
    "step_seconds": "step_s",
    "step": "step_s",
    "rollout_seconds": "rollout_s",
    "makespan": "rollout_s",
    "makespan_s": "rollout_s",
    "gen_s": "rollout_s",
    "speed_up": "speedup",
    "ratio": "speedup",
    "throughput": "tokens_per_s",
    "gain_percent": "gain",
    "tokens_per_s_chip": "tokens_per_s_per_chip",
}


@dataclass(frozen=True)
class Given:
    """A case that was read, and what to compare it with."""

    case: Case
    values: Mapping
    published: Mapping[str, float] = field(default_factory=dict)
    against: Mapping | None = None
    notes: tuple[str, ...] = ()


def canonical(given: object, where: str = "case") -> dict:
    """The same mapping under our names; sections are opened up.

    Raises:
        InputError: an unknown key (with the nearest), or a key twice.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"{where}: must be a mapping of keys such as mode, prompts, group, mean, max, engines; see {datafiles.where('rollouts', 'README.md')}"
        )
    out: dict = {}
    for key, value in given.items():
        word = str(key).strip().lower().replace("-", "_").replace(" ", "_")
        if word in SECTIONS and isinstance(value, Mapping):
            items = canonical(value, f"{where}: {key}").items()
        else:
            word = word if word in KEYS else WORDS.get(word, word)
            if word not in KEYS:
                raise InputError(
                    f"{where}: unknown key {str(key)[:40]!r}{nearest(word, [*KEYS, *WORDS])}; see {datafiles.where('rollouts', 'README.md')} for the list"
                )
            items = ((word, value),)
        for name, inner in items:
            if inner is None:
                continue
            if name in out:
                raise InputError(f"{where}: {name!r} is given twice (once as {str(key)!r}); keep one")
            out[name] = inner
    return out


def load(given: str | Path | Mapping) -> dict:
    """Canonical values of a mapping, a file, or a name in data/scenarios (rollouts_*)."""
    if isinstance(given, Mapping):
        return canonical(given)
    path = Path(given)
    if not path.suffix and not path.exists():
        places = [
            datafiles.data("scenarios") / f"{n}{s}"
            for n in (str(given), f"rollouts_{given}")
            for s in (".yaml", ".json")
        ]
        found = next((p for p in places if p.exists()), None)
        if found is None:
            names = [n for n in datafiles.catalogue("scenarios", ".yaml") if n.startswith("rollouts_")]
            raise InputError(
                f"rollout case {str(given)[:60]!r}: no such file or name{nearest(str(given), names)}; known: {', '.join(names)}"
            )
        path = found
    document = read_document(path)
    values = canonical(document, str(path))
    values.setdefault("name", path.stem)
    if isinstance(values.get("lengths"), str):
        beside = path.parent / values["lengths"]
        values["lengths"] = str(beside if beside.exists() else values["lengths"])
    return values


def _check(values: Mapping) -> dict:
    """Values in SI units and of the right type."""
    out = {}
    for key, value in values.items():
        kind = KEYS[key][0]
        if kind == "count":
            value = (
                whole(value, key, low=0)
                if key
                not in (
                    "decode_per_engine",
                    "train_tokens_per_s",
                    "prefill",
                    "kv_limit",
                    "mean",
                    "median",
                    "decode_half",
                )
                else parse(value, "count", key)
            )
        elif kind in ("time", "ratio"):
            value = parse(value, kind, key)
        elif kind == "bool" and not isinstance(value, bool):
            raise InputError(f"{key}={str(value)[:30]!r}: must be true or false")
        elif kind == "text":
            value = str(value)[:400]
        out[key] = value
    return out


def read(given: str | Path | Mapping, **changes) -> Given:
    """A case, ready to simulate.

    Raises:
        InputError: one line with what was given, the rule and the remedy.
    """
    values = canonical({**load(given), **changes}) if changes else load(given)
    v = _check(values)
    notes: list[str] = []
    prompts, group = _batch(v, notes)
    lengths = _lengths(v, notes)
    engines, each, train_chips, colocated, mode = _chips(v, notes)
    curve, prefill_s, kv_limit = _rates(v, lengths, each, notes)
    policy = _policy(v, mode, prompts)
    per_token, fixed = _training(v, train_chips if not colocated else engines * each, lengths)
    big = prompts * group > 50_000
    steps = v.get("steps", 3 if big else 4 if mode == "sync" else 10)
    case = Case(
        policy,
        group,
        lengths,
        engines,
        curve,
        prefill_s,
        v.get("prefill_fixed", 0.0),
        kv_limit,
        v.get("max_running"),
        per_token,
        fixed,
        v.get("weight_sync", 0.0),
        v.get("overhead", 0.0),
        v.get("parts", 1),
        v.get("filter_keep", 1.0),
        colocated,
        v.get("interruptible", True),
        v.get("reuse_kv_cache", False),
        v.get("strict", True),
        steps,
        v.get("warmup", min(steps - 1, 1 if big or mode == "sync" else 3)),
        _seed(v),
        each,
        0 if colocated else train_chips,
        name=v.get("name", "rollouts"),
    )
    if v.get("max_running") == 0:
        raise InputError("max_running=0: an instance must run at least 1 request")
    published = _published(v)
    against = v.get("against")
    if against is not None and not isinstance(against, Mapping):
        against = {"mode": against}
    if against is None and {"speedup", "rollout_speedup", "gain"} & set(published):
        against = {"mode": "sync"}
    return Given(
        case.check(), values, published, canonical(against, "against") if against is not None else None, tuple(notes)
    )


def baseline(given: Given) -> Given:
    """The case that a speed-up is measured against."""
    values = {
        k: x
        for k, x in given.values.items()
        if k not in ("published", "published_seconds", "published_speedup", "against")
    }
    over = dict(given.against or {"mode": "sync"})
    if "mode" in over:
        for key in (
            "over_sampling",
            "over_sampling_prompts",
            "max_staleness",
            "weight_sync_interval",
            "filter_staleness_above",
            "parts",
            "interruptible",
        ):
            values.pop(key, None)
    return read({**values, **over})


def _batch(v: Mapping, notes: list[str]) -> tuple[int, int]:
    prompts, group, requests = v.get("prompts_per_batch"), v.get("samples_per_prompt"), v.get("requests")
    for name, value in (("prompts_per_batch", prompts), ("samples_per_prompt", group), ("requests", requests)):
        if value == 0:
            raise InputError(f"{name}=0: must be at least 1")
    if group is None:
        group = (
            requests // prompts
            if prompts and requests and requests % prompts == 0
            else 8
            if prompts or requests and requests % 8 == 0
            else 1
        )
        if not (prompts and requests):
            notes.append(f"group of {group} samples assumed")
    if prompts is None:
        if requests is None:
            raise InputError(
                "case: neither prompts_per_batch nor requests is given; give prompts_per_batch and samples_per_prompt"
            )
        if requests % group:
            raise InputError(
                f"requests={requests}: must be a multiple of samples_per_prompt={group}; give for example {requests // group * group or group}"
            )
        prompts = requests // group
    elif requests is not None and requests != prompts * group:
        raise InputError(
            f"requests={requests}: prompts_per_batch × samples_per_prompt is {prompts} × {group} = {prompts * group}; leave one out"
        )
    if prompts * group > 20_000_000:
        raise InputError(
            f"requests={prompts * group:,}: more than 20,000,000 trajectories a step; simulate a part of the cluster"
        )
    return prompts, group


def _lengths(v: Mapping, notes: list[str]) -> Lengths:
    prompt = v.get("prompt", 0)
    cap = v.get("max_response", v.get("max"))
    if "max" in v and v["max"] < prompt:
        raise InputError(
            f"max={v['max']:,}: the length cap is smaller than the prompt of {prompt:,} tokens; raise it, or name it max_response if it is for the response alone"
        )
    if "max_context" in v:
        if v["max_context"] <= prompt:
            raise InputError(
                f"max_context={v['max_context']:,}: the length cap is not above the prompt of {prompt:,} tokens; raise it or shorten the prompt"
            )
        cap = min(cap or LONGEST, v["max_context"] - prompt)
    cap = LONGEST if cap is None else cap
    if not 1 <= cap <= LONGEST:
        raise InputError(f"max={cap}: must be from 1 to {LONGEST:,} tokens")
    explained = v.get("explained", EXPLAINED)
    if explained > 1:
        raise InputError(f"explained={explained:g}: a share of the variance, at most 1")
    raw = v.get("lengths")
    if raw is not None:
        if isinstance(raw, str):
            return from_rows(read_log(raw), None if cap == LONGEST else cap)
        if isinstance(raw, list) and raw and all(isinstance(g, list) and g for g in raw):
            groups = tuple(tuple(min(cap, whole(x, "lengths", 1, LONGEST)) for x in g) for g in raw)
            return Lengths(cap=cap, prompt=prompt, groups=groups)
        if isinstance(raw, list):
            return Lengths.measured(
                [parse(x, "count", "lengths", low=1, high=LONGEST) for x in raw], cap, explained, prompt
            )
        raise InputError(
            f"lengths={str(raw)[:40]!r}: give a list of token counts, a list of groups, or the path of a trajectories.jsonl"
        )
    some = [(int(k[1:]) / 100, v[k]) for k in ("p99", "p95", "p90", "p75") if k in v]
    sigma = v.get("sigma")
    if sigma is None and "cv" in v:
        import math

        sigma = math.sqrt(math.log(1 + v["cv"] ** 2))
    mean, median = v.get("mean"), v.get("median")
    if mean is None and median is None and len(some) >= 1 and "max" not in v and sigma is None:
        sigma = None
    if mean is None and median is None and some:
        share, tokens = some[0]
        from statistics import NormalDist

        from sim.rollout.lengths import SIGMA

        s = SIGMA if sigma is None else sigma
        import math

        if len(some) > 1:
            (p1, x1), (p2, x2) = some[0], some[-1]
            s = math.log(x1 / x2) / (NormalDist().inv_cdf(p1) - NormalDist().inv_cdf(p2)) if x1 > x2 > 0 else -1
            if s < 0:
                raise InputError("lengths: a higher percentile must be longer; check p90, p95 and p99")
        else:
            notes.append(f"sigma of log length {s:g} assumed")
        return Lengths.lognormal(
            median=max(1.0, tokens / math.exp(s * NormalDist().inv_cdf(share))),
            sigma=s,
            cap=cap,
            explained=explained,
            prompt=prompt,
        )
    if sigma is None and not some and not (mean is not None and median is not None):
        from sim.rollout.lengths import SIGMA

        notes.append(f"sigma of log length {SIGMA:g} assumed")
    return Lengths.lognormal(mean, cap, sigma, some[0] if some and sigma is None else None, median, explained, prompt)


def _chips(v: Mapping, notes: list[str]) -> tuple[int, int, int, bool, str]:
    mode = str(v.get("mode", "sync")).strip().lower().replace("-", "_").replace(" ", "_")
    mode = MODE_WORDS.get(mode, mode)
    if mode not in MODES:
        raise InputError(
            f"mode {str(v.get('mode'))[:30]!r}: not one of {', '.join(MODES)}{nearest(mode, [*MODES, *MODE_WORDS])}"
        )
    overlapped = mode in ("one_step_off", "async", "glm5")
    chips, each = v.get("chips"), v.get("chips_per_engine")
    for name in ("chips", "chips_per_engine", "engines"):
        if v.get(name) == 0:
            raise InputError(
                f"{name}=0: at least 1 is needed; give the number of rollout {'instances' if name == 'engines' else 'chips'}"
            )
    engines, train = v.get("engines"), v.get("train_chips")
    colocated = v.get("colocated", train is None and not overlapped and "rollout_share" not in v)
    if each is None:
        each = 1 if chips is None or not engines else max(1, (chips if colocated else chips - (train or 0)) // engines)
        if chips is None:
            notes.append("1 chip an instance assumed")
    if engines is None:
        if chips is None:
            raise InputError(
                "case: neither engines nor chips is given; give engines (rollout instances) and chips_per_engine"
            )
        share = v.get("rollout_share", 1.0 if colocated else 0.5)
        if not 0 < share <= 1:
            raise InputError(f"rollout_share={share:g}: must be above 0 and at most 1")
        engines = int(chips * share if train is None else chips - train) // each
        if engines < 1:
            raise InputError(
                f"chips={chips}: not enough for one instance of {each} chips; give more chips or fewer chips_per_engine"
            )
    if engines > 1_000_000:
        raise InputError(f"engines={engines:,}: more than 1,000,000; check the number")
    if train is None:
        train = 0 if colocated else max(0, (chips or engines * each) - engines * each)
    return engines, each, train, colocated, mode


def _rates(v: Mapping, lengths: Lengths, each: int, notes: list[str]) -> tuple[DecodeCurve, float, float | None]:
    prefill_s = 1.0 / v["prefill"] if v.get("prefill") else 0.0
    kv_limit = v.get("kv_limit")
    given = v.get("decode")
    if given is not None:
        curve = _curve(given, v)
    else:
        if "cluster" not in v or "model" not in v:
            raise InputError("case: no decode rate; give decode (tokens/s of a request), or a chip and a model")
        from sim.rollout.rates import engine_rates

        rates = engine_rates(
            v["model"],
            v["cluster"],
            each,
            lengths.mean(),
            lengths.prompt or 256,
            {
                "precision": v.get("precision"),
                "kv": v.get("kv"),
                "attention_tp": v.get("tp"),
                "drafts": v.get("drafts"),
                "accept_length": v.get("accept_length"),
                "stack": v.get("stack"),
                "memory_share": v.get("memory_share"),
            },
        )
        curve = rates.curve
        prefill_s = prefill_s or rates.prefill_s_per_token
        kv_limit = kv_limit or rates.kv_limit
        notes.append(f"rates of {rates.describe}")
    scale = v.get("decode_scale", 1.0)
    if not scale > 0:
        raise InputError(f"decode_scale={scale:g}: must be above 0")
    return curve.times(scale) if scale != 1.0 else curve, prefill_s, kv_limit


def _curve(given: object, v: Mapping) -> DecodeCurve:
    slope = parse(v["kv_slope"], "time", "kv_slope") if "kv_slope" in v else 0.0
    slopes = ((1.0, slope),) if slope else ()
    if isinstance(given, Mapping):
        pairs = sorted(
            (float(whole(b, "decode", 1, 10**6)), parse(r, "count", "decode", low=1e-9)) for b, r in given.items()
        )
        return DecodeCurve(tuple((b, b / r) for b, r in pairs), slopes)
    if isinstance(given, list):
        try:
            pairs = sorted(
                (parse(b, "count", "decode", low=1e-9), parse(s, "time", "decode", low=1e-12)) for b, s in given
            )
        except (TypeError, ValueError):
            raise InputError(f"decode={str(given)[:40]!r}: give [[requests running, seconds per token], …]") from None
        return DecodeCurve(tuple(pairs), slopes)
    rate = parse(given, "count", "decode", low=1e-9)
    alone = 1.0 / rate
    half = v.get("decode_half")
    if half is None and v.get("decode_per_engine"):
        half = max(1e-6, v["decode_per_engine"] * alone)  # b / (alone (1 + b/half)) → half / alone for a large batch
    if half is None:
        return DecodeCurve(((1.0, alone),), slopes)
    if not half > 0:
        raise InputError(f"decode_half={half:g}: must be above 0")
    return DecodeCurve(((1.0, alone), (1025.0, alone * (1.0 + 1024.0 / half))), slopes)


def _policy(v: Mapping, mode: str, prompts: int) -> Policy:
    factor, count = v.get("over_sampling"), v.get("over_sampling_prompts")
    if factor is not None and not 1 <= factor <= 1000:
        raise InputError(
            f"over_sampling={factor:g}: prompts submitted over prompts trained, so at least 1 (and at most 1000)"
        )
    if count is None and factor is not None:
        count = round(factor * prompts)
    if mode == "april" and count is None:
        count = 2 * prompts
    if mode != "april":  # only april aborts a surplus: elsewhere the key has nothing to say
        count = None
    if v.get("max_staleness") is None:
        max_staleness = 1.0
    elif isinstance(v["max_staleness"], str) and v["max_staleness"].strip().lower() in (
        "inf",
        "infinite",
        "∞",
        "unbounded",
    ):
        max_staleness = 1e6
    else:
        max_staleness = parse(v["max_staleness"], "ratio", "max_staleness", low=None)
        if max_staleness < 0:
            raise InputError(
                f"max_staleness={max_staleness:g}: staleness cannot be negative; give 0 (synchronous) or more"
            )
    return Policy(
        mode,
        prompts,
        count,
        v.get("max_concurrent"),
        max_staleness,
        v.get("weight_sync_interval", 1),
        v.get("filter_staleness_above"),
    )


def _training(v: Mapping, chips: int, lengths: Lengths) -> tuple[float, float]:
    """(seconds per token, fixed seconds) of an update."""
    if "train" in v:
        return 0.0, v["train"] + v.get("train_fixed", 0.0)
    if v.get("train_tokens_per_s"):
        return 1.0 / v["train_tokens_per_s"], v.get("train_fixed", 0.0)
    if "mfu" in v:
        if not 0 < v["mfu"] <= 1 or "model" not in v or "cluster" not in v or not chips:
            raise InputError(
                f"mfu={v['mfu']:g}: must be above 0 and at most 1, and needs model, cluster and train_chips (or colocated)"
            )
        from sim.rollout.rates import train_seconds_per_token

        return train_seconds_per_token(
            v["model"], v["cluster"], chips, v["mfu"], lengths.mean() + lengths.prompt, v.get("extra_forward", 0.0)
        ), v.get("train_fixed", 0.0)
    return 0.0, v.get("train_fixed", 0.0)


def _seed(v: Mapping) -> int:
    seed = v.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed={seed!r}: must be a whole number")
    return seed


def _published(v: Mapping) -> dict[str, float]:
    raw = v.get("published")
    out: dict[str, float] = {}
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            word = str(key).strip().lower().replace("-", "_")
            word = _QUANTITY_WORDS.get(word, word)
            if word not in QUANTITIES:
                raise InputError(
                    f"published: unknown quantity {str(key)[:30]!r}{nearest(word, QUANTITIES)}; known: {', '.join(QUANTITIES)}"
                )
            out[word] = parse(
                value,
                "time"
                if word.endswith("step_s") or word == "rollout_s"
                else "ratio"
                if word in ("gain", "speedup", "rollout_speedup")
                else "count",
                f"published {word}",
                low=1e-9,
            )
    elif raw is not None:
        out["step_s"] = parse(raw, "time", "published", low=1e-9)
    if "published_seconds" in v:
        out["step_s"] = v["published_seconds"]
    if "published_speedup" in v:
        out["speedup"] = v["published_speedup"]
    if any(not x > 0 for x in out.values()):
        raise InputError("published: a measured figure must be above 0")
    return out
