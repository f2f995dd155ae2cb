"""Build it yourself: the learner types the model in notebooks/learn/build_*, and the parts run inside minglm.

swap.py         a part in place of minglm's, and the logits compared
solutions.py    the worked solutions as Python objects
pictures.py     what the notebooks of the model and its losses show
text.py         text in pieces for the tokenizer, and the library's merges
training.py     the learner's model and loop on the tiny world
decoding.py     the learner's decoding beside the model's own
rollouts.py     rounds of rollouts, and a task for the learner's policy
"""

from minglm.course.workshop.build.solutions import solved
from minglm.course.workshop.build.swap import CLOSE, PARTS, differences, logits, subject, swap

__all__ = ["CLOSE", "PARTS", "differences", "logits", "solved", "subject", "swap"]
