"""The training loop, stage by stage on nano: what learns, what is written, what is refused."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")

from minglm.config import ModelConfig  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.inference.load import model_of  # noqa: E402
from minglm.runtime import machine  # noqa: E402
from minglm.training import checkpoint, memory, metrics  # noqa: E402
from minglm.training import recipe as recipes  # noqa: E402
from minglm.training.loop import TrainingRun, train  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """All five ci stages, one after the other; returns their folder and last rows."""
    torch.set_num_threads(1)
    folder, rows, before = tmp_path_factory.mktemp("stages"), {}, None
    for stage in recipes.STAGES:
        rows[stage] = train(recipes.load(f"ci_{stage}"), folder / stage, init_from=before, progress=False, device="cpu")
        before = folder / stage
    return folder, rows


def test_every_stage_runs_and_leaves_its_record(stages):
    folder, rows = stages
    for stage in recipes.STAGES:
        run, recipe = folder / stage, recipes.load(f"ci_{stage}")
        table = metrics.read(run / "metrics.csv")
        assert [r["step"] for r in table] == list(range(1, recipe.steps + 1)) and tuple(table[0]) == metrics.COLUMNS
        assert all(r["dropped_tokens"] == 0 for r in table)
        assert all(
            0 < r["load_entropy"] <= 1 and r["load_max_over_mean"] >= 1 and r["tokens_per_s"] > 0 and r["mfu"] > 0
            for r in table
        )
        assert rows[stage]["val_loss"] == [r["val_loss"] for r in table if r["val_loss"] is not None][-1]
        assert recipes.load(run / "recipe.yaml") == recipe
        assert ModelConfig.from_hf(run) == recipe.config()
        notes = json.loads((run / "versions.json").read_text())
        assert (
            notes["machine"]["torch"] == torch.__version__.split("+")[0]
            or notes["machine"]["torch"] == torch.__version__
        )
        assert len(notes["corpus_sha256"]) == 64 and len(notes["tokenizer_sha256"]) == 64
        loads = metrics.read(run / "expert_load.csv")
        assert {r["layer"] for r in loads} >= set(range(recipe.config().num_moe_layers))
        first = [v for k, v in loads[0].items() if k.startswith("expert_")]
        assert len(first) == recipe.config().n_routed_experts
        assert sum(first) == recipe.tokens_per_step * recipe.config().num_experts_per_tok
    assert (
        metrics.read(folder / "pretrain" / "metrics.csv")[-1]["lm_loss"]
        < metrics.read(folder / "pretrain" / "metrics.csv")[0]["lm_loss"] - 0.5
    )
    assert metrics.read(folder / "pretrain" / "metrics.csv")[0]["indexer_kl"] is None
    assert all(r["indexer_kl"] > 0 for r in metrics.read(folder / "sparse" / "metrics.csv"))


def test_each_stage_trains_what_it_should(stages):
    folder, _ = stages
    weights = {s: checkpoint.latest(folder / s).model for s in recipes.STAGES}

    def moved(a, b):
        return {n for n in weights[a] if not torch.equal(weights[a][n], weights[b][n])}

    def indexer(names):
        return {n for n in names if ".indexer." in n}

    warm = moved("long_context", "dsa_warmup")
    assert warm and warm == indexer(warm), "the warm-up moves the indexer and nothing else"
    longer = moved("pretrain", "long_context")
    assert longer and not indexer(longer), "without an indexer's loss the indexer rests"
    sparse = moved("dsa_warmup", "sparse")
    assert indexer(sparse) and sparse - indexer(sparse), "both learn, each from its own loss"
    assert any("e_score_correction_bias" in n for n in longer), "the balance bias moves"


def test_all_stages_share_tokenizer_and_data(stages):
    folder, _ = stages
    hashes = {json.loads((folder / s / "versions.json").read_text())["tokenizer_sha256"] for s in recipes.STAGES}
    assert len(hashes) == 1 and len(list((folder / "data").iterdir())) == 1


def test_a_finished_run_is_left_alone(stages):
    folder, rows = stages
    before = (folder / "pretrain" / "metrics.csv").read_bytes()
    assert train(recipes.load("ci_pretrain"), folder / "pretrain", progress=False, device="cpu") == rows["pretrain"]
    assert (folder / "pretrain" / "metrics.csv").read_bytes() == before


def test_model_of_gives_a_model_to_use(stages):
    model, tokenizer, config = model_of(stages[0] / "sft")
    assert not model.training and config == model.config and tokenizer.vocab_size <= config.vocab_size
    assert model(torch.tensor([[tokenizer.bos, *tokenizer.encode("def f")]])).logits.shape[-1] == config.vocab_size


def test_refusals_are_one_line(stages, tmp_path):
    folder, _ = stages
    ci = recipes.load("ci_pretrain")
    cases = [
        (lambda: train(recipes.load("ci_sparse"), tmp_path / "a", progress=False), "give --init-from"),
        (
            lambda: train(recipes.load("ci_sparse"), tmp_path / "b", init_from=tmp_path / "b", progress=False),
            "no checkpoint there",
        ),
        (
            lambda: train(
                ci.changed(model_changes={"hidden_size": 32}),
                tmp_path / "c",
                init_from=folder / "pretrain",
                progress=False,
            ),
            "hidden_size=64",
        ),
        (
            lambda: train(ci.changed(model="mini"), tmp_path / "d", init_from=folder / "pretrain", progress=False),
            "same model size",
        ),
        (lambda: train(ci.changed(lr=0.5), folder / "pretrain", progress=False), "made with lr=0.01, now lr=0.5"),
    ]
    for call, says in cases:
        with pytest.raises(InputError) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    for resume in (True, False):
        with pytest.raises(InputError, match="so this project did not make it"):
            train(ci, tmp_path / "mine", resume=resume, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    ci, calls = recipes.load("ci_pretrain"), []
    honest = TrainingRun.loss

    def poisoned(self, batch, counts):
        loss, out = honest(self, batch, counts)
        calls.append(1)
        if len(calls) == 7:
            out.mtp_loss = out.mtp_loss * float("nan")
            loss = loss + out.mtp_loss
        return loss, out

    monkeypatch.setattr(TrainingRun, "loss", poisoned)
    with pytest.raises(InputError) as caught:
        train(ci, tmp_path / "run", progress=False, device="cpu")
    message = str(caught.value)
    assert (
        "step 7: mtp_loss is nan" in message
        and "step_00000004" in message
        and "metrics.csv" in message
        and "\n" not in message
    )
    found = checkpoint.latest(tmp_path / "run")
    assert found.step == 4 and all(torch.isfinite(t).all() for t in found.model.values())
    assert len(metrics.read(tmp_path / "run" / "metrics.csv")) == 6


def test_too_large_a_run_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "available_memory_bytes", lambda device="cpu": 200 * 2**20)
    with pytest.raises(InputError, match="needs about .* MiB.*weights .*activations .*200 MiB is free.*batch_size=4"):
        train(recipes.load("ci_pretrain"), tmp_path / "run", progress=False, device="cpu")


@pytest.mark.parametrize("mode, stage", [("dense", "pretrain"), ("sparse", "sparse")])
def test_memory_estimate_is_of_the_right_size(mode, stage):
    """Measured in a process of its own: peak resident memory of forward and backward, above what it had before."""
    import subprocess
    import sys

    code = f"""
