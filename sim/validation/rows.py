"""A published row (`data/published_runs/schema.json`) → the run that predicts it, beside what was measured.

The run is built by `sim.scenario.build`, as a scenario's is; each default that was used is named in `assumptions`. What
a source leaves open is chosen so that the run fits its chips: recompute none where that fits, else full. TFLOPS and MFU
count the causal half of attention where the source does not say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.base.fields import located, shorten
from sim.base.row_kinds import HOLDOUT, UNSUPPORTED, row_kind
from sim.scenario.build import TRAINED_PRECISIONS, Run, build_run, read_run
from sim.validation.fields import QUANTITIES, ROW


@dataclass(frozen=True)
class MeasuredRow:
    """A published run that can be predicted. `kind`: calibration or holdout.

    measured: in the unit of `quantity` (one of `sim.validation.fields.QUANTITIES`). flops, peak_flops: what a TFLOPS or
    MFU figure counts, and the FLOP/s that an MFU divides by.
    """

    id: str
    kind: str
    run: Run
    quantity: str
    measured: float
    flops: str = ""
    peak_flops: float | None = None
    assumptions: tuple[str, ...] = ()
    source: str = ""

    @property
    def chip(self) -> str:
        """Name of the chip that it ran on."""
        return self.run.cluster.chip.name


@dataclass(frozen=True)
class UnsupportedRow:
    """A published run that is shown and not scored, with the reason. `quantity` is empty where none is given."""

    id: str
    reason: str
    quantity: str = ""
    measured: float = 0.0
    assumptions: tuple[str, ...] = ()
    source: str = ""
    kind: str = UNSUPPORTED


def read_rows(paths: Iterable[str | Path] | None = None) -> list[MeasuredRow | UnsupportedRow]:
    """Rows of YAML files in the schema; all of data/published_runs without `paths`.

    A row that cannot be read is unsupported, with what is wrong with it; it does not stop the others.

    Raises:
        InputError: a file that cannot be read, or what is wrong with its first bad row where no row is good.
    """
    files = list(datafiles.catalogue("published_runs", ".yaml").values()) if paths is None else [Path(p) for p in paths]
    rows: list[MeasuredRow | UnsupportedRow] = []
    for file in files:
        document = read_document(file)
        entries = document.get("rows") if isinstance(document, Mapping) else document
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{file}: has no list 'rows'; see {datafiles.where('published_runs', 'schema.json')}")
        defaults = document.get("defaults") or {} if isinstance(document, Mapping) else {}
        defaults = ROW.canonical(defaults, f"{file}: defaults")
        of_file: list[MeasuredRow | UnsupportedRow] = []
        first, bad = None, 0
        for number, entry in enumerate(entries, 1):
            try:
                of_file.append(
                    parse({**defaults, **_named(entry, number)} if isinstance(entry, Mapping) else entry, number)
                )
            except InputError as error:
                first, bad = first or error, bad + 1
                name = entry.get("id", entry.get("name")) if isinstance(entry, Mapping) else None
                of_file.append(UnsupportedRow(str(name or f"row {number}"), f"cannot be read: {error}"))
        if first and bad == len(of_file):
            raise first
        rows += of_file
    return rows


def _named(entry: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row under the table's own names, so that it overrides a default by another."""
    return ROW.canonical(entry, f"row {entry.get('id', entry.get('name', number))}")


def parse(raw: object, number: int = 0) -> MeasuredRow | UnsupportedRow:
    """One mapping of the schema as a row; `number` names one without an id.

    Raises:
        InputError: what is wrong with the row, in one line that names it.
    """
    if not isinstance(raw, Mapping):
        schema = datafiles.where("published_runs", "schema.json")
        raise InputError(f"row {number}: {shorten(raw)} is not a mapping; see {schema}")
    where = f"row {raw.get('id', raw.get('name', number))}"
    values = ROW.read(raw, where)
    with located(where):
        return _row(values, str(values.get("id", where)))


def _row(values: Mapping[str, Any], name: str) -> MeasuredRow | UnsupportedRow:
    kind, measured = row_kind(values.get("kind", HOLDOUT)), values.get("measured", {})
    assumed, source = tuple(values.get("assumed", ())), values.get("source", "")
    quantity = next((one for one in QUANTITIES if one in measured), "")
    value = measured.get(quantity, 0.0)
    if quantity and not value > 0:
        raise InputError(f"measured.{quantity}={value:g}: must be more than 0")
    if kind == UNSUPPORTED:
        return UnsupportedRow(name, values.get("reason", "not complete"), quantity, value, assumed, source)
    if not quantity:
        raise InputError(f"measured has none of {', '.join(QUANTITIES)}; give the one that was measured")
    precision = values.get("precision", "bf16")
    if precision not in TRAINED_PRECISIONS:
        return UnsupportedRow(name, f"training in {precision} is not simulated", quantity, value, assumed, source)
    run = build_run(read_run(values), completed=True)
    notes = [*assumed, *run.defaults_used]
    flops, peak_flops = measured.get("flops", ""), None
    if quantity in ("tflops_per_chip", "mfu") and not flops:
        flops = "model"
        notes.append("FLOPs count the causal half of attention")
    if quantity == "mfu":
        peak_flops = measured["peak_tflops"] * 1e12 if "peak_tflops" in measured else None
        if peak_flops is None:
            peak_flops = run.cluster.chip.peak("bf16").value
            notes.append(f"MFU against {peak_flops / 1e12:.0f} TFLOPS")
    return MeasuredRow(name, kind, run, quantity, value, flops, peak_flops, tuple(notes), source)
