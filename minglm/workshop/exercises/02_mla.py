# %% [markdown]
# # Exercises 02: attention and its latent
#
# **You will learn** to size a cache, to write causal attention, to turn by position, and to score latents without rebuilding keys.
#
# **Time:** 35 minutes. **You need:** [`02_mla`](../../learn/02_mla.ipynb).
#
# Shapes: T tokens that look, S tokens that are seen, H heads, D head width, L latent width.
# %%
import math

import torch

from minglm.workshop import check


# %% [markdown]
# ## 1. The cache of ordinary attention
#
# Each token leaves one key and one value in each head of each layer. How many bytes is that, if one number takes `bytes_each`?
# %%
def cache_bytes(heads, key_width, value_width, layers, bytes_each):
    """Bytes of cache for one token."""
    ### BEGIN SOLUTION
    return heads * (key_width + value_width) * layers * bytes_each
    ### END SOLUTION
# %%
check("02.cache_bytes", cache_bytes)
# %% [markdown]
# ## 2. Causal attention
#
# `q`, `k`, `v` have the shape (T, H, D). Score is query times key, divided by the square root of D. Nobody sees the future. The result has the shape (T, H, D) again.
# %%
def causal_attention(q, k, v):
    """(T, H, D) three times -> (T, H, D)"""
    ### BEGIN SOLUTION
    T, _, D = q.shape
    scores = torch.einsum("thd,shd->hts", q, k) / D**0.5
    future = torch.ones(T, T).triu(1).bool()
    shares = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", shares, v)
    ### END SOLUTION
# %%
check("02.causal_attention", causal_attention)
# %% [markdown]
# ## 3. Turning by position
#
# `x` holds D numbers. Pair number j is places 2j and 2j+1. Turn it by the angle *position* × *theta*^(−2j/D):
#
# > new *a* = *a* cos − *b* sin,  new *b* = *a* sin + *b* cos
#
# Give a new tensor.
# %%
def rotate(x, position, theta):
    """x (D,), turned to this position -> (D,)"""
    ### BEGIN SOLUTION
    out = x.clone()
    D = len(x)
    for j in range(D // 2):
        angle = position * theta ** (-2 * j / D)
        a, b = x[2 * j], x[2 * j + 1]
        out[2 * j] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out
    ### END SOLUTION
# %%
check("02.rotate", rotate)
# %% [markdown]
# ## 4. Absorbed scores
#
# The key of head h for a latent c would be `up[h] @ c`. Give the scores of all queries with all latents, shape (H, T, S), *without* making these keys: move the matrix to the query. The check also counts your operations.
# %%
def absorbed_scores(q, up, latents):
    """q (T, H, n), up (H, n, L), latents (S, L) -> (H, T, S)"""
    ### BEGIN SOLUTION
    absorbed = torch.einsum("thn,hnl->htl", q, up)
    return absorbed @ latents.T
    ### END SOLUTION
# %%
check("02.absorbed_scores", absorbed_scores)
# %% [markdown]
# **Next:** [exercises 03](03_lightning_indexer.ipynb).
