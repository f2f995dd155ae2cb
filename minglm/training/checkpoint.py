"""Checkpoints that survive a kill at any moment: safetensors and JSON, written aside, flushed, then renamed into place.

    run/checkpoints/step_00000100/
        model.safetensors      weights, and the router's balance bias
        optimizer.safetensors  Muon momenta, AdamW moments, step count
        state.json             step, RNG, config, recipe, and the SHA-256 of the other files

Several processes write shards of the same tensors in place of the first two (minglm/distributed/checkpoint.py); either
kind can be read here, and resumed by any number of processes.

A folder that carries its final name is complete; a checksum catches what the disk did to it afterwards.
Nothing is pickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minglm import atomic
from minglm.config import ModelConfig
from minglm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2
_FORMAT = "minglm-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory. `step` counts finished steps; it is also the data position."""

    path: Path
    step: int
    config: ModelConfig
    state: dict  # everything else from state.json
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def restore_rng(self) -> None:
        """Put torch's generator back to where it stood."""
        import torch

        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(self.state["torch_rng"])), dtype=torch.uint8))


def save(
    run_dir: Path,
    step: int,
    config: ModelConfig,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    extra: dict | None = None,
    keep: int = KEEP,
) -> Path:
    """Write the checkpoint of `step` finished steps and delete all but the last `keep`. Returns its folder."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = begin(run_dir, step)
    files = {"model.safetensors": model, "optimizer.safetensors": optimizer}
    for name, tensors in files.items():
        # clone: safetensors refuses tensors that share storage, and views would drag their base along
        try:
            with atomic.beside(temporary / name) as place:
                save_file(
                    {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, place, {"format": "pt"}
                )
        except SafetensorError as err:  # a full disk, in the library's words
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"{temporary / name}: cannot be written ({err}); the checkpoint before it is whole: make room and run "
                f"the same command again"
            ) from None
    return commit(temporary, step, config, {name: sha256(temporary / name) for name in files}, extra, keep)


def begin(run_dir: Path, step: int) -> Path:
    """An empty folder to write a checkpoint in, until `commit` gives it its name."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{atomic.PREFIX}*"):  # a kill during an earlier save
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder / f"{atomic.PREFIX}{step:08d}"
    temporary.mkdir()
    return temporary


def commit(
    temporary: Path, step: int, config: ModelConfig, hashes: dict[str, str], extra: dict | None = None, keep: int = KEEP
) -> Path:
    """Add state.json to the files of `hashes` (name → SHA-256), flush all to the disk,
    and give the folder its final name."""
    import torch

    folder = temporary.parent
    final = folder / f"step_{step:08d}"
    state = {
        "format": _FORMAT,
        "step": step,
        "data_position": step,
        "config": config.to_dict(),
        "torch_rng": base64.b64encode(bytes(torch.get_rng_state().tolist())).decode(),
        "sha256": hashes,
        **(extra or {}),
    }
    atomic.write_json(temporary / "config.json", config.to_hf())
    atomic.write_text(temporary / "state.json", _with_own_hash(state))
    atomic.publish(temporary, final)  # same step again: the new one wins, the old one goes
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read(path: Path, tensors: bool = True) -> Checkpoint:
    """Read and verify one checkpoint folder; without `tensors` it is verified only,
    and its weights are left on the disk.

    Raises:
        InputError: names the file that is missing, truncated or altered.
    """
    from safetensors.torch import load_file

    state_path = path / "state.json"
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        if (
            _with_own_hash({k: v for k, v in state.items() if k != "own_sha256"}) != _with_own_hash(state)
            or state["format"] != _FORMAT
        ):
            raise ValueError("its hash does not fit its content")
        config, step, hashes = ModelConfig.from_dict(state["config"]), int(state["step"]), dict(state["sha256"])
    except FileNotFoundError:
        raise InputError(f"{state_path}: missing; give a checkpoint folder or a run folder that holds one") from None
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as err:
        raise InputError(f"{state_path}: damaged ({err}); use an earlier checkpoint") from None
    loaded = {}
    there = {p.name for p in path.glob("*.safetensors")}
    if foreign := (there - set(hashes)) or {n for n in hashes if Path(n).name != n or "\\" in n}:
        raise InputError(
            f"{state_path}: {min(foreign)!r} is not one of this checkpoint's own files; use an earlier checkpoint"
        )
    for name, expected in hashes.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing; use an earlier checkpoint")
        if sha256(file) != expected:
            raise InputError(
                f"{file}: damaged, {file.stat().st_size} bytes do not fit the hash in state.json; use an earlier "
                f"checkpoint"
            )
        if tensors and "processes" not in state:
            loaded[name] = load_file(file)
    if tensors and "processes" in state:  # shards of several processes
        from minglm.training.sharded import assemble  # draws torch; a run is found and named without it

        return Checkpoint(path, step, config, state, *assemble(path))
    return Checkpoint(
        path, step, config, state, loaded.get("model.safetensors", {}), loaded.get("optimizer.safetensors", {})
    )


def find(path: str | Path) -> list[Path]:
    """Checkpoint folders under a run folder (or the folder itself), newest first."""
    path = Path(path)
    if (path / "state.json").is_file():
        return [path]
    return _steps(path / "checkpoints")[::-1]


def _steps(folder: Path) -> list[Path]:
    """Our checkpoints, oldest first: by their exact names, for a copy that somebody keeps beside them is theirs."""
    ours = {int(p.name[5:]): p for p in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name)}
    return [ours[step] for step in sorted(ours) if not ours[step].is_symlink()]


def latest(path: str | Path, warn=None, tensors: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies. A damaged one is named on stderr and the one before it used.

    Returns None when there is no checkpoint at all; raises InputError when there are some and all are damaged.
    """
    if (Path(path) / "quantization.json").is_file():
        raise InputError(
            f"{path}: holds quantised weights, which cannot be trained; give the run that it was made from"
        )
    warn = warn or (lambda line: print(line, file=sys.stderr))
    folders = find(path)
    for folder in folders:
        try:
            return read(folder, tensors)
        except InputError as err:
            warn(f"{err}" if folder == folders[-1] else f"{err}: taking the previous one")
    if folders:
        raise InputError(f"{path}: none of its {len(folders)} checkpoints can be read; start over with --overwrite")
    return None


def _with_own_hash(state: dict) -> str:
    body = {k: v for k, v in state.items() if k != "own_sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "own_sha256": state.get("own_sha256", digest)}, indent=1)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
