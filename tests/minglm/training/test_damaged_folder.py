"""A run folder that a disk damaged, file by file: the same command goes on, or says in one line what to do."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
from minglm.cli.main import main

pytestmark = pytest.mark.slow
BYTES = {"bad bytes": b"\xff\xfe\x00\x81", "nothing": b"", "half of it": None, "another JSON": b"[1]\n"}


def command(run: Path, steps: int) -> list[str]:
    keys = (f"steps={steps}", "checkpoint_every=2", "val_every=2", "seq_len=32", "batch_size=2")
    sets = (x for key in keys for x in ("--set", key))
    return ["train", "ci_pretrain", "--json", "--device", "cpu", "--run", str(run), *sets]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was stopped in the middle: of its three steps one checkpoint's are done."""
    place = tmp_path_factory.mktemp("damaged")
    assert main(command(place / "run", 3)) == 0
    shutil.rmtree(place / "run" / "checkpoints" / "step_00000003")
    return place


NAMES = ("recipe.yaml", "minglm-run.json", "metrics.csv", "expert_load.csv", "tokenizer.json", "config.json")
SHARED = ("versions.json", "data/*/done.json", "data/*/train.json", "data/*/train.bin", "data/*/corpus.json")


@pytest.mark.parametrize("damage", BYTES)
@pytest.mark.parametrize("name", (*NAMES, *SHARED, "checkpoints/*/state.json", "checkpoints/*/model.safetensors"))
def test_no_damage_is_a_traceback(half, tmp_path, name, damage, capsys):
    place = shutil.copytree(half, tmp_path / "copy")
    found = [*(place / "run").glob(name), *place.glob(name)]
    assert len(found) == 1
    content = found[0].read_bytes()
    found[0].write_bytes(content[: len(content) // 2] if BYTES[damage] is None else BYTES[damage])
    capsys.readouterr()
    code = main(command(place / "run", 3))
    said = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in said
    if code == 2:
        lines = said.splitlines()  # a damaged checkpoint, and that there is no other, are two
        assert 1 <= len(lines) <= 2 and found[0].parent.name in said, said


def test_a_leftover_of_a_full_disk_does_not_unmake_a_run(half, tmp_path, capsys):
    place = shutil.copytree(half, tmp_path / "copy")
    for name in ("recipe.yaml.tmp", ".writing_99999999-ab"):
        (place / "run" / name).write_text("ha")
    assert main(command(place / "run", 3)) == 0
    fresh = tmp_path / "fresh" / "run"
    fresh.mkdir(parents=True)
    (fresh / "recipe.yaml.tmp").write_text("ha")
    assert main(command(fresh, 2)) == 0


def test_a_run_behind_a_link_goes_on_there(half, tmp_path, capsys):
    place = shutil.copytree(half, tmp_path / "copy")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "run"
    link.symlink_to(place / "run", target_is_directory=True)
    assert main(command(link, 3)) == 0
    assert link.is_symlink() and (place / "run" / "checkpoints" / "step_00000003").is_dir()
    assert main([*command(link, 3), "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert "is a link" in err and (place / "run" / "metrics.csv").is_file()
    nowhere = tmp_path / "links" / "nowhere"
    nowhere.symlink_to(tmp_path / "missing")
    assert main(command(nowhere, 3)) == 2 and "broken link" in capsys.readouterr().err
