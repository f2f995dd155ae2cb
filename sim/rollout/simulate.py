"""Asynchronous RL on a cluster: rollout engines, a data buffer, a trainer, weight syncs.

The rules are `minglm.rl.modes.Policy`, the ones that the real loop obeys: who may start, when a batch is ready, what
is too stale. This room adds time: engines decode at rates that depend on batch and cache (`sim.rollout.engine`), the
trainer takes seconds per token, a weight sync takes seconds. No event per token, and a completion is one only where
something hangs on it (`sim.rollout.dispatcher`), so that millions of trajectories on three thousand engines take
seconds of one core.

    >>> from minglm.rl.modes import Policy
    >>> from sim.rollout.decode_curve import DecodeCurve
    >>> from sim.rollout.lengths import Lengths
    >>> curve = DecodeCurve(((1, 0.01), (16, 0.02)))
    >>> case = Case(Policy("sync", prompts_per_batch=8), 4, Lengths.lognormal(500, 4000), 2, curve, steps=2)
    >>> simulate(case).throughput.trained_trajectories
    64

Units: seconds and tokens. A *group* is one prompt with all its samples; only complete groups train. Deterministic:
lengths are drawn per group in the order of creation from one seed, so that every mode meets the same groups.
"""

from __future__ import annotations

import gc

from minglm.errors import InputError
from sim.rollout.case import Case
from sim.rollout.collector import Collector
from sim.rollout.dispatcher import Dispatcher
from sim.rollout.engine import Engine
from sim.rollout.request_buffer import CHUNK
from sim.rollout.result import Result
from sim.rollout.timeline import Timeline
from sim.rollout.trainer_process import TrainerProcess

__all__ = ["Case", "Result", "simulate"]


def _engines(case: Case) -> list[Engine]:
    return [
        Engine(
            id=i,
            curve=case.curve,
            prefill_s=case.prefill_s_per_token,
            prefill_fixed_s=case.prefill_fixed_s,
            kv_limit=case.kv_limit,
            max_running=case.max_running,
            reuse_kv_cache=case.reuse_kv_cache or case.placement == "divided",
            topk=case.topk,
            share_prompts=case.share_prompts,
            kv_offload_s=case.kv_offload_s,
            chunk=CHUNK if case.placement == "divided" else None,
        )
        for i in range(case.engines)
    ]


def simulate(case: Case) -> Result:
    """Run `case.steps` steps.

    Raises:
        InputError: a case that cannot run, or one in which no batch can ever be ready.
    """
    case.check()
    timeline, engines = Timeline(), _engines(case)
    collector = Collector(case, timeline, engines)
    dispatcher = Dispatcher(case, timeline, engines, collector)
    trainer = TrainerProcess(case, timeline, dispatcher, collector)
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects that live as long as the run: collecting them again and again is quadratic
    try:
        if not timeline.run(trainer.run()):
            raise InputError(
                f"mode {case.policy.mode}: after {len(collector.steps)} steps nothing runs and no batch of "
                f"{case.policy.prompts_per_batch} groups is complete; raise filter_staleness_above, filter_keep or "
                "max_concurrent"
            )
        left = {
            "waiting": dispatcher.finished,
            "buffered": dispatcher.buffer.waiting,
            "running": dispatcher.running.values(),
        }
        return collector.result(left, dispatcher.submitted)
    finally:
        for group in (*dispatcher.finished, *dispatcher.running.values()):
            group.samples.clear()  # each knows its group
        if collecting:
            gc.enable()
