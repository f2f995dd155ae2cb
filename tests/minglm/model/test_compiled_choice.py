"""The compiled choice against sorting all scores in double precision, whatever the numbers, and against torch's way."""

import pytest
import torch

from minglm.model import compiled_choice, indexer
from minglm.model.indexer import causal_mask, select_topk
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")
CASES = [  # B, T, keys before the first query, Hi, Di, k
    (1, 2, 0, 1, 1, 1),
    (2, 40, 0, 2, 4, 5),
    (3, 67, 20, 4, 31, 9),
    (1, 700, 0, 4, 32, 64),
    (1, 130, 1500, 5, 40, 33),
    (2, 300, 3, 3, 7, 200),
]
KINDS = ["random", "whole numbers", "negative weights", "nothing in the queries", "one huge key", "tiny", "rising"]


@pytest.fixture(params=["for this machine", "for any machine"])
def body(request, monkeypatch):
    """The code with the processor's own product of pairs, and with the one that any has."""
    if request.param == "for any machine":
        code = compiled.library(compiled_choice.SOURCE, "PORTABLE")
        monkeypatch.setattr(compiled, "library", lambda source: code)


def inputs(B, T, S, Hi, Di, kind="random"):
    g = torch.Generator().manual_seed(T + Di)
    q, keys, w = (torch.randn(s, generator=g) for s in ((B, T, Hi, Di), (B, S, Di), (B, T, Hi)))
    if kind == "whole numbers":  # ties everywhere
        return q.round(), keys.round(), w.round()
    if kind == "negative weights":  # the best scores are zero, of many keys
        return q, keys, -w.abs()
    if kind == "one huge key":  # which leaves the others few bits
        keys[:, S // 2] *= 1e4
    if kind == "rising":  # every key is better than those before it
        return q.abs(), (0.01 * keys.abs() + torch.arange(S)[:, None] / S), w.abs()
    scale = {"nothing in the queries": 0.0, "tiny": 1e-7}.get(kind, 1.0)
    return scale * q, keys, w


def starts(B, T, offset):
    g = torch.Generator().manual_seed(T)
    return torch.minimum(torch.randint(0, offset + T, (B, T), generator=g), offset + torch.arange(T))


def scores_of(q, keys, w, offset, doc_start):
    """(B, T, S) in double precision, -inf where a query sees nothing."""
    dots = torch.einsum("bthd,bsd->bhts", q.double(), keys.double()).relu()
    scores = torch.einsum("bhts,bth->bts", dots, w.double())
    for b, rows in enumerate(scores):
        hidden = None if doc_start is None else doc_start[b]
        rows.masked_fill_(~causal_mask(q.shape[1], offset, keys.shape[1], hidden, q.device), -torch.inf)
    return scores


def assert_best(chosen, scores, sizes, k):
    """`chosen` (B, T, k) are the k largest of each row of scores, the lowest positions of equal ones; where two differ
    by less than fp32 rounds to (`sizes` (B, T, S): sums of magnitudes), either is right."""
    order = scores.sort(dim=-1, descending=True, stable=True)
    want = order.indices[..., :k].masked_fill(order.values[..., :k] == -torch.inf, -1).sort(-1).values
    for got, row, size, right in zip(*(t.flatten(0, 1) for t in (chosen, scores, sizes, want)), strict=True):
        here = got[got >= 0]
        assert len(here) == int((right >= 0).sum()) and len(set(here.tolist())) == len(here)
        swapped = set(here.tolist()) ^ set(right[right >= 0].tolist())
        if swapped:
            at = torch.tensor(sorted(swapped))
            edge = row[right[right >= 0]].min()
            assert ((row[at] - edge).abs() <= 1e-6 * (size[at] + size.max())).all()
            assert size.max() > 0 and not torch.equal(row[at], row[at].round()), "a tie went to a later position"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("documents", [False, True])
def test_the_choice_is_that_of_sorting_all_scores(body, case, kind, documents):
    B, T, offset, Hi, Di, k = case
    q, keys, w = inputs(B, T, offset + T, Hi, Di, kind)
    doc_start = starts(B, T, offset) if documents else None
    chosen = compiled_choice.choose(q, keys, w, k, offset, doc_start)
    sizes = scores_of(q.abs(), keys.abs(), w.abs(), 10**6, None)
    assert_best(chosen, scores_of(q, keys, w, offset, doc_start), sizes, k)


def test_keys_that_few_bits_cannot_tell_apart_are_told_apart():
    """Keys alike but for their last bits: rounded to 13 they are one key."""
    g = torch.Generator().manual_seed(0)
    q, w = torch.randn(1, 200, 4, 32, generator=g), torch.randn(1, 200, 4, generator=g)
    keys = torch.randn(1, 1, 32, generator=g) + 1e-4 * torch.randn(1, 200, 32, generator=g)
    sizes = scores_of(q.abs(), keys.abs(), w.abs(), 10**6, None)
    assert_best(compiled_choice.choose(q, keys, w, 20, 0, None), scores_of(q, keys, w, 0, None), sizes, 20)


@pytest.mark.parametrize("kind", ["whole numbers", "negative weights", "random"])
@pytest.mark.parametrize("rows", [None, (40, 8, 16, 136), (9, 191)])
def test_selecting_takes_it_and_agrees_with_torch(monkeypatch, kind, rows):
    """Whole numbers are exact in both, so the sets are equal; else scores a rounding apart may change places."""
    q, keys, w = inputs(2, 200, 200, 2, 16, kind)
    doc_start = rows and torch.cat([torch.full((n,), sum(rows[:i])) for i, n in enumerate(rows)]).expand(2, -1)
    found = {}
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        assert compiled_choice.fits(q, keys, w) == (value == "1")
        found[value] = select_topk(q, keys, w, 11, doc_start=doc_start).sort(-1).values
    assert (found["1"] == found["0"]).all(-1).float().mean() >= (0.99 if kind == "random" else 1)


def test_the_same_on_any_number_of_threads_and_in_any_company():
    q, keys, w = inputs(3, 333, 333, 4, 32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compiled_choice.choose(q, keys, w, 24, 0, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    alone = compiled_choice.choose(q[1:2, 200:], keys[1:2], w[1:2, 200:], 24, 200, None)
    assert torch.equal(alone, found[0][1:2, 200:])


@pytest.mark.parametrize("where", ["q", "k", "w"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e30])
def test_numbers_beyond_the_bounds_are_left_to_torch(monkeypatch, where, number):
    given = dict(zip("qkw", inputs(1, 90, 90, 2, 8), strict=True))
    given[where].view(-1)[-1] = number
    assert compiled_choice.choose(**given, topk=7, offset=0, doc_start=None) is None
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        found.append(select_topk(**given, topk=7))
    assert torch.equal(*found)


def test_strided_tensors_are_read_as_they_are():
    q, keys, w = inputs(2, 80, 120, 4, 8)
    cache = torch.randn(2, 500, 8)
    cache[:, :120] = keys
    wide = torch.randn(2, 80, 4, 11)
    wide[..., :8] = q
    want = compiled_choice.choose(q, keys, w, 9, 40, None)
    turned = w.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(compiled_choice.choose(wide[..., :8], cache[:, :120], turned, 9, 40, None), want)


def test_without_the_code_torch_chooses(monkeypatch):
    q, keys, w = inputs(1, 90, 90, 2, 8, "whole numbers")
    want = select_topk(q, keys, w, 7)
    monkeypatch.setattr(compiled, "library", lambda source: None)
    asked = []
    real = indexer.topk_lowest
    monkeypatch.setattr(indexer, "topk_lowest", lambda *a: asked.append(1) or real(*a))
    assert torch.equal(select_topk(q, keys, w, 7).sort(-1).values, want.sort(-1).values) and asked
