"""Checks of build 2: lightning indexer, choice of keys, sparse attention, router, experts, and the whole model."""

from functools import partial
from typing import Any

import torch

from minglm.config import ModelConfig
from minglm.course.workshop.build.swap import subject as build_subject
from minglm.course.workshop.checking import Exercise, Mistake, module_output, with_weights
from minglm.course.workshop.checks import drawn, places_in_any_order
from minglm.model.indexer import Indexer
from minglm.model.layers import rope_table
from minglm.model.moe import MoE
from minglm.model.sparse_attention import masked_reference

# No two widths are equal: in nano itself a matrix that is made the wrong way round has the right shape.
NANO = ModelConfig.named("nano", initializer_range=0.1, index_n_heads=3, moe_intermediate_size=24)
subject = partial(build_subject, config=NANO)


def _changed(kind: Any, forward):
    """The model's own module of a kind, made as the learner's is, whose output goes through `forward`."""

    class Part(kind):
        def __init__(self, config):
            super().__init__(config)

        def forward(self, *args):
            return forward(self, super().forward, *args)

    return Part


# ---------------------------------------------------------------------- indexer


def _rope(T):
    return rope_table(T, NANO.qk_rope_head_dim, NANO.rope_theta)


def _indexer_weights():
    indexer: Any = subject().layers[1].self_attn.indexer
    return indexer.state_dict()


def _reference_indexer(x, compressed):
    module = Indexer(NANO)
    module.load_state_dict(_indexer_weights())
    with torch.no_grad():
        return list(module(x, compressed, _rope(x.shape[1])))


def _use_indexer(answer):
    def run(x, compressed):
        with torch.no_grad():
            out = module_output(answer, (NANO,), _indexer_weights(), x, compressed, _rope(x.shape[1]))
        return list(out) if isinstance(out, tuple) else out

    return run


def _as_indexer(change):
    def forward(self, own, x, compressed, table):
        if change == "flat":
            return own(x, compressed, torch.ones_like(table))
        q, k, w = own(x, compressed, table)
        return q, k, w * (self.heads * self.width) ** 0.5 if change == "scale" else w * self.heads**0.5

    return _changed(Indexer, forward)


def _scores(q, k, w, relu=True, weighted=True):
    """Head by head."""
    total = torch.zeros(*q.shape[:2], k.shape[1])
    for j in range(q.shape[2]):
        dots = q[:, :, j] @ k.mT
        total = total + (dots.clamp(min=0) if relu else dots) * (w[:, :, j, None] if weighted else 1.0)
    return total


def _score_cases():
    return [
        (drawn(2, 5, 3, 4), drawn(2, 5, 4, seed=1), drawn(2, 5, 3, seed=2)),
        (drawn(1, 2, 2, 6, seed=3), drawn(1, 7, 6, seed=4), drawn(1, 2, 2, seed=5)),
    ]


# ---------------------------------------------------------------------- choice


def _choose(scores, k, order="falling", future="hidden", empty=-1):
    """Query by query, with Python's own stable sort."""
    out = []
    for row in scores:
        queries = []
        for t, values in enumerate(row.tolist()):
            seen = range(len(values)) if future == "seen" else range(t if future == "itself too" else t + 1)
            ranked = sorted(seen, key=lambda s: -values[s] if order == "falling" else values[s])
            if order == "highest position":
                ranked = sorted(seen, key=lambda s: (-values[s], -s))
            if future == "dropped":
                ranked = [s for s in sorted(range(len(values)), key=lambda s: -values[s])[:k] if s <= t]
            queries.append((ranked[:k] + [empty] * k)[:k])
        out.append(queries)
    return torch.tensor(out)


def _select_cases():
    tied = drawn(1, 8, 8, seed=1).round().clamp(-1, 1)
    return [(drawn(2, 9, 9), 4), (tied, 3), (-drawn(1, 4, 4, seed=2).abs(), 4)]


# ---------------------------------------------------------------------- sparse attention


def _masked(q_nope, q_rope, latent, up_k, up_v, chosen, power=0.5, empty_seen=False):
    if empty_seen:  # -1 taken for the last position
        out = []
        S, L = latent.shape[1], up_k.shape[-1]
        for b in range(len(latent)):
            keys = latent[b, chosen[b] % S]  # (T, k, R)
            queries = torch.cat((torch.einsum("thn,hnl->thl", q_nope[b], up_k), q_rope[b]), -1)
            scores = torch.einsum("thr,tkr->thk", queries, keys) / (q_nope.shape[-1] + q_rope.shape[-1]) ** power
            mixed = torch.einsum("thk,tkl->thl", scores.softmax(-1), keys[..., :L])
            out.append(torch.einsum("thl,hvl->thv", mixed, up_v))
        return torch.stack(out)
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -power
    return masked_reference(q_nope, q_rope, latent, up_k, up_v, chosen, scale)


