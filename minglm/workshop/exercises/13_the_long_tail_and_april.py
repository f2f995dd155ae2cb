# %% [markdown]
# # Exercises 13: waiting for the longest
#
# **You will learn** to say how much of a rollout is waiting, what a round with a target yields, and how old a resumed answer's tokens are.
#
# **Time:** 30 minutes. **You need:** [`13_the_long_tail_and_april`](../../learn/13_the_long_tail_and_april.ipynb).
# %%
from minglm.workshop import check


# %% [markdown]
# ## 1. The share that waits
#
# A synchronous rollout starts all answers together. Each step writes one token of every answer that is not finished; a slot whose answer is finished waits for the longest one. `lengths` are the lengths in tokens. Which share of all slot-steps is waiting?
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
# APRIL starts more answers than it needs and stops when `target` of them are finished. `todo[i]` says how many tokens answer i still lacks (a new one all of them, a resumed one the rest). Each step writes one token of every unfinished answer. Give three things:
#
# - `steps`: how many steps the round takes, until at least `target` answers are finished;
# - `done`: the places of the answers that are finished then, in rising order (if several end in the last step, all of them);
# - `rest`: what each of the others still lacks, in the order of their places. Nothing that was written is thrown away.
# %%
def april_round(todo, target):
    """([5, 1, 9, 2], 2) -> (2, [1, 3], [3, 7])"""
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
# A resumed answer is a list of segments `(version, tokens)`: which version of the weights wrote how many tokens. The trainer holds version `now`. Which share of the **tokens** is stale, that is, written by an older version?
# %%
def stale_share(segments, now):
    """([(3, 30), (4, 10)], 4) -> 0.75"""
    ### BEGIN SOLUTION
    old = sum(tokens for version, tokens in segments if version < now)
    return old / sum(tokens for _, tokens in segments)
    ### END SOLUTION
# %%
check("13.stale_share", stale_share)
# %% [markdown]
# **Next:** [exercises 14](14_staleness.ipynb).
