"""What a request becomes before the engine sees it: prompts as in training, limits, bodies that do not come."""

import asyncio
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from minglm.data.chat import encode_chat
from minglm.rl.tasks import task_tokenizer
from minglm.serving import middleware
from minglm.serving.metrics import Metrics
from minglm.serving.protocol import MAX_CHOICES, APIError, ChatCompletionRequest, CompletionRequest
from minglm.serving.responses import usage

TURNS = (("user", "2+2"), ("assistant", "4"), ("user", "3+3"), ("assistant", "6"))


def test_a_conversation_is_written_as_in_training():
    """Against the encoder of the training rows: all turns but the last answer, and the marker that asks for it."""
    tokenizer = task_tokenizer()
    row, _ = encode_chat(tokenizer, TURNS)
    messages = [{"role": role, "content": text} for role, text in TURNS[:-1]]
    ((*prompt,),) = ChatCompletionRequest(messages=messages).prompts(tokenizer)
    assert row[: len(prompt)] == prompt and prompt[-1] == tokenizer.assistant
    assert row[len(prompt) :] == [*tokenizer.encode("6"), tokenizer.eos]


def test_content_in_parts_is_their_text_joined():
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2"}]
    requests = [ChatCompletionRequest(messages=[{"role": "user", "content": c}]) for c in (parts, "2+2")]
    assert requests[0].prompts(task_tokenizer()) == requests[1].prompts(task_tokenizer())


def test_a_text_begins_a_document_and_tokens_are_taken_as_they_are():
    tokenizer = task_tokenizer()
    text = [tokenizer.bos, *tokenizer.encode("ab")]
    assert CompletionRequest(prompt="ab").prompts(tokenizer) == [text]
    assert CompletionRequest(prompt=["ab", ""]).prompts(tokenizer) == [text, [tokenizer.bos]]
    assert CompletionRequest(prompt=[7, 8]).prompts(tokenizer) == [[7, 8]]
    assert CompletionRequest(prompt=[[7], [8, 9]]).prompts(tokenizer) == [[7], [8, 9]]


@pytest.mark.parametrize("prompts, n", [(MAX_CHOICES // 16, 16), (MAX_CHOICES, 1), (MAX_CHOICES // 2, 2)])
def test_choices_of_a_request_are_counted_over_prompts_and_answers(prompts, n):
    assert len(CompletionRequest(prompt=["a"] * prompts, n=n).prompts(task_tokenizer())) == prompts
    with pytest.raises(APIError, match=f"at most {MAX_CHOICES}"):
        CompletionRequest(prompt=["a"] * (prompts + 1), n=n).prompts(task_tokenizer())


def test_the_newer_name_of_the_limit_wins():
    messages = [{"role": "user", "content": "x"}]
    for given, want in [
        (dict(max_completion_tokens=3, max_tokens=5), 3),
        (dict(max_tokens=5), 5),
        (dict(max_completion_tokens=3), 3),
        (dict(max_completion_tokens=None), None),
    ]:
        assert ChatCompletionRequest(messages=messages, **given).max_new_tokens == want


def test_usage_adds_up():
    assert usage(3, 4) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


MAX_BODY = 100


def through_the_middleware(messages) -> tuple[list[dict], list[bytes]]:
    """(what was sent back, bodies that reached the application) for a client that sends these ASGI messages, then
    nothing."""
    sent, reached, left = [], [], list(messages)

    async def app(scope, receive, send):
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        if left:
            return left.pop(0)
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
    asyncio.run(middleware.BodyLimitMiddleware(app, MAX_BODY, Metrics())(scope, receive, send))
    return sent, reached


def piece(size, more=False):
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


@pytest.mark.parametrize("parts", [[MAX_BODY], [MAX_BODY - 1, 1], [0, 40, 60]])
def test_a_body_of_exactly_the_limit_passes_and_a_byte_more_does_not(parts):
    messages = [piece(n, i < len(parts) - 1) for i, n in enumerate(parts)]
    sent, reached = through_the_middleware(messages)
    assert sent[0]["status"] == 200 and reached == [b"x" * MAX_BODY]
    messages[-1] = {**messages[-1], "body": messages[-1]["body"] + b"x"}
    sent, reached = through_the_middleware(messages)
    assert sent[0]["status"] == 413 and reached == [] and (b"connection", b"close") in sent[0]["headers"]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    """Its connection is closed too: else bytes sent one at a time would hold it open."""
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.1)
    sent, reached = through_the_middleware([piece(5, more=True)])
    assert sent[0]["status"] == 408 and reached == [] and (b"connection", b"close") in sent[0]["headers"]
    assert "had not come" in json.loads(sent[1]["body"])["error"]["message"]


def test_one_who_leaves_before_the_end_is_sent_nothing():
    assert through_the_middleware([piece(5, more=True), {"type": "http.disconnect"}]) == ([], [])
