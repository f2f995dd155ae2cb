# %% [markdown]
# # Exercises 03: choosing what to read
#
# **You will learn** to write the indexer's score, to choose keys without seeing the future, to measure how good a choice is, and to write the loss that trains the indexer.
#
# **Time:** 40 minutes. **You need:** [`03_lightning_indexer`](../../learn/03_lightning_indexer.ipynb).
#
# Shapes: T queries, S keys, H indexer heads, D their width, k chosen keys.
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The score
#
# > *I*(t, s) = Σ over heads j of  *w*(t, j) · max(0, *q*(t, j) · *k*(s))
# %%
def index_scores(q, k, w):
    """tensors q (T, H, D), k (S, D), w (T, H) -> tensor (T, S)"""
    ### BEGIN SOLUTION
    products = torch.einsum("thd,sd->ths", q, k).relu()
    return torch.einsum("th,ths->ts", w, products)
    ### END SOLUTION
# %%
check("03.index_scores", index_scores)
# %% [markdown]
# ## 2. A causal choice
#
# `scores` is (T, T). Query t may read keys 0 to t. Give for each query the column numbers of its `k` best keys (k ≤ T) as a tensor (T, k) of whole numbers, each row **sorted**. Where fewer than `k` keys are visible the empty places hold −1, and so come first.
#
# `scores.topk(k, -1)` gives `.values` and `.indices`; `tensor.sort(-1).values` sorts rows.
# %%
def choose_keys(scores, k):
    """scores: tensor (T, T), k: int -> tensor (T, k) of int64, rows sorted, -1 for
    empty places"""
    ### BEGIN SOLUTION
    future = torch.ones_like(scores).triu(1).bool()
    best = scores.masked_fill(future, -torch.inf).topk(k, -1)
    return best.indices.masked_fill(best.values == -torch.inf, -1).sort(-1).values
    ### END SOLUTION
# %%
check("03.choose_keys", choose_keys)
# %% [markdown]
# ## 3. How good is a choice?
#
# `attention` (T, S) says where dense attention looks; each row adds up to 1. `chosen` (T, k) holds column numbers of keys, −1 for empty places. Which share of the attention falls on the chosen keys, averaged over the queries?
# %%
def captured(attention, chosen):
    """attention (T, S), chosen (T, k) of int64 -> a number between 0 and 1"""
    ### BEGIN SOLUTION
    shares = attention.gather(-1, chosen.clamp(min=0))
    return float(shares.masked_fill(chosen < 0, 0.0).sum(-1).mean())
    ### END SOLUTION
# %%
check("03.captured", captured)
# %% [markdown]
# ## 4. The indexer's loss
#
# `p` (T, S) is the attention, the teacher; `scores` (T, S) are the indexer's. Give KL(*p* ‖ softmax(scores)): for each query the sum over keys of *p* · (log *p* − log softmax), averaged over queries. Use `log_softmax`. Where *p* is 0 the term is 0: `torch.xlogy(p, p)` is *p* · log *p* with 0 there.
# %%
def indexer_kl(p, scores):
    """p (T, S), scores (T, S) -> the loss, one number;
    0 when softmax(scores) equals p"""
    ### BEGIN SOLUTION
    return (torch.xlogy(p, p) - p * scores.log_softmax(-1)).sum(-1).mean()
    ### END SOLUTION
# %%
check("03.indexer_kl", indexer_kl)
# %% [markdown]
# **Next:** [exercises 04](04_mixture_of_experts.ipynb).
