"""Checks of build 1: RMSNorm, SwiGLU, the residual block, rotary position, MLA expanded and absorbed."""

from functools import partial

import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.course.workshop.checking import Exercise, Mistake, NotYet, module_output
from minglm.course.workshop.checks import drawn
from minglm.model.attention import MLA, ForwardContext
from minglm.model.layers import rope_table

NANO = ModelConfig.named("nano")


# ---------------------------------------------------------------------- norm, feed-forward, block


def _norm(x, weight, mean=False, eps=1e-5, weighted=True, root=True):
    x = x - x.mean(-1, keepdim=True) if mean else x
    square = x.square().mean(-1, keepdim=True) + eps
    return x / (square.sqrt() if root else square) * (weight if weighted else 1.0)


def _as_norm(formula):
    """A class like the learner's that computes something else."""

    class Norm(torch.nn.Module):
        def __init__(self, width, eps):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(width)), eps

        def forward(self, x):
            return formula(x, self.weight)

    return Norm


def _use_norm(answer):
    return lambda x, weight: module_output(answer, (x.shape[-1], 1e-5), {"weight": weight}, x)


def _starts_at_ones(answer) -> None:
    x = drawn(3, 8)
    if not torch.allclose(answer(x, torch.ones(8)), F.rms_norm(x, (8,), eps=1e-5), atol=1e-5):
        raise NotYet("With a weight of ones the result must have a root mean square of one.")


def _feed(x, gate, up, down, act=F.silu, swapped=False, add=False):
    g, u = F.linear(x, gate), F.linear(x, up)
    g, u = (u, g) if swapped else (g, u)
    return F.linear(act(g) + u if add else act(g) * u, down)


def _as_swiglu(formula):
    class Feed(torch.nn.Module):
        def __init__(self, hidden, width):
            super().__init__()
            self.gate_proj = torch.nn.Linear(hidden, width, bias=False)
            self.up_proj = torch.nn.Linear(hidden, width, bias=False)
            self.down_proj = torch.nn.Linear(width, hidden, bias=False)

        def forward(self, x):
            return formula(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)

    return Feed


def _use_swiglu(answer):
    def run(x, gate, up, down):
        weights = {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}
        return module_output(answer, gate.shape[::-1], weights, x)

    return run


def _halve(x):
    return x / 2


# ---------------------------------------------------------------------- rotary position


def _table(positions, width, theta, step=2, sign=1.0):
    pairs = torch.arange(width // 2).double()
    angle = positions.double()[:, None] * theta ** (-step * pairs / width)
    return torch.complex(torch.cos(angle), sign * torch.sin(angle)).to(torch.complex64)


def _turn(x, table, halves=False, back=False):
    """Cosines and sines written out."""
    cos, sin = table.real[None, :, None], table.imag[None, :, None] * (-1 if back else 1)
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)


# ---------------------------------------------------------------------- attention


def _attend(q_nope, q_rope, latent, up_k, up_v, allowed, power=0.5, rope=True, masked=True, whole=True):  # noqa: PLR0913  (the ways to be wrong)
    """Head by head, query by query where it can be: slow and obvious."""
    L = up_k.shape[-1]
    c, k_rope = latent[..., :L], latent[..., L:]
    out = []
    for h in range(up_k.shape[0]):
        scores = q_nope[:, :, h] @ (c @ up_k[h].T).mT
        if rope:
            scores = scores + q_rope[:, :, h] @ k_rope.mT
        scores = scores / (q_nope.shape[-1] + whole * q_rope.shape[-1]) ** power
        if masked:
            hide = ~(allowed if allowed.dim() == 2 else allowed[:, 0])
            scores = scores.masked_fill(hide, -torch.inf)
        out.append(scores.softmax(-1) @ (c @ up_v[h].T))
    return torch.stack(out, 2)


def _attention_cases():
    cases = []
    for seed, (B, T, S) in enumerate(((2, 5, 5), (1, 1, 7))):
        H, nope, rope, L, Dv = 3, 4, 2, 6, 5
        shapes = ((B, T, H, nope), (B, T, H, rope), (B, S, L + rope), (H, nope, L), (H, Dv, L))
        allowed = torch.ones(T, S).tril(S - T).bool()
        tensors = [drawn(*shape, seed=10 * seed + i) for i, shape in enumerate(shapes)]
        cases.append((*tensors, allowed))
    several = torch.ones(2, 1, 5, 5).tril().bool()
    several[1, 0, 4, :3] = False  # another mask for each sequence
    return [*cases, (*cases[0][:5], several)]


