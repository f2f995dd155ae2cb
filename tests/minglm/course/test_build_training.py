"""The swap test, second half: the learner's tokenizer, optimisers, loop, decoding, drafts, queue and losses beside
minglm's own."""

import pytest

torch = pytest.importorskip("torch")
from minglm.course import curves, record_curves  # noqa: E402
from minglm.course.workshop.build import decoding, rollouts, solved, subject, text, training  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.rl.modes import Policy, Status  # noqa: E402
from minglm.training.optim import MuonAdamW  # noqa: E402


def _model():
    layers, whole = solved("build_1_layers"), solved("build_2_model")
    return lambda config: whole["GLM"](config, attention=layers["MLA"])


@pytest.fixture(scope="module")
def curve():
    """A short run of the learner's model and loop, on seed 0 of the band."""
    return training.train_on_the_tiny_world(_model(), solved("build_4_training")["train"], 40, 0)


# ---------------------------------------------------------------------- tokenizer


def test_the_learners_merges_are_the_librarys_and_unseen_text_encodes_alike():
    mine, texts = solved("build_0_tokenizer"), text.sample(100)
    real = text.real(texts, 150)
    merges = mine["learn"](text.pieces(texts), 150)
    assert merges == text.real_merges(real)
    for unseen in [*text.sample(20, seed=1), "Zoë's 4821 \N{SNOWMAN} (never seen)!"]:
        symbols = [s for piece in text.cut(unseen) for s in mine["encode"](piece, merges)]
        assert [s + text.OFFSET for s in symbols] == real.encode(unseen)
        assert mine["decode"](symbols, merges) == [s for piece in text.cut(unseen) for s in piece]


def test_a_tokenizer_that_merges_from_the_right_is_seen():
    mine, texts = solved("build_0_tokenizer"), text.sample(100)
    real = text.real(texts, 150)
    assert mine["learn"](text.pieces(texts), 150)[::-1] != text.real_merges(real)


# ---------------------------------------------------------------------- optimisers and loop


def test_the_learners_optimizer_moves_every_parameter_as_minglms():
    made = {}
    for whose in ("mine", "theirs"):
        model, g = subject(), torch.Generator().manual_seed(3)
        kind = solved("build_4_training")["Optimizer"] if whose == "mine" else None
        optimizer = kind(model, 0.02) if kind else MuonAdamW(model.named_parameters(), model.config, lr=0.02)
        for step in range(3):
            grads = {n: torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}
            if kind:
                optimizer.step(grads, 1.0 - 0.2 * step)
            else:
                for n, p in model.named_parameters():
                    p.grad = grads[n].clone()
                optimizer.step(1.0 - 0.2 * step)
        made[whose] = {n: p.detach() for n, p in model.named_parameters()}
    start = dict(subject().named_parameters())
    for name, p in made["theirs"].items():
        assert float((made["mine"][name] - p).abs().max()) < 1e-5, name
        assert float((start[name].detach() - p).abs().max()) > 1e-3, name  # it did move


def test_the_learners_curve_is_minglms_step_by_step(curve):
    """Same weights, same text, other code: rounding grows over the steps, and no more."""
    theirs = training.reference(0, 40)
    apart = [abs(a - b) for a, b in zip(curve, theirs, strict=True)]
    assert max(apart[:10]) < 1e-3 and max(apart) < 0.1


@pytest.mark.slow
def test_the_learners_curve_lies_in_the_band_and_adamw_alone_does_not():
    lines = training.own_curve(_model(), solved("build_4_training")["train"], training.STEPS)
    band = curves.band("build")
    assert len(band.outside(lines["mine"])) <= 2  # of 15 points, each 99%
    assert len(band.outside(lines["control: AdamW alone"])) >= 2
    mine, control = (curves.windows(line) for line in lines.values())  # on the same text, so the pairs tell more
    assert all(c > m + 0.1 for m, c in zip(mine[1:], control[1:], strict=True))


@pytest.mark.parametrize("fault", ["a tenth of the rate", "targets not moved"])
def test_a_wrong_loop_leaves_the_band(fault):
    train = solved("build_4_training")["train"]

    def wrong(model, batches, lr, warmup, after):
        if fault == "targets not moved":
            batches = [b._replace(targets=b.tokens) for b in batches]
            return train(model, batches, lr, warmup, after)
        return train(model, batches, 0.1 * lr, warmup, after)

    losses = training.train_on_the_tiny_world(_model(), wrong, 30, 0)
    assert len(curves.band("build").outside(losses)) >= 2


# ---------------------------------------------------------------------- decoding


