"""Claims about prices: ratios of input and of output, and the blend that decides which of them you pay.

Prices are dollars per million tokens. A mix is the share of tokens that are output.
"""

from __future__ import annotations

from fractions import Fraction

from minglm.errors import InputError
from sim.claims.rules import Answer, exact

PRICES = {"GLM-5, Z.ai": ("1.00", "3.20"), "GLM-5, OpenRouter": ("0.80", "2.56"), "Claude Opus 4.5": ("5.00", "25.00")}


def blended(model: str, output_share: float) -> Fraction:
    """Dollars per million tokens when `output_share` of them are output."""
    share = exact(output_share)
    if not 0 <= share <= 1:
        raise InputError(f"output_share={output_share}: a share from 0 to 1; write a quarter as 0.25")
    into, out = (Fraction(x) for x in PRICES[model])
    return into * (1 - share) + out * share


def times_cheaper(output_share: float, model: str = "GLM-5, Z.ai", rival: str = "Claude Opus 4.5") -> Fraction:
    """The rival's price over the model's for this share of output tokens."""
    return blended(rival, output_share) / blended(model, output_share)


def share_where(ratio: float, model: str = "GLM-5, Z.ai", rival: str = "Claude Opus 4.5") -> Fraction | None:
    """The output share at which the rival costs `ratio` times as much, or None when no mix does."""
    (a, b), (c, d) = ((Fraction(x) for x in PRICES[m]) for m in (rival, model))
    slope = (b - a) - exact(ratio) * (d - c)
    if slope == 0:
        return None
    share = (exact(ratio) * c - a) / slope
    return share if 0 <= share <= 1 else None


def input_ratio() -> Answer:
    """How many times cheaper input tokens are."""
    return Answer(
        times_cheaper(0), "times, input", {"rival": blended("Claude Opus 4.5", 0), "own": blended("GLM-5, Z.ai", 0)}
    )


def output_ratio() -> Answer:
    """How many times cheaper output tokens are."""
    return Answer(
        times_cheaper(1), "times, output", {"rival": blended("Claude Opus 4.5", 1), "own": blended("GLM-5, Z.ai", 1)}
    )


def blended_ratio(output_share: float = 0.25) -> Answer:
    """At three input tokens for one of output, a mix in common use for comparing prices."""
    return Answer(
        times_cheaper(output_share),
        "times, blended",
        {
            "holds_up_to_output_share": share_where(6),
            "at_openrouter_price": times_cheaper(output_share, "GLM-5, OpenRouter"),
        },
    )


def openrouter_discount(kind: str = "input") -> Answer:
    """The claimed lower price, if OpenRouter's is the list price less a fifth."""
    column = {"input": 0, "output": 1}[kind]
    return Answer(
        Fraction(PRICES["GLM-5, Z.ai"][column]) * Fraction(4, 5),
        "dollars per million tokens, list less 20%",
        {"discount": 1 - Fraction(PRICES["GLM-5, OpenRouter"][column]) / Fraction(PRICES["GLM-5, Z.ai"][column])},
    )
