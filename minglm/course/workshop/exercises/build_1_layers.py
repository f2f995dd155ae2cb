# %% [markdown]
# # Build it yourself 1: a block, rotary position, and MLA
#
# In seven notebooks you type a small GLM-5 and what trains and runs it, part by part, with a check after each. The one before, [build 0](build_0_tokenizer.ipynb), is the tokenizer; this one gives you the layers and the attention. At the end your parts run inside `minglm`, in place of its own, and the logits must agree to 1e-5.
#
# **You will learn** to write RMSNorm, SwiGLU, a residual block, rotary position embedding (RoPE), and multi-head latent attention (MLA) in its expanded and its absorbed form.
#
# **Time:** under a minute of computing, 90 minutes of typing and 20 minutes to read. **You need:** [`00_start_here`](00_start_here.ipynb); [`02_mla`](02_mla.ipynb) helps. No network.
#
# Shapes: B batch, T query positions, S key positions, C hidden, F width of a feed-forward, H heads, D = nope + rope width of a query or key, Dv value width, L latent width, R = L + rope, Q width of the compressed query. Parameters have the names that GLM-5's checkpoint uses, because weights move by name.
# %%
import torch
import torch.nn.functional as F
from torch import nn

from minglm.course.notebook import pick, show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import pictures

torch.manual_seed(0);


# %% [markdown]
# ## 1. RMSNorm
#
# Divide every vector by its root mean square, then multiply each channel by a learnt weight (Zhang & Sennrich 2019):
#
# > *y* = *x* / √(mean(*x*²) + *eps*) · *weight*
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> multiply <i>x</i> by 1000. What happens to <i>y</i>?</summary>
#
# Almost nothing: the scale cancels, except for *eps*. That is why a block whose input grows through the depth still gets inputs of one size.
#
# </details>
#
# The one parameter is called `weight`, has shape (width,), and starts at ones. Unlike LayerNorm, no mean is subtracted and there is no bias.
# %%
class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        ### BEGIN SOLUTION
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        ### END SOLUTION

    def forward(self, x):
        """(..., width) -> (..., width)"""
        ### BEGIN SOLUTION
        mean_square = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(mean_square + self.eps) * self.weight
        ### END SOLUTION


# %%
check("build_1.rms_norm", RMSNorm)


# %% [markdown]
# ## 2. SwiGLU
#
# The feed-forward of a dense layer has three matrices without bias (Shazeer 2020). One path opens or closes each channel of the other:
#
# > down( silu(gate(*x*)) · up(*x*) ),  silu(*z*) = *z* · sigmoid(*z*)
#
# Call them `gate_proj`, `up_proj` (both hidden → width) and `down_proj` (width → hidden).
# %%
class SwiGLU(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        ### BEGIN SOLUTION
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)
        ### END SOLUTION

    def forward(self, x):
        """(..., hidden) -> (..., hidden)"""
        ### BEGIN SOLUTION
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        ### END SOLUTION


# %%
check("build_1.swiglu", SwiGLU)
# %% [markdown]
# ## 3. The residual block
#
# A layer is two blocks, attention and feed-forward. Each one **adds** to what came in, and reads it through a norm (pre-norm). The picture shows why the addition matters: how much of the gradient reaches the first of many layers, with the addition and, as a control, without it.
# %%
show(*pictures.residual_gradients(depth=pick(32, 8), norm=RMSNorm, layer=SwiGLU))


# %% [markdown]
# `norm` and `layer` are modules or functions. Write the block.
# %%
def block(x, norm, layer):
    """x (..., C) -> (..., C)"""
    ### BEGIN SOLUTION
    return x + layer(norm(x))
    ### END SOLUTION


# %%
check("build_1.block", block)


# %% [markdown]
# ## 4. Rotary position
#
# Attention compares a query with keys by inner products, which know nothing of positions. RoPE turns each pair of channels (0,1), (2,3), … by an angle that grows with the position; pair *j* by
#
# > angle = position · theta^(−2*j*/D)
#
# so that the product of a turned query and a turned key depends on their **distance** only (Su et al. 2021).
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> query at 100 and key at 90, or query at 10 and key at 0: which score is larger?</summary>
#
# They are equal. Turning both by the same further angle leaves an inner product as it was. The three curves of the picture below lie on each other.
#
# </details>
#
# A pair (*a*, *b*) is the complex number *a* + *ib*, and turning it is one multiplication by e^(i·angle). First the table of these numbers: `torch.polar(radius, angle)` makes them. It has one row for each position and one column for each pair.
# %%
def rope_table(positions, width, theta):
    """positions: tensor (T,), width: even int, theta: float
    -> complex tensor (T, width/2) of length-one numbers"""
    ### BEGIN SOLUTION
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    angle = positions.float()[:, None] * theta ** (-pairs / width)
    return torch.polar(torch.ones_like(angle), angle)
    ### END SOLUTION


