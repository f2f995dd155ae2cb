"""Where a measured GPU's time went: kernels of a profile by class, what was idle, what of the messages nothing hid.

summary = read_profile("report.csv")     nsys stats --format csv, an nsys export to SQLite, PyTorch's profiler (JSON)
print(text(summary))
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minglm.errors import InputError
from sim.base.documents import decode_text, read_bytes

MAX_BYTES = 2**30
_REMEDY = "profile fewer steps"
_SQLITE = b"SQLite format 3\0"
# A kernel's class by its name, first match: messages carry their library's name, attention its algorithm's.
CLASSES = {
    "communication": re.compile(
        r"nccl|rccl|hccl|hcom|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|deep_?ep|nvshmem|"
        r"SendRecv|peer_to_peer",
        re.I,
    ),
    "attention": re.compile(r"flash|fmha|attention|attn|sdpa|\bmla\b|mla_", re.I),
    "matmul": re.compile(r"gemm|cutlass|cublas|xmma|wgmma|nvjet|mat_?mul|gemv|splitk|mma_|tensorop", re.I),
    "copies": re.compile(r"memcpy|memset|\bcopy\b", re.I),
}
OTHER = "other"
_UNIT = {"ns": 1e-9, "us": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset", "concurrent_kernel")


class Span(NamedTuple):
    """Kernels of one name on one device, their seconds together; start is None where the file only sums."""

    name: str
    seconds: float
    kernels: int = 1
    start: float | None = None
    device: object = 0


def class_of(name: str) -> str:
    """The class of a kernel by its name."""
    return next((kind for kind, pattern in CLASSES.items() if pattern.search(name)), OTHER)


def read_profile(path: str | Path) -> dict[str, Any]:
    """Kernel seconds by class; with a timeline also the time from first to last, the idle part, messages not hidden.

    Returns: file, format, kernels, devices, seconds (of all kernels), classes (name → seconds, share, kernels);
    where times of day are known span_s, busy_s, idle_share and exposed_communication_s, sums over devices.

    Raises:
        InputError: no such file, of no known format, or without a kernel.
    """
    path = Path(path)
    if read_bytes(path, MAX_BYTES, _REMEDY, len(_SQLITE)) == _SQLITE:
        kind, spans = "nsys SQLite", list(_of_sqlite(path))
    else:
        data = read_bytes(path, MAX_BYTES, _REMEDY)
        if data.startswith(b"\x1f\x8b"):
            data = _unpacked(data, path)
        text = decode_text(data, path, "a profile: JSON of PyTorch's profiler, or CSV of nsys stats")
        if text.lstrip()[:1] in ("{", "["):
            kind, spans = "PyTorch profiler", list(_of_json(text, path))
        else:
            kind, spans = "nsys stats", list(_of_csv(text, path))
    if not spans:
        raise InputError(f"{path}: holds no kernel of a device; record CUDA activity, not the host's alone")
    return {"file": path.name, "format": kind, **_summary(spans)}


def _unpacked(data: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            out = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); check the file") from None
    if len(out) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES:,} bytes unpacked; {_REMEDY}")
    return out


def _of_json(text: str, path: Path) -> Iterator[Span]:
    """Kernels of a Chrome trace: `traceEvents` with times in microseconds."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({' '.join(str(error).split())}); check the file") from None
    events = document.get("traceEvents") if isinstance(document, Mapping) else document
    if not isinstance(events, list):
        raise InputError(f"{path}: has no list traceEvents; give a trace of PyTorch's profiler")
    for event in events:
        if not isinstance(event, Mapping) or event.get("ph") != "X" or str(event.get("cat")).lower() not in _KERNELS:
            continue
        try:
            seconds, start = float(event["dur"]) * 1e-6, float(event["ts"]) * 1e-6
        except (KeyError, TypeError, ValueError, OverflowError):
            continue  # one that had not ended
        yield _checked(Span(str(event.get("name", "")), seconds, 1, start, str(event.get("pid"))), path)


