"""A proxy in the environment does not come between a client and a server on this machine."""

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from minglm.runtime import loopback

ROOT = Path(__file__).resolve().parents[3]
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def server():
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/"
        made.shutdown()


def test_urlopen_asks_no_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", DEAD)
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert loopback.urlopen(server, timeout=5).read() == b"here"
    with pytest.raises(OSError):  # the control: Python's own asks the proxy, which is not there
        urllib.request.build_opener().open(server, timeout=5)  # urlopen keeps the opener of an earlier test


@pytest.mark.parametrize("client", ["urllib", "httpx", "openai"])
def test_bypass_proxy_serves_every_client(client, server):
    pytest.importorskip(client)
    ask = {
        "urllib": "import urllib.request as u; print(u.urlopen(url, timeout=5).read())",
        "httpx": "import httpx; print(httpx.get(url, timeout=5).content)",
        "openai": "import openai; print(openai.OpenAI(base_url=url, api_key='-')._client.get(url).content)",
    }[client]
    env = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | {"HTTP_PROXY": DEAD, "http_proxy": DEAD}
    for before, reached in (("", False), ("from minglm.runtime import loopback; loopback.bypass_proxy(); ", True)):
        program = f"url = {server!r}; {before}{ask}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=env)
        assert ("here" in done.stdout) is reached, done.stderr[-500:]


def test_what_the_environment_says_is_kept():
    env = {"HTTPS_PROXY": DEAD, "no_proxy": "a.example, b.example", "NO_PROXY": "c.example"}
    loopback.bypass_proxy(env)
    assert env["no_proxy"] == env["NO_PROXY"] == "a.example,b.example,c.example,127.0.0.1,localhost,::1"
    loopback.bypass_proxy(env)
    assert env["no_proxy"].count("127.0.0.1") == 1
    empty: dict = {}
    loopback.bypass_proxy(empty)
    assert not empty


def test_no_program_asks_this_machine_in_another_way():
    """`urlopen` of urllib and clients of httpx read the proxy's environment: here, nobody uses them as they are."""
    for path in [*ROOT.glob("minglm/**/*.py"), *ROOT.glob("sim/**/*.py"), *ROOT.glob("notebooks/**/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert "request.urlopen(" not in text, path
        assert text.count("httpx.AsyncClient(") + text.count("httpx.Client(") <= text.count("trust_env=False"), path