# %%
check("build_1.rope_table", rope_table)


# %% [markdown]
# Now turn. `torch.view_as_complex` sees the last axis, of width 2, as a complex number (its input must be contiguous), `torch.view_as_real` is the way back, and `unflatten(-1, (-1, 2))` cuts an axis into pairs.
# %%
def apply_rope(x, table):
    """x (B, T, H, D), table complex (T, D/2) -> (B, T, H, D)"""
    ### BEGIN SOLUTION
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table[:, None]).flatten(-2)
    ### END SOLUTION


# %%
check("build_1.apply_rope", apply_rope)
# %%
show(*pictures.scores_by_distance(rope_table, apply_rope))


# %% [markdown]
# ## 5. MLA, expanded
#
# MLA keeps one **latent** vector for each token in place of keys and values of all heads (DeepSeek-V2, arXiv 2405.04434 §2.1). Its cache holds `latent` (B, S, R): L numbers from which the keys and values of every head are rebuilt, then the turned rotary key that all heads share. The matrices that rebuild are `up_k` (H, nope, L) and `up_v` (H, Dv, L).
#
# **Expanded**: rebuild, then attend as always.
#
# > key of head h = [ up_k[h] · latent[:L] , latent[L:] ],  value = up_v[h] · latent[:L]
# >
# > scores = query · key / √D; where `allowed` is False they are −inf; softmax over the keys; mix the values
#
# `allowed` is a bool tensor of shape (T, S), or (B, 1, T, S): both broadcast to scores of shape (B, H, T, S). `torch.einsum` writes each product in one line, for example `einsum("bsl,hnl->bshn", latents, up_k)`.
# %%
def expanded(q_nope, q_rope, latent, up_k, up_v, allowed):
    """q_nope (B, T, H, nope), q_rope (B, T, H, rope), latent (B, S, R),
    up_k (H, nope, L), up_v (H, Dv, L), allowed bool -> values (B, T, H, Dv)"""
    ### BEGIN SOLUTION
    L = up_k.shape[-1]
    keys = torch.einsum("bsl,hnl->bshn", latent[..., :L], up_k)
    values = torch.einsum("bsl,hvl->bshv", latent[..., :L], up_v)
    scores = torch.einsum("bthn,bshn->bhts", q_nope, keys)
    scores = scores + torch.einsum("bthr,bsr->bhts", q_rope, latent[..., L:])
    scores = scores / (q_nope.shape[-1] + q_rope.shape[-1]) ** 0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", weights, values)
    ### END SOLUTION


# %%
check("build_1.expanded", expanded)
# %% [markdown]
# ## 6. MLA, absorbed
#
# When one new token attends to a long cache, rebuilding keys and values of every cached token is a waste. Matrix products can be bracketed otherwise:
#
# > query · (up_k[h] · c) = (up_kᵀ[h] · query) · c
#
# So carry the **query** into the latent space once, attend to the latents themselves, and bring only the mixed latent back with `up_v`. Same values, no key ever built. The picture counts multiplications of one layer of GLM-5 for one query, by the length of the cache.
# %%
show(*pictures.multiplications_by_length())


# %%
def absorbed(q_nope, q_rope, latent, up_k, up_v, allowed):
    """Arguments and result as in `expanded`."""
    ### BEGIN SOLUTION
    L = up_k.shape[-1]
    q_latent = torch.einsum("bthn,hnl->bthl", q_nope, up_k)
    queries = torch.cat((q_latent, q_rope), -1)
    scores = torch.einsum("bthr,bsr->bhts", queries, latent)
    scores = scores / (q_nope.shape[-1] + q_rope.shape[-1]) ** 0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    mixed = torch.einsum("bhts,bsl->bthl", weights, latent[..., :L])
    return torch.einsum("bthl,hvl->bthv", mixed, up_v)
    ### END SOLUTION


