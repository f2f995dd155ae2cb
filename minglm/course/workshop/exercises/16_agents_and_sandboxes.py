# %% [markdown]
# # Exercises 16: several turns and a program nobody has read
#
# **You will learn** which tokens of an episode are the model's own, what an observation may tell, and how the number of turns enters the reward.
#
# **Time:** 30 minutes. **You need:** [`16_agents_and_sandboxes`](../../learn/16_agents_and_sandboxes.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Whose words?
#
# An episode is a list of `(who, tokens)`, in order: `"user"` is the prompt or an observation, `"assistant"` the model; `tokens` is a list of ints. The turns form one row. For each turn: one marker token, which never counts, then the turn's tokens; the model's end token is one of them and counts. Give a list with one bool for every token of the row: whether it counts in the loss. Only what the model wrote does.
# %%
def counted(turns):
    """[("user", [7, 8]), ("assistant", [9])] -> [False, False, False, False, True]"""
    ### BEGIN SOLUTION
    out = []
    for who, tokens in turns:
        out += [False] + [who == "assistant"] * len(tokens)
    return out
    ### END SOLUTION
# %%
check("16.counted", counted)
# %% [markdown]
# ## 2. What it is told
#
# A program was run on tests. `results` is a list of `(call, got, expected, shown)`. Give the text of the first test that is **shown** and went wrong, as `"f(1) gave 6, not 5"`. `got` and `expected` may be any values, None too; write them with `!r`, as in `f"{got!r}"`, so that the text `'5'` and the number `5` look different. If every shown test is right, give `""`: what a hidden test holds is never told.
# %%
def observation(results):
    """list of (str, any, any, bool) -> a string;
    [("f(1)", 6, 5, True)] -> "f(1) gave 6, not 5" """
    ### BEGIN SOLUTION
    for call, got, expected, shown in results:
        if shown and got != expected:
            return f"{call} gave {got!r}, not {expected!r}"
    return ""
    ### END SOLUTION
# %%
check("16.observation", observation)
# %% [markdown]
# ## 3. What it earns
#
# `turns` says what each turn would give: a pair (all shown tests passed?, all hidden tests passed?). It may be longer than the episode, never shorter. The episode ends with the first turn that passes all shown tests, or after `most` turns (at most 10). The program of the turn that ends it is paid if it passes **all** tests, shown and hidden: 1 in the first turn, 0.9 in the second, 0.8 in the third, 0.1 less each time. Else the reward is 0.
# %%
def episode_reward(turns, most=3):
    """list of pairs of bools, int -> a number; [(False, False), (True, True)] -> 0.9"""
    ### BEGIN SOLUTION
    for number, (shown, hidden) in enumerate(turns[:most]):
        if shown:
            return float(hidden) * (1 - 0.1 * number)
    return 0.0
    ### END SOLUTION
# %%
check("16.episode_reward", episode_reward)
# %% [markdown]
# **Next:** [exercises 17](17_quantization.ipynb).
