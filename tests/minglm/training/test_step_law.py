"""One law for a step's loss: cut in whatever way the options allow, one optimiser step has one loss and one gradient.

In fp64, where only a mistake can make a difference. Several processes: tests/minglm/distributed/test_distributed.py.
"""

import json
import math
import threading
import time
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from minglm.config import ModelConfig  # noqa: E402
from minglm.data import chat  # noqa: E402
from minglm.data.shards import IGNORE, Batch  # noqa: E402
from minglm.model.counts import StepCounts, counted_queries  # noqa: E402
from minglm.model.model import Model  # noqa: E402
from minglm.quant.formats import Spec  # noqa: E402
from minglm.quant.int4 import Int4  # noqa: E402
from minglm.quant.qat import FakeQuant  # noqa: E402
from minglm.rl.config import Settings  # noqa: E402
from minglm.rl.objectives import OBJECTIVES  # noqa: E402
from minglm.rl.trainer import Row, Trainer  # noqa: E402
from minglm.runtime.switch import VARIABLE  # noqa: E402
from minglm.training import halves  # noqa: E402
from minglm.training.loop import TrainingRun  # noqa: E402
from minglm.training.recipe import Recipe  # noqa: E402

CUTS = ((8, 1), (4, 2), (2, 4), (1, 8))
STAGES = {
    "pretrain": {},
    "pretrain with lookups": {"lookup_share": 0.4, "lookup_facts": 1},
    "pretrain, recall": {"recall_steps": 1},
    "dsa_warmup": {"lookup_share": 0.4, "lookup_facts": 1},
    "sparse": {"lookup_share": 0.4, "lookup_facts": 1},
    "sft": {"tasks": {"lookup": 0.3, "copy": 0.2, "arithmetic": 0.2, "file": 0.3}},
}


