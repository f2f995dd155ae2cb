"""Claims about the company, its listing, its licence and the calendar."""

from __future__ import annotations

import datetime
from fractions import Fraction

from sim.claims.rules import Answer, exact

# What each licence asks of whoever passes the work on. MIT asks to keep the notice; these three ask nothing.
CONDITIONS = {
    "MIT": ("keep the copyright and permission notice",),
    "MIT-0": (),
    "0BSD": (),
    "Unlicense": (),
    "Apache-2.0": ("keep notices", "state changes", "keep NOTICE"),
}
SHARES, OFFER_HKD = 37_419_500, Fraction("116.20")
PEG = (Fraction("7.75"), Fraction("7.85"))  # the Hong Kong dollar's band to the US dollar


def freer_than_mit() -> Answer:
    """Well-known licences with fewer conditions than MIT."""
    freer = [name for name, asks in CONDITIONS.items() if len(asks) < len(CONDITIONS["MIT"])]
    return Answer(len(freer), "licences with fewer conditions", {"which": ", ".join(freer)})


def proceeds_hkd() -> Answer:
    """Shares sold × offer price, in billions of Hong Kong dollars."""
    return Answer(SHARES * OFFER_HKD / 10**9, "billion HKD", {"exact_hkd": SHARES * OFFER_HKD})


def proceeds_usd() -> Answer:
    """Range of the same sum in US dollars over the whole of the currency's band, in millions; the implied rate."""
    hkd = SHARES * OFFER_HKD / 10**6
    return Answer(
        (hkd / PEG[1], hkd / PEG[0]),
        "million USD",
        {"implied_rate": hkd / 558, "band_low": PEG[0], "band_high": PEG[1]},
    )


def days_between(first: str, then: str) -> Answer:
    """Days from one ISO date to another."""
    a, b = (datetime.date.fromisoformat(x) for x in (first, then))
    return Answer((b - a).days, "days", {})


def intraday_rise() -> Answer:
    """The most the share rose during 12 February 2026 (about 30%), and the closes that a later report implies."""
    close_12 = Fraction(496) / Fraction("1.234")  # a record of HK$496 on the 13th was 23.4% above the 12th's close
    return Answer(
        30,
        "percent, highest during the day",
        {"implied_close_12_february": close_12, "implied_close_11_february": close_12 / exact(Fraction("1.287"))},
    )


def change_of_lag() -> Answer:
    """Months by which open models trailed closed ones, early 2026 less mid-2024 (Epoch AI: four, against none)."""
    return Answer(4 - 0, "months more", {"average_to_october_2025": 3})
