"""`minglm workshop wheelhouse`: pip's commands, what is refused, and (asked for) a whole one that installs offline."""

import os
import subprocess
import sys

import pytest

from minglm import __version__, datafiles
from minglm.course.workshop import wheelhouse
from minglm.errors import InputError


class Pip:
    """Notes what it is asked, makes the file that it would, and fails where it is told to."""

    def __init__(self, folder, fails: str = ""):
        self.folder, self.fails, self.asked = folder, fails, []

    def __call__(self, arguments):
        self.asked.append(arguments)
        if self.fails and arguments[0] == self.fails and ("--no-index" in arguments) == (self.fails == "download"):
            return subprocess.CompletedProcess(
                arguments, 1, "", "WARNING: x\nERROR: No matching distribution for torch\n\n"
            )
        (self.folder / f"package_{len(self.asked)}.whl").write_bytes(b"x")
        return subprocess.CompletedProcess(arguments, 0, "", "")


def test_the_wheel_first_then_its_needs_then_a_resolution_from_the_folder_alone(tmp_path):
    pip = Pip(tmp_path / "w")
    files = wheelhouse.build(tmp_path / "w", ["lab"], "win_amd64", "3.12", run=pip)
    made, got, again = pip.asked
    assert made[0] == "wheel" and made[-1] == str(datafiles.root())
    assert got[-1] == again[-1] == f"minglm[lab]=={__version__}"
    assert "--no-index" in again and "--no-index" not in got
    for arguments in (got, again):  # another machine's wheels can only be taken, not built
        assert {"--platform=win_amd64", "--python-version=3.12", "--only-binary=:all:"} <= set(arguments)
    assert len(files) == 3 and "--no-index --find-links ." in (tmp_path / "w" / "README.md").read_text()
    wheelhouse.build(tmp_path / "w", ["lab"], run=pip)  # again into its own folder
    assert "--only-binary=:all:" not in pip.asked[-1]


@pytest.mark.parametrize("step", ["wheel", "download"])
def test_pips_failure_is_one_line_and_not_called_complete(tmp_path, step):
    with pytest.raises(InputError, match=f"pip {step}: ERROR: No matching distribution for torch"):
        wheelhouse.build(tmp_path / "w", run=Pip(tmp_path / "w", fails=step))


def test_what_is_no_wheelhouse_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    pip = Pip(tmp_path)
    with pytest.raises(InputError, match="no wheelhouse"):
        wheelhouse.build(tmp_path, run=pip)
    with pytest.raises(InputError, match="extra 'train2': not one of train, lab"):
        wheelhouse.build(tmp_path / "w", ["train2"], run=pip)
    assert pip.asked == [] and (tmp_path / "thesis.txt").read_text() == "years"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("MINGLM_COURSE") != "1", reason="asks the package registry: MINGLM_COURSE=1")
def test_a_real_one_installs_without_a_network(tmp_path):
    files = wheelhouse.build(tmp_path / "w", [])
    assert any(f.name.startswith("minglm-") for f in files)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    python = next(p for p in (tmp_path / "v").glob("*/python*") if p.stem == "python")
    install = [python, "-m", "pip", "install", "-q", "--no-index", f"--find-links={tmp_path / 'w'}", "minglm"]
    subprocess.run(install, check=True)
    said = subprocess.run([python, "-m", "sim", "--version"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split() == ["clustersim", __version__]
