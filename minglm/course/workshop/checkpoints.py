"""Results that a notebook can start from, so that nobody has to run all the notebooks before it.

`start_from("sft")` gives a run folder of the trained `mini`: the demo's own (`runs/demo`), else the workshop's
checkpoint, else it is trained here and now, stage by stage, while you watch. `minglm workshop checkpoints` makes the
workshop's: weights and tokenizer only, a manifest with the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from minglm import atomic, datafiles
from minglm.course import notebook
from minglm.errors import InputError, nearest
from minglm.runtime import run_folder, run_lock
from minglm.training import recipe

STAGES = ("pretrain", "long_context", "dsa_warmup", "sparse", "sft")
KEPT = ("pretrain", "long_context", "sparse", "sft")  # what notebooks start from


def demo() -> Path:
    """The demo's folder: where this process's runs are, or, when there is none, where runs are by default."""
    return _made("demo")


def kept() -> Path:
    """The folder of the workshop's checkpoints, found in the same way."""
    return _made("workshop", "checkpoints")


def _made(*parts: str) -> Path:
    own = datafiles.runs(*parts)
    return own if own.exists() else datafiles.default_runs().joinpath(*parts)


def start_from(stage: str) -> Path:
    """A run folder whose model has finished `stage`; trains what is missing. Smoke mode always trains a tiny one.

    Raises:
        InputError: no such stage.
    """
    if stage not in STAGES:
        raise InputError(f"stage {stage!r}: not one of {', '.join(STAGES)}{nearest(stage, STAGES)}")
    if not notebook.SMOKE:
        for folder, word in ((demo(), "trained by the demo"), (kept(), "the workshop's checkpoint")):
            if _whole(folder / stage):
                print(f"starting from {datafiles.shown(folder / stage)}, {word}")
                return folder / stage
    base = notebook.runs("mini")
    from minglm.course.lessons.live import watch  # needs torch, which a finished run does not

    previous = None
    for name in STAGES[: STAGES.index(stage) + 1]:
        run = base / name
        if not _whole(run):
            watch(recipe.load(("ci_tiny_" if notebook.SMOKE else "tiny_") + name), run, init_from=previous, resume=True)
        previous = run
    return base / stage


def _whole(run: Path) -> bool:
    """Whether a run is there and finished: its last checkpoint is at the recipe's last step (or it is the workshop's
    copy).
    """
    from minglm.training import checkpoint  # needs torch, as the runs do

    last = checkpoint.find(run)
    if not last or not (run / "tokenizer.json").is_file():
        return False
    state = json.loads((last[0] / "state.json").read_text(encoding="utf-8"))
    return state.get("workshop") is not None or (
        state["recipe"] is not None and state["step"] >= state["recipe"]["steps"]
    )


def make(folder: Path | None = None, size: str = "mini", source: Path | None = None) -> list[dict]:
    """Train the demo if it is not there, and keep weights and tokenizer of the stages in KEPT. Returns the manifest's
    rows. Older ones are set aside.

    Raises:
        InputError: the folder holds something else.
    """
    from minglm.tools.demo import run_demo  # needs torch, verifying does not

    folder, source = folder or datafiles.runs("workshop", "checkpoints"), source or demo()
    run_folder.refuse_foreign(folder, "checkpoints")  # before the demo, which takes minutes
    if not all(_whole(source / stage) for stage in KEPT):
        run_demo(source, size)
    run_folder.set_aside(folder, "checkpoints")
    with run_folder.writing(folder, "checkpoints", "minglm workshop checkpoints"):
        return _copy(source, folder)


def _copy(demo_folder: Path, folder: Path) -> list[dict]:
    from minglm.training import checkpoint  # needs torch, verifying does not

    for stage in KEPT:
        source, target = checkpoint.latest(demo_folder / stage), folder / stage
        assert source is not None, f"{demo_folder / stage} was found whole"
        target.mkdir(parents=True)
        checkpoint.save(
            target, source.step, source.config, source.model, {}, {"recipe": source.state["recipe"], "workshop": stage}
        )
        atomic.copy(demo_folder / stage / "tokenizer.json", target / "tokenizer.json")
    rows = [
        {"file": p.relative_to(folder).as_posix(), "bytes": p.stat().st_size, "sha256": _sha256(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("manifest.json", run_folder.MANIFEST, *run_lock.NAMES)
    ]
    atomic.write_json(folder / "manifest.json", rows)
    return rows


def verify(folder: Path | None = None) -> list[dict]:
    """The manifest's rows, after comparing every file with its hash.

    Raises:
        InputError: no manifest, or a file that is missing or altered.
    """
    folder = folder or kept()
    try:
        rows = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder}: none made yet; run `minglm workshop checkpoints`") from None
    for row in rows:
        path = folder / row["file"]
        if not path.is_file():
            raise InputError(f"{path}: missing; run `minglm workshop checkpoints` again")
        if _sha256(path) != row["sha256"]:
            raise InputError(
                f"{path}: altered, its hash is not the manifest's; run `minglm workshop checkpoints` again"
            )
    return rows


def report(rows: list[dict], folder: Path) -> str:
    """The manifest as text, one line a file, and how much it is together."""
    lines = [f"{r['bytes']:>12,}  {r['sha256'][:16]}  {r['file']}" for r in rows]
    return "\n".join([*lines, f"{sum(r['bytes'] for r in rows) / 2**20:.1f} MiB in {folder}"])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
