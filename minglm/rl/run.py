"""Start or resume an RL run: check, claim the folder, start the workers, run the loop. Torch-free.

runs/NAME/  rl.yaml tokenizer.json config.json      what is run
            checkpoints/ weights/                   minglm/training/checkpoint.py; weights on their way to the rollout
            metrics.csv … summary.json              minglm/rl/log.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError, nearest
from minglm.rl import config as recipes
from minglm.rl import task_registry
from minglm.rl.config import Settings
from minglm.rl.loop import WAIT_S, Loop
from minglm.rl.supervisor import START_S, Crew
from minglm.rl.transport import InlineWorker, LocalWorker
from minglm.runtime import run_folder
from minglm.training import checkpoint

ENGINES = ("local", "inline", "ray")
MAY_CHANGE = (
    "updates",
    "eval_every",
    "checkpoint_every",
    "threads",
    "stall_s",
    "max_restarts",
)  # between two starts of one run


def rl(
    settings: Settings,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    overwrite: bool = False,
    engine: str = "local",
    address: str | None = None,
    task=None,
    show: Callable[[str], None] = lambda line: None,
) -> dict:
    """Run all updates of an RL run, or go on with it. Returns its summary (also in summary.json).

    Args:
        init_from: run or checkpoint folder of the model to start from; not needed to resume.
        overwrite: set the old run aside and start over. engine: "local" processes, "inline" (one process, no overlap, exactly repeatable) or "ray" actors; address: of a Ray cluster.
        task: an object with problem, reward, train_seed, heldout_seed; default the task that the settings name.
        show: called with one line for each thing that happens.

    Raises:
        InputError: anything given that does not fit, or a run that cannot go on.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: not one of {', '.join(ENGINES)}{nearest(engine, ENGINES)}")
    run_dir = Path(run_dir)
    task = task or task_registry.get(settings.task, settings.tail)
    if overwrite:
        run_folder.set_aside(run_dir, "rl")
    resumes = bool(checkpoint.find(run_dir))
    _claim(run_dir, settings)
    tokenizer = _tokenizer(run_dir, init_from, resumes)
    crew = Crew(_launcher(engine, address), settings.stall_s, settings.max_restarts)
    try:
        trainer = crew.hire(
            "trainer",
            "minglm.rl.trainer:Trainer",
            {
                "settings": settings.to_dict(),
                "run_dir": str(run_dir),
                "init_from": None if init_from is None else str(init_from),
            },
        )
        rollouts = [
            crew.hire(
                f"rollout{i}",
                "minglm.rl.worker:RolloutWorker",
                {"settings": settings.to_dict(), "stop": [tokenizer.eos]},
            )
            for i in range(settings.rollout_workers)
        ]
        ready = _first_words(crew, trainer)
        (run_dir / "config.json").write_text(json.dumps(ready["hf"], indent=1) + "\n", encoding="utf-8")
        loop = Loop(settings, run_dir, task, tokenizer, crew, trainer, rollouts, ready, show)
    except BaseException:
        crew.dismiss()
        raise
    return loop.run()


def _first_words(crew: Crew, trainer) -> dict:
    """Wait, within `START_S`, for the trainer's "ready"."""
    import time

    def again(member, reason):
        if member is trainer:
            trainer.handle.send({"do": "hello"})

    crew.on_loss = again
    trainer.handle.send({"do": "hello"})
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for _, message in crew.listen(WAIT_S):
            if message["got"] == "ready":
                return message
        crew.mend()
    raise InputError(f"the trainer was not ready after {START_S:.0f} s: this machine is too busy; try again")


def _claim(run_dir: Path, settings: Settings) -> None:
    """Make the folder this run's, or refuse: another run is never overwritten by accident."""
    note = run_dir / "rl.yaml"
    if not note.is_file() and run_folder.is_foreign(run_dir, "rl"):
        raise InputError(f"{run_dir}: not empty and not an RL run; give another --run")
    if note.is_file():
        theirs, ours = Settings.from_dict(recipes.read(note)).to_dict(), settings.to_dict()
        odd = next((k for k in ours if ours[k] != theirs[k] and k not in MAY_CHANGE), None)
        if odd:
            raise InputError(
                f"{run_dir}: made with {odd}={theirs[odd]!r}, now {odd}={ours[odd]!r}; use --overwrite to start over or another --run"
            )
    run_folder.claim(run_dir, "rl")
    note.write_text(settings.explained(), encoding="utf-8")


def _tokenizer(run_dir: Path, init_from: str | Path | None, resumes: bool) -> Tokenizer:
    own = run_dir / "tokenizer.json"
    if not own.is_file() or not resumes:
        if init_from is None:
            raise InputError(
                f"{run_dir}: a new RL run starts from a trained model; give --init-from RUN, or leave it out with a recipe that has a warm start"
            )
        if not checkpoint.find(init_from):
            raise InputError(f"--init-from {init_from}: no checkpoint there; give a run folder with a trained model")
        folders = (Path(init_from), Path(init_from).parent, Path(init_from).parent.parent)
        found = next((f / "tokenizer.json" for f in folders if (f / "tokenizer.json").is_file()), None)
        if found is None:
            raise InputError(
                f"--init-from {init_from}: no tokenizer.json beside the checkpoint; copy the one of its training run there"
            )
        shutil.copy(found, own)
    return Tokenizer.load(own)


def _launcher(engine: str, address: str | None) -> Callable:
    if engine == "local":
        return LocalWorker
    if engine == "inline":
        return InlineWorker
    from minglm.rl.ray_workers import connect

    return connect(address)
