# %% [markdown]
# # Exercises 20: after the fault
#
# **You will learn** to find the checkpoint that a run may trust, to say how often one should be made, and to try again without trying for ever.
#
# **Time:** 35 minutes. **You need:** [`20_fault_drills`](../../learn/20_fault_drills.ipynb).
# %%
import math

from minglm.workshop import check


# %% [markdown]
# ## 1. Which one may be trusted?
#
# A folder of checkpoints after a crash. Each entry is `(name, promised, found)`: `promised` says which files there must be and of how many bytes (`None`: nothing was promised yet, as the crash came before), `found` what lies there. A name is `step_8` once the checkpoint is committed, and `.writing_8` before.
#
# Give the step of the newest checkpoint that is committed and has every promised file in full; 0 if there is none, which means: begin again. (The real one compares hashes, not sizes, for the same reason.)
# %%
def resume_from(entries):
    """[("step_8", {"model": 100}, {"model": 100}), ("step_12", {"model": 100}, {"model": 60})] -> 8"""
    ### BEGIN SOLUTION
    best = 0
    for name, promised, found in entries:
        if not name.startswith("step_") or promised is None:
            continue
        if all(found.get(file) == size for file, size in promised.items()):
            best = max(best, int(name.removeprefix("step_")))
    return best
    ### END SOLUTION
# %%
check("20.resume_from", resume_from)
# %% [markdown]
# ## 2. How often?
#
# A checkpoint stalls the run for `stall` seconds. A failure throws away, on average, half of the work since the last one. With a checkpoint every τ seconds of work, the lost share of time is about
#
# > stall / τ + τ / (2 · M)
#
# where M is the time between two failures of the **whole** machine. Which τ makes it smallest? You are given `chip_mtbf`, the seconds between two failures of **one** chip; `chips` of them fail independently, and one that fails stops the run.
# %%
def best_interval(stall, chip_mtbf, chips):
    """(10.0, 8_000_000.0, 1000) -> 400.0"""
    ### BEGIN SOLUTION
    return math.sqrt(2 * stall * chip_mtbf / chips)
    ### END SOLUTION
# %%
check("20.best_interval", best_interval)
# %% [markdown]
# A hundred times more chips: how many times more checkpoints? What becomes of the lost share, and what would have to become faster?
#
# ## 3. Try again, but not for ever
#
# A part does not answer. It is asked again after a wait, which grows by `factor` each time, so that a thousand waiting processes do not all knock every second; no wait is longer than `most`. And the waits **together** must not be longer than `limit`: after that the run gives up with a clear line, for a wait without a bound is a hang. A wait that would go beyond the limit is not begun.
#
# Give the list of waits. `factor` is more than 1.
# %%
def waits(first, factor, most, limit):
    """(1, 2, 8, 30) -> [1, 2, 4, 8, 8]"""
    ### BEGIN SOLUTION
    out, wait = [], min(first, most)
    while sum(out) + wait <= limit:
        out.append(wait)
        wait = min(wait * factor, most)
    return out
    ### END SOLUTION
# %%
check("20.waits", waits)
# %% [markdown]
# **Next:** [exercises 21](21_serving.ipynb).
