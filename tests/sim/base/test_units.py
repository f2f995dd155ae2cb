"""Human units become SI once; what does not fit is refused in words."""

import pytest

from minglm.errors import InputError
from sim.base.units import RMB_PER_USD, parse, show, whole


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


def test_show_and_parse_agree():
    for value, dimension in [
        (2.5e10, "bytes_per_s"),
        (64 * 2**30, "bytes"),
        (312e12, "flops"),
        (350.0, "power"),
        (5400.0, "time"),
    ]:
        assert parse(show(value, dimension), dimension) == pytest.approx(value, rel=1e-3)
