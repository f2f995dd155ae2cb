"""Checks of build 5: keys in the middle of a text, attention and model with a past, sampling, MTP, drafts."""

from functools import partial
from typing import Any

import torch

from minglm.course.workshop.build import decoding, solved
from minglm.course.workshop.build.swap import subject
from minglm.course.workshop.checking import Exercise, Mistake, module_output
from minglm.course.workshop.checks import drawn, places_in_any_order
from minglm.inference import sampling
from minglm.inference.generate import generate
from minglm.model.attention import ForwardContext
from minglm.model.decoder_layer import AuxLosses
from minglm.model.layers import rope_table
from minglm.model.mtp import shift_targets


def _context(model, length, cache=None):
    c = model.config
    return ForwardContext("sparse", rope_table(length, c.qk_rope_head_dim, c.rope_theta), 0, None, cache)


# ---------------------------------------------------------------------- choice of keys


def _choose(scores, k, at_zero=False, empty=-1, future=False, highest=False):
    """Query by query, with Python's own stable sort."""
    T, S = scores.shape[1:]
    out = []
    for row in scores:
        queries = []
        for t, values in enumerate(row.tolist()):
            last = S - 1 if future else t if at_zero else S - T + t
            places = range(last, -1, -1) if highest else range(last + 1)
            ranked = sorted(places, key=lambda s: -values[s])
            queries.append((ranked[:k] + [empty] * k)[:k])
        out.append(queries)
    return torch.tensor(out)


# ---------------------------------------------------------------------- attention and model


def _hidden(length=40):
    return drawn(2, length, subject().config.hidden_size)


def _learners_attention():
    model: Any = decoding.learners_model(solved("build_2_model")["GLM"])
    return model.layers[1].self_attn


@torch.no_grad()
def _whole(x, cuts):
    """minglm's attention over the whole text at once."""
    model = subject()
    return model.layers[1].self_attn(x, _context(model, x.shape[1]))[0]


def _in_parts(answer):
    """A learner's `attend` over the text in parts, each with the past of those before."""

    @torch.no_grad()
    def run(x, cuts):
        c, past, out = subject().config, None, []
        table = rope_table(x.shape[1], c.qk_rope_head_dim, c.rope_theta)
        attn = _learners_attention()
        for a, b in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
            y = answer(attn, x[:, a:b], table[a:b], past)
            if not (isinstance(y, tuple) and len(y) == 2):
                return y
            out.append(y[0])
            past = y[1]
        return torch.cat(out, 1)

    return run


def _attend(attn, x, table, past, wrong):
    build = solved("build_5_decoding")
    if wrong == "forgets":
        return build["attend"](attn, x, table, None)[0], past
    if wrong == "last only":
        out, new = build["attend"](attn, x, table, past)
        return out, tuple(t[:, -x.shape[1] :] for t in new)
    seen = past[0].shape[1] if past is not None else 0  # "at zero": queries and keys turned as if they came first
    c = attn.config
    table = rope_table(x.shape[1], c.qk_rope_head_dim, c.rope_theta) if seen else table
    return build["attend"](attn, x, table, past)


@torch.no_grad()
def _logits(tokens, cuts):
    return subject()(tokens, mode="sparse").logits


def _continued_in_parts(answer):
    @torch.no_grad()
    def run(tokens, cuts):
        model: Any = decoding.learners_model(solved("build_2_model")["GLM"])
        pasts, out = [None] * len(model.layers), []
        for a, b in zip((0, *cuts), (*cuts, tokens.shape[1]), strict=True):
            y = answer(model, tokens[:, a:b], pasts)
            if not (isinstance(y, tuple) and len(y) == 2):
                return y
            out.append(y[0])
            pasts = y[1]
        return torch.cat(out, 1)

    return run


def _continued(model, tokens, pasts, wrong):
    build = solved("build_5_decoding")
    if wrong == "no norm":
        norm, model.norm = model.norm, torch.nn.Identity()
        try:
            return build["continued"](model, tokens, pasts)
        finally:
            model.norm = norm
    if wrong == "one past":
        logits, new = build["continued"](model, tokens, pasts)
        return logits, [new[0]] * len(new)
    return build["continued"](model, tokens, [None] * len(pasts))


