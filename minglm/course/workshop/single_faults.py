"""Does a sheet's checker notice every single fault? Plants one at a time in each solution and asks it.

A fault changes one place of the solution: an operator, a comparison, a constant, a name, the order of two arguments, a
term that is dropped. `python -m minglm.course.workshop.single_faults` lists those that the checker accepts. Such a
fault is either equivalent, which assets/equivalent_faults.yaml says with its reason, or the exercise's cases are too
symmetrical.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from minglm import atomic, datafiles
from minglm.course.workshop import checking, generator
from minglm.errors import InputError, Parser

SHORT = (*"0123456789", "scale_", "plan_")  # the build_* sheets are whole models: thousands of faults each
LIMIT_S = 20.0  # for one answer: a fault in a loop's end may never return
MEMORY_BYTES = 12 * 2**30  # of addresses, of which torch alone takes some
_BINARY: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.FloorDiv, ast.Mult),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
_COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_DEFINED = (ast.FunctionDef, ast.ClassDef)
_CALLED = {
    "min": "max",
    "max": "min",
    "sum": "mean",
    "mean": "sum",
    "argmax": "argmin",
    "floor": "ceil",
    "ceil": "floor",
}


@dataclass(frozen=True)
class Fault:
    """One planted fault: the exercise, the line as it then reads, and the text of what its answer rests on."""

    key: str
    place: str
    code: str


def sheet(path: Path) -> ast.Module:
    """The code of a sheet, solutions and all, without its checks."""
    code = "\n".join(
        text for kind, text in generator.cells(path.read_text(encoding="utf-8"), path.stem) if kind == "code"
    )
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if _checked(node) is None]
    return tree


def answers(path: Path) -> dict[str, str]:
    """Exercise key → the expression that the sheet hands to its check."""
    code = "\n".join(
        text for kind, text in generator.cells(path.read_text(encoding="utf-8"), path.stem) if kind == "code"
    )
    found = [_checked(node) for node in ast.parse(code).body]
    return dict(pair for pair in found if pair)


def _checked(node: ast.stmt) -> tuple[str, str] | None:
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check":
        key = call.args[0]
        assert isinstance(key, ast.Constant)
        return str(key.value), ast.unparse(call.args[1])
    return None


def faults(path: Path) -> Iterator[Fault]:
    """Every single fault of every solution of a sheet.

    A function that an earlier exercise of the sheet asked for is broken there, not once more in each that uses it.
    """
    tree, done = sheet(path), set[str]()
    texts = [ast.unparse(node) for node in tree.body]
    for key, answer in answers(path).items():
        kept = _needed(tree, answer)
        used = [name for name in _functions(tree, answer) if name not in done]
        done.update(used)
        for name in used:
            place, function = next(
                (i, n) for i, n in enumerate(tree.body) if isinstance(n, _DEFINED) and n.name == name
            )
            names = _names(function)
            for index, node in enumerate(ast.walk(function)):
                for change in [*_changes(node), *_other_names(node, names)]:
                    twin = copy.deepcopy(function)
                    target = next(n for i, n in enumerate(ast.walk(twin)) if i == index)
                    before = ast.unparse(target)
                    change(target)
                    if ast.unparse(target) == before:
                        continue
                    broken = ast.unparse(ast.fix_missing_locations(twin))  # a sheet is long: only its part is new
                    code = "\n".join(broken if i == place else texts[i] for i in kept)
                    yield Fault(key, f"{name} {index}: {before} -> {ast.unparse(target)}"[:150], code)


def _needed(tree: ast.Module, answer: str) -> list[int]:
    """Places in the sheet of all that an answer rests on: imports, and what binds a name that it uses, directly or not.
    The rest of a sheet draws and trains, which a build sheet does for longer than an answer may take."""
    binds: dict[str, list[int]] = {}
    kept, waiting = set[int](), [n.id for n in ast.walk(ast.parse(answer)) if isinstance(n, ast.Name)]
    for place, node in enumerate(tree.body):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            kept.add(place)
            continue
        own = [node.name] if isinstance(node, _DEFINED) else _names(node)
        for name in own:
            binds.setdefault(name, []).append(place)
    while waiting:
        for place in binds.pop(waiting.pop(), []):
            kept.add(place)
            waiting += [n.id for n in ast.walk(tree.body[place]) if isinstance(n, ast.Name)]
    return sorted(kept)


def part(tree: ast.Module, answer: str) -> str:
    """The code of a sheet that an answer rests on."""
    return "\n".join(ast.unparse(tree.body[place]) for place in _needed(tree, answer))


def _functions(tree: ast.Module, answer: str) -> list[str]:
    """The sheet's own functions and classes that an answer uses, directly or not."""
    defined = {n.name: n for n in tree.body if isinstance(n, _DEFINED)}
    used: list[str] = []
    waiting = [n.id for n in ast.walk(ast.parse(answer)) if isinstance(n, ast.Name)]
    while waiting:
        name = waiting.pop()
        if name in defined and name not in used:
            used.append(name)
            waiting += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
    return used


def _names(function: ast.AST) -> list[str]:
    """A function's own names: its parameters and what it assigns."""
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys([n.arg for n in ast.walk(function) if isinstance(n, ast.arg)] + stored))


