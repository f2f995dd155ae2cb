"""Human units become SI once; what does not fit is refused in words."""

import pytest

from minglm.errors import InputError
from sim.base.units import RMB_PER_USD, UNITS, parse, show, whole


@pytest.mark.parametrize(
    "text, dimension, value",
    [
        ("200 Gbps", "bytes_per_s", 25e9),
        ("64 GiB", "bytes", 64 * 2**30),
        ("3.35 TB/s", "bytes_per_s", 3.35e12),
        ("90 min", "time", 5400.0),
        ("$2/h", "money_per_hour", 2.0),
        ("RMB 7.2/h", "money_per_hour", 7.2 / RMB_PER_USD),
        ("¥ 720", "money", 720 / RMB_PER_USD),
        ("$16k", "money", 16e3),
        ("354 TFLOPS", "flops", 354e12),
        ("16M", "count", 16e6),
        ("28.5T tokens", "count", 28.5e12),
        ("85%", "ratio", 0.85),
        ("1,024", "count", 1024.0),
        ("8 us", "time", 8e-6),
        (312e12, "flops", 312e12),
        ("312e12", "flops", 312e12),
        ("$0.08/kWh", "money_per_kwh", 0.08),
        ("0.48/day", "per_hour", 0.02),
        ("350 W", "power", 350.0),
        ("1.5 GWh", "energy", 1.5e9 * 3600),
    ],
)
def test_parses(text, dimension, value):
    assert parse(text, dimension) == pytest.approx(value)


@pytest.mark.parametrize(
    "text, dimension, value",
    [
        ("1 000 000", "count", 1e6),
        ("1\u00a0000\u202f000", "count", 1e6),  # as spreadsheets part thousands in French
        ("1'000'000", "count", 1e6),  # in Swiss German
        ("1.000.000", "count", 1e6),  # in German
        ("1,000,000", "count", 1e6),
        ("1.234,5 s", "time", 1234.5),
        ("1,234.5 s", "time", 1234.5),
        ("1.000,50 $", "money", 1000.5),
        ("0,08", "money_per_kwh", 0.08),  # nobody parts thousands after a nought
        ("15 trillion tokens", "count", 15e12),
        ("$1.5 million", "money", 1.5e6),
        ("128Ki", "count", 131072.0),
        ("128Ki tokens", "length", 131072.0),
        ("128K tokens", "length", 131072.0),
        ("8k", "length", 8192.0),
        ("1M", "length", 1048576.0),
        ("8k", "count", 8000.0),
        ("4,096", "length", 4096.0),
        ("50 GBps", "bytes_per_s", 50e9),
        ("989 Tflops", "flops", 989e12),
        ("$2/GPU-hour", "money_per_hour", 2.0),
        ("$2 per chip-hr", "money_per_hour", 2.0),
        ("$80/MWh", "money_per_kwh", 0.08),
        ("5 \u00b5s", "time", 5e-6),  # the micro sign
        ("5 \u03bcs", "time", 5e-6),  # the Greek letter
        ("\uff11\uff12", "count", 12.0),  # full-width digits
        ("0.024/d", "per_hour", 0.001),
        ("1.500 T", "count", 1.5e12),
        ("2.500 s", "time", 2.5),
    ],
)
def test_what_reads_one_way_is_read(text, dimension, value):
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text, dimension, readings",
    [
        ("5,57", "time", ("5.57", "557")),
        ("$2,50/h", "money_per_hour", ("2.50 $/h", "250 $/h")),
        ("1,5T", "count", ("1.5 T", "15 T")),
        ("1,500 GB/s", "bytes_per_s", ("1.500 GB/s", "1500 GB/s")),
        ("1.024", "count", ("1.0240", "1024")),
        ("$1.500", "money", ("1.5 $", "1500 $")),
        ("20k", "length", ("20000", "20480")),
        ("200K tokens", "length", ("200000", "204800")),
        ("1.5k", "length", ("1500", "1536")),
        ("3M", "length", ("3000000", "3145728")),
    ],
)
def test_what_reads_two_ways_is_refused_with_both_and_each_is_taken(text, dimension, readings):
    with pytest.raises(InputError) as refusal:
        parse(text, dimension)
    assert str(refusal.value).endswith("write " + " or ".join(readings))
    values = [parse(reading, dimension) for reading in readings]
    assert values[0] < values[1]


@pytest.mark.parametrize(
    "text", ["12,34,567", "1.23.456", "1 00", "10 0000", "1,234.5.6", "01.000.000", "5 5 s", "1.5,00"]
)
def test_parts_that_are_no_thousands_are_not_guessed(text):
    with pytest.raises(InputError):
        parse(text, "time")


@pytest.mark.parametrize(
    "text, dimension, hint",
    [
        ("400 gbps", "bytes_per_s", "'Gbps' or 'GBps'"),  # a hint never changes a size without a word
        ("80 gib", "bytes", "'GiB'"),
        ("989 tflops", "flops", "'TFLOPS'"),
        ("1.5t", "count", "'T'"),
        ("0.7kw", "power", "'kW'"),
    ],
)
def test_a_hint_differs_in_capitals_only(text, dimension, hint):
    with pytest.raises(InputError, match=f"did you mean {hint}"):
        parse(text, dimension)


