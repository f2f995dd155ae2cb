"""The arithmetic behind the stated RL figures, and the profile that the simulator reads."""

import json
import random

import pytest

from minglm.errors import InputError
from minglm.rl import measure
from minglm.rl.profile import line_fit


def test_interval_is_the_t_interval_of_the_mean():
    mean, half = measure.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, rel=1e-4)
    assert measure.interval([5.0]) == (5.0, 0.0)


def test_speed_is_compared_seed_by_seed():
    rows = [
        {"mode": m, "seed": s, "trajectories_per_s": v, "pass_at_1": 0.5}
        for m, s, v in (
            ("sync", 0, 10.0),
            ("april", 0, 15.0),
            ("async", 0, 20.0),
            ("sync", 1, 1.0),
            ("april", 1, 1.5),
            ("async", 1, 2.0),
        )
    ]
    lines = measure.report("speed", rows)
    assert "1.50x sync (±0.00)" in lines[1] and "2.00x sync (±0.00)" in lines[2]


def test_staleness_says_so_when_seeds_cannot_tell():
    def rows(naive, corrected):
        return [
            {"use": use, "max_staleness": 8, "lr": 0.001, "seed": s, "pass_at_1": v}
            for use, values in (("naive", naive), ("corrected", corrected))
            for s, v in enumerate(values)
        ]

    assert "no difference" in measure.report("staleness", rows((0.5, 0.6, 0.4), (0.55, 0.5, 0.52)))[0]
    assert "naive use hurts" in measure.report("staleness", rows((0.20, 0.21, 0.20), (0.60, 0.61, 0.60)))[0]


def test_each_use_of_stale_data_is_also_told_at_a_rate_of_its_own():
    """At the high rate naive use loses 40 points; at the low one, which is its better one, none."""
    shares = {("naive", 0.001): 0.2, ("naive", 0.0005): 0.6, ("corrected", 0.001): 0.6, ("corrected", 0.0005): 0.5}
    rows = [
        {"use": use, "max_staleness": 8, "lr": lr, "seed": s, "pass_at_1": share + 0.01 * s}
        for (use, lr), share in shares.items()
        for s in (0, 1, 2)
    ]
    low, high, own = measure.report("staleness", rows)
    assert "difference +40.0" in high and "difference -10.0" in low
    assert own.startswith("η=8, each at a rate of its own") and "difference +0.0 (±0.0)" in own


def test_rows_survive_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.datafiles, "data", lambda *parts: tmp_path / parts[-1])
    measure.write([{"mode": "sync", "seed": 0, "pass_at_1": 0.51234, "lr": 0.000125}], tmp_path / "rl_x.csv")
    assert measure.read("x") == [{"mode": "sync", "seed": 0, "pass_at_1": 0.5123, "lr": 0.000125}]


def test_a_line_is_found_and_never_starts_below_zero():
    assert line_fit([(x, 2 * x + 3.0) for x in (1, 5, 50)]) == pytest.approx((2, 3))
    assert line_fit([(1.0, 1.0), (2.0, 4.0)])[1] == 0.0


def test_a_noisy_demonstration_goes_on_from_its_wrong_total():
    from minglm.rl.warm_start import WarmStart, noisy_sum

    rng = random.Random(1)
    texts = [noisy_sum("a7b4c9", rng, 0.3) for _ in range(400)]
    right = sum(t == "a7b11c20#20" for t in texts) / len(texts)
    assert right == pytest.approx(0.7**3, abs=0.08)
    for t in texts:
        assert t.partition("c")[2].partition("#")[0] == t.partition("#")[2]
    with pytest.raises(InputError, match="only task sum has noisy demonstrations"):
        WarmStart(task="list", label_noise=0.1)
    with pytest.raises(InputError, match="longest"):
        from minglm.rl.tasks import task_tokenizer
        from minglm.rl.warm_start import Rows

        Rows(WarmStart(task="sum", longest=1), task_tokenizer()).batch(0)


@pytest.mark.slow
def test_the_profile_has_what_the_simulator_reads(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from minglm.rl import profile
    from minglm.rl.warm_start import WarmStart, warm_start

    # Every table, by few repetitions and small updates: what the medians are is not asked here.
    monkeypatch.setattr(profile, "REPEATS", 3)
    monkeypatch.setattr(profile, "BATCHES", (1, 4))
    monkeypatch.setattr(profile, "UPDATES", ((4, 8, None), (8, 16, None), (4, 40, None), (8, 5, 60), (4, 5, 120)))

    small = dict(
        hidden_size=32, num_hidden_layers=2, n_routed_experts=4, moe_intermediate_size=16, max_position_embeddings=256
    )
    warm = warm_start(
        WarmStart(task="sum", tail=0.5, steps=1, batch_size=1, seq_len=64, longest=40, model=small), tmp_path / "warm"
    )
    assert profile.main(["--init-from", str(warm), "--out", str(tmp_path / "p" / "profile.json")]) == 0
    found = json.loads((tmp_path / "p" / "profile.json").read_text())
    batches, seconds = zip(*found["decode_step_s"], strict=False)
    assert list(batches) == sorted(batches) and min(seconds) > 0
    assert (
        all(found[k] >= 0 for k in ("prefill_s_per_token", "prefill_fixed_s", "train_s_per_token", "train_fixed_s"))
        and found["weight_sync_s"] > 0
    )
