# %% [markdown]
# # Exercises 15: the price of a guess
#
# **You will learn** to compute a hallucination rate and an index, what a threshold does to both, and from which certainty on a model that is paid by a reward should answer.
#
# **Time:** 30 minutes. **You need:** [`15_hallucination`](../../learn/15_hallucination.ipynb).
# %%
from minglm.course.workshop import check, hint


# %% [markdown]
# ## 1. The rate
#
# An answer is correct, partial or incorrect, or the model abstains; the four arguments are counts. AA-Omniscience, a benchmark of 6000 questions of fact, gives as hallucination rate
#
# > incorrect / (partial + incorrect + abstained)
#
# If everything was correct there is nothing to divide by; give 0 then.
# %%
def hallucination_rate(correct, partial, incorrect, abstained):
    """four ints -> a number; (50, 5, 45, 0) -> 0.9"""
    ### BEGIN SOLUTION
    not_right = partial + incorrect + abstained
    return incorrect / not_right if not_right else 0.0
    ### END SOLUTION
# %%
check("15.hallucination_rate", hallucination_rate)
# %% [markdown]
# ## 2. A threshold
#
# `answers` is a list of `(grade, confidence)`; a grade is `"correct"`, `"partial"` or `"incorrect"`. An answer whose confidence is **below** the threshold is withheld: it counts as abstained. Give the index, 100 · (correct − incorrect) / all answers, withheld ones too.
# %%
def index_with_threshold(answers, threshold):
    """list of pairs, float -> a number;
    ([("correct", 0.9), ("incorrect", 0.4)], 0.5) -> 50.0"""
    ### BEGIN SOLUTION
    said = [grade for grade, confidence in answers if confidence >= threshold]
    return 100 * (said.count("correct") - said.count("incorrect")) / len(answers)
    ### END SOLUTION
# %%
check("15.index_with_threshold", index_with_threshold)
# %% [markdown]
# ## 3. When to speak
#
# A right answer earns `right`, a wrong one `wrong`, abstaining earns `unknown`, with wrong < unknown < right. If the model answers, it is right with probability *p*. It should answer if this earns more, on average, than `unknown`. Give the *p* at which both earn the same.
# %%
def speak_above(right, wrong, unknown):
    """three numbers -> a number; (1, -1, 0) -> 0.5"""
    ### BEGIN SOLUTION
    return (unknown - wrong) / (right - wrong)
    ### END SOLUTION
# %%
check("15.speak_above", speak_above)
print("speak_above(1, 0, 0) =", speak_above(1, 0, 0))
# %% [markdown]
# Most tests give a point for a right answer and none for anything else: that is `speak_above(1, 0, 0)`, printed above. From which certainty on does it pay to guess?
#
# <details style="margin-bottom:1em"><summary>Answer</summary>
#
# 0: at any certainty above 0 a guess pays. Whoever optimises for such a test learns to guess.
#
# </details>
#
# **Next:** [exercises 16](16_agents_and_sandboxes.ipynb).
