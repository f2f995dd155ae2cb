"""A figure a thousand times off, as one in another unit than its key's is, is refused with the reading that fits."""

import pytest

from minglm.errors import InputError
from sim.scenario.training import resolve
from sim.spec.hardware import chip_from, load_chip

RUN = {"name": "t", "model": "llama3_8b", "cluster": "dgx_h100", "chips": 8, "plan": {"dp": 8}, "seq": 4096}
RUN |= {"global_batch": 8, "tokens": "1B"}
WRONG = [  # a section of a scenario, what somebody writes there, and the same in its key's unit
    ("prices", {"power_w": 0.7}, {"power_w": "0.7 kW"}),
    ("prices", {"power_w": 700_000}, {"power_w": 700}),
    ("prices", {"pue": 110}, {"pue": 1.1}),
    ("prices", {"electricity_usd_per_kwh": 80}, {"electricity_usd_per_kwh": "$80/MWh"}),
    ("prices", {"carbon_kg_per_kwh": 385}, {"carbon_kg_per_kwh": "385 g/kWh"}),
    ("checkpoint", {"kind": "sync", "write": 2.2}, {"kind": "sync", "write": "2.2 GB/s"}),
]


@pytest.mark.parametrize("section, wrong, meant", WRONG)
def test_the_reading_that_a_refusal_names_is_accepted(section, wrong, meant):
    with pytest.raises(InputError) as refusal:
        resolve({**RUN, section: wrong}, "t")
    key, value = list(meant.items())[-1]
    assert f"{section}.{key}" in str(refusal.value) and str(value) in str(refusal.value)
    resolve({**RUN, section: meant}, "t")


@pytest.mark.parametrize(
    "key, wrong, meant",
    [
        ("memory_bytes", 80, "80 GB"),
        ("memory_bytes_per_s", 3350, "3350 GB/s"),
        ("memory_bytes_per_s", "3.350 GB/s", "3350 GB/s"),
        ("peak_flops", {"bf16": 989}, "989 TFLOPS"),
    ],
)
def test_figures_of_a_chip_without_their_unit(key, wrong, meant):
    with pytest.raises(InputError, match=f"write '{meant}'"):
        chip_from({"like": "h100", key: wrong})


def test_what_is_built_and_sold_passes():
    small = {"name": "small", "peak_flops": "500 GFLOPS", "memory_bytes": "2 GB", "memory_bytes_per_s": "10 GB/s"}
    assert chip_from(small).power_w.value == 500 and load_chip("h100").memory_bytes.value > 80e9
