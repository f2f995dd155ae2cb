"""Generated scenarios: never a traceback, never a negative or NaN result, more bandwidth never slower, more failures
never more goodput."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.base.checks import check_finite
from sim.scenario.training import resolve
from sim.spec.hardware import list_chips, list_clusters
from sim.study.campaign import campaign_input, campaign_segments
from sim.study.projection import point, project
from sim.training import campaign

RUN = settings(max_examples=50, suppress_health_check=list(HealthCheck))
FEW = settings(RUN, max_examples=30)

WIDTH = st.sampled_from([1, 1, 2, 2, 4, 8, 3, 16])
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**22),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.just({"a": 1}),
    st.sampled_from(["64 GiB", "200 Gbps", "1e400", "-5", "", "nan", "inf"]),
)
MODEL = st.one_of(
    st.sampled_from(
        [
            "mini",
            "llama3_8b",
            "llama2_13b",
            "mixtral_8x7b",
            "qwen3_30b_a3b",
            "gpt_oss_120b",
            "glm5",
            "deepseek_v3",
            "gpt3_175b",
            "recompute_22b",
        ]
    ),
    st.fixed_dictionaries(
        {
            "layers": st.integers(1, 40),
            "hidden": st.sampled_from([64, 512, 4096]),
            "heads": st.sampled_from([4, 8, 32]),
        },
        optional={
            "kv_heads": st.sampled_from([1, 4, 8]),
            "ffn": st.integers(64, 20000),
            "vocab": st.integers(100, 200000),
            "experts": st.sampled_from([4, 8, 64]),
            "top_k": st.sampled_from([1, 2, 8]),
            "moe_ffn": st.integers(32, 4096),
        },
    ),
)
MACHINE = st.one_of(
    st.fixed_dictionaries({"cluster": st.sampled_from(list_clusters())}),
    st.fixed_dictionaries({"chip": st.sampled_from(list_chips())}),
    st.fixed_dictionaries({"cluster": st.sampled_from(list_clusters()), "chip": st.sampled_from(list_chips())}),
)


@st.composite
def scenarios(draw, sane: bool = False):
    """A scenario document; unless `sane`, one key in a few is replaced by something odd."""
    plan = {"tp": draw(WIDTH), "pp": draw(WIDTH)}
    for key in ("cp", "ep", "vpp"):
        if draw(st.booleans()) and draw(st.booleans()):
            plan[key] = draw(WIDTH)
    document = {
        "model": draw(MODEL),
        **draw(MACHINE),
        "plan": plan,
        "chips": plan["tp"] * plan["pp"] * plan.get("cp", 1) * draw(st.sampled_from([1, 2, 4, 8, 32]))
        + draw(st.integers(0, 3)),
        "micro_batch": draw(st.sampled_from([1, 1, 2])),
        "seq": draw(st.sampled_from([128, 1024, 4096])),
        "schedule": draw(
            st.sampled_from(["1f1b", "1f1b", "gpipe", "zb-h1", "interleaved", "dualpipe", "zb-v", "dualpipe-v"])
        ),
        "recompute": draw(st.sampled_from(["full", "full", "none", "selective", "selective_ops"])),
        "precision": draw(st.sampled_from(["bf16", "fp16", "fp8"])),
        "options": {"zero": draw(st.integers(0, 3)), "overlap_grad_reduce": draw(st.booleans())},
        "tokens": draw(st.sampled_from(["1B", "50B"])),
        "failures": {"per_chip_day": draw(st.sampled_from([0, 1e-4, 1e-3]))},
    }
    document["global_tokens"] = document["seq"] * plan["pp"] * 2 * draw(st.sampled_from([8, 64, 512]))
    if not sane and draw(st.booleans()):
        key = draw(
            st.sampled_from(
                [
                    *document,
                    "seed",
                    "what_if",
                    "phases",
                    "prices",
                    "jitter",
                    "checkpoint",
                    "plans",
                    "nonsense",
                    "attention",
                    "campaign",
                ]
            )
        )
        document[key] = draw(ODD)
    return document


def attempt(document, function):
    """The function's result, or None where the input is refused; a refusal is one line."""
    try:
        return function(resolve(document))
    except InputError as err:
        assert str(err) and "\n" not in str(err)
        return None


@pytest.mark.slow
@RUN
@given(scenarios())
def test_no_traceback_and_nothing_negative(document):
    result = attempt(document, project)
    if result is not None:
        check_finite(result)
        assert result["step"]["step_s"] > 0 and 0 <= result["step"]["bubble_fraction"] < 1
        own, *others = result["mfu"]  # an fp8 step may do more than its chip could in bf16
        assert 0 < own["mfu"] < 1 and all(0 < m["mfu"] for m in others), result["mfu"]
        assert 0 < result["campaign"]["goodput"] <= 1 + 1e-9
        assert result["days"]["low"] <= result["days"]["value"] <= result["days"]["high"]


@RUN
@given(scenarios(sane=True), st.floats(1.01, 8.0), st.integers(0, 3))
def test_more_bandwidth_is_never_slower(document, factor, which):
    def compare(s):
        c = s.cluster
        if which == 3:
            better = replace(c, chip=replace(c.chip, memory_bytes_per_s=faster(c.chip.memory_bytes_per_s, factor)))
        else:
            chosen = which % len(c.tiers)
            better = replace(
                c,
                tiers=tuple(
                    replace(t, bytes_per_s=faster(t.bytes_per_s, factor)) if i == chosen or which == 2 else t
                    for i, t in enumerate(c.tiers)
                ),
            )
        base, quick = point(s), point(s, better)
        assert quick.result.step_s <= base.result.step_s * (1 + 1e-9)
        assert quick.closed_form_s <= base.closed_form_s * (1 + 1e-9)

    attempt(document, compare)


def faster(figure, factor):
    return replace(figure, value=figure.value * factor, high=max(figure.high, figure.value * factor))


@FEW
@given(scenarios(sane=True), st.floats(1.2, 6.0), st.integers(0, 5))
def test_more_failures_are_never_more_goodput(document, factor, seed):
    def compare(s):
        segments = campaign_segments(s)
        calm, rough = (
            campaign.run(
                campaign_input(
                    replace(s, checkpoint={"interval": 600.0}, failures={**s.failures, "per_chip_day": rate}), segments
                ),
                seed=seed,
                timeline=False,
            )
            for rate in (2e-3, 2e-3 * factor)
        )
        assert rough.days >= calm.days * (1 - 1e-9) or not rough.finished
        assert math.isfinite(rough.goodput) and 0 <= rough.goodput <= 1

    attempt(document, compare)
