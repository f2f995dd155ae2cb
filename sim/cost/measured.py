"""Measured kernel and network times: the tables of `data/measured`, read when first asked for and interpolated.

Each table is a CSV of lines: key columns, then values over one axis (an empty cell was not measured). Between positions
a value is interpolated in the logarithm of the shape; what is interpolated is the ratio to a roofline, so that beyond
the grid the roofline goes on from the edge. Times are seconds here, rates FLOP/s.
Sources, licences and cautions: data/measured/README.md. Plain Python, no numpy: it runs in a browser too.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minglm import datafiles

Key = tuple[str, ...]
TINY_S = 2e-6  # no kernel is shorter: the floor of the roofline that ratios are taken to


@dataclass(frozen=True)
class Table:
    """The lines of one chip in one table. `lines`: key without the chip → values over `axis`, NaN where none."""

    axis: tuple[float, ...]
    lines: Mapping[Key, tuple[float, ...]]

    def __bool__(self) -> bool:
        return bool(self.lines)


@functools.cache
def _content(name: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    path = datafiles.data("measured", f"{name}.csv.gz")
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    rows = [tuple(row) for row in csv.reader(io.StringIO(text))]
    return rows[0], tuple(rows[1:])


@functools.cache
def table(name: str, chip: str) -> Table:
    """The lines of `chip` (such as 'h100') in a table of data/measured; empty where it was not measured."""
    header, rows = _content(name)
    first = next(i for i, word in enumerate(header) if word.isdigit())
    return Table(
        tuple(float(word) for word in header[first:]),
        {
            row[1:first]: tuple(float(cell) if cell else math.nan for cell in row[first:])
            for row in rows
            if row[0] == chip
        },
    )


def chips(name: str) -> tuple[str, ...]:
    """The chips that a table has lines of."""
    return tuple(sorted({row[0] for row in _content(name)[1]}))


def position(axis: Sequence[float], value: float) -> tuple[int, float]:
    """(index, share of the way to the next) of a value on an axis, in the logarithm; at the ends for one outside."""
    value = min(max(value, axis[0]), axis[-1])
    i = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return i, math.log(value / axis[i]) / math.log(axis[i + 1] / axis[i])


def interpolate(axis: Sequence[float], values: Sequence[float], at: float) -> float:
    """The value at `at`, straight in log-log between the measured positions and flat outside them.

    Raises:
        ValueError: nothing was measured on this line.
    """
    known = [(x, v) for x, v in zip(axis, values, strict=True) if not math.isnan(v)]
    if not known:
        raise ValueError("no value was measured on this line")
    if len(known) == 1:
        return known[0][1]
    places = [x for x, _ in known]
    i, share = position(places, at)
    return math.exp((1 - share) * math.log(known[i][1]) + share * math.log(known[i + 1][1]))


def least_from_here(values: Sequence[float]) -> tuple[float, ...]:
    """The least of each value and all after it (NaN: not measured, stays): times of growing work that never fall.

    More work that takes less time is noise, or a better kernel that the smaller work could be padded to.
    """
    least, out = math.inf, []
    for value in reversed(values):
        least = value if value < least else least
        out.append(value if math.isnan(value) else least)
    return tuple(reversed(out))


# ------------------------------------------------------------------ matmul


def roofline(m: float, n: float, k: float, flops_per_s: float, bytes_per_s: float, width: float) -> float:
    """Seconds of an (m, k) × (k, n) product at these roofs: a smooth corner, and no kernel under `TINY_S`."""
    compute = 2.0 * m * n * k / flops_per_s
    memory = (width * (m * k + n * k) + 2.0 * m * n) / bytes_per_s
    return (compute**4 + memory**4 + TINY_S**4) ** 0.25


@dataclass(frozen=True)
class MatmulGrid:
    """Measured over roofline time of one dtype on one chip, in the logarithm, over m, n and k."""

    m_axis: tuple[float, ...]
    n_axis: tuple[float, ...]
    k_axis: tuple[float, ...]
    cells: Mapping[tuple[int, int], tuple[float, ...]]  # (index of n, index of k) → over m
    roofs: tuple[float, float, float]
    best: float  # FLOP/s of the fastest shape
    held: float = math.inf  # FLOP/s that three in four of the largest shapes stay below: what a power limit leaves

    def over_roofline(self, m: float, n: float, k: float) -> float:
        """Measured seconds over `roofline`'s; beyond the grid that of its edge."""
        im, fm = position(self.m_axis, m)
        i_n, fn = position(self.n_axis, n)
        ik, fk = position(self.k_axis, k)
        total = weight = 0.0
        for dn, wn in ((0, 1 - fn), (1, fn)):
            for dk, wk in ((0, 1 - fk), (1, fk)):
                line = self.cells.get((i_n + dn, ik + dk))
                if line is None or wn * wk <= 0:
                    continue
                total += wn * wk * ((1 - fm) * line[im] + fm * line[im + 1])
                weight += wn * wk
        if weight == 0.0:  # a corner that nobody measured (n and k both beyond 51,200): its nearest inner cell
            return self.over_roofline(m, n, self.k_axis[ik - 1])
        return math.exp(total / weight)

    def seconds(self, m: float, n: float, k: float) -> float:
        """Seconds of one product on the chip that was measured."""
        return self.over_roofline(m, n, k) * roofline(m, n, k, *self.roofs)


