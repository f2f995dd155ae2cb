# %% [markdown]
# # Exercises 22: looking back by hand
#
# **You will learn** to do what an induction head does, and to measure whether a head does it.
#
# **Time:** 20 minutes. **You need:** [`22_how_a_model_learns_to_look_back`](../../learn/22_how_a_model_learns_to_look_back.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. What came after this word last time?
#
# `tokens` is a list of whole numbers. Give a list of the same length: for each place, the token that followed the **last earlier** place with the same token; `None` where the token has not stood before. A place may be read only if it is not later than the place that asks: nobody sees the future.
# %%
def look_back(tokens):
    """list of ints -> list of ints or None;
    [5, 9, 5, 9, 5] -> [None, None, 9, 5, 9]"""
    ### BEGIN SOLUTION
    out, followed = [], {}
    for place, token in enumerate(tokens):
        if place:
            followed[tokens[place - 1]] = token      # known from this place on
        out.append(followed.get(token))
    return out
    ### END SOLUTION
# %%
check("22.look_back", look_back)
# %% [markdown]
# This little program is right on every row of the notebook, without any training. Why does nobody build it into a model?
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# It matches one word exactly. What forms in a model matches whatever it has learnt to put into a place: two words before, a name of three tokens, something similar.
#
# </details>
#
# ## 2. Is this an induction head?
#
# `attention` is a list of rows, one for each place that asks: its shares over all places (they sum to 1; later places have 0). Take the places whose token has stood before. For each add up the shares that it gives to places **right after** an earlier place with the same token. Give the mean over those places.
# %%
def induction_score(tokens, attention):
    """list of n ints, n rows of n floats -> float;
    ([5, 9, 5], [[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.7, 0.1]]) -> 0.7"""
    ### BEGIN SOLUTION
    scores = []
    for place, token in enumerate(tokens):
        earlier = [p for p in range(place) if tokens[p] == token]
        if earlier:
            scores.append(sum(attention[place][p + 1] for p in earlier))
    return sum(scores) / len(scores)
    ### END SOLUTION
# %%
check("22.induction_score", induction_score)
# %% [markdown]
# A head that reads all visible places evenly gets a score above 0. So a score says something only beside that of even attention: the notebook prints it under the maps.
#
# That was the last sheet; solutions are in `notebooks/workshop/solutions/`.
