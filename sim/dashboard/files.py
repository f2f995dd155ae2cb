"""Saving and loading what stands on the planner page, and the report that leaves it.

A saved file is a scenario (`clustersim run FILE` reads it) with one more section, `planner`, that holds the controls as
they stood. It is written a key a line with JSON values, which is YAML: it can be read back in a browser that has no
PyYAML.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError
from sim.base.checks import versions
from sim.base.distributions import DRAWS
from sim.base.figure import Figure
from sim.base.units import parse
from sim.dashboard.controls import BY_KEY, CONTROLS
from sim.dashboard.state import AXES, Answer, answer, assumptions, command, figure_words, sentence
from sim.planner.assumptions import assumptions as planner_assumptions
from sim.planner.assumptions import facts
from sim.planner.planner import run_facts
from sim.planner.question import plain
from sim.report.html import escape
from sim.report.plan import write
from sim.report.projection import slug
from sim.scenario.file import VERSION, read_scenario_document
from sim.scenario.training import resolve
from sim.study.monte_carlo import monte_carlo

SUFFIX = ".yaml"
MAX_UPLOAD = 2**20


def folder() -> Path:
    """Where saved scenarios and reports lie."""
    return datafiles.runs("planner")


def document(a: Answer, name: str = "") -> dict:
    """The answer's scenario with the controls beside it."""
    return {
        "version": VERSION,
        "name": name or a.name,
        "question": f"How long does {a.name} take and what does it cost?",
        **a.document,
        "prices": {k: plain(v) for k, v in a.question.prices.items()},
        "planner": {"values": {k: v for k, v in a.values.items() if str(v).strip()}, "keep": dict(a.fixed)},
    }