@pytest.fixture(autouse=True, scope="module")
def exact():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1), torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads), torch.set_default_dtype(dtype)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A small corpus, and conversations whose answers are of very unlike lengths."""
    folder = tmp_path_factory.mktemp("law")
    (folder / "text").mkdir()
    for i in range(60):
        (folder / "text" / f"{i}.txt").write_text(f"text {i} says so. " * (i + 3))
    talks = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "well " * (1 + 9 * i)}]}
        for i in range(6)
    ]
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    return folder


def gradient(model) -> "torch.Tensor":
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def differs(a, b) -> float:
    return float((a - b).norm() / b.norm())


def one_step(texts, name: str, batch_size: int, grad_accum: int):
    """Parts of the loss and gradient of the first step of a run that starts from the seeded weights."""
    stage = name.partition(" ")[0].rstrip(",")
    recipe = Recipe(
        stage=stage,
        model="nano",
        model_changes={"mtp_depth": 2, "num_hidden_layers": 2, "initializer_range": 0.15},
        corpus=f"folder:{texts / 'text'}",
        conversations=str(texts / "talks.jsonl") if "file" in STAGES[name].get("tasks", {}) else None,
        seq_len=96,
        batch_size=batch_size,
        grad_accum=grad_accum,
        steps=2,
        clip=1e9,
        balance_weight=0.1,
        **STAGES[name],
    )
    run = object.__new__(TrainingRun)
    run.recipe, run.dir, run.config, run.device = recipe, texts / "run", recipe.config(), torch.device("cpu")
    run.step, run.peak = 0, 1.0
    run.resumes = False
    run.tokenizer, run.loader, run.validation, _ = run.open_data(None)
    torch.manual_seed(0)
    run.model = run.forward = Model(run.config)
    run.named = run._learning()
    run.optimizer = run.make_optimizer(lr=0.01, adam_lr=None, weight_decay=0.0)
    run.rounding = SimpleNamespace(on=lambda: None, off=lambda: None)
    row, loads = run.one_step()
    parts = {k: row[k] for k in ("loss", "lm_loss", "mtp_loss", "balance_loss", "indexer_kl", "grad_norm") if k in row}
    return parts, gradient(run.model), loads


@pytest.mark.parametrize("name", STAGES)
def test_passes_of_a_step(texts, name):
    parts, whole, loads = one_step(texts, name, *CUTS[0])
    assert whole.norm() > 0
    for cut in CUTS[1:]:
        got, grad, theirs = one_step(texts, name, *cut)
        assert got == pytest.approx(parts, rel=1e-9), cut
        assert differs(grad, whole) < 1e-9, cut
        assert theirs == loads, cut
    _, other, _ = one_step(texts, name, 4, 1)
    assert differs(other, whole) > 1e-3, "negative control: half of the rows are another step"


@pytest.mark.parametrize("cut", [(8, 1), (3, 1)])
@pytest.mark.parametrize("name", STAGES)
def test_two_threads_with_half_of_the_rows_each(texts, name, cut, monkeypatch, two_threads):
    """The step of the whole batch, also where the rows do not part evenly; the counts of experts are whole numbers."""
    parts, whole, loads = one_step(texts, name, *cut)
    seen = []
    honest = TrainingRun.loss
    monkeypatch.setattr(TrainingRun, "loss", lambda *a, **k: seen.append(threading.get_ident()) or honest(*a, **k))
    monkeypatch.setattr(halves, "WORTH_FLOPS", 0)
    got, grad, theirs = one_step(texts, name, *cut)
    assert torch.get_num_threads() == 2
    assert len(set(seen)) == len(seen) == 2
    assert got == pytest.approx(parts, rel=1e-9)
    assert differs(grad, whole) < 1e-9
    assert theirs == loads


def test_the_first_half_is_added_first_whichever_thread_is_faster(two_threads):
    """Sums of fp32 depend on their order: of 1, 2²⁴ and -2²⁴ it decides whether the 1 is there."""
    learns = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float32)) for _ in range(3)]
    rows = torch.tensor([[2.0**24], [-(2.0**24)]], dtype=torch.float32)
    batch = Batch(rows, rows, rows)
    for slow in rows:
        learns[0].grad, learns[1].grad = torch.ones(1, dtype=torch.float32), None

        def loss(part, slow=slow):
            time.sleep(0.05 * bool(part.tokens[0] == slow))
            return (part.tokens * (learns[0] + learns[1])).sum(), part.tokens

        got = halves.backward(loss, halves.halves(batch, 1e12), learns)
        assert [float(tokens) for _, tokens in got] == rows.flatten().tolist()
        assert float(learns[0].grad) == 0.0, "1 + 2²⁴ is 2²⁴ in fp32"
        assert float(learns[1].grad) == 0.0 and learns[2].grad is None, "what the loss does not know has no gradient"


def test_terms_of_one_sum_have_a_gradient_each(two_threads):
    """Autograd gives both terms the same tensor; the second half must not be added to it twice."""
    learns = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    batch = Batch(*[torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])] * 3)
    halves.backward(
        lambda part: ((part.tokens * (learns[0] + learns[1])).sum(), None), halves.halves(batch, 1e12), learns
    )
    assert [p.grad.tolist() for p in learns] == [[11.0, 22.0, 33.0]] * 2


def test_a_fault_in_the_other_half_is_told_and_leaves_no_gradient(two_threads):
    learns = [torch.nn.Parameter(torch.zeros(1))]
    batch = Batch(*[torch.arange(4.0)[:, None]] * 3)

    def loss(part):
        if part.tokens[0] > 0:
            raise ValueError("row 2")
        return (part.tokens * learns[0]).sum(), None

    with pytest.raises(ValueError, match="row 2"):
        halves.backward(loss, halves.halves(batch, 1e12), learns)
    assert torch.get_num_threads() == 2 and learns[0].grad is None


def test_a_batch_stays_whole_where_two_threads_would_not_pay(two_threads, monkeypatch):
    one, many = (Batch(*[torch.zeros(n, 4)] * 3) for n in (1, 5))
    assert [len(part.tokens) for part in halves.halves(many, 1e12)] == [3, 2]
    assert len(halves.halves(one, 1e12)) == len(halves.halves(many, halves.WORTH_FLOPS / 2)) == 1
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "0")  # the code that is read
        assert len(halves.halves(many, 1e12)) == 1
    torch.set_num_threads(1)
    assert len(halves.halves(many, 1e12)) == 1


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_packed_rows_and_rows_of_their_own():
    """Three conversations in one row, or each in a padded row: all that is a mean over tokens is the same, to the fp32
    of the rotations, which stand at other positions."""
    torch.manual_seed(0)
    config = ModelConfig.named("nano", mtp_depth=2, num_hidden_layers=2, initializer_range=0.15)
    lengths, generator = (40, 17, 30), torch.Generator().manual_seed(3)
    parts = [
        (torch.randint(10, 500, (n,), generator=generator).tolist(), [t > n // 3 for t in range(n)]) for n in lengths
    ]
    found = {}
    for name, rows, seq_len in (
        ("packed", [parts], 86),
        ("packed with room", [parts], 100),
        ("two and one", [parts[:2], parts[2:]], 70),
        ("each alone", [[p] for p in parts], 60),
    ):
        batch = chat.stack(rows, seq_len, pad=2)
        assert int(counted_queries(batch.targets, batch.doc_start).sum()) in (sum(lengths), sum(lengths) - 1)
        torch.manual_seed(0)
        model = Model(config)
        out = model(batch.tokens, batch.targets, mode="sparse", doc_start=batch.doc_start)
        (out.lm_loss + out.mtp_loss + out.indexer_kl).backward()
        found[name] = (out.lm_loss, out.mtp_loss, out.indexer_kl, gradient(model))
    *losses, grad = found.pop("packed with room")
    assert all(float(x.detach()) > 0 for x in losses)
    packed = found.pop("packed")  # its last token is only a target: one query fewer
    assert packed[0].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for name, (*theirs, theirs_grad) in found.items():
        assert [float(x.detach()) for x in theirs] == pytest.approx([float(x.detach()) for x in losses], rel=1e-6), name
        assert differs(theirs_grad, grad) < 1e-5, name


def test_counts_by_hand():
    """Two documents in the first row, padding in the second; the third teaches nothing."""
    targets = torch.tensor([[5, 6, IGNORE, 7, 8], [IGNORE, 9, IGNORE, IGNORE, IGNORE], [IGNORE] * 5])
    start = torch.tensor([[0, 0, 0, 3, 3], [0, 0, 0, 3, 3], [0] * 5])
    assert counted_queries(targets, start).tolist() == [[True] * 5, [True] * 3 + [False] * 2, [False] * 5]
    assert counted_queries(targets, start, 1).tolist() == [
        [True, True, False, True],
        [True, True, False, False],
        [False] * 4,
    ]
    counts = StepCounts.of([(targets[:1], start[:1]), (targets[1:], start[1:])], depths=1)
    assert counts.targets.tolist() == [5, 3] and counts.queries.tolist() == [8, 5] and counts.rows == 3


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("name", ["grpo", "icepop", "double_sided_mask"])
def test_micro_batches_of_a_reinforcement_step(name, average):
    assert name in OBJECTIVES
    config = ModelConfig.named("nano", num_hidden_layers=2)
    rows = []
    for i, n in enumerate([3, 4, 5, 6, 40, 44, 48, 60]):
        g = torch.Generator().manual_seed(i)
        tokens = [0, 4, 20 + i, 5, *torch.randint(10, 400, (n,), generator=g).tolist()]
        stale = [i == 1] * n  # a sequence that counts nothing
        rows.append(Row(tokens, 4, [-6.2] * n, stale, 1.0 if i % 2 else -0.5, None))

    def step(micro_tokens: int):
        trainer = object.__new__(Trainer)
        trainer.settings = Settings(
            objective=name, objective_args={"average": average}, micro_tokens=micro_tokens, mask_off_policy=True
        )
        torch.manual_seed(0)
        trainer.config, trainer.model, trainer.heartbeat = config, Model(config), lambda: None
        trainer.optimizer = SimpleNamespace(zero_grad=lambda: None, clip_grad_norm=lambda limit: 0.0, step=lambda: None)
        stats = trainer._optimiser_step(list(rows))
        return gradient(trainer.model), stats

    whole, stats = step(100_000)
    assert whole.norm() > 0
    for micro_tokens in (256, 64, 16):
        grad, theirs = step(micro_tokens)
        assert differs(grad, whole) < 1e-5
        assert theirs == pytest.approx(stats, rel=1e-6, abs=1e-9)  # log-probabilities are fp32


# ---------------------------------------------------------------------- what a step does with its recipe


def test_each_part_of_the_loss_has_its_own_weight():
    """Parts of 1, 10, 100 and 1000: every digit of the sum is one weight."""
    out = SimpleNamespace(
        lm_loss=torch.tensor(1.0),
        mtp_loss=torch.tensor(10.0),
        balance_loss=torch.tensor(100.0),
        indexer_kl=torch.tensor(1000.0),
    )
    asked = []

    def loss(first_lesson=0, **recipe):
        weights = {"mtp_weight": 2.0, "balance_weight": 3.0, "indexer_weight": 5.0, "mode": "sparse", **recipe}
        run = SimpleNamespace(
            recipe=SimpleNamespace(**weights, first_lesson=first_lesson, pairs_words_at=lambda step: None),
            device="cpu",
            step=4,
            forward=lambda *tensors, **how: asked.append((how["mode"], how["mtp"])) or out,
        )
        return float(TrainingRun.loss(run, (torch.zeros(1),) * 3, None)[0])

    assert loss() == 5321
    assert loss(mtp_weight=0.0) == 5301 and loss(balance_weight=0.0) == 5021 and loss(indexer_weight=0.0) == 321
    assert loss(mode="warmup") == 5000, "the warm-up learns from the indexer's loss alone"
    loss(mode="dense", first_lesson=5)
    assert asked == [(m, x) for m, x in zip(["sparse"] * 4 + ["warmup", "dense"], [1, 0, 1, 1, 0, 0], strict=True)]
    out.indexer_kl = None
    assert loss() == 321


@pytest.mark.parametrize("mode", ["dense", "warmup", "sparse"])
def test_validation_is_the_mean_over_tokens_of_the_forward_that_a_user_runs(mode):
    """Against the logits: summed in fp64 token by token, over batches that hold unlike numbers of targets."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano", num_hidden_layers=2, initializer_range=0.3))
    start = torch.zeros(2, 48, dtype=torch.int64)
    start[:, 30:] = 30
    batches = []
    for targets_left in (48, 7):
        tokens, targets = torch.randint(0, 512, (2, 48)), torch.randint(0, 512, (2, 48))
        targets[:, targets_left:] = IGNORE
        batches.append((tokens, targets, start))
    run = SimpleNamespace(
        recipe=SimpleNamespace(mode=mode, val_batches=2),
        model=model,
        device="cpu",
        validation=SimpleNamespace(batch=batches.__getitem__),
    )
    wants = {}
    for how in ("dense", "sparse"):
        nats = []
        for tokens, targets, doc_start in batches:
            with torch.no_grad():
                logp = model(tokens, mode=how, doc_start=doc_start).logits.double().log_softmax(-1)
            rows, places = (targets != IGNORE).nonzero(as_tuple=True)
            nats += [-float(logp[b, t, targets[b, t]]) for b, t in zip(rows, places, strict=True)]
        wants[how] = sum(nats) / len(nats)
    assert wants["dense"] != pytest.approx(wants["sparse"], rel=1e-4), "negative control: the mode must matter"
    got = TrainingRun.validate(run)
    assert got == pytest.approx(wants["dense" if mode == "dense" else "sparse"], rel=1e-6)


