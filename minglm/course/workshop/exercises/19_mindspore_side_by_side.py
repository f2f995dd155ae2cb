# %% [markdown]
# # Exercises 19: are the two the same?
#
# **You will learn** to write a router's choice as a table of fixed shape, to round a number as a chip does, and to say when two models agree.
#
# **Time:** 35 minutes. **You need:** [`19_mindspore_side_by_side`](../../learn/19_mindspore_side_by_side.ipynb). MindSpore is not needed.
# %%
import math

import torch

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. A shape that does not depend on the data
#
# A graph compiled beforehand lets every expert see every token and multiplies by a gate of zero where the router did not choose it. Build this table of gates.
#
# `chosen` and `gates` are tensors of shape (N, K): the experts of each token, in no particular order, and their gates. Give a tensor (N, E): the gate in the column of its expert, zero elsewhere. `torch.zeros(N, E).scatter(1, columns, values)` writes values into columns, row by row; N is `chosen.shape[0]`.
# %%
def dense_gates(chosen, gates, E):
    """chosen (N, K) int64, gates (N, K), E: int -> (N, E);
    [[2, 0]], [[0.7, 0.3]] and 4 -> [[0.3, 0.0, 0.7, 0.0]]"""
    ### BEGIN SOLUTION
    return torch.zeros(len(chosen), E).scatter(1, chosen, gates)
    ### END SOLUTION
# %%
check("19.dense_gates", dense_gates)
# %% [markdown]
# ## 2. Round as a chip does
#
# A floating-point number with `bits` bits after the point is ±1.xxx · 2ᵉ. Between 1 and 2 such numbers stand 2⁻ᵇⁱᵗˢ apart, between 2 and 4 twice as far, and so on: with 7 bits (bfloat16) the step at 100 is 64 · 2⁻⁷ = 0.5. Round `x` to the nearest of them.
#
# `math.frexp(x)` gives (m, e) with x = m · 2ᵉ and m between **a half** and 1, so the exponent in the formula above is e − 1. Very large and very small numbers, where a format ends, are not tested.
# %%
def round_to_bits(x, bits):
    """float, int -> float; (100.3, 7) -> 100.5, (-1.3, 7) -> -1.296875"""
    ### BEGIN SOLUTION
    exponent = math.frexp(x)[1] - 1
    step = 2.0 ** (exponent - bits)
    return round(x / step) * step
    ### END SOLUTION
# %%
check("19.round_to_bits", round_to_bits)
# %% [markdown]
# How large can the error be, as a share of x, with 7 bits? With 23 (fp32)? Then you know which tolerance a comparison in bfloat16 needs and why one of 10⁻⁵ makes sense in fp32 alone.
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# At most half a step. The step is 2⁻ᵇⁱᵗˢ · 2ᵉ and |x| at least 2ᵉ, so the share is at most 2⁻⁷/2 = 2⁻⁸, about 0.4%; in fp32 2⁻²⁴, about 6 · 10⁻⁸.
#
# </details>
#
# ## 3. When do two models agree?
#
# `got` and `want` are tensors. They agree if they have the same shape and **every** element of `got` is within `absolute + relative · |want|` of its partner. A relative bound alone cannot be met at zero, an absolute one alone says nothing about small numbers. A NaN agrees with nothing, not even with another NaN. Give `True` or `False`.
# %%
def agree(got, want, relative=1e-3, absolute=1e-5):
    """two tensors, two floats -> bool; [1.0, 2.0], [1.0005, 2.0] -> True;
    [1.0, 2.0], [1.0, 2.1] -> False"""
    ### BEGIN SOLUTION
    if got.shape != want.shape:
        return False
    return bool(((got - want).abs() <= absolute + relative * want.abs()).all())
    ### END SOLUTION
# %%
check("19.agree", agree)
# %% [markdown]
# **Next:** [exercises 20](20_fault_injection.ipynb).
