# %% [markdown]
# # Build it yourself 4: the training loop
#
# The model and its losses stand; now they learn. You type the two optimisers of GLM-5, AdamW and Muon, the schedule, and the loop around them. At the end your model, trained by your loop, draws its loss into a band of five seeds that `minglm` trained.
#
# **You will learn** to clip gradients by their joint norm, to write warm-up and cosine, AdamW with decoupled decay, the Newton–Schulz iteration, Muon head by head, and the loop.
#
# **Time:** under a minute of computing, 75 minutes of typing and 20 minutes to read. **You need:** [`build_3_losses`](build_3_losses.ipynb); [`05_train_it`](05_train_it.ipynb) and [`07_muon`](07_muon.ipynb) help. No network.
#
# The first cell takes the model of build 2 and the loss of build 3 from their worked solutions. Paste your own below it if you like.
# %%
import math

import torch

from minglm.course.curves import beside_the_band
from minglm.course.notebook import pick, show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import solved, training
from minglm.training.optim import split_rule, uses_muon

GLM, MLA = solved("build_2_model")["GLM"], solved("build_1_layers")["MLA"]
sft_loss = solved("build_3_losses")["sft_loss"]
# %% [markdown]
# ## 1. Clip the gradients
#
# One bad batch may give a gradient a hundred times as long as usual. All gradients together are one long vector; where its norm is above `limit`, every gradient is multiplied by the same factor, so that the direction stays.
#
# > factor = min(1, limit / (norm + 10⁻⁶))
# %%
def clip(grads, limit):
    """grads list of tensors, limit float -> list of tensors, norm before (scalar)"""
    ### BEGIN SOLUTION
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    return [g * factor for g in grads], norm
    ### END SOLUTION
# %%
check("build_4.clip", clip)
# %% [markdown]
# ## 2. Warm-up and cosine
#
# A factor on the learning rate. In the first `warmup` steps it rises in a line: 1/warmup at step 0, 2/warmup at step 1, … 1 at the last of them. Then it falls along half a cosine from 1 to `final`; at step `steps` it would be `final`. With *x* the share of the way from `warmup` to `steps`:
#
# > final + (1 − final) · (1 + cos(π·x)) / 2
# %%
def factor(step, steps, warmup, final):
    """step int from 0 -> float"""
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    x = (step - warmup) / (steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * x)) / 2
    ### END SOLUTION
# %%
check("build_4.factor", factor)
# %% [markdown]
# ## 3. AdamW
#
# Two running means of the gradient *g*, both start at zero: *m* of *g* with weight 0.9, *v* of *g*² with weight 0.95. Since they start at zero they are too small at first; after step *n* (the first is 1) each is divided by what is missing: m̂ = *m* / (1 − 0.9ⁿ), v̂ = *v* / (1 − 0.95ⁿ).
#
# > *p* ← *p* · (1 − lr · decay) − lr · m̂ / (√v̂ + 10⁻⁸)
#
# The decay stands outside the gradient: that is the W (Loshchilov & Hutter 2019).
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> multiply the loss by 1000. What happens to the first step?</summary>
#
# Nothing: m̂ is *g*, √v̂ is |*g*|, and every entry moves by lr, up or down. Adam takes a step of a size, whatever the gradient's.
#
# </details>
#
# Give back new tensors; leave the given ones as they are.
# %%
def adamw(p, g, m, v, n, lr, decay):
    """tensors of one shape, n int, lr and decay floats -> new p, m, v"""
    ### BEGIN SOLUTION
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g.square()
    m_hat, v_hat = m / (1 - 0.9**n), v / (1 - 0.95**n)
    return p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8), m, v
    ### END SOLUTION
# %%
check("build_4.adamw", adamw)
# %% [markdown]
# ## 4. Orthogonalise
#
# Muon (K. Jordan 2024) does not scale entry by entry. It takes the momentum of a whole matrix, U·S·Vᵀ in its singular value decomposition, and replaces it by about U·Vᵀ: every direction gets the same step. No decomposition is computed. Five times, an odd polynomial acts on all singular values at once:
#
# > *X* ← *a*·*X* + (*b*·*G* + *c*·*G*·*G*)·*X*,  *G* = *X*·*X*ᵀ,  (*a*, *b*, *c*) = (3.4445, −4.7750, 2.0315)
#
# Before that, *X* is divided by its Frobenius norm plus 10⁻⁷, so that no singular value is above 1. A matrix with more rows than columns is transposed first and back at the end (the smaller *G*). The last two axes are the matrix; what stands before them is a stack of matrices, each for itself.
# %%
def orthogonalize(x):
    """x (..., m, n) -> (..., m, n)"""
    ### BEGIN SOLUTION
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        G = x @ x.mT
        x = 3.4445 * x + (-4.7750 * G + 2.0315 * G @ G) @ x
    return x.mT if tall else x
    ### END SOLUTION
