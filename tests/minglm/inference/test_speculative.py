"""Drafts never change what comes out: same tokens greedy and sampled, same distribution, and right drafts are kept."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.decoder import Decoder
from minglm.inference.generate import generate
from minglm.inference.prefill import prefill
from minglm.inference.sampling import choose
from minglm.inference.speculative import Speculator
from minglm.model.cache import LatentCache
from minglm.model.model import Model

PROMPTS = [list(range(5, 45)), [7, 9], list(range(100, 117))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(ModelConfig.named("nano", initializer_range=0.15)).eval()


@pytest.fixture(scope="module")
def periodic():
    """Trained for a moment on tokens that repeat, so that its prediction module guesses well."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano"))
    tokens = torch.randint(0, 512, (8, 5)).repeat(1, 7)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        out = model(tokens[:, :-1], tokens[:, 1:], mode="dense")
        optimiser.zero_grad()
        (out.lm_loss + out.mtp_loss).backward()
        optimiser.step()
    return model.eval(), [row[:8].tolist() for row in tokens]


@pytest.mark.parametrize("drafts", [1, 2, 4])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.8, 0.9)])
def test_the_same_tokens_with_and_without(model, drafts, temperature, top_p):
    how = dict(temperature=temperature, top_p=top_p, seed=[4, 5, 6])
    plain, drafted = generate(model, PROMPTS, 25, **how), generate(model, PROMPTS, 25, speculate=drafts, **how)
    assert drafted.tokens == plain.tokens
    for a, b in zip(drafted.logprobs, plain.logprobs, strict=False):
        assert a == pytest.approx(b, abs=1e-3)
    assert 0 <= drafted.acceptance <= 1 and plain.acceptance is None


def test_stop_tokens_inside_a_run_of_drafts(model):
    stop = generate(model, PROMPTS, 25).tokens[0][6]
    plain, drafted = generate(model, PROMPTS, 25, stop=[stop]), generate(model, PROMPTS, 25, stop=[stop], speculate=3)
    assert (drafted.tokens, drafted.stopped) == (plain.tokens, plain.stopped)


@pytest.mark.slow
def test_good_drafts_are_kept_and_save_steps(periodic):
    model, prompts = periodic
    plain, drafted = generate(model, prompts, 20), generate(model, prompts, 20, speculate=1)
    assert drafted.tokens == plain.tokens and drafted.acceptance > 0.6


def test_bad_drafts_are_all_rejected_and_change_nothing(periodic, monkeypatch):
    """A negative control: drafts that are always another token than the model's choice."""
    model, prompts = periodic
    plain = generate(model, prompts, 20)
    draft = Speculator._draft
    monkeypatch.setattr(
        Speculator, "_draft", lambda self, *how: draft(self, *how) * 0 + 511 - self.tokens[: len(how[2]), :1] % 2
    )
    drafted = generate(model, prompts, 20, speculate=2)
    assert drafted.tokens == plain.tokens and drafted.acceptance == 0


@pytest.mark.slow
def test_sampled_pairs_follow_the_models_own_distribution():
    """A vocabulary of 4, every pair of next tokens enumerated exactly, 3000 seeds, drafts on; chi-square at one in a
    thousand."""
    torch.manual_seed(3)
    model = Model(ModelConfig.named("nano", vocab_size=4, initializer_range=0.1)).eval()
    n, prompt = 3000, [1, 2, 3]
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[*prompt, v] for v in range(4)])).logits[:, -1].softmax(-1)
    want = n * first[:, None] * second
    out = generate(model, [prompt] * n, 3, temperature=1.0, seed=list(range(n)), speculate=1)
    table = torch.zeros(4, 4)
    for a, b, _ in out.tokens:
        table[a, b] += 1
    assert ((table - want).square() / want).sum() < 37.7  # 15 degrees of freedom
    assert out.acceptance > 0.2  # the second of each pair was drafted, and often kept


def test_the_module_reads_what_training_showed_it(periodic):
    """The first draft equals depth 1 of the model's own MTP forward over the whole sequence."""
    from minglm.model.attention import ForwardContext
    from minglm.model.decoder_layer import AuxLosses

    model, prompts = periodic
    rows = prompts[:3]
    cache = LatentCache(model.config, 3, 20, mtp=True)
    logits, hidden = prefill(model, cache, rows)
    speculator = Speculator(Decoder(model, cache), 1, 3)
    speculator.prefill(cache.rows(0, 3), rows, hidden)
    chosen, _ = choose(logits, [0.0] * 3, [1.0] * 3, [(0, 0)] * 3)
    for i in range(3):
        speculator.begin(i, 7, hidden[i, 7], int(chosen[i]))
    drafts = speculator._draft([0.0] * 3, [1.0] * 3, [(0, 1)] * 3)
    with torch.no_grad():
        following = torch.cat((torch.tensor(rows)[:, 1:], chosen[:, None]), 1)
        whole = model.mtp_step(
            hidden, following, ForwardContext("sparse", model.rope_slice(0, 8, hidden.device)), AuxLosses()
        )
        want = model.lm_head(model.mtp.norm(whole[:, -1])).argmax(-1)
    assert drafts[:, 0].tolist() == want.tolist()


def test_drafts_of_a_published_module_come_from_normed_states(model):
    """Two drafts against depths 1 and 2 by hand, with norms that are not 1."""
    from minglm.model.attention import ForwardContext
    from minglm.model.decoder_layer import AuxLosses

    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano", initializer_range=0.1, mtp_normed_hidden=True)).eval()
    for norm in (model.norm, model.mtp.norm):
        torch.nn.init.uniform_(norm.weight, 0.2, 3.0)
    row = [5, 6, 7, 8, 9, 10, 11]
    cache = LatentCache(model.config, 1, 20, mtp=True)
    logits, hidden = prefill(model, cache, [row])
    speculator, first = Speculator(Decoder(model, cache), 2, 1), int(logits.argmax())
    speculator.prefill(cache.rows(0, 1), [row], hidden)
    speculator.begin(0, 6, hidden[0, 6], first)
    with torch.inference_mode():  # as in a step
        drafts = speculator._draft([0.0], [1.0], [(0, 1)])[0].tolist()
    text = [*row, first]
    with torch.no_grad():
        state = model.norm(hidden)
        for depth in (1, 2):
            ctx = ForwardContext("sparse", model.rope_slice(0, 7, hidden.device))
            joined = model.mtp.join(state, model.embed_tokens(torch.tensor([text[depth:]])))
            state = model.mtp.norm(model.mtp.layer(joined, ctx, AuxLosses())[0])
            text.append(int(model.lm_head(state[:, -1]).argmax()))
    assert drafts == text[-2:]
    assert generate(model, [row], 8, speculate=2).tokens == generate(model, [row], 8).tokens


def test_refusals(model):
    with pytest.raises(InputError, match="speculate=-2"):
        generate(model, PROMPTS, 4, speculate=-2)
    with pytest.raises(InputError, match="num_nextn_predict_layers=0"):
        generate(Model(ModelConfig.named("nano", num_nextn_predict_layers=0)), PROMPTS, 4, speculate=1)
