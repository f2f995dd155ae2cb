"""The planner page's section on a measured number: is it normal, and what would explain it?

The figures are those of `sim.planner.normal` and `sim.planner.normal_serving`, so `clustersim normal` prints the same;
`command` is that line and `link` an address that opens the page with the same question.
"""

from __future__ import annotations

import functools
import json
import shlex
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.base.units import show
from sim.dashboard.controls import question_of
from sim.dashboard.state import SECTION, Answer
from sim.dashboard.state import link as link_to_controls
from sim.dashboard.widgets import boxed, grid
from sim.planner import normal_serving, normal_words
from sim.planner.normal import QUANTITIES, normal
from sim.planner.planner import complete
from sim.report.html import escape, table
from sim.scenario.file import set_value
from sim.scenario.training import load_document, resolve

HERE = ""  # the run that the page's controls describe
DEFAULT = {"of": HERE, "quantity": "tokens_per_s_per_chip", "value": "", "set": ""}
MEASURED = {"tpot": "time from one output token to the next", **QUANTITIES}
EXAMPLES = {"step_s": "4.1 s", "tokens_per_s": "6M", "tokens_per_s_per_chip": "300", "tflops": "400", "mfu": "38%"}
TPOT_EXAMPLE = "30 ms"
ROWS_NAMES = {"seconds_per_step": "step_s", "tflops_per_chip": "tflops"}  # as rows of published runs have them


@functools.cache
def scenarios() -> tuple[tuple[str, str], ...]:
    """(label, value) of what a figure can be of: the page's own run, or a shipped scenario of training or serving."""
    names = [n for n in datafiles.catalogue("scenarios", ".yaml") if not n.startswith("rollouts_")]
    kinds = {n: "serving" if n.startswith("serving_") else "training" for n in names}
    named = [
        (f"{kind}: {n}", n) for n, kind in sorted(kinds.items(), key=lambda pair: (pair[1] != "training", pair[0]))
    ]
    return (("training: the run that the controls describe", HERE), *named)


@dataclass(frozen=True)
class Compared:
    """A measured figure's answer: `result` as `clustersim normal --json`, what it is `of`, and the command's words
    after `clustersim normal`."""

    of: str
    result: Mapping[str, Any]
    argv: tuple[str, ...]

    @property
    def command(self) -> str:
        """The line that gives the same figures in a terminal."""
        return shlex.join(["clustersim", "normal", *self.argv])

    @property
    def is_serving(self) -> bool:
        """Whether an engine's latency was asked about."""
        return self.result["quantity"] == normal_words.TPOT


def answered(values: Mapping[str, str], asked: Mapping[str, str], shown: Mapping[str, Any]) -> Compared:
    """What stands in the page's controls and in this section's, answered.

    shown: the document of the page's answer, whose plan the run had where the section changes nothing.
    Raises:
        InputError: one line.
    """
    name, measured = asked["of"], f"{asked['quantity']}={asked['value'].strip()}"
    if not asked["value"].strip():
        raise InputError(f"Measured: is empty; give what was measured, such as {_example(asked['quantity'])}")
    quantity, value = normal_words.read_measured(measured, "Measured")
    changes = _changes(asked["set"])
    flags = [word for change in changes for word in ("--set", change)]
    if quantity == normal_words.TPOT:
        if not name.startswith("serving_"):
            raise InputError(
                "Of: a time of an output token is of a serving scenario; choose one, such as serving_glm5_h200"
            )
        scenario = normal_serving.load_changed(name, changes)
        result = normal_serving.normal(scenario, value)
        return Compared(scenario["name"], result, (name, *flags, "--measured", measured))
    if name.startswith("serving_"):
        raise InputError(f"Measured: {quantity} is of training; of {name} give tpot, the {MEASURED['tpot']}")
    if name:
        document = load_document(name, changes)
        argv = [name, *flags]
    else:
        document = dict(question_of(values).document) if changes else dict(shown)
        argv = [*_flags(document), *flags]
        for change in changes:
            document = set_value(document, change)
    s = resolve(complete(document), name or "the question")
    return Compared(normal_words.title(s), normal(s, quantity, value), (*argv, "--measured", measured))


def _example(quantity: str) -> str:
    return EXAMPLES.get(quantity, TPOT_EXAMPLE)


def _changes(text: str) -> list[str]:
    """'plan.tp=8 recompute=full' as one text a change.

    Raises:
        InputError: a quotation mark without its other.
    """
    try:
        return shlex.split(text)
    except ValueError:
        raise InputError(f"Changed: {text!r} has a quotation mark that is not closed; close it") from None


def _flags(document: Mapping[str, Any]) -> list[str]:
    """The document as flags: the machine's own, and --set for the rest."""
    words = []
    for key in ("model", "cluster", "chip", "chips"):
        if key in document:
            words += [f"--{key}", str(document[key])]
    rest = {k: v for k, v in document.items() if k not in ("model", "cluster", "chip", "chips") and v != {}}
    if rest.get("plan") == {"auto": True}:
        del rest["plan"]
    for key, value in rest.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"]
    return words


