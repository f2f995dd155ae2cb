"""Kernels for an accelerator: what `minglm.model.moe` and attention use where a loop over experts or keys would starve
it.

    grouped_swiglu    all experts in two grouped matmuls, without asking the device how many tokens each got
    flex_attention_topk   sparse attention by FlexAttention, blocks without a chosen key skipped

The default sparse attention on an accelerator is that of `minglm.model.sparse_attention`: chosen latents are gathered
and attended to in batched matmuls, with larger chunks than on a CPU (`workspace.ACCELERATOR_CHUNK`). It reads k keys a
query whatever the length. FlexAttention skips whole 128×128 blocks only, so it wins where choices cluster.
Both equal the CPU reference in tests.

Not run on CUDA and not run on Ascend; the same functions are tested on CPU in fp32, where torch has them.

Shapes: N tokens, C hidden, E experts, K chosen experts, F expert width, B batch, T queries, S keys, H heads, k chosen
keys, R width of a latent key, L of its latent part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.model.sparse_attention import topk_mask

BLOCK = 128  # queries and keys to a block of FlexAttention


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """rows (M, in) sorted by expert, weights (E, in, out), ends (E,) int32 where each expert's rows end → (M, out).

    torch's grouped matmul where there is one (bf16 on CUDA, CPU); elsewhere a loop over experts.
    """
    native = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if (
        native is not None
        and rows.device.type in ("cuda", "cpu")
        and (rows.dtype == torch.bfloat16 or rows.device.type == "cpu")
    ):
        return native(rows, weights, offs=ends)
    parts = torch.tensor_split(rows, ends[:-1].tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])


def grouped_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gates: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """`minglm.model.moe.grouped_swiglu` without a wait: x (N, C), gate_up (E, 2F, C), down (E, C, F), gates and chosen
    (N, K) → output (N, C) and tokens per expert (E,) int64."""
    E, K = gate_up.shape[0], chosen.shape[1]
    order = torch.argsort(chosen.flatten(), stable=True)
    slots = torch.arange(E, device=x.device)
    counts = (chosen.flatten()[:, None] == slots).sum(0)
    ends = counts.cumsum(0).to(torch.int32)
    inner = grouped_mm(x[order // K], gate_up.mT, ends)  # (N·K, 2F)
    gate, up = inner.chunk(2, -1)
    out = grouped_mm(F.silu(gate) * up, down.mT, ends)  # (N·K, C)
    weighted = out * gates.flatten()[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, order // K, weighted), counts


def block_mask(topk_indices: Tensor, keys: int, block: int = BLOCK):
    """FlexAttention's block mask of a choice: a block is computed when any of its queries chose any of its keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    table = topk_mask(topk_indices, keys).contiguous()
    return create_block_mask(
        lambda b, h, q, s: table[b, q, s],
        topk_indices.shape[0],
        None,
        topk_indices.shape[1],
        keys,
        device=topk_indices.device,
        BLOCK_SIZE=block,
    )


def flex_attention_topk(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    up_k: Tensor,
    up_v: Tensor,
    topk_indices: Tensor,
    scale: float,
    compiled: bool | None = None,
) -> Tensor:
    """`minglm.model.sparse_attention.sparse_attention` by FlexAttention; arguments as there, values (B, T, H, Dv);
    gradients on an accelerator only, since torch has no backward of it on a CPU.

    Queries are absorbed, so that all heads share one key of R numbers (grouped-query attention with one group). The
    table of choices takes B·T·S bytes. compiled: fused kernel by torch.compile; default on an accelerator only.
    """
    from torch.nn.attention.flex_attention import flex_attention

    L = up_k.shape[-1]
    q = torch.cat((torch.einsum("bthn,hnl->bthl", q_nope, up_k), q_rope), -1).transpose(1, 2)  # (B, H, T, R)
    keys = latent.unsqueeze(1)  # (B, 1, S, R)
    attend = (
        torch.compile(flex_attention)
        if (topk_indices.device.type != "cpu" if compiled is None else compiled)
        else flex_attention
    )
    out = attend(
        q, keys, keys[..., :L], block_mask=block_mask(topk_indices, latent.shape[1]), scale=scale, enable_gqa=True
    )
    return torch.einsum("bhtl,hvl->bthv", out, up_v)
