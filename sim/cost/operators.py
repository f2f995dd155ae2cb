"""What one layer does to one micro-batch on one chip: every matmul, attention kernel, memory pass and collective.

A `OperatorTrace` records operators in the order of the forward pass, each with its two backward parts (gradient of the
input, gradient of the weight) and the bytes it keeps for the backward pass. Nothing here knows a chip or a link:
`kernels` gives the operators a time, `collectives` the messages.

Symbols: T tokens on this chip before tensor parallelism (micro-batch × sequence / CP), C hidden, H heads, D head width,
S key positions, E experts, K chosen, V vocabulary, t tensor-parallel width, w bytes per activation.
Sources: operator list of Megatron-LM (arXiv 1909.08053, 2205.05198 §4), DeepSeek-V2/V3 for MLA (arXiv 2412.19437 §2.1),
DeepSeek-V3.2 for DSA; activation bytes after arXiv 2205.05198 eq. 1–6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

WIDTH = 2  # bytes of an activation or weight in bf16/fp16
ACCUMULATE = 4  # bytes of an accumulated gradient (fp32)
# Host time to quantise one expert's rows where experts are a loop, over that of an operator issued from Python: a few
# launches from C++ (assumed, range 0.2 to 1).
CAST_LAUNCH = 0.5


class Op(NamedTuple):
    """One kernel (or `batch` equal ones in one launch). Bytes are what must cross HBM.

    m, n, k: a matmul's sides; of attention its keys, the width of its values, the width of its scores, and `batch` is
    heads × sequences.
    """

    name: str
    group: str  # class for the breakdown: linear, attention, expert, vocabulary, elementwise, ...
    kind: str  # matmul | attention | sparse (DSA's attention and scores) | memory
    flops: float
    bytes: float
    m: float = 0.0
    n: float = 0.0
    k: float = 0.0
    batch: float = 1.0
    low: bool = False  # runs in fp8 when the recipe says so (linear layers only)
    kernels: float = 1.0  # launches
    backward: bool = False
    loop: bool = False  # the batch is a loop of single matmuls on a few streams, not one grouped kernel
    slow: float = 1.0  # an attention variant's time over that of plain attention (sinks)


class Message(NamedTuple):
    """One collective. `bytes`: the whole buffer that is reduced or gathered; for all-to-all what one chip sends."""

    name: str
    kind: str  # all_reduce | all_gather | reduce_scatter | all_to_all | p2p
    bytes: float
    group: str  # tp | cp | ep | etp
    phase: str  # forward | backward_input | backward_weight
    hidden_by: str = "none"  # none | matmul (pipelined with its matmul) | wgrad | attention | schedule
    dedup: float = 1.0  # expert dispatch: copies per token that cross nodes / copies per token in all


@dataclass(frozen=True)
class Style:
    """How a software stack runs the same mathematics."""

    attention: str = "flash"  # flash | unfused
    fusion: str = "fused"  # fused | eager | compiled
    loss: str = "fused"  # a key of LOSSES: how cross-entropy runs
    dropout: bool = False
    cp: str = "ring"  # context parallelism: ring (keys pass by piece by piece) | gather (all keys, then one kernel)
    fp8: bool = False
    fp8_passes: float = 2.0  # extra memory passes (in bf16 widths) per fp8 operand for scaling and transposing
    accumulate_fused: bool = True  # gradient accumulation inside the weight-gradient matmul
    node_limited: float = 0.0  # most nodes a token's experts may lie on (0: no limit)
    dedup: bool = False  # one copy a node crosses the network, one a chip its links (DeepEP style)
    imbalance: float = 1.0  # slowest rank's tokens / mean tokens in expert layers
    grouped: str = "fused"  # expert matmuls: fused (one grouped kernel) | joined (activation inside) | loop
    router_passes: float = 6.0  # memory passes over tokens × experts (softmax/sigmoid, top-k, losses) in fp32
    router_fused: bool = True  # scores, choice and balancing loss in a few kernels, not operator by operator
    counts_apart: bool = False  # token counts and gates travel beside the rows, where no dispatcher packs them (dedup)


@dataclass(frozen=True)
class ParallelContext:
    """The part of a micro-batch and of the weights that one chip holds."""

    micro_batch: int
    seq: int
    tp: int = 1
    sp: bool = False
    cp: int = 1
    ep: int = 1
    etp: int = 1
    nodes: float = 1.0  # nodes that an expert-parallel group spans

    @property
    def tokens(self) -> float:
        """T: tokens of one micro-batch on this chip before tensor parallelism."""
        return self.micro_batch * self.seq / self.cp

    @property
    def tokens_sp(self) -> float:
        """T, divided by t where sequence parallelism cuts it."""
        return self.tokens / (self.tp if self.sp else 1)


@dataclass
class OperatorTrace:
    """Operators in forward order. Activation bytes are kept by what recomputation may drop: `saved[part]`."""

    style: Style
    forward: list[Op] = field(default_factory=list)
    backward_input: list[Op] = field(default_factory=list)
    backward_weight: list[Op] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    saved: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)  # the same bytes by the operator that keeps them
    outputs: float = 0.0  # bytes of all matmul outputs (selective checkpointing keeps half)
    core: list[Op] = field(default_factory=list)  # what selective recomputation runs again (core attention)

    def save(self, part: str, size: float, name: str | None = None) -> None:
        """Save `size` bytes of activations for the backward pass, of the operator `name` where one is given."""
        self.saved[part] = self.saved.get(part, 0.0) + size
        self.kept[name or part] = self.kept.get(name or part, 0.0) + size

    def linear(  # noqa: PLR0913 (each says something else of one matmul)
        self,
        name: str,
        group: str,
        tokens: float,
        n_in: float,
        n_out: float,
        batch: float = 1.0,
        low: bool = True,
        saved_input: float | None = None,
        loop: bool = False,
    ) -> None:
        """y = x W for `tokens` rows (per item of `batch`). `saved_input`: bytes kept (default: the input itself)."""
        launches = batch if loop else 1.0
        size, io = n_in * n_out * batch, batch * tokens * (n_in + n_out) * WIDTH
        flops = 2.0 * tokens * size
        low = low and self.style.fp8
        extra = self.style.fp8_passes * WIDTH * batch * tokens if low else 0.0
        self.forward.append(
            Op(name, group, "matmul", flops, io + size * WIDTH, tokens, n_out, n_in, batch, low, launches, False, loop)
        )
        self.backward_input.append(
            Op(
                name + ".dgrad",
                group,
                "matmul",
                flops,
                io + size * WIDTH,
                tokens,
                n_in,
                n_out,
                batch,
                low,
                launches,
                True,
                loop,
            )
        )
        fused = self.style.accumulate_fused
        self.backward_weight.append(
            Op(
                name + ".wgrad",
                group,
                "matmul",
                flops,
                io + size * (2 * ACCUMULATE if fused else WIDTH),
                n_in,
                n_out,
                tokens,
                batch,
                low,
                launches,
                True,
                loop,
            )
        )
        if not fused:
            self.backward_weight.append(
                Op(
                    name + ".accumulate",
                    "elementwise",
                    "memory",
                    0.0,
                    size * (WIDTH + 2 * ACCUMULATE),
                    kernels=1.0,
                    backward=True,
                )
            )
        if low:
            casts = 1.0 + CAST_LAUNCH * batch if loop else 2.0 if batch > 1 else 1.0
            self.forward.append(Op(name + ".cast", "elementwise", "memory", 0.0, extra * n_in, kernels=casts))
            self.backward_input.append(
                Op(name + ".cast", "elementwise", "memory", 0.0, extra * n_out, kernels=casts, backward=True)
            )
        self.save("linear", batch * tokens * n_in * WIDTH if saved_input is None else saved_input, name)
        self.outputs += batch * tokens * n_out * WIDTH

    def memory(
        self,
        name: str,
        forward: float,
        backward: float,
        group: str = "elementwise",
        kernels: float = 1.0,
        backward_kernels: float | None = None,
        save: float = 0.0,
        part: str = "elementwise",
    ) -> None:
        """A pass over memory: `forward` and `backward` bytes."""
        if forward:
            self.forward.append(Op(name, group, "memory", 0.0, forward, kernels=kernels))
        if backward:
            self.backward_input.append(
                Op(
                    name + ".backward",
                    group,
                    "memory",
                    0.0,
                    backward,
                    kernels=kernels if backward_kernels is None else backward_kernels,
                    backward=True,
                )
            )
        if save:
            self.save(part, save, name)

    def message(
        self,
        name: str,
        kind: str,
        size: float,
        group: str,
        phase: str = "forward",
        hidden_by: str = "none",
        dedup: float = 1.0,
    ) -> None:
        """A collective of `size` bytes, left out where there is nothing to send."""
        if size > 0:
            self.messages.append(Message(name, kind, size, group, phase, hidden_by, dedup))


# ------------------------------------------------------------------ pieces that every layer shares

# Passes over [T, C] (forward, backward) and launches (forward, backward), by fusion.
# fused: one kernel reads and writes once; compiled: same traffic, residual joined to the norm; eager: an op per kernel.
# Eager RMSNorm is six operators through fp32 copies; LayerNorm is one kernel everywhere.
_NORM = {
    "fused": (2.0, 3.0, 1, 2),
    "compiled": (2.0, 3.0, 1, 2),
    "eager": (16.0, 20.0, 6, 9),
    "eager layer": (2.0, 4.0, 1, 2),
}
_RESIDUAL = {"fused": (3.0, 1.0, 1, 1), "compiled": (2.0, 1.0, 0.5, 0.5), "eager": (3.0, 1.0, 1, 1)}
_ACTIVATION = {
    "fused": (1.0, 1.0, 1, 1),
    "compiled": (1.0, 1.0, 1, 1),
    "eager": (5 / 3, 8 / 5, 2, 3),
    "eager plain": (1.0, 1.0, 1, 1),
}
ROPE = {"fused": (2.0, 2.0, 2, 2), "compiled": (2.0, 2.0, 1, 1), "eager": (6.0, 6.0, 8, 10)}


def norm(trace: OperatorTrace, ctx: ParallelContext, hidden: float, kind: str = "rms") -> None:
    """RMSNorm or LayerNorm over [T, C]."""
    normalise(trace, "norm", ctx.tokens_sp * hidden * WIDTH, kind)


def normalise(trace: OperatorTrace, name: str, size: float, kind: str = "rms", times: int = 1) -> None:
    """RMSNorm or LayerNorm over `size` bytes, in so many launches of each of its kernels."""
    eager = trace.style.fusion == "eager"
    f, b, kf, kb = _NORM["eager layer" if eager and kind == "layer" else trace.style.fusion]
    trace.memory(name, f * size, b * size, kernels=times * kf, backward_kernels=times * kb, save=size)


def residual(trace: OperatorTrace, ctx: ParallelContext, hidden: float) -> None:
    """Add to the residual stream, with dropout where the stack has it."""
    f, b, kf, kb = _RESIDUAL[trace.style.fusion]
    size = ctx.tokens_sp * hidden * WIDTH
    extra = 0.5 * size if trace.style.dropout else 0.0  # one byte of mask per value
    trace.memory(
        "residual",
        f * size + extra,
        b * size + extra + (size if trace.style.dropout else 0.0),
        kernels=kf,
        backward_kernels=kb,
        save=extra,
    )


def sequence_parallel_gather(trace: OperatorTrace, ctx: ParallelContext, hidden: float) -> None:
    """Into a tensor-parallel region: all-gather of the sequence (SP) or nothing; the conjugate in the backward pass."""
    if ctx.tp == 1:
        return
    size = ctx.tokens * hidden * WIDTH
    if ctx.sp:
        trace.message("tp.gather", "all_gather", size, "tp", hidden_by="matmul")
        trace.message(
            "tp.regather", "all_gather", size, "tp", "backward_input", "wgrad"
        )  # input again, for the weight gradient
        trace.message("tp.scatter", "reduce_scatter", size, "tp", "backward_input", "wgrad")
    else:
        trace.message("tp.reduce", "all_reduce", size, "tp", "backward_input", "wgrad")


def sequence_parallel_scatter(trace: OperatorTrace, ctx: ParallelContext, hidden: float) -> None:
    """Out of a tensor-parallel region: reduce-scatter (SP) or all-reduce; all-gather of the gradient when SP."""
    if ctx.tp == 1:
        return
    size = ctx.tokens * hidden * WIDTH
    if ctx.sp:
        trace.message("tp.scatter", "reduce_scatter", size, "tp", hidden_by="matmul")
        trace.message("tp.gather", "all_gather", size, "tp", "backward_input", "matmul")
    else:
        trace.message("tp.reduce", "all_reduce", size, "tp", hidden_by="none")


def activation(
    trace: OperatorTrace, tokens: float, ffn: float, gated: bool, save: bool = True, name: str = "activation"
) -> None:
    """SwiGLU (gated) or GELU between the matrices of a feed-forward block."""
    eager = trace.style.fusion == "eager"
    f, b, kf, kb = _ACTIVATION["eager plain" if eager and not gated else trace.style.fusion]
    size = tokens * ffn * WIDTH
    trace.memory(
        name,
        f * size * (3 if gated else 2),
        b * size * (5 if gated else 3),
        kernels=kf,
        backward_kernels=kb,
        save=size * (2 if gated else 1) if save else 0.0,
    )


def dense_ffn(
    trace: OperatorTrace, ctx: ParallelContext, hidden: float, ffn: float, gated: bool, kind: str = "rms"
) -> None:
    """Feed-forward block with its norm and residual."""
    T, t = ctx.tokens, ctx.tp
    norm(trace, ctx, hidden, kind)
    sequence_parallel_gather(trace, ctx, hidden)
    trace.linear(
        "ffn up", "linear", T, hidden, ffn * (2 if gated else 1) / t, saved_input=ctx.tokens_sp * hidden * WIDTH
    )
    activation(trace, T, ffn / t, gated)
    trace.linear("ffn down", "linear", T, ffn / t, hidden)
    sequence_parallel_scatter(trace, ctx, hidden)
    residual(trace, ctx, hidden)


# Cross-entropy: bytes per logit forward and backward, launches of each pass. fused: bf16 read twice, written once, each
# way. torch: cast to fp32, log-softmax, and back. unfused: Megatron's vocabulary-parallel loss, an fp32 pass per step
# (max, subtract, exp, sum, divide). chunked: torch's, one chunk of tokens after the other from the projection to its
# gradient. liger: the same with one kernel that writes the gradient over the logits in the forward pass.
LOSSES = {
    "fused": (6.0, 6.0, 3),
    "torch": (14.0, 18.0, 12),
    "unfused": (38.0, 14.0, 12),
    "chunked": (14.0, 18.0, 12),
    "liger": (6.0, 0.0, 3),
}
LOSS_CHUNKS = 8  # of `chunked`: what torchtune and torchtitan take by default


def loss_chunks(loss: str, tokens: float, hidden: float, vocab: float) -> int:
    """Chunks of tokens whose logits are there one after the other: 1, a fixed number, or Liger's.

    Liger-Kernel (fused_linear_cross_entropy.py, arXiv 2410.10989 §3.2) makes a chunk's logits about as large as the
    hidden states: the next power of two of T / ⌈V/C⌉ tokens.
    """
    if loss == "chunked":
        return LOSS_CHUNKS
    if loss != "liger":
        return 1
    rows = 2 ** math.ceil(math.log2(max(1, math.ceil(tokens / math.ceil(vocab / hidden)))))
    return math.ceil(tokens / rows)


def vocabulary(trace: OperatorTrace, ctx: ParallelContext, hidden: float, vocab: float) -> None:
    """Final norm, logits and cross-entropy; the logits never run in fp8."""
    T, n = ctx.tokens, vocab / ctx.tp
    norm(trace, ctx, hidden)
    sequence_parallel_gather(trace, ctx, hidden)
    chunks = loss_chunks(trace.style.loss, T, hidden, n)
    kept = ctx.tokens_sp * hidden * WIDTH
    # every chunk reads the table again, and adds to its gradient
    trace.linear(
        "logits", "vocabulary", T / chunks, hidden, n, batch=chunks, low=False, saved_input=kept, loop=chunks > 1
    )
    forward, backward, launches = LOSSES[trace.style.loss]
    trace.memory(
        "loss" if trace.style.loss == "fused" else "loss passes",
        forward * T * n,
        backward * T * n,
        group="vocabulary",
        kernels=launches * chunks,
        save=T * n / chunks * (WIDTH if trace.style.loss in ("fused", "liger") else 4 + WIDTH),
        part="logits",
    )


def embedding(trace: OperatorTrace, ctx: ParallelContext, hidden: float, vocab: float) -> None:
    """Row lookup; its gradient is a scatter-add and one pass over the table."""
    size = ctx.tokens * hidden * WIDTH
    trace.memory(
        "embedding",
        2 * size,
        4 * size + vocab / ctx.tp * hidden * (WIDTH + ACCUMULATE),
        group="vocabulary",
        kernels=2,
    )
    if ctx.tp > 1:
        trace.message("tp.embedding", "reduce_scatter" if ctx.sp else "all_reduce", size, "tp")
