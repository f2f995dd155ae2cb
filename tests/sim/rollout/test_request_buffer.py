"""Divided rollout: who begins a chunk where, by hand, and that no cache is ever full."""

from types import SimpleNamespace

from minglm.rl.modes import Policy
from sim.rollout.case import Case
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.engine import Engine
from sim.rollout.lengths import Lengths
from sim.rollout.request_buffer import CHUNK, RequestBuffer
from sim.rollout.simulate import simulate
from sim.rollout.trajectory import Trajectory

CURVE = DecodeCurve(((1, 0.01),))


def begun(buffer: RequestBuffer) -> list[tuple[int, int]]:
    """(prompt, engine) of the chunks that begin now, put into the engines' queues as the dispatcher does."""
    out = []
    for trajectory, engine in buffer.hand_out():
        engine.queue.append(trajectory)
        out.append((trajectory.prompt, engine.id))
    return out


def test_a_chunk_begins_where_most_room_is_and_only_if_all_of_it_fits():
    engines = [Engine(i, CURVE, kv_limit=20_000) for i in range(2)]  # of which 19,800 are given out
    buffer = RequestBuffer(engines, longest=10_000)
    samples = [Trajectory(SimpleNamespace(), 9_000, prompt) for prompt in (100, 200, 300, 400, 500)]
    for sample in samples:
        buffer.add(sample)
    # 8,292 and 8,392 tokens first; then 8,492 to engine 0 (16,784) and 8,592 to engine 1 (16,984); 8,692 fit nowhere
    assert begun(buffer) == [(100, 0), (200, 1), (300, 0), (400, 1)]
    engines[1].queue.remove(samples[1])
    samples[1].done = CHUNK
    buffer.chunk_ended(engines[1], samples[1])
    buffer.add(samples[1])
    # engine 1 has 11,208 left: the one that waited longest, and then 200 + 10,000 (it cannot get longer) do not fit
    assert begun(buffer) == [(500, 1)]
    engines[0].queue.clear()
    for sample in (samples[0], samples[2]):
        buffer.chunk_ended(engines[0], sample)
    assert begun(buffer) == [(200, 0)]
    buffer.clear()
    assert begun(buffer) == []


def test_an_engine_runs_no_more_requests_than_it_may():
    engine = Engine(0, CURVE, max_running=2)
    buffer = RequestBuffer([engine], longest=100)
    for prompt in (1, 2, 3):
        buffer.add(Trajectory(SimpleNamespace(), 50, prompt))
    assert begun(buffer) == [(1, 0), (2, 0)]


def test_no_cache_is_full_and_every_sample_is_trained():
    lengths = Lengths.lognormal(mean=6_000, cap=20_000)
    case = Case(Policy("sync", 16), 4, lengths, 4, CURVE, kv_limit=30_000, steps=2)
    spread, divided = simulate(case), simulate(Case(**{**vars(case), "placement": "divided"}))
    assert spread.waste.preemptions > 0 and divided.waste.preemptions == 0 == divided.waste.reprefilled_tokens
    assert divided.counts["trained"] == spread.counts["trained"]
    assert divided.throughput.trained_tokens == spread.throughput.trained_tokens
