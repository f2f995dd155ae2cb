"""The planner page's question turned round: what a budget buys, which chip is cheapest, when more chips stop paying.

The figures are those of `sim.planner.inverse`, so `clustersim plan` with --budget, --deadline or --ask prints the same;
`command` is that line. The plan is left open, whatever the page keeps.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from minglm.errors import InputError
from sim.base.units import parse
from sim.cost.price_flags import price_words
from sim.dashboard import svg
from sim.dashboard.controls import BY_KEY, CONTROLS, question_of
from sim.dashboard.widgets import boxed, grid
from sim.planner import inverse, inverse_words
from sim.planner.planner import solved
from sim.planner.question import Question
from sim.report.html import escape
from sim.scenario.training import resolve
from sim.study.answer import simulate

ASKED = {
    "buys": "What do a budget and a deadline buy?",
    "within": "How many chips keep the deadline?",
    "growth": "When do more chips stop paying?",
    "failures": "How much more often may chips fail?",
    "cheapest": "Which chip is cheapest?",
    "break-even": "At what price do two chips cost the same?",
}
DEFAULT = {"asked": "buys", "budget": "$20M", "deadline": "90 days", "others": "b200, 910b"}
NEEDS = {  # fields beside the question
    "buys": ("budget", "deadline"),
    "within": ("deadline",),
    "growth": (),
    "failures": ("deadline",),
    "cheapest": ("deadline", "others"),
    "break-even": ("others",),
}


def answered(values: Mapping[str, str], asked: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """(the figures, the same in words) of what stands in the page's controls and in this section's.

    Raises:
        InputError: a value is refused, or nothing feasible is near.
    """
    kind = asked["asked"]
    if kind not in ASKED:
        raise InputError(f"question {kind!r}: not one of {', '.join(ASKED)}")
    deadline = inverse.deadline_s(asked["deadline"], "Deadline") if _has_deadline(asked) else None
    if kind == "cheapest":
        if deadline is None and values.get("objective", BY_KEY["objective"].default) == BY_KEY["objective"].default:
            values = {**values, "objective": "cost"}
        rows = inverse.cheapest([question_of(values), *_others(values, asked["others"])], deadline)
        return {"rows": rows}, inverse_words.cheapest_text({"rows": rows})
    q = question_of(values)
    if kind == "break-even":
        even = inverse.break_even(q, _others(values, asked["others"])[0])
        return even, inverse_words.break_even_text(even)
    if kind == "growth":
        grown = inverse.growth(q)
        return grown, inverse_words.growth_text(grown)
    if deadline is None:
        raise InputError("Deadline: is empty; give for example 90 days")
    if kind == "buys":
        bought = inverse.buys(q, inverse.budget_usd(asked["budget"], "Budget"), deadline)
        return bought, inverse_words.buys_text(bought)
    if kind == "within":
        fewest = inverse.within(q, deadline)
        return fewest, inverse_words.within_text(fewest)
    simulated = simulate(resolve(solved(q)))
    room = inverse.failures(simulated.scenario, simulated, deadline)
    return room, inverse_words.failures_text(room)


def _has_deadline(asked: Mapping[str, str]) -> bool:
    return "deadline" in NEEDS[asked["asked"]] and bool(str(asked["deadline"]).strip())


def _names(others: str) -> list[str]:
    names = [name.strip() for name in others.split(",") if name.strip()]
    if not names:
        raise InputError("Other chips: none is named; give for example b200, 910b")
    return names


def _others(values: Mapping[str, str], others: str) -> list[Question]:
    """The question on other chips, at their own prices."""
    free = {key: text for key, text in values.items() if not BY_KEY[key].fact}
    return [question_of({**free, "machine": f"chip:{name}"}) for name in _names(others)]


def command(values: Mapping[str, str], asked: Mapping[str, str]) -> str:
    """The line that gives the same figures in a terminal; empty where a price is set of one chip of several."""
    kind, needs = asked["asked"], NEEDS[asked["asked"]]
    v = {c.key: str(values.get(c.key, "")).strip() or c.default for c in CONTROLS}
    place, name = v["machine"].split(":", 1)
    prices = price_words(question_of(values).prices)
    if "others" in needs:
        if prices or place == "cluster":
            return ""
        name = ",".join([name, *_names(asked["others"])[: 1 if kind == "break-even" else None]])
    words = ["clustersim", "plan", "--model", v["model"], f"--{place}", name]
    flags = {"chips": "chips", "seq": "seq", "tokens": "tokens", "batch": "batch-tokens", "attention": "attention"}
    for key, flag in (flags | {"precision": "precision", "stack": "stack"}).items():
        if v[key]:
            c = BY_KEY[key]
            is_amount = c.kind in ("count", "length")
            words += [f"--{flag}", f"{parse(v[key], c.kind, c.label):.15g}" if is_amount else v[key]]
    if v["phases"] != "one":
        words += ["--phases", v["phases"]]
    if v["objective"] != BY_KEY["objective"].default:
        words += ["--objective", v["objective"]]
    words += prices
    if kind not in ("buys", "within"):
        words += ["--ask", kind]
    if kind == "buys":
        words += ["--budget", asked["budget"].strip()]
    if _has_deadline(asked):
        words += ["--deadline", asked["deadline"].strip()]
    return shlex.join(words)


class Inverse:
    """The section's widgets. `values`: of the page's controls; nothing is computed before the button is pressed."""

    def __init__(
        self,
        values: Callable[[], Mapping[str, str]],
        guard: Callable[[Callable[[], None]], None],
        block: Callable[[str], str],
    ) -> None:
        import ipywidgets as w

        self._values, self._block = values, block
        wide, style = w.Layout(width="auto", min_width="0"), {"description_width": "initial"}

        def text(key: str, label: str) -> Any:
            return w.Text(
                value=DEFAULT[key],
                description=label,
                continuous_update=False,
                layout=w.Layout(width="auto"),
                style=style,
            )

        self.boxes = {
            "asked": w.Dropdown(
                options=[(words, kind) for kind, words in ASKED.items()],
                value=DEFAULT["asked"],
                description="Turned round",
                layout=wide,
                style=style,
            ),
            "budget": text("budget", "Budget, $ of rent"),
            "deadline": text("deadline", "Deadline"),
            "others": text("others", "Other chips"),
        }
        self.button = w.Button(
            description="Answer it",
            button_style="primary",
            tooltip="Search for what is asked: seconds to a minute",
            layout=w.Layout(width="auto"),
        )
        self.answer = w.HTML(layout=wide)
        self.button.on_click(lambda _: guard(self.show))
        self.boxes["asked"].observe(lambda _: self._offer(), "value")
        self.fields = {key: boxed(box) for key, box in self.boxes.items()}
        self.widget = w.VBox(
            [
                grid(self.fields.values()),
                w.Box([self.button], layout=w.Layout(flex_flow="row wrap", width="auto")),
                self.answer,
            ],
            layout=wide,
        )
        self._offer()

    @property
    def asked(self) -> dict[str, str]:
        """What stands in the section's controls."""
        return {key: str(box.value) for key, box in self.boxes.items()}

    def _offer(self) -> None:
        """The fields that the question needs; an answer to another one goes."""
        for key, field in self.fields.items():
            field.layout.display = "" if key in ("asked", *NEEDS[self.boxes["asked"].value]) else "none"
        self.answer.value = ""

    def show(self) -> None:
        """Answer and draw."""
        values, asked = dict(self._values()), self.asked
        self.button.disabled = True
        try:
            result, words = answered(values, asked)
        finally:
            self.button.disabled = False
        line = command(values, asked)
        picture = svg.curve(result)[0] if asked["asked"] == "growth" else ""
        self.answer.value = self._block(
            f'{picture}<pre class="scroll" role="status">{escape(words)}</pre>'
            + (f'<p class="note">The same in a terminal:<br><code>{escape(line)}</code></p>' if line else "")
        )
