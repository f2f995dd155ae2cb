# %% [markdown]
# # Exercises 11: the same model
#
# **You will learn** to take a stack of experts apart into the single matrices that a checkpoint stores, and to judge whether two implementations agree.
#
# **Time:** 20 minutes. **You need:** [`11_open_it_elsewhere`](../../learn/11_open_it_elsewhere.ipynb).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. One expert out of the stack
#
# In memory all experts lie in one tensor `gate_up` (E, 2·I, C): for each expert first the I rows of the gate projection, then the I rows of the up projection. On disk they are apart. Give the two matrices of expert `e`, each (I, C), as a pair (gate, up).
# %%
def take_apart(gate_up, e):
    """gate_up a tensor (E, 2I, C), e a number -> a pair of tensors: gate (I, C), up
    (I, C)"""
    ### BEGIN SOLUTION
    gate, up = gate_up[e].chunk(2)
    return gate, up
    ### END SOLUTION
# %%
check("11.take_apart", take_apart)
# %% [markdown]
# ## 2. Do they agree?
#
# `ours` and `theirs` are logits (T, V). They count as equal if for **every number** the difference itself, large or small as the number may be, is at most `tolerance` (exactly `tolerance` is still equal). A NaN anywhere is a disagreement, even where both have one: two models that both broke have proved nothing. Give True or False.
# %%
def agree(ours, theirs, tolerance):
    """ours, theirs tensors (T, V), tolerance a number -> True or False"""
    ### BEGIN SOLUTION
    return bool(torch.all((ours - theirs).abs() <= tolerance))
    ### END SOLUTION
# %%
check("11.agree", agree)
# %% [markdown]
# **Next:** [exercises 12](12_rl_from_verifiable_rewards.ipynb).
