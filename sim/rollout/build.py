"""From the values of a rollout case to the case that is simulated: batch, layout, policy, lengths, speeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minglm.errors import InputError
from minglm.rl.modes import OVERLAPPED, Policy
from sim.rollout.build_lengths import build_lengths
from sim.rollout.build_rates import build_engine_speed, update_seconds
from sim.rollout.case import Case
from sim.rollout.placement import FRAMEWORKS

MAX_TRAJECTORIES = 20_000_000  # of a step
MAX_ENGINES = 1_000_000
LARGE = 50_000  # trajectories of a step from which fewer steps are simulated


def build_case(values: Mapping[str, Any], notes: list[str]) -> Case:
    """The case that the values of `sim.rollout.fields.CASE`, read, describe; what is assumed is added to `notes`.

    Raises:
        InputError: figures that do not agree with each other, or too few of them.
    """
    mode = values.get("mode", "sync")
    prompts, samples = _batch(values, notes)
    lengths = build_lengths(values, notes)
    layout = _layout(values, mode, notes)
    speed = build_engine_speed(values, lengths, layout.chips_per_engine, layout.colocated, notes)
    train_s_per_token, train_fixed_s = update_seconds(values, layout.trainer_chips, lengths)
    large = prompts * samples > LARGE
    steps = values.get("steps", 3 if large else 4 if mode == "sync" else 10)
    return Case(
        policy=_policy(values, mode, prompts),
        samples_per_prompt=samples,
        lengths=lengths,
        engines=layout.engines,
        curve=speed.curve,
        prefill_s_per_token=speed.prefill_s_per_token,
        prefill_fixed_s=values.get("prefill_fixed", 0.0),
        kv_limit=speed.kv_limit,
        max_running=values.get("max_running"),
        train_s_per_token=train_s_per_token,
        train_fixed_s=train_fixed_s,
        weight_sync_s=values.get("weight_sync", 0.0),
        overhead_s=values.get("overhead", 0.0),
        parts=values.get("parts", 1),
        filter_keep=values.get("filter_keep", 1.0),
        colocated=layout.colocated,
        interruptible=values.get("interruptible", True),
        reuse_kv_cache=values.get("reuse_kv_cache", False),
        strict=values.get("strict", True),
        steps=steps,
        warmup=values.get("warmup", min(steps - 1, 1 if large or mode == "sync" else 3)),
        seed=values.get("seed", 0),
        chips_per_engine=layout.chips_per_engine,
        train_chips=0 if layout.colocated else layout.train_chips,
        placement=_placement(values, notes),
        name=values.get("name", "rollouts"),
    ).check()


def _placement(values: Mapping[str, Any], notes: list[str]) -> str:
    """As given, as the framework does it, or by group."""
    framework = FRAMEWORKS.get(values.get("framework", ""))
    if framework and "placement" not in values:
        notes.append(f"placement {framework.placement} ({framework.source})")
    return values.get("placement", framework.placement if framework else "group")


def _batch(values: Mapping[str, Any], notes: list[str]) -> tuple[int, int]:
    """(prompts of a batch, samples of a prompt) from any two of prompts, samples and requests, or from one."""
    prompts, samples = values.get("prompts_per_batch"), values.get("samples_per_prompt")
    requests = values.get("requests")
    if samples is None:
        if prompts and requests and requests % prompts == 0:
            samples = requests // prompts
        else:
            samples = 8 if prompts or (requests and requests % 8 == 0) else 1
        if not (prompts and requests):
            notes.append(f"group of {samples} samples assumed")
    if prompts is None:
        if requests is None:
            raise InputError(
                "neither prompts_per_batch nor requests is given; give prompts_per_batch and samples_per_prompt"
            )
        if requests % samples:
            near = requests // samples * samples or samples
            raise InputError(
                f"requests={requests}: must be a multiple of samples_per_prompt={samples}; give for example {near}"
            )
        prompts = requests // samples
    elif requests is not None and requests != prompts * samples:
        raise InputError(
            f"requests={requests}: prompts_per_batch × samples_per_prompt is {prompts} × {samples} = "
            f"{prompts * samples}; leave one out"
        )
    if prompts * samples > MAX_TRAJECTORIES:
        raise InputError(
            f"requests={prompts * samples:,}: more than {MAX_TRAJECTORIES:,} trajectories a step; simulate a part of "
            "the cluster"
        )
    return prompts, samples


@dataclass(frozen=True)
class Layout:
    """Which chips roll out and which train; colocated: the same do both, one after the other."""

    engines: int
    chips_per_engine: int
    train_chips: int
    colocated: bool

    @property
    def trainer_chips(self) -> int:
        """Chips that an update runs on."""
        return self.engines * self.chips_per_engine if self.colocated else self.train_chips


def _layout(values: Mapping[str, Any], mode: str, notes: list[str]) -> Layout:
    """From engines, or from all chips and the share of them that rolls out."""
    total, engines, train_chips = values.get("chips"), values.get("engines"), values.get("train_chips")
    separate = train_chips is not None or mode in OVERLAPPED or "rollout_share" in values
    colocated = values.get("colocated", not separate)
    each = values.get("chips_per_engine")
    if each is None:
        each = 1
        if total is None:
            notes.append("1 chip an instance assumed")
        elif engines:
            each = max(1, (total if colocated else total - (train_chips or 0)) // engines)
    if engines is None:
        if total is None:
            raise InputError(
                "neither engines nor chips is given; give engines (rollout instances) and chips_per_engine"
            )
        share = values.get("rollout_share", 1.0 if colocated else 0.5)
        if not 0 < share <= 1:
            raise InputError(f"rollout_share={share:g}: must be above 0 and at most 1")
        engines = int(total * share if train_chips is None else total - train_chips) // each
        if engines < 1:
            raise InputError(
                f"chips={total}: not enough for one instance of {each} chips; give more chips or fewer chips_per_engine"
            )
    if engines > MAX_ENGINES:
        raise InputError(f"engines={engines:,}: more than {MAX_ENGINES:,}; check the number")
    if train_chips is None:
        train_chips = 0 if colocated else max(0, (total or engines * each) - engines * each)
    return Layout(engines, each, train_chips, colocated)


def _policy(values: Mapping[str, Any], mode: str, prompts: int) -> Policy:
    factor, submitted = values.get("over_sampling"), values.get("over_sampling_prompts")
    if factor is not None and not 1 <= factor <= 1000:
        raise InputError(
            f"over_sampling={factor:g}: prompts submitted over prompts trained, so at least 1 (and at most 1000)"
        )
    if mode != "april":  # only april aborts a surplus: elsewhere the key has nothing to say
        submitted = None
    elif submitted is None:
        submitted = round((2 if factor is None else factor) * prompts)
    return Policy(
        mode,
        prompts,
        submitted,
        values.get("max_concurrent"),
        values.get("max_staleness", 1.0),
        values.get("weight_sync_interval", 1),
        values.get("filter_staleness_above"),
    )
