# %% [markdown]
# # Exercises 09: learning to answer
#
# **You will learn** which tokens of a conversation count, how several conversations share a row, and how to average a loss when most tokens are ignored.
#
# **Time:** 25 minutes. **You need:** [`09_sft`](../../learn/09_sft.ipynb).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Targets
#
# `ids` are the tokens of a conversation; `counted[i]` says (True or False) whether token i belongs to the assistant's answer. At place i the model predicts token i+1. Give the list of targets: the next token where it is counted, −100 where it is not. There is one target fewer than tokens.
# %%
def targets(ids, counted):
    """[0, 4, 11, 5, 21, 1] with [F, F, F, F, T, T] -> [-100, -100, -100, 21, 1]"""
    ### BEGIN SOLUTION
    return [token if keep else -100 for token, keep in zip(ids[1:], counted[1:])]
    ### END SOLUTION
# %%
check("09.targets", targets)
# %% [markdown]
# ## 2. Several in a row
#
# Conversations of the given lengths are written one after the other into a row. Each token may see its own conversation only. Give one list: for each token the place in the row (from 0) where its conversation starts.
# %%
def packed_starts(lengths):
    """[3, 2] -> [0, 0, 0, 3, 3]"""
    ### BEGIN SOLUTION
    out = []
    for length in lengths:
        out += [len(out)] * length
    return out
    ### END SOLUTION
# %%
check("09.packed_starts", packed_starts)
# %% [markdown]
# ## 3. The mean of what counts
#
# `losses` and `labels` (the targets of exercise 1) are tensors of the same length. Average the losses over the places whose label is not −100. If there is none, the loss is 0.
# %%
def counted_mean(losses, labels):
    """losses (N,) floats, labels (N,) integers -> a number, not a tensor of shape
    (1,)"""
    ### BEGIN SOLUTION
    keep = labels != -100
    return float(torch.where(keep, losses, 0).sum() / keep.sum().clamp(min=1))
    ### END SOLUTION
# %%
check("09.counted_mean", counted_mean)
# %% [markdown]
# **Next:** [exercises 10](10_evaluation.ipynb).
