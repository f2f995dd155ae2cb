"""Options of the golden tests; see test_golden.py."""


def pytest_addoption(parser):
    group = parser.getgroup("golden outputs")
    group.addoption("--update", action="store_true", help="golden outputs: store what the commands print now")
    group.addoption(
        "--exact",
        action="store_true",
        help="golden outputs: compare bit for bit, which holds on one kind of CPU and one torch",
    )
