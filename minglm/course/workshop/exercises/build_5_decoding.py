# %% [markdown]
# # Build it yourself 5: cache, sampling and drafts
#
# So far the model reads whole sequences. To write, it is asked again after every token, and asked naively it reads the whole text again each time. You type the cache that saves this, the choice of a token, and the module that guesses ahead. At the end your decoding gives the same tokens as `minglm`'s own, greedy and sampled.
#
# **You will learn** to keep latents and indexer keys, to choose keys for queries in the middle of a text, to decode with a cache, temperature and top-p, sampling as a race, the multi-token prediction module, and which drafts may be kept.
#
# **Time:** under a minute of computing, 90 minutes of typing and 20 minutes to read. **You need:** [`build_2_model`](build_2_model.ipynb); [`06_mtp_and_speculative_decoding`](06_mtp_and_speculative_decoding.ipynb) helps. No network.
#
# Shapes: B batch, T new positions, S all positions so far, new ones included; the rest as in build 1 and 2.
# %%
import torch
from torch import nn

from minglm.course.notebook import pick, show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import decoding, solved

first, second = solved("build_1_layers"), solved("build_2_model")
RMSNorm, rope_table, block = first["RMSNorm"], first["rope_table"], first["block"]
index_scores, sparse = second["index_scores"], second["sparse"]
SparseMLA, Layer, GLM = second["SparseMLA"], second["Layer"], second["GLM"]
# %% [markdown]
# ## 1. Choose keys in the middle of a text
#
# In build 2 query t stood at position t. Now the T queries are the **last** T of S positions: query t stands at S − T + t and may choose among the keys up to there. Otherwise as `select`: the k best, −1 for a place that stays empty, equal scores to the lowest position.
# %%
def select(scores, k):
    """scores (B, T, S), k <= S -> (B, T, k) int64"""
    ### BEGIN SOLUTION
    T, S = scores.shape[1:]
    future = torch.ones_like(scores).triu(1 + S - T).bool()
    seen = scores.masked_fill(future, -torch.inf)
    values, index = seen.sort(descending=True, stable=True)
    return index[..., :k].masked_fill(values[..., :k] == -torch.inf, -1)
    ### END SOLUTION
# %%
check("build_5.select", select)
# %% [markdown]
# ## 2. Attention with a past
#
# Of each token two things are kept: its latent (R numbers) and its indexer key (Di numbers). Nothing of the query: it is used once.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> a cached key was turned by RoPE at its own position. Must it be turned again when the text grows?</summary>
#
# No. The score of a turned query and a turned key depends on their distance, and both are turned by where they stand. That is why a key can be cached at all.
#
# </details>
#
# `attn` is a `SparseMLA` of build 2: `attn.project(x, table)` gives the queries, the new latents and the compressed query, `attn.indexer(x, compressed, table)` gives q, k, w, `attn.up_projections()` and `attn.o_proj` are as before. `past` is None or the pair of what was kept, (B, S − T, R) and (B, S − T, Di). `table` has the rows of the new positions. Choose min(`attn.config.index_topk`, S) keys.
# %%
def attend(attn, x, table, past):
    """x (B, T, C), table complex (T, rope/2)
    -> output (B, T, C), new past: latent (B, S, R), keys (B, S, Di)"""
    ### BEGIN SOLUTION
    q_nope, q_rope, latent, compressed = attn.project(x, table)
    q, keys, w = attn.indexer(x, compressed, table)
    if past is not None:
        latent = torch.cat((past[0], latent), 1)
        keys = torch.cat((past[1], keys), 1)
    k = min(attn.config.index_topk, keys.shape[1])
    chosen = select(index_scores(q, keys, w), k)
    out = sparse(q_nope, q_rope, latent, *attn.up_projections(), chosen)
    return attn.o_proj(out.flatten(-2)), (latent, keys)
    ### END SOLUTION
# %%
check("build_5.attend", attend)
# %% [markdown]
# ## 3. The model with a past
#
# `pasts` is a list with one past a layer, or a list of None at the start. The new tokens stand after those that are kept, and the table must begin there. `layer.feed` is the feed-forward of build 2. Give the logits of the new positions.
# %%
def continued(model, tokens, pasts):
    """model a GLM, tokens (B, T) int64 -> logits (B, T, V), new pasts"""
    ### BEGIN SOLUTION
    c = model.config
    start = 0 if pasts[0] is None else pasts[0][0].shape[1]
    positions = torch.arange(start, start + tokens.shape[1])
    table = rope_table(positions, c.qk_rope_head_dim, c.rope_theta)
    x, new = model.embed_tokens(tokens), []
    for layer, past in zip(model.layers, pasts):
        y, past = attend(layer.self_attn, layer.input_layernorm(x), table, past)
        new.append(past)
        x = block(x + y, layer.post_attention_layernorm, layer.feed)
    return model.lm_head(model.norm(x)), new
    ### END SOLUTION
# %%
check("build_5.continued", continued)
# %% [markdown]
# ## 4. Temperature and top-p
#
# A token is drawn from softmax(logits / temperature). Top-p cuts the tail: order the tokens by probability and keep the fewest that together hold at least `top_p`; that is, keep a token when what stands **ahead** of it holds less than `top_p`. The rest gets 0, and what is left is divided by its sum. With top_p = 1 all stay.
# %%
def distribution(logits, temperature, top_p):
    """logits (N, V), two floats -> probabilities (N, V)"""
    ### BEGIN SOLUTION
    probs = (logits / temperature).softmax(-1)
    if top_p == 1:
        return probs
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    ahead = ranked.cumsum(-1) - ranked
    kept = ranked.masked_fill(ahead >= top_p, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, kept)
    ### END SOLUTION
