"""Questions turned round: each answer, asked forwards again, comes out where it began; each remedy is accepted."""

import json
import re

import pytest

from minglm import datafiles
from minglm.errors import InputError
from sim.base.units import DAY_S
from sim.cli.main import main
from sim.planner import inverse
from sim.planner.normal import normal
from sim.planner.planner import solved
from sim.planner.published import best_plan, compared, step_s
from sim.planner.question import question
from sim.scenario.training import load_scenario, resolve
from sim.study.answer import figures, point, simulate
from sim.study.explain import difference, leaves, step_tree
from sim.validation.rows import MeasuredRow, read_rows

SMALL = dict(model="llama3_8b", chip="h100", chips=64, batch=64, tokens=20_000_000_000)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))


def test_a_budget_buys_what_it_pays_for():
    q = question(**SMALL)
    r = inverse.buys(q, 20_000.0, 5 * DAY_S)
    assert r["chips"] * r["rent_usd_per_hour"] * 24 * 5 <= 20_000 < (r["chips"] + 8) * r["rent_usd_per_hour"] * 24 * 5
    row = figures(inverse.at_once(inverse.with_chips(q, r["chips"])))
    assert r["tokens"] == pytest.approx(row["tokens_per_s"] * row["goodput"] * 5 * DAY_S)
    n = r["largest_active_parameters"]["20"]
    assert 6 * n * 20 * n == pytest.approx(6 * q.model.active_params() * r["tokens"])
    for key, value in (("tokens", r["tokens"]), ("20", n)):
        assert r["intervals"][key]["p5"] < value < r["intervals"][key]["p95"]
    sure = inverse.buys(question(**{**SMALL, "tokens": 0.9 * r["intervals"]["tokens"]["p5"]}), 20_000.0, 5 * DAY_S)
    assert sure["kept"] > 0.95


def test_a_budget_that_is_too_small_names_one_that_is_not():
    q = question("glm5", chip="h100", chips=4096)
    with pytest.raises(InputError, match=r"too few to train glm5; give at least --budget (\d+)") as caught:
        inverse.buys(q, 1000.0, 30 * DAY_S)
    enough = float(re.search(r"--budget (\d+)", str(caught.value)).group(1))
    assert inverse.buys(q, enough, 30 * DAY_S)["tokens"] > 0


def test_a_deadline_is_met_and_an_impossible_one_names_the_nearest():
    q = question(**SMALL)
    whole = figures(simulate(resolve(solved(q))))
    r = inverse.within(q, 3 * whole["days"] * DAY_S)
    assert r["days"] <= 3 * whole["days"] and 16 <= r["chips_needed"] < 64
    assert r["intervals"]["days"]["p5"] < r["days"] < r["intervals"]["days"]["p95"] and 0 < r["kept"] <= 1
    surer = inverse.within(q, r["surer_deadline_days"] * DAY_S)  # the remedy, followed
    assert surer["chips_needed"] >= r["chips_needed"]
    assert surer["intervals"]["days"]["p95"] <= 1.02 * 3 * whole["days"]
    with pytest.raises(InputError, match=r"give --deadline '(\d+) h'") as caught:
        inverse.within(q, 0.5 * whole["days"] * DAY_S)
    remedy = inverse.deadline_s(re.search(r"--deadline '(\d+ h)'", str(caught.value)).group(1), "--deadline")
    assert inverse.within(q, remedy)["days"] * DAY_S <= remedy


def test_failures_may_grow_until_the_deadline():
    s = load_scenario("llama3_405b_16k_h100")
    simulated = simulate(s)
    days = simulated.campaign.days
    r = inverse.failures(s, simulated, 1.2 * days * DAY_S)
    span = r["intervals"]["times"]
    assert 0 <= span["p5"] < r["times"] < span["p95"] and 0 < r["kept"] <= 1
    assert inverse.failures(s, simulated, 3 * days * DAY_S)["kept"] == 1.0
    assert r["times"] > 1 and r["goodput_at_most"] == pytest.approx(simulated.campaign.goodput / 1.2)
    with pytest.raises(InputError, match="already"):
        inverse.failures(s, simulated, 0.9 * days * DAY_S)


def test_more_chips_pay_less_and_less(capsys):
    r = inverse.growth(question(**{**SMALL, "chips": 40}), most=3)
    assert [x["chips"] for x in r["rows"]] == [40, 44, 48, 53]
    for a, b in zip(r["rows"], r["rows"][1:], strict=False):
        assert b["pays"] == pytest.approx((a["days"] / b["days"] - 1) / (b["chips"] / a["chips"] - 1))


