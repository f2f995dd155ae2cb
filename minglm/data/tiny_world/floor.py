"""The floor: what a reader who knows the language perfectly would pay for each token, in nats, by what the token needs.

The loss of a model on the same tokens less this floor is what is left to learn. It is exact for text that
`minglm.data.tiny_world.documents` draws with the same mixture; other text has no floor that can be computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minglm.data.tiny_world.documents import DOCUMENT_KINDS, MIXTURE, check_mixture
from minglm.data.tiny_world.grammar import Reader
from minglm.errors import InputError


@dataclass(frozen=True)
class Scored:
    """Nats and kind (`minglm.data.tiny_world.grammar.KINDS`) of each token of a document; its end comes last."""

    nats: tuple[float, ...]
    kinds: tuple[str, ...]


def score(tokens: Sequence[str], mixture: Mapping[str, float] = MIXTURE, whole: bool = True) -> Scored:
    """The cost of each token of a document given those before it, for one who knows language and mixture.

    Args:
        tokens: tokens of the grammar from the title on. whole: the document ends here, which has a cost as well; False
            for one that a row cuts off.

    Raises:
        InputError: the language cannot write these tokens.

    >>> page = ["Sums", "\\n", *"What is _ 2 + 3 ? _ 2 + 3 + 0 = 0 5 : _ 5 . Done .".split(" ")]
    >>> round(score(page, {"sums": 1.0}).nats[7], 3)  # the second summand, one digit of ten
    2.303
    """
    shares = check_mixture(mixture)
    readers = {kind: Reader(DOCUMENT_KINDS[kind]) for kind in shares}
    chances = {kind: shares[kind] * reader.step(tokens[0]) for kind, reader in readers.items()}
    kind = max(chances, key=lambda k: chances[k])
    probabilities, reader = [sum(chances.values())], readers[kind]
    if probabilities[0] > 0:
        probabilities += map(reader.step, tokens[1:])
    bad = next((i for i, p in enumerate(probabilities) if p <= 0), None)
    if bad is not None:
        raise InputError(
            f"tiny world: no document of it goes on with {tokens[bad]!r} after "
            f"{' '.join(tokens[max(0, bad - 8) : bad])!r}; the floor is known for its own text only"
        )
    kinds = [*reader.kinds, *reader.open_kinds()]
    if whole:
        if not reader.may_end:
            raise InputError("tiny world: the document stops before its end; score it with whole=False")
        probabilities.append(1.0)
        kinds.append("grammar")
    return Scored(tuple(max(0.0, -math.log(p)) for p in probabilities), tuple(kinds))
