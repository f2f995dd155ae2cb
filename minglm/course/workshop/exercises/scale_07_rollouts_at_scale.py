# %% [markdown]
# # Exercises to scale/07: groups, engines, and APRIL's queue
#
# Three parts, an hour. Build 6 played single answers. Here a prompt is a **group** of samples, only whole groups train, and a round has many engines.
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. A round of groups
#
# `groups[g]` lists how many tokens each sample of group g still has to write (0: it is complete already). Requests stand in a line, group after group, sample after sample; `places` run at once, and each writes one token a tick. A place that is freed takes the next request with the **next** tick. A group is complete when all its samples are. The round ends with the first tick after which at least `target` groups are complete. Give the ticks, the complete groups in rising order, and what every other group still has to write.
# %%
def play(groups, places, target):
    """list of lists of ints -> ticks, list of indices, {index: list of ints}"""
    ### BEGIN SOLUTION
    left = {g: list(samples) for g, samples in enumerate(groups)}
    line = [(g, s) for g, samples in left.items() for s, n in enumerate(samples) if n]
    done = [g for g, samples in left.items() if not any(samples)]
    ticks = 0
    while len(done) < target:
        ticks += 1
        for g, s in line[:places]:
            left[g][s] -= 1
            if not any(left[g]):
                done.append(g)
        line = [(g, s) for g, s in line if left[g][s]]
    return ticks, sorted(done), {g: n for g, n in left.items() if g not in done}
    ### END SOLUTION
# %%
check("scale_07.play", play)
# %% [markdown]
# ## 2. How old is a group?
#
# A group that is stopped keeps its tokens, and goes on under newer weights. `writing[g]` lists the versions under which group g wrote tokens, `trained[g]` the version that trained on it. Its age is the trained version minus the **oldest** it wrote under. GLM-5 drops groups older than a limit. Give the share of groups that are dropped, and the largest age among those kept (0 where none is).
# %%
def ages(writing, trained, limit):
    """list of lists, list of ints, int -> share dropped, largest age kept"""
    ### BEGIN SOLUTION
    found = [now - min(versions) for versions, now in zip(writing, trained)]
    kept = [age for age in found if age <= limit]
    return 1 - len(kept) / len(found), max(kept, default=0)
    ### END SOLUTION
# %%
check("scale_07.ages", ages)
# %% [markdown]
# ## 3. How many engines?
#
# Rollout and training run beside each other, on chips of their own. An engine writes `engine_rate` tokens per second, and the trainer takes `train_s` seconds a batch of `tokens` tokens on `train_chips` chips, half of that on twice as many. `chips` are there in all, `per_engine` of them make an engine. Choose the number of engines for which a batch takes the least time; a batch takes as long as the slower side. At least one engine and one chip for training; where several are equal, the fewest engines.
# %%
def engines(chips, per_engine, engine_rate, tokens, train_s, train_chips):
    """-> number of engines, seconds a batch"""
    ### BEGIN SOLUTION
    def batch_s(n):
        rollout = tokens / (n * engine_rate)
        return max(rollout, train_s * train_chips / (chips - n * per_engine))

    n = min(range(1, (chips - 1) // per_engine + 1), key=batch_s)
    return n, batch_s(n)
    ### END SOLUTION
# %%
check("scale_07.engines", engines)
