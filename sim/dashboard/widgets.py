"""The planner page's controls as widgets: a text that takes human units, and a slider beside it that writes into the
text.

The text is the one value of a control; the slider only writes it. So a person may drag, use the arrow keys, or type
"20k" or "2-3".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minglm.errors import InputError
from sim.base.units import parse, show
from sim.dashboard.controls import (
    BY_KEY,
    CONTROLS,
    QUESTION,
    Control,
    choices,
    default_words,
    fact_of,
    machine,
    price,
)
from sim.report.html import escape

POSITIONS = 120  # of a slider: a step is about 8% where it spans four powers of ten


def boxed(*parts: Any) -> Any:
    """Widgets of one control, below each other, as a cell of `grid`."""
    import ipywidgets as w

    box = w.VBox(parts, layout=w.Layout(min_width="0", overflow="visible"))
    box.add_class("planner-field")
    return box


def grid(fields: Iterable[Any], least_rem: int = 17) -> Any:
    """Controls beside each other, as many in a line as have room for `least_rem` each."""
    import ipywidgets as w

    columns = f"repeat(auto-fit, minmax(min(100%, {least_rem}rem), 1fr))"
    layout = w.Layout(grid_template_columns=columns, grid_gap="0.4rem 1.2rem", width="auto")
    return w.GridBox(list(fields), layout=layout)


def human(value: float, kind: str) -> str:
    """A slider's value as a person would write it: two significant digits, or three above 10."""
    counted = kind in ("count", "length")
    value = float(f"{value:.{3 if counted else 2}g}")
    if counted:
        return f"{value:,.0f}" if value < 1e6 else show(value, "count")
    return f"{value:g}"


class Field:
    """One control: `widget` to place, `text` its value."""

    def __init__(self, control: Control, changed: Callable[[str], None]) -> None:
        import ipywidgets as w

        self.control, self._changed, self._quiet, self._placed = control, changed, False, -1
        wide = w.Layout(width="auto")
        label = f"{control.label}, {control.unit}" if control.unit not in ("name", "chips", "tokens") else control.label
        style = {"description_width": "initial"}
        self.slider = None
        if control.kind == "choice":
            self.box = w.Dropdown(
                options=choices(control.key),
                value=control.default,
                description=label,
                style=style,
                layout=wide,
                tooltip=control.help,
            )
        else:
            self.box = w.Text(
                value=control.default,
                description=label,
                style=style,
                layout=wide,
                continuous_update=False,
                tooltip=control.help,
            )
            # whole positions: a browser rounds a slider's value to its steps and would send a changed one back
            self.slider = w.IntSlider(
                value=self._position(self._value(control.default)),
                min=0,
                max=POSITIONS,
                readout=False,
                layout=wide,
                tooltip=f"{label}: slider",
                continuous_update=True,
            )
            self.slider.observe(self._slid, "value")
        self.box.observe(self._typed, "value")
        self.help = w.HTML(layout=wide)
        self.widget = boxed(*(x for x in (self.box, self.slider, self.help) if x is not None))

    @property
    def text(self) -> str:
        """What stands in the control."""
        return str(self.box.value)

    def set(self, text: str) -> None:
        """Show a value without telling anyone."""
        self._quiet = True
        try:
            if self.control.kind == "choice" and text not in dict((v, n) for n, v in self.box.options):
                self.box.options = (*self.box.options, (text, text))
            self.box.value = text
            self._move()
        finally:
            self._quiet = False

    def describe(self, words: str) -> None:
        """The help text below the control, with `words` about its present value."""
        sentences = " ".join(f"{escape(text[:1].upper() + text[1:])}." for text in (self.control.help, words))
        self.help.value = f'<span class="planner-help">{sentences}</span>'

    def place(self, value: float) -> None:
        """The slider's handle at a value, without writing the text."""
        if self.slider is not None:
            before, self._quiet = self._quiet, True
            self._placed = self.slider.value = self._position(value)
            self._quiet = before

    def _position(self, value: float) -> int:
        """A slider's position 0 … POSITIONS, even on a log scale."""
        c = self.control
        inside = min(max(value, c.low), c.high)
        return round(POSITIONS * math.log(inside / c.low) / math.log(c.high / c.low))

    def _value(self, text: str) -> float:
        """What the text means; the middle of the slider where it means nothing."""
        c = self.control
        try:
            value = price(text, c.kind, c.label) if c.fact else parse(text, c.kind, c.label)
        except InputError:
            value = None
        return float(value) if value else math.sqrt(c.low * c.high)

    def _move(self) -> None:
        if self.slider is not None and self.text.strip():
            self.place(self._value(self.text))

    def _slid(self, change) -> None:
        if self._quiet or change["new"] == self._placed:  # the page's own move, come back from the browser
            return
        c = self.control
        self._quiet, self._placed = True, change["new"]
        self.box.value = human(c.low * (c.high / c.low) ** (change["new"] / POSITIONS), c.kind)
        self._quiet = False
        self._changed(c.key)

    def _typed(self, change) -> None:
        if not self._quiet:
            self._move()
            self._changed(self.control.key)


class Inputs:
    """All controls. `changed(key)` is called when a person changes one."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        import ipywidgets as w

        self._changed = changed
        self.fields = {c.key: Field(c, self._on) for c in CONTROLS}
        self._prices: dict[str, dict[str, str]] = {}  # machine → what was typed for it
        self._machine = self.fields["machine"].text
        first = grid(self.fields[k].widget for k in QUESTION)
        more = grid(f.widget for k, f in self.fields.items() if k not in QUESTION)
        fold = w.Accordion(
            [more],
            titles=("More: attention, phases, software, precision, aim, buying, electricity",),
            selected_index=None,
            layout=w.Layout(width="auto"),
        )
        self.widget = w.VBox([first, fold], layout=w.Layout(width="auto"))
        self.describe()

    def _on(self, key: str) -> None:
        if key == "machine":
            self._other_machine()
        elif key == "model":
            self.describe()
        self._changed(key)

    def _other_machine(self) -> None:
        """Prices belong to a chip: those typed for the last one are kept for it, this one's come back, or the fact
        file's."""
        facts = [c.key for c in CONTROLS if c.fact]
        self._prices[self._machine] = {k: self.fields[k].text for k in facts}
        self._machine = self.fields["machine"].text
        mine = self._prices.get(self._machine, {})
        for key in facts:
            self.fields[key].set(mine.get(key, ""))
        self.describe()

    def describe(self) -> None:
        """What each control's default is, for the machine that is chosen; an untouched price's slider stands at the
        fact."""
        at = machine(self.fields["machine"].text)
        for field in self.fields.values():
            field.describe(default_words(field.control, at, self.fields["model"].text))
            fact = fact_of(field.control.key, at) if field.control.fact else None
            if field.control.fact:  # what an empty price means stands in its box
                field.box.placeholder = (
                    "not known: give one"
                    if fact is None
                    else f"{fact.value:,.4g}" + ("" if fact.certain else f" ({fact.low:,.4g} to {fact.high:,.4g})")
                )
            if fact is not None and not field.text.strip():
                field.place(fact.value)

    @property
    def values(self) -> dict[str, str]:
        """What stands in all controls, by key."""
        return {k: f.text for k, f in self.fields.items()}

    def show(self, values: Mapping[str, str]) -> None:
        """Set all controls: those not in `values` go to their default."""
        for key, field in self.fields.items():
            field.set(str(values.get(key) or BY_KEY[key].default))
        self._machine = self.fields["machine"].text
        self.describe()
