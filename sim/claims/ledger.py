"""The claims ledger: every claim of a launch article, held against a computation or its sources, with a verdict.

`data/claims.yaml` holds the entries, the other files of this room the computations, `rules.py` the rules. Reading the
file needs PyYAML; nothing else here does.

    clustersim claims               the table, recomputed
    clustersim claims --id tokens   one claim with its reasons and sources
    clustersim claims --json        everything, for machines
"""

from __future__ import annotations

import datetime
import importlib
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from sim.claims.rules import SAYS, STRENGTHS, VERDICTS, Answer, judge

KINDS = ("architecture", "hardware", "training", "benchmark", "product", "business")
_REQUIRED = {"id", "kind", "text", "value", "unit", "computation", "rule", "verdict", "why", "sources"}


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger. `verdict` is the expected one; `judged()` derives it."""

    id: str
    kind: str
    text: str
    value: object
    unit: str
    computation: str | None
    args: Mapping
    rule: Mapping
    verdict: str
    why: str
    sources: tuple[Mapping, ...]

    def answer(self) -> Answer | None:
        """Run the named computation, or None when the claim has none."""
        if self.computation is None:
            return None
        module, _, name = self.computation.rpartition(".")
        if not module.startswith("sim.claims."):
            raise InputError(
                f"claim {self.id}: computation {self.computation!r} is not in a claims module; "
                "name a function of one of sim.claims"
            )
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise InputError(
                f"claim {self.id}: computation {self.computation!r} does not exist; "
                "correct the name in data/claims.yaml"
            ) from None
        return function(**self.args)

    def judged(self, answer: Answer | None) -> str:
        """The verdict that this claim's rule gives on an answer."""
        return judge(self.value, self.rule, answer, self.sources)


def load(path: str | Path | None = None) -> list[Claim]:
    """The entries of a ledger (default data/claims.yaml), checked: known kinds, verdicts and sources, no id twice.

    Raises:
        InputError: the file is missing or an entry breaks a rule; the message names the entry.
    """
    import yaml

    path = Path(path or datafiles.data("claims.yaml"))
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the ledger is {datafiles.where('claims.yaml')}") from None
    except yaml.YAMLError as err:
        raise InputError(f"{path}: not valid YAML ({str(err).splitlines()[0]}); correct the file") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("claims"), list) or not isinstance(raw.get("sources"), dict):
        raise InputError(f"{path}: needs a mapping with `sources` and `claims`; see {datafiles.where('claims.yaml')}")
    for name, source in raw["sources"].items():
        if source.get("strength") not in STRENGTHS:
            raise InputError(f"source {name}: strength {source.get('strength')!r} is not one of {', '.join(STRENGTHS)}")
    claims = [_claim(entry, raw["sources"]) for entry in raw["claims"]]
    for name, n in Counter(c.id for c in claims).items():
        if n > 1:
            raise InputError(f"claim {name}: listed {n} times; give each claim its own id")
    return claims


def _claim(entry: Mapping, known: Mapping) -> Claim:
    name = entry.get("id", "without an id")
    if missing := _REQUIRED - set(entry):
        raise InputError(f"claim {name}: lacks {', '.join(sorted(missing))}; every entry has all keys")
    if unknown := set(entry) - _REQUIRED - {"args"}:
        key = min(unknown)
        raise InputError(f"claim {name}: {key!r} is not a key{nearest(key, _REQUIRED)}; remove it")
    for key, allowed in (("kind", KINDS), ("verdict", VERDICTS)):
        if entry[key] not in allowed:
            raise InputError(
                f"claim {name}: {key} {entry[key]!r} is not one of {', '.join(allowed)}{nearest(entry[key], allowed)}"
            )
    sources = []
    for source, says, *place in entry["sources"]:
        if source not in known:
            raise InputError(f"claim {name}: source {source!r} is not in the list{nearest(source, known)}")
        if says not in SAYS:
            raise InputError(f"claim {name}: source {source} says {says!r}, which is not one of {', '.join(SAYS)}")
        sources.append({"source": source, "says": says, "at": place[0] if place else "", **known[source]})
    return Claim(**{k: entry[k] for k in _REQUIRED - {"sources"}}, args=entry.get("args") or {}, sources=tuple(sources))


def plain(x):
    """A value as JSON can hold it: fractions as numbers, dates as text, pairs as lists."""
    if isinstance(x, Fraction):
        return x.numerator if x.denominator == 1 else float(x)
    if isinstance(x, datetime.date):
        return x.isoformat()
    if isinstance(x, Mapping):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x


