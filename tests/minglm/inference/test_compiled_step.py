"""The compiled step: the same bits in any company, no place outside the cache, torch where there is no compiler."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.compiled_step import SOURCE, CompiledStep
from minglm.inference.decoder import Decoder
from minglm.inference.prefill import prefill
from minglm.model.cache import LatentCache
from minglm.model.model import Model
from minglm.runtime import compiled

ODD = {"hidden_size": 44, "kv_lora_rank": 10, "q_lora_rank": 19, "moe_intermediate_size": 13}
needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


def model_of(**changes) -> Model:
    torch.manual_seed(5)
    return Model(ModelConfig.named("nano", initializer_range=0.15, vocab_size=203, **changes)).eval()


def after(model: Model, prompts: list[list[int]]) -> Decoder:
    cache = LatentCache(model.config, len(prompts), 80)
    prefill(model, cache, prompts)
    return Decoder(model, cache, record_routes=True)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("changes", [{}, ODD], ids=["even widths", "odd widths"])
def test_a_token_has_the_same_bits_in_any_batch_and_on_any_thread(threads, changes):
    model, before = model_of(**changes), torch.get_num_threads()
    prompts = [[(7 * b + i) % 200 for i in range(n)] for b, n in enumerate((5, 44, 9, 60, 2))]
    try:
        torch.set_num_threads(threads)
        crowd = after(model, prompts)
        alone = [after(model, [p]) for p in prompts]
        for b, one in enumerate(alone):  # prefill of several may differ in the last bit
            one.cache.write(0, crowd.cache.read(b, len(prompts[b])))
        for at in range(12):
            tokens = torch.arange(5)[:, None] * 11 + at
            logits = crowd.step(tokens, [len(p) + at for p in prompts])
            for b, one in enumerate(alone):
                assert torch.equal(one.step(tokens[b : b + 1], [len(prompts[b]) + at])[0], logits[b])
                assert torch.equal(one.hidden[0], crowd.hidden[b])
                for whole, own in zip(crowd.routes, one.routes, strict=True):
                    assert torch.equal(whole[b], own[0])
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_several_tokens_in_one_step_have_the_bits_of_one_after_the_other():
    model = model_of(num_nextn_predict_layers=1)
    one, many = (after(model, [[3, 1, 4, 1, 5], [9, 2, 6]]) for _ in range(2))
    tokens = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    singly = torch.cat([one.step(tokens[:, t : t + 1], [5 + t, 3 + t]) for t in range(40)], 1)
    assert torch.equal(many.step(tokens, [5, 3]), singly)


@needs_compiler
def test_a_place_that_the_cache_does_not_have_is_refused():
    decoder = after(model_of(), [[1, 2, 3], [4, 5]])
    for tokens, positions in ((torch.ones(2, 1), [80, 3]), (torch.ones(2, 3), [2, 78]), (torch.ones(3, 1), [3, 3, 3])):
        with pytest.raises(InputError, match="holds 2 of 80 positions"):
            decoder.step(tokens.long(), positions)
    decoder.step(torch.ones(2, 3).long(), [77, 5])


@needs_compiler
@pytest.mark.parametrize("store", ["latent", "index_keys"])
def test_a_cache_whose_places_do_not_lie_side_by_side_is_left_to_torch(store):
    """C steps from place to place by the width of a key: one of the two stores that lies otherwise is enough."""
    model = model_of()
    cache = LatentCache(model.config, 2, 80)
    assert CompiledStep.fits(model, cache)
    plain = getattr(cache, store)
    setattr(cache, store, torch.cat([plain, plain], -1)[..., : plain.shape[-1]])
    assert not CompiledStep.fits(model, cache)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_torch_computes(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    try:
        if compiler == "none":
            monkeypatch.delenv("CC", raising=False)
            monkeypatch.setenv("PATH", str(tmp_path))
            assert compiled.compiler() is None
        else:
            broken = tmp_path / "cc"
            broken.write_text("#!/bin/sh\nexit 1\n")
            broken.chmod(0o755)
            monkeypatch.setenv("CC", str(broken))
        assert compiled.library(SOURCE) is None
        model = model_of()
        decoder = after(model, [[1, 2, 3]])
        got = decoder.step(torch.tensor([[7]]), [3])
        assert decoder.compiled is None and not CompiledStep.fits(model, decoder.cache)
        want = model(torch.tensor([[1, 2, 3, 7]])).logits[:, -1:]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    finally:
        compiled.library.cache_clear()


@needs_compiler
def test_what_was_compiled_is_kept_and_a_machine_that_cannot_run_it_has_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "small.c"
    source.write_text("int number(void) { return NUMBER; }\n")
    try:
        header = tmp_path / "shared.h"
        monkeypatch.setattr(compiled, "HEADERS", (header,))
        runs = [("here", 4, "", 1), ("here", 4, "", 1), ("there", 4, "", 2), ("there", 5, "", 3), ("there", 5, "//", 4)]
        for name, number, shared, kept in runs:
            header.write_text(shared)
            monkeypatch.setattr(compiled, "_processor", lambda name=name: name)
            compiled.library.cache_clear()
            code = compiled.library(source, f"NUMBER={number}")
            assert code is not None and code.number() == number
            assert len(list((tmp_path / "minglm").iterdir())) == kept
    finally:
        compiled.library.cache_clear()
