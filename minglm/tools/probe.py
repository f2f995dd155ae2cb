"""`minglm probe`: what this machine's chip does, as a chip file that `clustersim` takes.

Measured on a CPU, on CUDA and on Ascend (`torch_npu` is imported there alone): matmuls by dtype and shape, causal
attention forward and backward, memory copy, the time to issue an operation, the rate held in a long run, collectives
where there are several processes (gloo, nccl or hccl), writing to disk. Each part is kept as it ends (`probe.json`), so
a probe that was stopped goes on. Times are medians; the spread is the middle half of the readings over their median.

Only the CPU and gloo parts have been run on a machine of ours.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import atomic
from minglm.errors import InputError
from minglm.runtime import machine

PARTS = ("matmul", "attention", "copy", "launch", "sustained", "collectives", "storage")
LEAST_S = 0.005  # a reading takes at least so long
MANIFEST = "probe.json"


@dataclass(frozen=True)
class Size:
    """How much is measured: sides of matmuls, (length, heads) of attention, values copied, seconds of the long run."""

    sides: tuple[int, ...]
    attention: tuple[tuple[int, int], ...]
    copied: int
    long_s: float
    repeats: int
    messages: tuple[int, ...]


CPU_QUICK = Size((32, 128, 512, 1024), ((128, 8), (128, 32), (256, 32)), 2**23, 5.0, 5, (2**14, 2**18, 2**22))
CPU = Size(
    (32, 64, 128, 256, 512, 1024, 2048),
    ((128, 8), (128, 32), (256, 8), (256, 32), (512, 16)),
    2**25,
    60.0,
    9,
    (2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24),
)
CHIP_QUICK = Size((128, 1024, 4096, 8192), ((1024, 16), (4096, 64)), 2**28, 15.0, 5, (2**16, 2**20, 2**24, 2**28))
CHIP = Size(
    (128, 512, 1024, 2048, 4096, 8192, 16384),
    ((512, 16), (1024, 16), (1024, 64), (4096, 16), (4096, 64), (16384, 16), (16384, 64)),
    2**30,
    60.0,
    9,
    tuple(2**i for i in range(12, 31, 2)),
)


def size_of(device: str, quick: bool) -> Size:
    """What is measured on a device."""
    if device == "cpu":
        return CPU_QUICK if quick else CPU
    return CHIP_QUICK if quick else CHIP


# ------------------------------------------------------------------ a reading


class Clock:
    """Seconds of calls on a device: processor time on a CPU, so that another program's turn is not counted as ours."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.now = time.process_time if device == "cpu" else time.perf_counter

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device != "cpu":
            import torch

            torch.get_device_module(self.device).synchronize()

    def seconds(self, call: Callable[[], object]) -> tuple[float, float]:
        """(median seconds of one call, spread: middle half over median)."""
        call()
        calls = 1
        readings: list[float] = []
        while len(readings) < self.repeats:
            self.wait()
            begun = self.now()
            for _ in range(calls):
                call()
            self.wait()
            took = self.now() - begun
            if took < LEAST_S and calls < 100_000:
                calls *= 4
                readings.clear()
            else:
                readings.append(took / calls)
        quarters = statistics.quantiles(readings, n=4)
        middle = statistics.median(readings)
        return middle, (quarters[2] - quarters[0]) / middle


def dtypes_of(device: str) -> dict[str, Any]:
    """Name → torch dtype of the matmuls: fp32 on a CPU, else bf16, fp16 and fp32."""
    import torch

    if device == "cpu":
        return {"fp32": torch.float32}
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


# ------------------------------------------------------------------ the parts


def matmul(clock: Clock, size: Size, tell: Callable[[str], None]) -> dict[str, Any]:
    """dtype → rows of m, n, k, FLOP/s, spread."""
    import torch

    out: dict[str, list[list[float]]] = {}
    for name, dtype in dtypes_of(clock.device).items():
        shapes = [(m, n, k) for m in size.sides for n in size.sides for k in size.sides if n * k <= 2**28]
        for i, (m, n, k) in enumerate(shapes):
            a = torch.randn(m, k, device=clock.device).to(dtype)
            b = torch.randn(n, k, device=clock.device).to(dtype)
            took, spread = clock.seconds(functools.partial(torch.matmul, a, b.T))
            out.setdefault(name, []).append([m, n, k, 2.0 * m * n * k / took, spread])
            if i % 16 == 0:
                tell(f"matmul {name} {i}/{len(shapes)}")
    return out


def attention(clock: Clock, size: Size, tell: Callable[[str], None]) -> list[list[float]]:
    """Rows of length, heads × sequences, width, FLOP/s of the causal half forward, backward over forward time."""
    import torch

    rows, dtype = [], next(iter(dtypes_of(clock.device).values()))
    for width in (32, 64) if clock.device == "cpu" else (128,):
        for length, heads in size.attention:
            tell(f"attention {length} × {heads}")
            q, k, v = (
                torch.randn(1, heads, length, width, device=clock.device).to(dtype).requires_grad_() for _ in range(3)
            )

            def forward(q: Any = q, k: Any = k, v: Any = v) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

            alone, _ = clock.seconds(forward)

            def backward(forward: Callable[[], Any] = forward) -> None:
                forward().sum().backward()

            both, _ = clock.seconds(backward)
            flops = 2.0 * heads * length * (length + 1) / 2 * 2 * width
            rows.append([length, heads, width, flops / alone, max(both - alone, 0.1 * alone) / alone])
    return rows


