"""The tasks by name."""

from __future__ import annotations

from minglm.errors import InputError, nearest
from minglm.rl.tasks import Task
from minglm.rl.tasks_code import CODE

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("division", "divide by subtracting and counting"),
        Task("addition", "add two numbers column by column"),
        Task("sum", "running total of labelled digits"),
        Task("list", "apply operations to a list of digits"),
        Task("string", "apply operations to a string"),
        Task("brackets", "follow a stack of brackets and close it"),
    )
}


def get(name: str, tail: float | None = None) -> Task:
    """The task of that name, with another spread of lengths if given; "code" is the agentic one, whose lengths are its
    own.

    Raises:
        InputError: no such task, or a spread out of range.
    """
    if name == "code":
        return CODE
    known = [*TASKS, "code"]
    if name not in known:
        raise InputError(f"task {name!r}: not one of {', '.join(known)}{nearest(name, known)}")
    return TASKS[name] if tail is None else TASKS[name].with_tail(tail)
