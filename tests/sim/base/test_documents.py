"""Documents: what YAML and JSON of any editor say, told once."""

import pytest

from sim.base.documents import parse_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),  # 8 in YAML 1.1, 10 to whoever writes it
        ("0100", "0100"),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("1:30.5", "1:30.5"),
        ("10", 10),
        ("0", 0),
        ("0x10", 16),
        ("0.5", 0.5),
        ("1_000", 1000),
        ("1e12", 1e12),
    ],
)
def test_numbers_of_old_yaml_stay_texts(text, value):
    (read,) = parse_text(f"a: {text}", "x.yaml").values()
    assert read == value and type(read) is type(value)
