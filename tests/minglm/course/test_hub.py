"""The hub's check: its configuration, who may reach what, and what its page says. `make hub-check` runs the hub."""

import json
import os
import re
import socket

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
    good = kernel.run(["1", "2"])
    assert (good.printed, good.figures, good.error) == ("ran 1ran 2", 2, "")
    bad = kernel.run(["1", "raise", "3"])
    assert bad.error == "ValueError: no" and "ran 3" not in bad.printed


def test_a_process_weighs_something():
    pytest.importorskip("psutil")
    resident, shared = kernels.weigh(os.getpid())
    assert 10 * 2**20 < shared <= resident
