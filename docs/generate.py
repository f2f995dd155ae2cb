"""Write what docs and data take from the code: the tree of the architecture page, keys, tables, the rows' JSON Schema.

python docs/generate.py            # writes them
python docs/generate.py --check    # exit 1 when a page is out of step
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

from minglm import atomic
from minglm.course import effects
from sim.base.documents import parse_text
from sim.base.fields import Section
from sim.rollout.fields import CASE
from sim.scenario.fields import PHASE, RUN, SCENARIO
from sim.spec.dimensions import DIMENSIONS
from sim.validation.fields import MEASURED, ROW
from sim.validation.schema import json_schema

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests are not installed with the packages
from tests.mutants.automatic import CORE  # noqa: E402

# The order in which a reader meets the rooms: top first.
ROOMS = {
    "minglm": (
        "cli course tools evals rl serving distributed inference training interop quant model data runtime".split()
    ),
    "sim": (
        "cli dashboard report planner study validation trace rollout training serving scenario cost claims spec base"
    ).split(),
}
LISTED_AS_ONE = ("minglm/course/workshop/checks", "minglm/course/workshop/exercises")  # a file per notebook


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line; a question with the sentence that answers it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)}: has no docstring; the tree needs its first sentence")
    sentences = [
        sentence
        for paragraph in text.split("\n\n")
        for sentence in re.split(r"(?<!et al\.)(?<=[.!?])\s", " ".join(paragraph.split()))
    ]
    return " ".join(sentences[: 2 if sentences[0].endswith("?") else 1]).rstrip(".:")


def folder_lines(folder: Path, indent: str = "") -> list[str]:
    """One line a file, sub-folders after the files."""
    files = sorted(p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py"))
    lines = [f"{indent}{p.name:<24} {first_sentence(p)}" for p in files]
    for sub in sorted(p for p in folder.iterdir() if (p / "__init__.py").is_file()):
        lines.append(f"{indent}{sub.name + '/':<24} {first_sentence(sub / '__init__.py')}")
        if sub.relative_to(ROOT).as_posix() not in LISTED_AS_ONE:
            lines += folder_lines(sub, indent + "  ")
    return lines


def tree() -> str:
    """Every room with its files."""
    out = []
    for package, rooms in ROOMS.items():
        folder = ROOT / package
        missing = {p.name for p in folder.iterdir() if (p / "__init__.py").is_file()} ^ set(rooms)
        if missing:
            raise SystemExit(
                f"docs/generate.py: rooms of {package} that its list and the folder do not share: {missing}"
            )
        out.append(f"### {package}/\n\n```\n" + "\n".join(folder_lines_of_files(folder)) + "\n```\n")
        for room in rooms:
            init = folder / room / "__init__.py"
            out.append(
                f"**`{package}/{room}/`** {first_sentence(init)}.\n\n```\n"
                + "\n".join(folder_lines(folder / room))
                + "\n```\n"
            )
    return "\n".join(out)


def folder_lines_of_files(folder: Path) -> list[str]:
    """The files that lie directly in a package."""
    return [f"{p.name:<24} {first_sentence(p)}" for p in sorted(folder.glob("*.py")) if p.name not in ("__main__.py",)]


def data_table() -> str:
    """A row for each file and folder of data/: the first comment or sentence that it carries, and who reads it."""
    readers = {p: p.read_text(encoding="utf-8") for package in ROOMS for p in sorted((ROOT / package).rglob("*.py"))}
    lines = ["| in `data/` | what | read by |", "|---|---|---|"]
    for path in sorted((ROOT / "data").iterdir()):
        if path.name in ("README.md", "figures"):
            continue
        what = DATA[path.name]
        names = [
            f"`{p.relative_to(ROOT).as_posix()}`"
            for p, text in readers.items()
            if re.search(rf'(?:data|catalogue)\(\s*"{re.escape(path.name)}"', text)
        ]
        lines.append(f"| `{path.name}{'/' if path.is_dir() else ''}` | {what} | {', '.join(names[:4]) or '–'} |")
    return "\n".join(lines) + "\n"


DATA = {
    "chips": "accelerators: dense peaks, memory, power, prices, measured matmuls, failure rate",
    "claims.yaml": "what one launch article says, claim by claim",
    "clusters": "nodes and networks, tier by tier from the inside out",
    "fitted.yaml": "the long-run speed of each chip family, fitted on calibration rows",
    "huggingface_defaults.json": "what a published config.json may leave out: the defaults of its class",
    "left_out.yaml": "errors of measured runs with their software stack left out, by kind of question",
    "measured": "measured kernels and collectives by shape and chip, with their licences",
    "models": "model shapes: Hugging Face `config.json`, or plain dimensions in YAML",
    "currency_and_carbon.yaml": "what a cluster costs beside its chips: power, staff, overheads",
    "published_runs": "measured training runs, with a JSON Schema for your own",
    "recipes": "training stages of the toy; RL in `rl/`, the speedrun's entries and the capstone's designs in folders",
    "reference": "recorded results of our own long runs and benches, with their seeds",
    "rollouts": "published rollout figures",
    "scaling_laws.yaml": "published fits of loss over size and tokens",
    "scenarios": "questions: model, cluster, plan, batch, tokens, prices, what-ifs, assumptions",
    "serving": "published serving figures, measured engines, and the constants of inference engines",
    "stacks.yaml": "software releases for training: host time, fusion, overlap",
}


def key_tables() -> str:
    """The tables of fields that read scenarios, published rows and models."""
    sections = [
        ("A scenario", SCENARIO),
        *((f"`{one.name}` of a scenario", one.section) for one in SCENARIO.fields if one.section is not None),
        ("A phase", PHASE),
        (
            "A published row: beside the keys of a run",
            Section("row", tuple(f for f in ROW.fields if f.name not in RUN)),
        ),
        ("`measured` of a row", MEASURED),
        ("Plain dimensions of a model", DIMENSIONS),
    ]
    return "\n".join(f"## {title}\n\n{section.markdown()}" for title, section in sections)


GALLERY = {
    "model": "Configs of models, for the simulator",
    "toy": "Configs for the toy (`minglm import-hf`)",
    "launch": "Launches of other tools (`clustersim import-args`)",
    "scenario": "Scenarios from many editors",
    "memory": "Memory",
    "rows": "Measured runs",
    "predicted": "Measured runs, predicted",
    "answered": "Measured runs, and between which seconds a step they are expected",
    "campaign": "Campaigns and checkpoints",
    "table": "Tables from spreadsheets",
    "serving": "Serving scenarios",
    "served": "What a serving engine holds",
    "rollouts": "Rollout cases",
    "trace": "Traces",
    "profile": "Profiles of a device",
}


def gallery() -> str:
    """A table of the gallery's inputs for each kind of file."""
    entries = parse_text((ROOT / "tests/gallery/index.yaml").read_text(encoding="utf-8"), "tests/gallery/index.yaml")
    out = [f"{len(entries)} inputs.\n"]  # type: ignore[arg-type]  # a list
    assert {one["reader"] for one in entries} == set(GALLERY)  # type: ignore[index]  # a list of mappings
    for reader, title in GALLERY.items():
        out.append(f"\n## {title}\n\n| what | file | right | source |\n|---|---|---|---|")
        for one in entries:  # type: ignore[attr-defined]
            if one["reader"] != reader:
                continue
            right = ", ".join(f"{k} {_shown(v)}" for k, v in one["right"].items() if k != "within")
            said = one["right"].get("refused")
            cells = (one["what"], f"`{one['file']}`", f"refused: {said}" if said else right, one["source"])
            out.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(out) + "\n"


