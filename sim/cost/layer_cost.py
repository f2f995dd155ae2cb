"""What a layer costs one chip, in seconds and bytes: a sum of parts that can be told by name."""

from __future__ import annotations

from dataclasses import dataclass

Parts = tuple[tuple[str, float], ...]  # name → seconds or bytes; a tuple, so that costs stay hashable


@dataclass(frozen=True)
class LayerCost:
    """One layer (or embedding, or head) on one chip for one micro-batch, in seconds. `hideable_*` are inside `*_s`."""

    forward_s: float = 0.0
    backward_input_s: float = 0.0
    backward_weight_s: float = 0.0
    hideable_forward_s: float = 0.0
    hideable_backward_s: float = 0.0
    classes: Parts = ()  # operator class → seconds, forward + backward
    saved: Parts = ()  # activation bytes kept, by part

    def plus(self, other: LayerCost, times: float = 1.0) -> LayerCost:
        """This cost and `times` another."""
        return LayerCost(
            self.forward_s + times * other.forward_s,
            self.backward_input_s + times * other.backward_input_s,
            self.backward_weight_s + times * other.backward_weight_s,
            self.hideable_forward_s + times * other.hideable_forward_s,
            self.hideable_backward_s + times * other.hideable_backward_s,
            _merge(self.classes, other.classes, times),
            _merge(self.saved, other.saved, times),
        )


def _merge(a: Parts, b: Parts, times: float) -> Parts:
    out = dict(a)
    for key, value in b:
        out[key] = out.get(key, 0.0) + times * value
    return tuple(out.items())


@dataclass(frozen=True)
class LayerWork:
    """What one layer asks of device and host, in seconds, before its weights are sharded over data parallelism."""

    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    host_forward_s: float
    host_backward_s: float
    hideable_forward_s: float
    hideable_backward_s: float
    classes: Parts
    saved: Parts
