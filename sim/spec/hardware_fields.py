"""What a file in `data/chips` and `data/clusters` may say: its keys, their dimensions and defaults, measured points."""

from __future__ import annotations

from minglm.errors import InputError
from sim.base.units import parse, whole

# Figures of a chip and of a cluster → their dimension, and all keys that their files know.
CHIP = {
    "memory_bytes": "bytes",
    "memory_bytes_per_s": "bytes_per_s",
    "power_w": "power",
    "price_usd": "money",
    "rent_usd_per_hour": "money_per_hour",
    "max_matmul_flops": "flops",
    "max_matmul_flops_fp8": "flops",
    "sustained": "ratio",
    "host_op_s": "time",
    "failures_per_chip_hour": "per_hour",
}
CHIP_TEXTS = ("vendor", "notes", "matmul_source", "tables", "family", "attention", "attention_as", "cluster")
CHIP_KEYS = {
    *CHIP,
    "name",
    "peak_flops",
    "matmul_points",
    "attention_points",
    "host_backward",
    "denominators",
    "cores",
    *CHIP_TEXTS,
    "aliases",
    "like",
}
TIER_KEYS = {
    "name",
    "topology",
    "size",
    "bytes_per_s",
    "links",
    "latency_s",
    "efficiency",
    "oversubscription",
    "tables",
}
CLUSTER = {
    "host_bytes_per_s": "bytes_per_s",
    "host_memory_bytes": "bytes",
    "storage_bytes_per_s": "bytes_per_s",
    "host_power_w": "power",
    "pue": "ratio",
    "electricity_usd_per_kwh": "money_per_kwh",
    "system_price_usd": "money",
}
CLUSTER_KEYS = {*CLUSTER, "name", "chip", "chips_per_node", "tiers", "chips", "notes", "aliases", "like"}
CLUSTER_DEFAULTS = {
    "host_bytes_per_s": "25 GB/s",
    "host_memory_bytes": "128 GiB",
    "storage_bytes_per_s": "100 GB/s",
    "host_power_w": "250 W",
    "pue": 1.2,
    "electricity_usd_per_kwh": "$0.08/kWh",
}


def matmul_points(raw: object, name: str) -> tuple[tuple[int, int, int, float], ...]:
    """Measured (m, n, k, FLOP/s), from rows of a file.

    Raises:
        InputError: a row of another shape.
    """
    points = []
    for i, row in enumerate(raw if isinstance(raw, (list, tuple)) else [None]):
        if not isinstance(row, (list, tuple)) or len(row) != 4:
            raise InputError(
                f"{name}.matmul_points[{i}]: {row!r} must be [m, n, k, rate], such as [640, 8192, 8192, 220 TFLOPS]"
            )
        m, n, k = (whole(v, f"{name}.matmul_points[{i}]") for v in row[:3])
        points.append((m, n, k, parse(row[3], "flops", f"{name}.matmul_points[{i}]", low=1.0)))
    return tuple(points)


def attention_points(raw: object, name: str) -> tuple[tuple[int, int, int, float, float], ...]:
    """Measured (length, heads, width, FLOP/s, backward over forward), from rows of a file.

    Raises:
        InputError: a row of another shape.
    """
    points = []
    for i, row in enumerate(raw if isinstance(raw, (list, tuple)) else [None]):
        where = f"{name}.attention_points[{i}]"
        if not isinstance(row, (list, tuple)) or len(row) != 5:
            raise InputError(
                f"{where}: {row!r} must be [length, heads, width, rate, backward over forward], such as "
                "[4096, 32, 128, 150 TFLOPS, 3.0]"
            )
        length, heads, width = (whole(v, where) for v in row[:3])
        points.append((length, heads, width, parse(row[3], "flops", where, low=1.0), parse(row[4], "ratio", where)))
    return tuple(points)
