"""Build it yourself: the learner types the model in notebooks/learn/build_*, and the parts run inside minglm.

swap.py         a part in place of minglm's, and the logits compared
solutions.py    the worked solutions as Python objects
pictures.py     what the notebooks show
"""

from minglm.course.workshop.build.solutions import solved
from minglm.course.workshop.build.swap import CLOSE, PARTS, differences, logits, subject, swap

__all__ = ["CLOSE", "PARTS", "differences", "logits", "solved", "subject", "swap"]
