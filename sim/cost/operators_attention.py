"""Operators of attention: grouped-query, and multi-head latent attention with DeepSeek's sparse indexer on top.

Symbols as in `sim.cost.operators`. Sources: flash attention's backward is five matmuls for two (arXiv 2307.08691); MLA
after DeepSeek-V2/V3 (arXiv 2412.19437 §2.1), the indexer after DeepSeek-V3.2.
"""

from __future__ import annotations

from sim.cost.operators import (
    ROPE,
    WIDTH,
    Op,
    OperatorTrace,
    ParallelContext,
    norm,
    normalise,
    residual,
    sequence_parallel_gather,
    sequence_parallel_scatter,
)
from sim.spec.model import ModelSpec

# Bytes a value of the output that one more step of ring attention costs: the step's piece is read, the sum read and
# written (bf16, in place; Transformer Engine's context_parallel.py). Steps behind the diagonal touch half of the rows,
# those before it all.
RING_BYTES = 6.0
RING_ROWS = 0.75
# Attention with learned sinks against plain flash attention, and no skipping of what a window hides: no measured kernel
# is at hand, so this is assumed.
SINK_SLOWDOWN = 2.5


def core_attention(
    trace: OperatorTrace,
    ctx: ParallelContext,
    heads: float,
    kv_heads: float,
    qk: float,
    v: float,
    window: int = 0,
    sinks: bool = False,
) -> None:
    """softmax(Q Kᵀ) V for `heads` local heads; causal kernels do half of the square, unfused ones all of it."""
    b, S, rows = ctx.micro_batch, ctx.seq, ctx.seq / ctx.cp
    style, start = trace.style, len(trace.forward)
    if style.attention == "flash":
        visible = (S + 1) / 2
        slow = SINK_SLOWDOWN if sinks else 1.0
        if window and window < S and not sinks:
            visible = (window * (window + 1) / 2 + (S - window) * window) / S
        flops = 2.0 * b * rows * visible * heads * (qk + v)
        size = b * rows * (heads * (qk + v) + kv_heads * (qk + v)) * WIDTH
        keys = min(S, 2 * visible)
        steps = ctx.cp if style.cp == "ring" else 1
        if steps > 1:  # each step multiplies as much as the causal square of this chip's rows: a kernel of that length
            keys = min(keys, rows)
        trace.forward.append(
            Op(
                "flash",
                "attention",
                "attention",
                flops,
                size,
                m=keys,
                n=v,
                k=qk,
                batch=b * heads,
                kernels=float(steps),
                slow=slow,
            )
        )
        # dQ, dK, dV, dP and the scores again: five matmuls for two.
        trace.backward_input.append(
            Op(
                "flash.backward",
                "attention",
                "attention",
                2.5 * flops,
                2.5 * size,
                m=keys,
                n=v,
                k=qk,
                batch=b * heads,
                kernels=3.0 * steps,
                backward=True,
                slow=slow,
            )
        )
        if steps > 1:
            merged = (steps - 1) * RING_ROWS * b * rows * RING_BYTES
            trace.memory(
                "ring merge",
                merged * heads * v,
                merged * (heads * qk + kv_heads * (qk + v)),
                group="attention",
                kernels=2 * (steps - 1),
                backward_kernels=3 * (steps - 1),
                save=0.0,
            )
        kept = b * rows * (heads * qk + kv_heads * (qk + v)) * WIDTH + 4.0 * b * rows * heads
        trace.save("flash", kept, "attention")
    else:
        square = b * heads * rows * S
        for name, inner, outer in (("scores", qk, S), ("values", S, v)):
            flops = 2.0 * b * heads * rows * inner * outer
            io = (square + b * heads * (rows + S) * (qk if name == "scores" else v)) * WIDTH
            trace.forward.append(Op(name, "attention", "matmul", flops, io, rows, outer, inner, b * heads))
            for part in ("a", "b"):
                trace.backward_input.append(
                    Op(
                        f"{name}.backward.{part}",
                        "attention",
                        "matmul",
                        flops,
                        io,
                        rows,
                        inner if part == "a" else outer,
                        outer if part == "a" else inner,
                        b * heads,
                        backward=True,
                    )
                )
        eager = style.fusion == "eager"
        passes = (6.0 if eager else 2.0) + (2.5 if style.dropout else 0.0)
        trace.memory(
            "softmax",
            passes * square * WIDTH,
            (passes + 1.0) * square * WIDTH,
            group="attention",
            kernels=4 if eager else 2,
            backward_kernels=4 if eager else 2,
        )
        trace.save("qkv", b * rows * (heads * qk + kv_heads * (qk + v)) * WIDTH, "attention")
        # scores after softmax, after dropout, and the mask: 2 + 2 + 1 bytes per entry (arXiv 2205.05198 eq. 1)
        trace.save("scores", square * ((2 * WIDTH + 1) if style.dropout else WIDTH))
    trace.core += trace.forward[start:]


