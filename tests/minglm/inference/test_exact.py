"""Decoding in double precision against the model run over the whole sequence again: what rounding cannot explain.

Every matrix of the model is drawn anew at full strength, so that a scale, a norm or a position left out shows in the
logits and not only in the sixth digit.
"""

import copy

import pytest
import torch

from minglm.config import ModelConfig
from minglm.inference.decoder import Decoder
from minglm.inference.engine import Engine
from minglm.inference.generate import generate
from minglm.inference.prefill import prefill
from minglm.inference.request import Request
from minglm.inference.sampling import choose
from minglm.inference.speculative import Speculator
from minglm.model.attention import ForwardContext
from minglm.model.cache import LatentCache
from minglm.model.decoder_layer import AuxLosses
from minglm.model.model import Model

EXACT = dict(rtol=1e-9, atol=1e-9)


def strong_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = Model(ModelConfig.named("nano", num_nextn_predict_layers=1, **changes)).eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0, 0.3) if p.dim() == 1 else p.normal_(0, 2 * p.shape[-1] ** -0.5)
        for b in model.buffers():
            b.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return strong_model()


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "by torch"])
def test_a_step_has_the_logits_and_hidden_states_of_a_forward(model, mode, compiled):
    """Attention at full strength is far from even, so a softmax scale that was not folded in changes every logit."""
    tokens = torch.randint(0, 512, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        cache = LatentCache(model.config, 1, 30, torch.float64)
        prefill(model, cache, [tokens[0, :9].tolist()], mode)
        decoder = Decoder(model, cache, mode)
        decoder.compiles = decoder.compiles and compiled
        for at in range(9, 30):
            logits = decoder.step(tokens[:, at : at + 1], [at])
            want = model(tokens[:, : at + 1], mode=mode)
            torch.testing.assert_close(logits[0, -1], want.logits[0, -1], **EXACT)
            torch.testing.assert_close(decoder.hidden[-1], want.hidden[0, -1], **EXACT)
        assert decoder.step(tokens[:, -1:], [29]).softmax(-1).max() > 0.05, "no logits that are all alike"


@pytest.mark.parametrize("lengths", [(5, 12, 19), (19, 19, 5), (7, 7)])
def test_prompts_of_unlike_lengths_are_each_read_to_their_own_end(model, lengths):
    tokens = torch.randint(0, 512, (len(lengths), 19), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        cache = LatentCache(model.config, len(lengths), 24, torch.float64)
        logits, hidden = prefill(model, cache, [tokens[b, :n].tolist() for b, n in enumerate(lengths)])
        for b, n in enumerate(lengths):
            alone = model(tokens[b : b + 1, :n])
            torch.testing.assert_close(logits[b], alone.logits[0, -1], **EXACT)
            torch.testing.assert_close(hidden[b, :n], alone.hidden[0], **EXACT)


@pytest.mark.parametrize("T", [1, 3])
def test_sequences_at_positions_of_their_own_too(model, T):
    tokens = torch.randint(0, 512, (3, 24), generator=torch.Generator().manual_seed(2))
    starts = [5, 12, 19]
    with torch.inference_mode():
        cache = LatentCache(model.config, 3, 24, torch.float64)
        prefill(model, cache, [tokens[b, :n].tolist() for b, n in enumerate(starts)])
        decoder = Decoder(model, cache)
        new = torch.stack([tokens[b, n : n + T] for b, n in enumerate(starts)])
        logits = decoder.step(new, starts)
        for b, n in enumerate(starts):
            want = model(tokens[b : b + 1, : n + T]).logits[0, n:]
            torch.testing.assert_close(logits[b], want, **EXACT)


# ---------------------------------------------------------------------- drafts


def drafts_from_scratch(model, sequence, n, temperature=0.0, seed=0, index=0):
    """Drafts after a sequence whose last token the model has not read, with nothing cached: the module over all pairs
    (hidden state, token that follows), then over those and its own hidden states with its own drafts. Draft j races
    with the random numbers of response token index + j, which it guesses."""
    with torch.inference_mode():
        read = torch.tensor([sequence[:-1]])
        inputs, following, drafts = model(read).hidden, list(sequence[1:]), []
        for _ in range(n):
            ctx = ForwardContext("sparse", model.rope_slice(0, inputs.shape[1], inputs.device))
            out = model.mtp_step(inputs, torch.tensor([following]), ctx, AuxLosses())
            logits = model.lm_head(model.mtp.norm(out[:, -1])).float()
            drafts.append(int(choose(logits, [temperature], [1.0], [(seed, index + len(drafts))])[0]))
            inputs, following = torch.cat((inputs, out[:, -1:]), 1), [*following, drafts[-1]]
        return drafts


@pytest.fixture()
def drafted(monkeypatch):
    """(request, tokens of its response so far, drafts) of every round of every engine."""
    seen, draft, engines = [], Speculator._draft, []

    def recorded(self, *how):
        out = draft(self, *how)
        rows = next(e for e in engines if e.speculator is self)._rows
        seen.extend((r, list(r.tokens), d) for r, d in zip(rows, out.tolist(), strict=True))
        return out

    monkeypatch.setattr(Speculator, "_draft", recorded)
    return seen, engines


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("budget", [512, 7], ids=["prompts at once", "prompts in pieces"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_those_of_the_module_run_from_scratch(model, drafted, n, budget, temperature):
    """Through rounds, over the border of a long prompt's pieces, and after rows have moved: drafts that are merely
    right less often change no token, so nothing else shows it."""
    seen, engines = drafted
    engine = Engine(model, 2, 60, speculate=n, prefill_budget=budget)
    engines.append(engine)
    for i, prompt in enumerate([list(range(5, 29)), [7, 9], [400, 2, 77, 31, 8, 90, 3, 11, 45]]):
        engine.submit(Request(str(i), prompt, 6 + 3 * i, temperature, seed=i))
    while engine.running + engine.waiting:
        engine.step()
    assert len(seen) > 10
    for r, tokens, drafts in seen:
        sequence = [*r.prompt, *tokens]
        assert drafts == drafts_from_scratch(model, sequence, n, temperature, r.seed, len(tokens))


@pytest.mark.parametrize("kept", [True, False], ids=["cache kept", "read again"])
def test_drafts_after_an_abort_are_the_same(model, drafted, kept):
    seen, engines = drafted
    engine = Engine(model, 3, 60, speculate=2, reuse_kv_cache=kept, prefill_budget=9)
    engines.append(engine)
    for i, prompt in enumerate([list(range(50, 63)), [7, 9, 4], list(range(5, 20))]):
        engine.submit(Request(str(i), prompt, 12, 0.0))
    for _ in range(6):
        engine.step()
    for request in engine.abort({"0", "2"}):
        engine.submit(request)
    while engine.running + engine.waiting:
        engine.step()
    for r, tokens, drafts in seen:
        assert drafts == drafts_from_scratch(model, [*r.prompt, *tokens], 2)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 9, 13])
def test_only_drafts_that_became_tokens_are_accepted_ones(model, new):
    """Drafts that are always right, and an end in the middle of a round: a response is one token of the prefill, one of
    each round, and the accepted drafts."""
    want = generate(model, [[5, 6, 7]], 20).tokens[0]
    engine = Engine(model, 1, 40, speculate=3)
    engine.speculator._draft = lambda temperature, top_p, keys: torch.tensor([want[keys[0][1] :][:3]])
    engine.submit(Request("a", [5, 6, 7], new, 0.0))
    rounds = 0
    while engine.running + engine.waiting:
        before = engine.stats.drafted
        engine.step()
        rounds += engine.stats.drafted > before
    assert rounds == -(-(new - 1) // 4) and engine.stats.decoded == new
    assert engine.stats.accepted == new - 1 - rounds


# ---------------------------------------------------------------------- caches under new weights


@pytest.mark.parametrize("speculate", [0, 2])
def test_a_push_that_reads_again_forgets_kept_caches_too(model, speculate):
    """A request that was aborted before the push and comes back after it goes on under the new weights alone."""
    other = strong_model(1)
    engine = Engine(
        copy.deepcopy(model), 2, 60, reuse_kv_cache=True, recompute_kv_on_weight_sync=True, speculate=speculate
    )
    engine.submit(Request("a", [5, 6, 7, 8], 20, 0.0))
    for _ in range(4):
        engine.step()
    (request,) = engine.abort()
    before = list(request.tokens)
    engine.update_weights(other.state_dict(), 1)
    engine.submit(request)
    while engine.running + engine.waiting:
        engine.step()
    assert request.tokens[len(before) :] == generate(other, [[5, 6, 7, 8, *before]], 20 - len(before)).tokens[0]
    assert engine.stats.reprefilled == 4 + len(before)


def test_a_kept_cache_of_other_tokens_is_not_used(model):
    """The same id, another sequence: what was kept does not fit and is read again."""
    engine = Engine(model, 2, 60, reuse_kv_cache=True)
    engine.submit(Request("a", [5, 6, 7, 8], 20, 0.0))
    for _ in range(4):
        engine.step()
    engine.abort()
    other = Request("a", [5, 6, 7, 9], 8, 0.0)
    engine.submit(other)
    while engine.running + engine.waiting:
        engine.step()
    assert other.tokens == generate(model, [[5, 6, 7, 9]], 8).tokens[0]


def test_kept_caches_are_bounded_and_the_newest_stay(model):
    engine = Engine(model, 2, 60, reuse_kv_cache=True)
    for i in range(20):
        engine.submit(Request(str(i), [5 + i, 6, 7], 20, 0.0))
        engine.step()
        engine.abort()
    assert list(engine._swapped_out) == [str(i) for i in range(12, 20)]


def test_a_push_in_the_middle_of_a_long_prompt_wastes_what_had_been_read(model):
    """Two pieces of seven tokens were read under the old weights; only those are read twice."""
    engine = Engine(copy.deepcopy(model), 2, 60, prefill_budget=7, recompute_kv_on_weight_sync=True)
    engine.submit(Request("long", list(range(5, 29)), 3, 0.0))
    engine.step()
    engine.step()
    other = strong_model(1)
    engine.update_weights(other.state_dict(), 1)
    tokens = []
    while engine.running + engine.waiting:
        tokens += [r.tokens for r in engine.step()]
    assert tokens == generate(other, [list(range(5, 29))], 3).tokens
    assert (engine.stats.prefilled, engine.stats.reprefilled) == (24 + 14, 14)
