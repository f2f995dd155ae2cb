"""The arguments that a launch script passes: variables and arrays are put in, nothing is executed."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Mapping
from typing import Any

from minglm.errors import InputError
from sim.scenario.launch import slurm
from sim.scenario.launch.branches import ENDS, NEWLINE, Branches

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.S)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?:\[[@*]\])?(?::?[-=]([^}]*))?\}|(\w+))")
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LINES = re.compile(r"""(?P<kept>'[^']*'|"(?:\\.|[^"\\])*"|\\.|\$\{?\#)|(?:(?<=\s)|^)\#[^\n]*|\n""", re.S)
MAX_VALUE = 100_000  # characters that variables may grow to


def flags(text: str, where: str, defined: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Name → value of every `--name value` of a script, hyphens for underscores, the last one wins.

    A flag alone is True, several values are a list. What cannot be known without running the script stays as `$NAME`.

    Raises:
        InputError: quotes that do not close, or variables that grow without bound.
    """
    wanted = slurm.asked(text)
    script = _Script(dict(defined or {}), slurm.variables(wanted), where)
    words = script.read(text)
    if not any(w.startswith("--") for w in words):
        words = [w for array in script.arrays for w in array]
    return {**{f"sbatch-{name}": value for name, value in wanted.items()}, **_pairs(words)}


def _marked(found: re.Match[str]) -> str:
    """Ends of lines as words of their own, comments gone, what is quoted as it was."""
    return found["kept"] or (f" {NEWLINE} " if found[0] == "\n" else "")


def _pairs(words: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    name = ""
    values: list[str] = []

    def close() -> None:
        if name:
            out[name] = True if not values else values[0] if len(values) == 1 else list(values)

    for word in [*words, "--"]:
        if re.fullmatch(r"--[A-Za-z][\w.-]*(=.*)?", word, re.S) or word == "--":
            close()
            head, sign, value = word[2:].partition("=")
            name, values = head.replace("_", "-"), [value] if sign else []
        elif ENDS.fullmatch(word):
            close()
            name = ""
        elif not word.endswith(".py"):
            values.append(word)
    return {k: v for k, v in out.items() if k}


class _Script:
    def __init__(self, defined: dict[str, str], job: Mapping[str, str], where: str) -> None:
        self.variables, self.where = {**job, **defined}, where
        self.fixed = frozenset(defined)  # given from outside: a script's own value does not count
        self.arrays: list[list[str]] = []
        self.held: list[str] = []  # texts of `$(…)`

    def read(self, text: str) -> list[str]:
        """The words of all commands, variables put in."""
        text = re.sub(r"\\\r?\n", " ", text).replace("\r", "\n")
        for pattern in (r"\$\(\((.*?)\)\)", r"\$\(([^()]*)\)", r"`([^`]*)`"):
            text = re.sub(pattern, self._hold, text, flags=re.S)
        lexer = shlex.shlex(_LINES.sub(_marked, text), posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split, lexer.commenters = True, ""
        try:
            tokens = list(lexer)
        except ValueError as err:
            raise InputError(f"{self.where}: not a shell script ({err}); check its quotes") from None
        words: list[str] = []
        branches = Branches(self.variables, self.expand, self.where)
        i = 0
        while i < len(tokens):
            if (following := branches.step(tokens, i, words)) is not None:
                i = following
                continue
            match = _ASSIGNMENT.fullmatch(tokens[i])
            if match and not match[2] and tokens[i + 1 : i + 2] == ["("]:
                end = next((j for j in range(i + 2, len(tokens)) if tokens[j].startswith(")")), len(tokens))
                array = [w for t in tokens[i + 2 : end] if t != NEWLINE for w in self.words(t)]
                if tokens[i].endswith("+="):
                    array = [*self.variables.get(match[1], "").split(), *array]
                self.arrays.append(array)
                self._assign(match[1], " ".join(array))
                i = end
            elif match:
                value = self.expand(match[2])
                more = self.variables.get(match[1], "") if tokens[i].startswith(match[1] + "+=") else ""
                self._assign(match[1], more + value)
            else:
                words += self.words(tokens[i])
            i += 1
        return words

    def _hold(self, match: re.Match[str]) -> str:
        arithmetic = match[0].startswith("$((")
        self.held.append(("=" if arithmetic else "!") + match[1])
        return f"\x01{len(self.held) - 1}\x02"

    def _assign(self, name: str, value: str) -> None:
        if len(value) > MAX_VALUE:
            raise InputError(
                f"{self.where}: variable {name} grows beyond {MAX_VALUE:,} characters; give a plain script"
            )
        if name not in self.fixed:
            self.variables[name] = value

    def words(self, token: str) -> list[str]:
        """A token with its variables put in, cut at spaces where one of them held several words."""
        expanded = self.expand(token)
        return expanded.split() if expanded != token else [token]

    def expand(self, text: str) -> str:
        """`text` with the variables that are known put in, and sums worked out."""
        text = re.sub(r"\x01(\d+)\x02", lambda m: self._value(self.held[int(m[1])]), text)

        def put(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            known = self.variables.get(name)
            return known if known else match[2] if match[2] is not None else match[0] if known is None else ""

        out = _VARIABLE.sub(put, text)
        return _VARIABLE.sub(put, out) if out != text else out

    def _value(self, held: str) -> str:
        if held[0] == "!":
            return f"$({held[1:]})"
        expression = self.expand(re.sub(r"(?<![\w${])([A-Za-z_]\w*)", r"$\1", held[1:]))
        try:
            return str(_sum(ast.parse(expression.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
            return f"$(({held[1:]}))"


def _sum(node: ast.AST) -> int:
    """An integer expression of + - * / %.

    Raises:
        ValueError: something else.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _sum(node.left), _sum(node.right)
        if max(abs(left), abs(right)) > 10**15:
            raise ValueError("too large")
        return _ARITHMETIC[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_sum(node.operand)
    raise ValueError("not a sum")
