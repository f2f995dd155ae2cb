"""The planner's answers: published plans are met or beaten, events agree, refusals say what is missing."""

import json

import pytest

from minglm.errors import InputError
from sim.base.pareto import Front
from sim.cli.main import main
from sim.cost.evaluate import in_closed_form
from sim.cost.memory import peak
from sim.planner.explain import parts
from sim.planner.planner import answer, complete, find
from sim.planner.question import question
from sim.planner.space import default_space, divisors, replicas
from sim.scenario.training import resolve
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan


def call(capsys, *argv):
    code = main(["plan", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def gpt3():
    q = question("recompute_175b", "dgx_a100", 64, seq=2048, batch=64, stack="megatron-lm-2022-05", tokens="300B")
    return q, answer(q, top_k=8)


def test_at_least_as_fast_as_the_published_plan(gpt3):
    """arXiv 2205.05198 Table 5: TP8 PP8, three virtual stages, selective recomputation, on 64 A100."""
    q, a = gpt3
    published = Plan(tp=8, pp=8, vpp=3, schedule="interleaved", recompute="selective")
    assert a["winner"]["step_s"] <= in_closed_form(q.model, q.cluster, published, q.workload, "bf16", q.stack)[2]


def test_winner_holds_as_events(gpt3):
    assert abs(gpt3[1]["verified"]["difference"]) < 0.05


def test_answer_is_whole_and_consistent(gpt3):
    q, a = gpt3
    assert json.loads(json.dumps(a)) == a
    speeds = [r["tokens_per_s"] for r in a["ranked"]]
    assert speeds == sorted(speeds, reverse=True) and len(a["ranked"]) == 8
    assert all(
        r["memory_gib"] <= q.cluster.chip.memory_bytes.value / 2**30 and r["chips"] + r["spares"] == 64
        for r in a["ranked"] + a["front"]
    )
    assert [r["chips"] for r in a["front"]] == sorted(r["chips"] for r in a["front"])
    s = a["search"]
    assert s["looked_at"] == s["evaluated"] + s["too_large"] + s["bounded"]
    first = min(a["by_schedule"].values(), key=lambda r: r["step_s"])
    assert first["plan"] == a["winner"]["plan"]
    # a run ends with its last step: 300B tokens are not a whole number of them
    days = 3e11 / a["winner"]["tokens_per_s"] / 86400 / a["winner"]["goodput"]
    assert a["winner"]["days"] == pytest.approx(days, rel=1e-3)
    assert a["winner"]["rent_usd"] == pytest.approx(a["winner"]["chip_hours"] * q.cluster.chip.rent_usd_per_hour.value)


def test_explanation_names_the_difference(gpt3):
    _q, a = gpt3
    words = " ".join(a["explanation"])
    assert (
        a["winner"]["plan"] in words
        and "runner-up" in words
        and "instead of" in words
        and "of a chip's memory" in words
    )


def test_parts_sum_to_the_step(gpt3):
    q, _ = gpt3
    plan = Plan(tp=8, pp=8, vpp=3, schedule="interleaved", recompute="selective")
    assert sum(parts(q, plan, q.workload).values()) == pytest.approx(
        in_closed_form(q.model, q.cluster, plan, q.workload, "bf16", q.stack)[2]
    )


def test_cost_objective_never_costs_more_than_the_fastest():
    base = dict(seq=4096, batch=64, tokens="100B", fixed={"recompute": "none"})
    fast = find(question("llama3_8b", "dgx_h100", 64, **base), top_k=3)[0].best[0]
    cheap = find(question("llama3_8b", "dgx_h100", 64, objective="cost", **base), top_k=3)[0].best[0]
    assert cheap.value("cost") <= fast.value("cost") and fast.value("time") <= cheap.value("time")


def test_inventory_leaves_spares_and_meets_a_token_batch():
    q = question(
        "glm5",
        "atlas_800t_a2",
        1000,
        batch_tokens="4M",
        fixed={"ep": [16, 32], "micro_batch": 1, "recompute": ["none", "full"], "etp": 1},
    )
    out, costs = find(q, top_k=5)
    for f in out.best:
        assert f.num_chips <= 1000 and abs(f.tokens / 4e6 - 1) <= 0.03
        assert costs.memory_bytes(f.candidate) <= costs.memory_capacity


def test_pinned_axes_and_fields_hold():
    q = question(
        "llama3_8b",
        "dgx_h100",
        32,
        seq=4096,
        batch=64,
        fixed={"tp": 2, "zero": [0, 1], "optimizer": "muon"},
        schedules=("1f1b",),
    )
    out, costs = find(q, top_k=None)
    assert {f.candidate.tp for f in out.best} == {2} and {f.candidate.zero for f in out.best} <= {0, 1}
    assert {f.candidate.schedule for f in out.best} == {"1f1b"} and all(
        costs.plan(f.candidate).optimizer == "muon" for f in out.best
    )


def test_switches_are_searched_under_either_name():
    """A field of the plan and the document's option for it: one question, and the best of both settings."""
    asked = dict(seq=4096, batch=64, schedules=("1f1b",))

    def best(**fixed):
        return find(question("llama3_8b", "dgx_h100", 16, **asked, fixed={"micro_batch": 1, **fixed}), 1)[0].best[0]

    for plain, option in (("offload", "optimizer_offload"), ("sp", "sequence_parallel")):
        both = [best(**{name: [False, True]}) for name in (plain, option)]
        each = [best(**{name: on}) for name in (plain, option) for on in (False, True)]
        assert both[0].step_s == both[1].step_s == min(one.step_s for one in each)


def test_nothing_fits_names_the_nearest_and_what_it_lacks():
    with pytest.raises(InputError, match=r"no plan fits .*; nearest is TP\d.* GiB over the .* GiB.*--chips \d+"):
        find(question("glm5", "dgx_h100", 16, seq=4096, batch=16, fixed={"micro_batch": 1, "etp": 1}))


def test_progress_is_told_at_once_and_every_eighth_width():
    told = []
    q = question("llama3_8b", "dgx_h100", 16, seq=4096, batch=64, tokens="1B")
    find(q, 1, lambda done, total: told.append((done, total)))
    assert told[0][0] == 0 and all(done % 8 == 0 for done, _ in told) and len({total for _, total in told}) == 1


def test_nothing_divides():
    with pytest.raises(InputError, match=r"no plan divides .*micro_batch=2; .*\(--batch 8\)"):
        find(question("llama3_8b", "dgx_h100", 8, seq=4096, batch=7, fixed={"micro_batch": 2}))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--model", "gpt3_175b", "--cluster", "dgx_a1000"], "did you mean"),
        (["--model", "gpt3_175b"], "neither a cluster nor a chip"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--objective", "speed"], "objective 'speed'"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--set", "tpp=8"], "did you mean"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--set", "tp"], "KEY=VALUE"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--set", "tp=0"], "plan.tp: 0 is below 1"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--schedules", "2f2b"], "not one of"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--chips", "-4"], "chips"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--batch", "64", "--batch-tokens", "4M"], "keep one"),
        (["--model", "gpt3_175b", "--cluster", "dgx_a100", "--top-k", "0"], "--top-k"),
        (
            [
                "--model",
                "llama3_8b",
                "--chip",
                "910c",
                "--objective",
                "cost",
                "--cluster",
                "dgx_h100",
                "--chip-hour-price",
                "0",
            ],
            "must be more than 0",
        ),
    ],
)
def test_bad_input_is_one_line(capsys, argv, words):
    code, out, err = call(capsys, *argv)
    assert code == 2 and not out and err.count("\n") == 1 and words in err


