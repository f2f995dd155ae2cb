"""Damaged scenario files: whatever is done to the text, reading it ends in a scenario or in one line."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import parse_text
from sim.scenario.training import load_scenario
from sim.validation.rows import parse as read_row

RUN = settings(max_examples=300, suppress_health_check=list(HealthCheck))
TEXT = datafiles.data("scenarios", "glm5_100k_910b.yaml").read_text(encoding="utf-8")
LINES = TEXT.splitlines()
JUNK = st.sampled_from(
    [
        "",
        "-1",
        "0",
        "1e999",
        ".nan",
        "null",
        "[]",
        "{}",
        "*a",
        "&a",
        "!!int x",
        "'",
        "\t",
        "99999999999999999999999",
        "true",
        "64 GiB",
        "é",
        "\x07",
        "? ",
        "- ",
        "<<: 3",
    ]
)


def one_line_or_fine(call):
    try:
        call()
    except InputError as err:
        assert str(err).strip() and "\n" not in str(err)


@RUN
@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["drop", "double", "value", "cut", "join"]), JUNK),
        min_size=1,
        max_size=3,
    )
)
def test_damaged_headline(tmp_path_factory, damage):
    lines = list(LINES)
    for at, how, junk in damage:
        at %= max(len(lines), 1)
        if how == "drop":
            lines[at : at + 1] = []
        elif how == "double":
            lines.insert(at, lines[at] if lines else "")
        elif how == "value" and lines:
            lines[at] = lines[at].split(":")[0] + ": " + junk
        elif how == "cut" and lines:
            lines[at] = lines[at][: len(lines[at]) // 2]
        elif lines:
            lines[at] = junk + lines[at]
    path: Path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    one_line_or_fine(lambda: load_scenario(path))


@RUN
@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text):
    one_line_or_fine(lambda: parse_text(text, "x.yaml"))
    one_line_or_fine(lambda: parse_text(text, "x.json"))


VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["tp", "pp", "dp", "layers", "hidden", "like", "kind", "mfu", "value"]), inner, max_size=3
        ),
    ),
    max_leaves=4,
)
ROW = {
    "chip": "h100",
    "chips": 16,
    "model": "llama3_8b",
    "plan": {"tp": 2, "pp": 2},
    "micro_batch": 1,
    "global_batch": 64,
    "seq": 2048,
    "precision": "bf16",
    "recompute": "none",
    "schedule": "1f1b",
    "options": {"zero": 1},
    "stack": "x",
    "measured": {"seconds_per_step": 1.0},
    "kind": "holdout",
    "assumed": [],
    "id": "r",
    "source": "s",
    "cluster": "dgx_h100",
}


@RUN
@given(st.dictionaries(st.sampled_from([*ROW, "nonsense"]), VALUE, min_size=1, max_size=2))
def test_odd_rows(odd):
    one_line_or_fine(lambda: read_row({**ROW, **odd}, 1))
