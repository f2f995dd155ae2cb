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

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The cache of ordinary attention
#
# Each token leaves one key and one value in each head of each layer. How many bytes is that, if one number takes `bytes_each`?
# %%
def cache_bytes(heads, key_width, value_width, layers, bytes_each):
    """Five whole numbers -> bytes of cache for one token."""
    ### BEGIN SOLUTION
    return heads * (key_width + value_width) * layers * bytes_each
    ### END SOLUTION
# %%
check("02.cache_bytes", cache_bytes)
# %% [markdown]
# ## 2. Causal attention
#
# For each head on its own: a score is the inner product of a query and a key, divided by √D. The scores of the future are set to −inf: query t sees keys 0 to t. A softmax over the keys makes them shares. The result for a query is the sum of the values, each times its share.
# %%
def causal_attention(q, k, v):
    """q, k, v: tensors (T, H, D) -> tensor (T, H, D)"""
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
# `x` holds D numbers, D even. Pair j, for j = 0 … D/2 − 1, is *a* = x[2j] and *b* = x[2j+1]. Turn each pair by the angle *position* × *theta*^(−2j/D), in radians:
#
# > new *a* = *a* cos − *b* sin,  new *b* = *a* sin + *b* cos
#
# Give a new tensor.
# %%
def rotate(x, position, theta):
    """x: tensor (D,), position: int, theta: float -> tensor (D,)"""
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
# The key of head h for a latent c would be `up[h] @ c`; a score is the inner product of query and key (here not divided). Give the scores of all queries with all latents, shape (H, T, S), *without* making these keys: multiply the query with the matrix first. The check also counts torch's multiplications.
# %%
def absorbed_scores(q, up, latents):
    """tensors q (T, H, D), up (H, D, L), latents (S, L) -> tensor (H, T, S)"""
    ### BEGIN SOLUTION
    absorbed = torch.einsum("thn,hnl->htl", q, up)
    return absorbed @ latents.T
    ### END SOLUTION
# %%
check("02.absorbed_scores", absorbed_scores)
# %% [markdown]
# **Next:** [exercises 03](03_lightning_indexer.ipynb).
