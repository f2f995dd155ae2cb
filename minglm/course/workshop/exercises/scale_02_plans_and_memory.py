# %% [markdown]
# # Exercises to scale/02: a memory receipt
#
# Three parts, an hour. At the end you write what a planner prints: byte by byte, why a plan fits or does not.
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. Weights, gradients, optimiser
#
# Mixed precision with AdamW keeps, for each parameter: 2 bytes of bf16 weight, 4 of fp32 gradient, and 12 of optimiser (fp32 copy, two moments). ZeRO shares them out over the `dp` ranks that hold the same parameters: stage 1 the optimiser, stage 2 the gradients too, stage 3 the weights too; stage 0 shares nothing. Give the three on one rank.
# %%
def states(params, zero, dp):
    """params of a rank, zero 0 to 3, dp int -> weights, gradients, optimiser (bytes)"""
    ### BEGIN SOLUTION
    weights, gradients, optimiser = 2 * params, 4 * params, 12 * params
    if zero >= 1:
        optimiser /= dp
    if zero >= 2:
        gradients /= dp
    if zero >= 3:
        weights /= dp
    return weights, gradients, optimiser
    ### END SOLUTION
# %%
check("scale_02.states", states)
# %% [markdown]
# ## 2. Micro-batches in flight
#
# What a forward keeps for its backward stays until that backward has run. Under 1F1B the rank with number `rank` (0 is the first of `ranks`) does its first forwards without a backward, one more than there are ranks behind it, and then one backward for each forward. For how many micro-batches does it hold activations at most? Under GPipe all forwards come first.
# %%
def in_flight(schedule, rank, ranks, micro_batches):
    """schedule "gpipe" or "1f1b" -> int"""
    ### BEGIN SOLUTION
    if schedule == "gpipe":
        return micro_batches
    return min(ranks - rank, micro_batches)
    ### END SOLUTION
# %%
check("scale_02.in_flight", in_flight)
# %% [markdown]
# ## 3. The receipt
#
# A pipeline of `ranks` ranks under 1F1B, with m micro-batches. Rank r holds `layers[r]` layers; a layer has `layer_params` parameters on this rank and keeps `layer_bytes` for each micro-batch in flight. The first rank has the embedding and the last the head, `vocab_params` each (with one rank, both). The last rank also needs `logits_bytes` once. Give for each rank a dict with "weights", "gradients", "optimiser", "activations", "logits" and "total", all bytes.
# %%
def receipt(
    layers, layer_params, vocab_params, layer_bytes, logits_bytes, m, zero, dp
):
    """layers list of ints, the rest numbers -> list of dicts, one a rank"""
    ### BEGIN SOLUTION
    ranks, out = len(layers), []
    for r, count in enumerate(layers):
        ends = (r == 0) + (r == ranks - 1)
        params = count * layer_params + ends * vocab_params
        weights, gradients, optimiser = states(params, zero, dp)
        held = in_flight("1f1b", r, ranks, m)
        parts = {
            "weights": weights,
            "gradients": gradients,
            "optimiser": optimiser,
            "activations": held * count * layer_bytes,
            "logits": logits_bytes if r == ranks - 1 else 0,
        }
        out.append({**parts, "total": sum(parts.values())})
    return out
    ### END SOLUTION
# %%
check("scale_02.receipt", receipt)
# %% [markdown]
# Look at which rank is the fullest: the first holds the most activations, the last the logits. A planner that balances layers alone balances neither.