# %%
check("build_1.absorbed", absorbed)


# %% [markdown]
# ## 7. The attention layer
#
# The last part puts all together. `config` has the widths: `hidden_size` C, `num_attention_heads` H, `q_lora_rank` Q, `kv_lora_rank` L, `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim` Dv. Matrices, none with a bias:
#
# | name | from → to | what it is for |
# |---|---|---|
# | `q_a_proj`, then the norm `q_a_layernorm` | C → Q | compresses the query |
# | `q_b_proj` | Q → H · (nope + rope) | queries of all heads; in each head first nope, then rope |
# | `kv_a_proj_with_mqa` | C → L + rope | the latent, then the rotary key |
# | `kv_a_layernorm` | L | norm of the latent, not of the rotary key |
# | `kv_b_proj` | L → H · (nope + Dv) | its rows are `up_k` and `up_v`: in each head first nope, then Dv |
# | `o_proj` | H · Dv → C | out |
#
# Both norms have eps 1e-6. `project` gives what the attention functions need, and the compressed query, which the indexer of the next notebook reads. RoPE turns `q_rope` and the rotary key. Without `allowed`, attention is causal: query t sees keys 0 to t.
# %%
class MLA(nn.Module):
    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        self.config = config
        C, H, L = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.q_a_proj = nn.Linear(C, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, 1e-6)
        self.q_b_proj = nn.Linear(config.q_lora_rank, H * (nope + rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(C, L + rope, bias=False)
        self.kv_a_layernorm = RMSNorm(L, 1e-6)
        self.kv_b_proj = nn.Linear(L, H * (nope + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * config.v_head_dim, C, bias=False)
        ### END SOLUTION

    def project(self, x, table):
        """x (B, T, C), table complex (T, rope/2) -> q_nope (B, T, H, nope),
        q_rope (B, T, H, rope), latent (B, T, R), compressed query (B, T, Q)"""
        ### BEGIN SOLUTION
        c = self.config
        compressed = self.q_a_layernorm(self.q_a_proj(x))
        heads = self.q_b_proj(compressed).unflatten(-1, (c.num_attention_heads, -1))
        q_nope, q_rope = heads.split((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
        joint = self.kv_a_proj_with_mqa(x)
        kv, k_rope = joint.split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        k_rope = apply_rope(k_rope.unsqueeze(2), table).squeeze(2)
        latent = torch.cat((self.kv_a_layernorm(kv), k_rope), -1)
        return q_nope, apply_rope(q_rope, table), latent, compressed
        ### END SOLUTION

    def up_projections(self):
        """-> up_k (H, nope, L), up_v (H, Dv, L)"""
        ### BEGIN SOLUTION
        c = self.config
        heads = self.kv_b_proj.weight.unflatten(0, (c.num_attention_heads, -1))
        return heads.split((c.qk_nope_head_dim, c.v_head_dim), 1)
        ### END SOLUTION

    def forward(self, x, table, allowed=None):
        """x (B, T, C), table as above, allowed as in `expanded` -> (B, T, C)"""
        ### BEGIN SOLUTION
        q_nope, q_rope, latent, _ = self.project(x, table)
        if allowed is None:
            T = x.shape[1]
            allowed = torch.ones(T, T).tril().bool()
        out = expanded(q_nope, q_rope, latent, *self.up_projections(), allowed)
        return self.o_proj(out.flatten(-2))
        ### END SOLUTION


# %%
check("build_1.mla", MLA)


# %% [markdown]
# ## 8. Inside the real model
#
# Now every part of yours takes the place of its counterpart in a `minglm` model of three layers, alone, with the same weights. The picture shows the largest difference of any logit: over whole sequences, dense and sparse, and, where the attention can be cached, decoded token by token. The logits themselves are of order 1. As a control, the last bar is an RMSNorm that forgets its weight.
# %%
class NoWeight(RMSNorm):
    def forward(self, x):
        return super().forward(x) / self.weight


parts = {
    "RMSNorm": RMSNorm,
    "SwiGLU": SwiGLU,
    "expanded": expanded,
    "absorbed": absorbed,
    "MLA": MLA,
}
show(*pictures.compared(parts, control=("RMSNorm", NoWeight)))
# %% [markdown]
# **Next:** [build 2](build_2_model.ipynb): the indexer, sparse attention, experts, and the whole model.
