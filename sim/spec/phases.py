"""What a long training run consists of: phases with their own sequence length and batch, and a plan chosen for each.

The GLM-5 schedule: 27T tokens at 4K, 1T at 32K, 0.5T at 128K, 50B at 200K (GLM-5 report, arXiv 2602.15763 §2.3), then
the indexer's warm-up of 1,000 steps of 14 sequences of 202,752 and 20B tokens of sparse adaptation (§2.1.1). The batch
grows from 16M to 64M tokens over the first 500B and stays (GLM-4.5 report §2.4; GLM-5 says it inherits it).

    >>> f"{sum(p.tokens for p in GLM5[:4]) / 1e12:.2f}T, {sum(p.tokens for p in GLM5) / 1e12:.2f}T with DSA"
    '28.55T, 28.57T with DSA'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minglm.errors import InputError
from sim.base.checks import is_at_least

RAMP_SEGMENTS = 12  # a growing batch is simulated as so many constant ones


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage of a training run. `batch_tokens` per step; with `ramp_tokens` it grows linearly from
    `first_batch_tokens` over that many tokens. `attention`: a "sparse" phase runs with the model's indexer also where
    the run before it is dense.
    """

    name: str
    tokens: float
    seq: int
    batch_tokens: float
    first_batch_tokens: float | None = None
    ramp_tokens: float = 0.0
    note: str = ""
    attention: Literal["dense", "sparse"] = "dense"

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1.0), ("seq", 1), ("batch_tokens", 1.0)):
            value = getattr(self, name)
            if not is_at_least(value, least):
                raise InputError(
                    f"phase {self.name!r} {name}={value!r}: must be a finite number of at least {least:g}; give "
                    f"{least:g} or more"
                )
        if self.attention not in ("dense", "sparse"):
            raise InputError(f"phase {self.name!r} attention={self.attention!r}: must be 'dense' or 'sparse'; give one")
        first = self.first_batch_tokens
        if (
            self.ramp_tokens < 0
            or self.ramp_tokens > self.tokens
            or (first is not None and not 0 < first <= self.batch_tokens)
        ):
            raise InputError(
                f"phase {self.name!r}: the batch ramp must start between 0 and batch_tokens={self.batch_tokens:g} and "
                "end "
                f"within its {self.tokens:g} tokens; shorten ramp_tokens={self.ramp_tokens:g}"
            )

    def batches(self) -> list[tuple[float, float]]:
        """(tokens, batch_tokens) stretches of constant batch, in order."""
        if not self.ramp_tokens or self.first_batch_tokens is None:
            return [(self.tokens, self.batch_tokens)]
        n, span = RAMP_SEGMENTS, self.batch_tokens - self.first_batch_tokens
        segments = [(self.ramp_tokens / n, self.first_batch_tokens + span * (k + 0.5) / n) for k in range(n)]
        rest = self.tokens - self.ramp_tokens
        return segments + ([(rest, self.batch_tokens)] if rest > 0 else [])


GLM5: tuple[Phase, ...] = (
    Phase("pre-training 4K", 27e12, 4096, 64e6, 16e6, 500e9, "batch ramp inherited from GLM-4.5"),
    Phase("mid-training 32K", 1e12, 32768, 64e6, note="batch of 64M tokens assumed to continue"),
    Phase("mid-training 128K", 0.5e12, 131072, 64e6, note="batch of 64M tokens assumed to continue"),
    Phase("mid-training 200K", 50e9, 202752, 64e6, note="64M tokens are 316 sequences; batch assumed to continue"),
    Phase(
        "DSA indexer warm-up",
        1000 * 14 * 202752,
        202752,
        14 * 202752,
        note="1,000 steps of 14 sequences; base frozen",
        attention="sparse",
    ),
    Phase("DSA sparse adaptation", 20e9, 202752, 64e6, note="batch of 64M tokens assumed", attention="sparse"),
)


