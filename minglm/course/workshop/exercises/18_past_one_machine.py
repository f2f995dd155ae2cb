# %% [markdown]
# # Exercises 18: who sends what to whom
#
# **You will learn** to count the rows that go to each process, to say what a ring of processes sends for one sum, and to join the losses of processes that had unequal work.
#
# **Time:** 30 minutes. **You need:** [`18_past_one_machine`](../../learn/18_past_one_machine.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Rows for their owners
#
# With expert parallelism (`--ep`) each process owns a block of neighbouring experts: with 8 experts and 2 processes, process 0 owns experts 0 to 3, process 1 owns 4 to 7. **Each** choice makes one row, a copy of the token's vector, even if two chosen experts live in the same process.
#
# `chosen[i]` is the list of experts of token i. There are `experts` experts and `ep` processes; each owns `experts / ep`, a whole number. Give how many rows go to each process, a list of `ep` numbers (a row that stays at home counts too).
# %%
def rows_to_send(chosen, experts, ep):
    """list of lists of ints, two ints -> list of ep ints;
    ([[0, 5], [1, 2]], 8, 2) -> [3, 1]"""
    ### BEGIN SOLUTION
    out = [0] * ep
    for token in chosen:
        for expert in token:
            out[expert // (experts // ep)] += 1
    return out
    ### END SOLUTION
# %%
check("18.rows_to_send", rows_to_send)
# %% [markdown]
# ## 2. A sum in a ring
#
# Each of `n` processes holds `size` bytes of gradients, and all need the sum. They stand in a ring and cut what they hold into `n` equal parts (`size / n` need not be whole). In the first lap each passes one part on to its neighbour in each of n − 1 steps, and the neighbour adds its own; then every process holds one part that is summed up. In a second lap of n − 1 steps these finished parts go round: again each process passes one part on in each step.
#
# How many bytes does **one** process send?
# %%
def ring_bytes(size, n):
    """two numbers -> a number; (1200, 4) -> 1800.0"""
    ### BEGIN SOLUTION
    return 2 * (n - 1) * size / n
    ### END SOLUTION
# %%
check("18.ring_bytes", ring_bytes)
# %% [markdown]
# Try `ring_bytes(1, n)` for n = 2, 8, 1000. How much more does each process send with 1000 than with 8? (Bytes are not all: the ring has 2 · (n − 1) steps, and each waits for a wire.)
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# 1, 1.75 and 1.998 times `size`: only 14% more with 1000 than with 8, and never more than 2. But the steps grow from 14 to 1998.
#
# </details>
#
# ## 3. One loss from many
#
# `losses[i]` is the mean loss of process i over its targets, `targets[i]` how many it had. A process that got nothing but prompt and padding has no target, and its mean is 0/0, which is NaN. Give the mean over **all** targets, as one process would have computed it alone. At least one process has targets.
# %%
def joint_loss(losses, targets):
    """list of floats, list of ints -> a number; ([2.0, 4.0], [30, 10]) -> 2.5"""
    ### BEGIN SOLUTION
    total = sum(loss * n for loss, n in zip(losses, targets) if n > 0)
    return total / sum(targets)
    ### END SOLUTION
# %%
check("18.joint_loss", joint_loss)
# %% [markdown]
# **Next:** [exercises 19](19_mindspore_side_by_side.ipynb).