def gqa(trace: OperatorTrace, ctx: ParallelContext, model: ModelSpec, window: int = 0) -> None:
    """Grouped-query attention (multi-head when kv_heads == heads), with its norm and residual."""
    C, D, t = model.hidden, model.head_dim, ctx.tp
    heads, kv = model.heads / t, max(model.kv_heads / t, 1.0)
    T = ctx.tokens
    norm(trace, ctx, C, model.norm)
    sequence_parallel_gather(trace, ctx, C)
    trace.linear("qkv", "linear", T, C, (heads + 2 * kv) * D, saved_input=ctx.tokens_sp * C * WIDTH)
    if model.qk_norm:
        normalise(trace, "head norm", T * (heads + kv) * D * WIDTH, times=2)  # of queries, of keys
    if not model.positions:  # rotary models; GPT-2-like ones add a learned position once
        f, b, kf, kb = ROPE[trace.style.fusion]
        size = T * (heads + kv) * D * WIDTH
        trace.memory("rope", f * size, b * size, kernels=kf, backward_kernels=kb)
    if ctx.cp > 1:
        size = ctx.micro_batch * ctx.seq * 2 * kv * D * WIDTH
        trace.message("cp.keys", "all_gather", size, "cp", hidden_by="attention")
        trace.message("cp.keys", "reduce_scatter", size, "cp", "backward_input", hidden_by="attention")
        trace.message("cp.keys", "all_gather", size, "cp", "backward_input", hidden_by="attention")
    core_attention(trace, ctx, heads, kv, D, D, window, model.sinks)
    trace.linear("proj", "linear", T, heads * D, C)
    sequence_parallel_scatter(trace, ctx, C)
    residual(trace, ctx, C)


