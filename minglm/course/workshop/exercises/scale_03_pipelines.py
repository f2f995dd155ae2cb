# %% [markdown]
# # Exercises to scale/03: write the scheduler
#
# Four parts, ninety minutes. Two schedules as lists of work, and the clock that works them off. They are the simulator's own schedules: a test compares your kind of solution with `sim.training.schedules`, order by order, and with its step as events.
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. One forward, one backward
#
# Rank r of P (0 is the first) first does the forwards that fill the pipeline below it: P − r − 1, but never more than there are micro-batches. Then it alternates, a forward and the backward of the oldest micro-batch that still waits, until the forwards are done; then the backwards that are left. Give the list of work: ("F", i) and ("B", i), micro-batches from 0.
# %%
def one_f_one_b(rank, P, m):
    """three ints -> list of 2·m pairs"""
    ### BEGIN SOLUTION
    warm = min(P - rank - 1, m)
    out = [("F", i) for i in range(warm)]
    for i in range(warm, m):
        out += [("F", i), ("B", i - warm)]
    return out + [("B", i) for i in range(m - warm, m)]
    ### END SOLUTION
# %%
check("scale_03.one_f_one_b", one_f_one_b)
# %% [markdown]
# ## 2. The clock
#
# `orders[r]` is the list of work of rank r. ("F", i) can start when rank r is free and ("F", i) of rank r − 1 has ended; ("B", i) when rank r is free and ("B", i) of rank r + 1 has ended, on the last rank when its own ("F", i) has. What comes from a neighbour arrives `hop` seconds after it ended; the sender goes on at once. Work is done in the order of the list. `times` says how long each kind takes. When does the last piece of work end? (Part 4 needs two more kinds: "I" waits as "B" does, "W" only for its own rank to be free.)
#
# Ranks wait for each other, so one pass over the list of ranks is not enough: go round until nothing moves. If nothing moves and work is left, the orders are a deadlock: raise `ValueError`.
# %%
def step_time(orders, times, hop):
    """list of lists of (kind, i), {kind: seconds}, seconds -> seconds"""
    ### BEGIN SOLUTION
    P, ends = len(orders), {}
    free, at = [0.0] * P, [0] * P
    moved = True
    while moved:
        moved = False
        for r, order in enumerate(orders):
            while at[r] < len(order):
                kind, i = order[at[r]]
                start = free[r]
                if kind != "W":
                    if kind == "F":
                        before = ("F", i, r - 1) if r > 0 else None
                    else:
                        before = (kind, i, r + 1) if r < P - 1 else ("F", i, r)
                    if before is not None and before not in ends:
                        break
                    if before is not None:
                        start = max(start, ends[before] + hop * (before[2] != r))
                free[r] = ends[kind, i, r] = start + times[kind]
                at[r] += 1
                moved = True
    if any(at[r] < len(order) for r, order in enumerate(orders)):
        raise ValueError("deadlock")
    return max(free)
    ### END SOLUTION
# %%
check("scale_03.step_time", step_time)
# %% [markdown]
# ## 3. The bubble
#
# The share of the ranks' time in which they wait: 1 − (work of all ranks) / (ranks · step time).
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> P = 4, m = 8, without hops, backward twice a forward. What is 1F1B's bubble?</summary>
#
# (P − 1) / (m + P − 1) = 3/11. GPipe's is the same: 1F1B does not wait less, it **holds** less.
#
# </details>
# %%
def bubble(orders, times, hop):
    """as step_time -> share between 0 and 1"""
    ### BEGIN SOLUTION
    work = sum(times[kind] for order in orders for kind, _ in order)
    return 1 - work / (len(orders) * step_time(orders, times, hop))
    ### END SOLUTION
# %%
check("scale_03.bubble", bubble)
# %% [markdown]
# ## 4. Zero bubble
#
# A backward has two halves: I, the gradient of the activations, for which the rank above waits; and W, the gradient of the weights, for which nobody waits (ZB-H1, arXiv 2401.10241). Take 1F1B. Every ("B", i) becomes ("I", i), and as soon as more than `rank` micro-batches have had their I and not their W, the oldest of them gets its W right after it. In the end come the W's that are left, the oldest first.
# %%
def zero_bubble(rank, P, m):
    """-> list of 3·m pairs: ("F", i), ("I", i), ("W", i)"""
    ### BEGIN SOLUTION
    out, owed = [], []
    for kind, i in one_f_one_b(rank, P, m):
        if kind == "F":
            out.append((kind, i))
            continue
        out.append(("I", i))
        owed.append(i)
        if len(owed) > rank:
            out.append(("W", owed.pop(0)))
    return out + [("W", i) for i in owed]
    ### END SOLUTION
# %%
check("scale_03.zero_bubble", zero_bubble)
# %%
times = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
for m in (4, 8, 16):
    for name, schedule in (("1F1B", one_f_one_b), ("ZB-H1", zero_bubble)):
        try:
            orders = [schedule(r, 4, m) for r in range(4)]
            idle = bubble(orders, times, 0.0)
            print(f"{m:2} micro-batches, {name:5}: bubble {idle:.1%}")
        except NotImplementedError:
            print(f"{m:2} micro-batches, {name:5}: still to be written")