def describe(schedule: Iterable[Phase] = GLM5) -> str:
    """The schedule as a table with its sums, for printing."""
    schedule, lines = list(schedule), []
    for p in schedule:
        first = p.first_batch_tokens or 0.0
        ramp = f" from {first / 1e6:g}M over {p.ramp_tokens / 1e9:g}B" if p.ramp_tokens else ""
        lines.append(
            f"{p.name:<24}{p.tokens / 1e12:>9.4f}T at {p.seq:>7,}  batch {p.batch_tokens / 1e6:.3g}M tokens"
            f" = {math.ceil(p.batch_tokens / p.seq):,} sequences{ramp}" + (f" ({p.note})" if p.note else "")
        )
    plain = sum(p.tokens for p in schedule if p.attention == "dense")
    total = sum(p.tokens for p in schedule)
    lines.append(f"{'sum':<24}{plain / 1e12:>9.2f}T" + (f", {total / 1e12:.2f}T with DSA" if total > plain else ""))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Throughput:
    """How a plan runs one phase at one batch: what a candidate is judged by."""

    step_s: float
    tokens_per_step: float
    num_chips: int
    replicas: int
    plan: str


@dataclass(frozen=True, slots=True)
class RunSegment:
    """A stretch of the campaign in which every step is alike."""

    phase: str
    steps: int
    throughput: Throughput

    @property
    def work_s(self) -> float:
        """Seconds of its steps, without failures."""
        return self.steps * self.throughput.step_s

    @property
    def tokens(self) -> float:
        """Tokens that it trains."""
        return self.steps * self.throughput.tokens_per_step

    def __post_init__(self) -> None:
        p = self.throughput
        for name, value, least in (
            ("steps", self.steps, 1),
            ("step_s", p.step_s, 1e-9),
            ("num_chips", p.num_chips, 1),
            ("replicas", p.replicas, 1),
            ("tokens_per_step", p.tokens_per_step, 1e-9),
        ):
            if not is_at_least(value, least):
                raise InputError(
                    f"phase {self.phase!r} {name}={value!r}: must be a finite number of at least {least:g}; check the "
                    "plan's step time"
                )


def run_segments(schedule: Sequence[Phase], throughput: Callable[[Phase, float], Throughput]) -> tuple[RunSegment, ...]:
    """The campaign's segments, given how each phase runs at each batch: `throughput(phase, batch_tokens)`."""
    out = []
    for phase in schedule:
        for tokens, batch in phase.batches():
            p = throughput(phase, batch)
            out.append(RunSegment(phase.name, max(1, round(tokens / p.tokens_per_step)), p))
    return tuple(out)


def choose_plans(
    schedule: Sequence[Phase],
    candidates: Sequence[Any],
    evaluate: Callable[[Any, Phase, float], Throughput],
    change_s: float = 0.0,
) -> tuple[RunSegment, ...]:
    """For each stretch of constant batch of each phase a candidate, so that the whole run ends soonest: while a batch
    grows, the plan may change with it, and each change takes `change_s`.

    evaluate(candidate, phase, batch_tokens) returns a `Throughput`, or raises InputError where the candidate cannot run
    that phase (does not fit memory, too few sequences, …). Raises InputError naming the reasons when none can.

    A dynamic program over the stretches: the best way to each is through the same candidate before, or a change.
    """
    ways: dict[int, tuple[float, tuple]] = {}  # candidate's place → seconds until here, (segment, (segment before, …))
    for phase in schedule:
        for tokens, batch in phase.batches():
            options = _options(phase, tokens, batch, candidates, evaluate)
            changed_s, changed = min(ways.values(), key=lambda way: way[0], default=(-change_s, ()))
            further = {}
            for place, segment in options.items():
                until_s, before = min(
                    (ways.get(place, (math.inf, ())), (changed_s + change_s, changed)), key=lambda way: way[0]
                )
                further[place] = until_s + segment.work_s, (segment, before)
            ways = further
    out: list[RunSegment] = []
    way = min(ways.values(), key=lambda way: way[0])[1] if ways else ()
    while way:
        segment, way = way
        out.append(segment)
    return tuple(reversed(out))


def _options(
    phase: Phase,
    tokens: float,
    batch: float,
    candidates: Sequence[Any],
    evaluate: Callable[[Any, Phase, float], Throughput],
) -> dict[int, RunSegment]:
    """Candidate's place → how it runs the stretch. Raises InputError when none can."""
    out, reasons = {}, []
    for place, candidate in enumerate(candidates):
        try:
            throughput = evaluate(candidate, phase, batch)
        except InputError as err:
            reasons.append(str(err))
            continue
        out[place] = RunSegment(phase.name, max(1, round(tokens / throughput.tokens_per_step)), throughput)
    if not out:
        raise InputError(
            f"phase {phase.name!r}: none of {len(candidates)} candidate plans can run it; "
            + (f"first reason: {reasons[0]}" if reasons else "give at least one candidate")
        )
    return out
