# %% [markdown]
# # Exercises 00: sizes and costs
#
# **You will learn** to check the three numbers of the first notebook yourself: the loss of a model that knows nothing, the weight of an expert, and the length of a training.
#
# **Time:** 15 minutes, nothing to compute. **You need:** [`00_start_here`](../../learn/00_start_here.ipynb).
# %%
import math

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The loss of knowing nothing
#
# A model that finds all `V` tokens equally likely gives the right one the probability 1/V. Its loss is the surprise in nats: minus the natural logarithm of that probability. Write it.
# %%
def loss_of_knowing_nothing(V):
    """V (a number): tokens, all equally likely -> loss in nats (natural logarithm)."""
    ### BEGIN SOLUTION
    return math.log(V)
    ### END SOLUTION
# %%
check("00.loss_of_knowing_nothing", loss_of_knowing_nothing)
# %% [markdown]
# ## 2. What an expert weighs
#
# An expert takes `hidden` numbers, works on `width` of them inside, and gives back `hidden` numbers. It has three matrices without biases: *gate* and *up* lead in, *down* leads out. How many parameters is that?
# %%
def expert_parameters(hidden, width):
    """Two whole numbers -> parameters of one expert."""
    ### BEGIN SOLUTION
    return 3 * hidden * width
    ### END SOLUTION
# %%
check("00.expert_parameters", expert_parameters)
# %% [markdown]
# ## 3. How long would it take?
#
# Training costs about six operations for each token and each *active* parameter (one that the token uses). A machine does `flops_per_s` operations per second. How many years of 365 days does it need?
# %%
def training_years(active_parameters, tokens, flops_per_s):
    """Three numbers -> years of training."""
    ### BEGIN SOLUTION
    seconds = 6 * active_parameters * tokens / flops_per_s
    return seconds / (365 * 24 * 3600)
    ### END SOLUTION
# %%
check("00.training_years", training_years)
# %% [markdown]
# **Next:** [exercises 01](01_tokens_and_data.ipynb).
