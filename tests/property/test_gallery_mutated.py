"""Inputs of the gallery, damaged at random: read, or refused in one line; never another exception.

What is read is a kind of file that people bring (tests/gallery); the damage is what editors, copying and haste do.
"""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from tests.gallery.read import HERE, READERS, entries

ENTRIES = entries()
LIGHT = [e for e in ENTRIES if e["reader"] != "campaign"]  # a damaged one may last years; it is read as a scenario is
PIECES = [b"", b"0", b"-1", b"1e999", b"nan", b"null", b"true", b'"', b"'", b"{", b"]", b":", b",", b"\n", b"\t", b"\r"]
PIECES += [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"$X",
    b"$((1/0))",
    b"${A[@]}",
    b"--",
    b"#",
    b"9" * 30,
    b"\xe2\x80\xa8",
    b"&a",
    b"*a",
]


@st.composite
def damages(draw):
    """(place, length that goes, what comes), several of them; places as shares of the file."""
    one = st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES))
    return draw(st.lists(one, min_size=1, max_size=4))


def damaged(data: bytes, what) -> bytes:
    for share, gone, new in what:
        at = int(share * len(data))
        data = data[:at] + new + data[at + gone :]
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entry=st.sampled_from(LIGHT), what=damages())
def test_no_traceback(entry, what, tmp_path_factory):
    source = HERE / "inputs" / entry["file"]
    folder = tmp_path_factory.mktemp("gallery")
    try:
        if source.is_dir():
            shutil.copytree(source, folder / "t")
            for path in (folder / "t").iterdir():
                path.write_bytes(damaged(path.read_bytes(), what))
            path = folder / "t"
        else:
            path = folder / source.name
            path.write_bytes(damaged(source.read_bytes(), what))
        try:
            READERS[entry["reader"]](path, {**entry, "samples": 2})  # an interval is drawn when all is read
        except InputError as refusal:
            assert len(str(refusal).splitlines()) == 1, str(refusal)
        except (ValueError, KeyError, IndexError) as fault:
            if entry["reader"] == "rows" and "unpack" in str(fault):
                return  # no row, or two
            raise
    finally:
        shutil.rmtree(folder)


def test_damage_reaches_the_readers():
    """Negative control: a damaged file is refused where its right value was read."""
    entry = next(e for e in ENTRIES if e["file"] == "configs/llama3_8b.json")
    with pytest.raises(InputError):
        READERS["model"](HERE / "inputs" / "no_such.json", entry)
    assert damaged(b"abcdef", [(0.5, 2, b"X")]) == b"abcXf"