# The fp8 rows time an engine's layer: activations quantised, then multiplied. What the quantisation takes shows where
# the product is next to nothing (n = 128): the excess over half of the bf16 time there. It is taken out, so that a step
# may count its own casts; at least this share of the time is the product's (assumed).
LEAST_MATMUL = 0.35
# Sides from which a product runs long enough for its power limit to slow it, and the share of such shapes that are
# slower than the rate taken for it (assumed).
LARGE, HELD_QUANTILE = 8192, 0.75


# Dense bf16 peak and memory bandwidth of the boards that were measured (data sheets): the roofline under the ratios.
ROOFS = {
    "a100": (312e12, 2.0e12),
    "h100": (989e12, 3.35e12),
    "h200": (989e12, 4.8e12),
    "b200": (2250e12, 8.0e12),
    "b300": (2250e12, 8.0e12),
    "gb200": (2500e12, 8.0e12),
    "gb300": (2500e12, 8.0e12),
}


@functools.cache
def matmul_grid(chip: str, dtype: str) -> MatmulGrid | None:
    """The measured matmuls of a chip in 'bfloat16', 'fp8' or 'fp8_block'; None where there are none."""
    lines = table("matmul", chip)
    some = {key[1:]: values for key, values in lines.lines.items() if key[0] == dtype}
    if not some:
        return None
    width = 2.0 if dtype == "bfloat16" else 1.0
    n_axis, k_axis = (tuple(sorted({float(key[i]) for key in some})) for i in (0, 1))
    flops_per_s, bytes_per_s = ROOFS[chip]
    cells, best, large = {}, 0.0, []
    roofs = (flops_per_s * 2.0 / width, bytes_per_s, width)
    narrow = {} if dtype == "bfloat16" else {key[2]: v for key, v in lines.lines.items() if key[:2] == (dtype, "128")}
    wide = {key[2]: v for key, v in lines.lines.items() if key[:2] == ("bfloat16", "128")}
    for (n, k), values in some.items():
        line, last = [], 0.0
        for i, (m, us) in enumerate(zip(lines.axis, values, strict=True)):
            if not math.isnan(us):
                seconds = us * 1e-6
                if k in narrow:
                    quantizing = max(narrow[k][i] - 0.5 * wide[k][i], 0.0) * 1e-6
                    seconds = max(seconds - quantizing, seconds * LEAST_MATMUL)
                last = math.log(seconds / roofline(m, float(n), float(k), *roofs))
                rate = 2.0 * m * float(n) * float(k) / seconds
                best = max(best, rate)
                if min(m, float(n), float(k)) >= LARGE:
                    large.append(rate)
            line.append(last)
        cells[n_axis.index(float(n)), k_axis.index(float(k))] = tuple(line)
    held = sorted(large)[int(HELD_QUANTILE * (len(large) - 1))] if large else math.inf
    return MatmulGrid(lines.axis, n_axis, k_axis, cells, roofs, best, held)


@functools.cache
def matmul_floor_s(chip: str) -> float | None:
    """Seconds of the shortest matmul that was measured on a chip, in bf16; None without a table."""
    values = [v for key, line in table("matmul", chip).lines.items() if key[0] == "bfloat16" for v in line]
    known = [v for v in values if not math.isnan(v)]
    return 1e-6 * min(known) if known else None


