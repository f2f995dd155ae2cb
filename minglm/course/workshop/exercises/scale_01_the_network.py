# %% [markdown]
# # Exercises to scale/01: ring and tree, in events
#
# Four parts, an hour. A collective is many small transfers, and each can start only when what it sends is there. Formulas hold where all is equal; you write the events, which hold also where one link is slow or one rank is late.
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. A ring, worked off
#
# All-reduce over n ranks in a ring: the message is cut into n chunks, and in each of 2(n − 1) rounds every rank sends one chunk to its right neighbour (rank n − 1 to rank 0). The link from rank i takes `latency` + chunk / `rates[i]` seconds. A rank can send in a round when it has sent **and** received in the round before; a transfer is received when it ends. `starts[i]` says when rank i has its data and may send first; what arrives before that waits. When has the last rank received its last chunk?
# %%
def ring(size, starts, rates, latency):
    """bytes, list of n times, list of n rates (bytes/s), seconds -> seconds"""
    ### BEGIN SOLUTION
    n = len(rates)
    ready = list(starts)
    for _ in range(2 * (n - 1)):
        sent = [t + latency + size / n / rate for t, rate in zip(ready, rates)]
        ready = [max(sent[i], sent[i - 1]) for i in range(n)]
    return max(ready)
    ### END SOLUTION
# %%
check("scale_01.ring", ring)
# %% [markdown]
# ## 2. A tree, worked off
#
# n ranks, a power of two. Reduce: in round r = 0, 1, …, rank i with i mod 2^(r+1) = 2^r sends its whole sum to rank i − 2^r, which adds it to its own (adding costs nothing). At last rank 0 has everything. Then the same transfers backwards: rank i − 2^r sends the total to rank i, the last round of the reduction first. A transfer takes `latency` + size / `rate`, and starts when its sender is ready; in the reduction the receiver must be ready, too. `starts[i]` says when rank i has its own data. When does the last rank have the total?
# %%
def tree(size, starts, rate, latency):
    """bytes, list of n times, bytes/s, seconds -> seconds"""
    ### BEGIN SOLUTION
    ready, hop = list(starts), latency + size / rate
    rounds = int(math.log2(len(starts)))
    for r in range(rounds):
        for i in range(2**r, len(ready), 2 ** (r + 1)):
            ready[i - 2**r] = max(ready[i - 2**r], ready[i]) + hop
    for r in reversed(range(rounds)):
        for i in range(2**r, len(ready), 2 ** (r + 1)):
            ready[i] = ready[i - 2**r] + hop
            ready[i - 2**r] = ready[i]
    return max(ready)
    ### END SOLUTION
# %%
check("scale_01.tree", tree)
# %% [markdown]
# ## 3. Where they cross
#
# With equal links and all ranks ready at 0, the ring takes 2(n − 1)·(latency + size/(n·rate)) and the tree 2·log₂(n)·(latency + size/rate). The tree wins for small messages. Give the size at which both take the same time, in bytes; n is a power of two and at least 4.
# %%
def crossing(n, rate, latency):
    """-> bytes"""
    ### BEGIN SOLUTION
    depth = math.log2(n)
    return latency * rate * (n - 1 - depth) / (depth - (n - 1) / n)
    ### END SOLUTION
# %%
check("scale_01.crossing", crossing)
# %% [markdown]
# ## 4. What a slow link costs
#
# One of n equal links has only the share `left` of its rate. Give the time of the ring with it, divided by the time without it, for latency 0. Say it in one line: no simulation is needed.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> one of 1,000 links is at half rate. By how much does the all-reduce slow down?</summary>
#
# By nearly two: every chunk crosses every link, and all wait for the slowest.
#
# </details>
# %%
def slow_down(n, left):
    """int >= 2, 0 < left <= 1 -> factor"""
    ### BEGIN SOLUTION
    # Its rank sends in every one of the rounds, and is never idle.
    return 1 / left
    ### END SOLUTION
# %%
check("scale_01.slow_down", slow_down)
