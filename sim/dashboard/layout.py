"""Where everything stands on the planner page: controls above the answer, pictures in pairs, sections below."""

from __future__ import annotations

from typing import Any

from sim.dashboard import figures as pictures
from sim.report.html import escape, static_text


def lay_out(page: Any) -> Any:
    """The widgets of a `sim.dashboard.page.Page` in their order, as one widget."""
    import ipywidgets as w

    def head(words: str, level: int = 2):
        return w.HTML(f'<h{level} style="margin:.9rem 0 .1rem;font-size:1.15rem">{escape(words)}</h{level}>')

    def picture(key: str, *more):
        return w.VBox(
            [*more, page.pictures[key], page.alts[key]],
            layout=w.Layout(min_width="0", width="auto", overflow="visible"),
        )

    auto = w.Layout(width="auto", overflow="visible")
    pair = w.Layout(
        grid_template_columns="repeat(auto-fit, minmax(min(100%, 24rem), 1fr))",
        grid_gap="0.4rem 1.2rem",
        width="auto",
    )
    top = w.VBox([page.top, page.error], layout=auto)
    top.add_class("planner-top")
    row = w.Layout(flex_flow="row wrap", width="auto")
    whole = w.VBox(
        [
            w.HTML(f"<style>{static_text('sim.dashboard', 'page.css')}</style>"),
            top,
            head("What you ask"),
            page.inputs.widget,
            w.Box([page.reset], layout=row),
            head("The answer"),
            page.cards,
            page.plan_note,
            w.Box([page.search, page.release, page.bar], layout=row),
            head("What would change the answer"),
            picture("tornado", page.metric),
            head("Memory and the step"),
            w.GridBox([picture("memory"), picture("step")], layout=pair),
            picture("timeline", page.simulate),
            head("Compare two"),
            w.HTML(
                pictures.block(
                    "<p class=note>Save what is shown, change a control (another chip, say), and see B against A.</p>"
                )
            ),
            w.GridBox([page.name, w.Box([page.save_button], layout=row)], layout=pair),
            page.files,
            w.GridBox([page.a, page.b], layout=pair),
            page.versus_words,
            picture("versus"),
            head("The question turned round"),
            page.inverse.widget,
            head("Is my number normal?"),
            page.normal.widget,
            head("What serving it would earn"),
            page.serving.widget,
            head("Files and the report"),
            w.GridBox([page.upload, page.open], layout=pair),
            w.Box([page.export], layout=row),
            page.links,
        ],
        layout=auto,
    )
    whole.add_class("planner-page")
    return whole
