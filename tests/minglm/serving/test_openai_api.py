"""Against OpenAI's own description of its API, as its Python client carries it: parameters, answers, streams, errors.

The client's types are generated from the published description: what they say is the independent value here.
"""

import json
import typing

import pytest

from minglm.serving.config import ServeSettings

openai = pytest.importorskip("openai")
pytest.importorskip("torch")
pytest.importorskip("fastapi")

from openai.types import Completion, completion_create_params  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402
from openai.types.chat import completion_create_params as chat_create_params  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from minglm.data.tokenizer import SPECIAL_TOKENS  # noqa: E402
from minglm.serving.protocol import ChatCompletionRequest, CompletionRequest, Message, unserved  # noqa: E402

HELLO = [{"role": "user", "content": "Tell me"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GOOD = {CHAT: {"messages": HELLO, "max_tokens": 2}, TEXT: {"prompt": "def ", "max_tokens": 2}}
REQUEST = {CHAT: ChatCompletionRequest, TEXT: CompletionRequest}
WHOLE = {CHAT: ChatCompletion, TEXT: Completion}
CHUNK = {CHAT: ChatCompletionChunk, TEXT: Completion}
OFFICIAL = {CHAT: chat_create_params, TEXT: completion_create_params}


@pytest.fixture(scope="module")
def app(small_checkpoint):
    from minglm.serving.server import build

    return build(small_checkpoint, ServeSettings(mode="dense", max_model_len=256, max_tokens=120))[1]


@pytest.fixture(scope="module")
def client(app):
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        yield client


def events(client, path, **body):
    """The chunks of a stream, the last word "[DONE]" looked at."""
    answer = client.post(path, json={**GOOD[path], **body, "stream": True})
    assert answer.status_code == 200, answer.text
    *chunks, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(c) for c in chunks]


def undescribed(value) -> list[str]:
    """Fields of an answer, at any depth, that the description does not have."""
    if isinstance(value, list):
        return [name for item in value for name in undescribed(item)]
    if not isinstance(value, BaseModel):
        return []
    own = [name for field in type(value).model_fields for name in undescribed(getattr(value, field))]
    return [*(value.model_extra or {}), *own]


def official_fields(path: str) -> list[str]:
    return list(typing.get_type_hints(OFFICIAL[path].CompletionCreateParamsBase))


EACH = [(path, name) for path in (CHAT, TEXT) for name in official_fields(path)]


@pytest.mark.parametrize(("path", "name"), EACH)
def test_null_is_not_given(client, path, name):
    answer = client.post(path, json={**GOOD[path], name: None})
    assert answer.status_code == (400 if name in ("messages", "prompt") else 200), answer.text


@pytest.mark.parametrize(("path", "name"), EACH)
def test_every_official_parameter_is_known(path, name):
    assert name in REQUEST[path].model_fields, "neither served, nor taken at a neutral value: refused as if misspelt"


ANOTHER = {"0": 0.5, "1": 2, "false": True, '""': "x", "[]": [{"type": "x"}], "{}": {"a": 1}}
UNSERVED = [(path, name, neutral) for path in (CHAT, TEXT) for name, neutral in unserved(REQUEST[path]).items()]


@pytest.mark.parametrize(("path", "name", "neutral"), UNSERVED)
def test_one_rule_for_what_is_not_served(client, path, name, neutral):
    """Its neutral value is taken, and any other is refused, with the neutral one named: the remedy works."""
    assert client.post(path, json={**GOOD[path], name: json.loads(neutral)}).status_code == 200
    for other in (ANOTHER.get(neutral, "odd"), [5], {"a": {}}, 7, "x" * 5000):
        answer = client.post(path, json={**GOOD[path], name: other})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"].split(".")[0] == name
        assert error["message"].endswith(f"leave it out, or give {neutral}") and len(error["message"]) < 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("neutral", [dict(store=True), dict(metadata={"a": "b"}), dict(parallel_tool_calls=False)])
def test_what_changes_no_answer_is_taken(client, path, neutral):
    assert client.post(path, json={**GOOD[path], **neutral, "user": "u", "tool_choice": "auto"}).status_code == 200


def test_an_earlier_answer_is_taken_back_as_it_came(client):
    """Clients send the assistant's message again with all the fields that it had, most of them null or empty."""
    first = client.post(CHAT, json=GOOD[CHAT]).json()["choices"][0]["message"]
    assert set(first) <= set(
        ChatCompletion.model_fields["choices"].annotation.__args__[0].model_fields["message"].annotation.model_fields
    )
    nulls = dict.fromkeys(("name", "refusal", "tool_calls", "function_call", "audio", "annotations"))
    for message in (first, {**first, **nulls}, {**first, "tool_calls": [], "annotations": []}):
        assert client.post(CHAT, json={**GOOD[CHAT], "messages": [*HELLO, message, *HELLO]}).status_code == 200
    for name, neutral in unserved(Message).items():
        odd = {**first, name: ANOTHER[neutral]}
        answer = client.post(CHAT, json={**GOOD[CHAT], "messages": [*HELLO, odd, *HELLO]})
        assert answer.status_code == 400 and f"messages.1.{name}" in answer.json()["error"]["message"]


def test_a_developer_speaks_as_the_system(client):
    counted, texts = [], []
    for role in ("developer", "system"):
        messages = [{"role": role, "content": "Be short"}, *HELLO]
        body = client.post(CHAT, json={"messages": messages, "temperature": 0, "max_tokens": 9}).json()
        counted.append(body["usage"])
        texts.append(body["choices"][0]["message"]["content"])
    assert counted[0] == counted[1] and texts[0] == texts[1]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_answers_are_as_described_and_hold_nothing_else(client, path):
    """Validated strictly: types as they are in the JSON, no field that the description does not have."""
    log = {CHAT: {"logprobs": True}, TEXT: {"logprobs": 1}}[path]
    for extra in ({}, log, {"n": 2, "seed": 1}):
        body = client.post(path, json={**GOOD[path], **extra}).content
        assert not undescribed(WHOLE[path].model_validate_json(body, strict=True))
        for chunk in events(client, path, **extra, stream_options={"include_usage": True}):
            assert not undescribed(CHUNK[path].model_validate_json(json.dumps(chunk), strict=True))


def whole_and_streamed(client, path, **body):
    """((text, log-probabilities, finish reason), the same from a stream, usage of both)."""
    answer = client.post(path, json={**GOOD[path], **body}).json()
    choice = answer["choices"][0]
    chunks = events(client, path, **body, stream_options={"include_usage": True})
    parts = [c for chunk in chunks for c in chunk["choices"]]
    assert answer["usage"] == chunks[-1]["usage"]
    if path == CHAT:
        whole = choice["message"]["content"], choice["logprobs"]["content"]
        streamed = (
            "".join(p["delta"].get("content", "") for p in parts),
            [x for p in parts if p["logprobs"] for x in p["logprobs"]["content"]],
        )
    else:
        names = ("tokens", "token_logprobs", "text_offset")
        whole = choice["text"], {n: choice["logprobs"][n] for n in names}
        streamed = (
            "".join(p["text"] for p in parts),
            {n: [x for p in parts if p["logprobs"] for x in p["logprobs"][n]] for n in names},
        )
    assert choice["finish_reason"] == parts[-1]["finish_reason"]
    return whole, streamed, answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("seed", range(4))
def test_log_probabilities_of_a_stream_are_those_of_the_whole_and_join_to_the_text(client, seed):
    """An untrained model writes many parts of characters: one log-probability for every token, whatever is held."""
    (text, named), streamed, tokens = whole_and_streamed(
        client, CHAT, temperature=1.5, max_tokens=100, seed=seed, logprobs=True
    )
    assert (text, named) == streamed and len(named) == tokens
    assert bytes(b for t in named for b in t["bytes"]).decode(errors="replace") == text
    assert all(t["logprob"] <= 0 for t in named)


@pytest.mark.parametrize("seed", range(3))
def test_text_offsets_say_where_each_token_begins(client, seed):
    (text, named), streamed, tokens = whole_and_streamed(
        client, TEXT, temperature=1.5, max_tokens=60, seed=seed, logprobs=1
    )
    assert (text, named) == streamed
    assert len(named["tokens"]) == len(named["text_offset"]) == len(named["token_logprobs"]) == tokens
    assert named["text_offset"][0] == 0 and named["text_offset"] == sorted(named["text_offset"])
    for token, at in zip(named["tokens"], named["text_offset"], strict=True):
        assert "\ufffd" in token or token in SPECIAL_TOKENS or text[at:].startswith(token)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("start", "length"), [(20, 3), (41, 5), (60, 2), (0, 1)])
