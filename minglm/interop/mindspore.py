"""The model of `minglm.model.model` in MindSpore, in one file: MLA, the lightning indexer, experts,
multi-token prediction.

It reads the same `ModelConfig` and the same safetensors under the same names, and gives the same logits, losses and
gradients (`make test-mindspore`). Nothing else in the project imports this file; MindSpore is not part of the default
install. What differs from the torch model is what a static graph asks for:

- every shape is known beforehand, so each expert computes every token and a gate of zero removes what it was not chosen
  for: E/K times the arithmetic of the torch model, which sorts tokens by expert;
- the indexer's choice always has min(index_topk, S) places, empty ones masked;
- no cache, no packed documents: this is a training step, not a server.

Shapes: B batch, T positions, H heads, L latent width, R = L + rope, Hi/Di indexer heads and width, k chosen keys,
E experts, K chosen experts, C hidden, F expert width, V vocabulary, N = B·T.
"""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest

LATENT_EPS, IGNORE = 1e-6, -100
FAR = -1e30  # a masked score: finite, because MindSpore's softmax gradient turns -inf into NaN


def _weight(*shape: int, value: float | None = None, learn: bool = True) -> Parameter:
    data = (
        np.full(shape, value, np.float32)
        if value is not None
        else np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    )
    return Parameter(Tensor(data), name="weight", requires_grad=learn)


class Linear(nn.Cell):
    """(…, I) → (…, O), no bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = _weight(outputs, inputs)

    def construct(self, x):
        """(…, I) → (…, O)."""
        return ops.matmul(x, ops.transpose(self.weight, (1, 0)))


class Embedding(nn.Cell):
    """(B, T) → (B, T, C)."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = _weight(rows, width)

    def construct(self, tokens):
        """(B, T) → (B, T, C)."""
        return ops.gather(self.weight, tokens, 0)


class RMSNorm(nn.Cell):
    """x / rms(x) · weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = _weight(width, value=1.0), eps

    def construct(self, x):
        """(…, C) → (…, C)."""
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + self.eps) * self.weight


class LayerNorm(nn.Cell):
    """The indexer key's norm, with a bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = _weight(width, value=1.0)
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)), name="bias")

    def construct(self, x):
        """(…, Di) → (…, Di)."""
        x = x - ops.mean(x, -1, True)
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + LATENT_EPS) * self.weight + self.bias


class SwiGLU(nn.Cell):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            Linear(hidden, width),
            Linear(hidden, width),
            Linear(width, hidden),
        )

    def construct(self, x):
        """(…, C) → (…, C)."""
        return self.down_proj(ops.silu(self.gate_proj(x)) * self.up_proj(x))


