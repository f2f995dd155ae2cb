"""Checkpoints: complete or absent, damage noticed file by file, the last two kept."""

import json
import os
from pathlib import Path

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference import load
from minglm.training import checkpoint

CONFIG = ModelConfig.named("nano")


def write(run, step, value=1.0, keep=2):
    tied = torch.full((4, 4), value)
    return checkpoint.save(
        run,
        step,
        CONFIG,
        {"w": tied, "view": tied[:2], "count": torch.tensor([step])},
        {"m": torch.zeros(3)},
        {"note": "x"},
        keep,
    )


def test_round_trip(tmp_path):
    torch.manual_seed(5)
    write(tmp_path, 7, 2.5)
    expected = torch.rand(3)
    found = checkpoint.latest(tmp_path)
    assert (
        found.step == 7 and found.config == CONFIG and found.state["note"] == "x" and found.state["data_position"] == 7
    )
    assert torch.equal(found.model["w"], torch.full((4, 4), 2.5)) and torch.equal(
        found.model["view"], torch.full((2, 4), 2.5)
    )
    found.restore_rng()
    assert torch.equal(torch.rand(3), expected)


def test_last_two_are_kept_and_leftovers_of_a_kill_go(tmp_path):
    (tmp_path / "checkpoints" / ".writing_00000002").mkdir(parents=True)
    for step in (2, 4, 6):
        write(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    write(tmp_path, 6, 9.0)
    assert float(checkpoint.latest(tmp_path).model["w"][0, 0]) == 9.0


@pytest.mark.parametrize(
    "name, damage",
    [
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1])),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f")),
        ("optimizer.safetensors", lambda p: p.unlink()),
        ("state.json", lambda p: p.write_text(p.read_text()[:-20])),
        ("state.json", lambda p: p.write_text(p.read_text().replace('"step": 4', '"step": 3'))),
        ("state.json", lambda p: p.unlink()),
    ],
)
def test_damage_is_named_and_the_previous_one_used(tmp_path, name, damage):
    write(tmp_path, 2, 2.0), write(tmp_path, 4, 4.0)
    damage(tmp_path / "checkpoints" / "step_00000004" / name)
    lines = []
    found = checkpoint.latest(tmp_path, lines.append)
    assert (
        found.step == 2 and len(lines) == 1 and name in lines[0] and "previous one" in lines[0] and "\n" not in lines[0]
    )
    damage(tmp_path / "checkpoints" / "step_00000002" / name) if "replace" not in str(
        damage.__code__.co_names
    ) or name != "state.json" else (tmp_path / "checkpoints" / "step_00000002" / name).write_text("{}")
    with pytest.raises(InputError, match="none of its 2 checkpoints"):
        checkpoint.latest(tmp_path, lines.append)


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(InputError, match="no checkpoint here"):
        load.load_model(tmp_path)
    with pytest.raises(InputError, match="missing"):
        checkpoint.read(tmp_path)


def test_config_beside_the_weights_is_hugging_face_readable(tmp_path):
    folder = write(tmp_path, 1)
    assert ModelConfig.from_hf(folder) == CONFIG
    assert json.loads((folder / "config.json").read_text())["model_type"] == "glm_moe_dsa"


def test_nothing_is_pickled(tmp_path):
    assert {p.suffix for p in write(tmp_path, 1).iterdir()} == {".json", ".safetensors"}


def test_everything_is_on_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    """fsync of every file in it and of the folder itself, then the rename, then fsync of the folder above: in any other
    order a power cut can leave a checkpoint that looks whole and is not."""
    log, sync, replace = [], os.fsync, os.replace

    def recorded_sync(handle):
        log.append(("sync", os.fstat(handle).st_ino, os.fstat(handle).st_size))
        sync(handle)

    def recorded_replace(source, target):
        inside = {p.stat().st_ino: p.stat().st_size for p in Path(source).iterdir()} if Path(source).is_dir() else None
        log.append(("rename", Path(source).stat().st_ino, inside, Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync), monkeypatch.setattr(os, "replace", recorded_replace)
    folder = write(tmp_path, 3)
    at = next(i for i, entry in enumerate(log) if entry[0] == "rename" and entry[3] == folder)
    _, itself, inside, _ = log[at]
    before = {entry[1]: entry[2] for entry in log[:at] if entry[0] == "sync"}
    assert len(inside) == len(list(folder.iterdir())) >= 3
    assert inside.items() <= before.items(), "every file, at its full length"
    assert itself in before, "and the folder, whose entries are their names"
    assert folder.parent.stat().st_ino in {entry[1] for entry in log[at:] if entry[0] == "sync"}
