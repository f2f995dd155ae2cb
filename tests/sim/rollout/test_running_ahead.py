"""Engines that nobody touches work out their stretch at once: the figures are those of one event after the other."""

import random

import pytest

from minglm.rl.modes import Policy
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.dispatcher import Dispatcher
from sim.rollout.engine import Engine
from sim.rollout.group import Group
from sim.rollout.lengths import Lengths
from sim.rollout.placement import PLACEMENTS
from sim.rollout.simulate import Case, simulate
from sim.rollout.trajectory import Trajectory

CURVE = DecodeCurve(((1, 0.01), (16, 0.02), (64, 0.05)), ((1, 1e-7), (64, 2e-7)))


def event_by_event(case, monkeypatch) -> dict:
    """Every event through the timeline."""
    began = Dispatcher.__init__

    def planned_one_by_one(self, *args):
        began(self, *args)
        self._runs_ahead = False

    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "__init__", planned_one_by_one)
        return simulate(case).to_dict()


def close(one, other) -> bool:
    """Equal in every figure, to 1e-9 of it: seconds are summed in other pieces."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other or (isinstance(one, float) and one == pytest.approx(other, rel=1e-9, abs=1e-12))


@pytest.mark.parametrize("mode", ["sync", "one_step_off", "async", "april", "glm5"])
@pytest.mark.parametrize("kv_limit", [None, 20_000.0])
@pytest.mark.parametrize("watch", [0, 2])  # engines of the picture take the events of their stretch one by one
def test_running_ahead_changes_no_figure(mode, kv_limit, watch, monkeypatch):
    case = Case(
        Policy(mode, 16),
        4,
        Lengths.lognormal(500, 4000),
        4,
        CURVE,
        train_s_per_token=2e-3,
        weight_sync_s=3.0,
        steps=6,
        warmup=1,
        kv_limit=kv_limit,
        watch=watch,
    )
    assert close(simulate(case).to_dict(), event_by_event(case, monkeypatch))


def drawn(rng: random.Random) -> Case:
    """A small case in which engines are left alone for a while: caches that are often full, partial rollouts, weights
    that come late or in the middle of an answer, engines that hold back, groups kept together or spread."""
    mode, prompts = rng.choice(("sync", "one_step_off", "async", "async", "april", "glm5")), rng.choice((4, 8))
    prompt, mean = rng.choice((0, 20, 200)), rng.choice((50, 300))
    longest = prompt + 4 * mean
    return Case(
        Policy(
            mode,
            prompts,
            over_sampling=2 * prompts if mode == "april" else None,
            max_staleness=rng.choice((0.0, 0.5, 1.0, 2.0)) if mode == "async" else 1.0,
        ),
        rng.choice((2, 8)),
        Lengths.lognormal(mean, 4 * mean, sigma=rng.choice((0.3, 1.0)), prompt=prompt),
        rng.choice((1, 2, 5)),
        CURVE,
        prefill_s_per_token=rng.choice((0.0, 1e-5, 1e-3)),
        prefill_fixed_s=rng.choice((0.0, 0.01)),
        kv_limit=rng.choice((None, longest + 1.0, 2.0 * longest)),
        max_running=rng.choice((None, 3)),
        train_s_per_token=rng.choice((1e-3, 1e-2)),
        weight_sync_s=rng.choice((0.5, 5.0)),
        steps=5,
        interruptible=rng.random() < 0.8,
        reuse_kv_cache=rng.random() < 0.4,
        strict=rng.random() < 0.5,
        placement=rng.choice(PLACEMENTS),
        seed=rng.randrange(1000),
    )


def test_cases_at_random_have_the_figures_of_one_event_after_the_other(monkeypatch):
    """Of 60 drawn, many run ahead and many of these put requests back; divided rollout hands chunks from engine to
    engine, so that nobody runs ahead there."""
    run_on, ahead, put_back = Engine.run_on, 0, 0
    ended = []

    def counted(engine, until):
        ended.append(run_on(engine, until))
        return ended[-1]

    for seed in range(60):
        case = drawn(random.Random(seed))
        ended.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "run_on", counted)
            got = simulate(case).to_dict()
        assert close(got, event_by_event(case, monkeypatch)), (seed, case)
        if any(ended):
            assert case.placement != "divided"
            ahead, put_back = ahead + 1, put_back + (got["preemptions"] > 0)
    assert ahead >= 20 and put_back >= 10


def test_a_stretch_by_hand():
    """Room for 20 tokens and 1 second a token, two answers of 12: after 10 the cache is full, and the younger waits
    until the other has ended; it has kept its tokens, and ends 2 after that."""
    engine, group = Engine(0, DecodeCurve(((1, 1.0),)), prefill_s=0.1, kv_limit=20.0), Group(0, 0, True)
    older, younger = Trajectory(group, 12, 0), Trajectory(group, 12, 0)
    engine.queue.extend((older, younger))
    engine.admit(0.0)
    assert engine.run_on(12.0) == [] and engine.preemptions == 1 and (younger.done, engine.t) == (10, 10.0)
    assert engine.run_on(13.0) == [(12.0, older)]
    assert engine.resume == pytest.approx(13.0) and engine.reprefilled == 10  # ten tokens are read again
    assert engine.run_on(100.0) == [(pytest.approx(15.0), younger)] and engine.n == 0
    assert younger.segments == [(0, 12)] and engine.busy_s == pytest.approx(15.0)
