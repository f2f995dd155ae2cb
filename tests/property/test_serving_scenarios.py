"""Any value in any place of a serving scenario: it runs, or one line says what is wrong; never another exception."""

from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.serving.scenario import run

GOOD = {
    "version": 1,
    "kind": "serving",
    "model": "glm5",
    "decode": {"cluster": "dgx_h200", "chips": 8, "attention_tp": 8, "kv": "fp8", "instances": 1, "max_batch": 8},
    "workload": {"rate": 1.0, "requests": 20, "prompt": {"mean": 500, "cv": 0.2}, "output": 20, "cached_share": 0.1},
    "target": {"ttft": "2 s"},
    "prices": {"input": 1.0, "output": 3.2, "rent": "$2/h"},
    "seed": 0,
}
PLACES = [
    ("model",),
    ("decode",),
    ("workload",),
    ("target",),
    ("prices",),
    ("mode",),
    ("seed",),
    ("version",),
    ("prefill",),
    ("assumptions",),
    *(
        (a, b)
        for a, keys in {
            "decode": (
                "cluster",
                "chips",
                "attention_tp",
                "kv",
                "precision",
                "drafts",
                "acceptance",
                "accept_length",
                "stack",
                "memory_share",
                "redundant_experts",
                "instances",
                "max_batch",
                "chunk_tokens",
            ),
            "workload": ("rate", "concurrency", "requests", "prompt", "output", "cached_share", "arrivals", "warmup"),
            "target": ("ttft", "tpot", "e2e"),
            "prices": ("input", "output", "cached_input", "rent", "utilisation"),
        }.items()
        for b in keys
    ),
    ("workload", "prompt", "mean"),
    ("workload", "prompt", "cv"),
    ("workload", "prompt", "low"),
]
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 64),
    st.sampled_from([0.0, -1.0, 0.5, 1.5, 1e30, float("nan"), float("inf")]),
    st.text(max_size=8),
    st.sampled_from(["1 s", "2 GiB", "glm5", "dgx_h100", "fp8", "sglang-tp", "50%"]),
    st.just([]),
    st.just({}),
    st.just({"mean": 3}),
    st.just({"a": 1}),
)


@settings(max_examples=120)
@given(st.lists(st.tuples(st.sampled_from(PLACES), junk), min_size=1, max_size=3))
def test_any_value_anywhere_runs_or_is_refused_in_one_line(changes):
    scenario = {k: dict(v) if isinstance(v, dict) else v for k, v in GOOD.items()}
    scenario["workload"]["prompt"] = dict(GOOD["workload"]["prompt"])
    for place, value in changes:
        at = scenario
        for key in place[:-1]:
            if not isinstance(at.get(key), dict):
                at[key] = {}
            at = at[key]
        at[place[-1]] = value
    if isinstance(scenario.get("workload"), dict) and isinstance(scenario["workload"].get("requests"), int):
        scenario["workload"]["requests"] = min(scenario["workload"]["requests"], 64)
    try:
        result = run(scenario)
    except InputError as refusal:
        assert "\n" not in str(refusal) and 10 < len(str(refusal)) < 1200
    else:
        assert result["simulated"]["finished"] >= 1 and result["mode"] in ("hybrid", "roofline")
