"""What a published row is for. One vocabulary for training, serving and rollout rows.

calibration: its one scalar may be fitted on it. holdout: predicted and scored, nothing was fitted on it.
unsupported: shown with the reason, not scored.
"""

from __future__ import annotations

from minglm.errors import InputError, nearest

CALIBRATION, HOLDOUT, UNSUPPORTED = KINDS = ("calibration", "holdout", "unsupported")
_FORMER = {"fit": CALIBRATION, "predict": HOLDOUT, "listed": UNSUPPORTED}


def row_kind(value: object, key: str = "kind") -> str:
    """`value` as one of `KINDS`; `key` is what the file calls it.

    Raises:
        InputError: another word; a word of before names the one that replaces it.

    >>> row_kind("holdout")
    'holdout'
    """
    text = str(value)
    if text in _FORMER:
        raise InputError(f"{key}={text!r}: is now called {_FORMER[text]!r}; write {key}: {_FORMER[text]}")
    if text not in KINDS:
        raise InputError(f"{key}={text[:40]!r}: not one of {', '.join(KINDS)}{nearest(text, KINDS)}; give one of them")
    return text
