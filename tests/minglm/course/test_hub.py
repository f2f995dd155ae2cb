"""The hub's check: its configuration, who may reach what, and what its page says. `make hub-check` runs the hub."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

pytest.importorskip("torch")
from minglm.course.workshop import generator, hub, hub_client, kernels
from minglm.errors import InputError


class _Config(dict):
    """What traitlets' `get_config()` is to a configuration: any attribute of any attribute may be set."""

    def __getattr__(self, name):
        return self.setdefault(name, _Config())

    __setattr__ = dict.__setitem__


@pytest.mark.parametrize("accounts", [True, False])
def test_the_configuration_is_python_and_gives_the_check_no_more_than_it_needs(tmp_path, accounts):
    config = _Config()
    exec(hub.configuration(tmp_path, tmp_path / "hub", [1, 2, 3], "secret", accounts), {"get_config": lambda: config})
    assert config.JupyterHub.bind_url == "http://127.0.0.1:1"  # this machine only
    assert config.Authenticator.allowed_users == set(hub.LEARNERS)
    assert ("Local" in config.JupyterHub.spawner_class) is accounts
    [role] = config.JupyterHub.load_roles
    assert role["services"] == ["check"] and "admin:hub" not in role["scopes"] and "self" not in role["scopes"]


def test_a_hub_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="`make hub-check` installs it"):
        hub.run(tmp_path / "none", accounts=False)


