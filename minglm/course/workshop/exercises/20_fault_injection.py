# %% [markdown]
# # Exercises 20: after the fault
#
# **You will learn** to find the checkpoint that a run may trust, to say how often one should be made, and to try again without trying for ever.
#
# **Time:** 35 minutes. **You need:** [`20_fault_injection`](../../learn/20_fault_injection.ipynb).
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Which one may be trusted?
#
# A folder of checkpoints after a crash, as a list in no particular order. Each entry is `(name, promised, found)`: `promised` is a dict {file: bytes}, the files there must be and their sizes (`None`: no promise was written; such a checkpoint is not trusted); `found` is a dict {file: bytes} too, what lies there. A name is `step_8` once the checkpoint is committed, and `.writing_8` before.
#
# Give the step of the newest checkpoint that is committed and has every promised file with exactly the promised bytes (further files do no harm); 0 if there is none, which means: begin again. (The project compares hashes: a file of the right size may still hold wrong bytes.)
# %%
def resume_from(entries):
    """[("step_8", {"model": 100}, {"model": 100}), ("step_12", {"model": 100},
    {"model": 60})] -> 8"""
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
# A checkpoint stalls the run for `stall` seconds. A failure throws away the work since the last checkpoint, on average half an interval. With a checkpoint every τ seconds of work, the lost share of time is about
#
# > stall / τ + τ / (2 · M)
#
# where M is the time between two failures of the **whole** machine. Which τ makes it smallest? Set the derivative to zero, and give τ exactly, not rounded. You are given `chip_mtbf`, the seconds between two failures of **one** chip; `chips` of them fail independently, and one that fails stops the run.
# %%
def best_interval(stall, chip_mtbf, chips):
    """seconds, seconds, int -> seconds; (10.0, 8_000_000.0, 1000) -> 400.0"""
    ### BEGIN SOLUTION
    return math.sqrt(2 * stall * chip_mtbf / chips)
    ### END SOLUTION
# %%
check("20.best_interval", best_interval)
# %% [markdown]
# A hundred times more chips: how many times more checkpoints? What becomes of the lost share, and what would have to become faster?
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# M is a hundred times shorter and τ = √(2 · stall · M) ten times: ten times more checkpoints. The lost share, √(2 · stall / M), is ten times larger: with the numbers of the example 50% in place of 5%. To keep 5%, the stall must become a hundred times shorter.
#
# </details>
#
# ## 3. Try again, but not for ever
#
# A part does not answer. It is asked again after a wait, which is multiplied by `factor` each time, so that a thousand waiting processes do not all knock every second; no wait is longer than `most`. And the waits **together** must not be longer than `limit` (exactly `limit` is allowed): after that the run gives up with a clear line, for a wait without a bound is a hang. A wait that would go beyond the limit is not begun.
#
# Give only the list of waits; raise and print nothing. `factor` is more than 1.
# %%
def waits(first, factor, most, limit):
    """four numbers -> list of numbers; (1, 2, 8, 30) -> [1, 2, 4, 8, 8]"""
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
