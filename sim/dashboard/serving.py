"""The planner page's second question: what would serving the model earn at a price per million tokens?

The figures are `sim.serving.margin.margin`'s, so `clustersim serving --ask margin` prints the same. The deployment
is sized once for a model, a machine and a speed; prices and rent then move the answer at once.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable

from minglm.errors import InputError
from sim.base.units import parse
from sim.cost.price_flags import CHIP_HOUR
from sim.dashboard.controls import choices, machine, price
from sim.dashboard.widgets import boxed, grid
from sim.report.html import escape, table
from sim.serving.margin import ACCEPT, margin
from sim.serving.options import Option, Target
from sim.serving.sizing import size
from sim.spec.hardware import load_chip, load_cluster

PROMPT, OUTPUT, TTFT_S = 8192, 1024, 5.0
DEFAULT = {"machine": "chip:h200", "speed": "wide", "input": "1.00", "output": "3.20", "rent": ""}
SPEEDS = {
    "wide": ("20 tokens/s, on up to 72 chips", 1 / 20, 72),
    "node": ("72.5 tokens/s, on one node", 1 / 72.5, None),
}


@functools.cache
def places() -> tuple[tuple[str, str], ...]:
    """(label, value) of the machines as their clusters describe them, which is how `clustersim serving` names them."""
    return tuple(
        (label, v)
        for label, v in choices("machine")
        if v.startswith("cluster:") or machine(v) == load_cluster(load_chip(v.split(":", 1)[1]).cluster)
    )


@functools.lru_cache(maxsize=32)
def _option(model: str, place: str, speed: str) -> Option:
    """The cheapest deployment that keeps the speed."""
    _, tpot_s, most = SPEEDS[speed]
    cluster, target = machine(place), Target(PROMPT, OUTPUT, TTFT_S, tpot_s)
    sizing = size(model, target, [cluster], most=most or cluster.chips_per_node, accept=ACCEPT)
    return sizing.cheapest or sizing.options[0]


def earned(model: str, place: str, speed: str, price_in: str, price_out: str, rent: str = "") -> dict:
    """`sim.serving.margin.margin` for what stands in the controls.

    Raises:
        InputError: a value is refused, nothing meets the speed, or no rent is known.
    """
    prices = [
        (
            parse(str(price_in).strip() or DEFAULT["input"], "money", "Input price"),
            parse(str(price_out).strip() or DEFAULT["output"], "money", "Output price"),
        )
    ]
    chip_hour = price(rent, "money_per_hour", "Rent of a serving chip")
    cluster = machine(place)
    if chip_hour is None and cluster.chip.rent_usd_per_hour is None:
        raise InputError(f"Rent of a serving chip: none of {cluster.chip.name} is known; give one, such as 2-3")
    return margin(model, cluster, prices, rent=chip_hour, tpot_s=SPEEDS[speed][1], option=_option(model, place, speed))


def words(r: dict) -> str:
    """The answer as HTML: margin with interval, what it is a share of, and what was assumed."""
    row, cost = r["rows"][0], r["ranges"]["rent"]["range"]
    income = cost[1] / (1 - row["likely"])  # dollars that a chip-hour brings in, in the likely case
    low, high = row["swings"][row["moves_most"]]
    sentence = (
        f"At ${row['input_price']:.2f} a million tokens in and ${row['output_price']:.2f} out, serving "
        f"{r['question'].split('for ')[-1].rstrip('?')} "
        f"{'keeps' if row['likely'] > 0 else 'loses'} {abs(row['likely']):.0%} of its income ({row['p5']:.0%} to "
        f"{row['p95']:.0%} in nine cases of ten): "
        f"a chip-hour brings in ${income:.2f} and costs ${cost[1]:.2f}."
    )
    note = (
        f"Moved most by {row['moves_most'].replace('_', ' ')}: {low:.0%} to {high:.0%}. Above zero in "
        f"{row['share_positive']:.0%} of the cases. "
        f"Full cost of a million tokens: ${r['usd_per_million']['input']:.2f} in, "
        f"${r['usd_per_million']['output']:.2f} out."
    )
    ranges = [
        (
            k.replace("_", " "),
            " – ".join(f"{x:.3g}" for x in (v["range"][0], v["range"][2])),
            f"{v['range'][1]:.3g}",
            v["label"],
            v["source"],
        )
        for k, v in r["ranges"].items()
    ]
    return (
        f'<p class="said" role="status"><b>{escape(sentence)}</b></p><p class="note">{escape(note)}</p>'
        f'<p class="note">{escape(r["deployment"])}, {escape(r["layout"])}; mode: '
        f"{escape(r['mode'])}{' (' + escape(r['measured_row']) + ')' if r['measured_row'] else ''}. "
        f"{escape(' '.join(a[:1].upper() + a[1:] + '.' for a in r['assumptions']))}</p>"
        "<details><summary>What the interval is drawn from</summary><div "
        f'class="scroll">{table(("", "range", "likely", "strength", "source"), ranges)}</div></details>'
    )


def command(model: str, place: str, price_in: str, price_out: str, rent: str = "") -> str:
    """The line that gives the same figures in a terminal. A range of rents has no flag: its middle is given."""
    kind, name = place.split(":", 1)
    line = [
        "clustersim",
        "serving",
        "--ask",
        "margin",
        "--model",
        model,
        "--cluster",
        name if kind == "cluster" else load_chip(name).cluster,
        "--token-price",
        f"{parse(price_in, 'money', 'Input price'):g}",
        f"{parse(price_out, 'money', 'Output price'):g}",
    ]
    chip_hour = price(rent, "money_per_hour", "Rent of a serving chip")
    return shlex.join([*line, *(CHIP_HOUR.write(chip_hour) if chip_hour else [])])


class Serving:
    """The section's widgets. `model`: the page's model; nothing is computed before the button is pressed."""

    def __init__(
        self, model: Callable[[], str], guard: Callable[[Callable[[], None]], None], block: Callable[[str], str]
    ) -> None:
        import ipywidgets as w

        self.model, self._guard, self._block, self.answered = model, guard, block, False
        wide, style = w.Layout(width="auto", min_width="0"), {"description_width": "initial"}
        self.boxes = {
            "machine": w.Dropdown(
                options=places(), value=DEFAULT["machine"], description="Serve on", layout=wide, style=style
            ),
            "speed": w.Dropdown(
                options=[(label, k) for k, (label, *_) in SPEEDS.items()],
                value=DEFAULT["speed"],
                description="Speed that users get",
                layout=wide,
                style=style,
            ),
            "input": w.Text(
                value=DEFAULT["input"],
                description="Input, $ a million tokens",
                continuous_update=False,
                layout=wide,
                style=style,
            ),
            "output": w.Text(
                value=DEFAULT["output"],
                description="Output, $ a million tokens",
                continuous_update=False,
                layout=wide,
                style=style,
            ),
            "rent": w.Text(
                value="",
                description="Rent of a serving chip, $ an hour",
                continuous_update=False,
                layout=wide,
                style=style,
            ),
        }
        self.button = w.Button(
            description="What would serving earn?",
            button_style="primary",
            tooltip="Size a deployment and draw the margin",
            layout=w.Layout(width="auto"),
        )
        self.answer = w.HTML(layout=wide)
        self.button.on_click(lambda _: self._guard(self.show))
        for box in self.boxes.values():
            box.observe(lambda _: self.follow(), "value")
        self._hint()
        fields = grid(map(boxed, self.boxes.values()))
        self.widget = w.VBox(
            [
                fields,
                w.Box([self.button], layout=w.Layout(flex_flow="row wrap", width="auto")),
                self.answer,
            ],
            layout=wide,
        )

    @property
    def values(self) -> dict[str, str]:
        """What stands in the section's controls."""
        return {k: str(box.value) for k, box in self.boxes.items()}

    def _hint(self) -> None:
        f = machine(self.boxes["machine"].value).chip.rent_usd_per_hour
        self.boxes["rent"].placeholder = (
            "not known: give one" if f is None else f"{f.value:.4g} ({f.low:.4g} to {f.high:.4g})"
        )

    def follow(self) -> None:
        """After the first answer every change is answered."""
        self._hint()
        if self.answered:
            self._guard(self.show)

    def show(self) -> None:
        """Answer and draw."""
        v, model = self.values, self.model()
        result = earned(model, v["machine"], v["speed"], v["input"], v["output"], v["rent"])
        self.answered = True
        self.answer.value = self._block(
            f'{words(result)}<p class="note">The same figures in a terminal, for both speeds:<br><code>'
            f"{escape(command(model, v['machine'], v['input'], v['output'], v['rent']))}</code></p>"
        )
