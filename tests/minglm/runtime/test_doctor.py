"""`minglm doctor`: green where it is, and what to do where it is not."""

import json

import pytest

from minglm.cli import main
from minglm.runtime import doctor, machine


def test_green_here_and_json_says_the_same(capsys):
    pytest.importorskip("torch")
    assert main.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [c["name"] for c in found["checks"]]
    assert found["ready"] and {"python", "memory", "disk", "torch", "matmul", "chromium", "extra train"} <= set(names)
    assert "GFLOP/s" in next(c["found"] for c in found["checks"] if c["name"] == "matmul")
    assert main.main(["doctor", "--quick"]) == 0
    assert "Ready. Next: make demo" in capsys.readouterr().out


def test_problems_have_a_remedy_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(machine, "available_memory_bytes", lambda device="cpu": 2**28)
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda n, *a: None if n in ("torch", "tokenizers") else real(n, *a)
    )
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert main.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert (
        "missing torch, tokenizers" in out
        and "pip install" in out
        and "0.2 GiB free" in out
        and "apt install chromium" in out
    )
    assert "2 to mend before training: extra train, memory" in out


def test_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version_tuple", lambda: ("3", "9", "1"))
    assert doctor._python().state == "problem"


def test_measured_rate_is_positive_and_leaves_the_random_state_alone():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    machine.matmul_flops_per_s.cache_clear()
    assert machine.matmul_flops_per_s("fp32", "cpu", 0.05) > 1e8
    assert torch.equal(torch.rand(1), expected)


def test_machine_tells_memory_and_versions():
    assert 0 < machine.available_memory_bytes() <= machine.total_memory_bytes()
    assert {"python", "system"} <= set(machine.versions()) and machine.cpu_name()
    assert machine.free_disk_bytes() > 0 and machine.peak_rss_bytes() >= 0
