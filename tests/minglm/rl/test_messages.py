"""Messages between coordinator and workers: each survives the wire, and nothing that is not one is let through."""

import dataclasses
import json

import pytest

from minglm.rl import messages as m
from minglm.rl.transport import InlineWorker, serve

RESULT = m.RolloutResult("3.1", [4, 5], [-0.5, -1.0], [2, 3], None, [[[0, 1]], [[2, 3]]])
PROGRESS = m.Progress(busy_s=0.5, slot_s=4.0, tokens=8, running=2)
SAMPLE = m.TrainSample([4], [-0.5], [2], 1.0)
MESSAGES = (
    m.Stop(),
    m.Hello(),
    m.Train(3, 2, None, True, (m.TrainGroup([0, 1], (SAMPLE, SAMPLE)),)),
    m.PublishWeights(2),
    m.Evaluate([[0, 1], [0, 2, 3]], 160, [1]),
    m.SaveCheckpoint({"updates": 3, "ready": []}),
    m.Submit((m.RolloutRequest("3.1", [0, 1], 7, [4], [-0.5], [2]),)),
    m.Abort(),
    m.UpdateWeights("w.safetensors", 2, {"vocab_size": 8}, 160),
    m.Started(),
    m.Heartbeat(),
    m.Heartbeat(PROGRESS),
    m.Failed("out of memory", fatal=False),
    m.TrainerReady(0, 0, {"vocab_size": 8}, "w.safetensors", None, {}),
    m.StepDone(3, {"loss": 0.5}, 1.5, None, 0.0, 100, 80),
    m.WeightsPublished("w.safetensors", 2),
    m.EvaluationDone([[4]], [[5]], 3, 1.0),
    m.CheckpointSaved(3),
    m.RolloutsDone((RESULT,), PROGRESS),
    m.RolloutsAborted((), PROGRESS),
    m.WeightsLoaded(2, 0.5),
    m.WeightsRefused(2, "torn"),
)


def kinds_of(message):
    return m.COMMANDS if type(message).__name__ in m.COMMANDS else m.REPORTS


def test_every_kind_is_here():
    assert {type(x).__name__ for x in MESSAGES} == {*m.COMMANDS, *m.REPORTS}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda x: type(x).__name__)
def test_a_message_comes_out_as_it_went_in(message):
    wire = m.to_wire(message)
    assert m.from_wire(wire, kinds_of(message)) == message
    # Plain values only, so that no transport has to carry code.
    assert m.from_wire(json.loads(json.dumps(wire)), kinds_of(message)) == message


@pytest.mark.parametrize(
    "wire, says",
    (
        (
            {"type": "WeightsLoded", "version": 2, "seconds": 0.5},
            "'WeightsLoded': unknown .did you mean 'WeightsLoaded'",
        ),
        ({"type": "Train", "update": 1}, "'Train': unknown"),  # a command where reports come
        ({"got": "trained"}, "not a dict with a type"),
        ("StepDone", "not a dict with a type"),
        ({"type": "WeightsLoaded", "version": 2}, "field 'seconds' is missing"),
        ({"type": "WeightsLoaded", "version": 2, "seconds": 0.5, "secnds": 1}, "unknown field 'secnds'"),
        ({"type": "WeightsLoaded", "version": "2", "seconds": 0.5}, "version: '2' .str. is no int"),
        ({"type": "WeightsLoaded", "version": True, "seconds": 0.5}, "version: 'True' .bool. is no int"),
        (
            {"type": "RolloutsDone", "requests": [{"id": "0.0"}], "progress": {}},
            "requests 0: field 'logprobs' is missing",
        ),
        ({"type": "RolloutsDone", "requests": 3, "progress": {}}, "requests: '3' .int. is no tuple"),
    ),
)
def test_what_is_no_message_raises_in_one_line(wire, says):
    with pytest.raises(m.MessageError, match=says) as error:
        m.from_wire(wire, m.REPORTS)
    assert "\n" not in str(error.value)


def test_messages_are_frozen():
    for message in MESSAGES:
        assert dataclasses.is_dataclass(message) and message.__dataclass_params__.frozen


class Deaf:
    """A worker that knows no command."""

    busy = False

    def __init__(self, heartbeat, reports=()):
        self.reports = reports

    def handle(self, command):
        yield from self.reports
        raise m.unexpected(command, "a deaf worker")

    def step(self):
        return iter(())


@pytest.mark.parametrize("wire", ({"type": "Tran"}, {"do": "train"}, m.to_wire(m.Abort())))
def test_a_worker_that_does_not_know_a_command_says_so_and_ends(wire):
    inbox, sent = [wire], []
    serve(Deaf, lambda seconds: inbox.pop(0), sent.append)
    started, failed = (m.from_wire(values, m.REPORTS) for values in sent)
    assert isinstance(started, m.Started) and failed.fatal and "message" in failed.reason


def test_a_report_that_the_coordinator_does_not_know_stops_the_run():
    worker = InlineWorker("rollout0", f"{__name__}:Deaf", {})
    worker.receive()
    worker._outbox.append({"type": "RolloutDone", "requests": []})
    with pytest.raises(m.MessageError, match="did you mean 'RolloutsDone'"):
        worker.receive()


def test_a_report_of_the_other_kind_of_worker_stops_the_run():
    from minglm.rl.loop import Loop

    with pytest.raises(m.MessageError, match="StepDone.*from a rollout worker"):
        Loop._on_rollout_report(None, None, m.StepDone(3, {}, 1.5, None, 0.0, 100, 80))
    with pytest.raises(m.MessageError, match="RolloutsDone.*from a trainer"):
        Loop._on_trainer_report(None, m.RolloutsDone((), PROGRESS))