# ------------------------------------------------------------------ links


def link(a: Answer, asked: Mapping[str, str]) -> str:
    """The page's question with this section's, as the end of an address."""
    said = {SECTION + key: text for key, text in asked.items() if text.strip() and text != DEFAULT[key]}
    controls = link_to_controls(a).lstrip("?")
    return "?" + "&".join(part for part in (controls, urllib.parse.urlencode(said)) if part)


def from_link(query: str) -> dict[str, str]:
    """This section's fields of a `link`; empty where the address has none.

    Raises:
        InputError: a field or a choice that is not known.
    """
    pairs = urllib.parse.parse_qsl(query.lstrip("?"))
    said = {key.removeprefix(SECTION): text for key, text in pairs if key.startswith(SECTION)}
    for key, known in (("of", dict((v, n) for n, v in scenarios())), ("quantity", MEASURED)):
        if said.get(key, DEFAULT[key]) not in known:
            raise InputError(
                f"link: {SECTION}{key} {said[key][:60]!r} is not known{nearest(said[key], known)}; open the page "
                "without it"
            )
    for key in said:
        if key not in DEFAULT:
            raise InputError(f"link: {SECTION}{key[:40]} is not known{nearest(key, DEFAULT)}; open the page without it")
    return {**DEFAULT, **said} if said else {}


# ------------------------------------------------------------------ in words


def figure_words(quantity: str, value: float) -> str:
    """A measured quantity in its unit."""
    if quantity in ("step_s", "tpot"):
        return show(value, "time")
    return f"{value:.1%}" if quantity == "mfu" else f"{value:,.4g}"


def words(c: Compared) -> str:
    """The answer as HTML: the verdict, where the figure lies, runs like it, and what would explain it."""
    r = c.result
    quantity, (low, high) = r["quantity"], r["interval"]

    def said(value: float) -> str:
        return figure_words(quantity, value)

    whose = f"{r['held']:.0%} of measured engines" if c.is_serving else "90% of draws"
    sentence = (
        f"{said(r['measured'])} is {'inside' if r['normal'] else 'outside'} of what is predicted for {c.of}: "
        f"{said(r['predicted'])} ({whose}: {said(low)} to {said(high)})."
    )
    note = f"{MEASURED[quantity].capitalize()}; faster than {r['faster_than']:.0%} of {whose.split(' of ')[1]}."
    if c.is_serving:
        flight = r["in_flight"]
        note += f" {flight['requests_per_group']:.1f} requests in flight in each of {flight['groups']} groups."
    else:
        step = r["step_s"]
        note += f" It means a step of {show(step['measured'], 'time')}, {show(step['predicted'], 'time')} predicted."
    if r.get("above_peak"):
        note += " It is more than the chip's peak: no run is that fast, FLOPs or tokens were counted otherwise."
    return (
        f'<p class="said" role="status"><b>{escape(sentence)}</b></p>{_ruler(r, said)}'
        f'<p class="note">{escape(note)}</p>{_causes(r["causes"])}{_rows(r["nearest"])}'
    )


def _ruler(r: Mapping[str, Any], said: Callable[[float], str]) -> str:
    """The interval, what is predicted and what was measured on one line from 0."""
    low, high = r["interval"]
    end = 1.05 * max(high, r["measured"])

    def at(value: float) -> str:
        return f"{100 * value / end:.1f}%"

    alt = f"Measured {said(r['measured'])}; predicted {said(r['predicted'])}, {said(low)} to {said(high)}"
    return (
        f'<div class="ruler" role="img" aria-label="{escape(alt)}"><div class="span"><i style="left:{at(low)};'
        f'width:{100 * (high - low) / end:.1f}%"></i><u style="left:{at(r["predicted"])}"></u>'
        f'<s style="left:{at(r["measured"])}"></s></div></div>'
        f'<p class="note"><span class="key"><i style="background:#56B4E9;height:6px"></i>predicted range</span>'
        '<span class="key"><i style="background:#1c2330;width:3px;height:12px"></i>predicted</span>'
        '<span class="key"><i style="background:#D55E00;width:3px;height:12px"></i>measured</span></p>'
    )


def _causes(causes: list[Mapping[str, Any]]) -> str:
    """What would explain the difference alone, with the size that it needs."""
    rows = [
        (
            c["name"],
            _size(c["needs"]) if c["needs"] is not None else "-",
            _size(c["most"]),
            c["unit"],
            "all of it" if c["explains"] else f"{c['covers']:.0%} of it" if c["covers"] > 0.005 else "-",
        )
        for c in causes
    ]
    return (
        "<p class=head><b>What would explain the difference, each alone</b></p>"
        f"{table(('cause', 'needs', 'at most', 'unit', 'explains'), rows)}"
    )


