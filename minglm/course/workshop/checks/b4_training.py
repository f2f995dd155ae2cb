"""Checks of build 4: clipping, the schedule, AdamW, Newton–Schulz, Muon head by head, and the loop."""

import math
from functools import partial
from types import SimpleNamespace

import torch

from minglm.config import ModelConfig
from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn
from minglm.training.optim import NS_FAST, MuonAdamW, cosine_with_warmup

# ---------------------------------------------------------------------- clip and schedule


def _clip(grads, limit, each=False, always=False):
    flat = torch.cat([g.flatten() for g in grads])
    norm = torch.linalg.vector_norm(flat)

    def scale(g):
        own = limit / (float(torch.linalg.vector_norm(g) if each else norm) + 1e-6)
        return g * (own if always else min(1.0, own))

    return [[scale(g) for g in grads], norm]


def _use_clip(answer):
    """A pair, as a list or a tuple."""

    def run(grads, limit):
        out = answer(grads, limit)
        return [list(out[0]), torch.as_tensor(out[1])] if isinstance(out, (list, tuple)) and len(out) == 2 else out

    return run


def _factor(step, steps, warmup, final, late=False, from_start=False):
    if step < warmup:
        return (step + (not late)) / warmup
    x = step / steps if from_start else (step - warmup) / (steps - warmup)
    return final + (1 - final) * math.cos(math.pi * x / 2) ** 2


# ---------------------------------------------------------------------- AdamW


def _adamw(p, g, m, v, n, lr, decay):
    """By torch's own, whose state is set to what is given."""
    q = p.clone().requires_grad_()
    own = torch.optim.AdamW([q], lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    own.state[q] = {"step": torch.tensor(float(n - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    q.grad = g.clone()
    own.step()
    return [q.detach(), own.state[q]["exp_avg"], own.state[q]["exp_avg_sq"]]


def _wrong_adamw(p, g, m, v, n, lr, decay, wrong):
    g = g + decay * p if wrong == "decay in the gradient" else g
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g.square()
    a, b = (1.0, 1.0) if wrong == "not corrected" else (1 - 0.9**n, 1 - 0.95**n)
    root = (v / b) if wrong == "no root" else (v / b).sqrt()
    keep = 1.0 if wrong == "decay in the gradient" else 1 - (decay if wrong == "decay without lr" else lr * decay)
    return p * keep - lr * (m / a) / (root + 1e-8), m, v


def _use_list(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


def _adamw_cases():
    zero = torch.zeros(2, 3)
    return [
        (drawn(2, 3), drawn(2, 3, seed=1), zero, zero, 1, 0.01, 0.1),
        (drawn(2, 3), drawn(2, 3, seed=1), drawn(2, 3, seed=2), drawn(2, 3, seed=3).square(), 7, 0.1, 0.3),
    ]


# ---------------------------------------------------------------------- Muon


def _by_decomposition(x, steps=5, power=1.0):
    """The polynomial acts on singular values alone: U · p(p(… S / ‖S‖)) · Vᵀ, in double precision."""
    a, b, c = NS_FAST
    u, s, vt = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / (s.norm(dim=-1, keepdim=True) + 1e-7) ** power
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u @ torch.diag_embed(s) @ vt).to(x.dtype)


def _exact(x):
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    return u @ vt


def _whole_stack(x):
    return _by_decomposition(x / x.norm() * x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-9), power=0.0)


def _muon(p, g, M, lr, decay, blocks, whole=False, nesterov=True, scaled=True):  # noqa: PLR0913  (the ways to be wrong)
    M = M + 0.05 * (g - M)
    u = g + 0.95 * (M - g) if nesterov else M
    blocks = [(0, p.shape[-2])] if whole else blocks
    out = p * (1 - lr * decay)
    for start, end in blocks:
        size = 0.2 * math.sqrt(max(end - start, p.shape[-1])) if scaled else 1.0
        out[..., start:end, :] -= lr * size * _by_decomposition(u[..., start:end, :])
    return [out, M]


def _muon_cases():
    p = drawn(6, 4)
    return [
        (p, drawn(6, 4, seed=1), torch.zeros(6, 4), 0.1, 0.1, [(0, 6)]),
        (p, drawn(6, 4, seed=1), drawn(6, 4, seed=2), 0.1, 0.2, [(0, 2), (2, 5), (5, 6)]),
        (drawn(2, 3, 5), drawn(2, 3, 5, seed=1), drawn(2, 3, 5, seed=2), 0.02, 0.1, [(0, 3)]),
    ]


# ---------------------------------------------------------------------- the loop


class Tiny(torch.nn.Module):
    """A model of one matrix between embedding and head, and a parameter that gets no gradient."""

    def __init__(self):
        super().__init__()
        self.config = ModelConfig.named("nano")
        self.embed_tokens = torch.nn.Embedding(11, 6)
        self.mix = torch.nn.Linear(6, 6)
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.lm_head = torch.nn.Linear(6, 11, bias=False)
        self.calls = 0
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(drawn(*p.shape, seed=20 + i))

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.mix(self.embed_tokens(tokens))))


def _batches(count):
    out = []
    for i in range(count):
        tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(i))
        targets = (3 * tokens + 1) % 11
        targets[0, i % 5] = -100
        out.append(SimpleNamespace(tokens=tokens, targets=targets))
    return out


def _use_train(answer):
    """Losses of a fixed model on so many batches, and how often `after` was called."""

    def run(count, lr, warmup):
        model = Tiny()

        def after(same):
            model.calls += same is model

        losses = answer(model, _batches(count), lr, warmup, after)
        return [list(losses), model.calls] if isinstance(losses, (list, tuple)) else losses

    return run


