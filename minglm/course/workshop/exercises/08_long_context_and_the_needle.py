# %% [markdown]
# # Exercises 08: long texts
#
# **You will learn** what `rope_theta` sets, how a needle test is built, and how to read its table.
#
# **Time:** 25 minutes. **You need:** [`08_long_context_and_the_needle`](../../learn/08_long_context_and_the_needle.ipynb).
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. A wavelength
#
# `width` numbers of a head are turned in pairs, counted from 0. One step to the right in the text turns pair number `pair` by the angle `theta ** (-2 * pair / width)`. After how many steps has it turned once around (2π)?
# %%
def wavelength(theta, width, pair):
    """numbers -> positions for a full turn, a number"""
    ### BEGIN SOLUTION
    return 2 * math.pi * theta ** (2 * pair / width)
    ### END SOLUTION
# %%
check("08.wavelength", wavelength)
# %% [markdown]
# ## 2. Hide a needle
#
# Build a prompt of exactly `length` tokens: filler, with the needle at `depth` (0 before all filler, 1 after it), and the question at the end. Take filler tokens from the front of `filler`. The needle stands after round(depth × number of filler tokens used) of them, with Python's `round`; after it the filler goes on where it stopped.
# %%
def needle_prompt(filler, needle, question, length, depth):
    """filler, needle, question lists of tokens;
    depth from 0 to 1 -> list of exactly `length` tokens"""
    ### BEGIN SOLUTION
    room = length - len(needle) - len(question)
    at = round(depth * room)
    return filler[:at] + needle + filler[at:room] + question
    ### END SOLUTION
# %%
check("08.needle_prompt", needle_prompt)
# %% [markdown]
# ## 3. The table
#
# `rows` is a list of (depth, length, right), in any order: right is True or False. Every depth occurs with every length at least once. Give the share of right answers as a list of rows, one for each depth in rising order, each with one number for each length in rising order.
# %%
def accuracy_table(rows):
    """-> [[share, ...], ...]"""
    ### BEGIN SOLUTION
    depths = sorted({depth for depth, _, _ in rows})
    lengths = sorted({length for _, length, _ in rows})

    def share(depth, length):
        hits = [right for d, n, right in rows if d == depth and n == length]
        return sum(hits) / len(hits)

    return [[share(depth, length) for length in lengths] for depth in depths]
    ### END SOLUTION
# %%
check("08.accuracy_table", accuracy_table)
# %% [markdown]
# **Next:** [exercises 09](09_sft.ipynb).