# %%
check("build_5.distribution", distribution)
# %% [markdown]
# ## 5. Sampling as a race
#
# Give every token a number from the standard exponential distribution, E. Token v arrives at time E[v] / p[v], and the first to arrive is taken. That happens with probability p[v], exactly (it is the Gumbel-max trick without logarithms). So a draw is one argmin, and with the same numbers E it comes out the same wherever it is computed: alone, in a batch, after an abort. A token with probability 0 must never win.
# %%
def race(probs, E):
    """probs (N, V), E (N, V) positive -> tokens (N,) int64"""
    ### BEGIN SOLUTION
    return (probs / E).argmax(-1)
    ### END SOLUTION
# %%
check("build_5.race", race)
# %% [markdown]
# ## 6. Decode
#
# Read the prompt once (prefill), then one token at a time. Token number i, from 0, is chosen from the logits of the last position: with temperature 0 the likeliest, else by a race in their distribution with `numbers(i)`, (N, V). The loop calls the model once for the prompt and once for each further token, with that token alone.
# %%
@torch.no_grad()
def decode(model, prompt, count, temperature=0.0, top_p=1.0, numbers=None):
    """prompt (B, P) int64 -> new tokens (B, count)"""
    ### BEGIN SOLUTION
    tokens, pasts, out = prompt, [None] * len(model.layers), []
    for i in range(count):
        logits, pasts = continued(model, tokens, pasts)
        last = logits[:, -1]
        if temperature == 0:
            chosen = last.argmax(-1)
        else:
            chosen = race(distribution(last, temperature, top_p), numbers(i))
        tokens = chosen.unsqueeze(-1)
        out.append(chosen)
    return torch.stack(out, -1)
    ### END SOLUTION
# %%
check("build_5.decode", decode)
# %% [markdown]
# What does the cache save? Below, multiplications and additions for each further token: reading the whole text again, and with the cache.
# %%
lengths = pick((16, 32, 64, 128, 256), (8, 16))
show(*decoding.work_by_length(continued, GLM, lengths))
# %% [markdown]
# ## 7. Multi-token prediction
#
# One more layer guesses the token **after** the next (DeepSeek-V3 §2.2). At position i it joins what the model knew there, `hidden` (before the last norm; GLM-5's published module reads it after that norm), with the embedding of the next token, which in training is known and in decoding was just chosen:
#
# > eh_proj( [ enorm(embedding) ; hnorm(hidden) ] ), then a layer; before the model's own head comes `norm`
#
# Names: `enorm`, `hnorm`, `norm` (RMSNorm of width C, eps `rms_norm_eps`), `eh_proj` (2C → C, no bias), `layer`, a `Layer` of build 2 with experts and `SparseMLA`. `forward` gives the layer's output, which the next depth reads as its `hidden`; it is **not** normed yet.
# %%
class MTP(nn.Module):
    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        C, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(C, eps), RMSNorm(C, eps)
        self.eh_proj = nn.Linear(2 * C, C, bias=False)
        self.layer = Layer(config, True, SparseMLA)
        self.norm = RMSNorm(C, eps)
        ### END SOLUTION

    def forward(self, hidden, embedding, table):
        """hidden, embedding (B, T, C), table complex (T, rope/2) -> (B, T, C)"""
        ### BEGIN SOLUTION
        joined = torch.cat((self.enorm(embedding), self.hnorm(hidden)), -1)
        return self.layer(self.eh_proj(joined), table)
        ### END SOLUTION
# %%
check("build_5.mtp", MTP)
# %% [markdown]
# What is right for it? With `targets[i]` the token after position i, depth d (1, 2, …) predicts `targets[i + d]` at position i; the last d positions have none. A target in another document does not count: `doc_start[i]` says where the document of position i begins, and two positions are in one document when theirs are equal.
# %%
def labels(targets, doc_start, depth):
    """targets, doc_start (B, T) int64 -> (B, T - depth), -100 in other documents"""
    ### BEGIN SOLUTION
    other = doc_start[:, depth:] != doc_start[:, : targets.shape[1] - depth]
    return targets[:, depth:].masked_fill(other, -100)
    ### END SOLUTION
# %%
check("build_5.labels", labels)
# %% [markdown]
# ## 8. Which drafts stay
#
# The module drafted n tokens. The model reads them all in **one** call, and chooses for itself: `choices` has n + 1 tokens, the first for the place of the first draft, each further one on the condition that all drafts before it were right, the last for the place after them. Keep drafts while they agree; at the first that does not, take the model's own choice and stop. If all agree, its last choice comes for free.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> all drafts are wrong. How many tokens does the call give?</summary>
#
# One: the model's own. A call never gives fewer tokens than without drafts, and the text is the same text. What it costs is the reading of n further tokens.
#
# </details>
# %%
def kept(drafts, choices):
    """drafts list of n ints, choices list of n + 1 ints -> list of 1 to n + 1 ints"""
    ### BEGIN SOLUTION
    out = []
    for draft, choice in zip(drafts, choices):
        out.append(choice)
        if draft != choice:
            return out
    return [*out, choices[-1]]
    ### END SOLUTION
# %%
check("build_5.kept", kept)
# %%
show(*decoding.tokens_per_call(kept, trials=pick(4000, 200)))
# %% [markdown]
# ## 9. The same tokens
#
# Four prompts of `minglm`'s model, with its weights in yours: greedy, and sampled at temperature 0.8 and top-p 0.9 with the same numbers E. Each bar is the share of tokens that agree. As a control, a decoder that turns every new query as if it stood at position 0.
# %%
how = dict(temperature=0.8, top_p=0.9)
show(*decoding.beside_the_models_own(GLM, decode, pick(48, 12), how))
# %% [markdown]
# **Next:** [build 6](build_6_rollouts.ipynb): many answers at once, and what is learnt from them.