def text(a: Answer, name: str = "") -> str:
    """The file's text: one key a line."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in document(a, name).items())


def save(a: Answer, name: str) -> Path:
    """Write the scenario into `folder()`; an older file of that name is replaced.

    Raises:
        InputError: no usable name, or the folder cannot be written.
    """
    if not name.strip():
        raise InputError("the name is empty; give the scenario a name, such as 'H100 at $2-3'")
    path = folder() / (slug(name) + SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text(a, name.strip()))
    except OSError as err:
        raise InputError(
            f"{path}: cannot be written ({err.strerror or err}); free the folder or set MINGLM_RUNS to another"
        ) from None
    return path


def saved() -> dict[str, Path]:
    """Name → path of the scenarios in `folder()`."""
    return {p.stem: p for p in sorted(folder().glob("*" + SUFFIX))}


def load(path: str | Path) -> tuple[dict[str, str], dict[str, object], str]:
    """(the controls' values, the plan to keep, the name) of a saved or a hand-written scenario file.

    Raises:
        InputError: not a scenario, of a version that this program does not read, or a value that a control refuses.
    """
    d = read_scenario_document(path)
    name = str(d.get("name") or Path(path).stem)
    section = d.get("planner")
    if section is None:
        return (*_from_scenario(d, name), name)
    values, fixed = (section.get(k) or {} for k in ("values", "keep"))
    if not isinstance(values, Mapping) or not isinstance(fixed, Mapping):
        raise InputError(f"{path}: planner must hold values and keep, each a mapping; save it again from the page")
    for key in values:
        if key not in BY_KEY:
            raise InputError(
                f"{path}: the control {str(key)[:40]!r} is not on this page; it was saved by another version: "
                "remove the line and load it again"
            )
    for key in fixed:
        if key not in AXES:
            raise InputError(f"{path}: planner.keep.{str(key)[:40]}: not a width of a plan; known: {', '.join(AXES)}")
    values = {str(k): str(v) for k, v in values.items()}
    answer(values, fixed, samples=2)  # refuses here what the page would refuse later
    return values, dict(fixed), name


def _from_scenario(d: Mapping, name: str) -> tuple[dict[str, str], dict[str, object]]:
    """Controls for a scenario that was not saved from the page: its plan is kept, its machine must be one of the
    page's."""
    s = resolve(d, name)
    machine = (
        f"chip:{d['chip']}"
        if isinstance(d.get("chip"), str)
        else f"cluster:{d['cluster']}"
        if isinstance(d.get("cluster"), str)
        else None
    )
    if machine is None or not isinstance(d["model"], str):
        raise InputError(
            f"{name}: describes its own {'machine' if machine is None else 'model'}; the page takes names only: use "
            "clustersim run for this file"
        )
    values = {
        "model": str(d["model"]),
        "machine": machine,
        "chips": str(s.cluster.num_chips),
        "tokens": f"{s.tokens:g}",
        "batch": str(s.workload.tokens),
        "seq": str(s.workload.seq),
        "attention": "sparse" if s.model.index_topk else "dense",
        "stack": s.stack.name,
        "precision": s.precision,
    }
    for c in CONTROLS:
        price = s.prices.get(c.key)
        if isinstance(price, Figure):
            values[c.key] = f"{price.value:g}" if price.certain else f"{price.low:g}-{price.high:g}"
        elif price is not None and c.key in BY_KEY:
            values[c.key] = f"{parse(price, c.kind, c.label):g}"
    fixed = {k: getattr(s.plan, k) for k in AXES}
    fixed["stages"] = list(s.plan.stages or ())
    answer(values, fixed, samples=2)
    return values, fixed


def load_upload(name: str, content: bytes) -> tuple[dict[str, str], dict[str, object], str]:
    """As `load`, of a file that came through the browser."""
    if len(content) > MAX_UPLOAD:
        raise InputError(
            f"{name[:80]}: {len(content):,} bytes is more than the limit of {MAX_UPLOAD:,}; give a scenario file"
        )
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / (slug(Path(name).stem) + (".json" if name.endswith(".json") else SUFFIX))
        atomic.write_bytes(path, content)
        try:
            return load(path)
        except InputError as err:
            raise InputError(str(err).replace(str(path), name[:80])) from None


def link(label: str, name: str, content: str | bytes, kind: str) -> str:
    """A link that hands the content over as a file, without a server."""
    data = base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
    return f'<a class="file" download="{escape(name)}" href="data:{kind};base64,{data}">{escape(label)}</a>'


# ------------------------------------------------------------------ the report


def result_of(a: Answer, samples: int = DRAWS) -> dict:
    """The page's answer in the shape of `sim.planner.planner.answer`, ready for a report."""
    q = a.question
    how = (
        "kept"
        if a.fixed
        else "found at once: near the best, not proven to be it (clustersim plan without --set proves it)"
    )
    return {
        "question": q.to_dict(),
        "search": {"looked_at": 1, "evaluated": 1, "too_large": 0, "bounded": 0, "cpu_s": 0.0},
        "winner": dict(a.row),
        "ranked": [dict(a.row)],
        "front": [dict(a.row)],
        "by_schedule": {a.row["schedule"]: dict(a.row)},
        "explanation": [
            sentence(a),
            *(
                f"{label}: moved most by {mover['name']}, from {figure_words(a, key, mover['low'])} to "
                f"{figure_words(a, key, mover['high'])}."
                for key, label, _ in a.results
                if (mover := a.mover(key))
            ),
            f"The plan is {how}.",
            f"The same figures in a terminal: {command(a)}",
        ],
        "assumptions": [*(f"set on the page: {t}" for t in assumptions(a)), *q.stated, *planner_assumptions(q)],
        "facts": facts(q),
        "versions": versions(),
        **run_facts(a.as_events),
        "uncertainty": monte_carlo(a.scenario, samples, workers=1, simulated=a.simulated),
        "controls": dict(a.values),
    }


def report(a: Answer, samples: int = DRAWS) -> dict[str, Path]:
    """Write plan.html, plan.json and plans.csv into a folder of their own; kind → path.

    Raises:
        InputError: the folder cannot be written.
    """
    place = folder() / f"report_{slug(a.name)}"
    page = write(result_of(a, samples), place)
    return {"html": page, "json": place / "plan.json", "csv": place / "plans.csv"}
