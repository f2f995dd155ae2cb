# %% [markdown]
# # Exercises 06: looking ahead
#
# **You will learn** what the prediction module is asked at each depth, how much of a draft may be kept, what speculation gains, and how sampling stays exact.
#
# **Time:** 35 minutes. **You need:** [`06_mtp_and_speculative_decoding`](../../learn/06_mtp_and_speculative_decoding.ipynb).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. What each depth predicts
#
# The main model (depth 0) has read tokens 0 to i and predicts token i+1. At depth d the module, at place i, joins the hidden state of depth d−1 at place i with the embedding of token i+d, and predicts token i+d+1. Give a list: for every place i that has a label the pair (joined token, label).
# %%
def depth_targets(tokens, depth):
    """[1, 2, 3, 4], 1 -> [(2, 3), (3, 4)];  [1, 2, 3, 4], 2 -> [(3, 4)]"""
    ### BEGIN SOLUTION
    places = range(len(tokens) - depth - 1)
    return [(tokens[i + depth], tokens[i + depth + 1]) for i in places]
    ### END SOLUTION
# %%
check("06.depth_targets", depth_targets)
# %% [markdown]
# ## 2. How much of the draft is kept?
#
# `draft` is a list of guessed tokens; `main` lists what the main model says at the same places, having read the guesses before each. Decoding is greedy. A kept guess becomes part of the text, and the text must stay the one that the main model would write alone. How many guesses may be kept?
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
# If all drafted tokens before it were right, a drafted token is right with the chance `rate`. In one **pass** the main model reads `depth` drafted tokens, keeps their right beginning and adds one token of its own, always. How many tokens does a pass give on average?
# %%
def tokens_per_pass(rate, depth):
    """rate from 0 to 1, depth from 0: 0.5, 1 -> 1.5"""
    ### BEGIN SOLUTION
    return sum(rate**j for j in range(depth + 1))
    ### END SOLUTION
# %%
check("06.tokens_per_pass", tokens_per_pass)
# %% [markdown]
# ## 4. Exact, even when sampling
#
# The draft was drawn from `q`; the main model's distribution is `p`. A drafted token x is kept with the chance min(1, p[x] / q[x]). If it is rejected, draw a second time, from what p has *more* than q: max(0, p[x] − q[x]) for each token x, all scaled to add up to 1. Then the result is distributed exactly as p. Give the distribution for the second draw. (For a tensor t, max(0, t) number by number is `t.clamp(min=0)`.)
# %%
def residual(p, q):
    """p, q tensors (V,) -> tensor (V,), adds up to 1"""
    ### BEGIN SOLUTION
    rest = torch.clamp(p - q, min=0)
    return rest / rest.sum()
    ### END SOLUTION
# %%
check("06.residual", residual)
# %% [markdown]
# **Next:** [exercises 07](07_muon.ipynb).
