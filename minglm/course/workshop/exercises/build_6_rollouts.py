# %% [markdown]
# # Build it yourself 6: rollouts, and what is learnt from them
#
# The last part. Many answers are written at once, one of them is always the longest, and everybody waits for it: you type the round, and APRIL's queue that ends the wait. Then the whole update: from rewards to a gradient, as GRPO, DAPO and Dr. GRPO, side by side on a task that your own model learns.
#
# **You will learn** to play a round of rollouts with limited places, to stop it at a target and resume what was stopped first, to ask the policy of the shared code the same questions, and to write the update of policy-gradient training in full.
#
# **Time:** under a minute of computing, 75 minutes of typing and 20 minutes to read. **You need:** [`build_3_losses`](build_3_losses.ipynb), [`build_5_decoding`](build_5_decoding.ipynb); [`13_the_long_tail_and_april`](13_the_long_tail_and_april.ipynb) helps. No network.
# %%
import torch

from minglm.course.notebook import pick, show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import rollouts, solved

GLM, MLA = solved("build_2_model")["GLM"], solved("build_1_layers")["MLA"]
third, fourth = solved("build_3_losses"), solved("build_4_training")
advantages, clipped, k3 = third["advantages"], third["clipped"], third["k3"]
average, Optimizer, clip = third["average"], fourth["Optimizer"], fourth["clip"]
# %% [markdown]
# ## 1. A round
#
# Requests stand in a line; `left[i]` is how many tokens request i still has to write. `places` of them run at once. In each tick every running request writes one token. A request that has written its last one gives its place to the next in line, which starts with the **next** tick. The round ends with the first tick after which at least `target` requests are complete.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> how many ticks for four requests of 1, 1, 1 and 20 tokens on two places, all to be complete?</summary>
#
# With the line 1, 1, 1, 20: the first two in tick 1, the next two start in tick 2, so 21. Most of that time one place is empty. With a target of three: 2 ticks, and the long one has written a single token.
#
# </details>
# %%
def play(left, places, target):
    """left list of ints >= 1 -> ticks, completed (indices in rising order),
    {index: tokens still to write} of all others"""
    ### BEGIN SOLUTION
    left, done, ticks = dict(enumerate(left)), [], 0
    while len(done) < target:
        ticks += 1
        for i in list(left)[:places]:
            left[i] -= 1
            if left[i] == 0:
                del left[i]
                done.append(i)
    return ticks, sorted(done), left
    ### END SOLUTION
# %%
check("build_6.play", play)
# %% [markdown]
# ## 2. APRIL's queue
#
# APRIL (arXiv 2509.18521) submits more than it needs (`over` in place of `batch`), stops the round when `batch` are complete, and keeps what was stopped. These **partials** are resumed first, in the order in which they were stopped; only then new prompts are drawn. Nothing is lost, and no prompt waits for ever.
#
# `fresh` is an iterator of new prompts. `take(n)` gives n entries: partials first, then new ones.
# %%
class Queue:
    def __init__(self, fresh):
        ### BEGIN SOLUTION
        self.fresh, self.partials = fresh, []
        ### END SOLUTION

    def put_back(self, entries):
        """entries: a list, in the order in which they stood in the round"""
        ### BEGIN SOLUTION
        self.partials += entries
        ### END SOLUTION

    def take(self, n):
        """-> list of n entries"""
        ### BEGIN SOLUTION
        out, self.partials = self.partials[:n], self.partials[n:]
        return out + [next(self.fresh) for _ in range(n - len(out))]
        ### END SOLUTION
# %%
check("build_6.queue", Queue)
# %% [markdown]
# How many new groups may start now? `minglm` and the cluster simulator ask one policy (`minglm.rl.modes`). Write its rule for two of its modes. `running` groups are submitted and not complete, `finished` ones are complete and wait for the update. As long as running and finished together are fewer than `batch`, a round is to be submitted: `batch` groups in mode "sync", `over` in mode "april". Else none.
# %%
def to_submit(mode, batch, over, running, finished):
    """mode "sync" or "april", four ints -> int"""
    ### BEGIN SOLUTION
    if running + finished >= batch:
        return 0
    return over if mode == "april" else batch
    ### END SOLUTION
