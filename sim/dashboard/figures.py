"""The planner page's words as HTML: what was refused, the cards, and two answers beside each other. Its pictures are in
`sim.dashboard.svg`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.base.units import show
from sim.cost.money import with_prices
from sim.dashboard.state import Answer, figure_words
from sim.report.html import escape, table


def block(inner: str, live: bool = False) -> str:
    """HTML in the page's style; `live` parts are read out when they change."""
    return f'<div class="planner"{" role=status aria-live=polite" if live else ""}>{inner}</div>'


def error(text: str) -> str:
    """What was refused and why, as an alert; nothing for an empty text."""
    return block(f'<div class="error" role="alert"><b>Not changed.</b> {escape(text)}</div>') if text else ""


def waiting(text: str) -> str:
    """What the page is busy with."""
    return block(f'<p class="note" role="status">{escape(text)}</p>')


# ------------------------------------------------------------------ cards


def cards(a: Answer) -> str:
    """The results: value, 90% interval, and which assumption moves it most; then throughput and the plan."""
    out = []
    for key, label, _ in a.results:
        low, high = a.interval(key)
        moved = a.mover(key)
        words = f"90% of samples: {figure_words(a, key, low)} to {figure_words(a, key, high)}"
        most = (
            f"Moved most by {moved['name']}: {figure_words(a, key, moved['low'])} to "
            f"{figure_words(a, key, moved['high'])}"
            if moved
            else ""
        )
        out.append(
            f'<div class="card"><span>{escape(label)}</span><b>{escape(figure_words(a, key))}</b>'
            f"{_span(low, a.row[key], high)}<span>{escape(words)}</span><span>{escape(most)}</span></div>"
        )
    r, chip = a.row, a.question.cluster.chip.name
    for key, label, flag in (
        ("rent_usd", "Cost to rent", "the rent"),
        ("own_usd", "Cost to own", "the price with its system"),
    ):
        if key not in r:
            out.append(
                f'<div class="card"><span>{label}</span><b>not known</b><span>No price of {escape(chip)} is in the '
                f"fact files: set {flag} "
                "among the controls.</span></div>"
            )
    out.append(
        f'<div class="card"><span>Speed</span><b>{show(r["tokens_per_s"], "count")} '
        f"tokens/s</b><span>{r['tokens_per_s_per_chip']:.1f} a chip, "
        f"MFU {r['mfu']:.1%} of the chip's {escape(_precision(a))} peak, goodput {r['goodput']:.1%}</span></div>"
    )
    spare = f"{r['spares']:,} stay spare; a larger batch may use them" if r["spares"] else "none stays spare"
    out.append(
        f'<div class="card"><span>Plan</span><b>{r["chips"]:,} chips used</b><span>{escape(str(r["plan"]))}, '
        f"micro-batch {r['micro_batch']}, ZeRO {r['zero']}, "
        f"recompute {escape(str(r['recompute']))}; {spare}</span></div>"
    )
    return block(f'<div class="cards">{"".join(out)}</div>')


def _precision(a: Answer) -> str:
    return "fp8" if a.question.precision == "fp8" else "bf16"


def _span(low: float, value: float, high: float) -> str:
    """A bar from 0 to a little over the high end, with the interval and the value on it."""
    end = 1.05 * max(high, value)
    at = [100 * x / end for x in (low, high, value)]
    return (
        f'<div class="span" aria-hidden="true"><i style="left:{at[0]:.1f}%;width:{at[1] - at[0]:.1f}%"></i><u '
        f'style="left:{at[2]:.1f}%"></u></div>'
    )


# ------------------------------------------------------------------ two answers beside each other


def versus_words(first: Answer, second: Answer) -> str:
    """Who is cheaper and faster, and at which rent the second would cost the same."""
    a, b = first.row, second.row
    clauses = [f"B takes {b['days'] / a['days']:.2f} times as long as A"]
    if "rent_usd" in a and "rent_usd" in b:
        apart = b["rent_usd"] / a["rent_usd"]
        sure = (
            second.interval("rent_usd")[0] > first.interval("rent_usd")[1]
            or second.interval("rent_usd")[1] < first.interval("rent_usd")[0]
        )
        word = "dearer to rent" if apart > 1.005 else "cheaper to rent" if apart < 0.995 else "as dear to rent"
        clauses.append(
            f"and is {word}: {apart:.2f} times A's cost "
            f"({'the 90% intervals do not overlap' if sure else 'their 90% intervals overlap, so that is not sure'})"
        )
        clauses.append(f"at ${a['rent_usd'] / b['chip_hours']:.2f} a chip-hour B would cost as much as A to rent")
    elif "own_usd" in a and "own_usd" in b:
        clauses.append(f"and costs {b['own_usd'] / a['own_usd']:.2f} times as much to own")
    else:
        clauses.append("and no price is known for both")
    return clauses[0] + " " + clauses[1] + ("; " + clauses[2] if len(clauses) > 2 else "") + "."


def versus_table(first: Answer, second: Answer, names: Sequence[str]) -> str:
    """The results of two answers beside each other, with their 90% intervals."""

    def cell(a: Answer, key: str) -> str:
        if key not in a.row:
            return "not known"
        low, high = a.interval(key)
        return f"{figure_words(a, key)} ({figure_words(a, key, low)} to {figure_words(a, key, high)})"

    keys = [("days", "time"), ("rent_usd", "cost to rent"), ("own_usd", "cost to own"), ("energy_kwh", "energy")]
    rows: list[Sequence] = [(label, cell(first, k), cell(second, k)) for k, label in keys]
    rows += [
        ("chips used", f"{first.row['chips']:,}", f"{second.row['chips']:,}"),
        ("rent of a chip-hour", _rent(first), _rent(second)),
        ("plan", first.row["plan"], second.row["plan"]),
    ]
    return table(("", f"A: {names[0]}", f"B: {names[1]}"), rows)


def _rent(a: Answer) -> str:
    f = with_prices(a.question.cluster, a.question.prices).chip.rent_usd_per_hour
    return "not known" if f is None else f"${f.value:.2f}" + ("" if f.certain else f" (${f.low:.2f} to ${f.high:.2f})")
