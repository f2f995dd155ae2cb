"""Checks of 17: INT4 with a scale for each group, two codes in a byte, the size of codes and scales together."""

from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn


def _round(weight, group):
    import torch

    row, out = weight.tolist(), []
    for start in range(0, len(row), group):
        part = row[start : start + group]
        scale = max(abs(w) for w in part) / 7
        for w in part:
            candidates = range(-7, 8)
            out.append(0.0 if not scale else scale * min(candidates, key=lambda c: abs(w - c * scale)))
    return torch.tensor(out)


def _scaled(  # noqa: PLR0913 (each keyword is one known mistake)
    weight, group, steps=7.0, per_row=False, codes=False, floor=False, guard=True, keep=True, least=0.0, more=0.0
):
    import torch

    groups = weight.view(1, -1) if per_row else weight.view(-1, group)
    scale = groups.abs().amax(1, keepdim=keep) / steps
    scale = scale.clamp(min=least) + more
    if guard:
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    code = (groups / scale).floor() if floor else (groups / scale).round()
    return (code if codes else code * scale).reshape(-1)


def _rows():
    import torch

    return [
        (torch.tensor([7.0, 1.2, 0.0, 0.0]), 2),
        (drawn(16, seed=2), 4),
        (torch.cat([drawn(8, seed=3), 20 * drawn(8, seed=4)]), 8),
        (1e-3 * drawn(12, seed=5), 4),
    ]


def _pack(codes):
    return [int(f"{high + 8:04b}{low + 8:04b}", 2) for low, high in zip(codes[::2], codes[1::2], strict=False)]


def _size(n, bits, group, scale_bits=16):
    code_bits, all_scales = n * bits, n / group * scale_bits
    return (code_bits + all_scales) / (8 * 1024**3)


CODES = [([-7, 7],), ([0, 1, -1, 5, 3, -4],), ([7, 7, -7, -7],)]
SIZES = [(2**30, 8, 16), (2**30, 4, 32), (744e9, 4, 128), (7e9, 8, 128, 32)]


EXERCISES = [
    Exercise(
        "17.round_int4",
        _round,
        _rows,
        (
            Mistake(
                lambda w, g: _scaled(w, g, per_row=True),
                "All weights share one scale, so one outlier makes the steps of all the others coarse. Each group has "
                "its own.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, codes=True),
                "Those are the codes. Multiply by the scale to get weights again.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, guard=False),
                "A group of zeros has scale 0, and 0/0 is NaN: use a scale of 1 there.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, guard=False, keep=False),
                "Without keepdim=True the scales lie side by side, and each meets a column in place of its own group. "
                "Use `.amax(1, keepdim=True)`.",
            ),
            Mistake(
                lambda w, g: _round(w, g).view(-1, g),
                "The numbers are right, but still cut into groups. Make them 1-D again: `.view(-1)`.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, least=0.1),
                "No scale can become smaller than 0.1 here, and real weights of about 0.02 are all rounded to zero. "
                "Replace a scale only where it is exactly 0.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, guard=False, more=1e-3),
                "You add a little to every scale. Real weights are about 0.02, their scales about 0.003: a third too "
                "large then. Replace a scale only where it is exactly 0.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, floor=True),
                "You cut off in place of rounding: that pulls all weights down. Use round.",
            ),
            Mistake(
                lambda w, g: _scaled(w, g, steps=15.0),
                "Codes go from −7 to 7: the largest weight must become 7, so divide by 7.",
            ),
        ),
        "scale = largest |w| of the group / 7 (keepdim=True keeps each scale beside its group); result = round(w / "
        "scale) · scale, and .view(-1) makes it 1-D again.",
    ),
    Exercise(
        "17.pack",
        _pack,
        lambda: CODES,
        (
            Mistake(
                lambda c: bytes(_pack(c)),
                "The bytes are right. Give them as a list of whole numbers: list(...) of what you have.",
            ),
            Mistake(
                lambda c: [(a + 8) << 4 | (b + 8) for a, b in zip(c[::2], c[1::2], strict=False)],
                "The two halves are exchanged: the first of the pair belongs into the low four bits.",
            ),
            Mistake(
                lambda c: [(a & 15) | (b & 15) << 4 for a, b in zip(c[::2], c[1::2], strict=False)],
                "Add 8 before packing: here negative codes are kept in two's complement, which the unpacking would "
                "have to know.",
            ),
            Mistake(
                lambda c: [a + 8 for a in c],
                "That is one code in each byte. Two share one: give half as many numbers as there are codes.",
            ),
            Mistake(
                lambda c: [(a + 8) | (b + 8) << 4 for a, b in zip(c[: len(c) // 2], c[len(c) // 2 :], strict=False)],
                "Neighbours share a byte: the first with the second, the third with the fourth; not the first half "
                "with the second half.",
            ),
            Mistake(
                lambda c: [(a + 8) + (b + 8) for a, b in zip(c[::2], c[1::2], strict=False)],
                "The two are mixed up and cannot be told apart again: move one of them four bits up, x << 4.",
            ),
        ),
        "(first + 8) | (second + 8) << 4 for each pair of neighbours.",
    ),
    Exercise(
        "17.size_gib",
        _size,
        lambda: SIZES,
        (
            Mistake(
                lambda n, b, g, s=16: n * b / 8 / 2**30, "The scales need room too: scale_bits / group for each weight."
            ),
            Mistake(
                lambda n, b, g, s=16: n * (b + s) / 8 / 2**30,
                "Not every weight has its own scale: `group` of them share one.",
            ),
            Mistake(lambda n, b, g, s=16: n * (b + s / g) / 2**30, "That counts bits. Eight bits are a byte."),
            Mistake(
                lambda n, b, g, s=16: n * (b + s / g) / 8 / 1e9,
                "That is GB, a thousand million bytes. A GiB is 2**30 bytes.",
            ),
        ),
        "n · (bits + scale_bits / group) bits, over 8, over 2**30.",
    ),
]