def copy(clock: Clock, size: Size, tell: Callable[[str], None]) -> dict[str, float]:
    """Bytes per second read and written by a large copy."""
    import torch

    tell("memory copy")
    source = torch.ones(size.copied, device=clock.device)
    target = torch.empty_like(source)
    took, spread = clock.seconds(lambda: target.copy_(source))
    return {"bytes_per_s": 2.0 * 4 * size.copied / took, "spread": spread}


def launch(clock: Clock, size: Size, tell: Callable[[str], None]) -> dict[str, float]:
    """Seconds to issue an operation: of a forward and a backward pass under autograd, and without gradients."""
    import torch

    tell("launch overhead")
    weight = torch.ones(8, device=clock.device, requires_grad=True)

    def chain(count: int) -> Any:
        x = weight
        for _ in range(count):
            x = x * weight
        return x

    forward, spread = clock.seconds(lambda: chain(200))
    both, _ = clock.seconds(lambda: chain(200).sum().backward())
    with torch.no_grad():
        plain, _ = clock.seconds(lambda: chain(200))
    return {
        "forward_s": forward / 200,
        "backward_s": max(both - forward, 0.0) / 200,
        "plain_s": plain / 200,
        "spread": spread,
    }


def sustained(clock: Clock, size: Size, tell: Callable[[str], None]) -> dict[str, float]:
    """Rate of a large matmul in the last fifth of a long run over that of its first second."""
    import torch

    side = 1024 if clock.device == "cpu" else 8192
    dtype = next(iter(dtypes_of(clock.device).values()))
    a = torch.randn(side, side, device=clock.device).to(dtype)
    b = torch.randn(side, side, device=clock.device).to(dtype)
    torch.matmul(a, b)
    clock.wait()
    begun, readings = time.perf_counter(), []
    while (since := time.perf_counter() - begun) < size.long_s:
        start = clock.now()
        for _ in range(4):
            torch.matmul(a, b)
        clock.wait()
        readings.append((since, 4 * 2.0 * side**3 / (clock.now() - start)))
        tell(f"long run {since:.0f} of {size.long_s:.0f} s")
    early = [rate for since, rate in readings if since < max(1.0, size.long_s / 10)]
    late = [rate for since, rate in readings if since > 0.8 * size.long_s] or early
    first, last = statistics.median(early), statistics.median(late)
    return {"first": first, "last": last, "share": min(last / first, 1.0)}


def collectives(clock: Clock, size: Size, tell: Callable[[str], None]) -> list[list[Any]]:
    """Rows of collective, processes, bytes, seconds; [] for one process (start several with torchrun)."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 2:
        return []
    import torch
    import torch.distributed as dist

    backend = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}[clock.device]
    if not dist.is_initialized():
        dist.init_process_group(backend)
    rows = []
    for size_bytes in size.messages:
        values = torch.ones(max(size_bytes // 4 // processes * processes, processes), device=clock.device)
        part = values[: values.numel() // processes]
        calls: list[tuple[str, Callable[[], object]]] = [
            ("all_reduce", functools.partial(dist.all_reduce, values)),
            ("all_gather", functools.partial(dist.all_gather_into_tensor, values, part)),
        ]
        for name, call in calls:
            tell(f"{name} {size_bytes:,} B")
            dist.barrier()
            readings = []
            for _ in range(max(clock.repeats, 5)):
                begun = time.perf_counter()
                call()
                clock.wait()
                readings.append(time.perf_counter() - begun)
            rows.append([name, processes, values.numel() * 4, statistics.median(readings[1:])])
    return rows


def storage(folder: Path, quick: bool, tell: Callable[[str], None]) -> dict[str, float]:
    """Bytes per second of a synced write into the probe's folder."""
    tell("storage")
    data, rates = os.urandom(2**24 if quick else 2**27), []
    path = folder / f"write{os.environ.get('RANK', '0')}.bin"
    for _ in range(3):
        begun = time.perf_counter()
        atomic.write_bytes(path, data, durable=True)
        rates.append(len(data) / (time.perf_counter() - begun))
    path.unlink()
    return {"bytes_per_s": statistics.median(rates)}


# ------------------------------------------------------------------ the whole