import torch; torch.set_num_threads(1)
from minglm.runtime import machine; from minglm.config import ModelConfig; from minglm.model.model import Model
config = ModelConfig.named("nano"); model = Model(config).train()
tokens = torch.randint(0, 512, (1, 32)); doc = torch.zeros(1, 32, dtype=torch.int64)
def step(tokens, doc):
    out = model(tokens, tokens, mode={mode!r}, doc_start=doc); (out.lm_loss + out.mtp_loss).backward()
step(tokens, doc); before = machine.peak_rss_bytes()
step(torch.randint(0, 512, (12, 512)), torch.zeros(12, 512, dtype=torch.int64))
print(machine.peak_rss_bytes() - before)
"""
    measured = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    recipe = recipes.load("ci_pretrain").changed(batch_size=12, seq_len=512, stage=stage)
    estimated = memory.estimate(recipe)["activations"]
    assert 0.5 < estimated / measured < 2.0, (
        f"estimated {estimated / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB"
    )


def test_accumulation_equals_one_large_batch(tmp_path):
    """Same rows, same update: two passes of 2 rows against one of 4, with nothing that counts per batch."""
    base = recipes.load("ci_pretrain").changed(
        steps=2, lookup_share=0.0, balance_weight=0.0, bias_rate=0.0, mtp_weight=0.0, clip=1e9
    )
    a = train(base, tmp_path / "one", progress=False, device="cpu")
    b = train(base.changed(batch_size=2, grad_accum=2), tmp_path / "two", progress=False, device="cpu")
    assert a["tokens"] == b["tokens"]
    ones, twos = (checkpoint.latest(tmp_path / n).model for n in ("one", "two"))
    # documents end inside rows, so the means over passes differ a little from the mean over the batch
    assert a["loss"] == pytest.approx(b["loss"], abs=0.02)
    assert max(float((ones[n] - twos[n]).abs().max()) for n in ones) < 0.05


def test_csv_log_cuts_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "m.csv"
    log = metrics.CsvLog(path, ("step", "loss"), 0)
    for step in range(1, 6):
        log.write({"step": step, "loss": step / 3})
    log.close()
    path.write_bytes(path.read_bytes() + b"6,0.1")  # torn by a kill
    again = metrics.CsvLog(path, ("step", "loss"), 3)
    again.write({"step": 4, "loss": None})
    again.close()
    assert metrics.read(path) == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": None},
    ]


def test_load_statistics():
    assert metrics.load_statistics([[5, 5, 5, 5]]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert metrics.load_statistics([[20, 0, 0, 0]]) == (pytest.approx(0.0), pytest.approx(4.0))


def test_a_run_with_two_checkpoints_goes_on_from_the_newer(tmp_path):
    """Its own older checkpoint is no other writer's; one that has come since the run was read is."""
    run, ci = tmp_path / "run", recipes.load("ci_pretrain").changed(checkpoint_every=2)
    last = train(ci, run, progress=False, device="cpu")
    newest, *older = checkpoint.find(run)
    assert len(older) >= 1
    newest.rename(tmp_path / "away")  # as after a kill before it was there
    shutil.copytree(older[-1], older[-1].with_name("step_00000001"))
    assert len(checkpoint.find(run)) == len(older) + 1 >= 2
    waiting = TrainingRun(ci, run, None, "cpu")
    assert waiting.step < ci.steps
    assert train(ci, run, progress=False, device="cpu")["loss"] == last["loss"]
    with pytest.raises(InputError, match="another writer has gone on"):
        waiting.loop(progress=False)
