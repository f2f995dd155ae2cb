"""Every figure of every chip and cluster has a range, a unit, a source and a confidence; an unknown name is refused."""

import dataclasses
import math

import pytest

from minglm.errors import InputError
from sim.base.figure import CONFIDENCE, Figure
from sim.cost.operators import Op
from sim.cost.stacks import list_stacks, load_stack
from sim.serving.calibration import chip_of, fitted
from sim.serving.calibration import rows as published_rows
from sim.serving.defaults import default_stack
from sim.serving.deployment import Deployment
from sim.serving.options import measured as published_rate
from sim.serving.stacks import list_stacks as list_serving_stacks
from sim.serving.step_time import decode_step
from sim.spec import hardware
from sim.spec.hardware import (
    chip_from,
    cluster_for_chip,
    cluster_from,
    list_chips,
    list_clusters,
    load_chip,
    load_cluster,
)
from sim.spec.model_loader import load_model


def figures(thing):
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,):
            if isinstance(item, Figure):
                yield field.name, item
            elif dataclasses.is_dataclass(item) and not isinstance(item, type):
                yield from figures(item)


@pytest.mark.parametrize("name", list_chips())
def test_chip_figures_are_complete(name):
    chip = load_chip(name)
    found = list(figures(chip))
    assert len(found) >= 4
    for where, f in found:
        assert f.low <= f.value <= f.high and f.value > 0, where
        assert f.confidence in CONFIDENCE and len(f.source) > 3 and f.unit, where
        assert f.source != "given without a source", where
    assert 100e12 < chip.peak("bf16").value < 3e15
    if chip.max_matmul_flops:
        assert chip.max_matmul_flops.value < chip.peak("bf16").value
    for m, n, k, rate in chip.matmul_points:
        assert 0 < rate < chip.peak("bf16").high and min(m, n, k) > 0


@pytest.mark.parametrize("name", list_clusters())
def test_cluster_figures_are_complete(name):
    cluster = load_cluster(name)
    for where, f in figures(cluster):
        assert f.low <= f.value <= f.high and f.confidence in CONFIDENCE and len(f.source) > 3, where
        assert f.source != "given without a source", where
    assert [t.size for t in cluster.tiers] == sorted(t.size for t in cluster.tiers)
    assert cluster.tiers[-1].size >= cluster.num_chips
    for tier in cluster.tiers:
        assert tier.efficiency.high <= 1 and tier.oversubscription >= 1
        if tier.topology == "mesh":
            assert tier.links == tier.size - 1


def test_the_910b_question_is_a_range():
    chip = load_chip("910B")
    assert {round(v / 1e12) for _, v in chip.denominators} == {313, 320, 354, 376}
    peak = chip.peak("bf16")
    for bin_ in ("910B2", "910B3"):
        assert peak.low <= load_chip(bin_).peak("bf16").value <= peak.high
    assert load_chip("910B2").peak("bf16").value == pytest.approx(24 * 8192 * 1.8e9, rel=1e-3)


def test_the_atlas_mesh():
    hccs, roce = load_cluster("atlas_800t_a2").tiers
    assert (hccs.topology, hccs.size, hccs.links) == ("mesh", 8, 7)
    assert hccs.bytes_per_s.value == pytest.approx(7 * 28e9) and roce.bytes_per_s.value == pytest.approx(25e9)


def test_unknown_chip_is_never_another_chip():
    for name in ("910B5", "H101", "a1000", "", "../../x", "x" * 300):
        with pytest.raises(InputError) as caught:
            load_chip(name)
        assert "not known" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'atlas_800t_a2'"):
        load_cluster("atlas_800t_a3")
    for name, usual in (("h100", "dgx_h100"), ("A100", "dgx_a100"), ("910B3", "atlas_800t_a2")):
        with pytest.raises(InputError, match=rf"not known \(a chip; it usually sits in {usual}\); known: "):
            load_cluster(name)


def test_aliases_and_case():
    assert load_chip("Ascend 910B") is load_chip("910b") and load_chip("A100") is load_chip("a100_80")


@pytest.mark.parametrize("chip, gib", [("h100", 79.2), ("h200", 139.8), ("b200", 178.35)])
def test_memory_is_what_the_driver_reports(chip, gib):
    assert load_chip(chip).memory_bytes.value / 2**30 == pytest.approx(gib)


