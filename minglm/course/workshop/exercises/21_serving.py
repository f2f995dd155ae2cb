# %% [markdown]
# # Exercises 21: promises to readers
#
# **You will learn** to say how long the unlucky wait, whom a server may let in, and how much of its output keeps what was promised.
#
# **Time:** 30 minutes. **You need:** [`21_serving`](../../learn/21_serving.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The unlucky
#
# The p-th percentile is the smallest measured value such that at least p% of all values are equal to it or smaller: in rising order, the one at rank p · n / 100, rounded up (n values). Of 200 waits, the 99th percentile is the 198th: two people waited longer. `values` is a list of numbers, `p` is a whole number from 1 to 100.
# %%
def percentile(values, p):
    """list of floats, int -> one of them; ([0.3, 0.1, 0.2, 9.0], 50) -> 0.2"""
    ### BEGIN SOLUTION
    rank = -(-p * len(values) // 100)                # rounded up
    return sorted(values)[rank - 1]
    ### END SOLUTION
# %%
check("21.percentile", percentile)
# %% [markdown]
# A shop site asks the server ten times for one view and shows it when the last answer is there. About which share of views has all ten answers within the 99th percentile?
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# 0.99¹⁰ = 0.904, if the answers are slow independently of each other: one view in ten has to wait for a slow one.
#
# </details>
#
# ## 2. Who may come in
#
# A cache is cut into pages of `page` tokens; `free` pages are free. `queue` is a list of requests. A request `(prompt, new)` may grow to prompt + new tokens, and its pages are set aside when it enters, so that nobody has to be thrown out halfway. Those who came first enter first: if the next in the queue does not fit, it waits, and everybody behind it waits too.
#
# Give, for each who enters, how many pages it takes; in order.
# %%
def admit(queue, free, page):
    """list of pairs of ints, two ints -> list of ints;
    ([(100, 28), (10, 10)], 5, 64) -> [2, 1]"""
    ### BEGIN SOLUTION
    out = []
    for prompt, new in queue:
        need = -(-(prompt + new) // page)
        if need > free:
            break
        free -= need
        out.append(need)
    return out
    ### END SOLUTION
# %%
check("21.admit", admit)
# %% [markdown]
# ## 3. What counts
#
# A server that makes many tokens and lets everyone wait has a high throughput and unhappy readers. *Goodput* counts only answers that kept **both** promises: the first token after at most `ttft` seconds, each further one after at most `tpot` seconds on average.
#
# `answers` is a list of `(first, last, tokens)`: seconds from the question to the first and to the last token, and how many tokens there were (a single token has no further ones, so it keeps the second promise). All this happened in `seconds` seconds. Give the tokens per second of answers that kept both.
# %%
def goodput(answers, ttft, tpot, seconds):
    """list of triples, three floats -> a number;
    ([(0.5, 10.5, 101), (3.0, 4.0, 50)], 1.0, 0.2, 20.0) -> 5.05:
    the second one began too late"""
    ### BEGIN SOLUTION
    kept = 0
    for first, last, tokens in answers:
        each = (last - first) / (tokens - 1) if tokens > 1 else 0.0
        if first <= ttft and each <= tpot:
            kept += tokens
    return kept / seconds
    ### END SOLUTION
# %%
check("21.goodput", goodput)
# %% [markdown]
# **Next:** [exercises 22](22_how_a_model_learns_to_look_back.ipynb).
