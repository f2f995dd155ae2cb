"""The tasks by name."""

from __future__ import annotations

from minglm.errors import InputError, nearest
from minglm.rl.tasks import Task
from minglm.rl.tasks_code import CODE
from minglm.rl.tasks_tiny_world import HOP, HOP_FORM

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

# Their lengths are their own: "code" is the agentic task, the others are for a chat model of the tiny world.
OTHERS: dict[str, Task] = {task.name: task for task in (CODE, HOP, HOP_FORM)}


def get(name: str, tail: float | None = None) -> Task:
    """The task of that name, with another spread of lengths if given and if it takes one.

    Raises:
        InputError: no such task, or a spread out of range.
    """
    if name in OTHERS:
        return OTHERS[name]
    known = [*TASKS, *OTHERS]
    if name not in known:
        raise InputError(f"task {name!r}: not one of {', '.join(known)}{nearest(name, known)}")
    return TASKS[name] if tail is None else TASKS[name].with_tail(tail)