def test_cost_without_a_price_is_refused():
    chip = {"name": "made-up", "peak_flops": "300 TFLOPS", "memory_bytes": "80 GB", "memory_bytes_per_s": "2 TB/s"}
    with pytest.raises(InputError, match="no price of made-up is known.*--chip-hour-price"):
        question("llama3_8b", None, 8, chip=chip, objective="cost")


def test_command_and_library_agree(capsys, tmp_path):
    argv = [
        "--model",
        "llama3_8b",
        "--cluster",
        "dgx_h100",
        "--chips",
        "16",
        "--seq",
        "4096",
        "--batch",
        "32",
        "--top-k",
        "4",
    ]
    code, out, err = call(capsys, *argv, "--json")
    a, b = json.loads(out), answer(question("llama3_8b", "dgx_h100", 16, seq=4096, batch=32), top_k=4)
    a["search"].pop("cpu_s"), b["search"].pop("cpu_s"), a.pop("uncertainty")
    assert code == 0 and not err and a == json.loads(json.dumps(b))
    code, out, _ = call(capsys, *argv)
    assert code == 0 and a["winner"]["plan"] in out and "Pareto front" in out and "90%: " in out
    file = tmp_path / "asked.yaml"  # a file's question, its plan left open
    file.write_text(
        json.dumps({"model": "llama3_8b", "cluster": "dgx_h100", "chips": 16, "seq": 4096, "plan": {"tp": 4}})
    )
    code, out, _ = call(capsys, str(file), "--batch", "32", "--top-k", "4", "--json", "--samples", "0")
    assert code == 0 and json.loads(out)["winner"] == a["winner"]


def test_front_keeps_what_nothing_beats():
    front = Front()
    for chips, time in [(8, 5.0), (16, 3.0), (8, 6.0), (4, 5.0), (12, 4.0), (16, 3.0), (20, 3.5), (2, 9.0)]:
        front.add(chips, time, (chips, time))
    assert front.items == [(2, 9.0), (4, 5.0), (12, 4.0), (16, 3.0)]
    assert front.beats(13, 4.5) and not front.beats(11, 4.5) and not front.beats(1, 100.0)