def _no_rebuilding(answer) -> None:
    """One query against many latents: expanding keys or values would cost L more multiply-adds a key and head."""
    from torch.utils.flop_counter import FlopCounterMode

    H, nope, rope, L, Dv, S = 4, 16, 4, 32, 16, 400
    shapes = ((1, 1, H, nope), (1, 1, H, rope), (1, S, L + rope), (H, nope, L), (H, Dv, L))
    with FlopCounterMode(display=False) as counter:
        answer(*(drawn(*shape, seed=i) for i, shape in enumerate(shapes)), torch.ones(1, S).bool())
    least = 2 * (H * L * (nope + Dv) + S * H * (2 * L + rope))
    if counter.get_total_flops() > 1.5 * least:
        raise NotYet(
            "The values are right, but keys or values of every cached token are rebuilt. Carry the query into the "
            "latent space, mix latents, and bring only the mixture back with up_v."
        )


EXPANDED_HINT = "scores = (q_nope·key + q_rope·rotary key) / sqrt(nope + rope), masked, softmax over keys, mix values."
_ATTENTION_MISTAKES = (
    Mistake(
        partial(_attend, masked=False),
        "`allowed` is not used: set the scores where it is False to minus infinity before the softmax.",
    ),
    Mistake(
        partial(_attend, rope=False),
        "The rotary part is missing: add q_rope · latent[..., L:], the same rotary key for every head.",
    ),
    Mistake(
        partial(_attend, whole=False),
        "Divide by the square root of the whole width of a query, nope + rope, not of nope alone.",
    ),
    Mistake(
        partial(_attend, power=0),
        "The scores must be divided by the square root of nope + rope, or the softmax becomes too sharp.",
    ),
)


# ---------------------------------------------------------------------- the layer


def _attention(seed=3):
    """minglm's own, with weights of order 1 over the width and norms that are not all ones."""
    module = MLA(NANO, 0, full=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0.0, p.shape[-1] ** -0.5, generator=generator) if p.dim() > 1 else p.uniform_(
                0.5, 1.5, generator=generator
            )
    return module


def _theirs(x, allowed):
    module, ctx = _attention(), ForwardContext("dense", rope_table(x.shape[1], NANO.qk_rope_head_dim, NANO.rope_theta))
    q, latent = module.project(x, ctx)
    with torch.no_grad():
        out = module.dense(q, latent, ctx, allowed)
        return module.o_proj(out.flatten(-2))


def _use_mla(answer):
    def run(x, allowed):
        table = rope_table(x.shape[1], NANO.qk_rope_head_dim, NANO.rope_theta)
        weights = _attention().state_dict()
        with torch.no_grad():
            return module_output(answer, (NANO,), weights, x, table, allowed)

    return run


