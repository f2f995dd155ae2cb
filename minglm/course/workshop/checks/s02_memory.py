"""Checks of the sheet to scale/02: states under ZeRO, micro-batches in flight, and the receipt of a pipeline."""

from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks.s03_pipelines import reference_order


def _states(params, zero, dp, wrong=""):
    bytes_each, shared_from = (2, 4, 12), (3, 2, 1)
    if wrong == "gradients first":
        shared_from = (3, 1, 2)
    if wrong == "eight":
        bytes_each = (2, 4, 8)
    if wrong == "all":
        shared_from = (1, 1, 1)
    return [params * b / (dp if zero >= z else 1) for b, z in zip(bytes_each, shared_from, strict=True)]


def _in_flight(schedule, rank, ranks, micro_batches, wrong=""):
    """Counted along the order of work."""
    if schedule == "gpipe" and wrong != "as 1f1b":
        return micro_batches
    held = most = 0
    for kind, _ in reference_order(rank, ranks, micro_batches):
        held += 1 if kind == "F" else -1
        most = max(most, held)
    if wrong == "unlimited":
        return ranks - rank
    return min(rank + 1, micro_batches) if wrong == "from the first" else most


def _receipt(layers, layer_params, vocab_params, layer_bytes, logits_bytes, micro_batches, zero, dp, wrong=""):  # noqa: PLR0913  (as the sheet's)
    out = []
    for r, count in enumerate(layers):
        first, last = r == 0, r == len(layers) - 1
        params = count * layer_params + vocab_params * ((first or last) if wrong == "once" else first + last)
        row = dict(zip(("weights", "gradients", "optimiser"), _states(params, zero, dp), strict=True))
        held = 1 if wrong == "one" else _in_flight("1f1b", r, len(layers), micro_batches)
        row["activations"] = layer_bytes * count * held
        row["logits"] = logits_bytes * (True if wrong == "all logits" else last)
        row["total"] = sum(row.values())
        out.append(row)
    return out


def _listed(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


EXERCISES = [
    Exercise(
        "scale_02.states",
        _states,
        lambda: [(1e9, zero, 8) for zero in range(4)] + [(70e9, 1, 64)],
        (
            Mistake(
                partial(_states, wrong="gradients first"), "Stage 1 shares out the optimiser, stage 2 the gradients."
            ),
            Mistake(partial(_states, wrong="eight"), "The optimiser also keeps an fp32 copy of the weights: 12 bytes."),
            Mistake(
                partial(_states, wrong="all"),
                "Stage 1 shares out the optimiser only; gradients and weights stay whole.",
            ),
        ),
        "2, 4 and 12 bytes a parameter; stage 1 divides the last by dp, 2 also the middle one, 3 all.",
        use=_listed,
        hints=(
            "Begin with stage 0: three products.",
            "Each stage shares out one thing more than the stage before, the largest first.",
            "Optimiser / dp from stage 1 on, gradients / dp from 2 on, weights / dp at 3.",
        ),
    ),
    Exercise(
        "scale_02.in_flight",
        _in_flight,
        lambda: [
            ("1f1b", 0, 8, 32),
            ("1f1b", 7, 8, 32),
            ("1f1b", 2, 8, 3),
            ("1f1b", 5, 8, 3),
            ("gpipe", 2, 4, 16),
            ("1f1b", 0, 1, 5),
        ],
        (
            Mistake(
                partial(_in_flight, wrong="from the first"),
                "The first rank holds most: it waits longest for a backward.",
            ),
            Mistake(partial(_in_flight, wrong="unlimited"), "No more than all micro-batches can be in flight."),
            Mistake(
                partial(_in_flight, wrong="as 1f1b"), "GPipe does all forwards first, so it holds all micro-batches."
            ),
        ),
        "1F1B: min(ranks − rank, micro_batches); GPipe: micro_batches.",
        hints=(
            "Write down the work of the last rank, then of the one before it.",
            "The last rank holds one; each rank before it holds one more.",
            "min(ranks − rank, micro_batches), and for GPipe all.",
        ),
    ),
    Exercise(
        "scale_02.receipt",
        _receipt,
        lambda: [
            ([4, 5, 5, 4], 1e8, 3e8, 2e8, 5e8, 16, 1, 8),
            ([2, 2], 1e8, 3e8, 2e8, 5e8, 1, 0, 1),
            ([6], 1e8, 3e8, 2e8, 5e8, 4, 3, 16),
            ([2, 3, 3, 2], 1e8, 3e8, 2e8, 5e8, 2, 1, 8),  # fewer micro-batches than ranks, and than replicas
        ],
        (
            Mistake(
                partial(_receipt, wrong="once"), "With a single rank embedding and head stand on the same rank: two."
            ),
            Mistake(
                partial(_receipt, wrong="one"), "Activations are kept for every micro-batch in flight, not for one."
            ),
            Mistake(partial(_receipt, wrong="all logits"), "Only the last rank makes logits; the others have 0 there."),
        ),
        "For each rank: parameters of layers and ends, states, in flight · layers · layer_bytes, logits on the last.",
        hints=(
            "Take one rank and fill in its dict from your two functions.",
            "ends = (r == 0) + (r == ranks − 1) counts embedding and head; both are True on a single rank.",
            "Activations: in_flight('1f1b', r, ranks, m) · layers[r] · layer_bytes; total is the sum of the five.",
        ),
    ),
]