def _sparse_cases():
    cases = []
    for seed, (B, T, k) in enumerate(((2, 6, 3), (1, 5, 2))):
        H, nope, rope, L, Dv = 3, 4, 2, 6, 5
        shapes = ((B, T, H, nope), (B, T, H, rope), (B, T, L + rope), (H, nope, L), (H, Dv, L))
        tensors = [drawn(*shape, seed=10 * seed + i) for i, shape in enumerate(shapes)]
        cases.append((*tensors, _choose(drawn(B, T, T, seed=90 + seed), k)))
    return cases


# ---------------------------------------------------------------------- router and experts


def _moe() -> Any:
    return subject().layers[1].mlp


def _route(x, weight, bias, counts, **wrong):
    """The token's experts in the order of their numbers, their gates, all scores, and the bias after the step."""
    scores = torch.sigmoid(x @ weight.T)
    chosen = (scores if "unbiased" in wrong else scores + bias).argsort(-1, descending=True)
    chosen = chosen[:, : NANO.num_experts_per_tok].sort(-1).values
    gates = (scores + bias if "biased gates" in wrong else scores).gather(-1, chosen)
    gates = gates if "not normalised" in wrong else gates / gates.sum(-1, keepdim=True)
    gates = gates if "not scaled" in wrong else gates * NANO.routed_scaling_factor
    under = torch.tensor([0.1 if n < counts.sum() / len(counts) else -0.1 for n in counts])
    under[counts * len(counts) == counts.sum()] = 0
    if "proportional" in wrong:
        under = 0.1 * (counts.float().mean() - counts)
    return [chosen, gates, scores, bias - under if "backwards" in wrong else bias + under]


def _use_router(answer):
    @torch.no_grad()
    def run(x, weight, bias, counts):
        module: Any = with_weights(answer, (NANO,), {"weight": weight, "e_score_correction_bias": bias})
        if not hasattr(module, "load_state_dict"):
            return module
        chosen, gates, scores = module(x)
        order = chosen.argsort(-1)
        module.move_bias(counts, 0.1)
        return [chosen.gather(-1, order), gates.gather(-1, order), scores, module.e_score_correction_bias.clone()]

    return run


def _as_router(wrong):
    class Wrong(torch.nn.Module):
        e_score_correction_bias: torch.Tensor

        def __init__(self, config):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
            self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

        def forward(self, x):
            return tuple(_route(x, self.weight, self.e_score_correction_bias, _counts(), **{wrong: True})[:3])

        def move_bias(self, counts, rate):
            x = torch.zeros(1, NANO.hidden_size)
            self.e_score_correction_bias = _route(
                x, self.weight, self.e_score_correction_bias, counts, **{wrong: True}
            )[3]

    return Wrong


def _counts():
    return torch.tensor([9, 0, 4, 4, 5, 3, 4, 3])


def _feed(x, shared=True, gates=True, swapped=False):
    """Token by token; minglm's weights."""
    moe = _moe()
    flat, (chosen, weights, _) = x.flatten(0, 1), moe.gate(x.flatten(0, 1))
    out = []
    for n, token in enumerate(flat):
        y = moe.shared_experts(token) if shared else torch.zeros_like(token)
        for e, g in zip(chosen[n].tolist(), weights[n], strict=True):
            a, b = (moe.experts.gate_up_proj[e] @ token).chunk(2)
            a, b = (b, a) if swapped else (a, b)
            y = y + (moe.experts.down_proj[e] @ (torch.nn.functional.silu(a) * b)) * (g if gates else 1.0)
        out.append(y)
    counts = torch.tensor([int((chosen == e).sum()) for e in range(NANO.n_routed_experts)])
    return [torch.stack(out).view_as(x).detach(), counts]


def _without_the_last():
    """A token whose experts do not include the last one: counts are as long all the same."""
    for seed in range(100):
        x = drawn(1, 1, NANO.hidden_size, seed=seed)
        if _moe().gate(x.flatten(0, 1))[0].max() < NANO.n_routed_experts - 1:
            return x
    raise AssertionError("every token chooses the last expert")


def _use_moe(answer):
    def run(x):
        with torch.no_grad():
            out = module_output(answer, (NANO,), _moe().state_dict(), x)
        return list(out) if isinstance(out, tuple) else out

    return run


def _as_moe(**change):
    return _changed(MoE, lambda self, own, x: tuple(_feed(x, **change)))


# ---------------------------------------------------------------------- the model


def _weights():
    return {k: v for k, v in subject().state_dict().items() if not k.startswith("mtp.")}


@torch.no_grad()
def _logits(tokens):
    return subject()(tokens, mode="sparse").logits


def _use_glm(answer):
    def run(tokens):
        with torch.no_grad():
            return module_output(answer, (subject().config,), _weights(), tokens)

    return run