# %%
check("build_4.orthogonalize", orthogonalize)
# %%
show(*training.singular_values(orthogonalize))
# %% [markdown]
# ## 5. Muon, head by head
#
# With momentum buffer *M*, at first zero, and Nesterov's look ahead:
#
# > *M* ← 0.95·*M* + 0.05·*g*,  *u* = 0.05·*g* + 0.95·*M*
# >
# > *p* ← *p* · (1 − lr · decay) − lr · 0.2·√max(*m*, *n*) · orthogonalize(*u*)
#
# The factor 0.2·√max(*m*, *n*) gives the update the size that AdamW's has (Moonlight, arXiv 2502.16982). **Muon split** (GLM-5 report, arXiv 2602.15763 §2.1): where a matrix holds several heads one above the other, each block of rows is orthogonalised alone, with its own *m*. `blocks` lists them as (start, end); for an ordinary matrix it is [(0, rows)].
# %%
def muon(p, g, M, lr, decay, blocks):
    """p, g, M (..., rows, n); blocks list of (start, end) -> new p, new M"""
    ### BEGIN SOLUTION
    M = 0.95 * M + 0.05 * g
    u = 0.05 * g + 0.95 * M
    steps = []
    for start, end in blocks:
        part = u[..., start:end, :]
        steps.append(0.2 * max(part.shape[-2:]) ** 0.5 * orthogonalize(part))
    return p * (1 - lr * decay) - lr * torch.cat(steps, -2), M
    ### END SOLUTION
# %%
check("build_4.muon", muon)
# %% [markdown]
# ## 6. Which rule for which weight
#
# Matrices by Muon; embedding, head, router, norms and biases by AdamW, and no decay for what has a single axis. `uses_muon(name, p)` and `split_rule(name, shape, config)` know the names. `Optimizer` is given: it keeps the state and calls what you wrote.
# %%
class Optimizer:
    def __init__(self, model, lr, decay=0.1):
        self.model, self.lr, self.decay, self.n = model, lr, decay, 0
        self.state = {}

    @torch.no_grad()
    def step(self, grads, factor):
        """grads {name: tensor}; changes the model's parameters"""
        self.n += 1
        lr = self.lr * factor
        for name, p in self.model.named_parameters():
            if name not in grads:
                continue
            zeros = [torch.zeros_like(p)] * 2
            if uses_muon(name, p):
                config = self.model.config
                blocks = split_rule(name, p.shape, config) or [(0, p.shape[-2])]
                (M,) = self.state.get(name, zeros[:1])
                new, *state = muon(p, grads[name], M, lr, self.decay, blocks)
            else:
                m, v = self.state.get(name, zeros)
                decay = self.decay if p.dim() > 1 else 0.0
                new, *state = adamw(p, grads[name], m, v, self.n, lr, decay)
            self.state[name] = state
            p.copy_(new)
# %% [markdown]
# ## 7. The loop
#
# For each batch: the loss, its gradients, clip them to norm 1, step with the factor of this step. A batch has `tokens` and `targets`, both (B, T); a target of −100 does not count. Your `sft_loss` wants a mask, and targets that are valid indices everywhere.
#
# Two things are easily forgotten. Gradients **add up** unless they are dropped (`p.grad = None`); and a parameter may get none at all, such as the indexer's here, whose choice has no gradient. After the step, `after(model)` is called: it moves the routers' biases.
# %%
def train(model, batches, lr, warmup, after=lambda model: None):
    """model with tokens (B, T) -> logits (B, T, V), batches a list -> losses, floats"""
    ### BEGIN SOLUTION
    optimizer, losses = Optimizer(model, lr), []
    for step, batch in enumerate(batches):
        mask = batch.targets >= 0
        loss = sft_loss(model(batch.tokens), batch.targets.clamp(min=0), mask)
        for p in model.parameters():
            p.grad = None
        loss.backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        clipped, _ = clip(list(found.values()), 1.0)
        now = factor(step, len(batches), warmup, 0.1)
        optimizer.step(dict(zip(found, clipped)), now)
        after(model)
        losses.append(loss.item())
    return losses
    ### END SOLUTION
# %%
check("build_4.train", train)
# %% [markdown]
# ## 8. Is my curve normal?
#
# Your model learns the tiny world, with your loss, your optimisers and your loop. The band holds five seeds of `minglm`'s own model and optimiser on the same text (recorded; `python -m minglm.course.record_curves build` makes them again). Attention is dense, as in the first stage of GLM-5's own training. As a control, `minglm` with AdamW for the matrices too.
# %%
steps = pick(training.STEPS, 12)
lines = training.own_curve(lambda config: GLM(config, attention=MLA), train, steps)
show(*beside_the_band("build", lines))
# %% [markdown]
# A curve below or above the band is not wrong by itself, but it wants a reason. A loss that starts far above log(vocabulary) has an initialisation that is too large; one that falls and then stands has lost its gradient somewhere, or its learning rate.
#
# **Next:** [build 5](build_5_decoding.ipynb): the cache, sampling and drafts.