def test_ports_are_free_and_differ():
    ports = hub.free_ports(3)
    assert len(set(ports)) == 3
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_lies_in_a_closed_folder_is_not_open_to_all(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            try:
                folder.chmod(folder.stat().st_mode | 0o001)
            except PermissionError:
                pytest.skip("a folder above belongs to somebody else")
    program = tmp_path / "shut" / "program"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(program)
    program.parent.chmod(0o755)
    assert hub.open_to_all(program) and hub.open_to_all(link)
    program.parent.chmod(0o700)
    assert not hub.open_to_all(program) and not hub.open_to_all(link)
    program.parent.chmod(0o755)
    program.chmod(0o700)
    assert not hub.open_to_all(program)


def test_the_page_fails_with_one_failed_check_and_weighs_by_notebook():
    log = hub.Log(servers=[100.0, 120.0])
    log.expect("up", True)
    log.expect("apart", False)
    log.memory = {"learn/00": [(300, 290, 200), (310, 280, 210)], "learn/03": [(400, 390, 300), (390, 380, 310)]}
    log.seconds, log.house = {"learn/00": [3.0, 5.4], "learn/03": [7.0, 6.0]}, {"hub_mib": 90.0, "version": 6.1}
    page = hub.report(log, accounts=True)
    assert re.search(r"^`make hub-check ARGS=--accounts` on \d{4}-\d\d-\d\d, ", page, flags=re.M)
    assert "| up | ok |" in page and "| apart | **failed** |" in page and "JupyterHub 6.1" in page
    assert "| learn/00 | 5 | 310 | 290 | 210 |" in page and "| learn/03 | 7 | 400 | 390 | 310 |" in page
    assert "stay open | 640 MiB" in page and "before the next | 430 MiB" in page and "none shut | 1020 MiB" in page


def test_the_recorded_page_holds_and_names_the_notebooks_that_the_check_runs():
    page = hub.datafiles.notebooks("workshop", "hub.md").read_text(encoding="utf-8")
    assert "**failed**" not in page and page.count("| ok |") >= 10
    assert re.search(r"^`make hub-check ARGS=--accounts` on \d{4}-\d\d-\d\d, ", page, flags=re.M)
    for name in hub.NOTEBOOKS:
        assert f"| {name} |" in page and hub.datafiles.notebooks(f"{name}.ipynb").is_file()
    assert any(generator.is_blank(hub.datafiles.notebooks(f"{n}.ipynb")) for n in hub.NOTEBOOKS)


class _Socket:
    """A kernel's web socket that answers with what Jupyter's protocol says for a cell."""

    def __init__(self):
        self.answers = []

    def send(self, text):
        asked = json.loads(text)
        head, code = {"msg_id": asked["header"]["msg_id"]}, asked["content"]["code"]

        def add(kind, parent=head, **content):
            self.answers.append(json.dumps({"parent_header": parent, "msg_type": kind, "content": content}))

        add("stream", {"msg_id": "somebody else's"}, name="stdout", text="not mine")
        add("stream", name="stderr", text="a warning")
        add("stream", name="stdout", text=f"ran {code}")
        add("display_data", data={hub_client.PLOTLY: {}})
        if "raise" in code:
            add("error", ename="ValueError", evalue="no")
        add("status", execution_state="idle")
        add("execute_reply", status="ok")

    def recv(self):
        return self.answers.pop(0)


def test_a_kernel_takes_its_own_answers_and_stops_at_the_first_error():
    pytest.importorskip("websocket")
    kernel = hub_client.Kernel(hub_client.Client("http://here", "t"), "anna", "k", _Socket())
    good = kernel.run(["1", "2"], lambda: 0.0)
    assert (good.printed, good.figures, good.error) == ("ran 1ran 2", 2, "")
    bad = kernel.run(["1", "raise", "3"], lambda: 0.0)
    assert bad.error == "ValueError: no" and "ran 3" not in bad.printed


class _Silent:
    """A kernel's web socket on which nothing comes for some waits; then the cell is done."""

    def __init__(self, waits):
        self.waits, self.talk = waits, _Socket()

    def send(self, text):
        self.talk.send(text)

    def recv(self):
        if self.waits:
            self.waits -= 1
            raise pytest.importorskip("websocket").WebSocketTimeoutException
        return self.talk.recv()


def test_a_silent_kernel_is_waited_for_as_long_as_it_computes():
    pytest.importorskip("websocket")
    seconds = iter(range(0, 1000, 5))
    kernel = hub_client.Kernel(hub_client.Client("http://here", "t"), "anna", "k", _Silent(50))
    assert kernel.run(["1"], lambda: next(seconds)).printed == "ran 1"
    for idle in (lambda: 7.0, lambda: None):  # it computes nothing; it is gone
        kernel.socket = _Silent(50)
        assert "neither answered nor computed" in kernel.run(["1"], idle).error and kernel.socket.waits == 49


def test_a_wait_lasts_while_something_moves_and_no_longer(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(hub.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(hub.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    hub.wait_for("slow", lambda: clock[0] > 5000, lambda: clock[0] / 100)  # a hundredth of a core, for over an hour
    clock[0] = 0.0
    with pytest.raises(InputError, match="stands still, less than a second of processor time in 120 s"):
        hub.wait_for("idle", lambda: False, lambda: 3.0)
    assert clock[0] == pytest.approx(120, abs=1)
    clock[0] = 0.0
    with pytest.raises(InputError, match="ended before it answered"):
        hub.wait_for("dead", lambda: False, lambda: clock[0] if clock[0] < 3 else None)
    assert clock[0] == pytest.approx(3, abs=1)


def test_processor_seconds_are_those_of_one_learner():
    pytest.importorskip("psutil")
    code = "sum(range(10**7)); print(flush=True); input()"
    environment = os.environ | {"JUPYTERHUB_USER": "anna"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        child.stdout.readline()
        assert hub.processor_seconds(os.getpid(), "anna") > 0.02
        assert hub.processor_seconds(os.getpid(), "bo") is None
        child.communicate(b"\n")
    assert hub.processor_seconds(os.getpid(), "anna") is None


def test_the_last_words_are_those_that_matter(tmp_path):
    log = tmp_path / "hub.log"
    log.write_text("[I 1] up\n[C 2] Running as root is not recommended. Use --allow-root to bypass.\n[I 3] 200 GET\n\n")
    assert "Use --allow-root" in hub.last_words(log)
    log.write_text("[I 1] up\n[I 3] 200 GET\n\n")
    assert hub.last_words(log) == "[I 3] 200 GET"
    log.write_text("")
    assert hub.last_words(log) == "its log is empty"


@pytest.mark.parametrize("accounts", [True, False])
def test_a_server_of_root_is_allowed_where_there_are_no_accounts_and_homes_are_new(tmp_path, accounts):
    """A container's user is root, whom a server refuses; homes that an older check wrote would be no test."""
    environment = tmp_path / "hub"
    for program in (environment / "bin" / "jupyterhub", hub.proxy(environment)):
        program.parent.mkdir(parents=True)
        program.write_text("")
    (tmp_path / "scratch").mkdir()
    config = hub.prepare(tmp_path / "scratch", environment, [1, 2, 3], "secret", accounts)
    assert ("--allow-root" in (config.parent / "start.sh").read_text()) is not accounts
    assert f'home_dir_template = "{tmp_path}/scratch/home/{{username}}"' in config.read_text()


def test_a_process_weighs_something():
    pytest.importorskip("psutil")
    resident, shared = kernels.weigh(os.getpid())
    assert 10 * 2**20 < shared <= resident
