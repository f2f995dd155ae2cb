"""What `/metrics` shows, in Prometheus' text format; names follow its conventions (seconds, bytes, _total)."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from minglm.inference.engine import Engine

disable_created_metrics()  # a series of creation times beside each counter helps nobody here
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """One server's own registry, so that two servers in a process (tests) do not mix."""

    def __init__(self):
        self.registry = r = CollectorRegistry()
        self.requests = Counter("minglm_requests", "HTTP requests by path and status", ["path", "status"], registry=r)
        self.finished = Counter("minglm_sequences_finished", "sequences ended, by reason", ["reason"], registry=r)
        self.cancelled = Counter("minglm_sequences_cancelled", "sequences whose client went away", registry=r)
        self.prompt_tokens = Counter("minglm_prompt_tokens", "prompt tokens prefilled", registry=r)
        self.new_tokens = Counter("minglm_generated_tokens", "tokens decoded", registry=r)
        self.running = Gauge("minglm_sequences_running", "sequences in the batch", registry=r)
        self.waiting = Gauge("minglm_sequences_waiting", "sequences waiting for a place", registry=r)
        self.acceptance = Gauge("minglm_draft_acceptance_ratio", "share of MTP drafts that were right", registry=r)
        self.first_token = Histogram(
            "minglm_first_token_seconds", "from request to first token", buckets=_SECONDS, registry=r
        )
        self.duration = Histogram("minglm_sequence_seconds", "from request to last token", buckets=_SECONDS, registry=r)
        self.step_time = Histogram(
            "minglm_engine_step_seconds", "one engine step", buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1), registry=r
        )
        self._seen = (0, 0)

    def step(self, engine: Engine, seconds: float) -> None:
        """Count what `engine` did in a step of `seconds`."""
        stats = engine.stats
        self.step_time.observe(seconds)
        self.prompt_tokens.inc(stats.prefilled - self._seen[0])
        self.new_tokens.inc(stats.decoded - self._seen[1])
        self._seen = (stats.prefilled, stats.decoded)
        self.running.set(engine.running)
        self.waiting.set(engine.waiting)
        self.acceptance.set(stats.acceptance)

    def text(self) -> bytes:
        """All series, as Prometheus reads them."""
        return generate_latest(self.registry)
