# %% [markdown]
# # Exercises 12: learning from being right
#
# **You will learn** to write a verifier that cannot be fooled, to turn rewards into advantages, and to write the loss that makes a good answer likelier.
#
# **Time:** 35 minutes. **You need:** [`12_rl_from_verifiable_rewards`](../../learn/12_rl_from_verifiable_rewards.ipynb).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The verifier
#
# `text` is what the model wrote: a scratchpad, then `#`, then its result, such as `a7b11c20#20`. `answer` is the right result, a string. Give 1.0 if `text` holds **exactly one** `#` and what follows it is `answer`, character by character; spaces before or after it do not matter. Else give 0.0. A model that may write several results would soon write them all.
# %%
def reward(text, answer):
    """two strings -> a number; ("a7b11#11", "11") -> 1.0;  ("#1#11", "11") -> 0.0"""
    ### BEGIN SOLUTION
    if text.count("#") != 1:
        return 0.0
    return float(text.split("#")[1].strip() == answer)
    ### END SOLUTION
# %%
check("12.reward", reward)
# %% [markdown]
# ## 2. Better than its group
#
# `rewards` is (G, n): n answers to each of G problems. The advantage of an answer is its reward minus the mean of **its own group**, divided by the group's standard deviation (divide by n, not n − 1: `correction=0`). Where all rewards of a group are equal, all its advantages are 0 (a number such as 1e-6 may be added to the deviation; 1e-8 is too small).
# %%
def advantages(rewards):
    """float tensor (G, n) -> float tensor (G, n)"""
    ### BEGIN SOLUTION
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True, correction=0)
    flat = spread < 1e-6
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, spread))
    ### END SOLUTION
# %%
check("12.advantages", advantages)
# %% [markdown]
# ## 3. Make it likelier
#
# `logp` (N, T) are the log-probabilities of the tokens of N answers, `advantage` (N,) one number for each answer, `mask` (N, T) is True for tokens that the model wrote and False for padding. Give the loss
#
# > − Σ advantage · log *p*, over all tokens where `mask` is True, divided by the **number of these tokens**, in all answers together.
#
# This is the average of DAPO (arXiv 2503.14476): every token counts the same. GRPO's paper (arXiv 2402.03300) averages each answer over its own tokens first and then the answers; that is no mistake, but a token of a long answer counts less there. We ask for DAPO's.
#
# What `logp` holds where the mask is False means nothing: it may even be −∞.
# %%
def policy_loss(logp, advantage, mask):
    """float (N, T), float (N,), bool (N, T) -> tensor of shape () with a gradient"""
    ### BEGIN SOLUTION
    weighted = advantage[:, None] * logp
    return -torch.where(mask, weighted, 0.0).sum() / mask.sum()
    ### END SOLUTION
# %%
check("12.policy_loss", policy_loss)
# %% [markdown]
# **Next:** [exercises 13](13_the_long_tail_and_april.ipynb).
