"""Branches of a launch script: the one that runs where its condition can be told, else what all of them agree on."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from minglm.errors import InputError

NEWLINE = "\x03"  # the end of a line, as a word
ENDS = re.compile(NEWLINE + r"|[();<>|&]+|2>&1")  # of a command
_OPENS = ("then", "do", "else", "elif", "if", "{")  # words after which a command begins
_NUMBERS = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}


@dataclass
class _Choice:
    """An `if` or a `case` that is open."""

    subject: str | None  # of a case, where it is known
    is_case: bool
    before: dict[str, str]  # variables
    words: int  # of commands, when its branch began
    runs: bool | None = None  # this branch; None where nobody can tell
    ran: bool = False  # a branch before this one runs for certain
    whole: bool = False  # one of the branches runs, whatever is true
    asks: set[str] = field(default_factory=set)  # variables that would tell
    may: list[tuple[dict[str, str], bool]] = field(
        default_factory=list
    )  # (variables, flags came) of those that may run


class Branches:
    """Follows a script's `if`, `case` and `for` word by word.

    An `if` alone of which nobody can tell whether it holds is taken: most give a value to what has none. Where several
    branches may run, a variable that they leave different is unknown from then on, and is asked for as what a script
    takes from outside is.
    """

    def __init__(self, variables: dict[str, str], expand: Callable[[str], str], where: str) -> None:
        self.variables, self.expand, self.where = variables, expand, where
        self.open: list[_Choice] = []

    def step(self, tokens: list[str], i: int, words: list[str]) -> int | None:
        """The place to go on at, where the word at `i` is not of a command that runs; None where it is.

        Raises:
            InputError: branches that may run pass other flags.
        """
        token, starts = tokens[i], i == 0 or tokens[i - 1] in _OPENS or bool(ENDS.fullmatch(tokens[i - 1]))
        one = self.open[-1] if self.open else None
        if starts and token == "if":
            self.open.append(_Choice(None, False, dict(self.variables), len(words)))
            return self._test(tokens, i + 1)
        if starts and token == "case" and "in" in tokens[i : i + 4]:
            end = tokens.index("in", i)
            self.open.append(_Choice(None, True, dict(self.variables), len(words)))
            self.open[-1].subject = self._known(" ".join(tokens[i + 1 : end]))
            return self._pattern(tokens, end + 1)
        if starts and token == "for" and tokens[i + 2 : i + 3] == ["in"]:
            return self._loop(tokens, i)
        if one and starts and token in ("elif", "else") and not one.is_case:
            self._end_branch(words)
            if token == "elif":
                return self._test(tokens, i + 1)
            self._begin(one, True)
            one.whole = True
            return i + 1
        if one and token == ";;" and one.is_case:
            self._end_branch(words)
            return self._pattern(tokens, i + 1)
        if one and starts and token == ("esac" if one.is_case else "fi"):
            self._end_branch(words)
            self._merge(self.open.pop())
            return i + 1
        return i + 1 if any(choice.runs is False for choice in self.open) else None

    @staticmethod
    def _begin(one: _Choice, holds: bool | None) -> None:
        """A branch whose condition holds, or does not, or may."""
        one.runs = False if one.ran else None if holds and one.may else holds

    def _end_branch(self, words: list[str]) -> None:
        one = self.open[-1]
        if one.runs is None:
            passed = any(word.startswith("--") for word in words[one.words :])
            one.may.append((dict(self.variables), passed))
            self.variables.clear()
            self.variables.update(one.before)
        one.ran |= one.runs is True
        one.runs, one.words = False, len(words)

    def _merge(self, one: _Choice) -> None:
        """What is known after branches of which nobody can tell which one ran."""
        if not one.may:
            return
        outcomes = [variables for variables, _ in one.may]
        if len(one.may) > 1 and not one.whole:
            outcomes.append(one.before)
        told = f"give --define {min(one.asks)}=…" if one.asks else "keep one of them"
        if sum(passed for _, passed in one.may) > 1:
            raise InputError(f"{self.where}: branches that may run pass flags each; {told}")
        for name in {name for variables in outcomes for name in variables}:
            values = {variables.get(name) for variables in outcomes}
            if len(values) == 1:
                self.variables[name] = outcomes[0][name]
            elif any(value and "--" in value for value in values):
                raise InputError(f"{self.where}: {name} differs between branches that may run; {told}")
            else:
                self.variables.pop(name, None)

    def _loop(self, tokens: list[str], i: int) -> int:
        """`for NAME in words`: one word is its value, several are none that is known."""
        end = next((j for j in range(i + 3, len(tokens)) if tokens[j] in (NEWLINE, ";")), len(tokens))
        values = [value for token in tokens[i + 3 : end] for value in self.expand(token).split()]
        if not any(choice.runs is False for choice in self.open):
            self.variables.pop(tokens[i + 1], None)
            if len(values) == 1:
                self.variables[tokens[i + 1]] = values[0]
        return end

    def _pattern(self, tokens: list[str], i: int) -> int:
        """Begins the branch of a `case` that stands there."""
        one = self.open[-1]
        while i < len(tokens) and tokens[i] in (NEWLINE, "("):
            i += 1
        if i == len(tokens) or tokens[i] == "esac":
            return i
        end = next((j for j in range(i, len(tokens)) if tokens[j].startswith(")")), len(tokens) - 1)
        patterns = [token for token in tokens[i:end] if token not in (NEWLINE, "|")]
        always = "*" in patterns
        known = one.subject is not None
        self._begin(
            one, True if always else any(fnmatch.fnmatchcase(one.subject or "", p) for p in patterns) if known else None
        )
        one.whole |= always
        return end + 1

    def _test(self, tokens: list[str], i: int) -> int:
        """Begins the branch of an `if` whose condition stands there."""
        end = next((j for j in range(i, len(tokens)) if tokens[j] == "then"), len(tokens) - 1)
        words = [token for token in tokens[i:end] if token not in (NEWLINE, ";")]
        self._begin(self.open[-1], self._holds(words))
        return end + 1

    def _known(self, text: str) -> str | None:
        """The text with its variables put in; None, and what it lacks is noted, where one is not known."""
        expanded = self.expand(text)
        self.open[-1].asks |= set(re.findall(r"\$\{?(\w+)", expanded))
        return None if "$" in expanded or "\x01" in expanded else expanded

    def _holds(self, words: list[str]) -> bool | None:
        """Whether `[ … ]`, `[[ … ]]` or `test …` of one comparison holds; None where nobody can tell."""
        if words and words[0] in ("[", "[["):
            words = words[1:-1]
        elif words and words[0] == "test":
            words = words[1:]
        else:
            return None
        turned = words[:1] == ["!"]
        words = words[1:] if turned else words
        found = self._compared(words)
        return found if found is None else found is not turned

    def _compared(self, words: list[str]) -> bool | None:
        if len(words) == 2 and words[0] in ("-z", "-n"):
            text = self._known(words[1])
            return None if text is None else bool(text) is (words[0] == "-n")
        if len(words) != 3:
            return None
        left, right = self._known(words[0]), self._known(words[2])
        if left is None or right is None:
            return None
        if words[1] in ("=", "==", "!="):
            return fnmatch.fnmatchcase(left, right) is (words[1] != "!=")
        if words[1] in _NUMBERS and all(re.fullmatch(r"\s*-?\d{1,15}\s*", text) for text in (left, right)):
            return bool(_NUMBERS[words[1]](int(left), int(right)))
        return None
