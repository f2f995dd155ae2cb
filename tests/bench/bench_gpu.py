"""Training and attention on a GPU: tokens/s, MFU, against transformers, and sparse against dense attention from 4K to
64K.

Not run: no GPU has been at hand. Without one it says so and has no rows with a target.
"""

from __future__ import annotations

import statistics
import time

from minglm.model import indexer

NAME = "gpu"
LENGTHS = (4096, 8192, 16384, 32768, 65536)
TOPK, REPEATS = 2048, 5
MFU_TARGET, SPARSE_FROM = 0.4, 16384


def _row(name, value, unit, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "target": target, "met": met}


def _seconds(work) -> float:
    import torch

    def once() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    once(), once()
    return statistics.median(once() for _ in range(REPEATS))


def run() -> list[dict]:
    import torch

    if not torch.cuda.is_available():
        return [_row("skipped: no CUDA device on this machine, nothing was measured", None, "")]
    return _training() + [row for length in LENGTHS for row in _attention(length)]


def _training() -> list[dict]:
    """Forward and backward of `small`, 8 rows of 2048, ours in bf16 weights and transformers' under the same dtype."""
    import torch

    from minglm.config import ModelConfig
    from minglm.model.model import Model
    from minglm.runtime import machine

    config, B, T = ModelConfig.named("small"), 8, 2048
    tokens = torch.randint(0, config.vocab_size, (B, T), device="cuda")
    model = Model(config).to("cuda", torch.bfloat16)

    def ours() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens, tokens.roll(-1, 1), mode="dense", mtp=False).lm_loss.backward()

    mine = B * T / _seconds(ours)
    mfu = mine * config.train_flops_per_token(T, sparse=False) / machine.matmul_flops_per_s("bf16", "cuda")
    rows = [
        _row(f"small, dense, {B} rows of {T}: forward and backward, bf16", mine, "tokens/s"),
        _row("small: MFU, of the measured bf16 matmul rate", mfu, "", target=MFU_TARGET, met=mfu >= MFU_TARGET),
    ]
    try:
        from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
    except ImportError:
        return [*rows, _row("skipped: transformers is not installed", None, "")]
    theirs_model = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**config.to_hf())).to("cuda", torch.bfloat16)

    def theirs() -> None:
        theirs_model.zero_grad(set_to_none=True)
        theirs_model(input_ids=tokens, labels=tokens).loss.backward()

    other = B * T / _seconds(theirs)
    return [*rows, _row("transformers' glm_moe_dsa, the same", other, "tokens/s", ratio=mine / other)]


def _attention(length: int) -> list[dict]:
    """Forward and backward of one attention layer with GLM-5's latent widths and 16 heads: choice and sparse, against
    flash dense."""
    import torch
    import torch.nn.functional as F

    from minglm.model import sparse_attention

    H, nope, rope, L, Dv, Hi, Di = 16, 192, 64, 512, 256, 8, 128
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.1  # noqa: E731
    q_nope, q_rope, latent = (
        make(1, length, H, nope).requires_grad_(),
        make(1, length, H, rope).requires_grad_(),
        make(1, length, L + rope).requires_grad_(),
    )
    up_k, up_v = make(H, nope, L).requires_grad_(), make(H, Dv, L).requires_grad_()
    q_i, k_i, w_i = make(1, length, Hi, Di), make(1, length, Di), make(1, length, Hi).float()
    q, k, v = (make(1, H, length, nope + rope).requires_grad_() for _ in range(3))

    def sparse() -> None:
        topk_indices = indexer.select_topk(q_i, k_i, w_i, TOPK)
        sparse_attention.sparse_attention(q_nope, q_rope, latent, up_k, up_v, topk_indices, 0.06)[0].sum().backward()

    def dense() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    a, b = _seconds(sparse), _seconds(dense)
    wanted = length >= SPARSE_FROM
    return [
        _row(f"flash dense attention, {length} tokens", length / b, "tokens/s"),
        _row(
            f"indexer's choice and sparse attention, {length} tokens, {TOPK} keys",
            length / a,
            "tokens/s",
            ratio=b / a,
            target=1.0 if wanted else None,
            met=b > a if wanted else None,
        ),
    ]
