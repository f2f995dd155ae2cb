"""The laboratories: a planted law is found again, planted copies are found, an entry spends its FLOPs and no more."""

import math
import random
from itertools import product

import pytest

pytest.importorskip("torch")
import torch

from minglm.course.labs import cleaning, record, scaling, sparse_twin, speedrun, text, toy, twins
from minglm.data.shards import IGNORE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.vocabulary import token_ids, tokenizer
from minglm.errors import InputError
from minglm.evals import scaling_law
from minglm.evals.scaling_law import Law

TRUE = Law(0.9, 700.0, 900.0, 0.7, 0.6)


def _planted(law=TRUE, noise=0.0):
    rng = random.Random(0)
    return [
        scaling.Run(0.03, 0, 0, n, d, law.loss(n, d) * (1 + noise * rng.gauss(0, 1)), 0.9)
        for n, d in product((20_000, 40_000, 80_000, 160_000), (20_000, 80_000, 320_000))
    ]


def test_a_planted_law_is_found_again():
    found = scaling.fit(_planted())
    for name in ("E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.02), name
    assert found.error < 1e-4
    assert found.loss(500_000, 1e6) == pytest.approx(TRUE.loss(500_000, 1e6), rel=1e-3)


def test_noise_widens_the_interval():
    wide, narrow = (
        scaling.interval([x.loss(1e6, 1e7) for x in scaling.resampled(_planted(noise=noise), 20)])
        for noise in (0.02, 0.0)
    )
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    assert narrow[0] - 0.01 <= TRUE.loss(1e6, 1e7) <= narrow[1] + 0.01


def test_shuffled_sizes_fit_worse_and_a_term_that_explains_nothing_is_zero():
    points = _planted()
    assert min(scaling.fit(scaling.shuffled(points, s)).error for s in range(5)) > 10 * scaling.fit(points).error
    blind = [scaling.Run(0.03, 0, 0, p.weights, p.tokens, 0.9 + 900 / p.tokens**0.6, 0.9) for p in points]
    law = scaling.fit(blind)
    assert law.A / 20_000**law.alpha < 1e-3 and law.beta == pytest.approx(0.6, rel=0.02)
    with pytest.raises(InputError, match="5 runs: five numbers"):
        scaling.fit(points[:5])


@pytest.mark.parametrize("flops", [1e10, 1e18, 5.76e23])
@pytest.mark.parametrize("law", [TRUE, *scaling_law.published().values()], ids=["planted", *scaling_law.published()])
def test_the_best_split_is_where_no_other_size_is_better(law, flops):
    n, d = law.best_split(flops)
    assert 6 * n * d == pytest.approx(flops)
    best = law.loss(n, d)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert law.loss(n * factor, d / factor) > best


def test_published_laws_give_the_exponents_of_their_papers():
    """a = beta / (alpha + beta): 0.46 in Hoffmann's table 2 (third approach), 0.5126 in Besiroglu's."""
    assert scaling_law.law("hoffmann_2022_unrounded").share == pytest.approx(0.46, abs=0.005)
    assert scaling_law.law("besiroglu_2024").share == pytest.approx(0.5126, abs=0.0001)
    with pytest.raises(InputError, match="did you mean 'besiroglu_2024'"):
        scaling_law.law("besiroglu")


def test_recorded_runs_are_the_grid_and_their_weights_those_of_the_model():
    points, unseen = scaling.runs()
    assert {(p.width, p.steps) for p in points} == set(product(scaling.WIDTHS, scaling.STEPS))
    assert [(p.width, p.steps) for p in unseen] == [scaling.LARGEST]
    for p in points:
        model = scaling.config(p.width)
        C = model.hidden_size
        moe = 3 * 3 * C * model.moe_intermediate_size + C * 8  # two experts, the shared one, the router
        q = C * model.q_lora_rank + model.q_lora_rank * 4 * model.qk_head_dim
        kv = C * (model.kv_lora_rank + model.qk_rope_head_dim)
        kv += model.kv_lora_rank * 4 * (model.qk_nope_head_dim + model.v_head_dim)
        attention = q + kv + 4 * model.v_head_dim * C
        assert p.weights == 3 * attention + 3 * C * model.intermediate_size + 2 * moe + 800 * C
        assert p.tokens == p.steps * scaling.ROWS * scaling.LENGTH and p.loss > p.floor


# ---------------------------------------------------------------- text


def test_a_hash_finds_equal_copies_and_minhash_the_others():
    crawl = text.with_copies(300, 0)
    assert sum(p.damage == "copy" for p in crawl) == 180
    once, near = text.exact(crawl), text.near(crawl)
    assert len({p.tokens for p in once}) == len(once)
    assert text.judged(crawl, near)[1] > text.judged(crawl, once)[1] + 0.2
    assert text.judged(crawl, near)[0] > 0.85  # the language repeats a short page now and then
    kept = [text.shingles(p.tokens) for p in near]
    for page in crawl:  # nothing is gone without something like it: compared with every page, without MinHash
        pieces = text.shingles(page.tokens)
        assert max(text.jaccard(pieces, other) for other in kept) >= text.ALIKE


def test_minhash_agrees_as_often_as_the_pieces_do():
    a, b = set(range(0, 600)), set(range(200, 800))
    agree = [x == y for s in range(40) for x, y in zip(text.signature(a, s), text.signature(b, s), strict=True)]
    rate, true = sum(agree) / len(agree), text.jaccard(a, b)
    assert true == 0.5 and abs(rate - true) < 4 * math.sqrt(true * (1 - true) / len(agree))


def test_precision_and_recall_by_hand():
    pages = [text.Page(("a",)), text.Page(("b",), "junk"), text.Page(("c",), "junk"), text.Page(("d",))]
    assert text.judged(pages, [pages[0], pages[2]]) == (0.5, 0.5)
    assert text.judged(pages, pages) == (0.0, 0.0)


def test_a_filter_finds_shuffled_words_and_chance_does_not():
    crawl = text.with_junk(200, 1)
    kept = text.filtered(crawl, 1)
    precision, recall = text.judged(crawl, kept)
    chance = text.judged(crawl, text.dropped_at_random(crawl, len(kept), 0))
    assert precision > 0.85 and recall > 0.8 and abs(chance[0] - 0.5) < 0.15


def test_batches_hold_whole_pages_with_targets_inside_them_only():
    pages = text.pages(6, 0)
    ids, tok = token_ids(), tokenizer()
    batch = next(text.batches(pages, 2, 400, 0))
    flat = batch.tokens[0].tolist()
    first = flat[1 : flat.index(tok.eos)]
    assert flat[0] == tok.bos and any(first == [ids[t] for t in p.tokens] for p in pages)
    for r, t in product(range(2), range(399)):
        if batch.tokens[r, t + 1] == tok.bos:
            assert batch.targets[r, t] == IGNORE  # what begins a page cannot be known from the one before
        else:
            assert batch.targets[r, t] == batch.tokens[r, t + 1]
        assert batch.tokens[r, batch.doc_start[r, t]] == tok.bos
    with pytest.raises(InputError, match="no page is left"):
        next(text.batches([], 1, 8, 0))


def test_a_paired_difference_has_students_interval():
    mean, low, high = cleaning.paired([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert mean == pytest.approx(4 / 3)
    half = 4.303 * math.sqrt(7 / 3) / math.sqrt(3)  # differences 0, 1, 3: variance 7/3
    assert (low, high) == pytest.approx((4 / 3 - half, 4 / 3 + half), rel=1e-3)
    with pytest.raises(InputError, match="0 degrees of freedom"):
        cleaning.paired([1.0], [1.0])


def test_recorded_effects_are_of_every_text_and_seed():
    for experiment, texts in cleaning.EXPERIMENTS.items():
        found = cleaning.effects(experiment)
        assert found[0].text == cleaning.FIRST[experiment] and found[0].difference == 0
        assert all(e.low <= e.difference <= e.high and e.loss > toy.floor() for e in found)
        assert callable(texts)
    with pytest.raises(InputError, match="not one of copies, junk, mixture"):
        cleaning.effects("none")


# ---------------------------------------------------------------- the speedrun


def test_an_untrained_model_knows_nothing():
    torch.manual_seed(0)
    model = toy.Model(toy.config())
    assert toy.unseen_loss(model) == pytest.approx(math.log(toy.VOCABULARY), abs=0.1) and toy.floor() < 1.5
    with pytest.raises(InputError, match="steps=0"):
        toy.train(toy.config(), [], 0, toy.Setting())


def test_two_trainings_of_one_seed_are_one_and_the_setting_matters():
    rows = TinyWorldLoader(2, 16)
    runs = [
        toy.train(toy.config(), map(rows.batch, range(3)), 3, toy.Setting(muon=m)).losses for m in (True, True, False)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_an_entry_spends_its_flops_and_not_more():
    for entry in speedrun.entries():
        model = entry.config()
        step = 3 * sum(model.flops_breakdown(entry.seq_len, sparse=False).values()) * entry.batch_size * entry.seq_len
        assert entry.steps() * step <= speedrun.FLOPS < (entry.steps() + 1) * step
    with pytest.raises(InputError, match="take a smaller batch or model"):
        speedrun.Entry(hidden_size=512, batch_size=512).steps()
    with pytest.raises(InputError, match="did you mean 'lr'"):
        speedrun.Entry.from_dict({"lrr": 1})


def test_a_first_look_takes_fewer_steps():
    entry = speedrun.Entry(hidden_size=16, intermediate_size=40, moe_intermediate_size=8)
    assert speedrun.run(entry, most_steps=2).steps == 2


def test_the_leaderboard_is_of_the_entries_with_seed_commit_and_curve():
    places = speedrun.standings()
    entries = {e.name: e for e in speedrun.entries()}
    assert [p.entry for p in places] == list(entries)
    for p in places:
        assert p.steps == entries[p.entry].steps() and p.low <= p.above <= p.high
        assert 10 <= len(p.curve) <= speedrun.POINTS and p.curve[0] > p.curve[-1]
    board = speedrun.table(places)
    best = min(places, key=lambda p: p.above)
    assert board.count("record") == 1 and f"| {best.entry} | {best.above:.3f}" in board


def test_a_design_file_serves_both_halves(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\ncluster: {}\ntoy: {name: y, hidden_size: 32}\n", encoding="utf-8")
    assert speedrun.read(path) == speedrun.Entry(name="y", hidden_size=32)
    path.write_text("toy: 3\n", encoding="utf-8")
    with pytest.raises(InputError, match="must be a mapping"):
        speedrun.read(path)


def test_a_recording_goes_on_where_it_stopped(tmp_path):
    path, trained = tmp_path / "out.csv", []

    def planned(names):
        for name in names:
            yield {"name": name}, lambda name=name: trained.append(name) or {"loss": len(name)}

    record.add_rows(path, ("name", "loss"), ("name",), planned("ab"))
    record.add_rows(path, ("name", "loss"), ("name",), planned("abc"))
    assert trained == ["a", "b", "c"] and path.read_text(encoding="utf-8").split() == ["name,loss", "a,1", "b,1", "c,1"]
    with pytest.raises(InputError, match="did you mean 'scaling'"):
        record.record("scalin")


# ---------------------------------------------------------------- twins


def test_the_dense_twin_has_no_experts_and_as_much_at_work():
    experts, dense = twins.WAYS[twins.EXPERTS].config, twins.WAYS[twins.DENSE].config
    assert dense.num_moe_layers == 0 and experts.num_moe_layers == 2
    weights = [sum(p.numel() for n, p in toy.Model(c).named_parameters() if "mtp" not in n) for c in (experts, dense)]
    idle = 2 * (8 - 2) * 3 * 64 * 32  # two layers, six experts that a token does not take, three matrices each
    assert abs(weights[0] - idle - weights[1]) < 0.001 * weights[1]


def _twin_rows():
    sweep = [
        (way, 0.01, 0.02, 2.0 + more) for way, more in ((twins.EXPERTS, 0.0), (twins.DENSE, 0.3), (twins.ADAMW, 0.5))
    ]
    sweep += [(twins.EXPERTS, 0.02, 0.02, 1.9), (twins.DENSE, 0.02, 0.02, 1.8), (twins.ADAMW, 0.02, 0.02, 1.9)]
    rows = [dict(way=w, seed=twins.SWEEP_SEED, lr=a, adam_lr=b, loss=loss) for w, a, b, loss in sweep]
    for way, more in ((twins.EXPERTS, 0.0), (twins.DENSE, 0.1), (twins.ADAMW, 0.5)):
        rows += [dict(way=way, seed=s, lr=0.01, adam_lr=0.01, loss=1.5 + more * (s - 2) + s) for s in twins.SEEDS]
    return [{"active_weights": 10, "weights": 20, "floor": 1.0, **row} for row in rows]


def test_twins_are_compared_seed_by_seed_at_their_own_rates():
    rows = _twin_rows()
    assert twins.best_rates(rows, twins.EXPERTS) == (0.02, 0.02)
    found, mean, half = twins.difference(rows, "dense twin less experts")
    assert found == pytest.approx([-0.2, -0.1, 0.0, 0.1, 0.2]) and mean == pytest.approx(0)
    assert half == pytest.approx(2.776 * math.sqrt(0.025 / 5), rel=1e-3)
    assert twins.at_shared_rates(rows, "dense twin less experts") == pytest.approx([-0.1, 0.3])
    text = twins.table(rows)
    assert text.splitlines()[1].split()[2:4] == ["0.02", "0.02"] and "-0.100 to +0.300" in text
    assert "edge of the sweep" in text and "(95% ±0.196)" in text


def test_recorded_twins_are_five_seeds_at_the_best_rates_of_a_whole_sweep():
    rows = twins.read()
    for way, entry in twins.WAYS.items():
        own = [r for r in rows if r["way"] == way]
        swept = {(r["lr"], r["adam_lr"]) for r in own if r["seed"] == twins.SWEEP_SEED}
        assert swept == set(product(twins.RATES, twins.OTHER_RATES))
        judged = [r for r in own if r["seed"] != twins.SWEEP_SEED]
        assert [r["seed"] for r in judged] == list(twins.SEEDS)
        assert {(r["lr"], r["adam_lr"]) for r in judged} == {twins.best_rates(rows, way)}
        assert {r["active_weights"] for r in own} == {entry.config.num_active_params()}
        assert all(r["loss"] > r["floor"] for r in own)


def test_sparse_and_dense_read_the_same_rows_after_the_same_start(monkeypatch):
    """The four trainings as they are handed over: one start, one set of weights to go on from, one difference."""
    asked = []

    def train(recipe, folder, init_from=None, progress=True):
        asked.append((folder.name, None if init_from is None else init_from.name, recipe))
        return {"val_loss": float(len(asked))}

    monkeypatch.setattr(sparse_twin, "train", train)
    sparse_twin.run.cache_clear()
    assert sparse_twin.run(7) == dict(zip(sparse_twin.WAYS, (1.0, 2.0, 3.0, 4.0), strict=True))
    sparse_twin.run.cache_clear()
    (_, none, first), (_, before, warm), (_, one, dense), (_, other, sparse) = asked
    assert (none, before) == (None, "start") and one == other == "warm"
    assert {k: v for k, v in sparse.to_dict().items() if k != "stage"} == {
        k: v for k, v in dense.to_dict().items() if k != "stage"
    }
    assert (first.mode, warm.mode, dense.mode, sparse.mode) == ("dense", "warmup", "dense", "sparse")
    assert sparse.config().index_topk == 32 and sparse.seq_len == 512 and first.seed != sparse.seed


def test_what_few_keys_cost_is_sparse_less_dense_seed_by_seed():
    found = [
        {"way": way, "seed": seed, "loss": loss}
        for seed, pair in enumerate(((1.03, 1.0), (1.0, 1.01)))
        for way, loss in zip(("sparse", "dense"), pair, strict=True)
    ]
    assert sparse_twin.costs(found) == pytest.approx([0.03, -0.01])
    assert "+0.010 nats a token (95% ±0.254); by seed +0.030 -0.010" in sparse_twin.table(found)  # 12.706 · 0.02
    recorded = sparse_twin.read()
    assert {(r["way"], r["seed"]) for r in recorded} == set(product(sparse_twin.WAYS, sparse_twin.SEEDS))
