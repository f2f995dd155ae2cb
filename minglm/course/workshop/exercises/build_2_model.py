# %% [markdown]
# # Build it yourself 2: the indexer, experts, and the whole model
#
# The third of the notebooks in which you type a small GLM-5. Here attention becomes sparse, the feed-forward becomes a mixture of experts, and the parts become a model whose logits agree with `minglm`'s to 1e-5.
#
# **You will learn** to write the lightning indexer, its choice of keys, attention over chosen keys, a router whose bias balances the load, the experts, and the model around them.
#
# **Time:** under a minute of computing, 90 minutes of typing and 20 minutes to read. **You need:** [`build_1_layers`](build_1_layers.ipynb); [`03_lightning_indexer`](03_lightning_indexer.ipynb) and [`04_mixture_of_experts`](04_mixture_of_experts.ipynb) help. No network.
#
# The first cell takes the parts of build 1 from its worked solution. Paste your own below it if you like: everything must still hold.
#
# Shapes: B batch, T query positions, S key positions, C hidden, N tokens, E experts, K chosen experts, F width of an expert, Hi and Di heads and width of the indexer, k chosen keys, V vocabulary; the rest as in build 1.
# %%
import torch
import torch.nn.functional as F
from torch import nn

from minglm.config import ModelConfig
from minglm.course.notebook import show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import pictures, solved

first = solved("build_1_layers")
RMSNorm, SwiGLU, block = first["RMSNorm"], first["SwiGLU"], first["block"]
rope_table, apply_rope, MLA = first["rope_table"], first["apply_rope"], first["MLA"]


# %% [markdown]
# ## 1. The lightning indexer
#
# A few small heads look at every earlier key and score it (DeepSeek-V3.2):
#
# > I[t, s] = Σ over heads j of *w*[t, j] · relu( *q*[t, j] · *k*[s] )
#
# All heads share one key for each token. Names and shapes, none of the matrices with a bias:
#
# | name | from → to |
# |---|---|
# | `wq_b` | compressed query (Q) → Hi · Di |
# | `wk`, then `k_norm` = `nn.LayerNorm(Di, eps=1e-6)` | C → Di |
# | `weights_proj` | C → Hi |
#
# The first `qk_rope_head_dim` channels of *q* and *k* are turned by RoPE, the rest is not. The weights *w* are multiplied by (Hi · Di)^(−1/2). In `config`: `index_n_heads` Hi, `index_head_dim` Di.
# %%
class Indexer(nn.Module):
    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.rope = config.qk_rope_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        self.k_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        ### END SOLUTION

    def forward(self, x, compressed, table):
        """x (B, T, C), compressed (B, T, Q), table complex (T, rope/2)
        -> q (B, T, Hi, Di), k (B, T, Di), w (B, T, Hi)"""
        ### BEGIN SOLUTION
        q = self.wq_b(compressed).unflatten(-1, (self.heads, self.width))
        k = self.k_norm(self.wk(x)).unsqueeze(2)
        r = self.rope
        q = torch.cat((apply_rope(q[..., :r], table), q[..., r:]), -1)
        k = torch.cat((apply_rope(k[..., :r], table), k[..., r:]), -1)
        return q, k.squeeze(2), self.weights_proj(x) * (self.heads * self.width) ** -0.5
        ### END SOLUTION


# %%
check("build_2.indexer", Indexer)


# %%
def index_scores(q, k, w):
    """q (B, T, Hi, Di), k (B, S, Di), w (B, T, Hi) -> I (B, T, S)"""
    ### BEGIN SOLUTION
    dots = torch.einsum("bthd,bsd->bths", q, k).relu()
    return torch.einsum("bth,bths->bts", w, dots)
    ### END SOLUTION


# %%
check("build_2.index_scores", index_scores)


# %% [markdown]
# ## 2. Choose, causally
#
# Query t may choose among keys 0 to t only.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> hide the future before taking the top k, or take the top k and drop what lies in the future?</summary>
#
# Before. Otherwise future keys take up places, and early queries are left with few keys or with none. It is also a leak: what was dropped depends on tokens to come.
#
# </details>
#
# Give the positions of the `k` largest scores of each query, int64, in any order; where a query sees fewer than `k` keys, the places left over hold −1. Equal scores go to the lowest position: `sort(descending=True, stable=True)` does that.
# %%
def select(scores, k):
    """scores (B, T, T), k <= T -> (B, T, k) int64"""
    ### BEGIN SOLUTION
    future = torch.ones_like(scores).triu(1).bool()
    seen = scores.masked_fill(future, -torch.inf)
    values, index = seen.sort(descending=True, stable=True)
    return index[..., :k].masked_fill(values[..., :k] == -torch.inf, -1)
    ### END SOLUTION


