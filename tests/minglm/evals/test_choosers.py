"""Rules that choose keys, against their words spelled out query by query; drafts copied from a text, by hand."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.evals import choosers, drafts
from minglm.evals.indexer_recall import indexer_recall
from minglm.inference.generate import generate
from minglm.model.model import Model

T, K = 14, 6


@pytest.fixture(scope="module")
def layer():
    """Attention and scores of one layer, as drawn."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(T, T).tril().bool()
    attention = torch.randn(T, T, generator=generator).masked_fill(~mask, -torch.inf).softmax(-1)
    scores = torch.rand(T, T, generator=generator).masked_fill(~mask, -torch.inf)
    return attention, scores, mask


def spelled_out(rule, attention, scores, t):
    """The keys of query t by the words of a rule, highest first."""
    visible = range(t + 1)
    heavy = {s: sum(float(attention[q, s]) for q in range(s, t)) for s in visible}
    at_distance = {d: sum(float(scores[q, q - d]) for q in range(d, T)) / (T - d) for d in range(T)}
    by_queries = {s: sum(float(scores[q, s]) for q in range(s, T)) / (T - s) for s in visible}
    recent = sorted(visible, reverse=True)
    return {
        "recent": recent,
        "first and recent": [*[s for s in visible if s < 4], *[s for s in recent if s >= 4]],
        "heavy hitters": sorted(visible, key=heavy.get, reverse=True),
        "recent and heavy": [*recent[: K // 2], *sorted(recent[K // 2 :], key=heavy.get, reverse=True)],
        "by distance": sorted(visible, key=lambda s: at_distance[t - s], reverse=True),
        "mean query": sorted(visible, key=by_queries.get, reverse=True),
    }[rule]


@pytest.mark.parametrize("rule", choosers.RULES)
def test_a_rule_chooses_what_its_words_say_and_never_the_future(rule, layer):
    attention, scores, mask = layer
    chosen = choosers.by_rule(attention, scores, mask, K)[rule]
    for t in range(T):
        keys = set(chosen[t].nonzero().flatten().tolist())
        assert keys == set(spelled_out(rule, attention, scores, t)[:K]), t


def test_no_rule_captures_more_than_the_best_choice_and_all_keys_capture_all():
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano")).eval()
    tokens = torch.randint(0, 512, (40,))
    for layer in indexer_recall(model, tokens, mode="dense")["layers"]:
        assert set(layer["rules"]) == set(choosers.RULES) and layer["recent"] == layer["rules"]["recent"]
        assert max(layer["rules"].values()) <= layer["best"] + 1e-6 <= 1 + 2e-6


@pytest.mark.parametrize(
    ("prompt", "text", "share"),
    [
        ([1, 2, 3, 1, 2], [3, 1, 2, 3, 1], 1.0),  # 3 read; 1 drafted, 2 chosen; 3 drafted, 1 chosen
        ([1, 2, 3], [4, 5, 6], 0.0),  # nothing comes again: two passes without a draft
        ([7, 8, 9, 7], [8, 5, 7, 8], 1 / 3),  # 9 drafted for 5; 9 has no earlier; 8 drafted for 8
        ([1, 2], [], 0.0),
    ],
)
def test_copied_drafts_are_counted_as_a_decoder_would_take_them(prompt, text, share):
    assert drafts.by_copy([prompt], [text]) == pytest.approx(share)


def test_the_longest_suffix_decides_and_the_last_place_of_it():
    assert drafts.copied([1, 2, 9, 3, 2, 8, 1, 2]) == 9  # "1 2", not the later "2" alone
    assert drafts.copied([2, 9, 2, 8, 2]) == 8


def test_a_module_that_says_what_the_model_says_is_always_right():
    """Drafts kept are the engine's own count; with a text of one word both ways are right in every pass."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano")).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every word is as likely: greedy takes the first, here and in the module
    made = generate(model, [[5, 6, 0, 0]], 12, mode="dense")
    assert set(made.tokens[0]) == {0}
    # A token by the prompt, then two a pass: the sixth pass has room for one, so its draft is not kept.
    assert drafts.by_module(model, [[5, 6, 0, 0]], 12, (), "dense") == pytest.approx(5 / 6)
    assert drafts.by_module(model, [[5, 6, 0, 0]], 13, (), "dense") == 1.0
    assert drafts.by_copy([[5, 6, 0, 0]], made.tokens) == 1.0