def mla(trace: OperatorTrace, ctx: ParallelContext, model: ModelSpec, indexer: bool = True) -> None:
    """Multi-head latent attention, expanded as in training; with `index_topk` shorter than the sequence, DSA on top.

    Sparse attention runs absorbed (every head reads the shared latent, 576 wide scores and 512 wide values), because
    the
    chosen keys differ by query: DeepSeek-V3.2 §2.
    """
    C, t, T = model.hidden, ctx.tp, ctx.tokens
    H, qk, v, R = model.heads / t, model.nope + model.rope, model.v_dim, model.kv_lora
    q_in = model.q_lora or C
    local = ctx.tokens_sp
    norm(trace, ctx, C)
    kept = local * C * WIDTH
    if model.q_lora:
        trace.linear("q_a", "linear", local, C, model.q_lora, saved_input=kept)
    trace.linear("kv_a", "linear", local, C, R + model.rope, saved_input=0.0 if model.q_lora else kept)
    trace.memory(
        "latent norm",
        2.0 * local * (q_in + R) * WIDTH,
        3.0 * local * (q_in + R) * WIDTH,
        kernels=2,
        backward_kernels=4,
        save=local * (q_in + R) * WIDTH,
    )
    if t > 1 and ctx.sp:
        size = T * ((model.q_lora or C) + R + model.rope) * WIDTH
        trace.message("tp.gather", "all_gather", size, "tp", hidden_by="matmul")
        trace.message("tp.scatter", "reduce_scatter", size, "tp", "backward_input", "wgrad")
    elif t > 1:
        trace.message("tp.reduce", "all_reduce", T * C * WIDTH, "tp", "backward_input", "wgrad")
    trace.linear("q_b", "linear", T, q_in, H * qk, saved_input=T * q_in * WIDTH)
    f, b, kf, kb = ROPE[trace.style.fusion]
    size = T * H * qk * WIDTH  # rotate the rotary parts, put key parts together
    trace.memory("rope", 2 * f / 2 * size, 2 * b / 2 * size, kernels=kf + 1, backward_kernels=kb + 1)
    if ctx.cp > 1:
        size = ctx.micro_batch * ctx.seq * H * (qk + v) * WIDTH
        for phase, kind in (
            ("forward", "all_gather"),
            ("backward_input", "all_gather"),
            ("backward_input", "reduce_scatter"),
        ):
            trace.message("cp.keys", kind, size, "cp", phase, "attention")
    sparse = model.index_topk and ctx.seq > model.index_topk
    if model.index_topk:
        _indexer(trace, ctx, model, q_in, indexer)
    if sparse:
        S, k = ctx.seq, model.index_topk
        read = (k * (k + 1) / 2 + (S - k) * k) / S
        trace.linear("absorb q", "linear", T, model.nope, R, batch=H, low=False, saved_input=0.0)
        flops = 2.0 * T * read * H * (R + model.rope + R)
        gathered = T * read * (R + model.rope) * WIDTH
        trace.forward.append(
            Op("sparse attention", "attention", "sparse", flops, gathered + 2 * T * H * R * WIDTH, m=read, k=R)
        )
        trace.backward_input.append(
            Op(
                "sparse attention.backward",
                "attention",
                "sparse",
                2.5 * flops,
                3 * gathered + 5 * T * H * R * WIDTH,
                m=read,
                k=R,
                kernels=3.0,
                backward=True,
            )
        )
        trace.save("flash", T * H * (R + model.rope) * WIDTH + T * (R + model.rope) * WIDTH + T * k * 4.0)
        trace.linear("absorb v", "linear", T, R, v, batch=H, low=False)
    else:
        trace.linear("kv_b", "linear", T, R, H * (model.nope + v), saved_input=T * R * WIDTH)
        core_attention(trace, ctx, H, H, qk, v)
    trace.linear("proj", "linear", T, H * v, C)
    sequence_parallel_scatter(trace, ctx, C)
    residual(trace, ctx, C)


def _indexer(trace: OperatorTrace, ctx: ParallelContext, model: ModelSpec, q_in: float, full: bool) -> None:
    """DSA's lightning indexer: I = Σ_j w_j ReLU(q_j · k) over every visible key, then top-k. Replicated over TP."""
    if not full:
        return
    T, n, d = ctx.tokens, model.index_heads, model.index_dim
    trace.linear("index q", "indexer", T, q_in, n * d, saved_input=0.0)
    trace.linear("index k", "indexer", T, model.hidden, d, saved_input=0.0)
    trace.linear("index w", "indexer", T, model.hidden, n, low=False, saved_input=0.0)
    visible = (ctx.seq + 1) / 2
    flops = 2.0 * T * visible * n * (d + 1)
    trace.forward.append(Op("index scores", "indexer", "sparse", flops, T * n * d + 4.0 * T * visible, m=ctx.seq, k=d))
    trace.memory("index top-k", 3 * 4.0 * T * visible, 0.0, group="indexer", kernels=2)
