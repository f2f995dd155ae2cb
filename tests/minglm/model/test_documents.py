"""Document by document is the mask's attention: the same values and gradients. What is not whole documents goes by the
mask."""

import pytest
import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.model.documents import LONG, Document, attention_by_document, documents
from minglm.model.indexer import causal_mask, select_topk
from minglm.model.model import Model
from minglm.runtime.switch import VARIABLE, fast


def starts(*rows: tuple[int, ...]) -> torch.Tensor:
    """doc_start of rows of documents of these lengths."""
    out = []
    for lengths in rows:
        row: list[int] = []
        for n in lengths:
            row += [len(row)] * n
        out.append(row)
    return torch.tensor(out)


def test_documents_of_rows_by_hand():
    assert documents(starts((3, 2), (1, 4))) == [(0, 0, 3), (0, 3, 5), (1, 0, 1), (1, 1, 5)]
    assert documents(torch.zeros(2, 4, dtype=torch.int64)) == [Document(0, 0, 4), Document(1, 0, 4)]
    assert documents(None) is None


@pytest.mark.parametrize(
    "row",
    [[0, 0, 1, 2, 3], [0, 0, 1, 1, 1], [1, 1, 2, 3, 4], [0, 1, 0, 3, 3], [0, 0, 0, 3, 2]],
    ids=["window", "begins too early", "cut in front", "goes back", "falls"],
)
def test_what_is_not_whole_documents_goes_by_the_mask(row):
    assert documents(torch.tensor([[0, 0, 0, 0, 0], row])) is None


def test_the_switch(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert not fast() and documents(starts((2, 2))) is None
    monkeypatch.setenv(VARIABLE, "1")
    assert fast() and documents(starts((2, 2)))
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(InputError, match="MINGLM_FAST='yes': must be 1"):
        fast()


@pytest.mark.parametrize("rows", [((9, 1, 14), (24,)), ((LONG + 5, 3, 2), (1, 1, LONG + 8))], ids=["short", "long"])
def test_attention_by_document_is_the_masks(rows):
    torch.manual_seed(0)
    doc_start = starts(*rows)
    B, T = doc_start.shape
    base = [torch.randn(B, T, 3, 8, dtype=torch.float64) for _ in range(4)]
    mask = torch.stack([causal_mask(T, 0, T, row, "cpu") for row in doc_start]).unsqueeze(1)
    results = []
    for way in ("documents", "mask"):
        q, k, v = (t.clone().requires_grad_() for t in base[:3])
        if way == "documents":
            parts = documents(doc_start)
            assert parts
            out = attention_by_document(q, k, v, parts, 0.3)
        else:
            heads = (t.transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.3).transpose(1, 2)
        out.backward(base[3])
        results.append((out, q.grad, k.grad, v.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("mode", ["dense", "warmup", "sparse"])
def test_a_model_gives_the_same_losses_and_gradients(mode, monkeypatch):
    config = ModelConfig.named("nano")
    torch.manual_seed(0)
    model = Model(config).double()  # choices do not hang on a last bit
    T = 5 * config.index_topk
    tokens = torch.randint(config.vocab_size, (2, T + 1))
    doc_start = starts((T // 2 + 3, 2, T - T // 2 - 5), (T,))
    results = []
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        model.zero_grad()
        out = model(tokens[:, :-1], tokens[:, 1:], mode=mode, doc_start=doc_start)
        parts = [p for p in (out.lm_loss, out.mtp_loss, out.indexer_kl) if p is not None and p.requires_grad]
        assert parts
        sum(parts).backward()
        results.append((out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (ours, our_grads), (theirs, their_grads) = results
    assert torch.allclose(ours.lm_loss, theirs.lm_loss, atol=1e-9)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert torch.allclose(grad, their_grads[name], atol=1e-9), name


@pytest.mark.parametrize("rows", [((40, 8, 16), (64,)), ((9, 55), (30, 34))])
def test_the_indexer_chooses_the_same_keys(rows, monkeypatch):
    torch.manual_seed(1)
    doc_start, topk = starts(*rows), 8
    q, k = torch.randn(2, 64, 2, 4, dtype=torch.float64), torch.randn(2, 64, 4, dtype=torch.float64)
    w = torch.randn(2, 64, 2, dtype=torch.float64)
    chosen = {}
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        found = select_topk(q, k, w, topk, doc_start=doc_start)
        assert found is not None
        chosen[value] = found.sort(-1).values
    assert torch.equal(chosen["1"], chosen["0"])
    here = torch.arange(64)
    visible = (here - doc_start + 1).clamp(max=topk)  # (B, T)
    assert torch.equal((chosen["1"] >= 0).sum(-1), visible)
    assert bool(((chosen["1"] < 0) | (chosen["1"] >= doc_start.unsqueeze(-1))).all())
