"""Accelerator kernels against the CPU reference. On a machine without one the same functions run on CPU in fp32; the
runs on the device itself are skipped in words."""

import pytest

from minglm.model import indexer, topk

torch = pytest.importorskip("torch")

from minglm.errors import InputError  # noqa: E402
from minglm.model import gpu_kernels, moe, sparse_attention  # noqa: E402
from minglm.runtime import device as gpu_device  # noqa: E402

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine: not run"),
    ),
]


def experts(device, dtype):
    torch.manual_seed(0)
    N, C, E, K, F = 50, 16, 6, 2, 24
    tensors = [torch.randn(N, C), torch.randn(E, 2 * F, C) * 0.2, torch.randn(E, C, F) * 0.2, torch.rand(N, K)]
    chosen = torch.stack([torch.randperm(E - 1)[:K] for _ in range(N)])  # the last expert gets nothing
    return [t.to(device, dtype).requires_grad_() for t in tensors], chosen.to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_grouped_experts_equal_the_loop_with_gradients(device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tolerance = 1e-4 if device == "cpu" else 0.05
    ours, chosen = experts(device, dtype)
    theirs, _ = experts("cpu", torch.float32)
    out, counts = gpu_kernels.grouped_swiglu(*ours, chosen)
    expected, expected_counts = moe.grouped_swiglu(*theirs, chosen.cpu())
    assert torch.equal(counts.cpu(), expected_counts) and counts[-1] == 0
    assert torch.allclose(out.float().cpu(), expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(expected)
    (out.float() * weight.to(device)).sum().backward(), (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad.float().cpu() - b.grad).norm() <= tolerance * b.grad.norm() + tolerance


def choice_inputs(device, dtype):
    torch.manual_seed(1)
    B, T, H, nope, rope, L, Dv, k = 2, 70, 3, 8, 4, 12, 10, 9
    tensors = [
        torch.randn(B, T, H, nope),
        torch.randn(B, T, H, rope),
        torch.randn(B, T, L + rope),
        torch.randn(H, nope, L) * 0.3,
        torch.randn(H, Dv, L) * 0.3,
    ]
    scores = torch.randn(B, T, T).masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)
    topk_indices = torch.stack([topk.topk_lowest(s, k) for s in scores])
    return [t.to(device, dtype).requires_grad_() for t in tensors], topk_indices.to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_flex_attention_over_topk_equals_gathered_attention(device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tolerance = 1e-4 if device == "cpu" else 0.05
    ours, topk_indices = choice_inputs(device, dtype)
    theirs, _ = choice_inputs("cpu", torch.float32)
    if device == "cpu":  # torch has no backward of it there
        ours = [t.detach() for t in ours]
    out = gpu_kernels.flex_attention_topk(*ours, topk_indices, 0.3)
    expected, _ = sparse_attention.sparse_attention(*theirs, topk_indices.cpu(), 0.3)
    assert torch.allclose(out.float().cpu(), expected, atol=tolerance, rtol=tolerance)
    if device != "cpu":
        weight = torch.randn_like(expected)
        (out.float() * weight.to(device)).sum().backward(), (expected * weight).sum().backward()
        assert all(
            (a.grad.float().cpu() - b.grad).norm() <= tolerance * b.grad.norm()
            for a, b in zip(ours, theirs, strict=True)
        )
    negative = gpu_kernels.flex_attention_topk(*ours, topk_indices.clamp(max=3), 0.3)
    assert not torch.allclose(negative.float().cpu(), expected, atol=10 * tolerance), (
        "another choice gives other values"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine: not run")
def test_gathered_attention_and_choice_on_the_device_equal_the_cpu():
    ours, topk_indices = choice_inputs("cuda", torch.float32)
    theirs, _ = choice_inputs("cpu", torch.float32)
    assert torch.allclose(
        sparse_attention.sparse_attention(*ours, topk_indices, 0.3)[0].cpu(),
        sparse_attention.sparse_attention(*theirs, topk_indices.cpu(), 0.3)[0],
        atol=1e-3,
    )
    q, k, w = torch.randn(1, 40, 2, 8), torch.randn(1, 40, 8), torch.randn(1, 40, 2)
    there, here = indexer.select_topk(q.cuda(), k.cuda(), w.cuda(), 8).cpu(), indexer.select_topk(q, k, w, 8)
    assert torch.equal(there.sort(-1).values, here.sort(-1).values)


def test_a_block_mask_leaves_out_blocks_that_nobody_chose():
    topk_indices = torch.zeros(1, 256, 2, dtype=torch.int64)
    topk_indices[:, 128:] = 130
    blocks = gpu_kernels.block_mask(topk_indices, 384, block=128).to_dense()[0, 0].bool()
    assert blocks.tolist() == [[True, False, False], [False, True, False]]


def test_devices_that_are_not_there_are_refused_in_one_line():
    assert gpu_device.resolve("cpu") == "cpu"
    for name, word in (("cdua", "did you mean"), ("npu", "pip install torch_npu"), ("cuda", "--device cpu")):
        if name == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(InputError) as caught:
            gpu_device.resolve(name)
        assert word in str(caught.value) and "\n" not in str(caught.value)
