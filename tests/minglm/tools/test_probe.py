"""`minglm probe`: a machine measured as a chip, kept part by part, and taken by the simulator as it was measured."""

from __future__ import annotations

import json

import pytest

from minglm.cli.main import main
from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.tools import probe
from sim.cost.kernels import Kernels
from sim.cost.operators import Op
from sim.spec.hardware import chip_from
from sim.validation import local_toy

TINY = probe.Size((32, 64), ((64, 4), (128, 8)), 2**16, 0.05, 3, (2**12,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place, saved = tmp_path_factory.mktemp("probe"), probe.CPU_QUICK
    probe.CPU_QUICK = TINY
    try:
        probe.run(place, "cpu", quick=True)
    finally:
        probe.CPU_QUICK = saved
    return place


def test_the_chip_file_gives_the_measured_products_back(folder):
    measured = json.loads((folder / probe.MANIFEST).read_text())
    chip = chip_from(str(folder / "chip.yaml"))
    kernels = Kernels(chip)
    for m, n, k, rate, _ in measured["matmul"]["fp32"]:
        op = Op("x", "linear", "matmul", 2.0 * m * n * k, 0.0, m, n, k)
        assert op.flops / kernels.time(op) == pytest.approx(min(rate, chip.max_matmul_flops.value), rel=0.01)
    assert chip.sustained.value <= 1.0 and chip.host_op_s.value > 0 and chip.sustained.confidence == "measured"


def test_attention_of_the_probe_is_used(folder):
    chip = chip_from(str(folder / "chip.yaml"))
    length, heads, width, rate, ratio = chip.attention_points[0]
    flops = 4.0 * heads * width * length * (length + 1) / 2
    forward = Op("flash", "attention", "attention", flops, 0.0, m=length, n=width, k=width, batch=heads)
    assert flops / Kernels(chip).time(forward) == pytest.approx(rate, rel=0.1)
    assert ratio > 0


def test_a_probe_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "CPU_QUICK", TINY)
    probe.run(tmp_path, "cpu", quick=True, parts=("copy", "launch"))
    kept = json.loads((tmp_path / probe.MANIFEST).read_text())
    assert not (tmp_path / "chip.yaml").exists() and "matmul" not in kept
    monkeypatch.setattr(probe, "copy", lambda *a: pytest.fail("measured twice"))
    done = probe.run(tmp_path, "cpu", quick=True)
    assert done["copy"] == kept["copy"] and (tmp_path / "chip.yaml").is_file()


def test_another_device_or_size_in_the_same_folder_is_refused(folder):
    with pytest.raises(InputError, match="holds a probe of cpu"):
        probe.run(folder, "cpu", quick=False)


def test_the_toys_step_is_predicted_from_the_file_alone(folder):
    chip = chip_from(str(folder / "chip.yaml"))
    nano = ModelConfig.named("nano")
    short, long = (local_toy.predict(chip, nano, 2, length) for length in (32, 128))
    assert 0 < short < long < 60


def test_a_missing_probe_is_one_line(tmp_path):
    with pytest.raises(InputError, match="make it with minglm probe"):
        local_toy.compare(tmp_path / "chip.yaml")
    with pytest.raises(InputError, match="no such file"):
        chip_from(str(tmp_path / "chip.yaml"))


def test_an_unknown_device_is_refused(capsys):
    assert main(["probe", "--device", "tpu"]) == 2
    assert "not one of" in capsys.readouterr().err