def grid_of_points(
    points: Sequence[tuple[int, int, int, float]], flops_per_s: float, bytes_per_s: float
) -> MatmulGrid | None:
    """A grid from measured (m, n, k, FLOP/s), such as `minglm probe` makes; None where they fill no grid."""
    axes = tuple(tuple(sorted({float(point[i]) for point in points})) for i in range(3))
    known = {(float(m), float(n), float(k)): rate for m, n, k, rate in points}
    if min(map(len, axes)) < 2 or len(known) != len(axes[0]) * len(axes[1]) * len(axes[2]):
        return None
    roofs, cells = (flops_per_s, bytes_per_s, 2.0), {}
    for i, n in enumerate(axes[1]):
        for j, k in enumerate(axes[2]):
            line = ((2.0 * m * n * k / known[m, n, k], roofline(m, n, k, *roofs)) for m in axes[0])
            cells[i, j] = tuple(math.log(seconds / roof) for seconds, roof in line)
    return MatmulGrid(axes[0], axes[1], axes[2], cells, roofs, max(known.values()))


# ------------------------------------------------------------------ attention


@dataclass(frozen=True)
class Curves:
    """Values over an axis, one line a position of a second axis."""

    axis: tuple[float, ...]
    second: tuple[float, ...]
    lines: tuple[tuple[float, ...], ...]

    def at(self, first: float, second: float) -> float:
        """The value there, interpolated in the logarithm of both and of the value; flat outside."""
        if len(self.second) == 1:
            return interpolate(self.axis, self.lines[0], first)
        i, share = position(self.second, second)
        low = interpolate(self.axis, self.lines[i], first)
        return low ** (1 - share) * interpolate(self.axis, self.lines[i + 1], first) ** share


def curves_of(lines: Table, chosen: Callable[[Key], str | None]) -> Curves | None:
    """The lines that `chosen` gives a position on a second axis; None where there is none."""
    some = sorted((float(second), values) for key, values in lines.lines.items() if (second := chosen(key)) is not None)
    return Curves(lines.axis, tuple(x for x, _ in some), tuple(v for _, v in some)) if some else None


@functools.cache
def _attention_curves(chip: str, width: int) -> Curves | None:
    if width == MLA_WIDTH:
        return curves_of(table("mla_prefill", chip), lambda key: key[0])
    return curves_of(table("attention", chip), lambda key: key[1] if key[0] == str(width) else None)


MLA_WIDTH = 192128  # MLA's heads: 192 wide scores, 128 wide values
_WIDTHS = (64, 128, 256)


def attention_flops_per_s(chip: str, length: float, heads: float, qk: float, v: float) -> float | None:
    """FLOP/s of the causal half in the forward pass of `heads` heads × sequences; None for a chip not measured.

    A width between two measured ones takes the mean of theirs in its logarithm, one outside the nearest.
    """
    if qk == 192 and v == 128 and (curves := _attention_curves(chip, MLA_WIDTH)):
        return 1e12 * curves.at(heads, length)
    width = min(max((qk + v) / 2, _WIDTHS[0]), _WIDTHS[-1])
    i, share = position(_WIDTHS, width)
    rates = [c.at(heads, length) for w in (_WIDTHS[i], _WIDTHS[i + 1]) if (c := _attention_curves(chip, w))]
    if not rates:
        return None
    return 1e12 * rates[0] ** (1 - share) * rates[-1] ** share


def backward_over_forward(chip: str, length: float, deterministic: bool = False) -> float | None:
    """Time of attention's backward over its forward (widths 192/128); None for a chip not measured."""
    lines = table("attention_backward", chip)
    values = lines.lines.get((str(int(deterministic)),))
    return interpolate(lines.axis, values, length) if values else None


# ------------------------------------------------------------------ MLA decode, DSA


def mla_decode_s(chip: str, heads: float, batch: float, context: float) -> float | None:
    """Seconds of MLA's attention kernel for one new token a sequence, heads of one rank; None where not measured."""
    lines = table("mla_decode", chip)
    counts = sorted({int(h) for h, _ in lines.lines})
    if not counts:
        return None
    near = min(counts, key=lambda h: abs(math.log(h / max(heads, 1.0))))
    curves = curves_of(lines, lambda key: key[1] if key[0] == str(near) else None)
    assert curves is not None
    return 1e-6 * curves.at(context, batch)


def dsa_layer_s(chip: str, phase: str, dtype: str, tp: int, batch: float, context: float) -> float | None:
    """Seconds of a whole GLM-5 attention layer on one rank (projections, indexer, top-k, sparse attention, output).

    Args:
        phase: prefill (of `context` new tokens a sequence) | decode (one new token after `context`).
        dtype: of the projections: bfloat16 | fp8_block. tp: 1, 2, 4 or 8.
    """
    curves = _dsa_layer_curves(chip, phase, dtype, tp)
    return 1e-6 * curves.at(context, batch) if curves else None