def test_stop_texts_from_the_middle_of_an_answer(client, seed, start, length):
    """The answer is the one without the stop text, up to where Python finds it; log-probabilities end with it."""
    ask = dict(temperature=1.5, max_tokens=100, seed=seed)
    free = client.post(CHAT, json={**GOOD[CHAT], **ask}).json()["choices"][0]["message"]["content"]
    stop = free[start : start + length]
    (text, named), streamed, _ = whole_and_streamed(client, CHAT, **ask, stop=[stop], logprobs=True)
    assert text == free[: free.find(stop)] and (text, named) == streamed
    assert bytes(b for t in named for b in t["bytes"]).decode(errors="replace") == text


@pytest.mark.parametrize("temperature", [1e-5, 1e-12, 1e-38, 1e-40, 1e-320])
def test_temperatures_near_zero_answer_as_zero_does(client, temperature):
    def ask(t):
        return whole_and_streamed(client, CHAT, temperature=t, max_tokens=8, logprobs=True)

    if temperature < 1e-5:
        assert ask(temperature) == ask(0)
    else:  # sampled, and never a number that JSON cannot write
        assert ask(temperature)[0][0] == ask(0)[0][0]


def test_settings_of_a_request_reach_the_sampler(client, small_checkpoint):
    """Temperature, top_p, seed and number of choices: each choice is what `generate` says for seed + its number."""
    from minglm.inference.generate import generate
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(small_checkpoint)
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in ("def ", "import os")]
    ask = dict(max_tokens=15, temperature=0.9, top_p=0.7, seed=5, n=2)
    body = client.post(TEXT, json={"prompt": ["def ", "import os"], **ask}).json()
    want = generate(
        model,
        [prompts[0], prompts[0], prompts[1], prompts[1]],
        15,
        temperature=0.9,
        top_p=0.7,
        seed=[5, 6, 7, 8],
        stop=(tokenizer.eos,),
        mode="dense",
    )
    assert [c["text"] for c in body["choices"]] == [tokenizer.decode(t) for t in want.tokens]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    counted = sum(len(t) + stopped for t, stopped in zip(want.tokens, want.stopped, strict=True))
    assert body["usage"]["completion_tokens"] == counted
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts)), "a prompt is counted once, not once a choice"


