"""The tables of data/measured, remade from the published ones: `python -m sim.cost.measured_rebuild FOLDER`.

FOLDER holds the sources under the names that `SOURCES` lists, each checked against its sha256. Every table is a CSV
whose first columns name a line and whose other columns are one axis; the values are medians over software versions.
Dropped: attention rows of a kernel that reads a window only (a tenth of its rows or more beat the chip's peak), and
expert rows of one kernel at EP32, which hold outliers of 10 to 20 times.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError

SOURCES = {
    "aic_attention_prefill.csv.gz": "3852623db07b1c3394c419dcdc7783d42692d777b595d036e3a9607f91b96a33",
    "aic_deepep_lowlatency.csv": "f6f621ebbb5f1439f02906ebc2318fed81bc6a517892bbe1aa319dee2e482567",
    "aic_deepep_normal.csv.gz": "77f9a423ea35af1618f5dc32460f1196257e8107fd92c55e9e1802e48ca4ce04",
    "aic_gemm.csv.gz": "56df7307a8c0ad66e01137149ffc8b019163ff1c10b98a108985b3addd656969",
    "aic_glm5_attention_layer.csv.gz": "7c9fc31618f02f09ad826cdc33fce10f2fa32a3ba0e8536c471aca3893faeddc",
    "aic_glm5_dsa_parts.csv.gz": "ce250d4cad4ae7e12883311f2283ff648f472df30ad3469f8418bf884f3f6811",
    "aic_mla.csv.gz": "55b6d57c037488ac6e829f2c79aadf53afeb9e842059f4740fd3a63e22f7751d",
    "aic_moe.csv.gz": "109256af5694dbaabc95fe899562c9c802c324a3ca730752622fc7c911833bbb",
    "aic_nccl.csv": "367f59e509edfda4d3c0a0268184bd72f5df5a96952c64567d26387601bdf4ee",
    "aws_nccl_alltoall.csv": "7f399d89485cf22b5f87f2116909367a8b1eb57a68616f1c6829477f6746b726",
    "cudnn_mla_training_attention.csv": "7ff7dc0a3545b498ad7da2bbced14d52a13348313e66becdf5fac6f27d7c8a86",
    "frontier_a800_qwen3_30b_moe.csv.gz": "b73ee76a6d577397c544a0dd3aaf62258624bfdf1f6064dee6b864d1070da32c",
}
PEAK_TFLOPS = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "b300": 2500, "gb200": 2500, "gb300": 2500}
TWINS = {"b200": ("b200", "gb200"), "b300": ("b300", "gb300")}  # one die on two boards: their rows are read together

Row = Mapping[str, str]
Lines = Mapping[tuple[object, ...], Mapping[int, float]]


def _chip(name: str) -> str:
    """'h100_sxm' → 'h100'."""
    return name.removesuffix("_sxm").lower()


def _rows(folder: Path, name: str) -> Iterator[Row]:
    return read_source(folder, name, SOURCES[name])


def read_source(folder: Path, name: str, sha256: str) -> Iterator[Row]:
    """Rows of a published table, plain or gzipped.

    Raises:
        InputError: no such file, or another content than the one of this sha256.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder that holds {name}")
    content = path.read_bytes()
    if sha256 != hashlib.sha256(content).hexdigest():
        raise InputError(f"{path}: its sha256 is not {sha256}, that of the table which the data were made from")
    text = gzip.decompress(content) if name.endswith(".gz") else content
    return iter(csv.DictReader(io.StringIO(text.decode("utf-8"))))


def _medians(samples: Mapping[tuple[object, ...], Mapping[int, Sequence[float]]]) -> Lines:
    return {key: {at: statistics.median(values) for at, values in line.items()} for key, line in samples.items()}