@functools.cache
def _dsa_layer_curves(chip: str, phase: str, dtype: str, tp: int) -> Curves | None:
    """Every batch over every context, never less for more of either.

    Large batches were measured at short contexts only: beyond, a batch grows by what the next smaller one grows by.
    """
    some = curves_of(table("dsa_layer", chip), lambda key: key[3] if key[:3] == (phase, dtype, str(tp)) else None)
    if some is None:
        return None
    whole: list[list[float]] = []
    for line in some.lines:
        last = max(i for i, value in enumerate(line) if not math.isnan(value))
        inside = [interpolate(some.axis, line, x) for x in some.axis[: last + 1]]
        below = whole[-1] if whole else [inside[-1]] * len(line)
        whole.append(inside + [inside[-1] + below[i] - below[last] for i in range(last + 1, len(line))])
    for i in range(len(whole) - 1, -1, -1):
        larger = whole[i + 1] if i + 1 < len(whole) else whole[i]
        whole[i] = list(least_from_here([min(pair) for pair in zip(whole[i], larger, strict=True)]))
    return Curves(some.axis, some.second, tuple(map(tuple, whole)))


def dsa_part_s(chip: str, part: str, tokens: float, context: float) -> float | None:
    """Seconds of a part of GLM-5's sparse attention: 'scores', 'top_k' or 'attention', `tokens` queries on all heads.

    Linear in the tokens outside of the measured 1,024 to 16,384; scores and top-k linear in the context beyond it.
    """
    lines = table("dsa_parts", chip)
    curves = curves_of(lines, lambda key: key[1] if key[0] == part else None)
    if curves is None:
        return None
    inside = min(max(tokens, curves.second[0]), curves.second[-1])
    longest = min(context, curves.axis[-1])
    growth = tokens / inside * (context / longest if part != "attention" else 1.0)
    return 1e-6 * curves.at(max(longest, inside), inside) * growth


@functools.cache
def dsa_flops_per_s(chip: str, part: str) -> float | None:
    """FLOP/s of GLM-5's 'scores' (32 heads of 128) or sparse 'attention' (64 heads, 2,048 keys of 576 + 512).

    Of 8,192 new tokens of 32,768: the scores of what each sees, the attention over the keys it chose.
    """
    tokens, context = 8192.0, 32768.0
    seconds = dsa_part_s(chip, part, tokens, context)
    if seconds is None:
        return None
    visible = context - (tokens - 1) / 2
    flops = 2 * tokens * (visible * 32 * 128 if part == "scores" else 2048 * 64 * (576 + 512))
    return flops / seconds


# ------------------------------------------------------------------ experts


def moe_s(
    chip: str, dtype: str, tokens: float, experts: int, ep: int, distribution: str = "balanced", hidden: int = 0
) -> float | None:
    """Seconds of one rank's routed experts in the forward pass, 8 chosen of 128 or 256.

    Args:
        tokens: of the whole expert-parallel group, as the table counts them.
        distribution: balanced | power_law_1.01. hidden: 4096, 6144 or 7168; 0: the first there is.
    """
    lines = table("moe", chip)
    for (kind, width, _, count, ranks, spread), values in sorted(lines.lines.items()):
        if (kind, int(count), int(ranks), spread) == (dtype, experts, ep, distribution) and hidden in (0, int(width)):
            return 1e-6 * interpolate(lines.axis, values, tokens)
    return None


@functools.cache
def imbalance(ep: float) -> float:
    """Slowest rank's expert time over that of balanced tokens, for the power law that fits traces of real routing.

    The median over chips, dtypes and sizes at 4,096 tokens of the group at each EP, interpolated in its logarithm.
    """
    ratios: dict[float, list[float]] = {}
    for chip in chips("moe"):
        lines = table("moe", chip)
        for key, skewed in lines.lines.items():
            if key[-1] == "balanced" or (even := lines.lines.get((*key[:-1], "balanced"))) is None:
                continue
            some = [
                a / b
                for x, a, b in zip(lines.axis, skewed, even, strict=True)
                if x == 4096 and not math.isnan(a) and not math.isnan(b)
            ]
            ratios.setdefault(float(key[4]), []).extend(some)
    axis = sorted(one for one, some in ratios.items() if some)
    middle = [sorted(ratios[one])[len(ratios[one]) // 2] for one in axis]
    return max(1.0, interpolate(axis, middle, ep))


def routing_s(tokens: float) -> float:
    """Seconds of gate, top-k and shuffle of one expert layer's forward pass on an A800 (128 experts, 8 chosen)."""
    lines = table("moe_routing", "a800")
    return sum(1e-6 * interpolate(lines.axis, values, tokens) for values in lines.lines.values())
