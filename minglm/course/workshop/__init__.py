"""The workshop kit: exercises that check themselves, their notebooks, and what an instructor needs around a class.

    exercises/*.py    the one source of each exercise notebook, solutions between nbgrader's markers
    build/            the learner's own parts inside the model (exercises/build_*.py)
    checks/*.py       what each exercise asks for: an independent reference, cases, and the mistakes people make
    checking.py       runs a check and says in one sentence what is wrong
    generator.py      writes notebooks/workshop/exercises (blanked) and notebooks/workshop/solutions

A notebook needs two names from here: `check("02.causal_attention", my_function)` and `hint("02.causal_attention")`.
"""

from minglm.course.workshop.checking import NotYet, check, hint

__all__ = ["NotYet", "check", "hint"]