def _as_mla(change):
    """minglm's own with one step changed, called as the learner's is."""

    class Layer(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            for name, module in _attention().named_children():
                self.add_module(name, module)

        def forward(self, x, table, allowed=None):
            module = _attention()
            module.load_state_dict(self.state_dict())
            q, latent = module.project(x, ForwardContext("dense", table))
            L, rope = NANO.kv_lora_rank, q.rope
            if change == "query not turned":
                rope = module.project(x, ForwardContext("dense", torch.ones_like(table)))[0].rope
            if change == "key not turned":
                flat = module.project(x, ForwardContext("dense", torch.ones_like(table)))[1]
                latent = torch.cat((latent[..., :L], flat[..., L:]), -1)
            if change == "latent not normalised":
                latent = torch.cat((module.kv_a_proj_with_mqa(x)[..., :L], latent[..., L:]), -1)
            T = x.shape[1]
            if allowed is None:
                allowed = torch.ones(T, T).tril().bool()
            if change == "not causal":
                allowed = torch.ones(T, T).bool()
            up_k, up_v = module.up_projections()
            out = _attend(q.nope, rope, latent, up_k, up_v, allowed)
            return module.o_proj(out.flatten(-2))

    return Layer


def _mla_cases():
    sees = torch.ones(1, 1, 9, 9).tril().bool().expand(2, 1, 9, 9).clone()
    sees[0, 0, 8, 2:6] = False
    return [(drawn(2, 9, NANO.hidden_size), None), (drawn(2, 9, NANO.hidden_size, seed=1), sees)]


EXERCISES = [
    Exercise(
        "build_1.rms_norm",
        lambda x, weight: F.rms_norm(x, x.shape[-1:], weight, 1e-5),
        lambda: [(drawn(2, 3, 8), drawn(8, seed=1)), (1e-3 * drawn(4, 6, seed=2), drawn(6, seed=3))],
        (
            Mistake(
                _as_norm(partial(_norm, mean=True)),
                "You subtracted the mean: that is LayerNorm. RMSNorm only divides by the root mean square.",
            ),
            Mistake(_as_norm(partial(_norm, weighted=False)), "The result is not multiplied by `weight`."),
            Mistake(_as_norm(partial(_norm, root=False)), "You divided by the mean square: take its square root."),
            Mistake(
                _as_norm(partial(_norm, eps=0.0)),
                "`eps` is left out: add it to the mean square, before the root; the second case has tiny inputs.",
            ),
        ),
        "y = x / sqrt(mean(x²) + eps) · weight, the mean over the last axis with keepdim=True.",
        _starts_at_ones,
        _use_norm,
    ),
    Exercise(
        "build_1.swiglu",
        _feed,
        lambda: [(drawn(2, 3, 4), drawn(6, 4, seed=1), drawn(6, 4, seed=2), drawn(4, 6, seed=3))],
        (
            Mistake(_as_swiglu(partial(_feed, act=F.relu)), "The gate goes through silu here, not through relu."),
            Mistake(_as_swiglu(partial(_feed, act=torch.sigmoid)), "silu(z) is z · sigmoid(z): you left out the z."),
            Mistake(
                _as_swiglu(partial(_feed, swapped=True)),
                "silu goes on the output of gate_proj; you put it on that of up_proj.",
            ),
            Mistake(_as_swiglu(partial(_feed, add=True)), "Gate and up are multiplied, channel by channel, not added."),
        ),
        "down_proj(silu(gate_proj(x)) · up_proj(x)).",
        use=_use_swiglu,
    ),
    Exercise(
        "build_1.block",
        lambda x, norm, layer: torch.add(x, layer(norm(x))),
        lambda: [(drawn(3, 4), torch.tanh, _halve), (drawn(2, 2, seed=1), torch.sigmoid, torch.cos)],
        (
            Mistake(lambda x, norm, layer: layer(norm(x)), "x itself is lost: the block adds to it, x + ..."),
            Mistake(
                lambda x, norm, layer: norm(x) + layer(norm(x)),
                "The addition takes the normalised x. Add to x as it came in; only the layer reads the norm.",
            ),
            Mistake(
                lambda x, norm, layer: norm(x + layer(x)),
                "That is post-norm, as in the first transformers. Here the layer reads norm(x), and nothing is "
                "normalised after the addition.",
            ),
            Mistake(lambda x, norm, layer: x + norm(layer(x)), "Norm and layer are in the wrong order: norm first."),
        ),
        "x + layer(norm(x)).",
    ),
    Exercise(
        "build_1.rope_table",
        _table,
        lambda: [(torch.arange(6), 8, 10_000.0), (torch.tensor([3, 250]), 4, 100.0)],
        (
            Mistake(
                partial(_table, step=1), "The exponent of pair j is -2j/width: it has two channels, so twice -j/width."
            ),
            Mistake(
                partial(_table, sign=-1.0), "The angles have the wrong sign: the number of pair j is e^(+i·angle)."
            ),
        ),
        "angle = positions[:, None] · theta**(-2j/width) for j = 0 ... width/2 - 1; then torch.polar(1, angle).",
    ),
    Exercise(
        "build_1.apply_rope",
        _turn,
        lambda: [
            (drawn(2, 5, 3, 8), _table(torch.arange(5), 8, 100.0)),
            (drawn(1, 2, 1, 4, seed=1), _table(torch.tensor([7, 90]), 4, 50.0)),
        ],
        (
            Mistake(
                partial(_turn, halves=True),
                "You paired channel j with channel j + D/2. GLM-5 turns neighbours: (0,1), (2,3), ...",
            ),
            Mistake(partial(_turn, back=True), "You turned the other way: multiply by the table, not its conjugate."),
            Mistake(lambda x, table: x.clone(), "x comes back as it was: multiply its pairs by the table."),
        ),
        "Pairs as complex numbers, times table[:, None], and back to real, the last two axes flattened.",
    ),
    Exercise("build_1.expanded", _attend, _attention_cases, _ATTENTION_MISTAKES, EXPANDED_HINT),
    Exercise("build_1.absorbed", _attend, _attention_cases, _ATTENTION_MISTAKES, EXPANDED_HINT, _no_rebuilding),
    Exercise(
        "build_1.mla",
        _theirs,
        _mla_cases,
        (
            Mistake(
                _as_mla("query not turned"), "The rotary part of the queries is not turned: apply_rope(q_rope, table)."
            ),
            Mistake(_as_mla("key not turned"), "The rotary key, the last columns of the latent, is not turned."),
            Mistake(_as_mla("latent not normalised"), "The first L numbers of the latent go through kv_a_layernorm."),
            Mistake(
                _as_mla("not causal"),
                "`allowed` is not used, or not made when it is None: query t sees keys 0 to t.",
            ),
        ),
        "project, then expanded(...) with up_projections(), then o_proj of the heads side by side (flatten(-2)).",
        use=_use_mla,
        absolute=1e-5,
    ),
]