# %%
check("build_2.select", select)


# %% [markdown]
# ## 3. Attention over the chosen keys
#
# As in `absorbed`, but query t meets only its own k latents. Gather them first, (B, T, k, R): `latent[b, chosen]` with `b = torch.arange(B)[:, None, None]` picks rows for all queries at once. −1 is a valid index in torch, so those places must be masked before the softmax. Cost and memory now grow with k, not with S.
# %%
def sparse(q_nope, q_rope, latent, up_k, up_v, chosen):
    """As `absorbed` of build 1, with chosen (B, T, k) int64 in place of allowed
    -> values (B, T, H, Dv)"""
    ### BEGIN SOLUTION
    L = up_k.shape[-1]
    rows = torch.arange(latent.shape[0])[:, None, None]
    keys = latent[rows, chosen]
    queries = torch.cat((torch.einsum("bthn,hnl->bthl", q_nope, up_k), q_rope), -1)
    scores = torch.einsum("bthr,btkr->bthk", queries, keys)
    scores = scores / (q_nope.shape[-1] + q_rope.shape[-1]) ** 0.5
    weights = scores.masked_fill((chosen < 0).unsqueeze(2), -torch.inf).softmax(-1)
    mixed = torch.einsum("bthk,btkl->bthl", weights, keys[..., :L])
    return torch.einsum("bthl,hvl->bthv", mixed, up_v)
    ### END SOLUTION


# %%
check("build_2.sparse", sparse)


# %% [markdown]
# ## 4. The router and its bias
#
# A sigmoid scores every token against every expert. The K experts with the largest score **plus bias** are chosen; the gates come from the scores **without** bias, made to sum to `routed_scaling_factor`. After each step, the bias of every expert moves by a fixed rate: up where the load is below the mean, down where it is above (Wang et al. 2024). No loss term, and the output's weights stay as they were.
#
# The parameter `weight` is (E, C), with E = `n_routed_experts` and K = `num_experts_per_tok`. The bias is a **buffer** called `e_score_correction_bias`, zeros of shape (E,): stored with the weights, never moved by a gradient (`register_buffer`).
# %%
class Router(nn.Module):
    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        self.k, self.scale = config.num_experts_per_tok, config.routed_scaling_factor
        E, C = config.n_routed_experts, config.hidden_size
        self.weight = nn.Parameter(0.02 * torch.randn(E, C))
        self.register_buffer("e_score_correction_bias", torch.zeros(E))
        ### END SOLUTION

    def forward(self, x):
        """x (N, C) -> chosen (N, K) int64, gates (N, K), scores (N, E) without bias"""
        ### BEGIN SOLUTION
        scores = (x @ self.weight.T).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.k, -1).indices
        gates = scores.gather(-1, chosen)
        return chosen, self.scale * gates / gates.sum(-1, keepdim=True), scores
        ### END SOLUTION

    def move_bias(self, counts, rate):
        """counts (E,) tokens per expert of the last step; changes the bias in place"""
        ### BEGIN SOLUTION
        load = counts.float()
        self.e_score_correction_bias += rate * torch.sign(load.mean() - load)
        ### END SOLUTION


# %%
check("build_2.router", Router)
# %%
show(*pictures.balance_over_steps(Router))


# %% [markdown]
# ## 5. The experts
#
# Every expert is a SwiGLU; their weights are stacked in `experts.gate_up_proj` (E, 2F, C), first gate and then up, and `experts.down_proj` (E, C, F). `Experts` below holds them. For each expert, take the tokens that chose it, run them, multiply by their gates, and add to the output (`index_add_`). One shared expert, a SwiGLU of width F · `n_shared_experts`, reads every token. Submodules: `gate` (the router), `experts`, `shared_experts`; F is `moe_intermediate_size`.
# %%
class Experts(nn.Module):
    def __init__(self, E, C, F):
        super().__init__()
        self.gate_up_proj = nn.Parameter(0.02 * torch.randn(E, 2 * F, C))
        self.down_proj = nn.Parameter(0.02 * torch.randn(E, C, F))

    def one(self, e, x):
        """What expert e makes of x (n, C)"""
        ### BEGIN SOLUTION
        gate, up = (x @ self.gate_up_proj[e].T).chunk(2, -1)
        return (F.silu(gate) * up) @ self.down_proj[e].T
        ### END SOLUTION


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        C, width = config.hidden_size, config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, C, width)
        self.shared_experts = SwiGLU(C, config.n_shared_experts * width)
        ### END SOLUTION

    def forward(self, x):
        """x (B, T, C) -> output (B, T, C), tokens per expert (E,) int64"""
        ### BEGIN SOLUTION
        flat = x.flatten(0, 1)
        chosen, gates, scores = self.gate(flat)
        out = self.shared_experts(flat)
        for e in range(scores.shape[-1]):
            token, place = torch.where(chosen == e)
            y = self.experts.one(e, flat[token]) * gates[token, place].unsqueeze(-1)
            out = out.index_add(0, token, y)
        counts = torch.bincount(chosen.flatten(), minlength=scores.shape[-1])
        return out.view_as(x), counts
        ### END SOLUTION


