# %% [markdown]
# # Build it yourself 3: the losses after pre-training
#
# The model stands. What makes a base model answer is its loss: first only the assistant's tokens count (SFT), then a reward decides which samples become likelier (GRPO).
#
# **You will learn** to write the masked loss of SFT, group advantages, the clipped ratio, the KL estimator k3, and the three ways to average (GRPO, DAPO, Dr. GRPO), side by side.
#
# **Time:** under a minute of computing, 45 minutes of typing and 15 minutes to read. **You need:** [`build_2_model`](build_2_model.ipynb); [`09_sft`](09_sft.ipynb) and [`12_rl_from_verifiable_rewards`](12_rl_from_verifiable_rewards.ipynb) help. No network.
#
# Shapes: N sequences, T tokens, V vocabulary, G groups, n samples of a group.
# %%
import torch

from minglm.course.notebook import show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import pictures

torch.manual_seed(0);


# %% [markdown]
# ## 1. SFT: only the answer counts
#
# Mean cross-entropy, −log of the probability that the model gives to the target, over the tokens where `mask` is True; all tokens of the batch together. `log_softmax(-1)` is stable where a softmax and a log would not be.
# %%
def sft_loss(logits, targets, mask):
    """logits (N, T, V), targets (N, T) int64, mask (N, T) bool -> scalar"""
    ### BEGIN SOLUTION
    logp = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -logp[mask].mean()
    ### END SOLUTION


# %%
check("build_3.sft_loss", sft_loss)


# %% [markdown]
# ## 2. Advantages of a group
#
# A group is one prompt with n samples. The advantage of a sample is its reward minus the group's mean and, in GRPO (arXiv 2402.03300), divided by the group's standard deviation (of the population, `correction=0`). Dr. GRPO (arXiv 2503.20783) leaves the division out.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> all samples of a group are right. What does it teach?</summary>
#
# Nothing: all advantages are 0. The division must not make that 0/0.
#
# </details>
# %%
def advantages(rewards, divide):
    """rewards (G, n), divide bool -> (G, n)"""
    ### BEGIN SOLUTION
    centred = rewards - rewards.mean(1, keepdim=True)
    if not divide:
        return centred
    spread = rewards.std(1, keepdim=True, correction=0)
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)
    ### END SOLUTION


# %%
check("build_3.advantages", advantages)
# %% [markdown]
# ## 3. Ratio and clip
#
# *r* = π/π_old, from log-probabilities. The loss of a token is −min( *r*·A, clip(*r*)·A ), with clip(*r*) between 1 − low and 1 + high. The picture shows what the minimum does: it takes the gradient away only where the policy has **already** moved far in the direction that the advantage asks for.
# %%
show(*pictures.clipped_by_ratio())


# %%
def clipped(logp, logp_old, advantage, low, high):
    """logp and logp_old (N, T), advantage (N,) -> loss of each token (N, T)"""
    ### BEGIN SOLUTION
    ratio = (logp - logp_old).exp()
    A = advantage[:, None]
    return -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)
    ### END SOLUTION


# %%
check("build_3.clipped", clipped)


# %% [markdown]
# ## 4. KL to a reference
#
# GRPO adds β times an estimate of KL(π‖π_ref). Its estimator, k3, is never negative: with *d* = log π_ref − log π it is e^*d* − 1 − *d*. DAPO and GLM-5 leave the KL out.
# %%
def k3(logp, logp_ref):
    """logp and logp_ref (N, T) -> (N, T)"""
    ### BEGIN SOLUTION
    d = logp_ref - logp
    return d.exp() - 1 - d
    ### END SOLUTION


# %%
check("build_3.k3", k3)


# %% [markdown]
# ## 5. Three ways to average
#
# | name | a batch's loss from its tokens' losses |
# |---|---|
# | `"grpo"` | mean over each sequence's own tokens, then over sequences |
# | `"dapo"` | mean over all counted tokens of the batch (arXiv 2503.14476) |
# | `"dr_grpo"` | sum over all counted tokens, divided by N · `length`, a constant |
#
# In GRPO a token of a long answer counts less than one of a short answer; in DAPO and Dr. GRPO all count alike.
#
# Of GLM-5 this much is known: slime, its makers' framework, takes the first way unless told otherwise (its documentation,
# `docs/en/get_started/usage.md`), and its script for GLM-5 does not tell otherwise (`scripts/run-glm5-744B-A40B.sh`).
# %%
def average(losses, mask, how, length):
    """losses (N, T), mask (N, T) bool, a True in each row, length int -> scalar"""
    ### BEGIN SOLUTION
    losses = losses.where(mask, 0.0)
    if how == "grpo":
        return (losses.sum(1) / mask.sum(1)).mean()
    if how == "dapo":
        return losses.sum() / mask.sum()
    return losses.sum() / (len(losses) * length)
    ### END SOLUTION


# %%
check("build_3.average", average)
# %%
show(*pictures.weight_of_a_token(average))
# %% [markdown]
# The bars are the gradient that one token gets, in a batch with one short and one long answer. With `minglm.rl.objectives.grpo` the whole can be compared: `average="sequence"` is GRPO's, `average="token"` DAPO's; a test does that with the worked solution.
#
# **Next:** [build 4](build_4_training.ipynb): the optimisers and the loop.