def test_where_more_chips_stop_paying():
    """By hand: days that halve with twice the chips pay in full; days that stay pay nothing."""

    def rows(*days):
        return [{"chips": round(100 * 1.1**k), "days": d} for k, d in enumerate(days)]

    assert inverse.stops_at(rows(*(100 / 1.1**k for k in range(6)))) is None
    assert inverse.stops_at(rows(10.0, 10.0, 10.0)) == 100
    assert inverse.stops_at(rows(10.0, 9.0, 8.2, 8.2, 8.2)) == 121
    assert inverse.stops_at(rows(10.0, 10.0, 8.0, 8.0)) == 121  # a single tenth that brings nothing is not the end
    assert inverse.stops_at(rows(10.0, 9.0, 9.0), 2) is None


def test_the_cheapest_keeps_the_deadline_with_the_fewest_chips_of_each():
    """Without a deadline few chips are cheapest; with one each machine takes as many as it must, and no more."""
    h100, b200 = (question(**{**SMALL, "chip": chip}) for chip in ("h100", "b200"))
    rows = inverse.cheapest([h100, b200], 1 * DAY_S)
    assert [r["rent_usd"] for r in rows] == sorted(r["rent_usd"] for r in rows)
    for r, q in zip(sorted(rows, key=lambda r: r["chip"]), (b200, h100), strict=True):
        assert r["days"] <= 1 and r == {"chip": r["chip"], "cluster": q.cluster.name, **inverse.within(q, DAY_S)}
    with pytest.raises(InputError, match=r"none of the 2 machines answers; .*give --deadline '(\d+ h)'") as caught:
        inverse.cheapest([h100, b200], 3600.0)
    hours = re.search(r"--deadline '(\d+) h'", str(caught.value)).group(1)
    assert inverse.cheapest([h100, b200], 3600.0 * int(hours))[0]["days"] * 24 <= int(hours)


def test_at_the_break_even_price_both_cost_the_same():
    h100, b200 = (question(**{**SMALL, "chip": chip}) for chip in ("h100", "b200"))
    r = inverse.break_even(b200, h100)
    at = {"rent_usd_per_hour": f"${r['break_even_usd_per_hour']!r}/h"}
    dearer = figures(simulate(resolve(solved(question(**{**SMALL, "chip": "b200", "prices": at})))))
    assert dearer["rent_usd"] == pytest.approx(r["rows"][1]["rent_usd"], rel=1e-9)
    span = r["intervals"]["break_even_usd_per_hour"]
    assert span["p5"] < r["break_even_usd_per_hour"] < span["p95"]
    other = inverse.break_even(h100, b200)
    assert other["break_even_usd_per_hour"] == r["other_break_even_usd_per_hour"]


def test_the_tree_adds_up_and_a_difference_does_too():
    a, b = load_scenario("glm5_100k_910b"), load_scenario("glm5_100k_910b", ["schedule=1f1b"])
    trees = [step_tree(s, point(s)) for s in (a, b)]

    def check(node):
        if node["parts"]:
            assert sum(x["seconds"] for x in node["parts"]) == pytest.approx(node["seconds"], rel=1e-9, abs=1e-12)
            for x in node["parts"]:
                check(x)

    for s, tree in zip((a, b), trees, strict=True):
        check(tree)
        r, of = point(s).result, {x["name"]: x["seconds"] for x in tree["parts"]}
        assert tree["seconds"] == r.step_s
        bubble = of["pipeline bubble: an average rank idle"]  # the one that `run` prints, as a share of pipeline time
        assert bubble / (bubble + of["work of an average rank"]) == pytest.approx(r.bubble_fraction)
        assert sum(leaves(tree).values()) == pytest.approx(tree["seconds"])
    gap = trees[1]["seconds"] - trees[0]["seconds"]
    assert sum(row[3] for row in difference(trees[1], trees[0])) == pytest.approx(gap)
    by_name = {row[0]: row[3] for row in difference(trees[1], trees[0])}
    assert by_name["schedule: the busiest is idle too"] > 0.8 * gap > 0  # a schedule changes the bubble, no work
    assert by_name["expert"] == pytest.approx(0, abs=1e-9)


def test_a_number_as_predicted_is_normal_and_half_of_it_is_not():
    s = load_scenario("llama3_405b_16k_h100")
    own = point(s).result.step_s
    r = normal(s, "step_s", own, samples=40)
    assert r["normal"] and 0.1 < r["faster_than"] < 0.9 and r["nearest"][0]["chip"] == "H100"
    slow = normal(s, "step_s", 2 * own, samples=40)
    assert not slow["normal"] and slow["faster_than"] == 0.0
    clock = next(c for c in slow["causes"] if c["name"] == "clock of the chips")
    # by hand: what is computed takes 1/x as long, the rest stays; x solves 2 = rest + compute / x
    classes = point(s).estimate.classes
    compute = sum(v for k, v in classes.items() if "communication" not in k) / sum(classes.values())
    assert clock["explains"] == (compute / 0.5 + 1 - compute >= 2 * 0.95 + 0.05)
    if clock["needs"]:
        assert clock["needs"] == pytest.approx(compute / (1 + compute), abs=0.02)
    assert not any("counted" in c["name"] or "peak" in c["name"] for c in slow["causes"])  # a clock counts nothing