def _of_csv(text: str, path: Path) -> Iterator[Span]:
    """Rows below the line that names `Name` and a time: what nsys says above it is passed over."""
    try:
        rows = list(csv.reader(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: is not a table ({error}); check its quotes") from None
    titles: list[str] = []
    for row in rows:
        names = [re.sub(r"\s+", " ", cell).strip() for cell in row]
        if "Name" in names and any(name.startswith(("Total Time", "Duration")) for name in names):
            titles = names
            continue
        if not titles or len(row) < len(titles):
            continue
        cells = dict(zip(titles, row, strict=False))
        if any(cell.strip() for cell in row[len(titles) :]):
            raise InputError(
                f"{path}: the row of {cells['Name'][:40]!r} has more cells than there are titles; where commas part "
                "thousands or stand in names, quote them"
            )
        seconds = _time(cells, "Total Time") if "Instances" in cells else _time(cells, "Duration")
        if seconds is None:
            continue
        count = cells.get("Instances", "1").replace(",", "").strip()
        device = cells.get("Device", cells.get("Device_id", "0"))
        yield _checked(
            Span(cells["Name"], seconds, int(count) if count.isdigit() else 1, _time(cells, "Start"), device), path
        )
    if not titles:
        raise InputError(f"{path}: has no columns Name and Total Time or Duration; give nsys stats --format csv of it")


def _time(cells: Mapping[str, str], name: str) -> float | None:
    """Seconds of the column `name (ns)`, whatever its unit."""
    for title, cell in cells.items():
        found = re.fullmatch(rf"{name}(?: Time)? ?\((\w+)\)", title)
        if found and found[1] in _UNIT:
            with contextlib.suppress(ValueError):
                return float(cell.replace(",", "")) * _UNIT[found[1]]
    return None


def _of_sqlite(path: Path) -> Iterator[Span]:
    """Kernels and copies of an export by `nsys export --type sqlite`: times in nanoseconds, names in a table."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if "CUPTI_ACTIVITY_KIND_KERNEL" in tables:
                names = dict(db.execute("SELECT id, value FROM StringIds")) if "StringIds" in tables else {}
                rows = db.execute('SELECT start, "end", deviceId, demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL')
                for start, end, device, name in rows:
                    yield _checked(Span(str(names.get(name, name)), (end - start) / 1e9, 1, start / 1e9, device), path)
            if "CUPTI_ACTIVITY_KIND_MEMCPY" in tables:
                for start, end, device in db.execute('SELECT start, "end", deviceId FROM CUPTI_ACTIVITY_KIND_MEMCPY'):
                    yield _checked(Span("memcpy", (end - start) / 1e9, 1, start / 1e9, device), path)
    except (sqlite3.Error, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as an nsys export ({error}); export it again") from None


def _checked(span: Span, path: Path) -> Span:
    if not 0 <= span.seconds < 1e9 or not (span.start is None or abs(span.start) < 1e12):
        raise InputError(f"{path}: {span.name[:60]!r} takes {span.seconds:g} s; check the profile")
    return span


def _summary(spans: list[Span]) -> dict[str, Any]:
    whole = sum(span.seconds for span in spans)
    classes: dict[str, dict[str, Any]] = {}
    for span in spans:
        one = classes.setdefault(class_of(span.name), {"seconds": 0.0, "share": 0.0, "kernels": 0})
        one["seconds"] += span.seconds
        one["kernels"] += span.kernels
    for one in classes.values():
        one["share"] = one["seconds"] / whole if whole else 0.0
    out = {
        "kernels": sum(span.kernels for span in spans),
        "devices": len({span.device for span in spans}),
        "seconds": whole,
        "classes": dict(sorted(classes.items(), key=lambda item: -item[1]["seconds"])),
    }
    if all(span.start is not None for span in spans):
        out |= _timeline(spans)
    return out


def _timeline(spans: list[Span]) -> dict[str, float]:
    span_s = busy_s = exposed_s = 0.0
    for device in {span.device for span in spans}:
        every, work = [], []
        for span in spans:
            if span.device == device and span.start is not None:
                every.append((span.start, span.start + span.seconds))
                if class_of(span.name) != "communication":
                    work.append(every[-1])
        span_s += max(end for _, end in every) - min(start for start, _ in every)
        busy = _covered(every)
        busy_s += busy
        exposed_s += busy - _covered(work)  # covered by messages alone
    idle = 1.0 - busy_s / span_s if span_s > 0 else 0.0
    return {"span_s": span_s, "busy_s": busy_s, "idle_share": idle, "exposed_communication_s": exposed_s}


def _covered(parts: Iterable[tuple[float, float]]) -> float:
    """Length of a union of intervals."""
    whole, reached = 0.0, float("-inf")
    for start, end in sorted(parts):
        whole += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return whole


def text(summary: Mapping[str, Any]) -> str:
    """The summary as lines."""
    lines = [
        f"{summary['file']} ({summary['format']}): {summary['kernels']:,} kernels on {summary['devices']} devices, "
        f"{summary['seconds']:.6g} s of them"
    ]
    lines += [
        f"  {kind:14} {one['seconds']:>12.6g} s {one['share']:>6.1%}  {one['kernels']:,} kernels"
        for kind, one in summary["classes"].items()
    ]
    if "span_s" in summary:
        lines.append(
            f"from first to last {summary['span_s']:.6g} s, idle {summary['idle_share']:.1%}, messages nothing hid "
            f"{summary['exposed_communication_s']:.6g} s"
        )
    return "\n".join(lines)