# %%
check("build_6.to_submit", to_submit)
# %% [markdown]
# Thirty rounds of answers whose lengths have a long tail. Work per tick is what the places wrote, of what they could have written.
# %%
show(*rollouts.places_in_use(play, Queue, rounds=pick(30, 4)))
# %% [markdown]
# ## 3. Log-probabilities
#
# The update needs, for every sampled token, the log-probability under the policy now. The logits at position i predict token i + 1.
# %%
def log_probs(model, tokens):
    """model tokens (N, T) -> logits (N, T, V); -> (N, T - 1), of tokens 1 to T - 1"""
    ### BEGIN SOLUTION
    logp = model(tokens)[:, :-1].log_softmax(-1)
    return logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    ### END SOLUTION
# %%
check("build_6.log_probs", log_probs)
# %% [markdown]
# ## 4. The whole loss
#
# | `how` | advantages | clip, low and high | average | KL |
# |---|---|---|---|---|
# | `"grpo"` | divided by the deviation | 0.2, 0.2 | `"grpo"` | + beta · k3 |
# | `"dapo"` | divided by the deviation | 0.2, 0.28 | `"dapo"` | none |
# | `"dr_grpo"` | not divided | 0.2, 0.2 | `"dr_grpo"` | none |
#
# The KL is added to the loss of each token, before the average. `rewards` (G, n) has a row a group, and the N = G·n sequences stand group after group. `length` is the constant of Dr. GRPO. DAPO also leaves out groups whose rewards are all equal and samples others in their place; here they only get advantage 0.
#
# GLM-5 trains with a relative of these whose ratio also corrects for the age of the tokens ([`14_staleness`](14_staleness.ipynb)).
# %%
def policy_loss(logp, old, ref, rewards, mask, how, beta, length):
    """logp, old, ref (N, T), rewards (G, n), mask (N, T) bool -> scalar"""
    ### BEGIN SOLUTION
    A = advantages(rewards, how != "dr_grpo").flatten()
    losses = clipped(logp, old, A, 0.2, 0.28 if how == "dapo" else 0.2)
    if how == "grpo":
        losses = losses + beta * k3(logp, ref)
    return average(losses, mask, how, length)
    ### END SOLUTION
# %%
check("build_6.policy_loss", policy_loss)
# %% [markdown]
# ## 5. The update
#
# One batch of samples, `passes` steps on it. π_old is the policy as it was **before the first of them**: computed once, without a gradient. In the first step every ratio is 1 and nothing is clipped; later the policy has moved and the clip holds it near. `ref` are log-probabilities of the reference; clip gradients to norm 1.
# %%
def update(model, optimizer, tokens, mask, rewards, ref, how, passes, beta=0.01):
    """tokens (N, T), mask (N, T - 1) bool, rewards (G, n); changes the model
    -> losses of the passes, floats"""
    ### BEGIN SOLUTION
    with torch.no_grad():
        old = log_probs(model, tokens)
    out = []
    for _ in range(passes):
        logp = log_probs(model, tokens)
        loss = policy_loss(logp, old, ref, rewards, mask, how, beta, mask.shape[1])
        for p in model.parameters():
            p.grad = None
        loss.backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        grads, _ = clip(list(found.values()), 1.0)
        optimizer.step(dict(zip(found, grads)), 1.0)
        out.append(loss.item())
    return out
    ### END SOLUTION
# %%
check("build_6.update", update)
# %% [markdown]
# ## 6. Side by side
#
# Your model, from scratch, with your optimiser, learns from rewards alone. A prompt is one of six letters; the answer must hold that letter, and then may end. Reward 1 if it does, 0 if not; nobody shows an answer. Every way starts from the same weights and sees the same prompts. As a control, rewards drawn at random.
# %%
make = rollouts.policy(lambda config: GLM(config, attention=MLA))
curves = rollouts.side_by_side(make, Optimizer, log_probs, update, updates=pick(40, 2))
show(*rollouts.rewards_and_lengths(curves))
# %% [markdown]
# Read it with care: one task, one seed, a policy that has written a few thousand short answers. What can be seen on such a scale is whether an update works at all (against the control) and how it treats length. Which of the three is "better" needs seeds and intervals, as in [`10_evaluation`](10_evaluation.ipynb).
#
# You have now written every part of the way from bytes to a policy: about 300 lines. The tests of this project run these very solutions inside `minglm`, one at a time: logits within 1e-5, the loss curve in its band, decoding token by token, the policy's answers, the gradient of the losses.
#
# **Next:** [`05_train_it`](05_train_it.ipynb) for the same at more length, or `scale/00_chips_and_rooflines` for what it costs on a cluster.