def rope(x, cos, sin):
    """Rotate pairs (x0,x1), (x2,x3), … of the last axis: x (B, T, D) or (B, T, H, D), cos and sin (T, D/2)."""
    if x.ndim == 4:
        cos, sin = ops.expand_dims(cos, 1), ops.expand_dims(sin, 1)
    pairs = x.reshape(x.shape[:-1] + (x.shape[-1] // 2, 2))  # noqa: RUF005  (graph mode compiles this source)
    a, b = pairs[..., 0], pairs[..., 1]
    return ops.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)


def kl_divergence(p, scores, seen):
    """Mean over queries of KL(p ‖ softmax(scores)) over the keys that `seen` marks: all (B, T, keys)."""
    log_q = ops.log_softmax(ops.where(seen, scores, Tensor(FAR, ms.float32)), -1)
    safe = ops.where(p > 0, p, ops.ones_like(p))
    terms = ops.where(seen, p * (ops.log(safe) - log_q), ops.zeros_like(p))
    return terms.sum() / (p.shape[0] * p.shape[1])


class Indexer(nn.Cell):
    """Scores of every query against every key, (B, T, S); its inputs carry no gradient."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.width, self.rope_width = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width)
        self.wk, self.k_norm = Linear(config.hidden_size, self.width), LayerNorm(self.width)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def construct(self, x, q_latent, cos, sin):
        """x (B, T, C), q_latent (B, T, q_lora) → scores (B, T, S), not masked."""
        B, T, r = x.shape[0], x.shape[1], self.rope_width
        x, q_latent = ops.stop_gradient(x), ops.stop_gradient(q_latent)
        q, k = self.wq_b(q_latent).reshape(B, T, self.heads, self.width), self.k_norm(self.wk(x))
        q = ops.concat((rope(q[..., :r], cos, sin), q[..., r:]), -1)
        k = ops.concat((rope(k[..., :r], cos, sin), k[..., r:]), -1)
        w = self.weights_proj(x) * (self.heads * self.width) ** -0.5  # (B, T, Hi)
        dots = ops.relu(ops.matmul(q.swapaxes(1, 2), ops.expand_dims(k.swapaxes(1, 2), 1)))  # (B, Hi, T, S)
        return (dots * ops.expand_dims(w.swapaxes(1, 2), -1)).sum(1)


def choose(scores, seen, k: int):
    """The k best visible keys of each query, equal scores to the lowest position: (B, T, S) → positions (B, T, k);
    S, one past the last, for none."""
    S = scores.shape[-1]
    scores = ops.where(seen, scores, Tensor(FAR, ms.float32))
    edge = ops.topk(scores, k, -1)[0][..., -1:]
    above = ops.logical_and(scores > edge, seen).astype(ms.float32)
    equal = ops.logical_and(scores == edge, seen).astype(ms.float32)
    room = k - above.sum(-1, keepdims=True)
    taken = above + equal * (ops.cumsum(equal, -1) <= room).astype(ms.float32)
    countdown = S - ops.arange(S).astype(ms.float32)  # S for the first position, 1 for the last
    return (S - ops.topk(taken * countdown, k, -1)[0]).astype(ms.int32)  # untaken: S - 0 = S


class MLA(nn.Cell):
    """Attention of one layer: absorbed over the chosen latents ("sparse"), or over every visible one ("dense")."""

    def __init__(self, config: ModelConfig, full: bool):
        super().__init__()
        C, H, L = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        self.num_heads, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim, self.kv_lora_rank = (
            H,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            L,
        )
        self.topk, self.scale, self.full = config.index_topk, config.qk_head_dim**-0.5, full
        self.q_a_proj, self.q_a_layernorm = Linear(C, config.q_lora_rank), RMSNorm(config.q_lora_rank, LATENT_EPS)
        self.q_b_proj = Linear(config.q_lora_rank, H * config.qk_head_dim)
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = Linear(C, L + self.qk_rope_head_dim), RMSNorm(L, LATENT_EPS)
        self.kv_b_proj, self.o_proj = (
            Linear(L, H * (self.qk_nope_head_dim + self.v_head_dim)),
            Linear(H * self.v_head_dim, C),
        )
        if full:
            self.indexer = Indexer(config)

    def construct(self, x, cos, sin, mode, topk_indices):
        """x (B, T, C) → output (B, T, C), the indexer's KL (0 when it did not run) and the choice for "shared"
        layers."""
        B, T, H = x.shape[0], x.shape[1], self.num_heads
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(q_latent).reshape(B, T, H, self.qk_nope_head_dim + self.qk_rope_head_dim)
        kv = self.kv_a_proj_with_mqa(x)
        latent = ops.concat(
            (self.kv_a_layernorm(kv[..., : self.kv_lora_rank]), rope(kv[..., self.kv_lora_rank :], cos, sin)), -1
        )  # (B, T, R)
        up = self.kv_b_proj.weight.reshape(H, self.qk_nope_head_dim + self.v_head_dim, self.kv_lora_rank)
        up_k, up_v = up[:, : self.qk_nope_head_dim], up[:, self.qk_nope_head_dim :]
        absorbed = ops.matmul(q[..., : self.qk_nope_head_dim].swapaxes(1, 2), up_k)  # (B, H, T, L)
        q = ops.concat((absorbed, rope(q[..., self.qk_nope_head_dim :], cos, sin).swapaxes(1, 2)), -1)  # (B, H, T, R)

        positions = ops.arange(T)
        seen = ops.broadcast_to(
            ops.expand_dims(ops.expand_dims(positions, 0) <= ops.expand_dims(positions, 1), 0), (B, T, T)
        )
        scores_i = self.indexer(x, q_latent, cos, sin) if self.full and mode == "sparse" else None
        if mode == "sparse" and self.topk < T:
            if scores_i is not None:
                topk_indices = choose(ops.stop_gradient(scores_i), seen, self.topk)
            seen = topk_indices < T  # (B, T, k)
            place = ops.where(seen, topk_indices, ops.zeros_like(topk_indices))
            rows = (place + (ops.arange(B) * T).astype(ms.int32).reshape(B, 1, 1)).reshape(-1)
            keys = ops.gather(latent.reshape(B * T, -1), rows, 0).reshape(B, T, self.topk, -1)  # (B, T, k, R)
            scores = ops.matmul(q.swapaxes(1, 2), keys.swapaxes(2, 3)) * self.scale  # (B, T, H, k)
            probs = ops.softmax(ops.where(ops.expand_dims(seen, 2), scores, Tensor(FAR, ms.float32)), -1)
            p, values = probs.mean(2), ops.matmul(probs, keys[..., : self.kv_lora_rank]).swapaxes(1, 2)  # (B, H, T, L)
            if scores_i is not None:
                scores_i = ops.gather_elements(scores_i, 2, place)
        else:
            scores = ops.matmul(q, ops.expand_dims(latent.swapaxes(1, 2), 1)) * self.scale  # (B, H, T, S)
            probs = ops.softmax(ops.where(ops.expand_dims(seen, 1), scores, Tensor(FAR, ms.float32)), -1)
            p, values = probs.mean(1), ops.matmul(probs, ops.expand_dims(latent[..., : self.kv_lora_rank], 1))
        kl = Tensor(0.0, ms.float32)
        if scores_i is not None:
            kl = kl_divergence(ops.stop_gradient(p), scores_i, seen)
        out = ops.matmul(values, up_v.swapaxes(1, 2)).swapaxes(1, 2).reshape(B, T, H * self.v_head_dim)
        return self.o_proj(out), kl, topk_indices


class Router(nn.Cell):
    """Sigmoid scores; the bias chooses, the raw scores weigh."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.k, self.scale, self.E = config.num_experts_per_tok, config.routed_scaling_factor, config.n_routed_experts
        self.weight = _weight(self.E, config.hidden_size)
        self.e_score_correction_bias = Parameter(
            Tensor(np.zeros(self.E, np.float32)), name="e_score_correction_bias", requires_grad=False
        )

    def construct(self, x):
        """x (N, C) → gate of every expert, 0 where not chosen (N, E); scores (N, E); chosen as ones (N, E)."""
        scores = ops.sigmoid(ops.matmul(x, ops.transpose(self.weight, (1, 0))))
        index = ops.topk(ops.stop_gradient(scores) + self.e_score_correction_bias, self.k, -1)[1]
        chosen = (ops.expand_dims(index, -1) == ops.arange(self.E)).astype(ms.float32).sum(1)
        gates = scores * chosen
        return gates * (self.scale / (gates.sum(-1, keepdims=True) + 1e-20)), scores, chosen


class Experts(nn.Cell):
    """Stacked weights; every expert computes every token, its gate decides what counts."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, C, F = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.F = F
        self.gate_up_proj, self.down_proj = _weight(E, 2 * F, C), _weight(E, C, F)
        self.gate_up_proj.name, self.down_proj.name = "gate_up_proj", "down_proj"

    def construct(self, x, gates):
        """x (N, C), gates (N, E), 0 for experts not chosen → (N, C)."""
        inner = ops.matmul(ops.expand_dims(x, 0), self.gate_up_proj.swapaxes(1, 2))  # (E, N, 2F)
        hidden = (
            ops.silu(inner[..., : self.F]) * inner[..., self.F :] * ops.expand_dims(ops.transpose(gates, (1, 0)), -1)
        )
        return ops.matmul(hidden, self.down_proj.swapaxes(1, 2)).sum(0)


class MoE(nn.Cell):
    """Router, routed experts, shared expert."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate, self.experts, self.K = Router(config), Experts(config), config.num_experts_per_tok
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared = shared > 0
        if self.shared:
            self.shared_experts = SwiGLU(config.hidden_size, shared)

    def construct(self, x):
        """x (B, T, C) → output (B, T, C) and the balance loss (DeepSeek-V3 eq. 17-20)."""
        B, T, C = x.shape
        flat = x.reshape(B * T, C)
        gates, scores, chosen = self.gate(flat)
        out = self.experts(flat, gates)
        if self.shared:
            out = out + self.shared_experts(flat)
        share = (scores / (scores.sum(-1, keepdims=True) + 1e-20)).reshape(B, T, -1).mean(1)
        load = chosen.reshape(B, T, -1).sum(1) * (scores.shape[-1] / (self.K * T))
        return out.reshape(B, T, C), (load * share).sum(-1).mean()


class Layer(nn.Cell):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, full: bool, experts: bool):
        super().__init__()
        self.experts = experts
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, full)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if experts else SwiGLU(config.hidden_size, config.intermediate_size)

    def construct(self, x, cos, sin, mode, topk_indices):
        """x (B, T, C) and what the last full layer chose → x, indexer KL, balance loss,
        and what the next layer may share."""
        attended, kl, topk_indices = self.self_attn(self.input_layernorm(x), cos, sin, mode, topk_indices)
        x = x + attended
        h, balance = self.post_attention_layernorm(x), Tensor(0.0, ms.float32)
        if self.experts:
            fed, balance = self.mlp(h)
        else:
            fed = self.mlp(h)
        return x + fed, kl, balance, topk_indices