def _tokens():
    return torch.randint(2, subject().config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------------- sampling and decoding


def _distribution(logits, temperature, top_p, wrong=""):
    rows = len(logits)
    if wrong == "times":
        return sampling.probabilities(logits * temperature, [1.0] * rows, [top_p] * rows)
    probs = sampling.probabilities(logits, [temperature] * rows, [1.0 if wrong else top_p] * rows)
    if wrong in ("", "no cut") or top_p == 1:
        return probs
    ranked = probs.sort(-1, descending=True).values
    held = ranked.cumsum(-1) - (ranked if wrong == "not divided" else 0)
    count = (held < top_p).sum(-1, keepdim=True).clamp(min=1)
    kept = probs.where(probs >= ranked.gather(-1, count - 1), 0.0)
    return kept if wrong == "not divided" else kept / kept.sum(-1, keepdim=True)


def _race(probs, E, wrong=""):
    out = []
    for p, e in zip(probs.tolist(), E.tolist(), strict=True):
        times = [b / a if a else float("inf") for a, b in zip(p, e, strict=True)]
        if wrong == "likeliest":
            times = [-a for a in p]
        if wrong == "product":
            times = [a * b for a, b in zip(p, e, strict=True)]
        out.append(times.index(min(times)))
    return torch.tensor(out)


def _race_cases():
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]])
    return [(probs, drawn(3, 4, seed=s).abs() + 0.01) for s in range(6)]


def _own(prompt, count, temperature, top_p):
    """minglm's own tokens; and the prompt is read once, then each new token alone."""
    found = generate(subject(), prompt, count, temperature=temperature, top_p=top_p, seed=decoding.SEED)
    return [torch.tensor(found.tokens), [prompt.shape[1], *[1] * (count - 1)]]


def _use_decode(answer):
    """The tokens, and how many positions the model read in each of its calls."""

    def run(prompt, count, temperature, top_p):
        model: Any = decoding.learners_model(solved("build_2_model")["GLM"])
        read: list[int] = []
        model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[-1]))
        out = answer(model, prompt, count, temperature, top_p, decoding.numbers(model.config.vocab_size))
        return [out, read] if torch.is_tensor(out) else out

    return run


@torch.no_grad()
def _decode(model, prompt, count, temperature, top_p, numbers, wrong):
    own = solved("build_5_decoding")
    if wrong == "greedy":
        return own["decode"](model, prompt, count)
    if wrong == "no top_p":
        return own["decode"](model, prompt, count, temperature, 1.0, numbers)
    if wrong == "same numbers":
        return own["decode"](model, prompt, count, temperature, top_p, lambda i: numbers(0))
    tokens = prompt
    for i in range(count):  # reads all again
        last = own["continued"](model, tokens, [None] * len(model.layers))[0][:, -1]
        chosen = last.argmax(-1)
        if temperature:
            chosen = own["race"](own["distribution"](last, temperature, top_p), numbers(i))
        tokens = torch.cat((tokens, chosen.unsqueeze(-1)), -1)
    return tokens[:, prompt.shape[1] :]


# ---------------------------------------------------------------------- drafts


def _mtp_case(length=9):
    c = subject().config
    return drawn(2, length, c.hidden_size), drawn(2, length, c.hidden_size, seed=1)


@torch.no_grad()
def _mtp(hidden, embedding, swapped=False, normed=False):
    model = subject()
    module = model.require_mtp()
    joined = module.join(*((embedding, hidden) if swapped else (hidden, embedding)))
    out = module.layer(joined, _context(model, hidden.shape[1]), AuxLosses())[0]
    return module.norm(out) if normed else out


def _use_mtp(answer):
    def run(hidden, embedding):
        c = subject().config
        table = rope_table(hidden.shape[1], c.qk_rope_head_dim, c.rope_theta)
        with torch.no_grad():
            return module_output(answer, (c,), subject().require_mtp().state_dict(), hidden, embedding, table)

    return run


