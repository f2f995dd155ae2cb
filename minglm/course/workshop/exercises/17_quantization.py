# %% [markdown]
# # Exercises 17: fewer bits
#
# **You will learn** to round weights to four bits with a scale for each group, to put two of them into one byte, and to say what the scales cost.
#
# **Time:** 35 minutes. **You need:** [`17_quantization`](../../learn/17_quantization.ipynb).
# %%
import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Round in groups
#
# `weight` is a 1-D tensor. Cut it into groups of `group` neighbours (its length is a multiple of `group`). Each group has one scale: its largest absolute value, divided by 7. Each code is the weight over its scale, rounded to a whole number (−7 to 7). Give the **rounded weights**, a tensor like `weight`: codes times scale. A group of zeros stays zeros.
#
# `weight.view(-1, group)` makes each group a row; `.abs().amax(1, keepdim=True)` gives the largest of each; `.view(-1)` at the end makes it 1-D again.
# %%
def round_int4(weight, group):
    """weight: tensor (n,), group: int -> tensor (n,);
    [7.0, 1.2, 0.0, 0.0] and 2 -> [7.0, 1.0, 0.0, 0.0]"""
    ### BEGIN SOLUTION
    groups = weight.view(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / 7
    scale = torch.where(scale > 0, scale, 1.0)
    return ((groups / scale).round() * scale).view(-1)
    ### END SOLUTION
# %%
check("17.round_int4", round_int4)
# %% [markdown]
# ## 2. Two in a byte
#
# `codes` is a list of whole numbers from −7 to 7, an even number of them. Add 8 to each, so that it lies between 1 and 15, and put two neighbours into one byte: the first into the **low** four bits, the second into the high four. Give the bytes as a list of whole numbers. (`x << 4` moves x four bits up; `|` joins.)
# %%
def pack(codes):
    """list of n ints -> list of n/2 ints;
    [-7, 7] -> [241], as 7 + 8 = 15 is high, -7 + 8 = 1 is low: 15 * 16 + 1"""
    ### BEGIN SOLUTION
    out = []
    for low, high in zip(codes[0::2], codes[1::2]):
        out.append((low + 8) | (high + 8) << 4)
    return out
    ### END SOLUTION
# %%
check("17.pack", pack)
# %% [markdown]
# ## 3. What scales cost
#
# Every code has `bits` bits, every scale `scale_bits`, and `group` weights share a scale. How many GiB (2³⁰ bytes) do `n` weights need?
# %%
def size_gib(n, bits, group, scale_bits=16):
    """four numbers -> a number; (2**30, 8, 16) -> 1.125"""
    ### BEGIN SOLUTION
    return n * (bits + scale_bits / group) / 8 / 2**30
    ### END SOLUTION
# %%
check("17.size_gib", size_gib)
# %% [markdown]
# Try `size_gib(744e9, 4, 128)` and `size_gib(744e9, 16, 1, 0)`: 4 bits with scales, and 16 bits without. How many chips of 64 GiB does each need, with nothing else in memory?
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# 357 GiB and 1386 GiB, so 6 chips and 22.
#
# </details>
#
# **Next:** [exercises 18](18_past_one_machine.ipynb).
