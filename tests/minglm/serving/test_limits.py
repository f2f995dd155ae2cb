"""Limits at their very edge, in one process: who may see what, and how many tokens fit."""

import json
import time

import pytest

from minglm.serving.config import ServeSettings

pytest.importorskip("torch")
pytest.importorskip("fastapi")
KEY = "a-key-for-tests"
MAX_MODEL_LEN, MAX_TOKENS = 48, 20


@pytest.fixture(scope="module")
def client(small_checkpoint):
    from fastapi.testclient import TestClient

    from minglm.serving.server import build

    settings = ServeSettings(
        mode="dense", api_key=KEY, max_model_len=MAX_MODEL_LEN, max_tokens=MAX_TOKENS, max_batch=2, max_body=4096
    )
    _, app = build(small_checkpoint, settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client, **body):
    return client.post("/v1/completions", json={"temperature": 0, **body}, headers={"authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/models/minglm"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong-key"}, {"authorization": f"Basic {KEY}"}])
def test_only_health_is_open_without_the_key(client, path, headers):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert "minglm_" not in answer.text, "figures of the server were shown to somebody without the key"
    assert client.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("prompt_tokens", [MAX_MODEL_LEN - 1, MAX_MODEL_LEN - 7, MAX_MODEL_LEN - MAX_TOKENS])
def test_prompt_and_answer_fill_the_positions_and_not_one_more(client, prompt_tokens):
    """A sequence of exactly `max_model_len` tokens is served, a token more is a 400, not a 500."""
    prompt, room = [5] * prompt_tokens, MAX_MODEL_LEN - prompt_tokens
    full = ask(client, prompt=prompt, max_tokens=room)
    assert full.status_code == 200 and full.json()["usage"]["completion_tokens"] <= room
    longer = ask(client, prompt=[*prompt, 5], max_tokens=room)
    assert longer.status_code == 400, longer.text
    assert longer.json()["error"]["param"] == ("max_tokens" if room > 1 else "prompt")
    assert str(MAX_MODEL_LEN) in longer.json()["error"]["message"]


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_of_several_prompts_counts_wherever_it_stands(client, order):
    prompts = [[5], [5] * (MAX_MODEL_LEN - 4)][::order]
    assert ask(client, prompt=prompts, max_tokens=4).status_code == 200
    assert ask(client, prompt=prompts, max_tokens=5).status_code == 400
    assert ask(client, prompt=prompts).json()["usage"]["completion_tokens"] <= 8, "the default gives way"
    assert ask(client, prompt=[5], seed=1, temperature=1).json()["usage"]["completion_tokens"] <= 16


def test_an_answer_without_a_limit_takes_what_the_prompt_leaves(client):
    chat = {"messages": [{"role": "user", "content": "hello"}], "temperature": 1, "seed": 3, "stop": ["\x00"]}
    answer = client.post("/v1/chat/completions", json=chat, headers={"authorization": f"Bearer {KEY}"})
    counted = answer.json()["usage"]
    assert counted["completion_tokens"] <= min(MAX_TOKENS, MAX_MODEL_LEN - counted["prompt_tokens"])
    assert counted["total_tokens"] == counted["prompt_tokens"] + counted["completion_tokens"]


@pytest.mark.parametrize("tokens, status", [(MAX_TOKENS, 200), (MAX_TOKENS + 1, 400)])
def test_the_server_s_own_limit_of_an_answer(client, tokens, status):
    assert ask(client, prompt=[5], max_tokens=tokens).status_code == status


@pytest.mark.parametrize("token, status", [(0, 200), (-1, 400)])
def test_the_ends_of_the_vocabulary(client, small_checkpoint, token, status):
    from minglm.inference.load import load_model

    vocab_size = load_model(small_checkpoint)[0].config.vocab_size
    assert ask(client, prompt=[token], max_tokens=1).status_code == status
    assert ask(client, prompt=[vocab_size - 1 - token], max_tokens=1).status_code == status


def test_an_answer_past_its_time_ends_with_what_it_has(small_checkpoint):
    """OpenAI's API has no word for it: to its clients it is an answer that met a limit."""
    from fastapi.testclient import TestClient

    from minglm.serving.server import build

    settings = ServeSettings(mode="dense", max_model_len=200, max_tokens=190, timeout_s=0.3)
    thread, app = build(small_checkpoint, settings)
    step = thread.engine.step
    thread.engine.step = lambda: (time.sleep(0.02), step())[1]
    with TestClient(app) as client:
        for stream in (False, True):
            body = {"prompt": "x", "max_tokens": 190, "stream": stream, "stream_options": {"include_usage": True}}
            answer = client.post("/v1/completions", json={**body, "temperature": 0})
            assert answer.status_code == 200 and '"finish_reason": "length"' in answer.text.replace('":"', '": "')
            last = json.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
            assert last["usage"]["completion_tokens"] < 190


def test_a_dead_engine_is_told_to_those_who_wait_and_to_those_who_come(small_checkpoint, monkeypatch):
    from fastapi.testclient import TestClient

    from minglm.serving.server import build

    monkeypatch.setattr("threading.excepthook", lambda args: None)  # the error is shown there; here it is wanted
    thread, app = build(small_checkpoint, ServeSettings(mode="dense"))

    def fails():
        raise RuntimeError("no more")

    thread.engine.step = fails
    with TestClient(app, raise_server_exceptions=False) as client:
        waited = client.post("/v1/completions", json={"prompt": "x"})
        assert waited.status_code == 500 and "gave up" in waited.json()["error"]["message"]
        thread.join(60)
        came = client.post("/v1/completions", json={"prompt": "x"})
        assert came.status_code == 503 and "has stopped" in came.json()["error"]["message"]
        assert client.get("/health").status_code == 503


@pytest.mark.parametrize("prompts, n", [(6, 1), (2, 3), (1, 6), (3, 2)])
def test_sequences_in_work_are_counted_over_prompts_and_answers(small_checkpoint, prompts, n):
    """Exactly as many as the server takes, and one answer more for each prompt: refused, with the time to come back."""
    from fastapi.testclient import TestClient

    from minglm.serving.server import build

    _, app = build(small_checkpoint, ServeSettings(mode="dense", max_concurrent=6))
    with TestClient(app) as client:
        body = {"prompt": ["a"] * prompts, "max_tokens": 1}
        full = client.post("/v1/completions", json={**body, "n": n})
        assert full.status_code == 200 and len(full.json()["choices"]) == 6
        more = client.post("/v1/completions", json={**body, "n": n + 1})
        assert more.status_code == 429 and more.headers["retry-after"] == "1"
