# %% [markdown]
# # Exercises 10: how good, and how sure
#
# **You will learn** to estimate pass@k without bias, to put an honest interval around a rate, and to rate players from votes.
#
# **Time:** 35 minutes. **You need:** [`10_evaluation`](../../learn/10_evaluation.ipynb).
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. pass@k
#
# A question has `n` answers; `c` of them are right. Draw `k` of them without putting any back. What is the chance that at least one is right? `math.comb(a, b)` counts the ways to draw b of a.
# %%
def pass_at_k(n, c, k):
    """10 answers, 3 right, 1 draw -> 0.3"""
    ### BEGIN SOLUTION
    return 1 - math.comb(n - c, k) / math.comb(n, k)
    ### END SOLUTION
# %%
check("10.pass_at_k", pass_at_k)
# %% [markdown]
# ## 2. An honest interval
#
# `right` of `total` questions were answered correctly. Give Wilson's 95% interval as the pair (low, high) = (centre − half, centre + half), without rounding. With z = 1.96, n = `total` and p = `right` / n:
#
# > centre = (p + z²/(2n)) / (1 + z²/n)
# >
# > half = z · sqrt(p(1−p)/n + z²/(4n²)) / (1 + z²/n)
# %%
def wilson(right, total):
    """39, 50 -> (0.6475..., 0.8724...)"""
    ### BEGIN SOLUTION
    z, n, p = 1.96, total, right / total
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half
    ### END SOLUTION
# %%
check("10.wilson", wilson)
# %% [markdown]
# ## 3. What a rating means
#
# Equal players have odds of 1. On the usual scale every 400 points of difference multiply the odds by ten, and a chance is odds / (1 + odds). What is the chance that a player rated `a` beats one rated `b`?
# %%
def win_probability(a, b):
    """1200, 800 -> 0.909..."""
    ### BEGIN SOLUTION
    return 1 / (1 + 10 ** ((b - a) / 400))
    ### END SOLUTION
# %%
check("10.win_probability", win_probability)
# %% [markdown]
# ## 4. One step of Bradley–Terry
#
# `wins[i][j]` says how often player i beat player j; `wins[i][i]` is 0. `strength` holds the present strengths: strength[i] is 10 ** (rating of i / 400), up to a factor that all share. Give the next ones:
#
# > new[i] = (all wins of i) / Σ over j≠i of  games(i, j) / (strength[i] + strength[j])
#
# then divide all by their sum. games(i, j) is wins[i][j] + wins[j][i].
# %%
def bradley_terry_step(strength, wins):
    """strength a list of numbers, wins a list of lists, for any number of players ->
    list of strengths that add up to 1"""
    ### BEGIN SOLUTION
    players = range(len(strength))
    new = []
    for i in players:
        weight = sum(
            (wins[i][j] + wins[j][i]) / (strength[i] + strength[j])
            for j in players
            if j != i
        )
        new.append(sum(wins[i]) / weight)
    return [v / sum(new) for v in new]
    ### END SOLUTION
# %%
check("10.bradley_terry_step", bradley_terry_step)
# %% [markdown]
# **Next:** [exercises 11](11_open_it_elsewhere.ipynb).