def _other_names(node: ast.AST, names: list[str]) -> Iterator[Callable]:
    """A name taken for another one of the function."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        for other in names:
            if other not in (node.id, "self"):
                yield lambda target, other=other: setattr(target, "id", other)


def _put(field: str, value: object) -> Callable:
    return lambda target: setattr(target, field, value)


def _into(field: str) -> Callable:
    """The node becomes one of its parts: a term is dropped."""

    def change(target):
        part = getattr(target, field)
        target.__class__ = part.__class__
        target.__dict__ = dict(part.__dict__)

    return change


def _swap(first: int) -> Callable:
    """Two arguments change places."""

    def change(target):
        target.args[first], target.args[first + 1] = target.args[first + 1], target.args[first]

    return change


def _changes(node: ast.AST) -> list[Callable]:
    """What can go wrong at one place: each a function that changes a copy of the node."""
    if isinstance(node, ast.Constant):
        return _other_constants(node.value)
    if isinstance(node, ast.Call):
        return _other_calls(node)
    if isinstance(node, ast.BinOp):
        return [*(_put("op", kind()) for kind in _BINARY.get(type(node.op), ())), _into("left"), _into("right")]
    if isinstance(node, ast.AugAssign):
        return [_put("op", kind()) for kind in _BINARY.get(type(node.op), ())[:1]]
    if isinstance(node, ast.UnaryOp):
        return [_into("operand")]
    if isinstance(node, ast.Compare):
        return [_put("ops", [kind(), *node.ops[1:]]) for kind in _COMPARED.get(type(node.ops[0]), ())]
    if isinstance(node, ast.BoolOp):
        return [_put("op", ast.And() if isinstance(node.op, ast.Or) else ast.Or())]
    return [_into("body"), _into("orelse")] if isinstance(node, ast.IfExp) else []


def _other_constants(value: object) -> list[Callable]:
    if isinstance(value, bool):
        return [_put("value", not value)]
    if isinstance(value, (int, float)):
        return [_put("value", value + 1), _put("value", value * 2 if isinstance(value, float) else value - 1)]
    return []


def _other_calls(node: ast.Call) -> list[Callable]:
    if isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):  # whose arguments have no order
        return [lambda target: setattr(target.func, "id", _CALLED[target.func.id])]
    changes = [_swap(i) for i in range(len(node.args) - 1)]
    if isinstance(node.func, ast.Attribute) and node.func.attr in _CALLED:
        changes.append(lambda target: setattr(target.func, "attr", _CALLED[target.func.attr]))
    return changes


def accepted(fault: Fault, answer: str, limit_s: float = LIMIT_S) -> bool:
    """Does the checker take the faulty sheet's answer for right? Asked in a process of its own: an answer that never
    ends is none, and one that takes all memory takes nobody else's."""

    def ask() -> None:
        import resource  # POSIX alone has it

        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        try:
            with tempfile.TemporaryDirectory() as folder:
                sheet_file = Path(folder) / "sheet.py"
                atomic.write_text(sheet_file, f"{fault.code}\nANSWER = {answer}\n")
                checking.judge(checking.all_exercises()[fault.key], runpy.run_path(str(sheet_file))["ANSWER"])
        except BaseException:
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=ask, daemon=True)
    process.start()
    process.join(limit_s)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


@functools.cache
def equivalent() -> dict[str, str]:
    """Fault → why it gives the same value for every input that the exercise's text allows."""
    assets = datafiles.package("minglm") / "course" / "assets"
    text = (assets / "equivalent_faults.yaml").read_text(encoding="utf-8")
    return {fault: group["why"] for group in yaml.safe_load(text) for fault in group["faults"]}


def drawn(planted: list[Fault], each: int) -> list[Fault]:
    """At most `each` faults of every exercise, drawn with the exercise's key as seed: the same at every call."""
    kept: list[Fault] = []
    for key in dict.fromkeys(f.key for f in planted):
        own = [f for f in planted if f.key == key]
        kept += random.Random(key).sample(own, min(each, len(own)))
    return kept


def survivors(path: Path, each: int | None = None) -> tuple[list[Fault], int]:
    """The faults of a sheet that its checker accepts and `equivalent` does not name, and how many were tried.

    Args:
        each: try this many faults of an exercise, drawn (default: all).

    Raises:
        InputError: the solution itself is not accepted: then nothing would be shown by a fault that is not.
    """
    import torch

    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    for node in sheet(path).body:  # a sheet's imports and the checks, once before all forks
        if isinstance(node, ast.ImportFrom) and node.module:
            importlib.import_module(node.module)
    checking.all_exercises()
    asked, planted = answers(path), list(faults(path))
    planted = planted if each is None else drawn(planted, each)
    for key, answer in asked.items():
        if not accepted(Fault(key, "no fault", part(sheet(path), answer)), answer, limit_s=120):  # it loads torch, too
            raise InputError(f"{key}: the sheet's own solution is not accepted; mend it first")
    left = [f for f in planted if f"{f.key} {f.place}" not in equivalent() and accepted(f, asked[f.key])]
    return left, len(planted)


def main(argv: list[str] | None = None) -> int:
    """List the faults that are accepted; exit code 1 where there is one."""
    p = Parser(prog="python -m minglm.course.workshop.single_faults", description=(__doc__ or "").splitlines()[0])
    p.add_argument("sheets", nargs="*", help="beginnings of names, such as 02 or build_1 (default: all but build_*)")
    p.add_argument("--each", type=int, metavar="N", help="try N faults of every exercise, drawn (default: all)")
    args: argparse.Namespace = p.parse_args(argv)
    left = tried = 0
    for path in generator.sources():
        if not path.stem.startswith(tuple(args.sheets or SHORT)):
            continue
        found, count = survivors(path, args.each)
        left, tried = left + len(found), tried + count
        for fault in found:
            print(f"accepted: {fault.key} {fault.place}", flush=True)
        print(f"{path.stem}: {count} faults, {len(found)} accepted", file=sys.stderr, flush=True)
    print(f"{left} of {tried} single faults are accepted; {len(equivalent())} are equivalent")
    return 1 if left else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
