# %% [markdown]
# # Exercises 14: using old answers fairly
#
# **You will learn** the rule that bounds staleness, the weight that corrects for it, and two ways to keep that weight from exploding.
#
# **Time:** 35 minutes. **You need:** [`14_staleness`](../../learn/14_staleness.ipynb).
#
# Two policies meet here. `logp_old` is what the trainer's weights say about a token now; `logp_behaviour` is what the weights that **wrote** the token said then. Both are log-probabilities, (N, T).
# %%
import torch

from minglm.workshop import check


# %% [markdown]
# ## 1. May another one start?
#
# The trainer has made `version` updates; each uses `batch` groups. So far `started` groups have been started in all. A group may start if, in the order in which they started, it will be trained on at most `eta` versions after the present one: the first `(eta + version + 1) * batch` groups may start. How many new ones may start now? Never fewer than none.
# %%
def may_start(version, batch, eta, started):
    """(version=0, batch=8, eta=0, started=0) -> 8;  with eta=1 -> 16"""
    ### BEGIN SOLUTION
    return max(0, (eta + version + 1) * batch - started)
    ### END SOLUTION
# %%
check("14.may_start", may_start)
# %% [markdown]
# ## 2. The correction
#
# A token that the trainer would write twice as often as its author should count twice. Give for each token the weight *π_old / μ*: the trainer's probability over the author's. A correction is a number, not a path for gradients: **detach** it.
# %%
def importance(logp_old, logp_behaviour):
    """(N, T), (N, T) -> (N, T), without gradient"""
    ### BEGIN SOLUTION
    return (logp_old - logp_behaviour).exp().detach()
    ### END SOLUTION
# %%
check("14.importance", importance)
# %% [markdown]
# ## 3. Truncated
#
# One token with a weight of 50 drowns a whole batch. Truncated importance sampling (TIS) limits the weight: above `high` it is `high`. Small weights stay.
# %%
def truncated(weight, high):
    """([0.1, 1.5, 50.0], high=2.0) -> [0.1, 1.5, 2.0]"""
    ### BEGIN SOLUTION
    return weight.clamp(max=high)
    ### END SOLUTION
# %%
check("14.truncated", truncated)
# %% [markdown]
# ## 4. Left out
#
# IcePop, in GLM-5's report, does not trust such a token at all: the weight stays as it is from 1/β to β, both included, and is **0** outside.
# %%
def icepop(weight, beta):
    """([0.1, 1.5, 50.0], beta=2.0) -> [0.0, 1.5, 0.0]"""
    ### BEGIN SOLUTION
    inside = (weight >= 1 / beta) & (weight <= beta)
    return torch.where(inside, weight, 0.0)
    ### END SOLUTION
# %%
check("14.icepop", icepop)
# %% [markdown]
# **Next:** [exercises 15](15_hallucination.ipynb).
