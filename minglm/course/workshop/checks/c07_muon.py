"""Checks of 07: one Newton–Schulz step, the whole iteration, heads apart, the size of an update."""

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn
from minglm.training.optim import orthogonalize

ABC = (3.4445, -4.7750, 2.0315)


def _through_svd(x, a, b, c):
    """The same polynomial, applied to the singular values."""
    import torch

    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return u @ torch.diag(a * s + b * s**3 + c * s**5) @ vt


def _small(x, eps=1e-7):
    return x / (x.norm() + eps)


def _fixed(m, steps, normalise=True, eps=1e-7):
    x = m.mT if m.shape[0] > m.shape[1] else m
    x = _small(x, eps) if normalise else x
    for _ in range(steps):
        gram = x @ x.mT
        x = ABC[0] * x + (ABC[1] * gram + ABC[2] * gram @ gram) @ x
    return x


def _orthogonalise(m, steps):
    return orthogonalize(m, steps)


def _without_eps(m, steps):
    x = _fixed(m, steps, eps=0.0)
    return x.mT if m.shape[0] > m.shape[1] else x


def _heads(update, heads):
    import torch

    return torch.cat([_orthogonalise(part, 5) for part in update.chunk(heads)])


EXERCISES = [
    Exercise(
        "07.newton_schulz_step",
        _through_svd,
        lambda: [(_small(drawn(3, 5)), *ABC), (_small(drawn(4, 4, seed=1)), 1.5, -0.5, 0.0)],
        (
            Mistake(
                lambda x, a, b, c: a * x + b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT,
                "The last term must be x again on the right: (x xᵀ)(x xᵀ) x.",
            ),
            Mistake(
                lambda x, a, b, c: a * x + b * x**3 + c * x**5,
                "You raised each number to a power. The powers are of the matrix: x xᵀ x acts on the singular values.",
            ),
            Mistake(
                lambda x, a, b, c: b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT @ x, "The first term a·x is missing."
            ),
            Mistake(
                lambda x, a, b, c: a * x + (b + c) * x @ x.mT @ x,
                "The term with c needs one more factor x xᵀ: it is the fifth power.",
            ),
            Mistake(
                lambda x, a, b, c: a * x + b * x @ x.mT @ x + c * (x @ x.mT) ** 2 @ x,
                "`**2` squares each number of a tensor. For the square of a matrix s = x xᵀ write s @ s.",
            ),
        ),
        "a·x + b·(x xᵀ) x + c·(x xᵀ)² x, matrix products throughout.",
    ),
    Exercise(
        "07.orthogonalise",
        _orthogonalise,
        lambda: [(drawn(3, 6) * 4, 5), (drawn(6, 3, seed=1), 5), (drawn(4, 4, seed=2) * 0.01, 3), (drawn(2, 3) * 0, 2)],
        (
            Mistake(
                lambda m, n: (
                    _fixed(m, n, normalise=False).mT if m.shape[0] > m.shape[1] else _fixed(m, n, normalise=False)
                ),
                "Without scaling first, singular values above 1 explode. Divide by the Frobenius norm: then all of "
                "them lie between 0 and 1.",
            ),
            Mistake(
                lambda m, n: _fixed(m, n),
                "A tall matrix came back lying on its side. Transpose it for the iteration, and back at the end.",
            ),
            Mistake(lambda m, n: _small(m), "You scaled the matrix, but no step was taken."),
            Mistake(lambda m, n: _orthogonalise(m, 1), "Only one step was taken: `steps` of them are wanted."),
            Mistake(
                _without_eps,
                "A matrix of zeros gives 0/0, NaN: a gradient may be zero, and one NaN spoils the whole model. Divide "
                "by the norm plus 1e-7.",
            ),
        ),
        "Divide by the Frobenius norm (plus 1e-7), take `steps` Newton–Schulz steps, give the same shape back.",
    ),
    Exercise(
        "07.per_head",
        _heads,
        lambda: [(drawn(8, 6), 2), (drawn(9, 4, seed=1), 3), (drawn(12, 4, seed=2), 2), (drawn(4, 5) * 0, 2)],
        (
            Mistake(
                lambda u, h: _orthogonalise(u, 5),
                "The whole matrix was orthogonalised at once: a strong head still takes the room of a weak one. Cut "
                "into `heads` blocks of rows, do each alone.",
            ),
            Mistake(
                lambda u, h: _orthogonalise(u[: len(u) // h], 5),
                "Only the first head came back. Put all of them together again, one below the other.",
            ),
        ),
        "Rows are heads: cut into `heads` equal blocks of rows, orthogonalise each with five steps, stack them again.",
    ),
    Exercise(
        "07.update_rms",
        lambda m, n: (0.2 * max(m, n) ** 0.5) * (min(m, n) ** 0.5 / (m * n) ** 0.5),
        lambda: [(64, 64), (64, 256), (512, 32)],
        (
            Mistake(
                lambda m, n: 0.2 * max(m, n) ** 0.5,
                "That is the factor itself. The orthogonal matrix it multiplies has small numbers: its RMS is "
                "1/sqrt(max(m, n)).",
            ),
            Mistake(
                lambda m, n: (min(m, n) / (m * n)) ** 0.5,
                "That is the RMS before scaling. Multiply by the factor 0.2·sqrt(max(m, n)).",
            ),
        ),
        "min(m, n) singular values of 1 give a sum of squares of min(m, n) over m·n numbers; then the factor.",
    ),
]
