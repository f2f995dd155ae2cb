"""What training never shows, decided by the hash of what it is, so by nothing that could drift.

A combination is written as `kind:part part …`, such as `name:Mira Tolen` or `sum:27 35`. A fifth of the combinations of
each kind is kept back: full names, codes, sums, comparisons, wordings of a question about a resident, an object's
colour.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

SHARE = 0.2


@lru_cache(maxsize=1 << 17)
def is_held_out(combination: str) -> bool:
    """Whether a combination is kept from training.

    >>> is_held_out("sum:27 35"), is_held_out("sum:27 34")
    (False, True)
    """
    return hashlib.sha256(f"held out {combination}".encode()).digest()[0] < SHARE * 256