@pytest.mark.parametrize("text", ["2 €/h", "2,50 €/h", "3 ct/h"])
def test_money_without_a_rate_says_which_money_is_known(text):
    with pytest.raises(InputError, match="money is in .*USD") as refusal:
        parse(text, "money_per_hour")
    assert "did you mean" not in str(refusal.value)


@pytest.mark.parametrize(
    "text, dimension, words",
    [
        ("64 GiB", "time", "measures bytes, not time"),
        ("5 GB", "bytes_per_s", "not bytes per s"),
        ("3 parsecs", "time", "not a known unit"),
        ("nan", "bytes", "not a quantity"),
        (float("nan"), "bytes", "finite"),
        (float("inf"), "bytes", "finite"),
        ("1e999", "bytes", "finite"),
        ("-3 s", "time", "below 0"),
        (True, "count", "not a quantity"),
        (None, "time", "not a quantity"),
        ("", "time", "not a quantity"),
        ("1" * 61, "time", "characters"),
        (10**400, "bytes", "larger"),
        ("1e31 B", "bytes", "larger"),
        ([1], "time", "not a quantity"),
    ],
)
def test_refuses_in_one_line(text, dimension, words):
    with pytest.raises(InputError) as caught:
        parse(text, dimension, "field")
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("field")


def test_whole_numbers():
    assert whole("100_000", "chips") == 100000 and whole("1e6", "chips") == 10**6
    for bad in (0, 1.5, "2.5", -1, 10**20, "many"):
        with pytest.raises(InputError):
            whole(bad, "chips")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(86400, "1 days"), (86399, "24 h"), (3600, "1 h"), (5400, "1.5 h"), (60, "1 min"), (1, "1 s"), (1e-3, "1 ms")],
)
def test_a_whole_unit_of_time_is_said_in_it(seconds, words):
    assert show(seconds, "time") == words


def test_show_and_parse_agree():
    for value, dimension in [
        (2.5e10, "bytes_per_s"),
        (64 * 2**30, "bytes"),
        (312e12, "flops"),
        (350.0, "power"),
        (5400.0, "time"),
    ]:
        assert parse(show(value, dimension), dimension) == pytest.approx(value, rel=1e-3)


SI = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18, "m": 1e-3}
IEC = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
COUNTS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
KIBI = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
BASES = {  # what stands behind the prefix, in SI
    "bytes": {"B": 1},
    "bytes_per_s": {"B/s": 1, "Bps": 1, "bps": 1 / 8, "bit/s": 1 / 8, "b/s": 1 / 8},
    "flops": dict.fromkeys(("FLOPS", "FLOPs", "FLOP/s", "Flops", "flops", "flop/s", "OPS"), 1),
    "power": {"W": 1},
    "energy": {"J": 1, "Wh": 60 * 60},
    "carbon_per_kwh": {f"g{gas}/{per}": 1e-3 / kwh for gas in ("", "CO2", "CO2e", "CO2eq") for per, kwh in
                       (("kWh", 1), ("MWh", 1000))},
}  # fmt: skip
HOURS = {"h": 1, "hour": 1, "chip-hour": 1, "d": 24, "day": 24, "month": 365 * 24 / 12, "year": 365 * 24}
SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400}
SECONDS |= {"week": 7 * 86400, "weeks": 7 * 86400, "ns": 1e-9, "us": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3}
SECONDS |= {
    "hr": 3600,
    "hrs": 3600,
    "month": 730 * 3600,
    "months": 730 * 3600,
    "year": 8760 * 3600,
    "years": 8760 * 3600,
}
SECONDS |= dict.fromkeys(("secs", "second", "seconds"), 1) | dict.fromkeys(("mins", "minute", "minutes"), 60)
DOLLARS = {"$": 1, "USD": 1, "RMB": 1 / 7.2, "CNY": 1 / 7.2, "¥": 1 / 7.2}


def by_hand(dimension: str, unit: str) -> float:
    """What a unit is worth, from its parts."""
    if dimension == "length":
        dimension = "count"
    if dimension == "time":
        return SECONDS[unit]
    if dimension == "ratio":
        return {"": 1, "%": 0.01}[unit]
    if dimension == "count":
        return (COUNTS | KIBI)[unit.removesuffix("tokens").strip()]
    if dimension == "per_hour":
        return 1 / HOURS[unit.removeprefix("/")]
    if dimension.startswith("money"):
        coin, slash, per = unit.partition("/")
        coin, _, scale = coin.partition(" ")
        return DOLLARS[coin] * COUNTS[scale] / ({**HOURS, "kWh": 1, "MWh": 1000}[per] if slash else 1)
    if dimension == "carbon_per_kwh" and unit.startswith("t"):
        return 1e6 * BASES[dimension]["g" + unit[1:]]
    base = max((b for b in BASES[dimension] if unit.endswith(b)), key=len)
    return (SI | IEC)[unit.removesuffix(base)] * BASES[dimension][base]


@pytest.mark.parametrize("dimension", UNITS)
def test_every_unit_is_worth_its_parts(dimension):
    for unit, factor in UNITS[dimension].items():
        assert factor == pytest.approx(by_hand(dimension, unit), rel=1e-12), unit


@pytest.mark.parametrize(
    "text, says", [("2.5", "give for example 2"), ("0", "give 1 or more"), ("0.4", "for example 1")]
)
def test_whole_numbers_name_one_that_is_taken(text, says):
    with pytest.raises(InputError, match=says):
        whole(text, "field")
