"""The keys of a rollout case in a file: name, unit, meaning, other names. See data/rollouts/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from minglm.rl.modes import MODES
from sim.base.fields import Field, Section
from sim.base.units import parse
from sim.rollout.lengths import EXPLAINED
from sim.rollout.placement import FRAMEWORKS, PLACEMENTS
from sim.scenario.fields import PRICES

UNBOUNDED = 1e6  # a staleness bound that never binds

MODE_SPELLINGS = {
    "synchronous": "sync",
    "on_policy": "sync",
    "one_step": "one_step_off",
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
# Sections that a file may put its keys in; what they are called says nothing.
GROUPS = ("lengths", "rollout", "engine", "training", "trainer", "policy", "workload", "decode_rates", "requests_of")

_LEAST = 1e-9  # a measured figure is above 0
PUBLISHED = Section(
    "published",
    (
        Field("step_s", "time", "of a step", ("seconds", "step_seconds", "step"), low=_LEAST),
        Field(
            "rollout_s", "time", "of the rollout", ("rollout_seconds", "makespan", "makespan_s", "gen_s"), low=_LEAST
        ),
        Field("speedup", "ratio", "of trained tokens/s over `against`", ("speed_up", "ratio"), low=_LEAST),
        Field("rollout_speedup", "ratio", "of generated tokens/s over `against`", low=_LEAST),
        Field("gain", "ratio", "rollout_speedup less one", ("gain_percent",), low=_LEAST),
        Field("tail_share", "ratio", "of the rollout, until its last tenth has ended", ("tail",), low=_LEAST),
        Field("rollout_idle", "ratio", "of the rollout, engines without a request", low=_LEAST),
        Field("preemptions", "count", "requests of a step that a full cache puts back", low=_LEAST),
        Field("tokens_per_s", "count", "generated", ("throughput",), low=_LEAST),
        Field("tokens_per_s_per_chip", "count", "generated", ("tokens_per_s_chip",), low=_LEAST),
        Field("trained_tokens_per_s", "count", "", low=_LEAST),
    ),
)


def _published(value: object, label: str) -> dict[str, float]:
    """Figures by quantity; a bare one is seconds of a step."""
    return PUBLISHED.read(value if isinstance(value, Mapping) else {"step_s": value}, label)


def _staleness(value: Any, label: str) -> float:
    """Batches ahead, 0 or more; inf is `UNBOUNDED`."""
    if isinstance(value, str) and value.strip().lower() in ("inf", "infinite", "∞", "unbounded"):
        return UNBOUNDED
    bound = parse(value, "ratio", label, low=None)
    if bound < 0:
        raise InputError(f"{label}={bound:g}: staleness cannot be negative; give 0 (synchronous) or more")
    return bound


CASE = Section(
    "case",
    (
        Field("name", "text", "what it is called"),
        Field("question", "text", "what it asks"),
        Field("source", "text", "where the figures are printed"),
        Field("note", "text", "anything"),
        Field("assumed", "list", "inputs that the source does not give"),
        Field("version", "int", "1"),
        Field("kind", "text", "rollouts"),
        Field("mode", "text", "who waits for whom", choices=MODES, spellings=MODE_SPELLINGS),
        Field(
            "prompts_per_batch",
            "whole",
            "groups that make a training batch",
            ("prompts", "num_prompts", "rollout_batch_size", "train_batch_size", "batch", "batch_prompts"),
        ),
        Field(
            "requests",
            "whole",
            "trajectories of a batch: prompts_per_batch × samples_per_prompt",
            ("n_requests", "num_requests", "trajectories", "samples", "responses", "total_requests"),
        ),
        Field(
            "samples_per_prompt",
            "whole",
            "samples of a prompt (default 8; 1 when neither this nor prompts_per_batch is given)",
            ("group_size", "group", "n_samples_per_prompt", "n", "rollouts_per_prompt"),
        ),
        Field(
            "mean",
            "mean_length",
            "mean response, tokens",
            (
                "mean_length",
                "length_mean",
                "mean_tokens",
                "avg_length",
                "average_length",
                "mean_response",
                "mean_output",
                "mean_response_length",
                "mean_len",
                "output_mean",
            ),
        ),
        Field("median", "mean_length", "median response, tokens", ("median_length", "p50", "length_median")),
        Field(
            "max",
            "length",
            "longest response, tokens; must be at least the prompt (name it max_response where it need not)",
            ("max_length", "cap", "length_cap", "maximum", "max_tokens", "maximum_length", "max_len"),
            low=0,
        ),
        Field(
            "max_response",
            "length",
            "longest response, tokens",
            ("max_response_length", "rollout_max_response_len", "max_new_tokens", "max_output"),
            low=0,
        ),
        Field("max_context", "length", "prompt and response together", ("max_model_len", "context"), low=0),
        Field("sigma", "ratio", "spread of log length (default 1)", ("length_sigma", "std_log")),
        Field("cv", "ratio", "standard deviation over mean of the length"),
        Field("p75", "length", "percentile", low=0),
        Field("p90", "length", "percentile", ("p90_length",), low=0),
        Field("p95", "length", "percentile", ("p95_length",), low=0),
        Field("p99", "length", "percentile", ("p99_length",), low=0),
        Field(
            "lengths",
            "any",
            "a list of lengths, a list of lists (groups), or a trajectories.jsonl",
            ("length_file", "lengths_file", "trajectories_file", "length_values"),
        ),
        Field(
            "explained",
            "ratio",
            f"share of the variance of log length that the prompt explains (default {EXPLAINED})",
            ("explained_variance", "prompt_explained"),
            high=1.0,
        ),
        Field(
            "prompt",
            "length",
            "tokens of a prompt (default 0)",
            ("prompt_length", "prompt_tokens", "mean_prompt", "input", "input_length"),
            low=0,
        ),
        Field(
            "engines",
            "whole",
            "rollout instances",
            (
                "instances",
                "n_engines",
                "num_engines",
                "num_instances",
                "rollout_engines",
                "replicas",
                "rollout_instances",
            ),
        ),
        Field(
            "chips_per_engine",
            "whole",
            "chips of an instance",
            (
                "chips_each",
                "chips_per_instance",
                "gpus_per_engine",
                "gpus_per_instance",
                "instance_chips",
                "engine_chips",
                "npus_per_instance",
            ),
        ),
        Field("train_chips", "whole", "chips of the trainer", ("trainer_chips", "training_chips", "train_gpus"), low=0),
        Field(
            "chips",
            "whole",
            "all chips; with rollout_share it gives engines and train_chips",
            ("total_chips", "gpus", "npus"),
        ),
        Field("rollout_share", "ratio", "share of the chips that roll out", ("inference_share", "rollout_fraction")),
        Field("cluster", "any", "a name of data/clusters, or a chip", ("chip", "hardware", "gpu", "npu")),
        Field("model", "any", "a name of data/models, a path, or dimensions"),
        Field("precision", "text", "bf16, fp8, w8a8 …"),
        Field("kv", "text", "bf16 or fp8"),
        Field(
            "tp",
            "whole",
            "attention tensor parallelism of an instance",
            ("attention_tp", "tensor_parallel", "rollout_tp"),
            low=0,
        ),
        Field("drafts", "whole", "draft tokens by multi-token prediction", low=0),
        Field("accept_length", "ratio", "mean tokens of a decode step"),
        Field("stack", "text", "serving software"),
        Field("memory_share", "ratio", "share of the chip's memory that weights and cache may use"),
        Field(
            "decode",
            "any",
            "tokens/s of one request; or [[running, seconds per token], …]; or {running: tokens/s of the engine}",
            (
                "decode_rate",
                "decode_tokens_per_s",
                "decode_step_s",
                "decode_curve",
                "decode_tokens_per_second",
                "tokens_per_s_per_request",
                "decode_per_request",
            ),
        ),
        Field(
            "decode_half",
            "count",
            "requests at which a token takes twice as long as alone (with decode as one number; default: never)",
            ("b0", "batch_half", "half_batch"),
        ),
        Field(
            "decode_per_engine",
            "count",
            "most tokens/s of an engine (with decode as one number, in place of decode_half)",
            ("decode_max_tokens_per_s", "engine_tokens_per_s"),
        ),
        Field("decode_scale", "ratio", "all decode times multiplied by this"),
        Field("kv_slope", "time", "seconds per cached token in a step"),
        Field(
            "prefill",
            "count",
            "prefill tokens/s of an instance",
            ("prefill_rate", "prefill_tokens_per_s", "prefill_tokens_per_second"),
        ),
        Field("prefill_fixed", "time", "fixed seconds of a prefill", ("prefill_fixed_s",)),
        Field(
            "kv_limit",
            "count",
            "cached tokens of an instance",
            ("kv_tokens", "kv_capacity", "kv_limit_tokens", "cache_tokens", "kv_cache_tokens"),
        ),
        Field(
            "max_running",
            "whole",
            "requests that an instance runs at once",
            ("max_batch", "max_num_seqs", "max_concurrency_per_engine", "max_requests"),
        ),
        Field(
            "train",
            "time",
            "seconds of an update",
            ("train_s", "train_seconds", "train_time", "training_s", "update_s", "update_actor"),
        ),
        Field("train_tokens_per_s", "count", "of the whole trainer", ("train_rate",)),
        Field("train_fixed", "time", "fixed seconds of an update", ("train_fixed_s",)),
        Field("mfu", "ratio", "of the trainer, of bf16 peak (with model, cluster, train_chips)", ("train_mfu",)),
        Field("extra_forward", "ratio", "forward passes beside training, in forward passes"),
        Field(
            "weight_sync",
            "time",
            "seconds of a weight sync from trainer to engines",
            ("weight_sync_s", "weight_sync_seconds", "sync_s", "push", "push_s"),
        ),
        Field(
            "overhead", "time", "seconds of a step beside rollout, training and weight sync", ("overhead_s", "other_s")
        ),
        Field(
            "over_sampling",
            "ratio",
            "april: prompts submitted over prompts trained, at least 1",
            ("over_sampling_factor", "oversampling", "oversample", "over_sample"),
        ),
        Field("over_sampling_prompts", "whole", "the same as a count of prompts", ("over_sampling_batch_size",), low=0),
        Field(
            "max_staleness",
            "ratio",
            "async: batches started ahead of the one in training (η of AReaL), or inf",
            ("staleness", "eta", "staleness_threshold", "staleness_bound", "max_head_offpolicyness"),
            read_value=_staleness,
        ),
        Field(
            "weight_sync_interval",
            "whole",
            "glm5: updates between weight syncs",
            ("k", "update_weights_interval"),
            low=0,
        ),
        Field(
            "filter_staleness_above",
            "whole",
            "glm5: drop a group whose oldest token is more versions behind (τ)",
            ("tau", "version_gap", "max_version_gap"),
            low=0,
        ),
        Field("framework", "text", "whose habits hold where nothing is said", choices=tuple(FRAMEWORKS)),
        Field(
            "placement",
            "text",
            "which engine a sample goes to (default: the framework's, else its group's)",
            choices=PLACEMENTS,
        ),
        Field("max_concurrent", "whole", "prompts in flight at most", low=0),
        Field("filter_keep", "ratio", "share of groups that a dynamic filter keeps", ("keep_share",)),
        Field("parts", "whole", "async: updates per weight sync that start as groups come", low=0),
        Field("colocated", "bool", "rollout and training on the same chips", ("colocate",)),
        Field("interruptible", "bool", "weight syncs go into running requests", ("partial_rollout",)),
        Field("reuse_kv_cache", "bool", "caches survive weight syncs and aborts"),
        Field("strict", "bool", "async: wait for the oldest, so that max_staleness is a bound", ("strict_staleness",)),
        Field("steps", "whole", "steps to simulate", low=0),
        Field("warmup", "whole", "first steps left out", low=0),
        Field("seed", "int", "of everything random", ("random_seed",), low=0),
        Field(
            "published",
            "any",
            "what was measured: seconds of a step, or a mapping of step_s, rollout_s, speedup, gain, tail_share, "
            "rollout_idle, preemptions, tokens_per_s, tokens_per_s_per_chip",
            ("measured",),
            read_value=_published,
        ),
        Field("published_seconds", "time", "measured seconds of a step", ("published_step_s", "measured_seconds")),
        Field("published_speedup", "ratio", "measured speed-up over `against`", ("measured_speedup",)),
        Field("against", "any", "keys of the baseline that differ (default: mode sync)", ("baseline",)),
        Field("prices", "mapping", "as in other scenarios: rent_usd_per_hour …", section=PRICES),
    ),
    example="{mode: sync, prompts_per_batch: 64, samples_per_prompt: 8, mean: 4000, max: 16K, engines: 8}",
    listed_in=("rollouts", "README.md"),
)
