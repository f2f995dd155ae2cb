# %% [markdown]
# # Build it yourself 0: the tokenizer
#
# A model reads numbers. In this notebook you type byte-pair encoding (BPE), the algorithm that turns text into them, in about 40 lines. At the end your merges are compared with those that the `tokenizers` library learns from the same text: they must be the same, in the same order.
#
# **You will learn** to count pairs, merge one, learn a vocabulary, encode new text with it, and get the bytes back.
#
# **Time:** under a minute of computing, 60 minutes of typing and 15 minutes to read. **You need:** [`00_start_here`](00_start_here.ipynb); [`01_tokens_and_data`](01_tokens_and_data.ipynb) helps. No network.
#
# Words used here: a **piece** is a stretch of text, mostly a word with the space before it; a **symbol** is an integer, 0 to 255 for a byte and 256, 257, … for what merges have made. A piece is a tuple of symbols.
# %%
from collections import Counter

from minglm.course.notebook import pick, show
from minglm.course.workshop import check, hint
from minglm.course.workshop.build import text

# %%
corpus = text.sample(pick(300, 80))
words = text.pieces(corpus)
print(corpus[0][:200])
print(f"{sum(map(len, corpus)):,} characters, {len(words):,} different pieces")
# %% [markdown]
# `words` maps each piece to how often it stands in the corpus. The text was cut into pieces first, at spaces and around digits: merges never cross such a border. (The symbols of the bytes are numbered as the library numbers them, so that results can be compared; nothing else depends on it.)
#
# ## 1. Count pairs
#
# For every two neighbouring symbols: how often do they stand side by side in the whole corpus? A piece that stands there n times counts n times.
# %%
def count_pairs(words):
    """words {tuple of symbols: how often} -> {(left, right): how often}"""
    ### BEGIN SOLUTION
    pairs = Counter()
    for piece, often in words.items():
        for pair in zip(piece, piece[1:]):
            pairs[pair] += often
    return dict(pairs)
    ### END SOLUTION
# %%
check("build_0.count_pairs", count_pairs)
# %% [markdown]
# ## 2. Merge one pair
#
# Replace the pair by one new symbol wherever it stands, from left to right, without overlap.
#
# <details style="margin-bottom:1em"><summary><b>Predict first:</b> the pair (7, 7) in the piece (7, 7, 7). What is left?</summary>
#
# (new, 7): the first two are merged, and the third finds no partner. From right to left it would be (7, new), another tokenization.
#
# </details>
# %%
def merge(piece, pair, new):
    """piece tuple, pair (left, right), new int -> tuple"""
    ### BEGIN SOLUTION
    out, i = [], 0
    while i < len(piece):
        if piece[i : i + 2] == pair:
            out.append(new)
            i += 2
        else:
            out.append(piece[i])
            i += 1
    return tuple(out)
    ### END SOLUTION
# %%
check("build_0.merge", merge)
# %% [markdown]
# ## 3. Learn the merges
#
# `count` times: take the most frequent pair, give it the next free symbol (256 for the first merge), and replace it in all pieces. Where several pairs are equally frequent, take the smallest one: `(3, 9)` before `(4, 1)`. Stop early when no pair is left.
# %%
def learn(words, count):
    """words as above, count int -> list of pairs, in the order of their merging"""
    ### BEGIN SOLUTION
    words, merges = dict(words), []
    for new in range(256, 256 + count):
        pairs = count_pairs(words)
        if not pairs:
            break
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(pair)
        words = {merge(piece, pair, new): often for piece, often in words.items()}
    return merges
    ### END SOLUTION
# %%
check("build_0.learn", learn)
# %% [markdown]
# ## 4. Encode
#
# New text takes the merges **in the order in which they were learnt**, not by their frequency in the new text. For a piece: among its pairs find the one that was learnt first, merge it, and go on until no pair of it was ever learnt.
# %%
def encode(piece, merges):
    """piece tuple of bytes' symbols, merges list of pairs -> tuple of symbols"""
    ### BEGIN SOLUTION
    rank = {pair: n for n, pair in enumerate(merges)}
    while True:
        known = [pair for pair in zip(piece, piece[1:]) if pair in rank]
        if not known:
            return piece
        first = min(known, key=rank.get)
        piece = merge(piece, first, 256 + rank[first])
    ### END SOLUTION
# %%
check("build_0.encode", encode)
# %% [markdown]
# ## 5. Decode
#
# A symbol below 256 is a byte. Any other one stands for a pair, whose halves may stand for pairs again. Nothing is lost: whatever was encoded comes back, also text that the corpus never held. There is no "unknown" token.
# %%
def decode(symbols, merges):
    """symbols sequence of int, merges list of pairs -> list of symbols below 256"""
    ### BEGIN SOLUTION
    out = []
    for symbol in symbols:
        if symbol < 256:
            out.append(symbol)
        else:
            out += decode(merges[symbol - 256], merges)
    return out
    ### END SOLUTION
# %%
check("build_0.decode", decode)
# %% [markdown]
# ## 6. Beside the real one
#
# The library learns from the same text. Below: how many of your merges are its merges, place by place; and, as the vocabulary grows, how many bytes of **unseen** text one token holds. As a control, the same number of merges with pairs picked at random.
# %%
show(*text.beside_the_real_one(learn, encode, merges=pick(200, 60)))
# %% [markdown]
# Why are digits kept apart? With them merged, "4821" might be one token and "4822" two, and the model would have to learn the sums of each by heart. Split, a number is spelled.
#
# **Next:** [build 1](build_1_layers.ipynb): the layers of the model that reads these symbols.
