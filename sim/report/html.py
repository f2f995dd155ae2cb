"""One self-contained HTML page: headings, prose, tables and figures, readable on a phone, on paper and without a
network."""

from __future__ import annotations

import functools
import html as _html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from minglm import atomic, plots


@functools.cache
def static_text(package: str, name: str) -> str:
    """A file of `PACKAGE/static`: style sheets and HTML that Python code fills in. It travels inside the wheel."""
    return resources.files(package).joinpath("static", name).read_text(encoding="utf-8")


def escape(text: object) -> str:
    """Text for HTML, quotes too."""
    return _html.escape(str(text), quote=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """An HTML table; a column whose every cell looks like a number is set right-aligned."""

    def numeric(cell: object) -> bool:
        return (
            str(cell)
            .lstrip("−-+~±$")
            .replace(",", "")
            .replace(".", "")
            .replace("%", "")
            .replace(" ", "")
            .replace("–", "")
            .isdigit()
        )

    right = [bool(rows) and all(numeric(row[i]) for row in rows) for i in range(len(header))]
    mark = [' class="num"' if r else "" for r in right]
    head = "".join(f'<th scope="col"{mark[i]}>{escape(h)}</th>' for i, h in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{mark[i]}>{escape(c)}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    note = f"<caption class='note' style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(items: Sequence[tuple[str, str]]) -> str:
    """The few figures that a reader came for: (value, what it is)."""
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in items)
        + "</div>"
    )


class Page:
    """Collects sections in reading order and writes them as one file. `add` takes HTML, `prose` takes plain text."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.body: list[str] = []
        self.links: list[tuple[str, str]] = []
        self._has_plotly = False

    def heading(self, text: str, anchor: str) -> None:
        """A section's heading, which the navigation on top links to."""
        self.links.append((anchor, text))
        self.body.append(f'<h2 id="{escape(anchor)}">{escape(text)}</h2>')

    def add(self, fragment: str) -> None:
        """HTML as it is."""
        self.body.append(fragment)

    def prose(self, text: str, kind: str = "") -> None:
        """A paragraph of plain text; `kind` is its CSS class."""
        self.body.append(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def figure(self, fig, alt: str) -> None:
        """A Plotly figure with its text alternative as the caption; the first one brings plotly.js along."""
        self.body.append(plots.html(fig, alt, first=not self._has_plotly) + f'<p class="note">{escape(alt)}</p>')
        self._has_plotly = True

    def write(self, path: Path) -> Path:
        """Write the page, whole or not at all; returns the path."""
        nav = "".join(f'<a href="#{escape(a)}">{escape(t)}</a>' for a, t in self.links)
        style = static_text("sim.report", "report.css")
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style}</style></head><body><main><h1>{escape(self.title)}</h1>"
            f'<p class="lead">{escape(self.lead)}</p><nav '
            f'aria-label="Sections">{nav}</nav>{"".join(self.body)}</main></body></html>'
        )
        atomic.write_text(path, text)
        return path
