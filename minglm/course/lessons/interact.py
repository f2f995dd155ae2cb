"""A slider that redraws a picture and says in words what changed; used beside a static picture of the same thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape

from minglm.plots import label_log_axes


def slider(label: str, values: Sequence, draw: Callable, start=None, height: int = 400):
    """A slider over `values`. `draw(value)` returns a Plotly figure and a sentence; both are shown and follow the
    slider.

    The sentence stands between slider and picture, where the eye is. The figure goes through the same mime type as
    every other figure, so a notebook stays small and needs no network.
    """
    import ipywidgets as widgets

    values = list(values)
    control = widgets.SelectionSlider(
        options=[(f"{v:,}" if isinstance(v, (int, float)) else str(v), v) for v in values],
        value=values[0] if start is None else start,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "95%"},
    )
    picture = widgets.Output(layout={"min_height": f"{height}px"})
    words = widgets.HTML()

    def redraw(change=None) -> None:
        figure, sentence = draw(control.value)
        label_log_axes(figure)
        picture.outputs = (
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {
                    "application/vnd.plotly.v1+json": {
                        **json.loads(figure.to_json()),
                        "config": {"displaylogo": False},
                    },
                    "text/plain": sentence,
                },
            },
        )
        words.value = f'<div class="minglm-says" role="status">{escape(sentence)}</div>'

    control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([control, words, picture])