def _size(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _rows(nearest_rows: list[Mapping[str, Any]]) -> str:
    """Runs or engines of others most like it, with the prediction's error on each."""
    rows = []
    for x in nearest_rows:
        quantity = ROWS_NAMES.get(x["quantity"], x["quantity"])
        measured, predicted = (figure_words(quantity, x[key]) for key in ("measured", "predicted"))
        rows.append((x["id"], x["chip"], MEASURED[quantity], measured, predicted, f"{x['error']:+.0%}", x["kind"]))
    head = ("run", "chip", "quantity", "measured", "predicted", "error", "used as")
    return f"<p class=head><b>Published runs like it</b></p>{table(head, rows)}"


class Normal:
    """The section's widgets. `page_answer`: the page's answer; nothing is computed before the button is pressed."""

    def __init__(
        self,
        values: Callable[[], Mapping[str, str]],
        page_answer: Callable[[], Answer],
        guard: Callable[[Callable[[], None]], None],
        block: Callable[[str], str],
    ) -> None:
        import ipywidgets as w

        self._values, self._answer, self._block = values, page_answer, block
        wide, style = w.Layout(width="auto", min_width="0"), {"description_width": "initial"}

        def choice(key: str, label: str, options: list[tuple[str, str]]) -> Any:
            return w.Dropdown(options=options, value=DEFAULT[key], description=label, layout=wide, style=style)

        def text(key: str, label: str, example: str) -> Any:
            return w.Text(
                value=DEFAULT[key],
                description=label,
                placeholder=example,
                continuous_update=False,
                layout=w.Layout(width="auto"),
                style=style,
            )

        self.boxes = {
            "of": choice("of", "Of what", list(scenarios())),
            "quantity": choice("quantity", "What was measured", _offered(HERE)),
            "value": text("value", "Measured", _example(DEFAULT["quantity"])),
            "set": text("set", "What your run had otherwise", "plan.tp=8 plan.pp=4 recompute=full"),
        }
        self.button = w.Button(
            description="Is it normal?",
            button_style="primary",
            tooltip="Predict it with its interval and find what would explain the difference: some seconds",
            layout=w.Layout(width="auto"),
        )
        self.help, self.answer = w.HTML(layout=wide), w.HTML(layout=wide)
        self.button.on_click(lambda _: guard(self.show))
        self.boxes["of"].observe(lambda _: self._offer(), "value")
        self.boxes["quantity"].observe(lambda _: self._hint(), "value")
        fields = grid(map(boxed, self.boxes.values()), least_rem=24)
        button = w.Box([self.button], layout=w.Layout(flex_flow="row wrap", width="auto"))
        self.widget = w.VBox([fields, self.help, button, self.answer], layout=wide)
        self._hint()

    @property
    def asked(self) -> dict[str, str]:
        """What stands in the section's controls."""
        return {key: str(box.value) for key, box in self.boxes.items()}

    def set(self, asked: Mapping[str, str]) -> None:
        """Show a question."""
        for key in ("of", "quantity", "value", "set"):  # what can be measured follows what it is of
            self.boxes[key].value = asked[key]

    def _offer(self) -> None:
        """What can be measured of it; an answer about another one goes."""
        box = self.boxes["quantity"]
        if tuple(box.options) != tuple(_offered(self.boxes["of"].value)):
            box.options = _offered(self.boxes["of"].value)
        self._hint()

    def _hint(self) -> None:
        self.boxes["value"].placeholder = _example(self.boxes["quantity"].value or DEFAULT["quantity"])
        of = self.boxes["of"].value
        example = "decode.chips=16 workload.concurrency=64" if of.startswith("serving_") else "plan.tp=8 recompute=full"
        self.boxes["set"].placeholder = example
        what = (
            "Empty: the plan that the page shows. With a change the rest of the plan is searched."
            if of == HERE
            else "Empty: the scenario as it stands."
        )
        self.help.value = (
            f'<span class="planner-help">What your run had otherwise: keys of a scenario as KEY=VALUE, separated by '
            f"spaces, such as {escape(example)}. {escape(what)}</span>"
        )
        self.answer.value = ""

    def show(self) -> None:
        """Answer and draw."""
        asked, a = self.asked, self._answer()
        self.button.disabled = True
        try:
            compared = answered(self._values(), asked, a.document)
        finally:
            self.button.disabled = False
        self.answer.value = self._block(
            f'<div class="normal">{words(compared)}<p class="note">The same in a terminal; a click selects all of it:'
            f"<br><code>{escape(compared.command)}</code></p>"
            f'<p class="note"><a href="{escape(link(a, asked))}">A link to this question and its figure</a></p></div>'
        )


def _offered(of: str) -> list[tuple[str, str]]:
    """(label, value) of what can be measured of it."""
    known = {"tpot": MEASURED["tpot"]} if of.startswith("serving_") else QUANTITIES
    return [(label, key) for key, label in known.items()]