def run(path: str | Path | None = None, only: str | None = None) -> dict:
    """Recompute the ledger.

    Returns:
        `claims`: one mapping per claim (id, text, kind, value, unit, computation, computed, computed_unit, detail,
        verdict, expected, follows, why, sources); `verdicts`: how many of each; `computed`: how many have a
        computation;
        `all_follow`: whether every verdict is the expected one; `seconds`.
    """
    start, claims = time.perf_counter(), load(path)
    if only is not None:
        known = [c.id for c in claims]
        if only not in known:
            raise InputError(
                f"claim id {only!r}: not in the ledger{nearest(only, known)}; `clustersim claims` lists them"
            )
        claims = [c for c in claims if c.id == only]
    rows = []
    for claim in claims:
        answer = claim.answer()
        verdict = claim.judged(answer)
        rows.append(
            {
                "id": claim.id,
                "text": claim.text,
                "kind": claim.kind,
                "value": plain(claim.value),
                "unit": claim.unit,
                "computation": claim.computation,
                "computed": plain(answer.value) if answer else None,
                "computed_unit": answer.unit if answer else "",
                "detail": plain(answer.detail) if answer else {},
                "verdict": verdict,
                "expected": claim.verdict,
                "follows": verdict == claim.verdict,
                "why": claim.why,
                "sources": [dict(s) for s in claim.sources],
            }
        )
    counts = Counter(row["verdict"] for row in rows)
    return {
        "claims": rows,
        "verdicts": {v: counts[v] for v in VERDICTS},
        "computed": sum(r["computation"] is not None for r in rows),
        "all_follow": all(r["follows"] for r in rows),
        "seconds": time.perf_counter() - start,
    }


# ------------------------------------------------------------------ for people


def show_value(x) -> str:
    """A number as a person reads it: no long tails, thousands grouped, a pair as a range."""
    if x is None:
        return "–"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, (list, tuple)):
        return " to ".join(show_value(v) for v in x)
    if isinstance(x, Fraction):
        x = plain(x)
    if isinstance(x, int):
        return f"{x:,}" if abs(x) >= 10_000 else str(x)
    if isinstance(x, float):
        return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"
    return str(x)


def format_table(result: Mapping, width: int = 118) -> str:
    """The ledger as a table, one line a claim, with the counts below."""
    ids = max(len(r["id"]) for r in result["claims"])
    verdicts = max(map(len, VERDICTS))
    lines = [f"{'claim':<{ids}}  {'verdict':<{verdicts}}  {'claimed':>14}  {'computed':>18}  of", "-" * width]
    kind = None
    for row in sorted(result["claims"], key=lambda r: KINDS.index(r["kind"])):
        if row["kind"] != kind:
            kind = row["kind"]
            lines.append(f"[{kind}]")
        mark = "" if row["follows"] else f"   ← the ledger says: {row['expected']}"
        line = (
            f"{row['id']:<{ids}}  {row['verdict']:<{verdicts}}  {_short(show_value(row['value']), 14):>14}  "
            f"{_short(show_value(row['computed']), 18):>18}  {row['computed_unit'] or row['unit']}"
        )
        lines.append(_short(line, width) + mark)
    n = len(result["claims"])
    lines += [
        "-" * width,
        "; ".join(f"{count} {verdict}" for verdict, count in result["verdicts"].items() if count),
        f"{n} claims, {result['computed']} with a computation ({100 * result['computed'] // n}%), "
        f"recomputed in {result['seconds']:.1f} s",
    ]
    return "\n".join(lines)


def format_one(row: Mapping, width: int = 100) -> str:
    """One claim with its answer, its reason and its sources."""
    lines = [f"{row['id']}: {row['text']}", f"  claimed   {show_value(row['value'])} {row['unit']}".rstrip()]
    if row["computation"]:
        lines.append(f"  computed  {show_value(row['computed'])} {row['computed_unit']}   ({row['computation']})")
        lines += [f"            {key.replace('_', ' ')}: {show_value(value)}" for key, value in row["detail"].items()]
    lines.append(f"  verdict   {row['verdict']}: {VERDICTS[row['verdict']]}")
    lines.append(textwrap.fill(row["why"], width, initial_indent="  why       ", subsequent_indent=" " * 12))
    for s in row["sources"]:
        where = f", {s['at']}" if s["at"] else ""
        lines.append(
            textwrap.fill(
                f"{s['says']}{where}: {s['title']}, {s['address']} ({s['strength']})",
                width,
                initial_indent="  source    ",
                subsequent_indent=" " * 12,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def format_markdown(rows: list[Mapping], computed: bool = True) -> str:
    """Claims as a Markdown table: what is claimed, what came out, the verdict and why."""
    head = ["claim", "claimed"] + ["computed here"] * computed + ["verdict", "why"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        claimed = f"{show_value(row['value'])} {row['unit']}".strip()
        unit = f"({row['computed_unit']})" if isinstance(row["computed"], bool) else row["computed_unit"]
        out = [f"{show_value(row['computed'])} {unit}".strip() if row["computation"] else "–"] * computed
        lines.append("| " + " | ".join([row["text"], claimed, *out, f"**{row['verdict']}**", row["why"]]) + " |")
    return "\n".join(lines).replace("$", "\\$")


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
