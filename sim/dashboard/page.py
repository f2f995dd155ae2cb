"""The planner page: controls on top of results, for Voila, JupyterLab and a browser with nothing installed
(JupyterLite).

    from sim.dashboard.page import open_page
    page = open_page()            # in a notebook's cell: shows the page

Everything that follows a control is in closed form (`sim.dashboard.state.answer`). What takes longer has a button:
looking at every plan, and the report. A value that is refused leaves the last answer standing and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from minglm import datafiles
from minglm.errors import InputError
from sim.dashboard import figures as pictures
from sim.dashboard import files, state, svg
from sim.dashboard.background import Background, can_wait
from sim.dashboard.controls import BY_KEY, DEFAULT, question_of
from sim.dashboard.first_look import first_look
from sim.dashboard.inverse import Inverse
from sim.dashboard.layout import lay_out
from sim.dashboard.normal import Normal
from sim.dashboard.normal import from_link as measured_from_link
from sim.dashboard.serving import Serving
from sim.dashboard.widgets import Inputs
from sim.report import run_phases
from sim.report.html import escape
from sim.study.campaign import phase_facts

NOW = "what is shown now"
SERVED = "VOILA_KERNEL_ID"  # in the environment of a kernel that Voila serves
FIRST_LOOK = '<p class="note">A first look; the plan and its interval are being worked out.</p>'


class Page:
    """The page and what stands on it: `widget` to show, `answer` the last answer."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        import ipywidgets as w

        self.fixed: dict[str, object] = {}
        self.kept: dict[str, state.Answer] = {}  # saved on this page or loaded: name → answer
        self.work = Background()
        self._refusal = ""
        self._asked: tuple[dict[str, str], dict[str, object]] = ({}, {})
        self._quiet = False  # while options change by themselves
        self.inputs = Inputs(self._changed)
        wide = w.Layout(width="auto", min_width="0")
        text, button = (
            (lambda: w.HTML(layout=wide)),
            (
                lambda label, tip, style="": w.Button(
                    description=label, tooltip=tip, button_style=style, layout=w.Layout(width="auto")
                )
            ),
        )
        self.top, self.error, self.cards, self.plan_note = text(), text(), text(), text()
        self.alts = {k: text() for k in ("memory", "step", "timeline", "tornado", "versus")}
        self.search = button(
            "Look at every plan (seconds to a minute)", "Search the whole space of plans; the best is then kept"
        )
        self.release = button("Find a plan for me again", "Stop keeping the plan")
        self.bar = w.FloatProgress(min=0, max=1, description="groups", layout=w.Layout(width="auto", display="none"))
        self.simulate = button(
            "Simulate this step", "Draw the timeline of a step that is too large to simulate at every move"
        )
        self.metric = w.Dropdown(
            description="Result", layout=w.Layout(width="auto"), style={"description_width": "initial"}
        )
        self.name = w.Text(
            description="Name", layout=wide, style={"description_width": "initial"}, placeholder="such as H100 at $2-3"
        )
        self.save_button = button("Save this scenario", "Write it as a YAML file and keep it to compare", "primary")
        self.files = text()
        self.upload = w.FileUpload(
            accept=".yaml,.yml,.json", multiple=False, description="Load a file", layout=w.Layout(width="auto")
        )
        self.open = w.Dropdown(
            description="Or load a saved one",
            options=[("choose …", "")],
            layout=wide,
            style={"description_width": "initial"},
        )
        self.a, self.b = (
            w.Dropdown(description=x, layout=wide, style={"description_width": "initial"}) for x in ("A", "B")
        )
        self.versus_words = text()
        self.export = button("Make the report", "HTML, JSON and CSV of this answer")
        self.reset = button("All controls to their defaults", "")
        self.links = text()
        self.pictures = {k: text() for k in self.alts}
        self.serving = Serving(lambda: self.inputs.values["model"], self._guard, pictures.block)
        self.inverse = Inverse(lambda: self.inputs.values, self._guard, pictures.block)
        self.normal = Normal(lambda: self.inputs.values, lambda: self.answer, self._guard, pictures.block)
        self._wire()
        self._compare_options()
        asked = self.inputs.values if values is None else dict(values)
        self.answer = self._opening(asked)
        self._draw(self.answer, None)
        if values is not None:
            self.inputs.show(values)
        self._versus()
        self.widget = lay_out(self)
        if self.answer.is_first_look:
            self._asked = (dict(asked), {})
            self.work.start(lambda check: self._full(asked, {}, check), lambda full: self._finish_later(full, False))

    def _opening(self, values: Mapping[str, str]) -> state.Answer:
        """What the page opens with: a first look where it is served, so that pictures are there while the rest is
        worked out; the full answer in a notebook, whose output is kept."""
        if SERVED in os.environ and can_wait():
            try:
                return first_look(values, {})
            except InputError:
                pass  # the full answer says why, or finds what a glance does not
        return state.answer(values)

    def _wire(self) -> None:
        self.search.on_click(lambda _: self._search())
        self.release.on_click(lambda _: self._release())
        self.simulate.on_click(lambda _: self._guard(self._timeline))
        self.metric.observe(lambda _: self._follow(self._tornado), "value")
        self.save_button.on_click(lambda _: self._guard(self._save))
        self.upload.observe(lambda _: self._guard(self._uploaded), "value")
        self.open.observe(lambda change: self._opened(change["new"]), "value")
        self.a.observe(lambda _: self._follow(self._versus), "value")
        self.b.observe(lambda _: self._follow(self._versus), "value")
        self.export.on_click(lambda _: self._guard(self._export))
        self.reset.on_click(lambda _: self._show(DEFAULT, {}, move=True))

    # ---------------------------------------------------------------- answering

    def _changed(self, key: str) -> None:
        """A person changed a control. A plan that is kept belongs to its model and machine."""
        if key in ("model", "machine", "objective", "seq"):
            self.fixed = {}
        self._show(self.inputs.values)
        if key == "model":
            self.serving.follow()

    def _show(
        self,
        values: Mapping[str, str],
        fixed: Mapping[str, object] | None = None,
        move: bool = False,
        wait: bool = False,
    ) -> None:
        """A first look at once, and the full answer when it is there; `wait`: for the full answer. On a refusal
        everything that is shown stays."""
        kept, self._refusal = dict(self.fixed if fixed is None else fixed), ""
        at_once = wait or not can_wait()
        try:
            question_of(values, kept)
        except InputError as err:  # what is under way goes on
            self._refusal = self.error.value = pictures.error(str(err))
            return
        self.work.drop()
        if at_once:
            self._finish(self._full(values, kept), move)
            return
        self._asked = (dict(values), kept)
        try:
            self._finish(first_look(values, kept, self.answer), move)
        except InputError:  # the full answer says why, or finds what a glance does not
            self.error.value = pictures.waiting("No plan is known at a glance; a longer look is under way.")
        self.work.start(lambda check: self._full(values, kept, check), lambda full: self._finish_later(full, move))

    def _finish_later(self, answer: state.Answer | InputError, move: bool) -> None:
        self._finish(answer, move)
        if self._refusal:  # of a newer move
            self.error.value = self._refusal

    def _full(
        self, values: Mapping[str, str], fixed: Mapping[str, object], check: Callable[[], None] | None = None
    ) -> state.Answer | InputError:
        try:
            return state.answer(values, fixed, check=check)
        except InputError as err:
            return err

    def _finish(self, answer: state.Answer | InputError, move: bool) -> None:
        if isinstance(answer, InputError):
            self.error.value = pictures.error(str(answer))
            return
        self.fixed = dict(answer.fixed)
        if move:
            self.inputs.show(answer.values)
        self._draw(answer, self.answer)

    def settle(self) -> None:
        """Wait for the full answer where a first look is shown."""
        if self.work.busy:
            self._show(*self._asked, wait=True)

    def _draw(self, answer: state.Answer, before: state.Answer | None) -> None:
        """Show an answer; what was drawn `before` and has not changed stays."""
        self.answer, self.error.value = answer, ""
        same_step = (
            before is not None
            and before.question.model == answer.question.model
            and before.candidate == answer.candidate
            and before.is_first_look == answer.is_first_look
            and (before.question.cluster.chip.name, before.question.cluster.name, before.question.precision)
            == (answer.question.cluster.chip.name, answer.question.cluster.name, answer.question.precision)
        )
        said = f'<p class="said"><b>{escape(state.sentence(answer))}</b></p>'
        self.top.value = pictures.block(said + (FIRST_LOOK if answer.is_first_look else ""), live=True)
        self.cards.value = pictures.cards(answer)
        self.plan_note.value = pictures.block(self._plan_words())
        self.release.layout.display = "" if self.fixed else "none"
        self.search.layout.display = "none" if self.fixed else ""
        self._metrics()
        self._tornado()
        if not same_step:
            for key in ("memory", "step"):
                self._put(key, *getattr(svg, key)(answer))
            if answer.is_first_look:
                self._put("timeline", "", "The step is being simulated.")
            else:
                small = answer.simulated_ops <= state.MAX_INLINE_OPS
                self.simulate.layout.display = "none" if small else ""
                self._timeline() if small else self._no_timeline()
        if NOW in (self.a.value, self.b.value):
            self._versus()

    def _plan_words(self) -> str:
        how = (
            "This plan is kept while chips, batch, tokens and prices move; another model, chip, context or aim "
            "drops it."
            if self.fixed
            else "This plan was found at once: near the best, not proven to be it."
        )
        text, run = state.yaml_text(self.answer), self.answer.simulated
        yaml = files.link("download it", "scenario.yaml", text, "application/yaml")
        return (
            f'<p class="note">{how} The same figures in a terminal; a click selects all of it:<br>'
            f"<code>{escape(state.command(self.answer))}</code></p>"
            f'<details class="note"><summary>Copy as YAML, for clustersim run</summary><pre>{escape(text)}</pre>{yaml}'
            f'</details><p class="note"><a href="{escape(state.link(self.answer))}">A link to this question</a></p>'
            + run_phases.html(phase_facts(run.scenario, run.segments))
        )

    def _put(self, key: str, picture: str, alt: str) -> None:
        self.pictures[key].value = pictures.block(picture)
        self.alts[key].value = pictures.block(f'<p class="note">{escape(alt)}</p>' if alt else "")

    def _metrics(self) -> None:
        options = [(label, key) for key, label, _ in self.answer.results]
        if tuple(self.metric.options) != tuple(options):
            chosen = self.metric.value
            keys = [k for _, k in options]
            self._quiet = True
            self.metric.options = options
            self.metric.value = (
                chosen if chosen in keys else next(k for k in ("rent_usd", "own_usd", "days") if k in keys)
            )
            self._quiet = False

    def _tornado(self) -> None:
        if self.metric.value:
            self._put("tornado", *svg.tornado(self.answer, self.metric.value))

    def _timeline(self) -> None:
        self._put("timeline", *svg.timeline(self.answer, state.simulated_step(self.answer)))

    def _no_timeline(self) -> None:
        self._put(
            "timeline",
            "",
            f"A step of {self.answer.simulated_ops:,} ops is not simulated at every move: press the button to see "
            "its timeline.",
        )

    def _guard(self, act: Callable[[], object]) -> None:
        """Do what a button asks, of the full answer; a refusal is one line on the page."""
        self.error.value = ""
        self.settle()
        try:
            act()
        except InputError as err:
            self.error.value = pictures.error(str(err))

    def _follow(self, act: Callable[[], object]) -> None:
        """Draw what follows a control that a person changed, not the page itself; a first look is enough."""
        if not self._quiet:
            act()

    def open_link(self, query: str) -> None:
        """Ask what an address says (`sim.dashboard.state.link`); what is refused leaves the defaults, and says why."""
        try:
            values, measured = state.from_link(query), measured_from_link(query)
        except InputError as err:
            self.error.value = pictures.error(str(err))
            return
        if values:
            self._show({**DEFAULT, **values}, {}, move=True)
        if measured:
            self.normal.set(measured)

    # ---------------------------------------------------------------- the longer things

    def _search(self) -> None:
        self.work.drop()
        self.search.disabled, self.bar.layout.display = True, ""

        def progress(done: int, of: int) -> None:
            self.bar.value = done / max(of, 1)

        try:
            best = state.searched(self.inputs.values, progress)
            self.fixed = dict(best.fixed)
            self._draw(best, self.answer)
        except InputError as err:
            self.error.value = pictures.error(str(err))
        finally:
            self.search.disabled, self.bar.layout.display, self.bar.value = False, "none", 0.0

    def _release(self) -> None:
        self._show(self.inputs.values, {})

    # ---------------------------------------------------------------- files and comparison

    def _compare_options(self) -> None:
        names = [NOW, *self.kept]
        for box in (self.a, self.b):
            chosen = box.value if box.value in names else None
            self._quiet = True
            box.options, box.value = names, chosen or NOW
            self._quiet = False
        self.open.options = [("choose …", ""), *((n, n) for n in files.saved())]

    def _save(self) -> None:
        name = self.name.value.strip() or self.answer.name
        path = files.save(self.answer, name)
        self.kept[name] = self.answer
        self._compare_options()
        self.a.value = name
        self.name.value, self.error.value = "", ""
        self.files.value = pictures.block(
            f'<p class="note" role="status">Saved as {escape(path)} and kept as A below. '
            f"{files.link('Download it (YAML)', path.name, path.read_text(encoding='utf-8'), 'application/yaml')}</p>"
        )

    def _opened(self, name: str) -> None:
        if name:
            self._guard(lambda: self._loaded(*files.load(files.saved()[name])))

    def _uploaded(self) -> None:
        for one in self.upload.value:
            self._loaded(*files.load_upload(one["name"], bytes(one["content"])))

    def _loaded(self, values: Mapping[str, str], fixed: Mapping[str, object], name: str) -> None:
        self._show({**values}, fixed, move=True, wait=True)
        if not self.error.value:
            self.kept[name] = self.answer
            self._compare_options()
            self.files.value = pictures.block(
                f'<p class="note" role="status">Loaded: {escape(name)}. It can be compared below under that name.</p>'
            )

    def _versus(self) -> None:
        first, second = (self.answer if box.value == NOW else self.kept.get(box.value) for box in (self.a, self.b))
        if first is None or second is None:
            return
        if self.a.value == self.b.value:
            self.versus_words.value = pictures.block(
                '<p class="note">A and B are the same: save one scenario, then change a control.</p>'
            )
            self._put("versus", "", "")
            return
        names = [f"{a.name}" if box.value == NOW else box.value for box, a in ((self.a, first), (self.b, second))]
        words, compared = pictures.versus_words(first, second), pictures.versus_table(first, second, names)
        self.versus_words.value = pictures.block(f'<p class="said" role="status">{escape(words)}</p>{compared}')
        self._put("versus", *svg.versus(first, second, names))

    def _export(self) -> None:
        self.export.disabled = True
        try:
            written = files.report(self.answer)
            kinds = {
                "html": ("Report (HTML)", "text/html"),
                "json": ("Figures (JSON)", "application/json"),
                "csv": ("Plans (CSV)", "text/csv"),
            }
            self.links.value = pictures.block(
                '<p class="note" role="status">Written to '
                + escape(written["html"].parent)
                + "</p>"
                + "".join(files.link(kinds[k][0], p.name, p.read_bytes(), kinds[k][1]) for k, p in written.items())
            )
        finally:
            self.export.disabled = False


def open_page(values: Mapping[str, str] | None = None) -> Page:
    """Show the page in a notebook's cell.

    Args:
        values: controls to start from, by key (`sim.dashboard.controls.CONTROLS`); the rest take their defaults.
            Without them those of the address, where Voila hands it over.
    Raises:
        InputError: the widgets are not installed, or a key that is no control.
    """
    try:
        import ipywidgets  # noqa: F401
    except ImportError as err:
        raise InputError(f"{err.name} is missing: the page needs widgets; {datafiles.install_hint('lab')}") from None
    from IPython.display import display

    for key in values or {}:
        if key not in BY_KEY:
            raise InputError(f"control {key!r}: not known; known: {', '.join(BY_KEY)}")
    page = Page(values)
    if values is None:
        page.open_link(_query())
    display(page.widget)
    return page


def _query() -> str:
    """What the address says. A kernel that Voila has started ahead builds its page before anyone asks, and waits."""
    if os.environ.get("VOILA_PREHEAT") == "True":
        from voila.utils import get_query_string

        return get_query_string() or ""
    return os.environ.get("QUERY_STRING", "")