def _as_mtp(**wrong):
    """A class like the learner's that gives something else."""

    class Wrong(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            module = subject().require_mtp()
            for name, part in module.named_children():
                self.add_module(name, part)

        def forward(self, hidden, embedding, table):
            return _mtp(hidden, embedding, **wrong)

    return Wrong


def _label_case():
    targets = torch.arange(14).view(2, 7)
    return targets, torch.tensor([[0, 0, 0, 3, 3, 3, 3], [0, 0, 2, 2, 2, 5, 5]])


def _shifted(targets, doc_start, depth, wrong):
    if wrong == "depth + 1":
        return shift_targets(targets, depth + 1, doc_start)
    if wrong == "documents":
        return shift_targets(targets, depth)
    return targets[:, : targets.shape[1] - depth]


def _kept(drafts, choices, wrong=""):
    right = 0
    while right < len(drafts) and drafts[right] == choices[right]:
        right += 1
    if wrong == "drafts only":
        return list(drafts[:right])
    if wrong == "all agreeing":
        return [d for d, c in zip(drafts, choices, strict=False) if d == c] + [choices[right]]
    return list(choices[: right + (wrong != "nothing free" or right < len(drafts))])


EXERCISES = [
    Exercise(
        "build_5.select",
        lambda scores, k: _choose(scores, k).sort(-1).values,
        lambda: [
            (drawn(2, 3, 9), 4),
            (drawn(1, 1, 6, seed=1), 3),
            (drawn(1, 5, 5, seed=2), 4),
            (-drawn(1, 2, 3).abs(), 3),
            (drawn(1, 4, 8, seed=3).round().clamp(-1, 1), 3),
        ],
        (
            Mistake(partial(_choose, at_zero=True), "The queries are the last T of S: query t stands at S - T + t."),
            Mistake(partial(_choose, future=True), "Queries choose keys that come after them: hide the future first."),
            Mistake(partial(_choose, empty=0), "A place that nothing fills holds -1; 0 is a position."),
            Mistake(partial(_choose, highest=True), "Equal scores go to the lowest position: stable=True."),
        ),
        "As select of build 2, with triu(1 + S - T) in place of triu(1).",
        use=places_in_any_order,
    ),
    Exercise(
        "build_5.attend",
        _whole,
        lambda: [(_hidden(), ()), (_hidden(), (17, 18)), (_hidden(24), (8, 16))],
        (
            Mistake(partial(_attend, wrong="forgets"), "The past is not used: new latents and keys stand after it."),
            Mistake(partial(_attend, wrong="last only"), "The new past must hold everything so far, old and new."),
            Mistake(
                partial(_attend, wrong="at zero"),
                "The rows of `table` are those of the new positions: hand them to project and indexer as they are.",
            ),
        ),
        "project; indexer; cat past and new along axis 1; select of index_scores; sparse; o_proj; give both tensors.",
        use=_in_parts,
        absolute=1e-5,
    ),
    Exercise(
        "build_5.continued",
        _logits,
        lambda: [(_tokens(), ()), (_tokens(), (13, 14, 30))],
        (
            Mistake(
                partial(_continued, wrong="no past"), "Each layer needs its own past, and the new one is given back."
            ),
            Mistake(partial(_continued, wrong="no norm"), "The last norm, before lm_head, is missing."),
            Mistake(partial(_continued, wrong="one past"), "Each layer has a past of its own; you kept one for all."),
        ),
        "table from position `start` on; for each layer attend(norm(x)), x + y, block with feed; norm, lm_head.",
        use=_continued_in_parts,
        absolute=1e-5,
    ),
    Exercise(
        "build_5.distribution",
        _distribution,
        lambda: [(2 * drawn(3, 8), 0.7, 1.0), (2 * drawn(3, 8), 1.3, 0.8), (2 * drawn(3, 8, seed=1), 1.0, 0.3)],
        (
            Mistake(partial(_distribution, wrong="times"), "Logits are divided by the temperature, not multiplied."),
            Mistake(partial(_distribution, wrong="no cut"), "top_p is not used: the tail gets probability 0."),
            Mistake(partial(_distribution, wrong="not divided"), "What is left must be divided by its sum."),
            Mistake(
                partial(_distribution, wrong="one too few"),
                "The token that crosses top_p stays: what counts is what stands ahead of it.",
            ),
        ),
        "softmax of logits/temperature; sort; ahead = cumsum − own; zero where ahead >= top_p; divide; scatter back.",
    ),
    Exercise(
        "build_5.race",
        _race,
        _race_cases,
        (
            Mistake(partial(_race, wrong="likeliest"), "That is the likeliest token; E must have a say."),
            Mistake(partial(_race, wrong="product"), "The time is E divided by p: a likely token comes early."),
        ),
        "The smallest E/p is the largest p/E, and p = 0 then never wins.",
    ),
    Exercise(
        "build_5.decode",
        _own,
        lambda: [
            (decoding.prompts(subject().config.vocab_size), 6, 0.0, 1.0),
            (decoding.prompts(subject().config.vocab_size), 6, 0.8, 0.9),
            (decoding.prompts(subject().config.vocab_size), 6, 1.2, 0.3),
        ],
        (
            Mistake(partial(_decode, wrong="greedy"), "The temperature is not used: above 0 a token is drawn."),
            Mistake(partial(_decode, wrong="no top_p"), "top_p is not used: hand it to your distribution."),
            Mistake(partial(_decode, wrong="same numbers"), "Each token has its own numbers: numbers(i) for token i."),
            Mistake(
                partial(_decode, wrong="reads all again"),
                "The tokens are right, but the model reads the whole text in each call. Keep the pasts and hand it the "
                "new token alone.",
            ),
        ),
        "tokens = prompt; each round continued(model, tokens, pasts), choose from logits[:, -1], tokens = the choice.",
        use=_use_decode,
    ),
    Exercise(
        "build_5.mtp",
        _mtp,
        lambda: [_mtp_case(), _mtp_case(3)],
        (
            Mistake(_as_mtp(swapped=True), "enorm is for the embedding and comes first, hnorm for the hidden state."),
            Mistake(
                _as_mtp(normed=True), "`norm` comes before the head only: the next depth reads what is not normed."
            ),
        ),
        "layer(eh_proj(cat(enorm(embedding), hnorm(hidden))), table).",
        use=_use_mtp,
        absolute=1e-5,
    ),
    Exercise(
        "build_5.labels",
        lambda targets, doc_start, depth: shift_targets(targets, depth, doc_start),
        lambda: [(*_label_case(), depth) for depth in (1, 2, 3)],
        (
            Mistake(
                partial(_shifted, wrong="depth + 1"), "One too far: depth 1 predicts targets[i + 1] at position i."
            ),
            Mistake(partial(_shifted, wrong="documents"), "A target in another document must be -100."),
            Mistake(partial(_shifted, wrong="not moved"), "Position i predicts targets[i + depth], not targets[i]."),
        ),
        "targets[:, depth:], with -100 where doc_start[:, depth:] differs from doc_start[:, :T - depth].",
    ),
    Exercise(
        "build_5.kept",
        _kept,
        lambda: [
            ([1, 2, 3], [1, 2, 3, 4]),
            ([1, 2, 3], [1, 5, 3, 4]),
            ([9], [8, 7]),
            ([], [6]),
            ([1, 2, 3], [7, 2, 3, 4]),
        ],
        (
            Mistake(partial(_kept, wrong="drafts only"), "At the first wrong draft take the model's own choice, too."),
            Mistake(
                partial(_kept, wrong="all agreeing"),
                "Stop at the first wrong draft: what follows was chosen for a text that is not there.",
            ),
            Mistake(partial(_kept, wrong="nothing free"), "If all drafts are right, the last choice comes for free."),
        ),
        "Walk both lists: append the choice, and return where it differs from the draft; at the end append the last.",
    ),
]
