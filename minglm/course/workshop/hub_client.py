"""A JupyterHub from outside: its REST API, a learner's own server behind the proxy, and a notebook run there.

What a browser does, without one: kernels are started by name over HTTP and spoken to over a web socket, both through
the hub's proxy. Used by `minglm.course.workshop.hub`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minglm.runtime import loopback

SILENT_S = 120.0  # after so long without a message it is asked whether the kernel computes
PLOTLY = "application/vnd.plotly.v1+json"
Json = Any


class Refused(Exception):
    """An answer other than 2xx; `status` is its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:200]}")
        self.status = status


@dataclass(frozen=True)
class Client:
    """Requests with one token. `base` is the public address of the hub, such as http://127.0.0.1:8000."""

    base: str
    token: str
    timeout_s: float = 600.0  # far from any honest answer, however slow the machine

    def call(self, method: str, path: str, body: Json = None) -> Json:
        """One request; the answer's JSON, or None where it has none.

        Raises:
            Refused: an answer other than 2xx, or none within the time.
        """
        request = urllib.request.Request(f"{self.base}{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with loopback.urlopen(request, data, timeout=self.timeout_s) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as err:
            raise Refused(err.code, err.read().decode(errors="replace")) from None
        except (urllib.error.URLError, OSError) as err:
            raise Refused(0, str(err)) from None
        return json.loads(text) if text.strip() else None

    def status(self, method: str, path: str) -> int:
        """The number of the answer alone, refusals included."""
        try:
            self.call(method, path)
        except Refused as err:
            return err.status
        return 200


@dataclass
class Ran:
    """What running cells left: seconds, pictures shown, printed text, and the error that stopped it ("" for none)."""

    seconds: float = 0.0
    figures: int = 0
    printed: str = ""
    error: str = ""


@dataclass
class Kernel:
    """A kernel on a learner's server, spoken to through the proxy.

    Args:
        user: whose server. kernel_id: as that server names it.
    """

    client: Client
    user: str
    kernel_id: str
    socket: Any = field(default=None, repr=False)

    @classmethod
    def start(cls, client: Client, user: str, folder: str) -> Kernel:
        """A new kernel whose current folder is `folder` of the learner's home."""
        body = {"name": "python3", "path": folder}
        kernel = cls(client, user, client.call("POST", f"/user/{user}/api/kernels", body)["id"])
        kernel._connect()
        return kernel

    def _connect(self) -> None:
        import websocket

        address = self.client.base.replace("http://", "ws://", 1)
        self.socket = websocket.create_connection(
            f"{address}/user/{self.user}/api/kernels/{self.kernel_id}/channels",
            header=[f"Authorization: token {self.client.token}"],
            timeout=self.client.timeout_s,
        )
        self.socket.settimeout(SILENT_S)

    def run(self, cells: list[str], used: Callable[[], float | None]) -> Ran:
        """Run cells one after the other, as "Run All" does: it stops at the first that raises.

        Args:
            used: processor seconds of the kernel and its server: a silent kernel is waited for as long as they grow.
        """
        out, begun = Ran(), time.monotonic()
        for code in cells:
            self._cell(code, out, used)
            if out.error:
                break
        out.seconds = time.monotonic() - begun
        return out

    def _cell(self, code: str, out: Ran, used: Callable[[], float | None]) -> None:
        import websocket

        asked = uuid.uuid4().hex
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        header = {"msg_id": asked, "msg_type": "execute_request", "session": asked, "username": "", "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self.socket.send(json.dumps(message))
        replied, idle, before = False, False, used()
        while not (replied and idle):
            try:
                answer = json.loads(self.socket.recv())
            except websocket.WebSocketTimeoutException:
                now = used()
                if now is None or now - (before or 0.0) < 1.0:
                    out.error = f"TimeoutError: the kernel neither answered nor computed for {SILENT_S:.0f} s"
                    return
                before = now
                continue
            if answer["parent_header"].get("msg_id") != asked:
                continue
            kind, content = answer["msg_type"], answer["content"]
            replied |= kind == "execute_reply"
            idle |= kind == "status" and content["execution_state"] == "idle"
            if kind in ("display_data", "execute_result"):
                out.figures += PLOTLY in content["data"]
            elif kind == "stream" and content["name"] == "stdout":
                out.printed += content["text"]
            elif kind == "error":
                out.error = f"{content['ename']}: {content['evalue']}"

    def stop(self) -> None:
        """End the kernel, which gives its memory back."""
        self.socket.close()
        self.client.call("DELETE", f"/user/{self.user}/api/kernels/{self.kernel_id}")


def code_cells(notebook: Json) -> list[str]:
    """The code of a notebook's cells, in order."""
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