def test_a_step_has_the_rate_of_its_number_and_rounds_where_it_should(texts):
    """Rates of steps far apart by the closed form; forward and validation see rounded weights, the update masters."""
    recipe = Recipe(
        stage="pretrain",
        model="nano",
        model_changes={"num_hidden_layers": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
        corpus=f"folder:{texts / 'text'}",
        seq_len=32,
        batch_size=1,
        steps=40,
        warmup_steps=4,
        lr=0.01,
        final_lr_fraction=0.1,
        val_every=1,
        qat="int4",
        qat_group=16,
    )
    run = object.__new__(TrainingRun)
    run.recipe, run.dir, run.config, run.device = recipe, texts / "rate", recipe.config(), torch.device("cpu")
    run.peak, run.resumes, run.validation = 1.0, False, object()
    run.loader = SimpleNamespace(
        batch=lambda i: asked.append(i) or (Batch(*(torch.randint(0, 99, (1, 32)),) * 2, zero))
    )
    zero, asked, seen = torch.zeros(1, 32, dtype=torch.int64), [], {}
    torch.manual_seed(0)
    run.model = Model(run.config)
    run.named = run._learning()
    matrix = run.model.layers[0].mlp.up_proj.weight
    rounded = Int4(16).fake_quantize(matrix.detach())

    def look(name, value):
        seen[name] = matrix.detach().clone()
        return value

    forward = run.model.forward
    run.forward = lambda *tensors, **how: look("forward", forward(*tensors, **how))
    run.validate = lambda: look("validation", 1.5)
    scales = []
    run.optimizer = SimpleNamespace(
        zero_grad=run.model.zero_grad,
        clip_grad_norm=lambda limit: 1.0,
        step=lambda scale: look("update", scales.append(scale)),
    )
    run.rounding = FakeQuant(run.model, Spec("int4", 16))
    master = matrix.detach().clone()
    assert not torch.equal(master, rounded)
    for step in (0, 3, 4, 11, 22, 39):
        run.step = step
        row, _ = run.one_step()
        want = (step + 1) / 4 if step < 4 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 36)) / 2
        assert row["lr"] == pytest.approx(0.01 * want) and scales[-1] == pytest.approx(want)
        assert row["step"] == step + 1 and row["tokens"] == 32 * (step + 1) and row["val_loss"] == 1.5
        assert torch.equal(seen["forward"], rounded) and torch.equal(seen["validation"], rounded)
        assert torch.equal(seen["update"], master) and torch.equal(matrix.detach(), master)
    assert asked == [0, 3, 4, 11, 22, 39], "the batch of a step is that of its number"