def _as_glm(change):
    class Wrong(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            model = subject()
            model.mtp = None
            for name, module in model.named_children():
                self.add_module(name, module)

        @torch.no_grad()
        def forward(self, tokens):
            model = subject()
            if change == "dense":
                return model(tokens, mode="dense").logits
            if change == "no norm":
                return model.lm_head(model(tokens, mode="sparse").hidden)
            model.layers = model.layers[:-1]
            return model(tokens, mode="sparse").logits

    return Wrong


EXERCISES = [
    Exercise(
        "build_2.indexer",
        _reference_indexer,
        lambda: [(drawn(2, 7, NANO.hidden_size), drawn(2, 7, NANO.q_lora_rank, seed=1))],
        (
            Mistake(_as_indexer("flat"), "The first rope channels of q and k are not turned by their position."),
            Mistake(_as_indexer("scale"), "w is not scaled: multiply it by (Hi · Di) ** -0.5."),
            Mistake(_as_indexer("width"), "w is scaled by Di only: multiply it by (Hi · Di) ** -0.5."),
        ),
        "q from the compressed query, k = k_norm(wk(x)), w = weights_proj(x) · (Hi · Di)**-0.5; RoPE on [..., :rope].",
        use=_use_indexer,
    ),
    Exercise(
        "build_2.index_scores",
        _scores,
        _score_cases,
        (
            Mistake(partial(_scores, relu=False), "The relu is missing: each head's product is cut at zero."),
            Mistake(partial(_scores, weighted=False), "Each head's product is multiplied by w[t, j] before the sum."),
        ),
        "Products of every query head with every key, relu, times w, summed over heads.",
    ),
    Exercise(
        "build_2.select",
        lambda scores, k: _choose(scores, k).sort(-1).values,
        _select_cases,
        (
            Mistake(
                partial(_choose, future="seen"), "Queries choose keys that come after them: hide the future first."
            ),
            Mistake(
                partial(_choose, future="dropped"),
                "You took the top k among all keys and dropped the future ones: hide the future before choosing.",
            ),
            Mistake(
                partial(_choose, future="itself too"), "A query may choose its own position: hide triu(1), not triu(0)."
            ),
            Mistake(partial(_choose, order="rising"), "You chose the smallest scores: sort them descending."),
            Mistake(
                partial(_choose, order="highest position"),
                "Equal scores go to the lowest position: sort with stable=True and descending=True.",
            ),
            Mistake(partial(_choose, empty=0), "A place that nothing fills holds -1; 0 is a position."),
        ),
        "Hide the future with minus infinity, sort, keep k, and put -1 where the score is minus infinity.",
        use=places_in_any_order,
    ),
    Exercise(
        "build_2.sparse",
        _masked,
        _sparse_cases,
        (
            Mistake(
                partial(_masked, empty_seen=True),
                "A place with -1 was read as the last position. Set its score to minus infinity before the softmax.",
            ),
            Mistake(
                partial(_masked, power=0),
                "The scores must be divided by the square root of nope + rope, as in `absorbed`.",
            ),
        ),
        "Gather latents (B, T, k, R), absorb the query, score, mask -1, softmax over k, mix [..., :L], apply up_v.",
    ),
    Exercise(
        "build_2.router",
        _route,
        lambda: [
            (
                drawn(9, NANO.hidden_size),
                0.2 * drawn(NANO.n_routed_experts, NANO.hidden_size, seed=1),
                torch.linspace(-0.3, 0.3, NANO.n_routed_experts),
                _counts(),
            )
        ],
        (
            Mistake(_as_router("unbiased"), "The bias is not used: experts are chosen by score plus bias."),
            Mistake(
                _as_router("biased gates"),
                "The bias is in the gates. It only steers who is chosen; gates come from the scores alone.",
            ),
            Mistake(_as_router("not normalised"), "Gates are divided by their sum, then multiplied by the factor."),
            Mistake(_as_router("not scaled"), "The gates of a token must sum to routed_scaling_factor, not to 1."),
            Mistake(_as_router("backwards"), "move_bias goes the wrong way: up where the load is below the mean."),
            Mistake(
                _as_router("proportional"),
                "move_bias moves by the rate itself, up or down (torch.sign), however far the load is from the mean.",
            ),
        ),
        "scores = sigmoid(x @ weight.T); top K of scores + bias; gates = factor · scores of the chosen / their sum.",
        use=_use_router,
    ),
    Exercise(
        "build_2.moe",
        _feed,
        lambda: [(drawn(2, 6, NANO.hidden_size),), (drawn(1, 2, NANO.hidden_size, seed=1),), (_without_the_last(),)],
        (
            Mistake(_as_moe(shared=False), "The shared expert is missing: it reads every token, without a gate."),
            Mistake(_as_moe(gates=False), "An expert's output is multiplied by the token's gate for it."),
            Mistake(_as_moe(swapped=True), "gate_up_proj holds first the gate, then up: silu goes on the first half."),
        ),
        "For each expert: rows that chose it, its SwiGLU, times their gates, added up; plus the shared expert.",
        use=_use_moe,
        absolute=1e-5,
    ),
    Exercise(
        "build_2.glm",
        _logits,
        lambda: [(torch.randint(2, NANO.vocab_size, (2, 40), generator=torch.Generator().manual_seed(5)),)],
        (
            Mistake(_as_glm("dense"), "Attention reads every key: give the layers SparseMLA (`attention(config)`)."),
            Mistake(_as_glm("no norm"), "The last norm, before lm_head, is missing."),
            Mistake(_as_glm("a layer less"), "The last layer does not run."),
        ),
        "Embedding, the layers one after the other, norm, lm_head.",
        use=_use_glm,
        absolute=1e-5,
    ),
]