def run(
    folder: Path,
    device: str = "cpu",
    quick: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    parts: tuple[str, ...] = PARTS,
) -> dict[str, Any]:
    """Measure what is not measured yet, keep each part as it ends, and write `chip.yaml` at the end.

    Args:
        folder: of the probe; one that was begun on the same device and size goes on.
        tell: called with what is being measured.

    Raises:
        InputError: the folder holds a probe of another device or size.
    """
    import torch

    size, path = size_of(device, quick), folder / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = {"device": device, "quick": quick}
    if result and {k: result.get(k) for k in settings} != settings:
        raise InputError(
            f"{folder}: holds a probe of {result.get('device')}{' (quick)' if result.get('quick') else ''}; "
            "give another --out"
        )
    result |= settings | {"name": name_of(device), "versions": machine.versions()}
    clock = Clock(device, size.repeats)
    threads = torch.get_num_threads()
    if device != "cpu":
        torch.get_device_module(device).set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        measures: dict[str, Callable[[], Any]] = {
            "matmul": lambda: matmul(clock, size, tell),
            "attention": lambda: attention(clock, size, tell),
            "copy": lambda: copy(clock, size, tell),
            "launch": lambda: launch(clock, size, tell),
            "sustained": lambda: sustained(clock, size, tell),
            "collectives": lambda: collectives(clock, size, tell),
            "storage": lambda: storage(folder, quick, tell),
        }
        for part in parts:
            if part not in result:
                result[part] = measures[part]()
                result["date"] = datetime.date.today().isoformat()
                if int(os.environ.get("RANK", "0")) == 0:
                    atomic.write_json(path, result)
    finally:
        torch.set_num_threads(threads)
    if int(os.environ.get("RANK", "0")) == 0 and set(PARTS) <= set(result):
        atomic.write_text(folder / "chip.yaml", "\n".join(chip_lines(result)) + "\n")
    return result


def name_of(device: str) -> str:
    """The device's name as its driver tells it."""
    if device == "cpu":
        return machine.cpu_name()
    import torch

    return str(torch.get_device_module(device).get_device_name())


def memory_of(device: str) -> float:
    """Bytes of memory of one device."""
    if device == "cpu":
        return machine.total_memory_bytes()
    import torch

    return float(torch.get_device_module(device).get_device_properties(0).total_memory)


def chip_lines(result: dict[str, Any]) -> Iterator[str]:
    """The chip file of a probe: keys of the files in data/chips, each figure with its spread and source.

    The simulator counts 2 bytes a value; a CPU computes in fp32, so there half of the bytes moved are its bandwidth.
    """
    width = 2.0 if result["device"] == "cpu" else 1.0
    kinds: dict[str, list[list[float]]] = result["matmul"]
    main = next(iter(kinds))
    best = {name: max(row[3] for row in rows) for name, rows in kinds.items()}
    spread = statistics.median(row[4] for row in kinds[main])
    source = f"minglm probe, {result['date']}, {result['name']}, torch {result['versions'].get('torch', '?')}"
    said = f'confidence: measured, source: "{source}"'

    def figure(value: float, unit: str, off: float) -> str:
        low, high = value * (1 - off), value * (1 + off)
        return f"{{value: {value:.6g} {unit}, low: {low:.6g} {unit}, high: {high:.6g} {unit}, {said}}}"

    yield f"# {source}; matmuls in {', '.join(kinds)}"
    yield f'name: "{result["name"]} (probed)"'
    yield f'vendor: "{result["name"]}"'
    yield "peak_flops:"
    peaks = {"bf16": best.get("bf16", best[main]), "fp16": best.get("fp16"), "fp32": best.get("fp32")}
    for name, value in peaks.items():
        if value:
            yield f"  {name}: {figure(value / 1e12, 'TFLOPS', spread)}"
    yield f"max_matmul_flops: {figure(best[main] / 1e12, 'TFLOPS', spread)}"
    memory = memory_of(result["device"]) / 2**30
    yield f"memory_bytes: {{value: {memory:.4g} GiB, {said}}}"
    moved = result["copy"]["bytes_per_s"] / width
    yield f"memory_bytes_per_s: {figure(moved / 1e12, 'TB/s', result['copy']['spread'])}"
    share = result["sustained"]["share"]
    yield f"sustained: {{value: {share:.4f}, low: {0.95 * share:.4f}, high: 1.0, {said}}}  # of a long run"
    yield f"host_op_s: {1e6 * result['launch']['forward_s']:.4g} us"
    yield f"host_backward: {result['launch']['backward_s'] / result['launch']['forward_s']:.4g}"
    yield f'matmul_source: "{source}"'
    yield "matmul_points:"
    yield from (f"  - [{m}, {n}, {k}, {rate / 1e12:.6g} TFLOPS]" for m, n, k, rate, _ in kinds[main])
    yield "attention_points:  # length, heads x sequences, width, causal forward rate, backward over forward time"
    yield from (
        f"  - [{s}, {h}, {w}, {rate / 1e12:.6g} TFLOPS, {ratio:.4g}]" for s, h, w, rate, ratio in result["attention"]
    )
    if result["collectives"]:
        yield "# collectives: operation, processes, bytes, seconds"
        yield from (f"#   {op}, {n}, {size}, {took:.3e}" for op, n, size, took in result["collectives"])