def test_an_answer_ends_where_the_model_ends_it(client, small_checkpoint):
    """The first seed whose answer ends by itself: the end token is counted and logged, and is no text."""
    from minglm.inference.generate import generate
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(small_checkpoint)
    prompt = [tokenizer.bos, *tokenizer.encode("def ")]
    seeds = list(range(200))
    out = generate(model, [prompt] * 200, 40, temperature=1.5, seed=seeds, stop=(tokenizer.eos,), mode="dense")
    seed = out.stopped.index(True)
    (text, named), streamed, tokens = whole_and_streamed(
        client, TEXT, temperature=1.5, max_tokens=40, seed=seed, logprobs=1
    )
    assert text == tokenizer.decode(out.tokens[seed]) and (text, named) == streamed
    assert tokens == len(out.tokens[seed]) + 1 == len(named["tokens"]) and named["tokens"][-1] == "<|eos|>"
    last = events(client, TEXT, temperature=1.5, max_tokens=40, seed=seed)[-1]["choices"][0]
    assert last["finish_reason"] == "stop"


def test_every_choice_of_a_stream_names_its_role_once(client):
    chunks = [c for k in events(client, CHAT, n=3, seed=1, max_tokens=6, temperature=1) for c in k["choices"]]
    for index in range(3):
        own = [c for c in chunks if c["index"] == index]
        assert [c["delta"].get("role") for c in own] == ["assistant"] + [None] * (len(own) - 1) and len(own) > 1
        assert [bool(c["finish_reason"]) for c in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.slow
def test_the_real_client(small_checkpoint):
    """`openai.OpenAI` against a server of its own: lists, whole, streamed, and its exceptions for what is refused."""
    from minglm.serving import load_test

    with load_test.running(small_checkpoint, "--mode", "dense") as (_, url):
        real = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        name = real.models.list().data[0].id
        assert real.models.retrieve(name).id == name
        ask = dict(model=name, messages=HELLO, max_tokens=12, temperature=0)
        whole = real.chat.completions.create(**ask, logprobs=True)
        with real.chat.completions.stream(**ask) as stream:
            deltas = [e.delta for e in stream if e.type == "content.delta"]
        assert "".join(deltas) == whole.choices[0].message.content
        assert real.completions.create(model=name, prompt="def ", max_tokens=3).choices[0].text is not None
        for odd, error, param in [
            (dict(model="gpt-5"), openai.NotFoundError, "model"),
            (dict(temperature=3), openai.BadRequestError, "temperature"),
            (dict(response_format={"type": "json_object"}), openai.BadRequestError, "response_format.type"),
            (dict(extra_body={"top_k": 5}), openai.BadRequestError, "top_k"),
        ]:
            with pytest.raises(error) as caught:
                real.chat.completions.create(**{**ask, **odd})
            assert caught.value.param == param
            assert caught.value.code == ("model_not_found" if error is openai.NotFoundError else None)
