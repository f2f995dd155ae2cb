"""Traces that Perfetto can draw: slices nest, every arrow has two ends, counters only go where they may."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from minglm.errors import InputError
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.phases import RunSegment, Throughput
from sim.trace.perfetto import COMM, COMPUTE, SEND, StepTrace, campaign_events, write_campaign
from sim.trace.timeline import bars, campaign_figure, figure
from sim.training.campaign import run
from sim.training.campaign_input import CampaignInput
from sim.training.jitter import Jitter
from sim.training.step import simulate

CASES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2), ("dualpipe", 1), ("dualpipe-v", 2)]


def costs(chunks=1, **changes):
    c = ChunkCost(1.3 / chunks, 1.7 / chunks, 0.9 / chunks, 0.4 / chunks, 0.6 / chunks)
    return StepCosts(
        **(
            dict(
                chunks=((c,) * chunks,) * 4,
                micro_batches=12,
                p2p_s=0.013,
                p2p_bytes=1e6,
                grad_reduce_s=0.7,
                param_gather_s=0.1,
                overlap_grad_reduce=True,
                optimizer_s=0.2,
                fixed_s=0.05,
                tokens=1,
            )
            | changes
        )
    )


def assert_nested(events):
    """On each track a slice lies inside the one that is open, or begins after it has closed."""
    tracks = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            assert e["dur"] >= 0 and e["ts"] >= 0
            tracks[e["pid"], e["tid"]].append(e)
    for track in tracks.values():
        stack = []
        for e in sorted(track, key=lambda e: (e["ts"], -e["dur"])):
            while stack and e["ts"] >= stack[-1]["ts"] + stack[-1]["dur"] - 1e-3:
                stack.pop()
            if stack:
                assert e["ts"] + e["dur"] <= stack[-1]["ts"] + stack[-1]["dur"] + 1e-3, (e, stack[-1])
            stack.append(e)
    return tracks


@pytest.mark.parametrize("schedule, chunks", CASES)
def test_slices_nest_and_tracks_are_apart(schedule, chunks):
    trace = StepTrace()
    r = simulate(costs(chunks), schedule, recorder=trace, replicas=3, jitter=Jitter(noise=0.05))
    tracks = assert_nested(trace.events)
    assert len(tracks) == 4 * 4
    depth = {e["name"] for e in tracks[1, COMPUTE]}
    assert {"step", "compute", "optimiser", "host", "parameter gather"} <= depth
    assert {e["name"] for e in tracks[1, COMM]} == {"all-to-all"}
    assert max(e["ts"] + e["dur"] for e in tracks[1, COMPUTE]) == pytest.approx(r.step_s * 1e6, abs=0.01)


@pytest.mark.parametrize("schedule, chunks", CASES)
def test_arrows_have_two_ends(schedule, chunks):
    trace = StepTrace()
    simulate(costs(chunks), schedule, recorder=trace)
    starts = {e["id"]: e for e in trace.events if e["ph"] == "s"}
    ends = {e["id"]: e for e in trace.events if e["ph"] == "f"}
    assert len(starts) == sum(e["ph"] == "s" for e in trace.events) and starts.keys() == ends.keys() and starts
    slices = {(e["pid"], e["tid"], e["ts"]) for e in trace.events if e["ph"] == "X"}
    for key, s in starts.items():
        f = ends[key]
        assert s["ts"] + 0.013e6 <= f["ts"] + 1e-2 and s["pid"] != f["pid"]
        assert (s["pid"], SEND, s["ts"]) in slices and (f["pid"], COMPUTE, f["ts"]) in slices
    # Every activation and gradient that crosses ranks has its arrow.
    assert len(starts) == sum(e["ph"] == "X" and e["tid"] == SEND for e in trace.events)


@pytest.mark.parametrize("schedule, chunks", CASES)
def test_counters(schedule, chunks):
    trace = StepTrace(activation_bytes=2.0)
    simulate(costs(chunks), schedule, recorder=trace)
    series = defaultdict(list)
    for e in trace.events:
        if e["ph"] == "C":
            series[e["pid"], e["name"]].append((e["ts"], e["args"]["value"]))
    assert {name for _, name in series} == {"bytes sent", "activations held (bytes)"}
    for (_, name), points in series.items():
        assert [t for t, _ in points] == sorted(t for t, _ in points)
        values = [v for _, v in points]
        if name == "bytes sent":
            assert values == sorted(values)
        else:
            assert min(values) >= 0 and values[-1] == 0 and max(values) >= 2.0


def test_only_sampled_ranks_are_drawn():
    trace = StepTrace(replicas=(0, 2), ranks=(0, 3))
    simulate(costs(), "1f1b", recorder=trace, replicas=3, jitter=Jitter(noise=0.1))
    assert {e["pid"] for e in trace.events} == {1, 4, 9, 12}
    assert (
        sum(e["ph"] == "s" for e in trace.events) == sum(e["ph"] == "f" for e in trace.events) == 0
    )  # neighbours are not drawn


def test_file_is_json(tmp_path):
    path = tmp_path / "step.json"
    trace = StepTrace()
    simulate(costs(), "1f1b", recorder=trace)
    trace.write(path)
    with pytest.raises(InputError, match="existing folder"):
        trace.write(tmp_path / "no" / "step.json")
    assert {"X", "M", "C", "s", "f"} <= {e["ph"] for e in json.loads(path.read_text())["traceEvents"]}


def test_campaign_trace(tmp_path):
    segment = RunSegment("a", 30_000, Throughput(10.0, 1e6, 99_840, 780, "p"))
    r = run(CampaignInput((segment,), cluster_chips=100_000), seed=1)
    events = campaign_events(r)
    assert_nested(events)
    assert sum(e["ph"] == "i" for e in events) == sum(s.state == "detection" for s in r.timeline) > 10
    hours = [e["args"]["value"] for e in events if e["name"] == "hours not training"]
    assert hours == sorted(hours)
    fig = campaign_figure(r)
    assert fig.data[0].x[-1] == pytest.approx(r.days) and fig.data[0].y[-1] == pytest.approx(r.tokens / 1e12)
    assert fig.data[1].x[-1] == pytest.approx(r.ideal_days) and r.ideal_days < r.days
    write_campaign(r, tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["traceEvents"] == events


def test_timeline_figure_shows_every_piece_of_work():
    r = simulate(costs(), "dualpipe")
    drawn = bars(r.programs, r.slowest)
    assert sum(map(len, drawn.values())) == sum(len(p.ops) for p in r.programs)
    fig = figure(r)
    assert {t.name for t in fig.data} == {
        "forward",
        "backward",
        "backward, activations",
        "backward, weights",
        "forward and backward together",
        "critical path",
    }
    assert sum(len(t.x) for t in fig.data if t.type == "bar") == sum(map(len, drawn.values()))
    assert "Critical path" in fig.layout.title.text
