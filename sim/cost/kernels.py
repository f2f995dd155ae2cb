"""How long a kernel takes on a chip: a roofline whose compute roof depends on the shape.

Matmul: the library tiles the output; tiles run in waves over the chip's cores, and each tile pays a fill and drain of
its K loop. The best of a few tile sizes is taken, as autotuned libraries do. The curve is generic (marked assumed) and
is scaled to the chip's own measured best matmul; where a chip has measured points (`Chip.matmul_points`) the ratio of
measured to generic, interpolated in log(smallest side) and log(product of the others), corrects its compute roof.

Attention: a share of the best matmul rate that grows with the number of keys, S/(S + S½) (FlashAttention-2, arXiv
2307.08691 Fig. 4–6; FlashAttention-3, arXiv 2407.08608 Fig. 5–6). Memory passes: bytes over a share of HBM bandwidth.

Every constant is in `CONSTANTS` with its label.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from sim.cost.operators import Op
from sim.spec.hardware import Chip

# name: (value, label, source)
CONSTANTS = {
    "tile_fill_s": (
        1.8e-6,
        "assumed",
        "time a 256×128 tile loses to filling and draining its K loop and writing its output",
    ),
    "memory_share": (
        0.85,
        "assumed",
        "share of HBM bandwidth that streaming kernels reach (STREAM-like results are 80-92% on A100, H100)",
    ),
    "kernel_s": (2.5e-6, "assumed", "start and end of a kernel on the device that back-to-back launches do not hide"),
    "roof_norm": (4.0, "assumed", "sharpness of the corner between compute and memory roofs (a p-norm)"),
    "max_matmul_share": (
        0.80,
        "assumed",
        "best matmul as a share of peak where a chip has no measured one (A100 87%, H100 80%, B200 78%)",
    ),
}
# Tile sizes and the share of the core's rate each reaches (assumed; CUTLASS profiles show this order).
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.80), (64, 128, 0.80), (64, 64, 0.62))
# Cores that tiles are spread over (published by the makers). A chip not listed is taken as 128 cores, marked assumed.
CORES = {
    "A100": 108,
    "A800": 108,
    "H100": 132,
    "H800": 132,
    "H200": 132,
    "H20": 78,
    "GH200": 132,
    "B200": 148,
    "GB200": 148,
    "B300": 160,
    "GB300": 160,
    "MI300X": 304,
    "MI325X": 304,
    "V100": 80,
    "A10": 72,
    "L40": 142,
    "910B1": 24,
    "910B2": 24,
    "910B3": 20,
    "910B4": 20,
    "910A": 32,
    "910C": 24,
}
DEFAULT_CORES = 128


def _c(name: str) -> float:
    return CONSTANTS[name][0]


def cores_of(chip: Chip) -> tuple[int, str]:
    """Cores of a chip by the longest listed name found in its name, and the label of that figure."""
    name = chip.name.upper().replace("-", "").replace("_", "")
    matches = [key for key in CORES if key in name]
    if matches:
        return CORES[max(matches, key=len)], "published"
    return DEFAULT_CORES, "assumed"


@functools.lru_cache(maxsize=65536)
def tile_share(m: float, n: float, k: float, batch: float, cores: int, fill: float) -> float:
    """Share of the best matmul rate that an (m, k) × (k, n) product reaches, `batch` of them in one launch.

    `fill`: steps of K that a tile loses (its fill time × the core's rate).
    """
    best = 0.0
    # A tile must hold the drained K loop; few tiles with a long K are split along K (stream-K) at the price of more
    # fills.
    for tm, tn, rate in TILES:
        tiles = math.ceil(m / tm - 1e-9) * math.ceil(n / tn - 1e-9) * batch
        for split in (1, 2, 4):
            if split > 1 and (tiles >= cores or k / split < 512):
                break
            pieces = tiles * split
            waves = max(math.ceil(pieces / cores - 1e-9), 1)
            time = waves * tm * tn * (k / split + fill) / rate
            best = max(best, m * n * k * batch / (cores * time))
    return best


@dataclass(frozen=True)
class Kernels:
    """Kernel times on one chip under one software stack (its attention shares, see `stacks`)."""

    chip: Chip
    attention_forward: float = 0.6  # share of the best matmul rate, many keys
    attention_backward: float = 0.5
    attention_half: float = 600.0  # keys at which half of that is reached
    sustained: float = 1.0  # matmul rate held in a long run / best measured one (power, clocks)
    scale: float = 1.0  # the stack's one fitted scalar: kernel speed / modelled speed

    @functools.cached_property
    def matmul_flops(self) -> dict[bool, float]:
        """Best matmul rate: {False: bf16, True: fp8}."""
        chip = self.chip
        wide = chip.peak("bf16").value
        best = chip.max_matmul_flops.value if chip.max_matmul_flops else wide * _c("max_matmul_share")
        if chip.matmul_points and not chip.max_matmul_flops:
            best = max(p[3] for p in chip.matmul_points)
        low = best
        if "fp8" in chip.peak_flops:
            peak8 = chip.peak("fp8").value
            low = chip.max_matmul_flops_fp8.value if chip.max_matmul_flops_fp8 else best * peak8 / wide
        return {False: best * self.sustained, True: max(low * self.sustained, best * self.sustained)}

    @functools.cached_property
    def cores(self) -> int:
        """Cores that run matmul tiles."""
        return cores_of(self.chip)[0]

    @functools.cached_property
    def _fill(self) -> float:
        return round(_c("tile_fill_s") * self.matmul_flops[False] / self.cores / (2 * 256 * 128))

    @functools.cached_property
    def bandwidth(self) -> float:
        """Bytes per second of memory that kernels reach."""
        return self.chip.memory_bytes_per_s.value * _c("memory_share")

    @functools.cached_property
    def _points(self) -> tuple[tuple[float, float, float], ...]:
        """Measured points as (log smallest side, log product of the others, log measured/generic)."""
        chip, rows = self.chip, []
        for m, n, k, rate in chip.matmul_points:
            generic = 2.0 * m * n * k / (self.matmul_flops[False] * tile_share(m, n, k, 1.0, self.cores, self._fill))
            a, b, c = sorted((m, n, k))
            rows.append((math.log(a), math.log(b * c), math.log(2.0 * m * n * k / rate / generic)))
        return tuple(rows)

    def _correction(self, m: float, n: float, k: float) -> float:
        """Measured time / generic time near this shape:
        inverse-distance weights in log space, clamped to the points.
        """
        a, b, c = sorted((max(m, 1.0), max(n, 1.0), max(k, 1.0)))
        x, y, total, weight = math.log(a), math.log(b * c), 0.0, 0.0
        x = min(max(x, min(p[0] for p in self._points)), max(p[0] for p in self._points))
        y = min(max(y, min(p[1] for p in self._points)), max(p[1] for p in self._points))
        for px, py, value in self._points:
            w = 1.0 / ((px - x) ** 2 + (py - y) ** 2 + 1e-3) ** 2
            total, weight = total + w * value, weight + w
        return math.exp(total / weight)

    def _roofline(self, flops, size, m, n, k, batch, low) -> float:
        compute = flops / (self.matmul_flops[low] * tile_share(m, n, k, batch, self.cores, self._fill))
        if self._points:
            compute *= self._correction(m, n, k)  # of the compute roof alone: bandwidth has its own
        memory, p = size / self.bandwidth, _c("roof_norm")
        high, other = max(compute, memory), min(compute, memory)
        return high * (1.0 + (other / high) ** p) ** (1.0 / p) if high > 0 else 0.0

    def time(self, op: Op) -> float:
        """Seconds of one operator on the device, its own start and end included."""
        if op.kind == "matmul":
            # a loop on a few streams fills half of the gaps that single matmuls leave (assumed)
            share = math.sqrt(op.batch) if op.loop else op.batch
            time = self._roofline(op.flops, op.bytes, op.m, op.n, op.k, share, op.low)
        elif op.kind == "attention":
            share = self.attention_backward if op.backward else self.attention_forward
            rate = self.matmul_flops[False] * share * op.m / (op.m + self.attention_half) * min(1.0, op.k / 128) ** 0.4
            time = max(op.flops * op.slow / rate, op.bytes / self.bandwidth)
        else:
            time = op.bytes / self.bandwidth
        return time / self.scale + op.kernels * _c("kernel_s")
