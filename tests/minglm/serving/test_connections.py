"""Connections that are slow, silent, or too many: cut, and meanwhile everybody else is served."""

import asyncio
import errno
import http.client
import json
import logging
import socket
import sys
import time

import pytest

from minglm.serving import load_test

pytestmark = pytest.mark.slow

pytest.importorskip("torch")
HEADERS_S, PER_ADDRESS = 1.5, 8
LONGEST_S = 60  # only a hang takes so long
HEAD = b"GET /health HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def address(small_checkpoint):
    limits = ["--header-timeout", str(HEADERS_S), "--max-connections-per-address", str(PER_ADDRESS)]
    with load_test.running(small_checkpoint, "--mode", "dense", *limits) as (_, url):
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        yield host, int(port)


def connect(address) -> socket.socket:
    s = socket.create_connection(address, LONGEST_S)
    s.settimeout(LONGEST_S)
    return s


def everything(s: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    try:
        while part := s.recv(4096):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def healthy(address) -> bool:
    s = connect(address)
    s.sendall(HEAD + b"connection: close\r\n\r\n")
    return everything(s).startswith(b"HTTP/1.1 200")


def test_a_silent_connection_is_closed_without_a_word(address):
    began = time.monotonic()
    assert everything(connect(address)) == b""
    assert time.monotonic() - began >= HEADERS_S * 0.9, "cut before its time"


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"], ids=["first request", "after an answer"])
def test_headers_that_come_a_byte_at_a_time_are_cut(address, before):
    """Each byte would have put the clock back; the bound is on the whole head, of every request of a connection."""
    s = connect(address)
    s.sendall(before)
    if before:
        answer = http.client.HTTPResponse(s)
        answer.begin()
        assert answer.status == 200 and json.loads(answer.read())
    began, told = time.monotonic(), b""
    s.settimeout(0.2)
    try:
        while time.monotonic() - began < LONGEST_S:
            s.sendall(b"x")
            try:
                told += (part := s.recv(4096))
                if not part:
                    break
            except TimeoutError:
                pass
    except ConnectionError:
        pass
    assert time.monotonic() - began < LONGEST_S and b" 408 " in told
    error = json.loads(told.partition(b"\r\n\r\n")[2])["error"]
    assert "headers had not come" in error["message"]
    assert healthy(address)


def test_one_address_may_not_take_every_place_and_the_longest_silent_gives_way(address):
    silent = [connect(address) for _ in range(3 * PER_ADDRESS)]
    assert healthy(address), "silent connections keep others of their address out"
    assert everything(silent[0]) == b""
    for s in silent:
        s.close()


def test_where_all_places_are_at_work_one_more_is_told(address):
    """Answers in work are not given up for somebody new, who is told 429 in OpenAI's shape."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    at_work, told, deadline = [], b"", time.monotonic() + LONGEST_S
    while b" 429 " not in told and time.monotonic() < deadline:
        at_work.append(connect(address))
        at_work[-1].sendall(head)
        newest = at_work[-1]
        newest.settimeout(0.3)
        try:
            told = newest.recv(4096)
        except (TimeoutError, ConnectionError):
            told = b""
    assert len(at_work) >= PER_ADDRESS
    assert "are in use" in json.loads(told.partition(b"\r\n\r\n")[2])["error"]["message"]
    for s in at_work:
        s.close()
    while not healthy(address):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"])
def test_what_is_no_http_is_told_in_the_same_shape(address, garbage):
    s = connect(address)
    s.sendall(garbage)
    told = everything(s)
    assert b" 400 " in told and set(json.loads(told.partition(b"\r\n\r\n")[2])["error"]) >= {"message", "type"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files")
def test_with_few_descriptors_a_flood_is_survived_quietly(small_checkpoint, capfd):
    """160 open files, 400 silent connections: the server stays up, says little, and serves again."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, hard))
    try:
        server = load_test.running(small_checkpoint, "--mode", "dense", "--max-connections-per-address", "1000")
        process, url = server.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        flood = [connect((host, int(port))) for _ in range(400)]
        assert healthy((host, int(port)))
        for s in flood:
            s.close()
        assert process.poll() is None
    finally:
        server.__exit__(None, None, None)
    assert "Traceback" not in capfd.readouterr().err, "the server's errors are shown where they hold one"


def test_what_a_stranger_can_provoke_is_logged_once_a_second(caplog):
    from minglm.serving.connections import say_seldom

    async def provoke():
        say_seldom()
        for _ in range(500):
            error = OSError(errno.EMFILE, "Too many open files")
            asyncio.get_running_loop().call_exception_handler({"message": "accept", "exception": error})
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        asyncio.get_running_loop().call_exception_handler({"message": "another", "exception": ValueError("seen")})

    logger = logging.getLogger("uvicorn.error")
    before = list(logger.filters)
    try:
        with caplog.at_level(logging.WARNING):
            began = time.monotonic()
            asyncio.run(provoke())
            took = time.monotonic() - began
    finally:
        logger.filters[:] = before
    said = [r.getMessage() for r in caplog.records]
    assert sum("no room for another connection: Too many open files" in s for s in said) <= 1 + took
    assert sum("Invalid HTTP" in s for s in said) <= 1 + took
    assert any("another" in s for s in said), "other errors of the loop are shown as before"


@pytest.mark.parametrize("reads", [False, True])
def test_a_client_that_reads_nothing_more_is_cut(reads, monkeypatch):
    """asyncio says when a client's buffers are full and when they have room again; between the two there is a bound."""
    import uvicorn
    from uvicorn.server import ServerState

    from minglm.serving import connections
    from minglm.serving.config import ServeSettings

    monkeypatch.setattr(connections, "UNREAD_S", 0.1)

    class Transport(asyncio.Transport):
        aborted = False

        def get_extra_info(self, name, default=None):
            return None

        def is_closing(self):
            return self.aborted

        def abort(self):
            self.aborted = True

    async def scene():
        config = uvicorn.Config(lambda *_: None, http=connections.connection_class(ServeSettings()), ws="none")
        config.load()
        transport = Transport()
        connection = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(transport)
        connection.pause_writing()
        if reads:
            connection.resume_writing()
        await asyncio.sleep(0.3)
        assert transport.aborted is not reads
        connection.connection_lost(OSError("gone"))

    asyncio.run(scene())
