# %% [markdown]
# # Exercises to scale/05: from a failure log to an interval
#
# Four parts, an hour. You start with what an operator has, a list of dates, and end with how often to save and what a month is worth. Times are hours.
# %%
import math

from minglm.course.workshop import check, hint

# A month of a cluster: hours at which it was interrupted.
LOG = [11.2, 30.5, 31.1, 62.0, 88.4, 140.9, 141.3, 200.0, 263.7, 301.5, 388.0, 402.2]
LOG += [455.1, 520.6, 533.9, 600.3, 671.8, 700.4]
HOURS = 720.0
# %% [markdown]
# ## 1. Mean time between failures
#
# The maximum-likelihood estimate for exponential failures watched over a fixed time: hours watched, divided by failures. (Not the mean of the gaps: that leaves out the time after the last one.) A log on `chips` chips, asked for another number of chips: failures come in proportion.
# %%
def mtbf(log, hours, chips, asked):
    """list of times, three numbers -> hours; math.inf where nothing failed"""
    ### BEGIN SOLUTION
    return hours / len(log) * chips / asked if log else math.inf
    ### END SOLUTION
# %%
check("scale_05.mtbf", mtbf)
# %% [markdown]
# ## 2. Young and Daly
#
# With a checkpoint of `save` hours during which training stands, Young's interval is √(2 · save · MTBF) hours of work. Daly's (2006) is, with x = √(save / (2 · MTBF)):
#
# > √(2 · save · MTBF) · (1 + x/3 + x²/9) − save, and the MTBF itself where save ≥ 2 · MTBF
# %%
def intervals(save, mean):
    """-> Young's and Daly's interval, hours of work"""
    ### BEGIN SOLUTION
    young = math.sqrt(2 * save * mean)
    if save >= 2 * mean:
        return young, mean
    x = math.sqrt(save / (2 * mean))
    return young, young * (1 + x / 3 + x * x / 9) - save
    ### END SOLUTION
# %%
check("scale_05.intervals", intervals)
# %% [markdown]
# ## 3. Replay the log
#
# What would the month have been worth with a checkpoint every `every` hours of work? Play it: work for `every` hours, save for `save`, and so on. A failure throws back to the last **finished** checkpoint (at first, to the start), whatever was under way, and `restart` hours pass before work goes on. A failure during a restart begins the restart anew. Give the hours of work that are safe at the end: those up to the last finished checkpoint, and what has been done since, since nothing fails any more.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> which is worse, saving twice as often as Daly says or half as often?</summary>
#
# Near the best interval both cost about the same, and little: the curve is flat there. Far from it, saving too rarely costs more with every failure.
#
# </details>
# %%
def replay(log, hours, every, save, restart):
    """log in rising order -> hours of work"""
    ### BEGIN SOLUTION
    now, safe = 0.0, 0.0
    for end in [*log, hours]:
        period = every + save
        whole = max(0, int((end - now) / period + 1e-12))
        rest = max(0.0, end - now - whole * period)
        safe += whole * every
        if end == hours:
            safe += min(rest, every)
        now = end + restart
    return safe
    ### END SOLUTION
# %%
check("scale_05.replay", replay)
# %% [markdown]
# ## 4. The best interval by trying
#
# Give the candidate with which the replay is worth most; where several are equal, the longest (fewer checkpoints to store).
# %%
def best(candidates, log, hours, save, restart):
    """list of hours -> one of them"""
    ### BEGIN SOLUTION
    def worth(every):
        return replay(log, hours, every, save, restart), every

    return max(candidates, key=worth)
    ### END SOLUTION
# %%
check("scale_05.best", best)
# %%
try:
    mean = mtbf(LOG, HOURS, 1, 1)
    young, daly = intervals(0.1, mean)
    print(f"MTBF {mean:.0f} h, Young {young:.2f} h, Daly {daly:.2f} h of work")
    for every in (0.25, 0.5, 1, 2, daly, 4, 8, 16):
        share = replay(LOG, HOURS, every, 0.1, 0.5) / HOURS
        print(f"every {every:5.2f} h: {share:.1%} of the month is work")
except NotImplementedError:
    print("still to be written")
# %% [markdown]
# One log is one draw: before you move an interval by a tenth of an hour, ask how much the best one moves when the month is drawn again.
