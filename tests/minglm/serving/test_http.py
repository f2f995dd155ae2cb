"""The endpoint as its users meet it: the real openai client, limits, errors, people who leave, kill and restart."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from minglm.errors import InputError
from minglm.serving import load_test
from minglm.serving.config import ServeSettings
from minglm.serving.server import listen

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def server(small_checkpoint):
    with load_test.running(
        small_checkpoint,
        "--mode",
        "dense",
        "--max-concurrent",
        "24",
        "--max-body",
        "20000",
        "--max-tokens",
        "100",
        "--api-key",
        KEY,
    ) as (process, url):
        yield process, url


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=server[1], api_key=KEY, max_retries=0, timeout=240)


def send(url, body, key=KEY, path="/chat/completions", kind="application/json"):
    """(status, JSON) of a raw request."""
    request = urllib.request.Request(
        url + path,
        data=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"content-type": kind, **({"authorization": f"Bearer {key}"} if key else {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=240) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as err:
        return err.code, json.load(err)


HELLO = [{"role": "user", "content": "What is 2 + 3?"}]


def test_openai_client_whole_and_streamed_agree(client):
    ask = dict(model="minglm", messages=HELLO, max_tokens=12, temperature=0)
    whole = client.chat.completions.create(**ask, logprobs=True)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    assert (
        whole.usage.completion_tokens == len(whole.choices[0].logprobs.content) == 12
        and whole.choices[0].finish_reason == "length"
    )
    assert all(p.logprob <= 0 for p in whole.choices[0].logprobs.content)


def test_seed_decides_and_choices_differ(client):
    ask = dict(model="minglm", messages=HELLO, max_tokens=12, temperature=1, seed=7, n=3)
    a, b = client.chat.completions.create(**ask), client.chat.completions.create(**ask)
    texts = [c.message.content for c in a.choices]
    assert texts == [c.message.content for c in b.choices] and len(set(texts)) > 1


def test_completions_of_several_prompts(client):
    out = client.completions.create(
        model="minglm", prompt=["def f", "import "], max_tokens=5, temperature=0, stop=["\x00"]
    )
    assert [c.index for c in out.choices] == [0, 1] and all(c.finish_reason in ("stop", "length") for c in out.choices)
    assert client.models.list().data[0].id == "minglm"


def test_the_answer_is_the_engine_s_own(client, small_checkpoint):
    from minglm.inference.generate import generate
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(small_checkpoint)
    prompt = [tokenizer.bos, tokenizer.user, *tokenizer.encode(HELLO[0]["content"]), tokenizer.assistant]
    wanted = generate(model, [prompt], 20, stop=(tokenizer.eos,), mode="dense").tokens[0]
    got = (
        client.chat.completions.create(model="minglm", messages=HELLO, max_tokens=20, temperature=0)
        .choices[0]
        .message.content
    )
    assert got == tokenizer.decode(wanted)


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"messages": [', "not JSON"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[" * 5000, "JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        ({}, "messages: is needed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        (
            {"messages": HELLO, "tools": [{"type": "function"}]},
            "tools: is not supported here; leave it out, or give []",
        ),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format.type: is not supported"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages: half of a surrogate pair"),
        ({"messages": HELLO, "\ud800": 1}, "\\ud800: half of a surrogate pair"),
        ({"messages": HELLO, "a\nb" * 300: 1}, "…: is not supported"),
        ({"messages": HELLO, "max_tokens": 101}, "at most 100"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "n": 17}, "n:"),
        ({"messages": HELLO, "stop": ["a", "b", "c", "d", "e"]}, "at most 4"),
        ({"messages": HELLO, "stop": ""}, "empty"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "tokens"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": HELLO, "presence_penalty": 0.5}, "presence_penalty"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
    ],
)
def test_bad_requests_are_answered_in_words(server, body, words):
    status, answer = send(server[1], body)
    assert status == 400 and words in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"].isprintable() and len(answer["error"]["message"]) <= 400


def test_other_refusals(server):
    url = server[1]
    assert (
        send(url, {"messages": HELLO}, key=None)[0] == 401
        and send(url, {"messages": HELLO}, key="wrong-key-wrong")[0] == 401
    )
    status, answer = send(url, b"x" * 30000)
    assert status == 413 and "20,000 bytes" in answer["error"]["message"]
    assert send(url, {}, path="/nothing")[0] == 404
    assert send(url, {"prompt": [10**9]}, path="/completions")[1]["error"]["message"].startswith("token 1000000000")


def test_too_many_at_once_are_told_to_wait(client):
    import openai

    with pytest.raises(openai.RateLimitError, match="sequences are in work"):
        client.completions.create(model="minglm", prompt=["a"] * 25, max_tokens=2)
    assert client.completions.create(model="minglm", prompt=["a"] * 24, max_tokens=2).choices[23].finish_reason


def test_one_who_leaves_frees_the_place(server, client):
    stream = client.chat.completions.create(
        model="minglm", messages=HELLO, max_tokens=100, temperature=1, stream=True, stop=["\x00"]
    )
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with urllib.request.urlopen(server[1].removesuffix("/v1") + "/health", timeout=120) as answer:
            state = json.load(answer)
        if state["running"] == state["waiting"] == 0:
            break
        time.sleep(0.1)
    assert state["running"] == 0, "the engine goes on for somebody who has left"


def test_metrics_count(server):
    request = urllib.request.Request(
        server[1].removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read().decode()
    value = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if not line.startswith("#")}
    assert (
        value["minglm_generated_tokens_total"] > 0
        and value['minglm_requests_total{path="/v1/chat/completions",status="200"}'] > 0
    )


def test_a_short_load(small_checkpoint):
    with load_test.running(small_checkpoint, "--mode", "dense") as (process, url):
        result = asyncio.run(load_test.load(url, process.pid, clients=16, seconds=5, tokens=24))
    assert not result["unexpected"] and result["measured"] > 0, result
    assert result["rss_growth"] is None or result["rss_growth"] < 0.15, (
        "five seconds are short; the soak asks for 5% over two minutes"
    )


def test_load_is_judged():
    good = {"unexpected": {}, "measured": 100, "p50_s": 1.0, "p99_s": 3.0, "rss_growth": 0.01}
    assert load_test.judge(good) == []
    for change in (
        {"unexpected": {"whole: 500": 1}},
        {"measured": 0},
        {"p99_s": 30.0},
        {"rss_growth": 0.06},
        {"rss_growth": -0.06},
    ):
        assert len(load_test.judge({**good, **change})) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_kill_and_restart_on_the_same_port_and_drain(small_checkpoint):
    with load_test.running(small_checkpoint, "--mode", "dense") as (process, url):
        port = url.removesuffix("/v1").rpartition(":")[2]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    with load_test.running(small_checkpoint, "--mode", "dense", "--port", port) as (process, url):
        request = urllib.request.Request(
            url + "/chat/completions",
            headers={"content-type": "application/json"},
            data=json.dumps({"messages": HELLO, "max_tokens": 60, "temperature": 0, "stream": True}).encode(),
        )
        with urllib.request.urlopen(request, timeout=240) as answer:
            first = answer.readline()
            process.terminate()  # a running answer ends before the server does
            rest = answer.read()
        assert first.startswith(b"data: ") and rest.rstrip().endswith(b"data: [DONE]")
        assert process.wait(120) == 0
    with pytest.raises(RuntimeError, match="did not start"), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with load_test.running(small_checkpoint, "--port", str(taken.getsockname()[1])):
            pass


@pytest.mark.parametrize("host", ["é\u2028", "127.0.0.1\0", "a..b"])
def test_a_host_that_is_no_address_is_refused_in_one_line(host):
    with pytest.raises(InputError) as caught:
        listen(ServeSettings(host=host, port=0, api_key="0" * 16))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(("host", host))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"host": "0.0.0.0"}, "a key is needed"),
        ({"api_key": "short"}, "at least 8"),
        ({"port": 70000}, "65535"),
        ({"max_batch": 0}, "max_batch"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(InputError, match=words) as caught:
        ServeSettings(**settings)
    assert "\n" not in str(caught.value)


def test_command_refuses_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minglm", "serve", "--checkpoint", str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no checkpoint here" in done.stderr