@pytest.mark.parametrize("how", [None, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_the_learners_tokens_are_the_models_own(how):
    whole, mine = solved("build_2_model"), solved("build_5_decoding")
    assert decoding.agreement(whole["GLM"], mine["decode"], 32, how) == 1.0


def test_a_decoder_that_forgets_the_past_is_seen():
    whole, mine = solved("build_2_model"), solved("build_5_decoding")

    def forgetful(model, start, count):
        return mine["decode"](model, start[:, -1:], count)

    assert decoding.agreement(whole["GLM"], forgetful, 8) < 0.5


def test_the_learners_module_drafts_as_the_models_own():
    model, mine = subject(), solved("build_5_decoding")
    module = mine["MTP"](model.config)
    module.load_state_dict(model.require_mtp().state_dict())
    tokens = torch.randint(2, model.config.vocab_size, (2, 30), generator=torch.Generator().manual_seed(1))
    from minglm.model.attention import ForwardContext
    from minglm.model.decoder_layer import AuxLosses

    with torch.no_grad():
        hidden = model(tokens).hidden[:, :-1]
        context = ForwardContext("sparse", model.rope_slice(0, 29, tokens.device))
        want = model.mtp_step(hidden, tokens[:, 1:], context, AuxLosses())
        got = module(hidden, model.embed_tokens(tokens[:, 1:]), model.rope_slice(0, 29, tokens.device))
        head = [model.lm_head(module.norm(x)) for x in (got, want)]
    assert float((head[0] - head[1]).abs().max()) < 1e-5 and float(head[1].std()) > 0.3


# ---------------------------------------------------------------------- rollouts and the update


def test_the_learners_rule_is_the_shared_policys():
    to_submit = solved("build_6_rollouts")["to_submit"]
    for mode in ("sync", "april"):
        policy = Policy(mode=mode, prompts_per_batch=4, over_sampling=9 if mode == "april" else None)
        for running in range(12):
            for finished in range(8):
                want = policy.groups_to_submit(Status(running=running, finished=finished))
                assert to_submit(mode, 4, 9, running, finished) == want


def test_a_round_of_the_learners_loses_no_token():
    mine = solved("build_6_rollouts")
    queue = mine["Queue"](rollouts.answer_lengths())
    fresh = rollouts.answer_lengths()
    submitted = written = 0
    for _ in range(20):
        left = queue.take(rollouts.OVER)
        ticks, done, rest = mine["play"](left, rollouts.PLACES, rollouts.BATCH)
        assert len(done) >= rollouts.BATCH and set(done) | set(rest) == set(range(rollouts.OVER))
        written += sum(left) - sum(rest.values())
        assert ticks <= max(left) * rollouts.OVER
        submitted += len(done)
        queue.put_back(list(rest.values()))
    drawn = sum(next(fresh) for _ in range(submitted + len(rest)))
    assert written + sum(rest.values()) == drawn


def test_april_keeps_the_places_busier_than_waiting_for_all():
    mine, shares = solved("build_6_rollouts"), {}
    for submitted in (rollouts.BATCH, rollouts.OVER):
        queue = mine["Queue"](rollouts.answer_lengths())
        shares[submitted] = rollouts.use_of_places(mine["play"], queue, submitted, 20)[-1]
    assert shares[rollouts.BATCH] < 0.4 < 0.9 < shares[rollouts.OVER]


@pytest.mark.slow
def test_the_learners_policy_learns_from_rewards_and_not_from_random_ones():
    rl, loop = solved("build_6_rollouts"), solved("build_4_training")
    make = rollouts.policy(_model())
    found = rollouts.side_by_side(make, loop["Optimizer"], rl["log_probs"], rl["update"], 30)
    ends = {way: sum(c["reward"][-5:]) / 5 for way, c in found.items()}
    assert all(ends[way] > 0.8 for way in rollouts.WAYS) and ends[rollouts.CONTROL] < 0.6, ends


# ---------------------------------------------------------------------- the recorded bands


def test_the_recorded_run_of_notebook_05_is_its_own_recipe():
    import json

    from minglm import datafiles
    from minglm.training import recipe
    from minglm.training.recipe import Recipe

    book = json.loads(datafiles.notebooks("learn", "05_train_it.ipynb").read_text(encoding="utf-8"))
    source = next(s for c in book["cells"] if "pretrain = Recipe(" in (s := "".join(c["source"])))
    space = {"pick": lambda full, smoke: full, "Recipe": Recipe, "recipes": recipe}
    exec(source, space)
    assert space["pretrain"] == Recipe(**record_curves.PRETRAIN)


def test_a_band_holds_its_own_mean_and_not_a_shifted_one(tmp_path):
    """By hand: five values 1, 2, 3, 4, 5 have mean 3 and deviation √2.5, so the band is 3 ± 4.604·√2.5·√1.2 = 7.974."""
    path = tmp_path / "curves.csv"
    path.write_text("run,step,seed_0,seed_1,seed_2,seed_3,seed_4\na,10,1,2,3,4,5\n", encoding="utf-8")
    band = curves.band("a", path)
    assert band.mean == [3.0] and band.high[0] - 3.0 == pytest.approx(7.974, abs=1e-3)
    assert band.outside([3.0] * 10) == [] and band.outside([11.5] * 10) == [10] and band.outside([3.0] * 9) == []
    with pytest.raises(InputError, match="not one of a"):
        curves.band("b", path)


def test_recording_keeps_the_runs_that_are_not_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "curves.csv"
    path.write_text("run,step,seed_0,seed_1\nkept,10,1.5,2.5\nbuild,10,0,0\n", encoding="utf-8")
    monkeypatch.setitem(record_curves.RUNS, "build", lambda seed: [float(seed)] * 20)
    record_curves.record(["build"], [0, 1], path)
    assert path.read_text(encoding="utf-8").split() == [
        "run,step,seed_0,seed_1", "build,10,0.0,1.0", "build,20,0.0,1.0", "kept,10,1.5,2.5"
    ]  # fmt: skip


def test_the_command_refuses_an_unknown_run(capsys):
    from minglm.runtime.terminal import guard

    assert guard(lambda: record_curves.main(["biuld"])) == 2
    assert "did you mean 'build'" in capsys.readouterr().err
