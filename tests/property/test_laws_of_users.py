"""Laws that a user takes for granted: memory, context, prices, formats and numbers, over generated cases."""

import dataclasses

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from minglm import numbers
from minglm.errors import InputError
from sim.base.figure import figure
from sim.base.units import UNITS, parse, show
from sim.cost import memory, money
from sim.serving.memory import chip_memory
from sim.serving.step_time import decode_step, prefill
from sim.spec.hardware import load_cluster
from tests.property.test_costs_monotone import cases
from tests.property.test_costs_monotone import models as trained
from tests.property.test_serving_properties import bases, deployment, models, modes, shapes

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
LESS = 1 + 1e-9
FORMATS = ["bf16", "fp8", "w4a16"]  # from wide to narrow weights
STACKS = st.sampled_from(["generic", "vllm", "vllm-v0", "sglang"])


@FEW
@given(models, bases, shapes, STACKS, st.floats(1.0, 4.0), st.integers(1, 200_000))
def test_more_memory_never_makes_a_fit_a_misfit(model, base, shape, stack, factor, context):
    """Within a class of chips: the engine's own defaults are larger on large ones, so limits are said here."""
    limits = dict(max_num_seqs=256, max_num_batched_tokens=2048, memory_share=0.9)
    small, large = (
        chip_memory(deployment(model, base, shape, stack=stack, memory_bytes=f).with_changes(**limits))
        for f in (1.0, factor)
    )
    assert large.free_bytes >= small.free_bytes - 1.0
    assert large.requests(context) >= small.requests(context)
    assert large.longest_context() >= small.longest_context()


@FEW
@given(models, bases, shapes, st.integers(1, 200_000), st.floats(0.3, 0.95), st.floats(0.0, 0.05))
def test_what_is_left_for_the_cache_is_ordered(model, base, shape, context, share, more):
    d = deployment(model, base, shape, stack="vllm").with_changes(memory_share=share)
    held = chip_memory(d)
    assert chip_memory(d.with_changes(memory_share=share + more)).free_bytes >= held.free_bytes - 1.0
    assert chip_memory(d.with_changes(kv="fp8")).requests(context) >= held.requests(context)
    assert chip_memory(d.with_changes(max_num_batched_tokens=65_536)).free_bytes <= held.free_bytes + 1.0
    assert held.requests(context + 1000) <= held.requests(context)
    weights = [chip_memory(d.with_changes(precision=one)).weights_bytes for one in FORMATS]
    assert weights == sorted(weights, reverse=True)


@FEW
@given(models, bases, shapes, modes, st.integers(1, 200), st.integers(1, 60_000), st.integers(1, 60_000))
@example("glm5", "h100", (8, 8), "hybrid", 1, 47, 1)  # one cached token was expanded in a kernel of its own
def test_longer_contexts_and_prompts_never_cost_less(model, base, shape, mode, batch, length, more):
    d = deployment(model, base, shape)
    assert decode_step(d, batch, length, mode).total_s <= decode_step(d, batch, length + more, mode).total_s * LESS
    whole = prefill(d, length + more, 0, 1, mode).total_s
    assert prefill(d, length, 0, 1, mode).total_s <= whole * LESS
    assert prefill(d, length + more, more, 1, mode).total_s <= whole * LESS  # what lies in a prefix cache saves time


@FEW
@given(models, bases, shapes, modes, st.integers(1, 500), st.integers(0, 60_000), st.integers(1, 500))
def test_a_larger_batch_takes_no_less_time(model, base, shape, mode, batch, context, more):
    d = deployment(model, base, shape)
    assert decode_step(d, batch, context, mode).total_s <= decode_step(d, batch + more, context, mode).total_s * LESS


