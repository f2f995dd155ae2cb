"""Profiles of others, with what their exporters leave odd."""

import json

import pytest

from minglm.errors import InputError
from sim.trace.profile import read_profile


def test_kernels_that_had_not_ended_are_left_out_and_impossible_ones_named(tmp_path):
    events = [{"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "ts": 10.0, "dur": 4.0}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([*events, {"ph": "X", "cat": "kernel", "name": "late", "pid": 0, "ts": 20.0}]))
    assert read_profile(path)["seconds"] == pytest.approx(4e-6)
    path.write_text(json.dumps([*events, {**events[0], "name": "odd", "dur": -4.0}]))
    with pytest.raises(InputError, match="'odd' takes -4e-06 s"):
        read_profile(path)


def test_commas_that_part_thousands_do_not_shift_a_row(tmp_path):
    path, titles = tmp_path / "t.csv", "Start (ns),Duration (ns),Device,Name\n"
    path.write_text(titles + '"1,000,000","200,000",0,gemm\n')
    assert read_profile(path)["seconds"] == pytest.approx(200e-6)
    path.write_text(titles + "1,000,000,200,000,0,gemm\n")
    with pytest.raises(InputError, match="more cells than there are titles"):
        read_profile(path)


def test_kernel_details_of_an_ascend_profile_have_a_timeline(tmp_path):
    path = tmp_path / "kernel_details.csv"
    path.write_text(
        "Device_id,Name,Type,Accelerator Core,Start Time(us),Duration(us)\n"
        "0,a,MatMulV2,AI_CORE,1000.0,200.0\n0,hcom_allReduce__1,hcom_allReduce_,HCCL,1100.0,300.0\n"
    )
    found = read_profile(path)
    assert found["span_s"] == pytest.approx(400e-6) and found["exposed_communication_s"] == pytest.approx(200e-6)
