"""One update of the trainer on a nano model, without processes: which policy each ratio compares, what counts, what a
reset is."""

import copy

import pytest

torch = pytest.importorskip("torch")

from minglm.config import ModelConfig  # noqa: E402
from minglm.model.model import Model  # noqa: E402
from minglm.rl import trainer as module  # noqa: E402
from minglm.rl.config import Settings  # noqa: E402
from minglm.rl.messages import Train, TrainGroup, TrainSample  # noqa: E402
from minglm.rl.objectives import OBJECTIVES  # noqa: E402
from minglm.rl.trainer import Row, Trainer, WeightedStats  # noqa: E402

CONFIG = ModelConfig.named("nano", num_hidden_layers=2, initializer_range=0.15)


def make(**settings):
    torch.manual_seed(0)
    trainer = object.__new__(Trainer)
    trainer.settings = Settings(**settings)
    trainer.config, trainer.model, trainer.heartbeat = CONFIG, Model(CONFIG).train(), lambda: None
    trainer.updates = trainer.version = 0
    for name, p in trainer.model.named_parameters():
        p.requires_grad_(".indexer." not in name and not name.startswith("mtp."))
    trainer.optimizer = trainer._new_optimizer()
    return trainer


def command(version=0, reset=False, groups=2):
    g = torch.Generator().manual_seed(5)
    made = []
    for k in range(groups):
        samples = []
        for i, n in enumerate((3, 5, 4, 9)):
            tokens = torch.randint(10, 400, (n,), generator=g).tolist()
            samples.append(TrainSample(tokens, [-6.0 - k] * n, [version - (i == 1)] * n, float(i % 2)))
        made.append(TrainGroup([0, 4, 20 + k, 5], tuple(samples)))
    return Train(update=1, version=version, sync_version=None, reset_optimizer=reset, groups=tuple(made))


