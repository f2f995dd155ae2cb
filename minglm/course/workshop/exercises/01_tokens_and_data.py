# %% [markdown]
# # Exercises 01: tokens and documents
#
# **You will learn** to write byte-pair encoding yourself, to measure what a token holds, and to keep documents apart in a batch.
#
# **Time:** 25 minutes. **You need:** [`01_tokens_and_data`](../../learn/01_tokens_and_data.ipynb).
# %%
from collections import Counter

from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The most frequent pair
#
# `ids` is a Python list of token numbers. Give the pair of neighbours that occurs most often, as a tuple. Overlapping pairs count: `[7, 7, 7]` holds (7, 7) twice. Of equally frequent pairs, give the one that comes first in the list.
# %%
def most_frequent_pair(ids):
    """list of ints -> tuple of two ints: [1, 2, 3, 1, 2] -> (1, 2)"""
    ### BEGIN SOLUTION
    return Counter(zip(ids, ids[1:])).most_common(1)[0][0]
    ### END SOLUTION
# %%
check("01.most_frequent_pair", most_frequent_pair)
# %% [markdown]
# ## 2. A merge
#
# Go once through the list `ids`, from left to right. Where the two tokens of `pair` stand side by side in this order, write `new` in their place. Build a new list.
# %%
def merge(ids, pair, new):
    """list, tuple of two, int -> list: [1, 2, 3, 1, 2], (1, 2), 300 -> [300, 3, 300]"""
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
    """string, list of ints -> float: 'abcd', [1, 2] -> 2.0"""
    ### BEGIN SOLUTION
    return len(text.encode("utf-8")) / len(ids)
    ### END SOLUTION
# %%
check("01.bytes_per_token", bytes_per_token)
# %% [markdown]
# ## 4. Where a document starts
#
# `tokens`, a Python list, holds several documents; each begins with the token `bos`. For each place (counted from 0) give the place where its document starts: that of the last `bos` up to here, this place included. Where no `bos` has come yet (the list begins in the middle of a document), give 0.
# %%
def document_starts(tokens, bos):
    """list of ints, int -> list: [0, 5, 6, 0, 7], 0 -> [0, 0, 0, 3, 3]"""
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