def mutation_score() -> str:
    """Changes seen by file, then those that live, with the reason where one was judged."""
    with (ROOT / "tests/mutants/log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (ROOT / "tests/mutants/judged.csv").open(encoding="utf-8", newline="") as file:
        why = {(one["file"], one["change"]): one["why"] for one in csv.DictReader(file)}
    seen, tried = Counter(r["file"] for r in rows if r["seen"] == "yes"), Counter(r["file"] for r in rows)
    share = sum(seen.values()) / len(rows)
    out = [f"{sum(seen.values())} of {len(rows)} seen ({share:.0%}).\n", "| file | seen | tried |", "|---|---|---|"]
    out += [f"| `{file}` | {seen[file]} | {count} |" for file, count in tried.items()]
    if untried := [f"`{file}`" for file in CORE if file not in tried]:
        out.append(f"\nOf the sample and not tried yet: {', '.join(untried)}.")
    out += ["\n## What lives\n", "| file | line | change | why |", "|---|---|---|---|"]
    for row in rows:
        if row["seen"] == "no":
            change = row["change"].replace("|", "\\|")
            out.append(
                f"| `{row['file']}` | {row['line']} | `{change}` | {why.get((row['file'], row['change']), '')} |"
            )
    return "\n".join(out) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return "{measured:g} s (predicted {predicted:g}, from {low:g} to {high:g})".format(**value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else str(value).lower() if isinstance(value, bool) else str(value)


PAGES = {
    "docs/architecture.md": ("tree", tree),
    "docs/keys.md": ("keys", key_tables),
    "docs/what_we_read.md": ("gallery", gallery),
    "docs/mutation_score.md": ("score", mutation_score),
    "docs/effects.md": ("effects", effects.page),
    "data/rollouts/README.md": ("keys", CASE.markdown),
    "data/README.md": ("files", data_table),
}


def between(text: str, mark: str, new: str, page: str) -> str:
    """The page with what stands between its marks replaced."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"docs/generate.py: {page} lacks {begin} … {end}; put the marks back")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{new}{end}{rest.split(end, 1)[1]}"


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or say which are out of step."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    stale = []
    for page, (mark, make) in PAGES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = between(text, mark, make(), page)
        if new != text:
            stale.append(page)
            if not check:
                atomic.write_text(path, new)
    schema = ROOT / "data/published_runs/schema.json"
    new = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if new != schema.read_text(encoding="utf-8"):
        stale.append(schema.relative_to(ROOT).as_posix())
        if not check:
            atomic.write_text(schema, new)
    for page in stale:
        print(f"{page}: {'out of step; python docs/generate.py writes it' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
