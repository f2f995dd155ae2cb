"""What this machine is and can do: measured matmul rate, memory, versions. The denominator of every MFU printed here.

Imports torch only inside the functions that measure with it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "simpy", "plotly", "jupyterlab")


@lru_cache(maxsize=8)
def matmul_flops_per_s(dtype: str = "fp32", device: str = "cpu", seconds: float = 0.5) -> float:
    """Measured matmul rate, FLOP/s (a multiply-add is 2): the best repetition over a few square sizes.

    Args:
        dtype: "fp32" or "bf16". device: "cpu", "cuda" or "mps". seconds: time to spend, roughly.
    """
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    best, started = 0.0, time.perf_counter()
    sizes = (256, 512, 1024) if device == "cpu" else (1024, 4096, 8192)
    for n in sizes:
        # not torch.randn: measuring must leave the random state of a run alone
        a = torch.linspace(-1, 1, n * n, device=device).view(n, n).to(kind)
        b = a.T.contiguous()
        share = time.perf_counter() + seconds / len(sizes)
        for repetition in range(1000):
            _synchronise(device)
            t = time.perf_counter()
            a @ b
            _synchronise(device)
            took = time.perf_counter() - t
            if repetition:  # the first call warms up
                best = max(best, 2.0 * n**3 / took)
            if repetition and time.perf_counter() > share:
                break
        # bf16 without hardware support is a hundred times slower: one size says enough.
        if time.perf_counter() - started > 2 * seconds:
            break
    return best


@lru_cache(maxsize=1)
def memory_bytes_per_s(seconds: float = 0.3) -> float:
    """Measured rate of main memory, bytes/s read and written by copies larger than a cache: the best repetition."""
    import torch

    source = torch.zeros(32 * 2**20, dtype=torch.float32)
    target, best, until = torch.empty_like(source), 0.0, time.perf_counter() + seconds
    target.copy_(source)  # the pages are there now
    while True:
        began = time.perf_counter()
        target.copy_(source)
        ended = time.perf_counter()
        best = max(best, 2 * source.nbytes / (ended - began))
        if ended > until:
            return best


def _synchronise(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def available_memory_bytes(device: str = "cpu") -> int:
    """Bytes that can be allocated now: the device's free memory, or main memory within any container limit."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    candidates = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                candidates.append(int(line.split()[1]) * 1024)
        limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            candidates.append(max(0, int(text) - int(used.read_text())))
    except (OSError, ValueError):
        pass
    return min(candidates) if candidates else total_memory_bytes()


def total_memory_bytes() -> int:
    """Main memory, bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")
            ]

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]  # Windows only
        return int(status.total)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, bytes; 0 where the system does not tell."""
    try:  # Linux: of this program alone; getrusage there starts from what the parent had when it forked
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Version of Python, the system and each package that is installed."""
    out = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def cpu_name() -> str:
    """The processor's name as the system tells it; its architecture where it does not."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(measure: bool = True) -> dict:
    """The machine in a few values; with `measure`, its matmul rate in GFLOP/s (about a second)."""
    import torch

    out = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total_memory_bytes() / 2**30, 1),
        "device": default_device(),
        **versions(),
    }
    if measure:
        out["matmul_gflops_fp32"] = round(matmul_flops_per_s("fp32", out["device"]) / 1e9, 1)
    return out


def free_disk_bytes(path: str | Path = ".") -> int:
    """Free space, bytes, on the disk that holds `path`."""
    return shutil.disk_usage(path).free
