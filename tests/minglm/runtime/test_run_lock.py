"""One writer to a folder: the second is told who the first is, a dead one is in nobody's way, and two never hold it."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from minglm.errors import InputError
from minglm.runtime import run_folder, run_lock

HOLD = (
    "import sys, time; from pathlib import Path; from minglm.runtime import run_lock\n"
    "with run_lock.hold(Path(sys.argv[1]), 'a test'):\n    print('held', flush=True); time.sleep(600)"
)
# Adds one to a number as a careless program does, under the lock; how often is given.
COUNT = (
    "import sys, time; from pathlib import Path; from minglm.runtime import run_lock\n"
    "folder = Path(sys.argv[1]); number = folder.parent / 'number'\n"
    "for _ in range(int(sys.argv[2])):\n"
    "    with run_lock.hold(folder, 'counting', wait=True):\n"
    "        n = int(number.read_text()); time.sleep(0.002); number.write_text(str(n + 1))\n"
)


def start(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def held(tmp_path):
    """(folder, the process that holds it)."""
    process = start(HOLD, tmp_path / "run")
    assert process.stdout.readline() == "held\n"
    yield tmp_path / "run", process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_in_one_line_that_names_the_first(held):
    folder, process = held
    with pytest.raises(InputError) as err, run_lock.hold(folder, "another"):
        pass
    assert f"a test, process {process.pid} on " in str(err.value) and "\n" not in str(err.value)
    assert "give another folder" in str(err.value) and str(process.pid) in run_lock.owner(folder)
    process.kill()  # not reaped yet: it writes no more all the same
    end = time.monotonic() + 60
    while run_lock.owner(folder) and time.monotonic() < end:
        time.sleep(0.01)
    with run_lock.hold(folder, "another"):
        assert f"process {os.getpid()}" in run_lock.owner(folder)
    assert run_lock.owner(folder) is None and list(folder.iterdir()) == []


def test_a_folder_in_use_is_not_set_aside_nor_one_that_holds_it(held):
    folder, process = held
    for kind, place in (("train", folder), ("demo", folder.parent)):
        run_folder.claim(place, kind)
        with pytest.raises(InputError, match=f"in use by a test, process {process.pid}"):
            run_folder.set_aside(place, kind)
    process.kill()
    process.wait()
    aside = run_folder.set_aside(folder, "train")
    assert not folder.exists() and sorted(p.name for p in aside.iterdir()) == [run_folder.MANIFEST]


def forged(folder, **changes):
    """A lock as another process would have left it."""
    with run_lock.hold(folder, "a test"):
        note = json.loads((folder / run_lock.LOCK).read_text())
    (folder / run_lock.LOCK).write_text(json.dumps(note | changes))


def test_a_number_that_was_used_again_is_not_the_owner(tmp_path):
    forged(tmp_path, pid=os.getppid(), born="1")  # alive, and started at another moment
    with run_lock.hold(tmp_path, "another"):
        pass


def test_another_machine_is_refused_and_the_remedy_works(tmp_path):
    for change in ({"host": "elsewhere"}, {"machine": "another container"}):
        forged(tmp_path, pid=2**22 + 1, **change)  # no such process here, which says nothing about there
        with pytest.raises(InputError, match="cannot be looked up from here.* delete ") as err:
            with run_lock.hold(tmp_path, "another"):
                pass
        os.unlink(str(err.value).rpartition("delete ")[2])
        with run_lock.hold(tmp_path, "another"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"pid": "x"}'])
def test_what_a_kill_left_half_written_is_in_nobodys_way(tmp_path, content, monkeypatch):
    monkeypatch.setattr(run_lock, "_TORN_S", 0.1)
    for name in run_lock.NAMES:
        (tmp_path / name).write_bytes(content)
    with run_lock.hold(tmp_path, "another"):
        assert str(os.getpid()) in run_lock.owner(tmp_path)


def test_a_clock_that_jumps_changes_nothing(held, monkeypatch):
    folder, _ = held
    for jump in (-4e9, 4e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1e9 + jump)
        with pytest.raises(run_lock.Locked), run_lock.hold(folder, "another"):
            pass


def test_a_thread_takes_its_lock_again_and_another_thread_does_not(tmp_path):
    refused = []

    def other():
        try:
            with run_lock.hold(tmp_path, "a thread"):
                pass
        except run_lock.Locked as err:
            refused.append(str(err))

    with run_lock.hold(tmp_path, "outer"):
        with run_lock.hold(tmp_path / ".", "inner"):
            pass
        assert (tmp_path / run_lock.LOCK).is_file()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another thread" in refused[0] and list(tmp_path.iterdir()) == []
    other()
    assert len(refused) == 1


def test_it_is_one_lock_through_a_link(tmp_path, held):
    folder, _ = held
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(run_lock.Locked), run_lock.hold(tmp_path / "link", "another"):
        pass
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(InputError, match="broken link"), run_lock.hold(tmp_path / "nowhere", "another"):
        pass


def test_four_processes_that_count_lose_nothing_although_two_are_killed(tmp_path):
    """Each adds to one number; a killed one may lose its own last step and no more."""
    (tmp_path / "number").write_text("0")
    victims = [start(COUNT, tmp_path / "run", 10**6) for _ in range(2)]
    end = time.monotonic() + 60
    while int((tmp_path / "number").read_text() or 0) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    for victim in victims:
        victim.kill()
        victim.wait()
    before = int((tmp_path / "number").read_text() or 0)
    (tmp_path / "number").write_text(str(before))
    workers = [start(COUNT, tmp_path / "run", 40) for _ in range(4)]
    assert [w.wait(120) for w in workers] == [0] * 4
    assert int((tmp_path / "number").read_text()) == before + 160


def test_many_that_meet_a_dead_owner_take_over_one_after_the_other(tmp_path):
    for _ in range(3):
        (tmp_path / "number").write_text("0")
        (tmp_path / "run").mkdir(exist_ok=True)
        forged(tmp_path / "run", pid=2**22 + 1)
        workers = [start(COUNT, tmp_path / "run", 5) for _ in range(5)]
        assert [w.wait(120) for w in workers] == [0] * 5
        assert int((tmp_path / "number").read_text()) == 25


def test_what_killed_writers_left_goes_with_the_next_writer(tmp_path):
    from minglm import atomic

    gone, alive = tmp_path / f"{atomic.PREFIX}{2**22 + 1}-ab", tmp_path / f"{atomic.PREFIX}{os.getpid()}-cd"
    for path in (gone, alive):
        path.write_text("half")
    with run_lock.hold(tmp_path, "another"):
        assert not gone.exists() and alive.exists()
