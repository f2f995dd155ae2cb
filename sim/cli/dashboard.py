"""`clustersim dashboard`: the planner page in a browser, on this machine only, behind a token."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path

from minglm import atomic, datafiles
from minglm.runtime.arguments import whole
from minglm.runtime.terminal import json_text

TEXT = "open the planner page: move a slider, see time, cost, memory and what would change the answer"
EXAMPLES = """clustersim dashboard
clustersim dashboard --port 8900 --no-browser
clustersim dashboard --json                        (address, port and token on the first line)"""
TEMPLATE = "planner"
# What the browser loads of all that is installed: the widgets alone, by any of their names.
WIDGETS = [
    "@jupyter-widgets/jupyterlab-manager",
    "@voila-dashboards/widgets-manager8",
    "@voila-dashboards/widgets-manager7",
]
REFILL_S = 3  # after a page is opened, until the next is built: its own first moves come first
BUILT_WITHIN_S = 120  # a page takes some seconds, on a busy machine some tens
ONLY_NOTEBOOK = "notebook-only"  # tag of cells that the page leaves out


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=whole(1, 65535), default=8866, help="port on this machine (default 8866)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument(
        "--no-token", action="store_true", help="no token: whoever can reach this machine's localhost can use the page"
    )
    parser.add_argument("--json", action="store_true", help="for machines: the address as JSON; opens nothing")


def notebook() -> Path:
    """The page: a notebook that Voila serves."""
    return datafiles.notebooks("plan", "planner.ipynb")


def check(port: int) -> None:
    """Refuse what cannot work before the server starts: a port out of range or in use, Voila or the widgets missing."""
    from minglm.errors import InputError

    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: must be 1 to 65535; give for example 8866")
    for package in ("voila", "ipywidgets"):
        try:
            __import__(package)
        except ImportError:
            raise InputError(
                f"{package} is not installed, and the page is served by it; {datafiles.install_hint('lab')}"
            ) from None
    if not notebook().is_file():
        raise InputError(
            f"{notebook()}: no such file; the page is that notebook: "
            f"{datafiles.hint('restore it with git checkout', 'install minglm again')}"
        )
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as err:
            raise InputError(
                f"port {port} cannot be used on this machine ({(err.strerror or str(err)).lower()}); give another "
                f"with --port {port % 65535 + 1}"
            ) from None


def local_template(folder: Path) -> str:
    """Voila's own page without the links to other machines (icon fonts): the page must work without a network.

    Written into `folder`, which is to be on Jupyter's path; returns the template's name.
    """
    from jupyter_core.paths import jupyter_path

    where = next(p for p in map(Path, jupyter_path("voila", "templates")) if (p / "lab" / "index.html.j2").is_file())
    template = folder / "voila" / "templates" / TEMPLATE
    template.mkdir(parents=True)
    atomic.write_json(template / "conf.json", {"base_template": "lab"})
    for name, source in (
        ("index.html.j2", where / "lab" / "index.html.j2"),
        ("page.html", where / "base" / "page.html"),
    ):
        text = re.sub(r"<link[^>]*https?://[^>]*>", "", source.read_text(encoding="utf-8"))
        atomic.write_text(template / name, text)
    return TEMPLATE


def quiet_profile(folder: Path) -> str:
    """A profile of IPython's, written into `folder`, whose kernels keep their own notices (of their sockets, of being
    stopped) from the terminal; nothing that a person starts IPython with runs in the page. Returns its folder."""
    profile = folder / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    atomic.write_json(profile / "ipython_kernel_config.json", {"Application": {"log_level": "CRITICAL"}})
    return str(profile.parent)


def main(args: argparse.Namespace) -> int:
    check(args.port)
    token = "" if args.no_token else secrets.token_hex(24)
    address = f"http://127.0.0.1:{args.port}/" + (f"?token={token}" if token else "")
    if args.json:
        ready = json_text({"address": address, "port": args.port, "token": token})
    else:
        ready = f"the planner page: {address}\nstop with Ctrl-C"
        print("building the planner page; its address follows in a few seconds", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="planner-") as place:
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (place, os.environ.get("JUPYTER_PATH"))))
        os.environ["IPYTHONDIR"] = quiet_profile(Path(place))
        options = [
            str(notebook()),
            f"--port={args.port}",
            "--Voila.ip=127.0.0.1",
            "--Voila.port_retries=0",
            f"--template={local_template(Path(place))}",
            "--theme=light",
            "--show_tracebacks=False",
            "--preheat_kernel=True",  # a page is built before it is asked for, and the next one a little later
            f"--VoilaKernelManager.fill_delay={REFILL_S}",
            *(f"--VoilaConfiguration.extension_allowlist={widget}" for widget in WIDGETS),
            "--Voila.log_level=ERROR",
            "--Application.log_level=ERROR",
            f"--TagRemovePreprocessor.remove_cell_tags={ONLY_NOTEBOOK}",
            "--TagRemovePreprocessor.enabled=True",
        ]
        return serve(options, token, ready, browser=not (args.no_browser or args.json))


def serve(options: list[str], token: str, ready: str, browser: bool) -> int:
    """Run the server in this process until it is stopped; print `ready` once it has a page. The token never stands in a
    command line that others can list."""
    from tornado.ioloop import IOLoop
    from voila.app import Voila

    from minglm.errors import InputError

    async def announce() -> None:
        await _built()
        print(ready, flush=True)
        if browser:
            app.launch_browser()

    app = Voila.instance()
    app.open_browser = False  # `announce` does
    app.auto_token, app.token = False, token or None
    try:
        app.initialize(options)
        IOLoop.current().add_callback(announce)
        app.start()
    except SystemExit as err:
        if err.code:
            raise InputError(f"the page's server ended ({err.code}); give another port with --port") from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


async def _built() -> None:
    """Until the page that is built before it is asked for waits for its visitor, or for two minutes. Who comes earlier
    is given a second one that is built beside the first, and both take twice as long."""
    from voila.request_info_handler import RequestInfoSocketHandler

    deadline = time.monotonic() + BUILT_WITHIN_S
    while not RequestInfoSocketHandler._waiters and time.monotonic() < deadline:  # noqa: SLF001 - no public name tells
        await asyncio.sleep(0.1)