class MTP(nn.Cell):
    """The prediction module: join a hidden state with the next token's embedding, one layer, a norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm, self.norm = RMSNorm(C, eps), RMSNorm(C, eps), RMSNorm(C, eps)
        self.eh_proj, self.layer = Linear(2 * C, C), Layer(config, True, True)

    def construct(self, hidden, embedding, cos, sin, mode):
        """hidden and embedding (B, T, C) → what the layer makes of the two joined."""
        joined = self.eh_proj(ops.concat((self.enorm(embedding), self.hnorm(hidden)), -1))
        return self.layer(joined, cos, sin, mode, None)


def cross_entropy(logits, targets):
    """Mean over targets that are not -100: logits (B, T, V), targets (B, T)."""
    keep = (targets != IGNORE).astype(ms.float32)
    picked = ops.gather_elements(ops.log_softmax(logits, -1), 2, ops.expand_dims(ops.maximum(targets, 0), -1)).squeeze(
        -1
    )
    return -(picked * keep).sum() / ops.maximum(keep.sum(), Tensor(1.0, ms.float32))


class Model(nn.Cell):
    """Same names, shapes and numbers as `minglm.model.model.Model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, C = config, config.hidden_size
        self.embed_tokens = Embedding(config.vocab_size, C)
        self.layers = nn.CellList(
            [
                Layer(config, kind == "full", i >= config.first_k_dense_replace)
                for i, kind in enumerate(config.indexer_types)
            ]
        )
        self.norm, self.lm_head = RMSNorm(C, config.rms_norm_eps), Linear(C, config.vocab_size)
        self.depths = config.mtp_depth if config.num_nextn_predict_layers else 0
        if self.depths:
            self.mtp = MTP(config)
        r = config.qk_rope_head_dim
        angle = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * (
            1.0 / np.float32(config.rope_theta) ** (np.arange(0, r, 2, dtype=np.float32) / r)
        ).astype(np.float32)
        self.cos, self.sin = Tensor(np.cos(angle)), Tensor(np.sin(angle))  # (positions, r/2)

    def hidden(self, tokens, mode):
        """(B, T) → hidden (B, T, C) before the final norm, the layers' KLs (sum and number), balance losses (sum)."""
        T = tokens.shape[1]
        cos, sin = self.cos[:T], self.sin[:T]
        x, kl, balance, topk_indices, ran = (
            self.embed_tokens(tokens),
            Tensor(0.0, ms.float32),
            Tensor(0.0, ms.float32),
            None,
            0,
        )
        for layer in self.layers:
            x, kl_i, balance_i, topk_indices = layer(x, cos, sin, mode, topk_indices)
            kl, balance = kl + kl_i, balance + balance_i
            ran += layer.self_attn.full
        return x, kl, balance, ran

    def construct(self, tokens, mode="sparse"):
        """(B, T) int32 → logits (B, T, V)."""
        return self.lm_head(self.norm(self.hidden(tokens, mode)[0]))

    def losses(self, tokens, targets, mode="sparse"):
        """(lm, mtp, balance, indexer KL), unweighted, as in `minglm.model.model.Output`.
        In "dense" mode the KL is 0."""
        x, kl, balance, ran = self.hidden(tokens, mode)
        lm, mtp = cross_entropy(self.lm_head(self.norm(x)), targets), Tensor(0.0, ms.float32)
        depths = min(self.depths, tokens.shape[1] - 1)
        for depth in range(1, depths + 1):
            keep = tokens.shape[1] - depth
            if self.config.mtp_normed_hidden:
                x = (self.norm if depth == 1 else self.mtp.norm)(x)
            x, kl_i, balance_i, _ = self.mtp(
                x[:, :keep], self.embed_tokens(tokens[:, depth:]), self.cos[:keep], self.sin[:keep], mode
            )
            kl, balance, ran = kl + kl_i, balance + balance_i, ran + 1
            mtp = mtp + cross_entropy(self.lm_head(self.mtp.norm(x)), targets[:, depth:]) / depths
        return lm, mtp, balance, kl / max(ran, 1)


def training_step(model: Model, weights=(1.0, 0.3, 1e-4, 1.0), mode: str = "sparse"):
    """A function (tokens, targets) → ((loss, parts), gradients of the trainable parameters in their order).

    `weights` of lm, mtp, balance and indexer KL. Wrap it in `mindspore.jit` for graph mode.
    """

    def loss(tokens, targets):
        parts = model.losses(tokens, targets, mode)
        total = parts[0] * weights[0]
        for weight, part in zip(weights[1:], parts[1:]):  # noqa: B905  (graph mode compiles this source)
            total = total + weight * part
        return total, parts

    return ms.value_and_grad(loss, None, model.trainable_params(), has_aux=True)


def load(source: str | Path, config: ModelConfig | None = None) -> Model:
    """The model of a checkpoint folder (the newest of a run folder), or of a safetensors file with a config.

    Raises:
        InputError: no weights there, or tensors that do not fit; the message names the file and the tensor.
    """
    from safetensors.numpy import load_file

    path = Path(source)
    if path.is_dir():
        folders = [path] if (path / "state.json").is_file() else sorted((path / "checkpoints").glob("step_*"))
        if not folders:
            raise InputError(f"{path}: no checkpoint here; give a run folder such as runs/demo/sft")
        config = ModelConfig.from_dict(json.loads((folders[-1] / "state.json").read_text(encoding="utf-8"))["config"])
        path = folders[-1] / "model.safetensors"
    if config is None:
        raise InputError(f"{path}: weights alone do not say their shape; give a ModelConfig too")
    model, tensors = Model(config), load_file(path)
    wanted = {p.name: p for p in model.get_parameters()}
    for name in sorted(set(tensors) ^ set(wanted)):
        where = "missing" if name in wanted else "not part of the model"
        raise InputError(
            f"{path}: tensor {name!r} is {where}{nearest(name, set(wanted) - set(tensors))}; use the config that was "
            f"saved with it"
        )
    for name, parameter in wanted.items():
        if tensors[name].shape != tuple(parameter.shape):
            raise InputError(
                f"{path}: tensor {name!r} has shape {list(tensors[name].shape)}, the config calls for "
                f"{list(parameter.shape)}"
            )
        parameter.set_data(Tensor(tensors[name].astype(np.float32)))
    return model
