# %% [markdown]
# # Exercises 07: Muon
#
# **You will learn** the Newton–Schulz step, the whole iteration, why heads are treated apart, and how large an update is.
#
# **Time:** 30 minutes. **You need:** [`07_muon`](../../learn/07_muon.ipynb).
# %%
import math

import torch

from minglm.course.workshop import check, hint

FAST = (3.4445, -4.7750, 2.0315)
# %% [markdown]
# ## 1. One step
#
# > a·x + b·(x xᵀ) x + c·(x xᵀ)² x
#
# Products are matrix products (`@`); xᵀ is `x.mT`. The step leaves the directions of a matrix alone and sends each singular value s to a·s + b·s³ + c·s⁵.
# %%
def newton_schulz_step(x, a, b, c):
    """x a tensor (m, n); a, b, c numbers -> (m, n)"""
    ### BEGIN SOLUTION
    gram = x @ x.mT
    return a * x + (b * gram + c * gram @ gram) @ x
    ### END SOLUTION
# %%
check("07.newton_schulz_step", newton_schulz_step)
# %% [markdown]
# ## 2. The whole iteration
#
# Divide by the Frobenius norm (`x.norm()`, plus 1e-7 against zero), then take `steps` steps with the numbers `FAST`. If the matrix has more rows than columns, transpose it before and back afterwards. This is only for speed: x xᵀ is then the smaller product, and the result is the same.
# %%
def orthogonalise(m, steps):
    """m a tensor, steps a number -> the same shape, singular values near 1"""
    ### BEGIN SOLUTION
    tall = m.shape[0] > m.shape[1]
    x = m.mT if tall else m
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        x = newton_schulz_step(x, *FAST)
    return x.mT if tall else x
    ### END SOLUTION
# %%
check("07.orthogonalise", orthogonalise)
# %% [markdown]
# ## 3. Heads apart
#
# The rows of `update` are the rows of `heads` attention heads, one head after the other. Orthogonalise each head's block of rows alone, with five steps (GLM-5's "Muon split").
# %%
def per_head(update, heads):
    """update a tensor (heads * rows, n), heads a number -> the same shape"""
    ### BEGIN SOLUTION
    return torch.cat([orthogonalise(block, 5) for block in update.chunk(heads)])
    ### END SOLUTION
# %%
check("07.per_head", per_head)
# %% [markdown]
# ## 4. How large is an update?
#
# Suppose that a matrix (m, n) has been made orthogonal exactly: its min(m, n) singular values are all 1. It is multiplied by 0.2·sqrt(max(m, n)). What is the RMS (root of the mean square) of its numbers? The sum of the squares of all numbers equals the sum of the squares of the singular values.
# %%
def update_rms(m, n):
    """numbers of rows and columns -> RMS of the update before the learning rate"""
    ### BEGIN SOLUTION
    before = math.sqrt(min(m, n) / (m * n))
    return 0.2 * math.sqrt(max(m, n)) * before
    ### END SOLUTION
# %%
check("07.update_rms", update_rms)
# %% [markdown]
# <details style="margin-bottom:1em"><summary>What does the answer mean for the learning rate?</summary>
#
# The RMS is 0.2 for every shape: min(m, n) · max(m, n) = m · n, so the shape cancels. One learning rate fits all matrices.
#
# </details>
#
# **Next:** [exercises 08](08_long_context_and_the_needle.ipynb).
