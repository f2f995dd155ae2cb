"""Compiled attention, to chosen latents and inside documents, against the formula that torch differentiates in double
precision."""

import pytest
import torch

from minglm.model import compiled_documents, compiled_sparse
from minglm.model.documents import attention_by_document, documents
from minglm.model.sparse_attention import masked_reference, sparse_attention
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def differentiated(leaves, function):
    """Value of `function(*leaves)` and the gradients of its product with fixed numbers."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_equal(ours, theirs):
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=2e-5)


# ---------------------------------------------------------------- chosen latents


def sparse_inputs(T, H, k, nope=8, rope=4, L=16, Dv=8):
    g = torch.Generator().manual_seed(T * H)
    shapes = ((2, T, H, nope), (2, T, H, rope), (2, T, L + rope), (H, nope, L), (H, Dv, L))
    scores = torch.rand(2, T, T, generator=g).masked_fill(torch.ones(T, T).triu(1).bool(), -1)
    found = scores.topk(min(k, T), -1)
    chosen = found.indices.masked_fill(found.values < 0, -1)
    chosen[:, ::3] = chosen[:, ::3].flip(-1)  # empty places may stand anywhere
    return [torch.randn(s, generator=g) for s in shapes], chosen


@pytest.mark.parametrize(
    "case",
    [dict(T=130, H=4, k=32), dict(T=70, H=3, k=5, nope=3, rope=2, L=5, Dv=7), dict(T=2, H=1, k=2, nope=1, L=1, Dv=1)],
    ids=str,
)
def test_attention_to_chosen_keys_is_the_masked_formulas(case, threads):
    leaves, chosen = sparse_inputs(**case)
    doubled = [t.double() for t in leaves]
    assert_equal(
        differentiated(leaves, lambda *t: sparse_attention(*t, chosen, 0.3)[0]),
        differentiated(doubled, lambda *t: masked_reference(*t, chosen, 0.3)),
    )


def test_the_attention_paid_is_that_of_the_readable_path(monkeypatch):
    leaves, chosen = sparse_inputs(40, 4, 9)
    paid = {}
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        assert compiled_sparse.fits(*leaves) == (value == "1")
        paid[value] = sparse_attention(*leaves, chosen, 0.3, want_p=True)[1]
    torch.testing.assert_close(paid["1"], paid["0"])
    torch.testing.assert_close(paid["1"].sum(-1), torch.ones(2, 40))
    assert bool((paid["1"][chosen < 0] == 0).all())


def test_threads_and_neighbours_change_no_bit_of_a_query():
    leaves, chosen = sparse_inputs(130, 4, 16)
    before, outs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outs.append(sparse_attention(*leaves, chosen, 0.3)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


# ---------------------------------------------------------------- documents


def starts(*rows):
    """doc_start of rows of documents of these lengths."""
    return torch.tensor([[end - n for end, n in _places(lengths) for _ in range(n)] for lengths in rows])


def _places(lengths):
    end = 0
    for n in lengths:
        end += n
        yield end, n


def masked(doc_start):
    """What attention inside documents must equal: all of a row, the rest masked."""
    here = torch.arange(doc_start.shape[1])
    mask = ((here <= here[:, None]) & (here >= doc_start[:, :, None])).unsqueeze(1)

    def attend(q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    return attend


@pytest.mark.parametrize(
    "rows", [((9, 1, 14), (24,)), ((13, 12, 11, 300), (1, 1, 334)), ((1,), (1,))], ids=["short", "long", "one token"]
)
@pytest.mark.parametrize("widths", [(48, 32), (7, 3), (4, 9)], ids=str)
def test_attention_inside_documents_is_the_masked_formulas(rows, widths, threads):
    doc_start, (D, V), g = starts(*rows), widths, torch.Generator().manual_seed(3)
    B, T = doc_start.shape
    parts = documents(doc_start)
    assert parts is not None
    assert [[p.stop - p.start for p in parts if p.row == row] for row in range(B)] == [
        list(lengths) for lengths in rows
    ]
    leaves = [torch.randn(B, T, 3, width, generator=g) for width in (D, D, V)]
    assert compiled_documents.fits(*leaves)
    assert_equal(
        differentiated(leaves, lambda *t: attention_by_document(*t, parts, 0.3)),
        differentiated([t.double() for t in leaves], masked(doc_start)),
    )


def test_keys_and_values_may_be_parts_of_one_row():
    """As `MLA.expand` gives them: one product, split."""
    doc_start, g = starts((5, 9), (14,)), torch.Generator().manual_seed(4)
    q, both = torch.randn(2, 14, 2, 6, generator=g), torch.randn(2, 14, 2, 10, generator=g)
    parts = documents(doc_start)
    assert parts is not None
    assert_equal(
        differentiated([q, both], lambda q, kv: attention_by_document(q, *kv.split((6, 4), -1), parts, 0.3)),
        differentiated([q.double(), both.double()], lambda q, kv: masked(doc_start)(q, *kv.split((6, 4), -1))),
    )


def test_large_scores_neither_overflow_nor_leak():
    doc_start = starts((6, 2))
    q = torch.full((1, 8, 1, 8), 40.0)
    k, v = q * torch.arange(8).view(1, 8, 1, 1), torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 1, 8)
    parts = documents(doc_start)
    assert parts is not None
    out = attention_by_document(q, k, v, parts, 1.0)
    assert torch.equal(out[0, :, 0, 0], torch.arange(8.0))  # each reads its own key, the largest so far


@pytest.mark.parametrize("where", range(3))
def test_what_is_not_finite_is_not_hidden(where):
    doc_start, g = starts((6, 2)), torch.Generator().manual_seed(5)
    leaves = [torch.randn(1, 8, 1, 8, generator=g) for _ in range(3)]
    leaves[where][0, 5] = torch.nan
    parts = documents(doc_start)
    assert parts is not None
    out = attention_by_document(*leaves, parts, 0.3)
    assert out[0, 5].isnan().all() and not out[0, 6:].isnan().any()
    if where < 2:  # a value meets the weights of all queries of its document, zeros too, as in torch's own attention
        assert not out[0, :5].isnan().any()
