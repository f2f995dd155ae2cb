# %% [markdown]
# # Exercises 05: the craft of a training run
#
# **You will learn** the course of a learning rate, how to clip a gradient, what perplexity is, and how to work out MFU.
#
# **Time:** 30 minutes. **You need:** [`05_train_it`](../../learn/05_train_it.ipynb).
# %%
import math

from minglm.workshop import check


# %% [markdown]
# ## 1. The learning rate's course
#
# Give the factor by which the peak learning rate is multiplied at `step` (counted from 0). In the first `warmup` steps it rises in equal parts: step 0 has 1/warmup, step warmup − 1 has 1. Then it falls as a half cosine, from 1 at step `warmup` to `final` at step `steps`:
#
# > final + (1 − final) · 0.5 · (1 + cos(π · progress)),  progress from 0 to 1
# %%
def learning_rate(step, steps, warmup, final):
    """-> factor between 0 and 1"""
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
# One odd batch may give a huge gradient. All gradients together are one long list of numbers; if its length (the root of the sum of all squares) is above `limit`, shorten it to `limit`, keeping its direction. Give new tensors.
# %%
def clip(grads, limit):
    """list of tensors -> list of tensors"""
    ### BEGIN SOLUTION
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    factor = min(1.0, limit / norm)
    return [g * factor for g in grads]
    ### END SOLUTION
# %%
check("05.clip", clip)
# %% [markdown]
# ## 3. Perplexity
#
# Losses of single tokens are in nats. Perplexity is the exponential of their mean: the number of equally likely tokens that would be just as surprising.
# %%
def perplexity(losses):
    """[2.0, 4.0] -> 20.08..."""
    ### BEGIN SOLUTION
    return math.exp(sum(losses) / len(losses))
    ### END SOLUTION
# %%
check("05.perplexity", perplexity)
# %% [markdown]
# ## 4. MFU
#
# A run does `tokens_per_s`; one token costs `flops_per_token` operations to train on (forward and backward); the machine could do `peak` operations per second. Which share of the peak does the model's own work reach?
# %%
def mfu(tokens_per_s, flops_per_token, peak):
    """-> share between 0 and 1"""
    ### BEGIN SOLUTION
    return tokens_per_s * flops_per_token / peak
    ### END SOLUTION
# %%
check("05.mfu", mfu)
# %% [markdown]
# **Next:** [exercises 06](06_mtp_and_speculative_decoding.ipynb).
