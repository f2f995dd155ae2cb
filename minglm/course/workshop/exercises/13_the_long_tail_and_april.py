# %% [markdown]
# # Exercises 13: waiting for the longest
#
# **You will learn** to say how much of a rollout is waiting, what a round with a target yields, and how old a resumed answer's tokens are.
#
# **Time:** 30 minutes. **You need:** [`13_the_long_tail_and_april`](../../learn/13_the_long_tail_and_april.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The share that waits
#
# A synchronous rollout starts all answers together; each answer has one slot. Each step writes one token of every answer that is not finished; a slot whose answer is finished waits for the longest one. A slot-step is one slot in one step. `lengths` is a list of the lengths in tokens. What share of all slot-steps is waiting?
# %%
def waiting_share(lengths):
    """[2, 2, 8] -> 0.5: of 3 slots x 8 steps, 6 + 6 wait"""
    ### BEGIN SOLUTION
    return 1 - sum(lengths) / (len(lengths) * max(lengths))
    ### END SOLUTION
# %%
check("13.waiting_share", waiting_share)
# %% [markdown]
# ## 2. A round with a target
#
# APRIL (active partial rollouts) starts more answers than it needs and stops when `target` of them are finished. `todo[i]` is the number of tokens that answer i still lacks: all its tokens if it is new, the rest if an earlier round stopped it. Each step writes one token of every unfinished answer. `target` is at least 1 and at most `len(todo)`. Give three things:
#
# - `steps`: how many steps the round takes, until at least `target` answers are finished;
# - `done`: the indices, from 0, of the answers that are finished then, in rising order (if several end in the last step, all of them);
# - `rest`: what each of the others still lacks, in the order of their indices. Nothing that was written is thrown away.
# %%
def april_round(todo, target):
    """list of ints, int -> (int, list, list);
    ([9, 2, 5, 1], 2) -> (2, [1, 3], [7, 3])"""
    ### BEGIN SOLUTION
    steps = sorted(todo)[target - 1]
    done = [i for i, n in enumerate(todo) if n <= steps]
    rest = [n - steps for n in todo if n > steps]
    return steps, done, rest
    ### END SOLUTION
# %%
check("13.april_round", april_round)
# %% [markdown]
# ## 3. The price
#
# An answer that was stopped and resumed is a list of segments `(version, n_tokens)`: which version of the weights wrote how many tokens. The trainer holds version `now`. What share of the **tokens** is stale, that is, written by an older version?
# %%
def stale_share(segments, now):
    """([(3, 30), (4, 10)], 4) -> 0.75"""
    ### BEGIN SOLUTION
    old = sum(n_tokens for version, n_tokens in segments if version < now)
    return old / sum(n_tokens for _, n_tokens in segments)
    ### END SOLUTION
# %%
check("13.stale_share", stale_share)
# %% [markdown]
# **Next:** [exercises 14](14_staleness.ipynb).