def forward_logprobs(model, tokens, temperature=1.0):
    """log π of each next token of one row, by the plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]), mode="sparse").logits[0].double() / temperature
    return logits.log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("minibatches", [1, 2])
def test_pi_old_is_the_policy_before_the_first_optimiser_step(minibatches, monkeypatch):
    """Of every minibatch: the later ones are off-policy, and their ratio starts away from 1."""
    seen, loss_of = [], OBJECTIVES["grpo"]

    def recorded(logp, old, behaviour, advantages, mask, **options):
        seen.append((logp.detach().clone(), old.clone(), mask.clone()))
        return loss_of(logp, old, behaviour, advantages, mask, **options)

    monkeypatch.setattr(module, "objective", lambda name: recorded)
    trainer = make(minibatches=minibatches, lr=0.01, micro_tokens=100_000, temperature=0.7)
    before, sent = copy.deepcopy(trainer.model), command()
    rows = [g.prompt + s.tokens for g in sent.groups for s in g.samples]
    done = trainer.train(sent)
    assert len(seen) == minibatches and done.trained_tokens == 42 and done.tokens == 42 + 8 * 4
    for n, (logp, old, mask) in enumerate(seen):
        for i, tokens in enumerate(sorted(rows[n::minibatches], key=len)):
            want = forward_logprobs(before, tokens, 0.7)
            response = slice(3, len(tokens) - 1)  # a prompt of four: the first response token is predicted at 3
            assert mask[i].nonzero().flatten().tolist() == list(range(3, len(tokens) - 1))
            torch.testing.assert_close(old[i, response].double(), want[response], rtol=1e-4, atol=1e-4)
        moved = float((logp - old)[mask].abs().max())
        assert moved == 0 if n == 0 and minibatches == 1 else (moved < 1e-5) == (n == 0)


def test_rows_hold_what_the_rollout_said():
    """Advantages of rewards 0, 1, 0, 1 are ∓1; the second sample has an older version."""
    trainer = make(mask_off_policy=False)
    rows = trainer._rows(command(version=3, groups=1).groups, 3)
    assert [r.advantage for r in rows] == [-1.0, 1.0, -1.0, 1.0]
    assert [set(r.stale) for r in rows] == [{False}, {True}, {False}, {False}]
    assert [(len(r.tokens), r.start, r.response_tokens) for r in rows] == [(7, 4, 3), (9, 4, 5), (8, 4, 4), (13, 4, 9)]


@pytest.mark.parametrize("masked", [False, True])
def test_stale_tokens_count_unless_they_are_masked(masked):
    trainer = make(mask_off_policy=masked)
    micro = trainer._pad(
        [
            Row([1, 2, 3, 4, 5], 2, [-1.0, -2.0, -3.0], [True, False, True], 0.5, None),
            Row([1, 2, 9], 2, [-4.0], [False], -1.0, None),
        ]
    )
    x = not masked
    assert micro.tokens.tolist() == [[1, 2, 3, 4, 5], [1, 2, 9, 0, 0]]
    assert micro.behaviour.tolist() == [[0, -1, -2, -3], [0, -4, 0, 0]]
    assert micro.stale.tolist() == [[False, True, False, True], [False] * 4]
    assert micro.mask.tolist() == [[False, x, True, x], [False, True, False, False]]
    assert micro.advantages.tolist() == [0.5, -1.0]


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_micro_batches_weigh_what_they_count(average):
    """Rows of 2 and of 60 tokens in two passes or in one: the same gradient, of all tokens or of all sequences."""

    def gradient(micro_tokens):
        trainer = make(objective_args={"average": average}, micro_tokens=micro_tokens)
        trainer.optimizer.step = lambda: None
        trainer.optimizer.clip_grad_norm = lambda limit: 0.0
        g = torch.Generator().manual_seed(1)
        rows = [
            Row([0, 4, *torch.randint(10, 400, (n,), generator=g).tolist()], 2, [-6.0] * n, [False] * n, a, None)
            for n, a in ((2, 1.0), (60, -0.5))
        ]
        figures = trainer._optimiser_step(rows)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]), figures

    (cut, ours), (whole, figures) = gradient(64), gradient(100_000)
    assert float((cut - whole).norm() / whole.norm()) < 1e-4
    want = -(2 * 1.0 + 60 * -0.5) / 62 if average == "token" else -(1.0 - 0.5) / 2  # every ratio is 1
    assert ours["loss"] == pytest.approx(want, rel=1e-5) and figures["loss"] == pytest.approx(want, rel=1e-5)


def test_a_reset_forgets_the_moments_and_an_update_without_one_does_not():
    trainer = make(lr=0.001)
    trainer.train(command())
    first = trainer.optimizer
    trainer.train(command())
    assert trainer.optimizer is first and first.steps == 2
    trainer.train(command(reset=True))
    assert trainer.optimizer is not first and trainer.optimizer.steps == 1


def test_means_are_weighted_and_maxima_are_not():
    stats = WeightedStats()
    for value, weight in ((1.0, 0.25), (3.0, 0.75)):
        stats.add("mean", value, weight), stats.add("ratio_max", value, weight)
    stats.add("ratio_max", 2.0, 5.0)
    assert stats.means() == {"mean": 2.5, "ratio_max": 3.0}


def test_replayed_routes_are_those_of_the_positions_that_predicted_the_response(monkeypatch):
    """Row by row and layer by layer; what the rollout did not record is -1: the router's own choice."""
    seen = []
    monkeypatch.setattr(module, "_Replay", lambda router, topk: seen.append(topk) or router.forward)
    trainer = make(routing_replay=True)
    trainer.config = ModelConfig.named("nano", num_hidden_layers=4, first_k_dense_replace=1)
    trainer.model = Model(trainer.config)
    layers, K = 3, trainer.config.num_experts_per_tok
    routes = [[[100 * t + 10 * layer + k for k in range(K)] for layer in range(layers)] for t in range(2)]
    rows = [
        Row([1, 2, 3, 4, 5], 3, [-1.0] * 2, [False] * 2, 1.0, routes),
        Row([1, 2, 3, 4], 2, [-1.0] * 2, [False] * 2, 1.0, None),
    ]
    with trainer._replayed(trainer._pad(rows)):
        assert len(seen) == layers
    for layer, forced in enumerate(seen):
        forced = forced.reshape(2, 4, K)
        assert (forced[1] == -1).all() and (forced[0, :2] == -1).all()  # tokens 3 and 4 are predicted at 2 and 3
        assert forced[0, 2:].tolist() == [routes[0][layer], routes[1][layer]]
