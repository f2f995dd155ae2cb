# %% [markdown]
# # Exercises 05: the craft of a training run
#
# **You will learn** the course of a learning rate, how to clip a gradient, what perplexity is, and how to work out MFU (model FLOPs utilization).
#
# **Time:** 30 minutes. **You need:** [`05_train_it`](../../learn/05_train_it.ipynb).
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The learning rate's course
#
# Give the factor by which the peak learning rate is multiplied at `step` (counted from 0). In the first `warmup` steps it rises in equal parts: step 0 has 1/warmup, step warmup − 1 has 1. Then it falls as a half cosine, from 1 at step `warmup` to `final` at step `steps`. `warmup` may be 0: then the fall begins at once.
#
# > final + (1 − final) · 0.5 · (1 + cos(π · progress)),  progress from 0 to 1
# %%
def learning_rate(step, steps, warmup, final):
    """step, steps, warmup: ints, final: float -> factor between 0 and 1"""
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    ### END SOLUTION
# %%
check("05.learning_rate", learning_rate)
# %% [markdown]
# ## 2. Clip
#
# One odd batch may give a huge gradient. Take all gradients together as one long vector. If its norm (the root of the sum of all squares) is above `limit`, multiply every gradient by the same factor, so that the norm becomes `limit`. Else leave them as they are; all may be 0.
# %%
def clip(grads, limit):
    """grads: list of tensors, limit: float -> list of tensors of the same shapes"""
    ### BEGIN SOLUTION
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    factor = limit / norm if norm > limit else 1.0
    return [g * factor for g in grads]
    ### END SOLUTION
# %%
check("05.clip", clip)
# %% [markdown]
# ## 3. Perplexity
#
# `losses` is a Python list: the loss of each token in nats. Perplexity is the exponential of their mean: the number of equally likely tokens that would be just as surprising.
# %%
def perplexity(losses):
    """list of floats -> float: [2.0, 4.0] -> 20.08..."""
    ### BEGIN SOLUTION
    return math.exp(sum(losses) / len(losses))
    ### END SOLUTION
# %%
check("05.perplexity", perplexity)
# %% [markdown]
# ## 4. MFU
#
# A run trains on `tokens_per_s` tokens each second. One token costs `flops_per_token` operations, forward and backward. The machine could do `peak` operations per second. What share of the peak does the run use? This share is the MFU.
# %%
def mfu(tokens_per_s, flops_per_token, peak):
    """Three floats -> share between 0 and 1"""
    ### BEGIN SOLUTION
    return tokens_per_s * flops_per_token / peak
    ### END SOLUTION
# %%
check("05.mfu", mfu)
# %% [markdown]
# **Next:** [exercises 06](06_mtp_and_speculative_decoding.ipynb).
