"""How many examples a file of generated tests gets: what its tests say in `make test`, 10,000 in all in `make soak`.

A soak ends with a table of what was really tried (file, tests, examples, failures, seconds), kept as
`runs/soak/generated.csv`. What the last one found, file by file, is in `data/reference/last_runs/soak_generated.csv`.
"""

import csv
import math
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

SOAK_EXAMPLES = 10_000  # of a file, shared out as its tests share their few; MINGLM_SOAK=2500: so many
_TRIED = re.compile(r"(\d+) passing, (\d+) failing")


def pytest_collection_modifyitems(items):
    if not os.environ.get("MINGLM_SOAK"):
        return
    files = defaultdict(list)
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and is_hypothesis_test(item.obj):
            files[item.path].append(item)
    asked = int(os.environ["MINGLM_SOAK"])
    for tests in files.values():
        scale(tests, SOAK_EXAMPLES if asked == 1 else asked)


def scale(tests, total: int) -> None:
    """Raise `max_examples` of all tests of a file by one factor, so that they get `total` examples together."""
    few = {test.function: test.function._hypothesis_internal_use_settings for test in tests}  # one for all parameters
    factor = max(1.0, total / sum(few[test.function].max_examples for test in tests))
    for function, old in few.items():
        function._hypothesis_internal_use_settings = settings(old, max_examples=math.ceil(old.max_examples * factor))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A report carries how many examples ran (those that a test's assumptions threw away are not counted)."""
    report = (yield).get_result()
    if report.when == "call" and hasattr(item, "hypothesis_statistics"):
        report.user_properties.append(("examples", examples(item.hypothesis_statistics)))


def examples(statistics: str) -> int:
    """Examples that ran, passing or failing, of the text that `--hypothesis-show-statistics` prints of one test."""
    return sum(int(passed) + int(failed) for passed, failed in _TRIED.findall(statistics))


def pytest_terminal_summary(terminalreporter, config):
    if not os.environ.get("MINGLM_SOAK"):
        return
    rows = defaultdict(lambda: {"tests": 0, "examples": 0, "failures": 0, "seconds": 0.0})
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call":
                row = rows[report.nodeid.split("::")[0]]
                row["tests"] += 1
                row["examples"] += dict(report.user_properties).get("examples", 0)
                row["failures"] += outcome == "failed"
                row["seconds"] += report.duration
    out = config.rootpath / "runs" / "soak" / "generated.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    seed = config.getoption("--hypothesis-seed")
    with open(out, "w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["file", "tests", "examples", "failures", "seconds", "seed"])
        for name, row in sorted(rows.items()):
            table.writerow([name, row["tests"], row["examples"], row["failures"], f"{row['seconds']:.0f}", seed])
    total = sum(row["examples"] for row in rows.values())
    terminalreporter.write_line(f"soak: {total:,} generated examples in {len(rows)} files, seed {seed}: {out}")
