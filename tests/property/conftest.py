"""How many examples a file of generated tests gets: what its tests say in `make test`, 10,000 in all in `make soak`."""

import math
import os
from collections import defaultdict
from pathlib import Path

from hypothesis import is_hypothesis_test, settings

SOAK_EXAMPLES = 10_000  # of a file, shared out as its tests share their few


def pytest_collection_modifyitems(items):
    if not os.environ.get("MINGLM_SOAK"):
        return
    files = defaultdict(list)
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and is_hypothesis_test(item.obj):
            files[item.path].append(item)
    for tests in files.values():
        scale(tests, SOAK_EXAMPLES)


def scale(tests, total: int) -> None:
    """Raise `max_examples` of all tests of a file by one factor, so that they get `total` examples together."""
    few = {test.function: test.function._hypothesis_internal_use_settings for test in tests}  # one for all parameters
    factor = max(1.0, total / sum(few[test.function].max_examples for test in tests))
    for function, old in few.items():
        function._hypothesis_internal_use_settings = settings(old, max_examples=math.ceil(old.max_examples * factor))