def _gather(rows: Iterable[tuple[tuple[object, ...], int, float]]) -> Lines:
    """(line, position on the axis, value) → the median value of each."""
    samples: dict[tuple[object, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, at, value in rows:
        samples[key][at].append(value)
    return _medians(samples)


# ------------------------------------------------------------------ the tables


def matmul(folder: Path) -> Lines:
    """us by (chip, dtype, n, k) over m; GB200, whose one run was throttled from 8,192 on, never slower than B200."""
    lines = dict(
        _gather(
            ((_chip(r["chip"]), r["gemm_dtype"], int(r["n"]), int(r["k"])), int(r["m"]), float(r["us"]))
            for r in _rows(folder, "aic_gemm.csv.gz")
        )
    )
    for key, line in lines.items():
        if key[0] == "gb200":
            twin = lines.get(("b200", *key[1:]), {})
            lines[key] = {m: min(us, twin.get(m, us)) for m, us in line.items()}
    return lines


def attention(folder: Path) -> Lines:
    """TFLOPS of the causal forward by (chip, head width, length) over batch × heads, the best kernel of each."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for r in _rows(folder, "aic_attention_prefill.csv.gz"):
        groups[_chip(r["chip"]), r["fw"], r["kernel_source"], r["head_dim"]].append(r)
    samples: dict[tuple[object, ...], dict[int, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for (chip, _, kernel, width), some in groups.items():
        too_fast = sum(float(r["tflops"]) > 0.9 * PEAK_TFLOPS[chip] for r in some)
        if too_fast > 0.1 * len(some):
            continue
        for r in some:
            heads = int(r["batch_size"]) * int(r["num_heads"])
            if heads & (heads - 1) or heads > 2048 or float(r["tflops"]) > PEAK_TFLOPS[chip]:
                continue
            for twin in [one for one, boards in TWINS.items() if chip in boards] or [chip]:
                samples[twin, int(width), int(r["isl"])][heads][kernel].append(float(r["tflops"]))
                if twin != chip:
                    samples[chip, int(width), int(r["isl"])][heads][kernel].append(float(r["tflops"]))
    return {
        key: {heads: max(statistics.median(v) for v in kernels.values()) for heads, kernels in line.items()}
        for key, line in samples.items()
    }


def attention_backward(folder: Path) -> Lines:
    """Backward over forward time of causal attention, widths 192/128, by (chip, deterministic) over the length."""
    times: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(dict)
    for r in _rows(folder, "cudnn_mla_training_attention.csv"):
        if r["dtype"] == "bf16":
            key = r["chip"].split("-")[0].lower(), r["backend"], r["seq"]
            times[*key, ""]["fwd" if r["pass"] == "fwd" else "bwd" + r["deterministic"]] = float(r["time_ms"])
    return _gather(
        ((chip, int(name[3:])), int(seq), value / some["fwd"])
        for (chip, _, seq, _), some in times.items()
        for name, value in some.items()
        if name != "fwd"
    )


def mla_prefill(folder: Path) -> Lines:
    """TFLOPS of dense causal MLA attention by (chip, length) over batch × heads, the best kernel of each."""
    samples: dict[tuple[object, ...], dict[int, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for r in _rows(folder, "aic_mla.csv.gz"):
        heads, seq = int(r["batch_size"]) * int(r["num_heads"]), int(r["isl"])
        if r["phase"] != "context_mla" or r["step"] != "0" or r["kv_cache_dtype"] != "bfloat16" or seq < 128:
            continue
        if heads <= 1024:
            flops = heads * seq * (seq + 1) * (192 + 128)  # the causal half
            samples[_chip(r["chip"]), seq][heads][r["kernel_source"]].append(flops / float(r["us"]) / 1e6)
    return {
        key: {heads: max(statistics.median(v) for v in kernels.values()) for heads, kernels in line.items()}
        for key, line in samples.items()
    }


def mla_decode(folder: Path) -> Lines:
    """us of one decode step of MLA attention by (chip, heads, batch) over the cached tokens."""
    return _gather(
        (
            (_chip(r["chip"]), int(r["num_heads"]), int(r["batch_size"])),
            int(r["step"]) + 1,
            float(r["us"]),
        )
        for r in _rows(folder, "aic_mla.csv.gz")
        if r["phase"] == "generation_mla" and r["kv_cache_dtype"] == "bfloat16" and int(r["num_heads"]) >= 8
    )


def dsa_layer(folder: Path) -> Lines:
    """us of a whole GLM-5 attention layer by (chip, phase, matmul dtype, TP, batch) over the context."""
    return _gather(
        (
            (_chip(r["chip"]), r["phase"], r["gemm_type"], int(r["tp_size"]), int(r["batch_size"])),
            int(r["isl"]) + (int(r["step"]) if r["phase"] == "decode" else 0),
            float(r["us"]),
        )
        for r in _rows(folder, "aic_glm5_attention_layer.csv.gz")
        if r["model"].startswith("zai-org/GLM-5")
        and "5.2" not in r["model"]
        and r["kv_cache_dtype"] == "bfloat16"
        and (r["phase"] == "decode" or (r["step"] == "0" and int(r["batch_size"]) <= 8 and int(r["isl"]) >= 128))
    )


def dsa_parts(folder: Path) -> Lines:
    """us of GLM-5's indexer scores, top-k and sparse attention by (chip, part, new tokens) over the context."""
    names = {"glm5_mqa_logits": "scores", "glm5_topk": "top_k", "glm5_dsa_attn": "attention"}
    return _gather(
        (
            (_chip(r["chip"]), names[r["part"]], int(r["isl"])),
            int(r["isl"]) + int(r["step"]),
            float(r["us"]),
        )
        for r in _rows(folder, "aic_glm5_dsa_parts.csv.gz")
        if r["batch_size"] == "1"
        and r["model"] == "zai-org/GLM-5"
        and int(r["isl"]) >= 1024
        and r["score_mode"] in ("", "top_last")
        and float(r["us"]) > 0
        and (context := int(r["isl"]) + int(r["step"])) & (context - 1) == 0
    )


def moe(folder: Path) -> Lines:
    """us of one rank's experts by (chip, dtype, hidden, width, experts, EP, distribution) over tokens."""
    samples: dict[tuple[object, ...], dict[int, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for r in _rows(folder, "aic_moe.csv.gz"):
        if r["kernel_source"] == "moe_torch_flow_cutlass" and r["moe_ep_size"] == "32":
            continue
        if r["distribution"] == "power_law_1.2" or int(r["num_tokens"]) > 16384 or int(r["moe_ep_size"]) > 64:
            continue
        key = (
            _chip(r["chip"]),
            r["moe_dtype"],
            int(r["hidden_size"]),
            int(r["inter_size"]),
            int(r["num_experts"]),
            int(r["moe_ep_size"]),
            r["distribution"],
        )
        samples[key][int(r["num_tokens"])][r["kernel_source"]].append(float(r["us"]))
    return {
        key: {tokens: min(statistics.median(v) for v in kernels.values()) for tokens, kernels in line.items()}
        for key, line in samples.items()
    }


def moe_routing(folder: Path) -> Lines:
    """us of gate, top-k and shuffle of one layer on an A800 by (part) over tokens (128 experts, 8 chosen)."""
    parts = {
        "gate": "moe_gating_linear_us",
        "top_k": "moe_gating_routing_topk_us",
        "shuffle": "moe_shuffling_us",
    }
    return _gather(
        (("a800", part), int(r["num_tokens"]), float(r[column]))
        for r in _rows(folder, "frontier_a800_qwen3_30b_moe.csv.gz")
        for part, column in parts.items()
        if r[column] and int(r["num_tokens"]) & (int(r["num_tokens"]) - 1) == 0
    )


def nccl(folder: Path) -> Lines:
    """us by (chip, collective, chips) over bytes."""
    names = {"alltoall": "all_to_all"}
    return _gather(
        (
            (_chip(r["chip"]), names.get(r["op_name"], r["op_name"]), int(r["num_gpus"])),
            int(r["bytes"]),
            float(r["us"]),
        )
        for r in _rows(folder, "aic_nccl.csv")
    )


def all_to_all_nodes(folder: Path) -> Lines:
    """us of NCCL's all-to-all over whole nodes of 8 chips by (chip, nodes) over the bytes that a chip sends in all."""
    return _gather(
        (("h100", int(r["Nodes"])), size, size / float(r[column]) / 1e3)
        for r in _rows(folder, "aws_nccl_alltoall.csv")
        for size in [int(r["size(MB)"]) << 20]
        for column in ("out algbw(GB/s)", "in algbw(GB/s)")
    )


def deepep(folder: Path) -> Lines:
    """us of DeepEP by (chip, kind, dispatch | combine, nodes, hidden, chosen, experts) over tokens, at its best SMs."""
    best: dict[tuple[object, ...], dict[int, float]] = defaultdict(dict)
    for r in _rows(folder, "aic_deepep_normal.csv.gz"):
        if r["chip"] == "h200_sxm" and r["node_num"] != "1":
            continue  # the same numbers as H100's
        for half in ("dispatch", "combine"):
            key = _deepep_key(r, "normal", half)
            tokens, us = int(r["num_token"]), float(r[f"{half}_transmit_us"])
            best[key][tokens] = min(us, best[key].get(tokens, us))
    for r in _rows(folder, "aic_deepep_lowlatency.csv"):
        for half in ("dispatch", "combine"):
            key = _deepep_key(r, "low_latency", half)
            tokens, us = int(r["num_token"]), float(r[f"{half}_avg_t_us"])
            best[key][tokens] = min(us, best[key].get(tokens, us))
    return {k: v for k, v in best.items() if k[4] in (4096, 6144, 7168) and k[5] == 8 and k[6] in (128, 256)}


def _deepep_key(r: Row, kind: str, half: str) -> tuple[object, ...]:
    return (
        _chip(r["chip"]),
        kind,
        half,
        int(r["node_num"]),
        int(r["hidden_size"]),
        int(r["num_topk"]),
        int(r["num_experts"]),
    )


TABLES: Mapping[str, tuple[Callable[[Path], Lines], tuple[str, ...], str]] = {
    "matmul": (matmul, ("chip", "dtype", "n", "k"), "m"),
    "attention": (attention, ("chip", "width", "length"), "heads"),
    "attention_backward": (attention_backward, ("chip", "deterministic"), "length"),
    "mla_prefill": (mla_prefill, ("chip", "length"), "heads"),
    "mla_decode": (mla_decode, ("chip", "heads", "batch"), "context"),
    "dsa_layer": (dsa_layer, ("chip", "phase", "dtype", "tp", "batch"), "context"),
    "dsa_parts": (dsa_parts, ("chip", "part", "tokens"), "context"),
    "moe": (moe, ("chip", "dtype", "hidden", "width", "experts", "ep", "distribution"), "tokens"),
    "moe_routing": (moe_routing, ("chip", "part"), "tokens"),
    "nccl": (nccl, ("chip", "collective", "chips"), "bytes"),
    "all_to_all_nodes": (all_to_all_nodes, ("chip", "nodes"), "bytes"),
    "deepep": (deepep, ("chip", "kind", "half", "nodes", "hidden", "chosen", "experts"), "tokens"),
}


def as_csv(lines: Lines, names: Sequence[str]) -> str:
    """Lines as text: the key's columns, then one column a position of the axis; an empty cell was not measured."""
    axis = sorted({at for line in lines.values() for at in line})
    out = [",".join((*names, *map(str, axis)))]
    for key in sorted(lines, key=lambda key: tuple((isinstance(part, str), part) for part in key)):
        values = (f"{lines[key][at]:.4g}" if at in lines[key] else "" for at in axis)
        out.append(",".join((*map(str, key), *values)))
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Remake the tables from the folder of sources that is given, and write their checksums."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1:
        print("usage: python -m sim.cost.measured_rebuild FOLDER_OF_THE_SOURCES", file=sys.stderr)
        return 2
    folder, place, sums = Path(argv[0]), datafiles.data("measured"), []
    try:
        for name, (build, names, _) in TABLES.items():
            text = as_csv(build(folder), names).encode()
            packed = gzip.compress(text, 9, mtime=0)
            atomic.write_bytes(place / f"{name}.csv.gz", packed)
            sums.append(f"{hashlib.sha256(packed).hexdigest()}  {name}.csv.gz")
            print(f"{name:20} {len(text.splitlines()) - 1:6} lines {len(packed) / 1024:8.0f} KiB")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    atomic.write_text(place / "SHA256SUMS", "\n".join(sums) + "\n")
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
