# %% [markdown]
# # Exercises 04: experts in balance
#
# **You will learn** to route tokens with a bias that steers but does not distort, to move that bias, and to measure how uneven the work is.
#
# **Time:** 25 minutes. **You need:** [`04_mixture_of_experts`](../../learn/04_mixture_of_experts.ipynb).
#
# Shapes: N tokens, E experts, k chosen.
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Route
#
# `scores` (N, E) are sigmoids, `bias` has one number for each expert. Choose for each token the `k` experts with the highest *score + bias*. The gate of a chosen expert is its **raw** score, scaled so that the gates of each token add up to `scale`. Give all gates as a tensor (N, E), 0 for experts that were not chosen.
#
# With `chosen` and `chosen_gates` of shape (N, k), `torch.zeros_like(scores).scatter(-1, chosen, chosen_gates)` puts the gates into their columns. `sum(-1, keepdim=True)` gives the shape (N, 1), by which a tensor (N, k) can be divided.
# %%
def route(scores, bias, k, scale):
    """scores (N, E), bias (E,), k: int, scale: float -> all gates (N, E)"""
    ### BEGIN SOLUTION
    chosen = (scores + bias).topk(k, -1).indices
    picked = scores.gather(-1, chosen)
    chosen_gates = scale * picked / picked.sum(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, chosen, chosen_gates)
    ### END SOLUTION
# %%
check("04.route", route)
# %% [markdown]
# ## 2. Move the bias
#
# `counts` (E,) says how many tokens each expert had; it holds whole numbers, so their mean is `counts.float().mean()`. An expert with less than the mean gets `rate` more bias, one with more than the mean gets `rate` less; one exactly at the mean keeps its bias. Give the new bias.
# %%
def move_bias(bias, counts, rate):
    """bias (E,), counts (E,) of int64, rate: float -> new bias (E,)"""
    ### BEGIN SOLUTION
    load = counts.float()
    return bias + rate * torch.sign(load.mean() - load)
    ### END SOLUTION
# %%
check("04.move_bias", move_bias)
# %% [markdown]
# ## 3. How uneven is it?
#
# Each expert sits on its own chip, and a step is over when the busiest is done. How many times as long does it take as with even work? `counts`, a Python list, says how many tokens each expert had.
# %%
def unevenness(counts):
    """list of ints -> float: [10, 2, 4, 8] -> 1.666..."""
    ### BEGIN SOLUTION
    return max(counts) / (sum(counts) / len(counts))
    ### END SOLUTION
# %%
check("04.unevenness", unevenness)
# %% [markdown]
# **Next:** [exercises 05](05_train_it.ipynb).
