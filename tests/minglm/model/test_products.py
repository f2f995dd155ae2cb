"""Products of many rows: the same through either of torch's libraries, whatever the shape or the layout."""

import time

import pytest
import torch
import torch.nn.functional as F

from minglm.model import products
from minglm.model.products import BLOCK, Linear, linear, rows_product, sum_over_rows


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN, wherever it is there, whether or not it is the faster one here."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


SHAPES = [(m, k, n) for m in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5) for k, n in ((1, 40), (40, 1), (48, 80))]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("given", [False, True])
def test_products_equal_those_in_double(onednn, m, k, n, given):
    a, b, rows = random(m, k), random(k, n), random(m, n)
    out = torch.full((m, n), torch.nan) if given else None
    product = rows_product(a, b, out)
    assert product is out or not given
    torch.testing.assert_close(product, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)
    out = torch.full((k, n), torch.nan) if given else None
    total = sum_over_rows(a, rows, out)
    assert total is out or not given
    torch.testing.assert_close(total, (a.T.double() @ rows.double()).float(), rtol=1e-5, atol=1e-4)


def test_transposed_views_are_read_as_they_lie(onednn):
    a, b = random(64, 96).T, random(48, 64).T
    torch.testing.assert_close(rows_product(a, b), torch.mm(a, b), rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_torch(onednn):
    x, weight, grad = random(2, 70, 48).requires_grad_(), random(80, 48).requires_grad_(), random(2, 70, 80)
    theirs = torch.autograd.grad(F.linear(x, weight), (x, weight), grad)
    ours = torch.autograd.grad(linear(x, weight), (x, weight), grad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_what_it_is_not_for_goes_to_torch_bit_for_bit(onednn, monkeypatch):
    few, wide = random(BLOCK - 1, 48), random(4 * BLOCK, 48)
    weight = random(80, 48)
    assert torch.equal(linear(few, weight), F.linear(few, weight))
    assert torch.equal(linear(wide.double(), weight.double()), F.linear(wide.double(), weight.double()))
    assert torch.equal(linear(wide.bfloat16(), weight.bfloat16()), F.linear(wide.bfloat16(), weight.bfloat16()))
    monkeypatch.setenv("MINGLM_FAST", "0")
    assert torch.equal(linear(wide, weight), F.linear(wide, weight))
    assert torch.equal(rows_product(wide, weight.T), wide @ weight.T)


def test_only_a_clearly_faster_library_is_taken(monkeypatch):
    """The clock is one that oneDNN's products advance as told, and BLAS's by one."""
    now = [0.0]

    def taking(seconds):
        def multiply(a, b):
            now[0] += seconds

        return multiply

    monkeypatch.setattr(products.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(products.torch, "mm", taking(1.0))
    for seconds, faster in ((0.5, True), (0.9, False), (2.0, False)):
        monkeypatch.setattr(products, "_onednn", taking(seconds))
        products.onednn_is_faster.cache_clear()
        assert products.onednn_is_faster() == (faster and torch.backends.mkldnn.is_available())
    products.onednn_is_faster.cache_clear()


def test_a_layer_is_torchs_own_with_other_products():
    torch.manual_seed(0)
    ours = Linear(48, 80)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(48, 80, bias=False)
    assert torch.equal(ours.weight, theirs.weight)
    assert list(ours.state_dict()) == ["weight"]


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
def test_a_part_of_a_wider_matrix_is_multiplied_as_fast_as_a_copy_of_it():
    """The latent's 64 of 80 columns: oneDNN reads them as they lie a thousand times slower, and training with them."""
    wide, a = torch.randn(2112, 80), torch.randn(2112, 256).T
    part, copy, seconds = wide[:, :64], wide[:, :64].contiguous(), {}
    for name, b in (("copy", copy), ("part", part)):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            out = products._onednn(a, b)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
        assert torch.allclose(out, a @ copy, rtol=1e-4, atol=1e-3)
    assert seconds["part"] < 30 * seconds["copy"]
