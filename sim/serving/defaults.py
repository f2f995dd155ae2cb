"""What is assumed where a deployment does not say: software, formats, rent."""

from __future__ import annotations

from sim.base.figure import Figure
from sim.serving.stacks import ServingStack, load_stack
from sim.serving.workload import number
from sim.spec.hardware import Cluster


def default_stack(cluster: Cluster, tensor: bool) -> ServingStack:
    """The software assumed where none is named: by maker and by whether experts need an all-to-all."""
    if cluster.chip.family == "ascend":
        return load_stack("cloudmatrix-infer" if cluster.chip.cluster == "cloudmatrix384" else "ascend-a2")
    return load_stack("sglang-tp" if tensor else "sglang-ep")


def precisions(cluster: Cluster) -> tuple[str, ...]:
    """Formats tried unless told otherwise: FP8 where the chip has it, else INT8.

    Source: the published GLM-5 and DeepSeek checkpoints.
    """
    if "fp8" in cluster.chip.peak_flops:
        return ("fp8", "bf16")
    return ("w8a8", "w4a8", "bf16") if "int8" in cluster.chip.peak_flops else ("bf16",)


def cache_formats(cluster: Cluster) -> tuple[str, ...]:
    """An fp8 cache is tried only on chips with fp8; Huawei's published figures keep 16 bits."""
    return ("fp8", "bf16") if "fp8" in cluster.chip.peak_flops else ("bf16",)


def rent_of(cluster: Cluster, rent: Figure | float | None = None) -> Figure | None:
    """USD per chip-hour: as given, or the chip's; None where neither is known.

    Raises:
        InputError: a rent that is no positive number.
    """
    if isinstance(rent, Figure):
        return rent
    if rent is not None:
        value = number(rent, "rent", 1e-9, 1e6)
        return Figure(value, value, value, "USD/h", "given", "assumed")
    return cluster.chip.rent_usd_per_hour
