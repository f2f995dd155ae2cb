"""Every input of the gallery has its right value, or is refused in one line that names the reason."""

import pytest

from minglm.errors import InputError
from tests.gallery.read import HERE, READERS, entries, read

ENTRIES = entries()


def check(entry):
    right = dict(entry["right"])
    if words := right.pop("refused", None):
        with pytest.raises(InputError) as refusal:
            read(entry)
        assert words in str(refusal.value) and "\n" not in str(refusal.value)
        return
    found, within = read(entry), right.pop("within", 1e-3)
    for name, value in right.items():
        if isinstance(value, dict):  # the right value is not ours: the interval that goes with our answer holds it
            assert found[name]["low"] <= value["measured"] <= found[name]["high"], name
            assert found[name] == pytest.approx(value, rel=within), name
            continue
        exact = isinstance(value, (str, bool, list)) or value is None
        assert found[name] == (value if exact else pytest.approx(value, rel=within)), name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['file']}-{e['what'][:30]}")
def test_the_right_value(entry):
    check(entry)


def test_the_index_is_the_folder_and_covers_every_reader():
    listed = {HERE / "inputs" / e["file"] for e in ENTRIES}
    held = {p for p in (HERE / "inputs").rglob("*") if p.is_file()}
    assert all(p in listed or p.parent in listed for p in held) and all(p.exists() for p in listed)
    assert {e["reader"] for e in ENTRIES} == set(READERS) and len(ENTRIES) >= 60
    assert all(e["what"] and e["source"] and e["right"] for e in ENTRIES)
