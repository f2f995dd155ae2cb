"""Decoding: the cache against no cache, batches against single prompts, stop tokens, sampling, refusals."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.decoder import Decoder
from minglm.inference.generate import generate, stream
from minglm.inference.prefill import prefill
from minglm.model.cache import LatentCache
from minglm.model.model import Model

PROMPTS = [list(range(5, 45)), [7, 9], list(range(100, 117)), [3] * 30]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(ModelConfig.named("nano", initializer_range=0.15)).eval()


def without_cache(model, prompt, n, mode="sparse"):
    row, out = list(prompt), []
    for _ in range(n):
        with torch.no_grad():
            out.append(model(torch.tensor([row]), mode=mode).logits[0, -1].argmax().item())
        row.append(out[-1])
    return out


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_greedy_with_the_cache_equals_running_it_all_again(model, mode):
    for prompt in PROMPTS:
        assert generate(model, [prompt], 25, mode=mode).tokens[0] == without_cache(model, prompt, 25, mode)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_ragged_batch_equals_one_by_one(model, mode, temperature):
    together = generate(model, PROMPTS, 25, mode=mode, temperature=temperature, seed=[4, 5, 6, 7])
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 25, mode=mode, temperature=temperature, seed=[4 + i])
        assert together.tokens[i] == alone.tokens[0]
        assert together.logprobs[i] == pytest.approx(alone.logprobs[0], abs=1e-4)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize(
    "changes", [{}, {"indexer_types": ("full", "shared", "full")}, {"n_shared_experts": 0}, {"index_topk": 1}]
)
def test_one_decoder_step_gives_the_logits_of_a_forward(mode, changes):
    """A token or a few at a time, past index_topk, for one sequence (its own expert path) and for three side by side or
    each at a position of its own."""
    torch.manual_seed(1)
    model = Model(ModelConfig.named("nano", initializer_range=0.15, **changes)).eval()
    for b in model.buffers():
        b.normal_(0, 0.1)
    tokens = torch.randint(0, 512, (3, 44))
    with torch.inference_mode():
        whole = model(tokens, mode=mode).logits
        for ahead in ([10], [10, 10, 10], [12, 6, 9]):  # tokens that each sequence has before the first step
            B = len(ahead)
            cache = LatentCache(model.config, B, 44)
            prefill(model, cache, [row[:n].tolist() for row, n in zip(tokens, ahead, strict=False)], mode)
            decoder, at = Decoder(model, cache, mode), list(ahead)
            for T in (1, 1, 3, 1, 4) + (1, 2) * 7:
                new = torch.stack([row[n : n + T] for row, n in zip(tokens, at, strict=False)])
                want = torch.stack([row[n : n + T] for row, n in zip(whole, at, strict=False)])
                torch.testing.assert_close(decoder.step(new, at), want, rtol=1e-3, atol=1e-4)
                at = [n + T for n in at]


def test_stop_tokens_end_a_sequence_and_are_left_out(model):
    free = generate(model, PROMPTS, 25)
    stop = free.tokens[0][6]
    out = generate(model, PROMPTS, 25, stop=[stop])
    for i, tokens in enumerate(free.tokens):
        cut = tokens.index(stop) if stop in tokens else len(tokens)
        assert out.tokens[i] == tokens[:cut] and out.stopped[i] == (stop in tokens)
        assert len(out.logprobs[i]) == cut


def test_streaming_stops_when_all_have_stopped(model):
    stop = generate(model, PROMPTS[:1], 3).tokens[0][0]
    assert len(list(stream(model, PROMPTS[:1], 25, stop=[stop]))) == 1


def test_logprobs_are_the_models_own(model):
    out = generate(model, PROMPTS[:1], 5, temperature=1.3, seed=3)
    row = torch.tensor([PROMPTS[0] + out.tokens[0]])
    with torch.no_grad():
        want = (
            model(row)
            .logits.log_softmax(-1)[0, len(PROMPTS[0]) - 1 : -1]
            .gather(-1, torch.tensor(out.tokens[0])[:, None])
        )
    assert out.logprobs[0] == pytest.approx(want.flatten().tolist(), abs=1e-4)


def test_same_seed_same_text_other_seed_other_text(model):
    def draw(seed):
        return generate(model, PROMPTS, 20, temperature=1.0, seed=seed).tokens

    assert draw(3) == draw(3) != draw(50)


@pytest.mark.parametrize("speculate", [0, 1])
def test_one_seed_counts_on_over_the_sequences(model, speculate):
    """Equal prompts get draws of their own: sequence i those of seed + i."""
    how = dict(temperature=1.0, speculate=speculate)
    together = generate(model, [[7, 9]] * 3, 12, seed=5, **how).tokens
    assert together == generate(model, [[7, 9]] * 3, 12, seed=[5, 6, 7], **how).tokens
    assert len(set(map(tuple, together))) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([], {}, "no prompts"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[600]], {}, "0 to 511"),
        ([[1]], {"max_new_tokens": 0}, "at least 1"),
        ([[1]], {"max_new_tokens": 512}, "max_position_embeddings=512"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"seed": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_bad_requests_are_refused_in_one_line(model, prompts, options, says):
    with pytest.raises(InputError) as err:
        generate(model, prompts, **{"max_new_tokens": 4, **options})
    assert says in str(err.value) and "\n" not in str(err.value)


def test_a_model_that_has_generated_can_still_be_trained():
    """What decoding caches in inference mode must not reach the backward pass."""
    model = Model(ModelConfig.named("nano"))
    generate(model, [[5, 6, 7]], max_new_tokens=2)
    tokens = torch.randint(0, 512, (1, 40))
    model(tokens, tokens, mode="sparse").lm_loss.backward()
    assert model.embed_tokens.weight.grad is not None