def test_replicas_divide_or_come_near():
    space = default_space(load_model("glm5"), load_cluster("atlas_800t_a2"), 4096, 16384, tolerance=0.02)
    for dp, batch in replicas(space, 16384, 1, 781, 4):
        assert dp % 4 == 0 and dp <= 781 and batch % dp == 0 and abs(batch / 16384 - 1) <= 0.02
    assert max(d for d, _ in replicas(space, 16384, 1, 781, 4)) >= 760
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(1) == [1]


def test_without_mtp_is_faster():
    pinned = {"tp": 1, "ep": 64, "micro_batch": 1, "pp": 16, "recompute": "full", "zero": 1}
    a, b = (
        find(
            question("deepseek_v3", "h800_deepseek", 2048, seq=4096, batch=15360, options={"mtp": mtp}, fixed=pinned),
            top_k=1,
        )[0].best[0]
        for mtp in (True, False)
    )
    assert b.step_s < a.step_s


def test_report_is_one_page_with_its_numbers(tmp_path, capsys):
    import csv

    code, out, err = call(
        capsys,
        "--model",
        "llama3_8b",
        "--cluster",
        "dgx_h100",
        "--chips",
        "16",
        "--seq",
        "4096",
        "--batch",
        "32",
        "--top-k",
        "4",
        "--set",
        "micro_batch=1",
        "--samples",
        "40",
        "--out",
        str(tmp_path / "r"),
    )
    assert code == 0 and not err and "90%: " in out
    a, html = json.loads((tmp_path / "r/plan.json").read_text()), (tmp_path / "r/plan.html").read_text()
    rows = list(csv.DictReader((tmp_path / "r/plans.csv").open()))
    assert len(rows) == len(a["ranked"]) + len(a["front"]) and float(rows[0]["step_s"]) == a["winner"]["step_s"]
    assert (
        a["winner"]["plan"] in html
        and "What would change the answer" in html
        and "mean absolute error" in html
        and "Plotly" in html
    )
    assert "<script src=" not in html and "<link" not in html.split("<body>")[0]
    i = a["uncertainty"]["intervals"]["days"]
    assert i["p5"] < i["p95"] and a["uncertainty"]["centre"]["days"] == pytest.approx(a["winner"]["days"], rel=1e-6)


def test_a_flag_changes_any_key_of_a_scenario_as_a_file_does():
    """`--set failures.level=high` was refused though the help names it, `plans` was dropped without a word."""
    further = [{"tp": 8, "pp": 4, "dp": 976}]
    q = question("glm5", chip="910b", chips=100_000, fixed={"failures.level": "high", "plans": further, "tp": [4, 8]})
    assert q.document["failures"] == {"level": "high"} and q.document["plans"] == further
    assert q.pinned["tp"] == [4, 8] and "failures.level" not in q.pinned and "plans" not in q.pinned


def test_host_memory_is_used_where_the_chip_has_too_little_and_the_host_enough():
    """Long rows on few chips: what a person turns by hand, the search turns unasked, as far as host memory goes."""
    widths = {"tp": [1, 2], "pp": 1, "cp": 2, "micro_batch": 1}

    def best(host="256 GiB", **fixed):
        cluster = {"like": "dgx_h100", "host_memory_bytes": host}
        q = question("llama3_70b", cluster, 32, seq=32_768, batch=32, fixed={**widths, **fixed})
        return answer(q, 1)

    kept, away = best(activation_offload=False, offload=False), best()
    assert away["document"]["options"]["activation_offload"] is True and away["winner"]["recompute"] == "none"
    assert "act-offload" in away["winner"]["plan"] and away["winner"]["step_s"] < kept["winner"]["step_s"]
    run = resolve(away["document"]).run
    need = peak(run.model, run.plan, run.workload, run.precision, run.stack).host
    assert 0 < need <= 256 * 2**30
    # hosts with a little more than that, a little less, and hardly any
    enough, short, none = (best(share * need)["winner"] for share in (1.001, 0.999, 1e-6))
    assert enough["plan"] == away["winner"]["plan"] and enough["step_s"] == away["winner"]["step_s"]
    assert short["plan"] != enough["plan"] and short["step_s"] > enough["step_s"]
    assert none["step_s"] == kept["winner"]["step_s"] and "offload" not in none["plan"]


def test_a_phase_does_not_inherit_what_the_first_plan_has_in_host_memory():
    """Long rows first, short ones after: the plan of the short rows keeps its activations on the chip."""
    phases = [{"tokens": "1T", "seq": 32_768, "batch": "1M"}, {"tokens": "1T", "seq": 2048, "batch": "1M"}]
    q = question("llama3_70b", chip="h100", chips=32, seq=32_768, batch_tokens="1M", phases=phases)
    document = complete(q.document)
    assert document["options"]["activation_offload"] is True
    (short,) = document["plans"]
    assert short["options"]["activation_offload"] is False
    assert not resolve(document).candidates[0].activation_offload