def test_a_way_of_counting_explains_what_it_changes_and_nothing_else():
    s = load_scenario("llama3_405b_16k_h100")
    p = point(s).result
    tokens = normal(s, "tokens_per_s", 0.5 * p.tokens_per_s, samples=40)["causes"]
    masked = next(c for c in tokens if c["name"].startswith("padding"))
    assert masked["needs"] == pytest.approx(0.5, abs=1e-6)
    assert not any("FLOPs" in c["name"] or "peak" in c["name"] for c in tokens)
    own = normal(s, "mfu", 0.3, samples=40)["predicted"]
    for factor, name in ((4 / 3, "FLOPs counted with recomputation"), (0.5, "sparse peak")):
        r = normal(s, "mfu", factor * own, samples=40)
        explained = {c["name"]: c for c in r["causes"] if c["explains"]}
        assert not r["normal"] and next(c for n, c in explained.items() if n.startswith(name))["needs"] == 1.0
        assert not r["above_peak"]
    assert not any(c["name"].startswith("sparse") for c in normal(s, "tflops", 100.0, samples=40)["causes"])
    assert normal(s, "mfu", 1.2, samples=40)["above_peak"]


def test_the_plan_found_is_no_slower_than_the_shipped_one():
    run = load_scenario("glm5_100k_910b").run
    theirs, _ = step_s(run)
    assert theirs == pytest.approx(point(load_scenario("glm5_100k_910b")).result.step_s, rel=1e-9)
    row = compared("glm5_mini_smoke", load_scenario("glm5_mini_smoke").run)
    assert not row.reason and not row.slower


def test_a_run_that_fits_one_chip_by_fully_sharded_weights_alone_is_found():
    """The held-out row's 7B on one H200: 16 bytes a parameter under FSDP, 18 without."""
    runs = datafiles.data("published_runs", "held_out", "fsdp_h200.yaml")
    row = next(r for r in read_rows([runs]) if isinstance(r, MeasuredRow) and r.id == "kempner-mfu-7b-tp1-1")
    found = compared(row.id, row.run)
    assert not found.reason and not found.slower, found


@pytest.mark.slow
def test_the_headline_is_faster_than_plans_by_hand():
    """100,000 910B, 64M tokens a step: forty plans tried by hand reached 3.61 s, with cheaper all-to-alls."""
    run = load_scenario("glm5_100k_910b").run
    best, _ = best_plan(run)
    assert best.step_s / best.tokens * run.workload.tokens <= 3.3


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["plan", "--model", "llama3_8b", "--chip", "h100", "--chips", "8", "--budget", "1000"],
            "--deadline '90 days'",
        ),
        (["plan", "--model", "llama3_8b", "--ask", "cheapest", "--chip", "h100"], "needs several chips"),
        (["plan", "--model", "llama3_8b", "--ask", "cheapest", "--chip", "h100,h100"], "named twice"),
        (["plan", "--model", "llama3_8b", "--ask", "cheapest", "--chip", "h100,h1000"], "did you mean 'h100'"),
        (["plan", "--model", "llama3_8b", "--ask", "break-even", "--chip", "h100,b200,910b"], "needs two"),
        (["plan", "--model", "llama3_8b", "--ask", "break-even", "--chip", "h100,910c_die"], "no rent of 910C-die"),
        (["plan", "--model", "llama3_8b", "--chip", "h100", "--ask", "growth", "--budget", "1M"], "does not use it"),
        (["plan", "--model", "llama3_8b", "--chip", "h100", "--budget", "0", "--deadline", "9 days"], "than a dollar"),
        (["plan", "--model", "llama3_8b", "--chip", "h100", "--deadline", "0 days"], "than a minute"),
        (["plan", "--model", "llama3_8b", "--chip", "h100", "--ask", "failures"], "needs a deadline"),
        (["normal", "glm5_mini_smoke", "--measured", "speed=3"], "not one of"),
        (["normal", "glm5_mini_smoke", "--measured", "step_s"], "QUANTITY=VALUE"),
        (["normal", "glm5_mini_smoke", "--measured", "tokens_per_s=-3"], "must be more than 0"),
        (["normal", "glm5_mini_smoke", "--measured", "step_s=0"], "must be more than 0"),
        (["plan"], "neither a scenario nor --model"),
    ],
)
def test_refusals_are_one_line(capsys, argv, words):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


def test_what_fits_nowhere_says_how_many_chips_would_do(capsys):
    argv = ["plan", "--model", "llama3_70b", "--chip", "h100", "--chips", "4", "--batch", "64", "--samples", "0"]
    assert main(argv) == 2
    chips = re.search(r"\(--chips (\d+)\)", capsys.readouterr().err).group(1)
    argv[argv.index("4")] = chips
    assert main([*argv, "--json"]) == 0 and json.loads(capsys.readouterr().out)["winner"]["chips"] <= int(chips)
