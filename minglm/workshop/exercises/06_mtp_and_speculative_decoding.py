# %% [markdown]
# # Exercises 06: looking ahead
#
# **You will learn** what the prediction module is asked at each depth, how much of a draft may be kept, what speculation gains, and how sampling stays exact.
#
# **Time:** 35 minutes. **You need:** [`06_mtp_and_speculative_decoding`](../../learn/06_mtp_and_speculative_decoding.ipynb).
# %%
from minglm.workshop import check


# %% [markdown]
# ## 1. What each depth predicts
#
# The main model (depth 0) has read tokens 0 to i and predicts token i+1. At depth d the module, at place i, joins the embedding of token i+d and predicts token i+d+1. Give for every place i that has a label the pair (joined token, label).
# %%
def depth_targets(tokens, depth):
    """[1, 2, 3, 4], 1 -> [(2, 3), (3, 4)]"""
    ### BEGIN SOLUTION
    return [(tokens[i + depth], tokens[i + depth + 1]) for i in range(len(tokens) - depth - 1)]
    ### END SOLUTION
# %%
check("06.depth_targets", depth_targets)
# %% [markdown]
# ## 2. How much of the draft is kept?
#
# `draft` is a list of guessed tokens; `main` is what the main model says at the same places. Decoding is greedy. How many drafted tokens may be kept?
# %%
def kept(draft, main):
    """[1, 2, 3], [1, 2, 9] -> 2"""
    ### BEGIN SOLUTION
    count = 0
    for guess, truth in zip(draft, main):
        if guess != truth:
            break
        count += 1
    return count
    ### END SOLUTION
# %%
check("06.kept", kept)
# %% [markdown]
# ## 3. What does it gain?
#
# Suppose each drafted token is right with the chance `rate`, if all before it were right. How many tokens does one pass of the main model give on average, with `depth` drafted tokens? (One token comes from the main model itself, always.)
# %%
def tokens_per_pass(rate, depth):
    """0.5, 1 -> 1.5"""
    ### BEGIN SOLUTION
    return sum(rate**j for j in range(depth + 1))
    ### END SOLUTION
# %%
check("06.tokens_per_pass", tokens_per_pass)
# %% [markdown]
# ## 4. Exact, even when sampling
#
# The draft was drawn from `q`; the main model's distribution is `p`. A drafted token x is kept with the chance min(1, p[x] / q[x]). If it is rejected, draw another one from what p has *more* than q: max(0, p − q), scaled to add up to 1. Then the result is distributed exactly as p. Give that remaining distribution.
# %%
def residual(p, q):
    """(V,), (V,) -> (V,), adds up to 1"""
    ### BEGIN SOLUTION
    rest = (p - q).clamp(min=0)
    return rest / rest.sum()
    ### END SOLUTION
# %%
check("06.residual", residual)
# %% [markdown]
# **Next:** [exercises 07](07_muon.ipynb).
