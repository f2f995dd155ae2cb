"""The coordinator's rules one by one, without workers: what a sample, an update and a push may do."""

from types import SimpleNamespace

import pytest

from minglm.rl.config import Settings
from minglm.rl.data_source import Group, Sample
from minglm.rl.loop import Loop
from minglm.rl.messages import Abort, RolloutResult, StepDone, Submit
from minglm.rl.modes import Policy, Status
from minglm.rl.rollout_pool import RolloutPool
from minglm.rl.supervisor import WorkerHandle
from minglm.rl.trainer_client import TrainerClient


class Wire:
    """Keeps what was sent."""

    def __init__(self):
        self.sent = []

    def send(self, command):
        self.sent.append(command)


def worker(name):
    return WorkerHandle(Wire(), name)


def group(index, samples=2, version=0):
    made = Group(index, [0, 5], [Sample() for _ in range(samples)], problem=None, version=version)
    for sample in made.samples:
        sample.reward = 1.0
    return made


def result(id, tokens, version=0, reason=None):
    return RolloutResult(id, tokens, [-1.0] * len(tokens), [version] * len(tokens), reason)


# ---------------------------------------------------------------------- samples


def test_a_sample_is_taken_once_whoever_brings_it_again():
    clock = iter(range(100))
    one, two = worker("r0"), worker("r1")
    pool = RolloutPool(Settings(), [one, two], lambda: next(clock))
    pool.submit(group(7)), pool.submit(group(8))
    assert (one.groups, two.groups) == ({7}, {8}), "the worker with the fewest"
    one.undelivered_tokens = 5
    taken, k, sample, new = pool.receive(one, result("7.1", [4, 5, 6], reason="stop"))
    assert (taken.index, k, new, one.undelivered_tokens) == (7, 1, 3, 2)
    assert (sample.tokens, sample.reason, sample.done) == ([4, 5, 6], "stop", True)
    assert sample.segments == [[0, 2, 3]], "two submissions came first"
    assert pool.receive(one, result("7.1", [9, 9, 9, 9], reason="length")) is None
    assert sample.tokens == [4, 5, 6] and one.undelivered_tokens == 2
    assert pool.receive(one, result("99.0", [1], reason="stop")) is None, "a group that is not in flight"
    _, _, part, new = pool.receive(one, result("7.0", [1, 2]))
    assert new == 2 and not part.done and not taken.complete
    _, _, part, new = pool.receive(one, result("7.0", [1, 2, 3], reason="stop"))
    assert new == 1 and taken.complete
    pool.remove(taken)
    assert pool.receive(one, result("7.0", [1, 2, 3], reason="stop")) is None and one.groups == set()


def test_a_restarted_worker_gets_what_is_unfinished_with_what_had_come_back():
    one = worker("r0")
    pool = RolloutPool(Settings(seed=3), [one], lambda: 0.0)
    pool.submit(group(7, samples=3))
    pool.receive(one, result("7.0", [4], reason="stop"))
    pool.receive(one, result("7.2", [8, 9]))
    groups, samples = pool.unfinished(one)
    assert [g.index for g in groups] == [7] and samples == pool.in_flight[7].samples[1:]
    pool.resubmit(one, groups)
    first, again = (command.requests for command in one.connection.sent)
    assert isinstance(one.connection.sent[0], Submit) and [r.id for r in first] == ["7.0", "7.1", "7.2"]
    assert [(r.id, r.tokens) for r in again] == [("7.1", []), ("7.2", [8, 9])]
    assert [r.seed for r in again] == [r.seed for r in first][1:], "the same draws"
    assert len({r.seed for r in first}) == 3


def test_an_abort_is_over_when_the_last_worker_has_given_back():
    one, two = worker("r0"), worker("r1")
    pool = RolloutPool(Settings(), [one, two], lambda: 0.0)
    assert pool.aborted(one) is None
    for index in (1, 2, 3):
        pool.submit(group(index))
    pool.abort()
    assert all(isinstance(w.connection.sent[-1], Abort) for w in (one, two))
    assert pool.aborted(one) is None and pool.in_flight
    assert [g.index for g in pool.aborted(two)] == [1, 2, 3] and not pool.in_flight and not one.groups | two.groups


# ---------------------------------------------------------------------- updates


def updates(mode, count, ready=None, **rules):
    """The Train commands of so many updates, and what was left of the groups that waited."""
    policy = Policy(mode, prompts_per_batch=2, **rules)
    silent = SimpleNamespace(training=lambda *a: None, wasted=lambda groups: lost.extend(g.index for g in groups))
    lost, wire = [], worker("trainer")
    loop = SimpleNamespace(
        settings=SimpleNamespace(strict=True),
        policy=policy,
        ready=ready or [],
        updates=0,
        status=Status(),
        recorder=silent,
        trainer=TrainerClient(wire),
    )
    for n in range(count):
        if ready is None:
            loop.ready = [group(2 * n), group(2 * n + 1)]
        Loop._train(loop)
        command = wire.connection.sent[-1]
        loop.updates = command.update
        loop.trainer.step_done(StepDone(command.update, {}, 0.0, None, 0.0, 0, 0))
        loop.status.version = loop.status.version if command.sync_version is None else command.sync_version
    return wire.connection.sent, loop, lost


@pytest.mark.parametrize(
    ("mode", "interval", "resets", "pushes"),
    [
        ("glm5", 2, [False, False, True, False, True, False], [None, 1, None, 2, None, 3]),
        ("glm5", 1, [False, True, True, True, True, True], [1, 2, 3, 4, 5, 6]),
        ("sync", 2, [False] * 6, [1, 2, 3, 4, 5, 6]),
        ("async", 1, [False] * 6, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_glm5_begins_with_a_fresh_optimiser_after_each_push(mode, interval, resets, pushes):
    sent, loop, _ = updates(mode, 6, weight_sync_interval=interval)
    assert [c.reset_optimizer for c in sent] == resets
    assert [c.sync_version for c in sent] == pushes
    assert [c.update for c in sent] == [1, 2, 3, 4, 5, 6] and loop.status.accepted == 12
    assert [c.version for c in sent] == [0, *(max([0, *(p or 0 for p in pushes[:n])]) for n in range(1, 6))]


def test_which_groups_an_update_takes():
    """Async: the oldest first; sync loses what is left over, april keeps it."""
    waiting = [(4, 1), (1, 0), (3, 1), (2, 0), (9, 2)]

    def taken(mode, **rules):
        sent, loop, lost = updates(mode, 1, [group(i, version=v) for i, v in waiting], **rules)
        del sent
        return [g.index for g in loop.ready], lost

    assert taken("async") == ([3, 4, 9], [])
    assert taken("april", over_sampling=4) == ([3, 2, 9], [])
    assert taken("sync") == ([], [3, 2, 9])


def test_groups_that_are_too_stale_are_dropped_before_an_update():
    dropped = []
    ready = [group(i) for i in range(3)]
    for made, version in zip(ready, (5, 3, 2), strict=True):
        made.samples[1].versions = [5, version, 5]
    loop = SimpleNamespace(
        ready=ready,
        policy=Policy("glm5", filter_staleness_above=2),
        status=Status(version=5),
        recorder=SimpleNamespace(filtered_stale=lambda g: dropped.append(g.index)),
    )
    Loop._filter_stale(loop)
    assert dropped == [2] and [g.index for g in loop.ready] == [0, 1], "by the oldest token, 3 versions behind"
