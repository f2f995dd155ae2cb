"""The needle test: is a fact that stands somewhere in a long passage found when it is asked for?

Names and codes are ones that training never shows (`minglm.data.chat`). The control asks the same questions about
passages without the needle: what it scores is guessing, and the distance between the two is what the context is worth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from minglm.data.chat import lookup_example
from minglm.inference.generate import generate

ANSWER_TOKENS = 28  # "The code of <name> is <code>." with room to spare
CELL_BATCH = 32


def needle_test(  # noqa: PLR0913 (each is one axis of the test)
    model,
    tokenizer,
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    per_cell: int,
    seed: int = 7,
    filler: np.ndarray | None = None,
    mode: str = "sparse",
    progress: bool = True,
) -> dict:
    """Accuracy by depth and length on unseen needles, greedy decoding.

    Args:
        lengths: prompt lengths in tokens. depths: place of the needle, 0 the beginning and 1 the end. per_cell:
            questions for each (depth, length).
        filler: token ids that passages are cut from, default the validation part of Python's topic texts.

    Returns: accuracy [depth][length] in 0..1, `with_context` and `without_context` over all, counts, and a few
        examples.
    """
    rng = np.random.default_rng(seed)
    cells = [(d, n) for d in depths for n in lengths]
    right = {True: 0, False: 0}
    table = [[0.0] * len(lengths) for _ in depths]
    examples: list[dict[str, Any]] = []
    with tqdm(total=2 * len(cells) * per_cell, desc="needle test", unit="question", disable=not progress) as bar:
        for context in (True, False):
            for depth, length in cells:
                questions = [
                    lookup_example(rng, tokenizer, length, depth, held_out=True, filler=filler, context=context)
                    for _ in range(per_cell)
                ]
                hits = 0
                for start in range(0, per_cell, CELL_BATCH):
                    part = questions[start : start + CELL_BATCH]
                    out = generate(model, [e.prompt_ids for e in part], ANSWER_TOKENS, stop=(tokenizer.eos,), mode=mode)
                    answers = [tokenizer.decode(ids) for ids in out.tokens]
                    hits += sum(e.is_correct(a) for e, a in zip(part, answers, strict=True))
                    if len(examples) < 4 and context and depth == depths[len(depths) // 2]:
                        e = part[0]
                        examples.append(
                            {
                                "length": length,
                                "depth": depth,
                                "question": f"What is the code of {e.name}?",
                                "right": e.code,
                                "answer": answers[0].strip(),
                                "correct": e.is_correct(answers[0]),
                            }
                        )
                    bar.update(len(part))
                right[context] += hits
                if context:
                    table[depths.index(depth)][lengths.index(length)] = hits / per_cell
    total = len(cells) * per_cell
    return {
        "lengths": list(lengths),
        "depths": list(depths),
        "per_cell": per_cell,
        "seed": seed,
        "mode": mode,
        "accuracy": table,
        "with_context": right[True] / total,
        "without_context": right[False] / total,
        "questions": total,
        "examples": examples,
    }
