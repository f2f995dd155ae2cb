"""A file is there whole or as it was: kills, exceptions, readers, links, devices, a full disk."""

import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from minglm import atomic


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(atomic.PREFIX))


def test_text_bytes_json_csv_and_copies_are_what_was_given(tmp_path):
    atomic.write_text(tmp_path / "t", "ä\n€")
    atomic.write_bytes(tmp_path / "b", b"\x00\xff")
    atomic.write_json(tmp_path / "j", {"a": [1, None]}, indent=None)
    atomic.write_csv(tmp_path / "c", [{"x": 1, "y": "a,b"}], ["x", "y"])
    atomic.copy(tmp_path / "b", tmp_path / "b2")
    assert (tmp_path / "t").read_bytes() == "ä\n€".encode() and (tmp_path / "b2").read_bytes() == b"\x00\xff"
    assert (tmp_path / "j").read_bytes() == b'{"a": [1, null]}\n'
    assert (tmp_path / "c").read_bytes() == b'x,y\n1,"a,b"\n'
    assert leftovers(tmp_path) == []


def test_what_fails_in_the_middle_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "f"
    atomic.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic.opened(path) as file:
        file.write("new")
        _ = 1 / 0
    with pytest.raises(TypeError):
        atomic.write_json(path, {1, 2})
    assert path.read_text() == "old" and leftovers(tmp_path) == []


def test_a_memory_map_of_the_old_file_stays_whole(tmp_path):
    path = tmp_path / "f"
    atomic.write_bytes(path, b"a" * 100_000)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        atomic.write_bytes(path, b"b")
        assert mapped[:] == b"a" * 100_000
    assert path.read_bytes() == b"b"


@pytest.mark.skipif(os.name == "nt", reason="links need a right that Windows gives to few")
def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    atomic.write_text(tmp_path / "real" / "f", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "f")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "f").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and pipes")
def test_permissions_stay_and_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "f"
    atomic.write_text(path, "x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask  # as `open` would make it
    path.chmod(0o640)
    atomic.write_text(path, "y")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    atomic.write_text("/dev/null", "nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # and not a file of ours
    reader, writer = os.pipe()
    atomic.write_text(f"/dev/fd/{writer}", "through a pipe")
    os.close(writer)
    assert os.read(reader, 100) == b"through a pipe"
    os.close(reader)


def test_the_error_names_the_file_that_was_wanted(tmp_path):
    with pytest.raises(OSError) as err:
        atomic.write_text(tmp_path / "missing" / "f", "x")
    assert err.value.filename == str(tmp_path / "missing" / "f")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError if os.name != "nt" else OSError):
        atomic.write_text(tmp_path / "folder", "x")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="a limit on the size of a file stands for a full disk")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    atomic.write_text(tmp_path / "f", "old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); from minglm import atomic\n"
        "try: atomic.write_bytes(sys.argv[1], b'x' * 9000, durable=True)\nexcept OSError: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")]).returncode == 7
    assert (tmp_path / "f").read_text() == "old" and leftovers(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
def test_a_reader_beside_a_writer_that_is_killed_always_sees_a_whole_file(tmp_path):
    path = tmp_path / "f.json"
    code = (
        "import sys; from minglm import atomic\n"
        "for n in range(10**9): atomic.write_json(sys.argv[1], [n] * 3000, durable=n % 5 == 0)"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        try:
            end = time.monotonic() + 60
            while not path.is_file() and time.monotonic() < end:
                time.sleep(0.01)
            for _ in range(150):
                assert len(set(json.loads(path.read_text()))) == 1
        finally:
            writer.kill()
            writer.wait()
        assert len(set(json.loads(path.read_text()))) == 1


def test_a_folder_takes_its_name_whole_and_the_old_one_goes(tmp_path):
    for content in ("old", "new"):
        made = tmp_path / f"{atomic.PREFIX}x"
        made.mkdir()
        atomic.write_text(made / "f", content)
        atomic.publish(made, tmp_path / "final")
    assert (tmp_path / "final" / "f").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_log_goes_on_after_its_last_whole_line(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    with atomic.appending(path) as log:
        log.write("two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    with atomic.appending(path) as log:
        log.write("three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