def _train(count, lr, warmup, wrong=""):
    model, losses = Tiny(), []
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=lr)
    batches = _batches(count)
    for step, batch in enumerate(batches):
        targets = batch.targets.clamp(min=0) if wrong == "all targets" else batch.targets
        loss = torch.nn.functional.cross_entropy(
            model(batch.tokens).flatten(0, 1), targets.flatten(), ignore_index=-100
        )
        if wrong != "gradients add up":
            optimizer.zero_grad()
        loss.backward()
        kept = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        if wrong != "not clipped":
            optimizer.clip_grad_norm(1.0)
        optimizer.step(1.0 if wrong == "no schedule" else cosine_with_warmup(step, count, warmup, 0.1))
        for n, p in model.named_parameters():  # the step works in the gradients' own memory
            p.grad = kept.get(n)
        losses.append(loss.item())
    return [losses, 0 if wrong == "no after" else count]


def _as_train(wrong):
    """A known mistake as a learner's `train`: it is asked with the case's own numbers."""

    def train(model, batches, lr, warmup, after):
        losses, calls = _train(len(batches), lr, warmup, wrong)
        for _ in range(calls):
            after(model)
        return losses

    return train


EXERCISES = [
    Exercise(
        "build_4.clip",
        _clip,
        lambda: [([drawn(3, 4), 2 * drawn(5, seed=1)], 1.0), ([0.01 * drawn(3), 0.02 * drawn(2, 2, seed=1)], 1.0)],
        (
            Mistake(partial(_clip, each=True), "The norm is that of all gradients together, as one long vector."),
            Mistake(partial(_clip, always=True), "A norm below the limit is left as it is: the factor is at most 1."),
        ),
        "norm = sqrt(sum of all squares); multiply all by min(1, limit / (norm + 1e-6)); give the norm before that.",
        use=_use_clip,
    ),
    Exercise(
        "build_4.factor",
        _factor,
        lambda: [(step, 100, 10, 0.1) for step in (0, 4, 9, 10, 11, 55, 99)] + [(3, 8, 2, 0.0)],
        (
            Mistake(
                partial(_factor, late=True), "At step 0 the factor is 1/warmup, not 0: the first step counts, too."
            ),
            Mistake(
                partial(_factor, from_start=True),
                "The cosine begins where the warm-up ends: its share of the way counts from there.",
            ),
        ),
        "(step + 1)/warmup while step < warmup; then x = (step − warmup)/(steps − warmup) in the formula.",
    ),
    Exercise(
        "build_4.adamw",
        _adamw,
        _adamw_cases,
        (
            Mistake(
                partial(_wrong_adamw, wrong="decay in the gradient"),
                "The decay went through the gradient: that is Adam with L2. In AdamW it multiplies p directly.",
            ),
            Mistake(
                partial(_wrong_adamw, wrong="not corrected"),
                "The means start at zero: divide m by 1 - 0.9**n and v by 1 - 0.95**n.",
            ),
            Mistake(partial(_wrong_adamw, wrong="no root"), "The step is divided by the square root of v̂, not by v̂."),
            Mistake(
                partial(_wrong_adamw, wrong="decay without lr"), "The decay is multiplied by the learning rate, too."
            ),
        ),
        "m and v first, then their corrected forms, then p · (1 − lr · decay) − lr · m̂ / (√v̂ + 1e-8).",
        use=_use_list,
    ),
    Exercise(
        "build_4.orthogonalize",
        _by_decomposition,
        lambda: [
            (drawn(3, 7),),
            (100 * drawn(7, 3, seed=1),),
            (drawn(2, 4, 4, seed=2) * torch.tensor([1.0, 50.0])[:, None, None],),
        ],
        (
            Mistake(partial(_by_decomposition, steps=4), "Four steps were taken; it is five."),
            Mistake(
                _exact, "That is the exact U·Vᵀ. Five steps of the polynomial come near it: near is enough, and fast."
            ),
            Mistake(
                lambda x: _whole_stack(x) if x.dim() > 2 else _by_decomposition(x),
                "In a stack each matrix has its own norm: x.norm(dim=(-2, -1), keepdim=True).",
            ),
        ),
        "Transpose a tall matrix, divide by its Frobenius norm, five times x = a·x + (b·G + c·G@G)@x, transpose back.",
        use=None,
        absolute=1e-4,
    ),
    Exercise(
        "build_4.muon",
        _muon,
        _muon_cases,
        (
            Mistake(partial(_muon, whole=True), "Each block of rows is orthogonalised alone."),
            Mistake(partial(_muon, nesterov=False), "Nesterov: orthogonalise 0.05·g + 0.95·M, not M itself."),
            Mistake(partial(_muon, scaled=False), "The step has the factor 0.2·√max(m, n) of its block."),
        ),
        "New M, then u; for each block orthogonalize(u[..., start:end, :]) times 0.2·√max; p·(1 − lr·decay) − lr·step.",
        use=_use_list,
        absolute=1e-4,
    ),
    Exercise(
        "build_4.train",
        _train,
        lambda: [(6, 0.1, 2), (3, 0.5, 1)],
        (
            Mistake(_as_train("gradients add up"), "Gradients add up over steps: set every p.grad to None first."),
            Mistake(_as_train("not clipped"), "The gradients are not clipped: call clip(grads, 1.0) before the step."),
            Mistake(
                _as_train("no schedule"), "The learning rate never changes: step with factor(step, steps, warmup, 0.1)."
            ),
            Mistake(_as_train("all targets"), "A target of -100 does not count: it belongs to another document."),
            Mistake(
                _as_train("no after"), "`after(model)` is not called after each step: no router's bias would move."
            ),
        ),
        "loss, p.grad = None, backward, clip to 1.0, optimizer.step(grads by name, factor), after(model).",
        use=_use_train,
        absolute=1e-4,
    ),
]
