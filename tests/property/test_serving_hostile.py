"""Hostile requests, generated: whatever is sent, the server answers 200 or a refusal in words, never fails, and goes
on."""

import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")
COMMON = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
MAX_BODY = 4000

# halves of surrogate pairs too, which JSON can write and UTF-8 cannot
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "model": st.just("minglm") | st.text(max_size=5),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "seed": st.integers(0, 2**62),
    "n": st.integers(1, 3),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=5),
    "stream": st.booleans(),
    "max_tokens": st.integers(1, 6),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logprobs": st.booleans() | st.integers(0, 2),
    "user": st.text(max_size=3),
    "max_completion_tokens": st.integers(1, 6),
    "logit_bias": st.just({}),
    "echo": st.booleans(),
    "suffix": st.none(),
    "best_of": st.just(1),
}
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": st.text(max_size=12) | anything}
)
LIMITED = {"max_tokens": 4}


def one_field_wrong(good: dict):
    return st.sampled_from(sorted([*FIELDS, "messages", "prompt", "odd"])).flatmap(
        lambda key: json_value.map(lambda value: {**good, key: value})
    )


right = st.builds(
    lambda messages, extra: {**LIMITED, **extra, "messages": messages},
    st.lists(message, max_size=3),
    st.fixed_dictionaries({}, optional=FIELDS),
)
text = st.builds(
    lambda prompt, extra: {**LIMITED, **extra, "prompt": prompt},
    st.text(max_size=9)
    | st.lists(st.text(max_size=5), max_size=4)
    | st.lists(st.integers(-5, 600), max_size=5)
    | st.lists(st.lists(st.integers(0, 300), max_size=3), max_size=3),
    st.fixed_dictionaries({}, optional=FIELDS),
)
asked = (
    json_value
    | right
    | text
    | one_field_wrong({**LIMITED, "messages": [{"role": "user", "content": "x"}]})
    | one_field_wrong({**LIMITED, "prompt": "x"})
)


@pytest.fixture(scope="module")
def client(small_checkpoint):
    from fastapi.testclient import TestClient

    from minglm.serving.config import ServeSettings
    from minglm.serving.server import build

    _, app = build(
        small_checkpoint, ServeSettings(mode="dense", max_body=MAX_BODY, max_tokens=8, max_model_len=64, max_batch=4)
    )
    with TestClient(app, raise_server_exceptions=True) as it:
        yield it


def check(answer) -> None:
    assert answer.status_code in (200, 400, 404, 405, 413, 422, 429), (answer.status_code, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert (
            set(error) == {"message", "type", "param", "code"}
            and error["message"]
            and error["message"].isprintable()
            and len(error["message"]) <= 400
        ), error
        assert "Traceback" not in error["message"]


@COMMON
@given(asked, st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
def test_any_json_is_answered(client, body, path):
    answer = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    check(answer)
    assert client.get("/health").status_code == 200


@COMMON
@given(
    st.binary(max_size=200) | st.integers(1, 3).map(lambda n: b'{"messages": ' + b"[" * 1000 * n),
    st.sampled_from(["application/json", "text/plain", "", "multipart/form-data; boundary=x"]),
    st.sampled_from(
        [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/v1/../../etc/passwd",
            "/metrics",
            "/x",
        ]
    ),
)
def test_any_bytes_are_answered(client, body, kind, path):
    check(client.post(path, content=body, headers={"content-type": kind}))
    assert client.get("/health").status_code == 200


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(MAX_BODY + 1, 10 * MAX_BODY))
def test_a_body_over_the_limit_is_refused_whatever_it_says(client, size):
    def parts():  # no content-length: the limit must count, not believe
        for start in range(0, size, 700):
            yield b"x" * min(700, size - start)

    assert client.post("/v1/completions", content=parts()).status_code == 413


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 3))
def test_raw_bytes_and_people_who_leave_or_read_slowly(server, raw, asks, reads):
    """Below HTTP: garbage on the wire, half a request, a stream of which a few bytes are read one by one, then
    silence."""
    host, port = server.removeprefix("http://").removesuffix("/v1").split(":")
    ask = json.dumps({"prompt": "x", "max_tokens": 8, "stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        f"{len(ask)}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port)), 60) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        s.settimeout(120)
        s.sendall(head + ask if asks else head[:60] + raw)
        for _ in range(reads if asks else 0):
            assert s.recv(1)
            time.sleep(0.01)
    import urllib.request

    with urllib.request.urlopen(server.removesuffix("/v1") + "/health", timeout=120) as answer:
        assert json.load(answer)["status"] == "ok"


@pytest.fixture(scope="module")
def server(small_checkpoint):
    from minglm.serving import load_test

    with load_test.running(small_checkpoint, "--mode", "dense") as (_, url):
        yield url
