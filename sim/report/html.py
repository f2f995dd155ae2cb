"""One self-contained HTML page: headings, prose, tables and figures, readable on a phone, on paper and without a network."""

from __future__ import annotations

import html as _html
from collections.abc import Sequence
from pathlib import Path

STYLE = """
:root { --ink:#1c2330; --soft:#5b6472; --line:#dfe3ea; --accent:#0072B2; --paper:#fff; --wash:#f5f7fa; }
* { box-sizing:border-box } html { font:16px/1.6 system-ui,"Helvetica Neue",Arial,sans-serif; color:var(--ink); background:var(--paper) }
body { margin:0 auto; max-width:64rem; padding:1.5rem 1.2rem 4rem } h1 { font-size:1.9rem; line-height:1.2; margin:.4em 0 .3em }
h2 { font-size:1.35rem; margin:2.4em 0 .5em; padding-top:.8em; border-top:1px solid var(--line) } h3 { font-size:1.05rem; margin:1.6em 0 .3em }
p, li { max-width:46rem } .lead { font-size:1.12rem; color:var(--soft) } figure { margin:1.2rem 0 } figcaption, .note { color:var(--soft); font-size:.9rem; max-width:46rem }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr)); gap:.8rem; margin:1.4rem 0 }
.card { background:var(--wash); border-left:4px solid var(--accent); border-radius:4px; padding:.7rem .9rem } .card b { display:block; font-size:1.35rem; line-height:1.25 }
.card span { color:var(--soft); font-size:.88rem; line-height:1.35; display:block } .scroll { overflow-x:auto }
table { border-collapse:collapse; font-size:.92rem; margin:.8rem 0 } th,td { text-align:left; padding:.35rem .8rem .35rem 0; border-bottom:1px solid var(--line); vertical-align:top }
th { color:var(--soft); font-weight:600 } td.num, th.num { text-align:right; font-variant-numeric:tabular-nums } pre, code { font-family:ui-monospace,Menlo,Consolas,monospace; font-size:.88rem }
pre { background:var(--wash); padding:.8rem 1rem; overflow-x:auto; border-radius:4px; white-space:pre-wrap } nav a { margin-right:1rem } a { color:var(--accent) }
@media print { body { max-width:none } h2 { break-after:avoid } figure, table, .cards { break-inside:avoid } }
"""


def escape(text: object) -> str:
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
        self.links.append((anchor, text))
        self.body.append(f'<h2 id="{escape(anchor)}">{escape(text)}</h2>')

    def add(self, fragment: str) -> None:
        self.body.append(fragment)

    def prose(self, text: str, kind: str = "") -> None:
        self.body.append(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def figure(self, fig, alt: str) -> None:
        """A Plotly figure with its text alternative as the caption; the first one brings plotly.js along."""
        from minglm import plots

        self.body.append(plots.html(fig, alt, first=not self._has_plotly) + f'<p class="note">{escape(alt)}</p>')
        self._has_plotly = True

    def write(self, path: Path) -> Path:
        nav = "".join(f'<a href="#{escape(a)}">{escape(t)}</a>' for a, t in self.links)
        text = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(self.title)}</h1>"
            f'<p class="lead">{escape(self.lead)}</p><nav aria-label="Sections">{nav}</nav>{"".join(self.body)}</main></body></html>'
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        return path
