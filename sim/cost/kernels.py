"""How long a kernel takes on a chip: measured tables where there are any, else a roofline that depends on the shape.

A chip with tables (`Chip.tables`, `sim.cost.measured`): matmuls by dtype and shape and attention by length, heads and
width, as measured. They were short runs on a cool chip, so a long run's rate is held under the chip's best sustained
matmul (`max_matmul_flops`), and a board with less power than the measured one runs its clock lower.

A chip without: the library tiles the output; tiles run in waves over the cores, and each pays a fill and drain of its K
loop; the best of a few tile sizes is taken and scaled to the chip's best matmul. Measured points
(`Chip.matmul_points`) correct it, interpolated in log(smallest side) and log(product of the others). Attention is a
share of the best matmul that grows with the keys, S/(S + S½) (FlashAttention-2, arXiv 2307.08691 Fig. 4–6;
FlashAttention-3, arXiv 2407.08608 Fig. 5–6). Memory passes: bytes over a share of HBM bandwidth.

Every constant is in `CONSTANTS` with its label.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from sim.base.tape import call, least, most
from sim.cost import measured
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
    "memory_share_blackwell": (
        0.70,
        "measured",
        "the same on B200 (0.67 of 8 TB/s in elementwise kernels, MooreThreads/SimuMax e691807; GB200, B300 alike)",
    ),
    "kernel_s": (2.5e-6, "assumed", "start and end of a kernel on the device that back-to-back launches do not hide"),
    "power_exponent": (
        1 / 3,
        "assumed",
        "clock of a tensor core held by its power limit grows as power to a third (dynamic power is f V², V ~ f); "
        "range 0.25 to 0.5",
    ),
    "roof_norm": (4.0, "assumed", "sharpness of the corner between compute and memory roofs (a p-norm)"),
    "max_matmul_share": (
        0.80,
        "assumed",
        "best matmul as a share of peak where a chip has no measured one (A100 87%, H100 80%, B200 78%)",
    ),
}
# Bandwidth of passes that jump (permutation of rows) or reduce along long rows (fused cross-entropy) over plain ones'.
# Measured on B200: 0.50 and 0.32 of peak, plain passes 0.67 (MooreThreads/SimuMax e691807); taken for all chips.
_SLOWER = (("permute", 0.75), ("unpermute", 0.75), ("loss", 0.48))
SLOWER_PASSES = {name + end: share for end in ("", ".backward") for name, share in _SLOWER}
# Tile sizes and the share of the core's rate each reaches (assumed; CUTLASS profiles show this order).
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.80), (64, 128, 0.80), (64, 64, 0.62))
# Cores that tiles are spread over where a chip does not say.
DEFAULT_CORES = 128


def _c(name: str) -> float:
    return CONSTANTS[name][0]


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


# Power of the boards whose kernels were measured, W (data sheets).
MEASURED_AT_W = {"a100": 400.0, "h100": 700.0, "h200": 700.0, "b200": 1000.0, "b300": 1100.0}
# Chips of data/measured whose attention backward stands for another's.
_BACKWARD_OF = {"a100": "a100", "h100": "h200", "h200": "h200"}


def _over_roofline(grid: measured.MatmulGrid, m: float, n: float, k: float) -> float:
    return grid.over_roofline(m, n, k)


def _held(grid: measured.MatmulGrid) -> float:
    return grid.held


@dataclass(frozen=True)
class Kernels:
    """Kernel times on one chip under one software stack (its attention kernel, its scalars)."""

    chip: Chip
    attention_forward: float = 0.6  # share of the best matmul rate, many keys; where the chip has no table
    attention_backward: float = 0.5
    attention_half: float = 600.0  # keys at which half of that is reached
    attention_ratio: float = 1.0  # speed of the stack's attention kernel over the fastest of the chip
    scale: float = 1.0  # matmul speed / modelled speed
    attention_scale: float = 1.0  # attention speed / modelled speed
    fp8_kernel: str = "fp8"  # one scale a tensor (fp8) or a block (fp8_block)
    long_run: bool = False  # a training step: no faster than what a power limit leaves of the tables' matmuls

    @functools.cached_property
    def matmul_flops(self) -> dict[bool, float]:
        """Best matmul rate of a long run: {False: bf16, True: fp8}."""
        chip = self.chip
        wide = chip.peak("bf16").value
        best = chip.max_matmul_flops.value if chip.max_matmul_flops else wide * _c("max_matmul_share")
        if chip.matmul_points and not chip.max_matmul_flops:
            best = max(p[3] for p in chip.matmul_points)
        low = best
        if "fp8" in chip.peak_flops:
            peak8 = chip.peak("fp8").value
            low = chip.max_matmul_flops_fp8.value if chip.max_matmul_flops_fp8 else best * peak8 / wide
        return {False: best * self.clock, True: most(low, best) * self.clock}

    @functools.cached_property
    def clock(self) -> float:
        """Clock under this board's power over that of the measured board; 1 where it has as much or none was."""
        reference = MEASURED_AT_W.get(self.chip.tables, 0.0)
        return least(1.0, self.chip.power_w.value / reference) ** _c("power_exponent") if reference else 1.0

    @functools.cached_property
    def cores(self) -> int:
        """Cores that run matmul tiles."""
        return self.chip.cores or DEFAULT_CORES

    @functools.cached_property
    def _fill(self) -> float:
        return round(_c("tile_fill_s") * self.matmul_flops[False] / self.cores / (2 * 256 * 128))

    @functools.cached_property
    def bandwidth(self) -> float:
        """Bytes per second of memory that kernels reach."""
        share = _c("memory_share_blackwell" if self.chip.family == "blackwell" else "memory_share")
        return self.chip.memory_bytes_per_s.value * share

    @functools.cached_property
    def _grids(self) -> dict[bool, measured.MatmulGrid | None]:
        tables, chip = self.chip.tables, self.chip
        if not tables:  # a probe's points fill a grid of their own
            peak, bandwidth = chip.peak("bf16").value, chip.memory_bytes_per_s.value
            own = call(measured.grid_of_points, chip.matmul_points, peak, bandwidth) if chip.matmul_points else None
            return {False: own, True: own}
        wide = measured.matmul_grid(tables, "bfloat16")
        low = measured.matmul_grid(tables, self.fp8_kernel) if "fp8" in self.chip.peak_flops else None
        return {False: wide, True: low or wide}

    @functools.cached_property
    def _roofs(self) -> dict[bool, tuple[float, float, float]]:
        chip = self.chip
        low = "fp8" in chip.peak_flops and self._grids[True] is not self._grids[False]
        wide = (chip.peak("bf16").value * self.clock, chip.memory_bytes_per_s.value, 2.0)
        return {False: wide, True: (chip.peak("fp8").value * self.clock, wide[1], 1.0) if low else wide}

    @functools.cached_property
    def _times(self) -> dict[tuple[float, float, float, bool], float]:
        return {}

    def _measured_matmul(self, m: float, n: float, k: float, low: bool) -> float:
        """Seconds of one product in a long run, from the chip's table."""
        key = (m, n, k, low)
        if key not in self._times:
            grid = self._grids[low]
            assert grid is not None
            seconds = call(_over_roofline, grid, m, n, k) * measured.roofline(m, n, k, *self._roofs[low])
            # no long run is faster than the largest of the short ones, which their power limit slowed already
            held = call(_held, grid) * self.clock / self.scale if self.long_run else self.matmul_flops[low]
            self._times[key] = most(seconds, 2.0 * m * n * k / least(held, self.matmul_flops[low]))
        return self._times[key]

    @functools.cached_property
    def _points(self) -> tuple[tuple[float, float, float], ...]:
        """Measured points as (log smallest side, log product of the others, log measured/generic)."""
        chip, rows = self.chip, []
        for m, n, k, rate in chip.matmul_points:
            share = call(tile_share, m, n, k, 1.0, self.cores, self._fill)
            generic = 2.0 * m * n * k / (self.matmul_flops[False] * share)
            a, b, c = sorted((m, n, k))
            rows.append((math.log(a), math.log(b * c), call(math.log, 2.0 * m * n * k / rate / generic)))
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
        return call(math.exp, total / weight)

    def _matmul(self, op: Op) -> float:
        # a loop on a few streams fills half of the gaps that single matmuls leave (assumed)
        share = math.sqrt(op.batch) if op.loop else op.batch
        memory = op.bytes / self.bandwidth
        if self._grids[op.low]:
            rows = max(op.m, 64.0) if op.batch > 1 else op.m  # grouped kernels pad each item to a tile
            times = op.flops / (
                2.0 * op.m * op.n * op.k * op.batch
            )  # products of this shape (Newton-Schulz takes many)
            return most(self._measured_matmul(rows * share, op.n, op.k, op.low) * times * op.batch / share, memory)
        filled = call(tile_share, op.m, op.n, op.k, share, self.cores, self._fill)
        compute = op.flops / (self.matmul_flops[op.low] * filled)
        if self._points:
            compute *= self._correction(op.m, op.n, op.k)  # of the compute roof alone: bandwidth has its own
        p = _c("roof_norm")
        high, other = most(compute, memory), least(compute, memory)
        return high * (1.0 + (other / high) ** p) ** (1.0 / p) if op.flops or op.bytes else 0.0

    def _attention(self, op: Op) -> float:
        memory, tables, width = op.bytes / self.bandwidth, self.chip.tables, op.n or op.k
        heads = max(op.batch, 1.0)
        rate = measured.attention_flops_per_s(tables, op.m, heads, op.k, width) if tables else None
        if rate is None and self.chip.attention_points:
            return most(self._probed_attention(op, heads), memory)
        if rate is None:
            share = self.attention_backward if op.backward else self.attention_forward
            rate = self.matmul_flops[False] * share * op.m / (op.m + self.attention_half) * min(1.0, op.k / 128) ** 0.4
            return most(op.flops * op.slow / rate, memory)
        forward = op.flops * op.slow / (rate * self.clock * self.attention_ratio)
        if op.backward:
            longer = 2.5 * self.attention_forward / self.attention_backward
            if op.k != width:
                longer = measured.backward_over_forward(_BACKWARD_OF.get(tables, "gb200"), op.m) or longer
            forward *= longer / 2.5  # its FLOPs are 2.5 times the forward's
        return most(forward, memory)

    def _probed_attention(self, op: Op, heads: float) -> float:
        """Seconds of attention from the chip's own points: inverse-distance weights in the logarithm of the shape."""
        rate = ratio = weight = 0.0
        for length, count, width, flops_per_s, longer in self.chip.attention_points:
            away = [math.log(a / b) for a, b in ((op.m, length), (heads, count), (op.k, width))]
            w = 1.0 / (sum(x * x for x in away) + 1e-3)
            rate, ratio, weight = rate + w * math.log(flops_per_s), ratio + w * longer, weight + w
        seconds = op.flops * op.slow / math.exp(rate / weight)
        return seconds * (ratio / weight) / 2.5 if op.backward else seconds

    def _sparse(self, op: Op) -> float:
        """DSA's parts: sparse attention and the indexer's scores, at the rate that GLM-5's reach on this chip."""
        part = "scores" if op.group == "indexer" else "attention"
        rate = measured.dsa_flops_per_s(self.chip.tables, part) if self.chip.tables else None
        if rate is None:
            return self._attention(op)
        longer = self.attention_forward / self.attention_backward if op.backward else 1.0
        return most(op.flops * longer / rate, op.bytes / self.bandwidth)

    def time(self, op: Op) -> float:
        """Seconds of one operator on the device, its own start and end included (a measured time has them in it)."""
        if op.kind == "matmul":
            time, started = self._matmul(op) / self.scale, bool(self._grids[op.low])
        elif op.kind in ("attention", "sparse"):
            attention = self._attention if op.kind == "attention" else self._sparse
            time, started = attention(op) / self.attention_scale, bool(self.chip.tables or self.chip.attention_points)
        else:
            time, started = op.bytes / (self.bandwidth * SLOWER_PASSES.get(op.name, 1.0)), False
        return time if started else time + op.kernels * _c("kernel_s")