@FEW
@given(trained(), st.integers(1, 100_000), st.integers(0, 100_000))
def test_flops_and_cache_of_a_model(model, seq, more):
    assert model.active_params(embedding=True, head=not model.tied) <= model.total_params()
    assert model.train_flops_per_token(seq + more) * LESS >= model.train_flops_per_token(seq)
    windowed = dataclasses.replace(model, window=1 + seq // 2, window_layers=model.layers)
    assert windowed.train_flops_per_token(seq) <= model.train_flops_per_token(seq) * LESS
    assert windowed.keys_read(seq) <= model.keys_read(seq) * LESS
    # Kaplan's rule of six FLOPs a weight, but for what is looked up and not multiplied
    linear = 3 * model.flops_breakdown(seq)["linear"]
    assert linear <= 6 * model.active_params() * LESS


@FEW
@given(cases())
def test_training_memory_is_ordered(case):
    model, _, plan, work, precision, stack = case

    def held(plan=plan, work=work):
        return memory.peak(model, plan, work, precision, stack).total_bytes

    base = held()
    assert held(work=dataclasses.replace(work, seq=2 * work.seq)) * LESS >= base
    twice = dataclasses.replace(work, global_batch=2 * work.global_batch)
    assert held(dataclasses.replace(plan, micro_batch=2 * plan.micro_batch), twice) * LESS >= base
    assert held(dataclasses.replace(plan, offload=True)) <= base * LESS
    assert held(dataclasses.replace(plan, recompute="full", recompute_layers=None)) <= base * LESS


@FEW
@given(st.integers(1, 100_000), st.floats(0.1, 20_000.0), st.floats(0.1, 20.0), st.floats(0.001, 1.0))
def test_bills_are_proportional_to_their_prices(chips, hours, rent, electricity):
    cluster, held = load_cluster("dgx_h100"), money.Range(hours, hours, hours, "h", "")

    def bill(rent, electricity):
        prices = {
            "rent_usd_per_hour": figure(rent, "money_per_hour", "rent"),
            "electricity_usd_per_kwh": figure(electricity, "money_per_kwh", "electricity"),
        }
        return money.costs(dataclasses.replace(cluster, num_chips=chips), held, prices)

    base = bill(rent, electricity)
    assert base["rent"].value == pytest.approx(rent * hours * chips, rel=1e-9)  # by hand
    assert bill(2 * rent, electricity)["rent"].value == pytest.approx(2 * base["rent"].value, rel=1e-9)
    assert bill(2 * rent, electricity)["own"].value == pytest.approx(base["own"].value, rel=1e-9)
    cheap = bill(rent, electricity / 2)
    assert cheap["own"].value <= base["own"].value * LESS  # cheaper electricity never raises a cost
    paid = base["own"].value - cheap["own"].value
    assert paid == pytest.approx(base["energy"].value * electricity / 2, rel=1e-6, abs=1e-6 * base["own"].value)


SIGNS = [(",", "."), (".", ","), (" ", "."), (" ", ","), ("'", "."), ("\u202f", ","), ("\u00a0", ",")]


@given(st.integers(1000, 10**12), st.integers(0, 999_999), st.sampled_from(SIGNS))
def test_a_number_of_any_country_is_that_number_or_both_readings(whole, part, signs):
    """Thousands parted and decimals behind: two signs leave one reading."""
    thousands, point = signs
    text = f"{whole:,}".replace(",", thousands) + f"{point}{part:06d}"
    assert parse(text + " s", "time") == pytest.approx(whole + part / 1e6, rel=1e-12)
    bare = f"{whole:,}".replace(",", thousands)
    try:
        read = parse(bare, "count", low=None)
    except InputError as refusal:  # one lone point: both readings are offered, and the right one is among them
        assert thousands == "." and whole < 10**6
        assert str(whole) in str(refusal).rsplit("write ", 1)[1].split(" or ")
    else:
        assert read == whole


@given(st.text(alphabet="0123456789.,' eE+-_", min_size=1, max_size=12))
def test_what_is_read_is_never_guessed(text):
    """A reading that is offered is itself read one way; what is read has the digits that were written."""
    found = numbers.leading_number(text)
    assume(found is not None and not found[1])
    try:
        value = numbers.number(found[0])
    except numbers.TwoReadingsError as two:
        assert len({numbers.number(reading) for reading in two.readings}) >= 1
    except ValueError:
        pass
    else:
        assert value == 0 or text.strip()[-1] in ".,0123456789_"


@given(st.floats(1e-3, 1e18), st.sampled_from(["bytes", "bytes_per_s", "flops", "power", "money", "count", "time"]))
def test_what_is_shown_is_read_back(value, dimension):
    assert parse(show(value, dimension), dimension) == pytest.approx(
        value, rel=2e-3, abs=0.0051 * (dimension == "money")
    )


@given(st.sampled_from(sorted(UNITS.keys() - {"length"})), st.data())
def test_a_unit_is_worth_the_same_with_and_without_a_space(dimension, data):
    unit = data.draw(st.sampled_from(sorted(UNITS[dimension])))
    value = data.draw(st.integers(1, 999))
    near, far = (parse(f"{value}{gap}{unit}", dimension) for gap in ("", " "))
    assert near == far == pytest.approx(value * UNITS[dimension][unit], rel=1e-12)


@given(st.integers(1, 999), st.sampled_from([("k", 1), ("K", 1), ("M", 2)]), st.sampled_from(["", " "]))
def test_a_length_counts_powers_of_two_in_1024s_and_offers_both_readings_of_the_rest(value, prefix, gap):
    letter, power = prefix
    try:
        read = parse(f"{value}{gap}{letter}", "length")
    except InputError as refusal:
        assert value not in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        assert all(str(value * base**power) in str(refusal) for base in (1000, 1024))
    else:
        assert value in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) and read == value * 1024**power
