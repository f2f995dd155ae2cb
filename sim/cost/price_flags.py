"""The prices that a command line takes:
one table of flags, which the commands read and the page's `command` line writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from sim.base.figure import Figure, figure


@dataclass(frozen=True)
class PriceFlag:
    """One price. `key` is its name among a scenario's prices, `dimension` and `unit` how it is written."""

    key: str
    flag: str
    dimension: str
    unit: str
    help: str

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flag."""
        parser.add_argument(self.flag, metavar="PRICE", help=self.help)

    def read(self, args: argparse.Namespace) -> Figure | None:
        """The price, in USD (per hour where the dimension says so); None where the flag is not given.

        Raises:
            InputError: what is no price, or one that is not more than 0.
        """
        text = getattr(args, self.flag.removeprefix("--").replace("-", "_"))
        return None if text is None else figure(text, self.dimension, self.flag)

    def write(self, price: Figure) -> list[str]:
        """The words of a command line. A range of prices has no flag: its middle is written."""
        return [self.flag, f"${price.value:.12g}{self.unit}"]


CHIP_HOUR = PriceFlag(
    "rent_usd_per_hour",
    "--chip-hour-price",
    "money_per_hour",
    "/h",
    "price of a chip-hour, such as '$2/h' (default: the chip's)",
)
SYSTEM = PriceFlag(
    "system_price_usd", "--system-price", "money", "", "price of a chip with its system, such as '$30000'"
)
TRAINING = (CHIP_HOUR, SYSTEM)


def add_price_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the prices of a training run."""
    for price_flag in TRAINING:
        price_flag.add_to(parser)


def read_prices(args: argparse.Namespace) -> dict[str, Figure]:
    """The prices that the command line gives, by their key among a scenario's prices."""
    prices = {price_flag.key: price_flag.read(args) for price_flag in TRAINING}
    return {key: price for key, price in prices.items() if price is not None}


def price_words(prices: Mapping[str, object]) -> list[str]:
    """The words of a command line that give these prices again."""
    words = []
    for price_flag in TRAINING:
        price = prices.get(price_flag.key)
        if isinstance(price, Figure):
            words += price_flag.write(price)
    return words
