"""Programs and their terminal: any encoding, a reader that has gone, streams that are closed or full."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minglm.runtime import terminal

ROOT = Path(__file__).resolve().parents[3]
SIGNS = "\\u2014 \\u2026 \\u2713 \\u674e \\U0001f600"  # dash, ellipsis, tick, a Chinese sign, an emoji
SPEAK = f"""
import sys
from minglm.runtime.terminal import guard
def main():
    print("out {SIGNS}"); print("err {SIGNS}", file=sys.stderr)
    from tqdm import tqdm
    for _ in tqdm(range(2), desc="bar {SIGNS}"): pass
    return 0
sys.exit(guard(main))
"""


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, timeout=120, **options)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8", "cp1252:strict"])
def test_any_encoding_prints_with_replaced_signs(encoding):
    done = python("-c", SPEAK, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    # the independent value: Python's own codec, told to replace
    expected = ast.literal_eval(f"'{SIGNS}'").encode(encoding.partition(":")[0], "replace")
    assert done.stdout.split(None, 1)[1].strip() == expected and expected in done.stderr
    assert b"bar " + expected in done.stderr and b"2/2" in done.stderr


def test_a_child_takes_any_text_too():
    child = "import subprocess, sys; from minglm.runtime.terminal import guard; guard(lambda: subprocess.call([" + (
        f"sys.executable, '-c', \"print('{SIGNS}')\"]))"
    )
    done = python("-c", child, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"Traceback" not in done.stderr and done.stdout.strip() == b"? ? ? ? ?"


@pytest.mark.parametrize("which", ["stdout", "stderr", "both"])
@pytest.mark.parametrize(
    "command", [["sim", "claims"], ["minglm", "--help"], ["sim", "nosuch"], ["minglm.serving.load_test", "--help"]]
)
def test_a_reader_that_has_gone_is_met_with_silence(command, which):
    read, write = os.pipe()
    os.close(read)
    streams = {name: write if which in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr")}
    done = python("-m", *command, **streams)
    os.close(write)
    assert done.returncode in ((2,) if "nosuch" in command else (0, 141))
    assert b"Exception ignored" not in (done.stderr or b"") and b"Traceback" not in (done.stderr or b"")


def test_work_that_a_closed_pipe_cuts_off_has_not_ended_well():
    program = "from minglm.runtime.terminal import guard; import sys\ndef main():\n for i in range(10**6): print(i)\n"
    program += " print('done', file=sys.stderr); return 0\nsys.exit(guard(main))"
    read, write = os.pipe()
    os.close(read)
    done = python("-c", program, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_a_failure(capsys):
    def main():
        raise BrokenPipeError(32, "Broken pipe")  # of a worker, say

    assert terminal.guard(main) == 1 and capsys.readouterr().err.startswith("failed: BrokenPipeError")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_on_a_full_disk_is_a_failure_in_one_line():
    with open("/dev/full", "w") as full:
        done = python("-m", "sim", "claims", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams")
def test_streams_closed_before_the_start():
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -m minglm doctor --quick >&- 2>&-"], cwd=ROOT)
    assert done.returncode in (0, 1)


def test_errors_of_the_system_are_bad_input_only_where_a_path_is_wrong(tmp_path, capsys):
    def missing():
        return open(tmp_path / "none" / "file")

    def full():
        raise OSError(28, "No space left on device", "a/file")

    def large():
        raise MemoryError

    for act, code, words in ((missing, 2, "none"), (full, 1, "a/file: No space"), (large, 1, "not enough memory")):
        assert terminal.guard(act) == code
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_an_argument_that_is_not_utf_8_is_refused():
    for module in ("minglm", "sim"):
        done = python("-m", module, "generate", b"bad \xff byte", capture_output=True)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"UTF-8" in done.stderr


@pytest.mark.parametrize("module, name", [("minglm", "minglm"), ("sim", "clustersim")])
def test_version(module, name):
    from minglm import __version__

    done = python("-m", module, "--version", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{name} {__version__}\n")


def test_every_program_of_the_repository_runs_under_the_guard():
    """`python -m` of a module, too: who ends with sys.exit(main()) ends with guard, save those without a terminal."""
    bare = {"minglm/rl/sandbox_child.py"}  # stdlib only: it runs what nobody has read
    framed = {"minglm/__main__.py", "minglm/cli/main.py", "sim/__main__.py", "sim/cli/main.py"}  # by Program.run
    for path in [*ROOT.glob("minglm/**/*.py"), *ROOT.glob("sim/**/*.py")]:
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if 'if __name__ == "__main__"' in text and name not in bare | framed:
            assert text.rstrip().endswith("sys.exit(guard(main))"), name
