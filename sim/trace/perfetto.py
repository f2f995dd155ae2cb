"""Traces for Perfetto (ui.perfetto.dev) and chrome://tracing, of a step and of a campaign, as Chrome JSON.

One process per sampled pipeline rank; on it a track each for compute, hideable all-to-all, transfers to other ranks and
gradient reduction. Slices nest (step ⊃ pipeline ⊃ forward 3 ⊃ compute), arrows follow an activation or a gradient from
the transfer that sent it to the work that needed it, counters show micro-batches held and bytes sent. Times in
microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError
from sim.cost.step_costs import StepCosts
from sim.training.campaign import CampaignResult
from sim.training.program import Program
from sim.training.replica import Replica
from sim.training.step import StepResult

_NAMES = {
    "F": "forward",
    "B": "backward",
    "I": "backward (activations)",
    "W": "backward (weights)",
    "FB": "forward + backward",
}
COMPUTE, COMM, SEND, REDUCE = 1, 2, 3, 4
_TRACKS = {COMPUTE: "compute", COMM: "all-to-all", SEND: "transfers to other ranks", REDUCE: "gradient reduction"}


class StepTrace:
    """Takes the replicas it wants from a step and turns them into trace events.

    replicas: indices of the replicas to draw (those that were folded away are drawn by their representative: ask for
        0).
    ranks: pipeline ranks to draw, None for all. Arrows to ranks that are not drawn are left out.
    activation_bytes: of one chunk and micro-batch; with it the memory counter is in bytes.
    """

    def __init__(
        self, replicas: tuple[int, ...] = (0,), ranks: tuple[int, ...] | None = None, activation_bytes: float = 0.0
    ):
        self.replicas, self.ranks, self.activation_bytes = replicas, ranks, activation_bytes
        self.events: list[dict] = []

    def record(self, result: StepResult, replicas: Sequence[Replica], costs: StepCosts) -> None:
        """Called by `sim.training.step.simulate` with everything that was simulated."""
        chosen = [replica for replica in replicas if replica.index in self.replicas] or replicas[:1]
        for replica in chosen:
            self._replica(result, replica, costs)

    def write(self, path: str | Path) -> None:
        """Write Chrome JSON; open it in ui.perfetto.dev."""
        _write(self.events, path)

    def _replica(self, result: StepResult, replica: Replica, costs: StepCosts) -> None:
        P = len(result.programs)
        ranks = range(P) if self.ranks is None else [r for r in self.ranks if r < P]
        sends: dict[int, tuple[int, float]] = {}  # slot -> (pid, time at which its transfer began)
        needs: list[tuple[int, int, float]] = []
        for rank in ranks:
            pid = replica.index * P + rank + 1
            program, spans = result.programs[rank], replica.spans(rank, result.programs[rank])
            self._name(
                pid, f"replica {replica.index} · rank {rank} · {costs.chips_per_rank} chips", replica.index * P + rank
            )
            self._slice(pid, COMPUTE, "step", 0.0, result.step_s)
            self._slice(pid, COMPUTE, f"pipeline ({result.schedule})", 0.0, spans[-1][1])
            self._work(pid, program, spans, replica, costs, sends, needs)
            after = result.pipeline_s + result.grad_exposed_s
            for name, seconds in (
                ("optimiser", costs.optimizer_s),
                ("parameter gather", costs.param_gather_s),
                ("host", costs.fixed_s),
            ):
                if seconds:
                    self._slice(pid, COMPUTE, name, after, after + seconds)
                    after += seconds
            if costs.grad_reduce_s:
                end = result.reduced_s[rank]
                self._slice(pid, REDUCE, "gradient reduction", max(0.0, end - costs.grad_reduce_s), end)
        for slot, pid, start in needs:
            if slot in sends:
                source, sent = sends[slot]
                flow = dict(name="transfer", cat="p2p", id=replica.index * len(replica.slots) + slot)
                self.events.append(flow | dict(ph="s", pid=source, tid=SEND, ts=_us(sent)))
                self.events.append(flow | dict(ph="f", bp="e", pid=pid, tid=COMPUTE, ts=_us(start)))

    def _work(
        self,
        pid: int,
        program: Program,
        spans: Sequence[tuple[float, float]],
        replica: Replica,
        costs: StepCosts,
        sends: dict[int, tuple[int, float]],
        needs: list[tuple[int, int, float]],
    ) -> None:
        held = sent_bytes = 0.0
        unit = self.activation_bytes or 1.0
        memory = "activations held (bytes)" if self.activation_bytes else "micro-batches held"
        for op, row, work, (start, end) in zip(program.ops, program.rows, program.work, spans, strict=True):
            need, need2, out, far, out2, far2 = row
            label = f"{_NAMES[op.kind]} {op.micro_batch}" + (f", {op.b_micro_batch}" if op.kind == "FB" else "")
            self._slice(
                pid,
                COMPUTE,
                label,
                start,
                end,
                dict(
                    kind=op.kind,
                    micro_batch=op.micro_batch,
                    chunk=op.chunk,
                    **(dict(b_micro_batch=op.b_micro_batch, b_chunk=op.b_chunk) if op.kind == "FB" else {}),
                ),
            )
            comm_s = work.forward_comm_s + work.backward_comm_s
            if comm_s:
                busy = min(work.compute_s, end - start)
                self._slice(pid, COMPUTE, "compute", start, start + busy)
                # Alone, compute comes first and the all-to-all is what is left; together they begin at once.
                begin = start if op.kind == "FB" else start + busy
                self._slice(pid, COMM, "all-to-all", begin, min(end, begin + comm_s))
            for slot, is_far in ((out, far), (out2, far2)):
                if slot and is_far:
                    arrived = replica.slots[slot]
                    self._slice(
                        pid,
                        SEND,
                        "activation" if (slot == out and op.kind in ("F", "FB")) else "gradient",
                        arrived - costs.p2p_s,
                        arrived,
                        dict(bytes=costs.p2p_bytes),
                    )
                    sends[slot] = (pid, arrived - costs.p2p_s)
                    sent_bytes += costs.p2p_bytes
                    self._counter(pid, "bytes sent", arrived, sent_bytes)
            for slot in {need, need2} - {0}:
                needs.append((slot, pid, start))
            change = {"F": 1, "B": -1, "I": 0, "W": -1, "FB": 0}[op.kind]
            if change:
                held += change * unit
                self._counter(pid, memory, start if change > 0 else end, held)

    # ------------------------------------------------------------------ Chrome JSON events

    def _name(self, pid: int, name: str, order: int) -> None:
        self.events.append(dict(ph="M", pid=pid, tid=0, name="process_name", args=dict(name=name)))
        self.events.append(dict(ph="M", pid=pid, tid=0, name="process_sort_index", args=dict(sort_index=order)))
        for tid, track in _TRACKS.items():
            self.events.append(dict(ph="M", pid=pid, tid=tid, name="thread_name", args=dict(name=track)))

    def _slice(self, pid: int, tid: int, name: str, start: float, end: float, args: dict | None = None) -> None:
        ts = _us(start)
        event = dict(ph="X", pid=pid, tid=tid, name=name, ts=ts, dur=round(_us(end) - ts, 3))
        self.events.append(event | ({"args": args} if args else {}))

    def _counter(self, pid: int, name: str, time_s: float, value: float) -> None:
        self.events.append(dict(ph="C", pid=pid, tid=0, name=name, ts=_us(time_s), args={"value": value}))


def campaign_events(result: CampaignResult) -> list[dict]:
    """Trace events of a campaign (`sim.training.campaign.run` with its timeline): one track of what the job did, one
    mark per failure, counters of tokens kept and hours lost. One microsecond of the trace stands for one second."""
    end = result.days * 86400.0
    events = [
        dict(ph="M", pid=1, tid=0, name="process_name", args=dict(name="campaign (1 µs = 1 s)")),
        dict(ph="M", pid=1, tid=1, name="thread_name", args=dict(name="job")),
        dict(
            ph="X",
            pid=1,
            tid=1,
            name=f"campaign: {result.days:.1f} days, goodput {result.goodput:.1%}",
            ts=0.0,
            dur=round(end, 3),
        ),
    ]
    lost = 0.0
    for span in result.timeline:
        ts = round(span.start_s, 3)
        events.append(
            dict(
                ph="X",
                pid=1,
                tid=1,
                name=span.state,
                ts=ts,
                dur=round(round(span.end_s, 3) - ts, 3),
                args=dict(cause=span.note),
            )
        )
        if span.state == "detection":
            events.append(dict(ph="i", pid=1, tid=1, s="p", name=f"failure: {span.note}", ts=ts))
        if span.state != "train":
            lost += (span.end_s - span.start_s) / 3600.0
            events.append(
                dict(ph="C", pid=1, tid=0, name="hours not training", ts=round(span.end_s, 3), args=dict(value=lost))
            )
        events.append(
            dict(ph="C", pid=1, tid=0, name="tokens kept", ts=round(span.end_s, 3), args=dict(value=span.tokens))
        )
    return events


def write_campaign(result: CampaignResult, path: str | Path) -> None:
    """Write a campaign as Chrome JSON; open it in ui.perfetto.dev."""
    _write(campaign_events(result), path)


def _write(events: list[dict], path: str | Path) -> None:
    try:
        atomic.write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"}, indent=None)
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror}); give a file in an existing folder") from None


def _us(seconds: float) -> float:
    """Microseconds to the nanosecond: rounding each time once keeps nested slices nested."""
    return round(seconds * 1e6, 3)
