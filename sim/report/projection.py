"""A projection for people: as text in the terminal, as one self-contained page, and as a run folder.

`runs/<name>/` holds config.json (the scenario with its includes merged), versions.json and metrics.json (the
projection).
"""

from __future__ import annotations

import re
from pathlib import Path

from minglm import atomic, datafiles, plots
from minglm.errors import InputError
from sim.base.units import show
from sim.report import run_phases
from sim.report.html import Page, cards, table


def slug(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "run"


def save(result: dict, scenario, folder: Path | None = None) -> Path:
    """Write the run folder; each file appears whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = folder or datafiles.runs(slug(scenario.name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("config", scenario.document), ("versions", result["versions"]), ("metrics", result)):
            atomic.write_json(folder / f"{name}.json", value, ensure_ascii=False, default=str)
    except (OSError, ValueError) as err:
        raise InputError(
            f"{folder}: cannot be written ({getattr(err, 'strerror', None) or err}); give another folder with --out"
        ) from None
    return folder


def _span(r: dict, dimension: str) -> str:
    return f"{show(r['low'], dimension)} – {show(r['high'], dimension)}"


def _tonnes(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(r: dict) -> list[tuple[str, str, str]]:
    """The main figures as (what, value, remark): the same in the terminal and on the page."""
    m, c, p, s, mem = r["model"], r["cluster"], r["plan"], r["step"], r["memory"]
    days = r["days"]
    out = [
        (
            "model",
            f"{m['params'] / 1e9:.1f}B parameters",
            f"{m['active_params'] / 1e9:.2f}B active; {m['train_flops_per_token'] / 1e9:.1f} GFLOP to train a "
            f"token, {m['attention']} attention",
        ),
        (
            "cluster",
            f"{c['cluster_chips']:,} × {c['chip']}",
            f"{c['name']}; the plan uses {c['used']:,}, {c['spares']:,} are spares, counted in cost",
        ),
        (
            "plan",
            p["text"],
            f"micro-batch {p['micro_batch']}, ZeRO {p['zero']}, recompute {p['recompute']}, {p['precision']}, "
            f"{p['stack']}",
        ),
        (
            "batch",
            f"{show(p['tokens_per_step'], 'count')} tokens",
            f"{p['global_batch']:,} sequences of {p['seq']:,}: {p['micro_batches_per_replica']} micro-batches for "
            f"each of {p['dp']:,} replicas",
        ),
        (
            "memory",
            f"{mem['gib']:.1f} GiB of {mem['capacity_gib']:.0f}",
            "peak-memory rank: "
            + ", ".join(f"{k} {v:.1f}" for k, v in mem["parts_gib"].items() if v > 0.05)
            + _in_host_memory(mem),
        ),
        (
            "step",
            show(s["step_s"], "time"),
            f"closed form {show(s['closed_form_s'], 'time')}; {s['events']:,} events for {s['simulated_replicas']} "
            f"of {p['dp']:,} replicas",
        ),
        (
            "bubble",
            f"{s['bubble_fraction']:.1%}",
            f"of pipeline time an average rank is idle, {s['bubble_overhead']:.1%} of its busy time; why: `explain`",
        ),
        (
            "throughput",
            f"{show(s['tokens_per_s'], 'count')} tokens/s",
            f"{s['tokens_per_s_per_chip']:.1f} tokens/s a chip, {r['mfu'][0]['achieved_tflops']:.1f} TFLOPS a chip",
        ),
    ]
    out += [
        ("MFU" if i == 0 else "", f"{d['mfu']:.1%} of {d['peak_tflops']:.0f} TFLOPS", d["denominator"])
        for i, d in enumerate(r["mfu"])
    ]
    camp = r["campaign"]
    mtbf = "" if camp["mtbf_hours"] is None else f", one per {show(camp['mtbf_hours'] * 3600, 'time')}"
    out += [
        (
            "time",
            f"{days['value']:.3g} days",
            f"{days['low']:.3g}–{days['high']:.3g}, {r['ranges']}; {show(r['tokens'], 'count')} tokens",
        ),
        ("", f"{r['days_at_this_step']:.3g} days", "at this step and batch throughout, nothing ever failing"),
        (
            "goodput",
            f"{camp['goodput']:.1%}",
            f"{camp['interruptions']:,} interruptions{mtbf}; Daly's formula {camp['expected_goodput']:.1%}",
        ),
        (
            "chip-hours",
            show(r["cost"]["chip_hours"]["value"], "count"),
            _span(r["cost"]["chip_hours"], "count") + "; " + r["cost"]["chip_hours"]["basis"],
        ),
        (
            "energy",
            f"{r['cost']['energy']['value'] / 1e6:,.3g} GWh",
            f"{r['cost']['energy']['low'] / 1e6:,.3g}–{r['cost']['energy']['high'] / 1e6:,.3g}; "
            f"{r['cost']['energy']['basis']}",
        ),
        (
            "carbon",
            f"{_tonnes(r['cost']['carbon']['value'])} t CO2",
            f"{_tonnes(r['cost']['carbon']['low'])}–{_tonnes(r['cost']['carbon']['high'])}; "
            f"{r['cost']['carbon']['basis']}: {r['cost']['carbon']['source']}",
        ),
    ]
    for key, name in (("rent", "cost to rent"), ("own", "cost to own")):
        if key in r["cost"]:
            out.append(
                (
                    name,
                    show(r["cost"][key]["value"], "money"),
                    f"{_span(r['cost'][key], 'money')}; {r['cost'][key]['basis']}: {r['cost'][key]['source']}",
                )
            )
    return out


def _in_host_memory(mem: dict) -> str:
    return f"; in host memory {mem['host_gib']:.1f} of {mem['host_capacity_gib']:.0f}" if "host_gib" in mem else ""


def table_text(r: dict) -> str:
    """The projection for a terminal."""
    lines = [r["name"]] + ([r["question"]] if r["question"] else []) + [""]
    lines += [f"{what:14}{value:28} {remark}" for what, value, remark in rows(r)]
    lines += [
        f"{'currency':14}{r['currency']}",
        "",
        "busiest rank's time: " + ", ".join(f"{k} {v:.0%}" for k, v in r["breakdown"].items() if v >= 0.01),
    ]
    if r["critical_path"]:
        lines.append(
            "critical path:       " + ", ".join(f"{k} {v:.0%}" for k, v in r["critical_path"].items() if v >= 0.01)
        )
    if r["sensitivity"]:
        lines.append(
            "twice as fast at …:  "
            + ", ".join(
                f"{what} saves {share:.0%}" for what, share in list(r["sensitivity"].items())[:5] if share >= 0.005
            )
        )
    if r["batches"]:
        lines += ["", f"{'batch (ramp)':16}{'micro-batches':>14}{'bubble':>9}{'step':>10}{'tokens/s/chip':>15}"]
        lines += [
            f"{show(b['tokens'], 'count'):16}{b['micro_batches_per_replica']:>14}"
            + (
                f"  {b['reason']}"
                if "reason" in b
                else f"{b['bubble_fraction']:>9.1%}{b['step_s']:>9.2f}s{b['tokens_per_s_per_chip']:>15.1f}"
            )
            for b in r["batches"]
        ]
    if len(r["campaign"]["phases"]) > 1:
        lines += ["", *run_phases.text(r["campaign"])]
    if r["what_if"]:
        lines += ["", f"{'what if':44}{'speed':>7}{'step':>10}{'bubble':>9}{'memory':>11}"]
        for w in r["what_if"]:
            if "reason" in w:
                outcome = f"  {w['reason']}"
            else:
                outcome = f"{w['speed']:>6.2f}×{w['step_s']:>9.2f}s{w['bubble_fraction']:>9.1%}"
                outcome += f"{w['memory_gib']:>7.1f} GiB"
            lines.append(f"{w['name'][:43]:44}{outcome}" + (f"   {w['note']}" if w["note"] else ""))
    lines += ["", "assumptions"] + [
        f"  [{a['kind']}] {a['text']}" + (f" — {a['source']}" if a["source"] else "") for a in r["assumptions"]
    ]
    return "\n".join(lines)


def section(page: Page, r: dict) -> None:
    """The projection as sections of an HTML page (`sim.report.html.Page`)."""
    days = r["days"]
    page.heading(r["name"] if page.title != r["name"] else "The projection", "projection")
    if r["question"] and page.lead != r["question"]:
        page.prose(r["question"], "lead")
    own = r["cost"].get("own") or r["cost"].get("rent")
    items = [
        (
            f"{days['value']:.3g} days",
            f"for {show(r['tokens'], 'count')} tokens (range {days['low']:.3g}–{days['high']:.3g})",
        ),
        (f"{r['step']['tokens_per_s_per_chip']:.0f} tokens/s", "per chip"),
        (
            f"{r['mfu'][0]['mfu']:.1%}",
            f"MFU over {r['mfu'][0]['peak_tflops']:.0f} TFLOPS ({r['mfu'][0]['denominator']})",
        ),
        (f"{r['campaign']['goodput']:.0%}", "goodput: first-time work over wall-clock time"),
    ]
    if own:
        items.append(
            (show(own["value"], "money"), f"{'to own' if 'own' in r['cost'] else 'to rent'} ({_span(own, 'money')})")
        )
    page.add(cards(items))
    page.add(table(["", "value", ""], rows(r)))
    page.prose(f"Money in {r['currency']}.", "note")
    page.figure(
        _breakdown_figure(r),
        "Where the busiest rank's time goes, by class of work: "
        + ", ".join(f"{k} {v:.0%}" for k, v in r["breakdown"].items() if v >= 0.01),
    )
    if any("step_s" in b for b in r["batches"]):
        page.figure(
            _batch_figure(r),
            "Idle share of the pipeline and throughput against the batch: more micro-batches fill the pipeline.",
        )
    page.add(run_phases.html(r["campaign"]))
    if r["what_if"]:
        page.add(
            table(
                ["what if", "speed", "step", "bubble", "memory", ""],
                [
                    [w["name"], "–", "–", "–", "–", w["reason"]]
                    if "reason" in w
                    else [
                        w["name"],
                        f"{w['speed']:.2f}×",
                        show(w["step_s"], "time"),
                        f"{w['bubble_fraction']:.1%}",
                        f"{w['memory_gib']:.1f} GiB",
                        w["note"],
                    ]
                    for w in r["what_if"]
                ],
            )
        )
    lost = {k: v for k, v in r["campaign"]["lost_hours"].items() if v > 0.01}
    if lost:
        page.figure(
            _lost_figure(lost),
            "Hours lost to each cause over the campaign: " + ", ".join(f"{k} {v:.0f}" for k, v in lost.items()),
        )
    page.heading("Assumptions", "assumptions")
    page.add(table(["what", "kind", "source"], [[a["text"], a["kind"], a["source"]] for a in r["assumptions"]]))


def write_page(r: dict, path: Path) -> Path:
    """One self-contained HTML page of a projection."""
    page = Page(r["name"], r["question"] or "A projection by the cluster simulator.")
    section(page, r)
    page.heading("Made with", "versions")
    page.add(table(["package", "version"], sorted(r["versions"].items())))
    return page.write(path)


def _breakdown_figure(r: dict):
    parts = {k: 100 * v for k, v in r["breakdown"].items() if v >= 0.005}
    fig = plots.figure("Where the busiest rank's time goes", "", "share of its time (%)")
    return plots.bars(fig, list(parts), list(parts.values()), text=[f"{v:.0f}%" for v in parts.values()])


def _batch_figure(r: dict):
    batches = [b for b in r["batches"] if "step_s" in b]
    fig = plots.figure(
        "A small batch leaves the pipeline idle", "tokens per step (millions)", "idle share of pipeline time (%)"
    )
    return plots.line(
        fig,
        [b["tokens"] / 1e6 for b in batches],
        [100 * b["bubble_fraction"] for b in batches],
        "bubble",
        0,
        markers=True,
    )


def _lost_figure(lost: dict):
    fig = plots.figure("Hours lost, by cause", "", "hours of the whole cluster")
    return plots.bars(fig, list(lost), list(lost.values()), index=3, text=[f"{v:.0f}" for v in lost.values()])


def write_figure(fig, path: Path) -> Path:
    """A Plotly figure as .html (self-contained), or as .svg, .png, .pdf where kaleido is installed."""
    try:
        if path.suffix == ".html":
            atomic.write_text(path, fig.to_html(include_plotlyjs=True))
        elif path.suffix in (".svg", ".png", ".pdf"):
            try:
                atomic.write_bytes(path, fig.to_image(path.suffix.removeprefix(".")))
            except (ImportError, ValueError, RuntimeError):
                raise InputError(f"{path}: a {path.suffix} needs the package kaleido; give a .html file") from None
        else:
            raise InputError(f"{path}: give a file ending in .html, .svg or .png")
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror or err}); give another path") from None
    return path
