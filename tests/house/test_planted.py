"""The faults that are planted on purpose (`make mutants`) still fit the code they are planted in."""

from pathlib import Path

from tests.mutants.planted import PLANTED

ROOT = Path(__file__).resolve().parents[2]


def test_each_planted_fault_has_its_one_place():
    texts = {fault.file: (ROOT / fault.file).read_text(encoding="utf-8") for fault in PLANTED}
    assert [(f.file, f.old) for f in PLANTED if texts[f.file].count(f.old) != 1] == []
    assert all(f.old != f.new for f in PLANTED)
