"""Sweeps: every point once, whatever happens in between; refusals in one line."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.base import parallel_map
from sim.cli.main import main
from sim.scenario.training import load_scenario
from sim.study.monte_carlo import outcome
from sim.study.sweep import OUTPUTS, grid, key, sweep

SMALL = {
    "name": "small",
    "model": "llama3_8b",
    "cluster": "dgx_h100",
    "chips": 32,
    "plan": {"tp": 2, "pp": 2},
    "seq": 4096,
    "global_batch": 64,
    "tokens": "1T",
}


def test_grid_is_the_product_in_order():
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_rows_are_what_single_scenarios_give(tmp_path):
    rows = sweep(SMALL, {"plan.tp": [1, 2, 3], "tokens": ["1T", "2T"]}, tmp_path / "out.csv", workers=1)
    assert [(r["plan.tp"], r["tokens"]) for r in rows] == [(t, n) for t in (1, 2, 3) for n in ("1T", "2T")]
    assert all("does not divide" in r["reason"] for r in rows[4:]) and not any(r["reason"] for r in rows[2:4])
    from sim.scenario.training import resolve

    alone = outcome(resolve({**SMALL, "tokens": "2T"}))
    assert rows[3]["days"] == pytest.approx(alone["days"]) and rows[3]["rent_usd"] == pytest.approx(alone["rent_usd"])
    assert rows[3]["days"] == pytest.approx(2 * rows[2]["days"], rel=1e-3)


def test_second_run_computes_nothing(tmp_path, monkeypatch):
    path, vary = tmp_path / "out.csv", {"micro_batch": [1, 2]}
    first = sweep(SMALL, vary, path, workers=1)
    monkeypatch.setattr("sim.study.sweep.point", lambda job: pytest.fail("computed again"))
    again = sweep(SMALL, vary, path, workers=1)
    assert [r["key"] for r in again] == [r["key"] for r in first] and again[1]["days"] == pytest.approx(
        first[1]["days"]
    )


def test_a_line_cut_short_is_computed_again(tmp_path):
    path, vary = tmp_path / "out.csv", {"micro_batch": [1, 2]}
    first = sweep(SMALL, vary, path, workers=1)
    path.write_bytes(path.read_bytes()[:-30])
    assert [r["step_s"] for r in sweep(SMALL, vary, path, workers=1)] == pytest.approx([r["step_s"] for r in first])
    assert len(list(csv.reader(path.open()))) == 3


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path):
    """A real kill: the rows that were there stay as they were, byte for byte, and only the rest is added."""
    path = tmp_path / "out.csv"
    argv = [
        sys.executable,
        "-m",
        "sim",
        "sweep",
        "glm5_mini_smoke",
        "--vary",
        f"tokens={list(range(10**12, 10**12 + 200))}",
        "--workers",
        "1",
        "--out",
        str(path),
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(datafiles.root())}
    job = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and (not path.exists() or path.read_bytes().count(b"\n") < 4):
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 4 <= kept.count(b"\n") < 201
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    after = path.read_bytes()
    assert after.startswith(kept) and after.count(b"\n") == 201
    keys = [r[0] for r in csv.reader(path.read_text().splitlines())][1:]
    assert len(set(keys)) == 200


def test_the_key_is_of_scenario_and_changes():
    assert key(SMALL, {"a": 1, "b": 2}) == key(dict(reversed(SMALL.items())), {"b": 2, "a": 1})
    assert key(SMALL, {"a": 1}) != key({**SMALL, "seq": 8192}, {"a": 1})


def test_processes_give_the_same_rows(tmp_path):
    vary = {"micro_batch": [1, 2, 4], "plan.tp": [1, 2]}
    assert sweep(SMALL, vary, workers=2) == sweep(SMALL, vary, workers=1)


def test_another_sweeps_file_is_refused(tmp_path):
    path = tmp_path / "out.csv"
    sweep(SMALL, {"micro_batch": [1]}, path, workers=1)
    with pytest.raises(InputError, match="holds another sweep"):
        sweep(SMALL, {"plan.tp": [1]}, path, workers=1)


@pytest.mark.parametrize(
    "module, words, call",
    [
        ("ray", r"pip install .*\[dist\]", lambda p: parallel_map.check("ray")),
        ("pyarrow", "pip install '?pyarrow", lambda p: sweep(SMALL, {"micro_batch": [1]}, p / "a.parquet")),
    ],
)
def test_missing_packages_say_how_to_install(tmp_path, monkeypatch, module, words, call):
    for name in (module, f"{module}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=words):
        call(tmp_path)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--vary", "plan.tp"], "FIELD=VALUES"),
        (["--vary", "plan.tp=[]"], "not a list of values"),
        ([], "1 to 5,000,000"),
        (["--vary", "plan.tp=[1]", "--engine", "rey"], "did you mean 'ray'"),
        (["--vary", "plan.tp=[1]", "--workers", "0"], "--workers: 0"),
        (["--samples", "1"], "samples=1"),
        (["--samples", "5", "--no-hardware-facts"], "nothing is uncertain"),
    ],
)
def test_bad_input_is_one_line(capsys, argv, words):
    code = main(["sweep", "llama3_405b_16k_h100", *argv])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and words in err


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_local_ray_gives_the_same_table():
    pytest.importorskip("ray")
    from minglm.runtime import ray as ray_cluster

    def dies_once(item: int) -> int:
        import os
        import signal
        import tempfile
        from pathlib import Path

        mark = Path(tempfile.gettempdir()) / f"minglm_ray_{os.getppid()}_{item}"
        if item == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        mark.unlink(missing_ok=True)
        return item

    ray = ray_cluster.connect(cpus=2)
    try:
        vary = {"micro_batch": [1, 2, 4]}
        assert sweep(SMALL, vary, engine="ray") == sweep(SMALL, vary, workers=1)
        assert sorted(dict(parallel_map.run(dies_once, [0, 1], "ray")).values()) == [0, 1], (
            "the item of a killed worker is run again"
        )
    finally:
        ray.shutdown()


def test_no_ray_answers_at_the_address():
    pytest.importorskip("ray")
    from minglm.runtime import ray as ray_cluster

    with pytest.raises(InputError, match="give its host:port"):
        ray_cluster.connect("127.0.0.1:1")


def test_outputs_are_all_columns():
    assert set(outcome(load_scenario("llama3_405b_16k_h100"))) < set(OUTPUTS)
