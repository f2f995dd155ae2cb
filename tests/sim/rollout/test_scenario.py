"""Keys of a rollout case: every other name leads to the same case, and the page lists what the reader takes."""

import pytest

from minglm.errors import InputError
from sim.rollout.fields import CASE, GROUPS, MODE_SPELLINGS, PUBLISHED
from sim.rollout.scenario import canonical, read

BASE = {"mode": "async", "prompts_per_batch": 8, "samples_per_prompt": 4, "mean": 500, "max": 2000, "engines": 2}
VALUES = {
    "bool": True,
    "whole": 1,
    "length": 1,
    "mean_length": 1,
    "count": 3,
    "time": "2 s",
    "ratio": 0.5,
    "text": "bf16",
    "int": 1,
    "list": [],
    "mapping": {},
}
OWN = {"mode": "sync", "lengths": [[5, 5, 5, 5]], "against": "sync", "published": 3, "max_staleness": "inf", "mfu": 0.5}


@pytest.mark.parametrize("name, alias", [(name, alias) for alias, name in CASE.aliases.items()])
def test_other_names_are_the_same_key(name, alias):
    value = OWN.get(name, VALUES.get(CASE[name].kind, "h100"))
    assert canonical({alias: value}) == {name: value} == canonical({alias.upper().replace("_", "-"): value})
    assert CASE.read({alias: value}) == CASE.read({name: value})


def test_sections_are_opened_and_a_key_twice_is_refused():
    rest = {key: value for key, value in BASE.items() if key not in ("mean", "max")}
    inside = {**rest, "decode": 50, "lengths": {"mean": 500, "cap": 2000}}
    assert read(inside).case == read({**BASE, "decode": 50}).case
    assert all(read({**rest, "decode": 50, group: {"mean": 500, "max": 2000}}) for group in GROUPS)
    with pytest.raises(InputError, match="case: 'mean' is given twice"):
        canonical({"mean": 5, "lengths": {"avg_length": 6}})


@pytest.mark.parametrize(
    "spelling, mode", [*MODE_SPELLINGS.items(), ("One-Step Off", "one_step_off"), ("SYNC", "sync")]
)
def test_modes(spelling, mode):
    assert CASE.read({"mode": spelling})["mode"] == mode


def test_published_figures_by_any_name():
    for alias, name in PUBLISHED.aliases.items():
        assert list(PUBLISHED.read({alias: 2})) == [name]
    assert read({**BASE, "decode": 50, "measured": "2 min"}).published == {"step_s": 120.0}
    assert read({**BASE, "decode": 50, "measured_speedup": 2}).against == {"mode": "sync"}


def test_errors_name_the_case():
    with pytest.raises(InputError, match="^mine: no decode rate"):
        read({**BASE, "name": "mine"})
    with pytest.raises(InputError, match="^mine: engines: 0 is below 1"):
        read({**BASE, "name": "mine", "engines": 0})
