# %% [markdown]
# # Exercises 01: tokens and documents
#
# **You will learn** to write byte-pair encoding yourself, to measure what a token holds, and to keep documents apart in a batch.
#
# **Time:** 25 minutes. **You need:** [`01_tokens_and_data`](../../learn/01_tokens_and_data.ipynb).
#
# Replace each `raise NotImplementedError()` by your answer, then run the check below it.
# %%
from collections import Counter

from minglm.workshop import check


# %% [markdown]
# ## 1. The most frequent pair
#
# `ids` is a list of token numbers. Give the pair of neighbours that occurs most often, as a tuple. Of several equally frequent ones, give the one that comes first in the list.
# %%
def most_frequent_pair(ids):
    """[1, 2, 3, 1, 2] -> (1, 2)"""
    ### BEGIN SOLUTION
    return Counter(zip(ids, ids[1:])).most_common(1)[0][0]
    ### END SOLUTION
# %%
check("01.most_frequent_pair", most_frequent_pair)
# %% [markdown]
# ## 2. A merge
#
# Go through `ids` from left to right. Where the two tokens of `pair` stand side by side, write `new` in their place. The input must stay as it is: build a new list.
# %%
def merge(ids, pair, new):
    """[1, 2, 3, 1, 2], (1, 2), 300 -> [300, 3, 300]"""
    ### BEGIN SOLUTION
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i:i + 2]) == tuple(pair):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
    ### END SOLUTION
# %%
check("01.merge", merge)
# %% [markdown]
# ## 3. What a token holds
#
# A text and its tokens are given. How many **bytes** (of the text in UTF-8) does one token hold on average?
# %%
def bytes_per_token(text, ids):
    """'abcd', [1, 2] -> 2.0"""
    ### BEGIN SOLUTION
    return len(text.encode("utf-8")) / len(ids)
    ### END SOLUTION
# %%
check("01.bytes_per_token", bytes_per_token)
# %% [markdown]
# ## 4. Where a document starts
#
# A row of a batch holds several documents; each begins with the token `bos`. For each place give the first place it may see: that of the last `bos` at or before it. Before any `bos` (a window that starts in the middle of a document) it is 0.
# %%
def document_starts(tokens, bos):
    """[0, 5, 6, 0, 7], 0 -> [0, 0, 0, 3, 3]"""
    ### BEGIN SOLUTION
    out, start = [], 0
    for place, token in enumerate(tokens):
        if token == bos:
            start = place
        out.append(start)
    return out
    ### END SOLUTION
# %%
check("01.document_starts", document_starts)
# %% [markdown]
# **Next:** [exercises 02](02_mla.ipynb).