def test_inline_chip_and_cluster():
    chip = chip_from(
        {"name": "mine", "peak_flops": "500 TFLOPS", "memory_bytes": "96 GiB", "memory_bytes_per_s": "4 TB/s"}
    )
    assert chip.peak("fp8").value == 500e12 and chip.peak_flops["bf16"].confidence == "assumed"
    cluster = cluster_from(
        {
            "chip": {"like": "h100", "memory_bytes": "96 GiB"},
            "tiers": [{"size": 8, "bytes_per_s": "450 GB/s"}, {"bytes_per_s": "400 Gbps"}],
        }
    )
    assert cluster.chip.memory_bytes.value == 96 * 2**30 and cluster.chip.peak("bf16").value == 989e12
    assert cluster.tiers[1].size == hardware.EVERYTHING
    assert cluster_for_chip({"like": "h100"}).name == "DGX H100" and "assumed" in cluster_for_chip(chip).notes
    with pytest.raises(InputError, match="mesh needs its size"):
        cluster_from({"chip": "h100", "tiers": [{"topology": "mesh", "bytes_per_s": "1 GB/s"}]})


def test_a_changed_peak_drops_the_measured_matmul():
    changed = chip_from({"like": "910B2", "peak_flops": "400 TFLOPS"})
    assert changed.max_matmul_flops is None and changed.matmul_points == ()


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"peak_flops": "1 TFLOPS"}, "has no 'memory_bytes'"),
        ({"peak": 1}, "unknown key 'peak'"),
        ({"like": "nope"}, "not known"),
        ({"like": "h100", "memory_bytes": "-1 GiB"}, "below 0"),
        ({"like": "h100", "memory_bytes": 0}, "more than 0"),
        ({"like": "h100", "memory_bytes": {"value": 5, "low": 6}}, "outside its own range"),
        ({"like": "h100", "power_w": "80 GiB"}, "measures bytes"),
        ({"like": "h100", "peak_flops": {"bf17": 1}}, "did you mean 'bf16'"),
        ({"like": "h100", "matmul_points": [[1, 2]]}, "must be [m, n, k, rate]"),
        ({"like": "h100", "memory_bytes": {"value": 5, "confidence": "sure"}}, "not one of"),
    ],
)
def test_bad_chip_is_refused_in_words(bad, words):
    with pytest.raises(InputError) as caught:
        chip_from(bad)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", list_chips())
def test_a_name_changes_no_figure(name):
    """A chip that differs from another in its name alone has its nodes, its kernels' times and its software."""
    chip, renamed = load_chip(name), chip_from({"like": name, "name": "Nobody's Chip"})
    assert renamed == dataclasses.replace(chip, name="Nobody's Chip")
    here, there = cluster_for_chip(name), cluster_for_chip({"like": name, "name": "Nobody's Chip"})
    assert dataclasses.replace(there, name=here.name, chip=chip) == here
    for stack in ("megatron-lm-2024", "fsdp"):
        kernels = [load_stack(stack).kernels(c) for c in (chip, renamed)]
        for op in (
            Op("m", "linear", "matmul", 2.0 * 4096**3, 6.0 * 4096**2, 4096, 4096, 4096),
            Op("a", "attention", "attention", 1e12, 1e6, m=4096, k=128),
        ):
            assert kernels[0].time(op) == kernels[1].time(op)
    assert len({default_stack(c, tensor=True).name for c in (here, there)}) == 1
    for stack in list_serving_stacks():  # shares of the roofs, and what was fitted for the chip with that software
        one, other = (fitted(Deployment.of("deepseek_v3", c, chips=16, stack=stack)) for c in (here, there))
        assert one.stack == other.stack
        assert decode_step(one, 16, 4096.0) == decode_step(other, 16, 4096.0)
    for row in published_rows():
        if row["kind"] == "decode":
            rates = [
                published_rate(load_model(row["deployment"]["model"]), c, row["context"], math.inf)
                for c in (chip, renamed)
            ]
            assert rates[0] == rates[1] and (rates[0] is not None or chip_of(row).file != chip.file)
    for stack in map(load_stack, list_stacks()):
        assert stack.scalar(chip, "host_op_s", 0.0) == stack.scalar(renamed, "host_op_s", 0.0)
