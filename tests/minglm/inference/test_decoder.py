"""Decoding's own ways of computing: padded experts against the loop, the compiled step against operations of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.config import ModelConfig
from minglm.inference.decoder import Decoder, _experts
from minglm.inference.prefill import prefill
from minglm.model.cache import LatentCache
from minglm.model.model import Model
from minglm.model.moe import MoE

CONFIG = ModelConfig.named("nano", n_routed_experts=16)
E, K = CONFIG.n_routed_experts, CONFIG.num_experts_per_tok


@st.composite
def loads(draw):
    """(N, K) experts chosen by N tokens, from even to all crowding the same few."""
    tokens, among = draw(st.integers(1, 70)), draw(st.integers(K, E))
    order = draw(st.permutations(range(E)))[:among]
    weight = 1.0 / torch.arange(1, among + 1).pow(draw(st.sampled_from([0.0, 1.0, 3.0])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ranks = torch.stack([torch.multinomial(weight, K, generator=generator) for _ in range(tokens)])
    return torch.tensor(order)[ranks]


def random_moe() -> MoE:
    torch.manual_seed(0)
    moe = MoE(CONFIG)
    for p in moe.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    return moe


MOE = random_moe()


@settings(deadline=None, max_examples=150)
@given(loads())
def test_padded_experts_equal_the_loop_however_skewed_the_load(chosen):
    generator = torch.Generator().manual_seed(len(chosen))
    h = torch.randn(len(chosen), CONFIG.hidden_size, generator=generator)
    gates = torch.rand(chosen.shape, generator=generator)
    with torch.inference_mode():
        want, counts = MOE.experts(h, chosen, gates)
        torch.testing.assert_close(_experts(h, MOE, chosen, gates), want, rtol=1e-4, atol=1e-4)
    assert counts.sum() == chosen.numel()


def test_both_ways_of_running_experts_are_taken(monkeypatch):
    """An even load is padded, one that crowds a single pair of many experts is left to the loop."""
    calls, loop = [], MOE.experts.forward
    monkeypatch.setattr(MOE.experts, "forward", lambda *args: calls.append(1) or loop(*args))
    N = 4 * E
    even = torch.stack([torch.arange(N) % E, (torch.arange(N) + 1) % E], 1)
    crowd = torch.tensor([0, 1]).expand(N, K).contiguous()
    for chosen, looped in ((even, 0), (crowd, 1)):
        calls.clear()
        with torch.inference_mode():
            _experts(torch.randn(N, CONFIG.hidden_size), MOE, chosen, torch.rand(N, K))
        assert len(calls) == looped


def decoders(mode="sparse", dtype=torch.float32, routes=True, **changes):
    """Two decoders of one model after the same prompt: one that takes the compiled step, one that does not."""
    torch.manual_seed(3)
    model = Model(ModelConfig.named("nano", initializer_range=0.15, **changes)).eval().to(dtype)
    for b in model.buffers():
        b.normal_(0, 0.1)
    both = []
    for _ in range(2):
        cache = LatentCache(model.config, 1, 60, dtype)
        prefill(model, cache, [list(range(7, 17))], mode)
        both.append(Decoder(model, cache, mode, record_routes=routes))
    both[1].compiles = False
    return model, *both


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"indexer_types": ("full", "shared", "full")},
        {"n_shared_experts": 0},
        {"first_k_dense_replace": 3},
        {"dtype": torch.float64},
        {"hidden_size": 44, "kv_lora_rank": 10, "q_lora_rank": 19, "moe_intermediate_size": 13, "vocab_size": 509},
    ],
)
def test_the_compiled_step_comes_to_the_same_state(mode, changes):
    """Logits, hidden state, experts chosen and what is written to the cache, below and past index_topk."""
    _, short, general = decoders(mode, **changes)
    for at in range(10, 60):
        token = torch.tensor([[at * 7 % 512]])
        got, want = short.step(token, [at]), general.step(token, [at])
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(short.hidden, general.hidden, rtol=1e-3, atol=1e-4)
        for a, b in zip(short.routes, general.routes, strict=True):
            assert a.sort(-1).values.equal(b.sort(-1).values)
    assert short.compiled is not None and general.compiled is None
    for a, b in ((short.cache.latent, general.cache.latent), (short.cache.index_keys, general.cache.index_keys)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_the_prediction_module_is_compiled_too(mode):
    model, *_ = decoders(num_nextn_predict_layers=1)
    both = [Decoder(model, LatentCache(model.config, 1, 60, mtp=True), mode) for _ in range(2)]
    both[1].compiles = False
    generator = torch.Generator().manual_seed(0)
    for at in range(60):
        hidden = torch.randn(1, 1, CONFIG.hidden_size, generator=generator)
        got, want = (decoder.mtp_step(hidden, torch.tensor([[at]]), [at]) for decoder in both)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert both[0].compiled_mtp is not None and both[1].compiled_mtp is None


def test_hidden_and_logits_of_a_step_outlive_the_next_one():
    _, short, _ = decoders()
    logits, hidden = short.step(torch.tensor([[3]]), [10]), short.hidden
    kept = logits.clone(), hidden.clone()
    short.step(torch.tensor([[4]]), [11])
    assert logits.equal(kept[0]) and hidden.equal(kept[1])


def test_a_tie_at_the_edge_goes_to_the_lowest_positions():
    """With indexer queries of zero every score is 0: the first index_topk positions must be chosen."""
    model, short, general = decoders(routes=False)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.indexer.wq_b.weight.zero_()
    for decoder in (short, general):
        decoder.refresh()
    for at in range(10, 60):
        token = torch.tensor([[at]])
        torch.testing.assert_close(short.step(token, [at]), general.step(token, [at]), rtol=1e-3, atol=1e-4)
    assert short.compiled.topk_indices[0].tolist() == list(range(CONFIG.index_topk))


def test_new_weights_are_taken_in_by_refresh():
    model, short, general = decoders(routes=False)
    token = torch.tensor([[5]])
    before = short.step(token, [10])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    short.refresh()
    general.refresh()
    after = short.step(token, [10])
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, general.step(token, [10]), rtol=1e-3, atol=1e-4)
