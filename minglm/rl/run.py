"""Start or resume an RL run: check, claim the folder, start the workers, run the loop. Torch-free.

runs/NAME/  rl.yaml tokenizer.json config.json      what is run
            checkpoints/ weights/                   minglm/training/checkpoint.py; weights on their way to the rollout
            metrics.csv … summary.json              minglm/rl/log.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minglm import atomic
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError, nearest
from minglm.rl import config as recipes
from minglm.rl import task_registry
from minglm.rl.config import Settings
from minglm.rl.loop import WAIT_S, Loop, Workers
from minglm.rl.messages import Hello, TrainerReady
from minglm.rl.ray_workers import connect
from minglm.rl.rewards import RewardTask
from minglm.rl.supervisor import START_S, Launcher, Supervisor, WorkerHandle
from minglm.rl.transport import InlineWorker, LocalWorker
from minglm.runtime import run_folder
from minglm.training import checkpoint

NOTE = "rl.yaml"
ENGINES = ("local", "inline", "ray")
# Between two starts of one run.
MAY_CHANGE = ("updates", "eval_every", "checkpoint_every", "threads", "stall_s", "max_restarts")


def rl(
    settings: Settings,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    overwrite: bool = False,
    engine: str = "local",
    address: str | None = None,
    task: RewardTask | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run all updates of an RL run, or go on with it. Returns its summary (also in summary.json).

    Args:
        init_from: run or checkpoint folder of the model to start from; not needed to resume.
        overwrite: set the old run aside and start over.
        engine: "local" processes, "inline" (one process, no overlap, exactly repeatable) or "ray" actors.
        address: of a Ray cluster.
        task: default the one that the settings name.
        show: called with one line for each thing that happens.

    Raises:
        InputError: an argument that does not fit, or a run that cannot go on.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: not one of {', '.join(ENGINES)}{nearest(engine, ENGINES)}")
    run_dir = Path(run_dir)
    task = task or task_registry.get(settings.task, settings.tail)
    if overwrite:
        run_folder.set_aside(run_dir, "rl")
    launcher = _launcher(engine, address)
    with run_folder.writing(run_dir, "rl", "minglm rl", NOTE):
        return _run(settings, run_dir, init_from, launcher, task, show)


def _run(
    settings: Settings,
    run_dir: Path,
    init_from: str | Path | None,
    launcher: Launcher,
    task: RewardTask,
    show: Callable[[str], None],
) -> dict[str, Any]:
    resumes = bool(checkpoint.find(run_dir))
    _note(run_dir, settings)
    tokenizer = _tokenizer(run_dir, init_from, resumes)
    supervisor = Supervisor(launcher, settings.stall_s, settings.max_restarts)
    try:
        workers = _start(supervisor, settings, run_dir, init_from, tokenizer.eos)
        atomic.write_json(run_dir / "config.json", workers.ready.hf)
        loop = Loop(settings, run_dir, task, tokenizer, workers, show)
    except BaseException:
        supervisor.shutdown()
        raise
    return loop.run()


def _start(
    supervisor: Supervisor, settings: Settings, run_dir: Path, init_from: str | Path | None, eos: int
) -> Workers:
    """One trainer and the rollout workers, once the trainer has said where it stands."""
    values = settings.to_dict()
    trainer = supervisor.spawn(
        "trainer",
        "minglm.rl.trainer:Trainer",
        {
            "settings": values,
            "run_dir": str(run_dir),
            "init_from": None if init_from is None else str(init_from),
        },
    )
    rollouts = [
        supervisor.spawn(f"rollout{i}", "minglm.rl.worker:RolloutWorker", {"settings": values, "stop": [eos]})
        for i in range(settings.rollout_workers)
    ]
    return Workers(supervisor, trainer, rollouts, _trainer_ready(supervisor, trainer))


def _trainer_ready(supervisor: Supervisor, trainer: WorkerHandle) -> TrainerReady:
    """Wait for the trainer's first report.

    Raises:
        InputError: there is none within `START_S`.
    """

    def ask_again(worker: WorkerHandle, reason: str) -> None:
        if worker is trainer:
            trainer.send(Hello())

    supervisor.on_restart = ask_again
    trainer.send(Hello())
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for _, report in supervisor.listen(WAIT_S):
            if isinstance(report, TrainerReady):
                return report
        supervisor.restart_lost()
    raise InputError(f"the trainer was not ready after {START_S:.0f} s: this machine is too busy; try again")


def _note(run_dir: Path, settings: Settings) -> None:
    """Write what is run into the folder, or refuse: another run is never overwritten by accident."""
    note = run_dir / NOTE
    if note.is_file():
        theirs, ours = Settings.from_dict(recipes.read(note)).to_dict(), settings.to_dict()
        changed = next((k for k in ours if ours[k] != theirs[k] and k not in MAY_CHANGE), None)
        if changed:
            raise InputError(
                f"{run_dir}: made with {changed}={theirs[changed]!r}, now {changed}={ours[changed]!r}; "
                "use --overwrite to start over or another --run"
            )
    atomic.write_text(note, settings.explained(), durable=True)


def _tokenizer(run_dir: Path, init_from: str | Path | None, resumes: bool) -> Tokenizer:
    own = run_dir / "tokenizer.json"
    if not own.is_file() or not resumes:
        if init_from is None:
            raise InputError(
                f"{run_dir}: a new RL run starts from a trained model; give --init-from RUN, or leave it out with a "
                "recipe "
                "that has a warm start"
            )
        if not checkpoint.find(init_from):
            raise InputError(f"--init-from {init_from}: no checkpoint there; give a run folder with a trained model")
        folders = (Path(init_from), Path(init_from).parent, Path(init_from).parent.parent)
        source = next((f / "tokenizer.json" for f in folders if (f / "tokenizer.json").is_file()), None)
        if source is None:
            raise InputError(
                f"--init-from {init_from}: no tokenizer.json beside the checkpoint; copy the one of its training run "
                "there"
            )
        atomic.copy(source, own)
    return Tokenizer.load(own)


def _launcher(engine: str, address: str | None) -> Launcher:
    if engine == "local":
        return LocalWorker
    return InlineWorker if engine == "inline" else connect(address)
