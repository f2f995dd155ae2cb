# %% [markdown]
# # Exercises 14: using old answers fairly
#
# **You will learn** the rule that bounds staleness, the weight that corrects for it, and two ways to keep that weight from exploding.
#
# **Time:** 35 minutes. **You need:** [`14_staleness`](../../learn/14_staleness.ipynb).
#
# Two policies meet here. `logp_old` is what the **trainer's** weights say about a token now. "Old" is the usual name: the trainer before this update. It is newer than the author. `logp_behaviour` is what the **author**, the weights that wrote the token, said then. Both are log-probabilities, float tensors (N, T).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. How many may start?
#
# A group is the answers to one problem. The trainer has made `version` updates; each uses `batch` groups. So far `started` groups have been started in all. A group may start only if it will be trained on at most `max_staleness` versions after the present one. Groups are trained on in the order of their start. So the first `(max_staleness + version + 1) * batch` groups may have started. How many new ones may start now? At least 0.
# %%
def may_start(version, batch, max_staleness, started):
    """four ints -> an int; (version=0, batch=8, max_staleness=0, started=0) -> 8;
    with max_staleness=1 -> 16"""
    ### BEGIN SOLUTION
    return max(0, (max_staleness + version + 1) * batch - started)
    ### END SOLUTION
# %%
check("14.may_start", may_start)
# %% [markdown]
# ## 2. The correction
#
# A token that the trainer would write twice as often as its author should count twice. Give for each token the weight *π_old / μ*: the trainer's probability (`logp_old` is its logarithm) over μ, the author's (`logp_behaviour`). A correction is a number, not a path for gradients: **detach** it.
# %%
def importance(logp_old, logp_behaviour):
    """float (N, T), float (N, T) -> float tensor (N, T), without gradient"""
    ### BEGIN SOLUTION
    return (logp_old - logp_behaviour).exp().detach()
    ### END SOLUTION
# %%
check("14.importance", importance)
# %% [markdown]
# ## 3. Truncated
#
# One token with a weight of 50 counts as much as fifty others. `weight` is a float tensor of any shape. Truncated importance sampling (TIS) limits the weight: above `high` it is `high`. Small weights stay.
# %%
def truncated(weight, high):
    """tensor, float -> tensor of the same shape;
    (torch.tensor([0.1, 1.5, 50.0]), high=2.0) -> [0.1, 1.5, 2.0]"""
    ### BEGIN SOLUTION
    return weight.clamp(max=high)
    ### END SOLUTION
# %%
check("14.truncated", truncated)
# %% [markdown]
# ## 4. Left out
#
# IcePop, in GLM-5's report, does not trust a token whose weight is far from 1, large or small: the weight stays as it is from 1/β to β, both included, and is **0** outside. β is `beta`, and greater than 1; `weight` is a float tensor of any shape.
# %%
def icepop(weight, beta):
    """tensor, float -> tensor of the same shape;
    (torch.tensor([0.1, 1.5, 50.0]), beta=2.0) -> [0.0, 1.5, 0.0]"""
    ### BEGIN SOLUTION
    inside = (weight >= 1 / beta) & (weight <= beta)
    return torch.where(inside, weight, 0.0)
    ### END SOLUTION
# %%
check("14.icepop", icepop)
# %% [markdown]
# **Next:** [exercises 15](15_hallucination.ipynb).
