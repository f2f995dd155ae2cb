# %% [markdown]
# # Exercises to plan/planner: defend this budget
#
# Four parts, an hour. A planner's answer is a number; somebody will ask whether it holds. You compute the number, its range, what it hangs on, and which plan you would defend. Times are days, money is dollars.
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. What a run costs
#
# The run needs `steps` steps of `step_s` seconds; only the share `goodput` of the time is first-time work. Chips are rented by the hour, also those that stand by: `spares` on top of `chips`. On top comes the share `overhead` for everything else.
# %%
def run_cost(steps, step_s, goodput, chips, spares, rent, overhead):
    """rent in dollars per chip and hour -> days, dollars"""
    ### BEGIN SOLUTION
    hours = steps * step_s / goodput / 3600
    return hours / 24, hours * (chips + spares) * rent * (1 + overhead)
    ### END SOLUTION
# %%
check("plan_planner.run_cost", run_cost)
# %% [markdown]
# ## 2. Which plan?
#
# `plans` maps a name to a list of draws, (days, dollars) pairs: the same plan with uncertain inputs drawn again and again. A plan is **safe** when at least the share `sure` of its draws meets both deadline and budget (both included). Give the safe plan with the smallest mean cost, or None.
# %%
def choose(plans, deadline, budget, sure):
    """{name: list of (days, dollars)} -> name or None"""
    ### BEGIN SOLUTION
    def meets(draws):
        good = sum(days <= deadline and dollars <= budget for days, dollars in draws)
        return good >= sure * len(draws) - 1e-9

    safe = {}
    for name, draws in plans.items():
        if meets(draws):
            safe[name] = sum(dollars for _, dollars in draws) / len(draws)
    return min(safe, key=safe.get) if safe else None
    ### END SOLUTION
# %%
check("plan_planner.choose", choose)
# %% [markdown]
# ## 3. What does it hang on?
#
# `cost` takes a dict of inputs and gives dollars. `ranges` says for each input its low and high end; the others stay at `middle`. Move one input at a time, and give the names by how much the cost swings between the ends, the largest swing first.
# %%
def swings(cost, middle, ranges):
    """-> list of (name, swing in dollars), swing >= 0"""
    ### BEGIN SOLUTION
    out = []
    for name, (low, high) in ranges.items():
        ends = [cost({**middle, name: value}) for value in (low, high)]
        out.append((name, abs(ends[1] - ends[0])))
    return sorted(out, key=lambda pair: -pair[1])
    ### END SOLUTION
# %%
check("plan_planner.swings", swings)
# %% [markdown]
# ## 4. The budget that you would sign
#
# The board asks for one figure. You want to be right `sure` of the time. Give the smallest of the drawn costs that at least this share of the draws does not exceed.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> is that more or less than the mean, for sure = 0.9?</summary>
#
# More, and mostly by more than the spread suggests: costs have a long upper end (failures, delays), and a mean says nothing about it.
#
# </details>
# %%
def signed(costs, sure):
    """list of dollars, 0 < sure <= 1 -> dollars"""
    ### BEGIN SOLUTION
    ranked = sorted(costs)
    for n, cost in enumerate(ranked, 1):
        if n >= sure * len(ranked) - 1e-9:
            return cost
    ### END SOLUTION
# %%
check("plan_planner.signed", signed)
# %% [markdown]
# Now ask the planner itself: `clustersim plan --budget --deadline` gives the same kinds of answers for real plans. Which two inputs would you have measured before you sign?
