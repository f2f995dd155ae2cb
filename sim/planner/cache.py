"""What a search found and what was answered, kept on disk: the same question a second time is answered at once.

A file holds the ranked list of one question, or one whole answer. Its name is a digest of the question and of all that
an answer depends on, the simulator's own sources included, so an old file is never read by a newer program.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import sim
from minglm import atomic, datafiles
from sim.planner.candidate import Candidate
from sim.planner.question import Question
from sim.planner.search import Outcome, RankedPlan

SOURCES = ("base", "spec", "cost", "scenario", "training", "study", "validation", "planner")
FACTS = (
    "chips",
    "clusters",
    "models",
    "measured",
    "published_runs",
    *("stacks.yaml", "fitted.yaml", "currency_and_carbon.yaml", "left_out.yaml", "huggingface_defaults.json"),
)


COUNTS = ("evaluated", "too_large", "bounded", "floor", "beyond", "too_high")


def folder() -> Path:
    """Where found plans are kept; MINGLM_RUNS moves it."""
    return datafiles.runs() / "planner" / "cache"


@functools.cache
def _program() -> str:
    """Digest of the sources and facts that a search depends on."""
    digest, here = hashlib.sha256(), Path(sim.__path__[0])
    places = [here / name for name in SOURCES] + [datafiles.data(name) for name in FACTS]
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def key(q: Question, top_k: int | None) -> str:
    """Names a question: equal ones have one key."""
    about = [repr(x) for x in (q.model, q.cluster, q.workload, q.stack, sorted(q.pinned.items(), key=str))]
    text = json.dumps([_program(), *about, q.precision, q.objective, q.tolerance, top_k])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read(name: str) -> Outcome | None:
    """What was found, or None."""
    try:
        held = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
        best = [
            RankedPlan(Candidate(**{**f["candidate"], "stages": tuple(f["candidate"]["stages"])}), *f["figures"])
            for f in held.pop("best")
        ]
        return Outcome(best, **held)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(name: str, out: Outcome) -> None:
    """Keep what was found; a folder that cannot be written keeps nothing. A search that was stopped is not kept."""
    if out.stopped:
        return
    counts = {k: v for k, v in asdict(out).items() if k in COUNTS}
    best = [{"candidate": f.candidate._asdict(), "figures": [f.step_s, f.memory_bytes, f.tokens]} for f in out.best]
    path = folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, {"best": best, **counts})
    except OSError:
        pass


def answer_key(q: Question, top_k: int, samples: int) -> str:
    """Names a whole answer: the question with its prices, phases and failures, the length of its list, its draws."""
    about = [key(q, top_k), repr(q.document), repr(q.prices), repr(q.stated), samples]
    return "answer-" + hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]


def read_answer(name: str) -> dict | None:
    """The answer that was given before, or None."""
    try:
        held = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and isinstance(held.get("search"), dict) else None


def write_answer(name: str, answer: dict) -> None:
    """Keep an answer; a folder that cannot be written keeps nothing."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder() / f"{name}.json", answer)
    except OSError:
        pass
