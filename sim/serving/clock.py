"""Step times of an engine on a grid of batch and context, interpolated: the clock of the serving simulation."""

from __future__ import annotations

import math
from typing import Protocol

from sim.serving.deployment import Deployment
from sim.serving.step_time import decode_step, prefill, work_s


class Clock(Protocol):
    """What the simulation asks of an engine. A test may give one with fixed times."""

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decode step yields for each request."""

    def decode_s(self, active: int, context: float) -> float:
        """Seconds of a step with `active` requests in the instance, `context` cached tokens each on average."""

    def prefill_s(self, prompts: int, prompt: float, cached: float) -> float:
        """Seconds that the chips work to prefill `prompts` prompts of `prompt` tokens on average, `cached` of them
        cached."""


class RooflineClock:
    """Step times of a deployment, computed once per grid point and interpolated: the simulator asks very often."""

    def __init__(self, d: Deployment, mode: str = "hybrid"):
        self.d, self.mode = d, mode
        self._decode: dict[tuple[int, int], float] = {}
        self._prefill: dict[tuple[int, int, int], float] = {}

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decode step yields for each request."""
        return self.d.tokens_per_step

    def _point(self, i: int, j: int) -> float:
        """Seconds of a decode step at point (i, j) of the grid: requests per group, and context (1.5 apart)."""
        key = (i, j)
        if key not in self._decode:
            self._decode[key] = decode_step(
                self.d, max(1.0, _grid(i)) if i else 1.0, 256.0 * 1.5**j if j else 0.0, self.mode
            ).total_s
        return self._decode[key]

    def decode_s(self, active: int, context: float) -> float:
        """Seconds of a step with `active` requests in the instance, `context` cached tokens each on average."""
        r = max(1.0, active / self.d.groups)
        x = _ungrid(r)
        i, u = int(x), x - int(x)
        y = math.log(context / 256.0) / math.log(1.5) if context > 384.0 else context / 384.0
        j = max(0, int(y))
        v = y - j
        low = self._point(i, j) * (1 - v) + self._point(i, j + 1) * v
        if not u:
            return low
        return low * (1 - u) + (self._point(i + 1, j) * (1 - v) + self._point(i + 1, j + 1) * v) * u

    def prefill_s(self, prompts: int, prompt: float, cached: float) -> float:
        """Seconds that the chips work to prefill `prompts` prompts of `prompt` tokens on average, `cached` of them
        cached; the instances see to it that a pass is no shorter than its issue."""
        per_group = math.ceil(prompts / self.d.groups) if self.d.groups > 1 else prompts
        if per_group > 8:
            per_group = round(per_group / 4) * 4
        key = (per_group, round(20 * math.log(max(prompt, 1.0))), round(20 * cached / prompt))
        if key not in self._prefill:
            whole = math.exp(key[1] / 20)
            past = min(whole * key[2] / 20, whole - 1e-6 if whole > 1 else 0.0)
            self._prefill[key] = work_s(prefill(self.d, whole, past, per_group, self.mode))
        # the grid rounds the prompt: scale to its true length
        return self._prefill[key] * prompt / math.exp(key[1] / 20)


def _grid(i: int) -> float:
    """1, 2, … 8, then eighths of each octave."""
    return float(i + 1) if i < 8 else 2.0 ** (3 + (i - 7) / 8)


def _ungrid(r: float) -> float:
    if r <= 8:
        return r - 1.0
    x = 7 + 8 * (math.log2(r) - 3)
    i = int(x)
    return i + (r - _grid(i)) / (_grid(i + 1) - _grid(i))
