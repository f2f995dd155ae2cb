# %% [markdown]
# # Exercises to scale/00: rooflines
#
# Three parts, half an hour. Numbers are plain: FLOPs, bytes, seconds, FLOPs and bytes per second.
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Intensity of a matrix product
#
# (m × k) times (k × n): each of the m·n results takes k multiplications and k additions. The least traffic reads both matrices once and writes the result once; every number has `width` bytes. Give FLOPs per byte.
# %%
def intensity(m, n, k, width):
    """four ints -> FLOPs per byte, float"""
    ### BEGIN SOLUTION
    return 2 * m * n * k / (width * (m * k + k * n + m * n))
    ### END SOLUTION
# %%
check("scale_00.intensity", intensity)
# %% [markdown]
# ## 2. The roof
#
# A chip computes and moves data at the same time, each at its own rate. An operator takes as long as the slower of the two, and every operator at least `start` seconds to be launched.
# %%
def seconds(flops, moved, peak, bandwidth, start):
    """FLOPs, bytes, FLOP/s, bytes/s, seconds -> seconds, and what holds it up:
    "compute", "memory" or "launch" (in this order where they are equal)"""
    ### BEGIN SOLUTION
    times = {"compute": flops / peak, "memory": moved / bandwidth, "launch": start}
    slowest = max(times, key=times.get)
    return times[slowest], slowest
    ### END SOLUTION
# %%
check("scale_00.seconds", seconds)
# %% [markdown]
# ## 3. How many readers fill the chip?
#
# One decode step multiplies a batch of b rows with a weight matrix (k × n). With b = 1 nearly all traffic is the weights, and the chip computes almost nothing. Find the smallest batch at which the product is no longer held up by memory: its time in compute is at least its time in memory. Give None where no batch does it (each row moves bytes, too).
# %%
def smallest_batch(n, k, width, peak, bandwidth):
    """-> int or None"""
    ### BEGIN SOLUTION
    # 2·b·n·k / peak >= width·(b·k + k·n + b·n) / bandwidth, solved for b
    per_row = 2 * n * k / peak - width * (k + n) / bandwidth
    if per_row <= 0:
        return None
    return math.ceil(width * k * n / bandwidth / per_row)
    ### END SOLUTION
# %%
check("scale_00.smallest_batch", smallest_batch)
# %% [markdown]
# Compare your answers with the simulator's chips in [`scale/00`](../../scale/00_chips_and_rooflines.ipynb): what does batch 1 cost on a 910B?
