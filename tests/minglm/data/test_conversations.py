"""Conversation files as people have them: read, or refused in one line with file, line, rule and remedy."""

import json

import pytest

from minglm.data import chat, conversations
from minglm.errors import InputError


def turn(question, answer) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


LINE = json.dumps(turn("Hi", "Hello"))
HI = (("user", "Hi"), ("assistant", "Hello"))
READ = {
    "plain": (LINE + "\n", [HI]),
    "no final line end": (LINE, [HI]),
    "CRLF": (LINE + "\r\n" + LINE + "\r\n", [HI, HI]),
    "blank lines": ("\n\n" + LINE + "\n \n", [HI]),
    "BOM": ("\ufeff" + LINE + "\n", [HI]),
    "U+2028": (json.dumps(turn("a\u2028b", "ok"), ensure_ascii=False), [(("user", "a\u2028b"), ("assistant", "ok"))]),
    "U+0085": (json.dumps(turn("a\u0085b", "ok"), ensure_ascii=False), [(("user", "a\u0085b"), ("assistant", "ok"))]),
    "form feed": (json.dumps(turn("a\u000bb\u001cc", "ok")), [(("user", "a\u000bb\u001cc"), ("assistant", "ok"))]),
    "empty answer": (json.dumps(turn("Hi", "")), [(("user", "Hi"), ("assistant", ""))]),
    "markers in the text": (json.dumps(turn("<|eos|>", "no")), [(("user", "<|eos|>"), ("assistant", "no"))]),
}
REFUSED = {
    "UTF-16": (LINE.encode("utf-16"), 1, "is not UTF-8 text; save the file as UTF-8"),
    "Latin-1": (LINE.encode() + b'\n{"messages": "Gr\xfc\xdfe"}', 2, "byte 0xfc is not UTF-8 text"),
    "array": (json.dumps([turn("Hi", "Hello")]), 1, "must be {"),
    "pretty": (json.dumps(turn("Hi", "Hello"), indent=2), 1, "must be {"),
    "cut": (LINE + "\n" + LINE[:30], 2, "must be {"),
    "number": ("4", 1, "must be {"),
    "deep": ("[" * 100_000, 1, "must be {"),
    "ShareGPT": ('{"conversations": [{"from": "human", "value": "Hi"}]}', 1, "must be {"),
    "messages is a text": ('{"messages": "Hi"}', 1, "must be {"),
    "messages is empty": ('{"messages": []}', 1, "must be {"),
    "message is a text": ('{"messages": ["Hi"]}', 1, "must be {"),
    "null": (json.dumps(turn("Hi", None)), 1, "content of message 2 is null, not text"),
    "4": (json.dumps(turn("2+2", 4)), 1, "content of message 2 is 4, not text"),
    "true": (json.dumps(turn(True, "4")), 1, "content of message 1 is true, not text"),
    "parts": (json.dumps(turn([{"type": "text"}], "4")), 1, "content of message 1 is [{"),
    "half a character": (r'{"messages": [{"role": "user", "content": "x\ud83d"}]}', 1, "holds half a character"),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}]}', 1, "no message of the assistant"),
    "role": ('{"messages": [{"role": "tool", "content": "x"}]}', 1, "roles must be"),
    "role null": ('{"messages": [{"role": null, "content": "x"}]}', 1, "roles must be"),
    "role list": ('{"messages": [{"role": ["user"], "content": "x"}]}', 1, "roles must be"),
}


@pytest.mark.parametrize("name", READ)
def test_read(name, tmp_path):
    text, expected = READ[name]
    (tmp_path / "c.jsonl").write_bytes(text.encode())
    assert [e.messages for e in chat.load_jsonl(tmp_path / "c.jsonl")] == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_with_file_and_line(name, tmp_path):
    raw, line, says = REFUSED[name]
    (tmp_path / "c.jsonl").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(InputError) as caught:
        chat.load_jsonl(tmp_path / "c.jsonl")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'c.jsonl'} line {line}: ") and says in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("raw", [b"", b"\n \n", "\ufeff".encode()])
def test_an_empty_file_and_none(raw, tmp_path):
    (tmp_path / "c.jsonl").write_bytes(raw)
    with pytest.raises(InputError, match="no conversation in it"):
        chat.load_jsonl(tmp_path / "c.jsonl")
    for missing in (tmp_path / "nosuch.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            chat.load_jsonl(missing)


def test_keys_that_are_not_used_are_told(tmp_path, capsys):
    row = turn("Hi", "Hello") | {"id": 7, "source": "x"}
    row["messages"][1]["weight"] = 0
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    chat.load_jsonl(tmp_path / "c.jsonl")
    assert "keys that are not used: id, messages.weight, source" in capsys.readouterr().err


@pytest.mark.parametrize("n", [2, 3, 10, 500])
def test_the_halves_share_no_conversation(n):
    some = [conversations.Example("file", (("user", f"q{i % n}"), ("assistant", "a"))) for i in range(2 * n)]
    train, unseen = conversations.split(some)
    assert len(train) + len(unseen) == 2 * n and train and unseen
    assert not {e.messages for e in train} & {e.messages for e in unseen}
    assert len(unseen) <= max(2, 0.4 * n)
    assert conversations.split(some[:1]) == (some[:1], [])


def test_a_tenth_of_the_conversations_is_held_out_by_their_hash():
    """The first 8 bytes of SHA-256 of the turns as JSON below a tenth of 2^64."""
    import hashlib

    talks = [conversations.Example("file", (("user", f"q{i}"), ("assistant", f"a{i}"))) for i in range(3000)]
    train, unseen = conversations.split(talks)

    def held(e):
        text = json.dumps([list(m) for m in e.messages])
        return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) * 10 < 2**64

    assert unseen == [e for e in talks if held(e)] and train == [e for e in talks if not held(e)]
    assert abs(len(unseen) - 300) < 4 * (3000 * 0.1 * 0.9) ** 0.5
    assert [conversations.is_validation(e.messages) for e in talks] == [held(e) for e in talks]