# %%
check("build_2.moe", MoE)


# %% [markdown]
# ## 6. The model
#
# All parts together: embedding, layers, norm, head. In a layer both blocks have the form of build 1's `block`; the first `first_k_dense_replace` layers have a dense SwiGLU of width `intermediate_size`, the others experts. `SparseMLA` is given: your MLA with your indexer. Names: `embed_tokens`, `layers`, and in each of them `input_layernorm`, `self_attn`, `post_attention_layernorm`, `mlp`; then `norm` and `lm_head` (no bias). Norms have eps `rms_norm_eps`. `counts` keeps what the experts of the last forward counted.
# %%
class SparseMLA(MLA):
    def __init__(self, config):
        super().__init__(config)
        self.indexer = Indexer(config)

    def forward(self, x, table):
        q_nope, q_rope, latent, compressed = self.project(x, table)
        with torch.no_grad():  # the choice has no gradient
            scores = index_scores(*self.indexer(x, compressed, table))
            chosen = select(scores, min(self.config.index_topk, x.shape[1]))
        out = sparse(q_nope, q_rope, latent, *self.up_projections(), chosen)
        return self.o_proj(out.flatten(-2))


class Layer(nn.Module):
    def __init__(self, config, experts, attention):
        super().__init__()
        ### BEGIN SOLUTION
        C, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(C, eps)
        self.self_attn = attention(config)
        self.post_attention_layernorm = RMSNorm(C, eps)
        self.mlp = MoE(config) if experts else SwiGLU(C, config.intermediate_size)
        self.counts = None
        ### END SOLUTION

    def feed(self, x):
        """The feed-forward, and a note of its experts' counts"""
        y = self.mlp(x)
        if isinstance(y, tuple):
            y, self.counts = y
        return y

    def forward(self, x, table):
        """x (B, T, C), table complex (T, rope/2) -> (B, T, C)"""
        ### BEGIN SOLUTION
        x = block(x, self.input_layernorm, lambda y: self.self_attn(y, table))
        return block(x, self.post_attention_layernorm, self.feed)
        ### END SOLUTION


class GLM(nn.Module):
    def __init__(self, config, attention=SparseMLA):
        super().__init__()
        ### BEGIN SOLUTION
        self.config = config
        C, V = config.hidden_size, config.vocab_size
        self.embed_tokens = nn.Embedding(V, C)
        self.layers = nn.ModuleList(
            Layer(config, i >= config.first_k_dense_replace, attention)
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(C, config.rms_norm_eps)
        self.lm_head = nn.Linear(C, V, bias=False)
        ### END SOLUTION

    def forward(self, tokens):
        """tokens (B, T) int64 -> logits (B, T, V)"""
        ### BEGIN SOLUTION
        c = self.config
        positions = torch.arange(tokens.shape[1])
        table = rope_table(positions, c.qk_rope_head_dim, c.rope_theta)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, table)
        return self.lm_head(self.norm(x))
        ### END SOLUTION


# %%
check("build_2.glm", GLM)


# %% [markdown]
# ## 7. Inside the real model
#
# Again each part alone takes the place of its counterpart in `minglm`; as a control, a router that puts its bias into the gates.
# %%
class BiasInGates(Router):
    def forward(self, x):
        chosen, _, scores = super().forward(x)
        gates = (scores + self.e_score_correction_bias).gather(-1, chosen)
        return chosen, self.scale * gates / gates.sum(-1, keepdim=True), scores


parts = {"Indexer": Indexer, "sparse": sparse, "Router": Router, "MoE": MoE}
show(*pictures.compared(parts, control=("Router", BiasInGates)))
# %% [markdown]
# The same `GLM`, with `ModelConfig.named("glm5")`, is the model of 744 billion parameters: only the numbers in the configuration differ (widths, layers, experts). The configuration can count its parameters without making them.
# %%
config = ModelConfig.named("glm5")
whole, active = config.num_params() / 1e9, config.num_active_params() / 1e9
print(f"{whole:.0f}B parameters, {active:.0f}B active")
# %% [markdown]
# **Next:** [build 3](build_3_losses.ipynb): the losses after pre-training.
