"""The one table of the benches: what is asked, what was measured, what was not."""

import json

import pytest

from minglm.errors import InputError
from minglm.tools import bench, bench_summary

TARGETS = """work,unit,must,goal,measured_by
a copy,x,<= 1.5,<= 1.2,one
a rate,tokens/s,>= 10,>= 20,one
a wait,s,< 3,,two
"""


@pytest.fixture
def folders(tmp_path):
    benches, results = tmp_path / "benches", tmp_path / "results"
    benches.mkdir()
    results.mkdir()
    (benches / "targets.csv").write_text(TARGETS)
    machine = {"load_before": 0.5, "date": "2026-01-02", "matmul_gflops_fp32": 100.0}
    rows = [
        {"name": "copied", "machine": machine} | bench_summary.median_ratio("a copy", [2.0, 9.0, 1.4], [1.0, 3.0, 1.0]),
        {"name": "rate", "machine": machine} | bench_summary.answer("a rate", 15.0),
        {"name": "beside"},
    ]
    (results / "one.json").write_text(json.dumps(rows))
    return benches, results


def test_each_target_has_its_figure_or_says_that_it_was_not_measured(folders):
    benches, results = folders
    lines, text = bench.summary(results, benches)
    copy, rate, wait = lines
    assert copy["measured"] == 2.0 and copy["spread"] == [1.4, 3.0]  # the median of the three ratios
    assert copy["must_met"] is False and copy["goal_met"] is False
    assert rate["must_met"] is True and rate["goal_met"] is False
    assert wait["measured"] is None and wait["must_met"] is None and wait["goal_met"] is None
    assert "not measured" in text.splitlines()[5] and "100 to 100 GFLOP/s" in text
    assert [line["work"] for line in bench.summary(results, benches, only="two")[0]] == ["a wait"]


def test_a_bound_that_does_not_compare_is_refused(tmp_path):
    (tmp_path / "targets.csv").write_text(TARGETS.replace("<= 1.5", "about 1.5"))
    with pytest.raises(InputError, match=r"targets\.csv: 'about 1\.5': must be a comparison and a number"):
        bench_summary.read_targets(tmp_path)


def test_every_target_of_the_repository_names_a_bench_that_answers_it():
    benches = bench.discover()
    for target in bench_summary.read_targets(next(iter(benches.values())).parent):
        assert target.measured_by in benches, target
