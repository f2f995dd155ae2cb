"""Supervised fine-tuning: the chat format, instruction data the project makes itself, and rows packed for training.

Format: `<|bos|><|user|>question<|assistant|>answer<|eos|>`, more turns appended; the loss counts the assistant's words
and its <|eos|> only. The instructions are small skills that a model of a few million parameters can learn: look a fact
up in a passage, copy, add, read a function. Names and codes (`minglm.data.synthetic_facts`) whose hash falls in the
held-out fifth never occur in training; the needle test asks for exactly those.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minglm.data import corpus
from minglm.data.conversations import Example, is_validation
from minglm.data.conversations import load_jsonl as load_jsonl
from minglm.data.shards import IGNORE, Batch, Loader, Shard
from minglm.data.synthetic_facts import draw_code, draw_name, statement
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np

LOOKUP_LEAST = 96  # tokens of the shortest lookup in a row of conversations
SHORT = 64  # tokens of one conversation while looking back is learnt first


# ---------------------------------------------------------------------- tasks in words


def _lookup(rng: np.random.Generator) -> Example:
    facts: dict[str, str] = {}
    while len(facts) < int(rng.integers(1, 4)):
        facts[draw_name(rng)] = draw_code(rng)
    name = list(facts)[int(rng.integers(0, len(facts)))]
    passage = "\n".join(statement(n, c) for n, c in facts.items())
    return Example(
        "lookup", (("user", f"{passage}\nWhat is the code of {name}?"), ("assistant", statement(name, facts[name])))
    )


def _copy(rng: np.random.Generator) -> Example:
    words = " ".join(draw_name(rng) for _ in range(int(rng.integers(1, 4))))
    return Example("copy", (("user", f"Repeat: {words}"), ("assistant", words)))


def _arithmetic(rng: np.random.Generator) -> Example:
    a, b = int(rng.integers(0, 50)), int(rng.integers(0, 50))
    return Example("arithmetic", (("user", f"What is {a} + {b}?"), ("assistant", f"{a} + {b} = {a + b}")))


def _returns(rng: np.random.Generator) -> Example:
    name, code = draw_name(rng).lower(), int(rng.integers(10, 100))
    return Example(
        "returns",
        (
            ("user", f"def {name}():\n    return {code}\nWhat does {name} return?"),
            ("assistant", f"{name} returns {code}."),
        ),
    )


TASKS = {"lookup": _lookup, "copy": _copy, "arithmetic": _arithmetic, "returns": _returns}


def examples(task: str, seed: int, n: int) -> list[Example]:
    """`n` examples of a task (`TASKS`); the same seed gives the same ones. None uses a held-out name or code.

    Raises:
        InputError: an unknown task.

    >>> examples("arithmetic", seed=0, n=1)[0].messages[0]
    ('user', 'What is 48 + 4?')
    """
    import numpy as np

    if task not in TASKS:
        raise InputError(f"task {task!r}: not one of {', '.join(TASKS)}{nearest(task, TASKS)}")
    rng = np.random.default_rng([seed, list(TASKS).index(task)])  # so the order of TASKS is part of the data
    return [TASKS[task](rng) for _ in range(n)]


# ---------------------------------------------------------------------- tokens


def encode_chat(tokenizer: Tokenizer, messages: tuple[tuple[str, str], ...]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each, whether the loss counts it (assistant words and their <|eos|>)."""
    ids, counted = [tokenizer.bos], [False]
    for role, text in messages:
        marker = {"system": tokenizer.system, "user": tokenizer.user, "assistant": tokenizer.assistant}[role]
        words = tokenizer.encode(text)
        answer = role == "assistant"
        ids += [marker, *words] + [tokenizer.eos] * answer
        counted += [False] + [answer] * (len(words) + answer)
    return ids, counted


@dataclass(frozen=True)
class LookupExample:
    """Facts in a passage and a question about one. `prompt_ids` is exactly the length asked for and ends with
    <|assistant|>."""

    prompt_ids: list[int]
    question: str
    expected: str  # the whole answer
    name: str
    code: str
    told: tuple[tuple[str, str], ...]  # (name, code) in the order of the passage


def lookup_example(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    length_tokens: int,
    depth: float,
    held_out: bool,
    filler: np.ndarray | None = None,
    context: bool = True,
    facts: int = 1,
) -> LookupExample:
    """A question whose answer stands at `depth` of a passage; the whole prompt has `length_tokens` tokens.

    Args:
        held_out: draw name and code from the set that training never shows.
        filler: token ids to cut the passage from (a shard's `tokens`);
            default the topic texts of Python's documentation.
        context: False leaves the needle's sentence out: the control that shows what guessing reaches.
        facts: facts in the passage; the others stand anywhere.
    """
    codes: dict[str, str] = {}
    while len(codes) < max(facts, 1):
        codes[draw_name(rng, held_out)] = draw_code(rng, held_out)
    name, code = next(iter(codes.items()))
    question = f"What is the code of {name}?"
    asked = tokenizer.encode(f"\n{question}")
    stated = {n: tokenizer.encode(f"\n{statement(n, c)}\n") for n, c in codes.items() if context or n != name}
    room = length_tokens - sum(map(len, stated.values())) - len(asked) - 3  # bos, user, assistant
    if room < 0 or not 0 <= depth <= 1:
        raise InputError(
            f"length_tokens={length_tokens}, depth={depth}: facts and question alone need {length_tokens - room} "
            "tokens and depth lies in 0..1; ask for a longer passage"
        )
    passage = _filler(rng, _default_filler(tokenizer) if filler is None else filler, room, tokenizer)
    places = {n: round(depth * room) if n == name else int(rng.integers(0, room + 1)) for n in stated}
    prompt, start = [tokenizer.bos, tokenizer.user], 0
    order = sorted(stated, key=lambda n: places[n])
    for n in order:
        prompt += [*passage[start : places[n]], *stated[n]]
        start = places[n]
    prompt += [*passage[start:], *asked, tokenizer.assistant]
    return LookupExample(prompt, question, statement(name, code), name, code, tuple((n, codes[n]) for n in order))


def _filler(rng: np.random.Generator, tokens: np.ndarray, length: int, tokenizer: Tokenizer) -> list[int]:
    """A window of the corpus without its special tokens."""
    start = int(rng.integers(0, max(1, len(tokens) - length - 8)))
    window = [int(t) for t in tokens[start : start + length + 64] if t not in (tokenizer.bos, tokenizer.eos)][:length]
    while len(window) < length:  # a corpus shorter than the passage repeats
        window += window[: length - len(window)] or tokenizer.encode(" ")
    return window


_FILLER: dict[str, np.ndarray] = {}


def _default_filler(tokenizer: Tokenizer) -> np.ndarray:
    import numpy as np

    key = tokenizer.sha256
    if key not in _FILLER:
        _, valid = corpus.load("stdlib").split()
        _FILLER.clear()
        _FILLER[key] = np.array([t for ids in tokenizer.encode_batch([d.text for d in valid]) for t in ids])
    return _FILLER[key]


# ---------------------------------------------------------------------- rows for training


def _weave(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    filler: np.ndarray,
    seq_len: int,
    pieces: list[tuple[list[int], list[bool]]],
    lead: list[int],
    count_filler: bool,
) -> tuple[list[int], list[bool]]:
    """Spread pieces over a filler passage in order, at random cuts; cut or pad to seq_len+1."""
    while pieces and sum(len(p) for p, _ in pieces) + len(lead) > seq_len + 1:
        pieces = pieces[:-1]
    room = seq_len + 1 - len(lead) - sum(len(p) for p, _ in pieces)
    passage = _filler(rng, filler, room, tokenizer)
    cuts = sorted(rng.integers(0, room + 1, len(pieces)).tolist())
    ids, counted, start = list(lead), [False] * len(lead), 0
    for cut, (piece, flags) in zip(cuts, pieces, strict=True):
        ids += passage[start:cut] + piece
        counted += [count_filler] * (cut - start) + flags
        start = cut
    return ids + passage[start:], counted + [count_filler] * (room - start)


def lookup_chat(
    rng: np.random.Generator, tokenizer: Tokenizer, filler: np.ndarray, length: int, most_facts: int = 3
) -> tuple[list[int], list[bool]]:
    """A passage with one to `most_facts` facts and a question about each, as a chat of `length` tokens where they fit.

    Returns ids and which of them the loss counts: the answers.
    """
    facts = {draw_name(rng): draw_code(rng) for _ in range(int(rng.integers(1, most_facts + 1)))}
    names = list(facts)
    needles = [tokenizer.encode(f"\n{statement(n, facts[n])}\n") for n in names]
    questions = [names[i] for i in rng.permutation(len(names))]
    turns: list[int] = []
    counted: list[bool] = []
    for i, name in enumerate(questions):
        question = tokenizer.encode(f"\nWhat is the code of {name}?")
        answer = [*tokenizer.encode(statement(name, facts[name])), tokenizer.eos]
        turns += ([tokenizer.user] if i else []) + question + [tokenizer.assistant] + answer
        counted += [False] * ((1 if i else 0) + len(question) + 1) + [True] * len(answer)
    room = length - len(turns) - 2
    passage, flags = (
        _weave(rng, tokenizer, filler, max(room, 0) - 1, [(n, [False] * len(n)) for n in needles], [], False)
        if room > sum(map(len, needles))
        else ([t for n in needles for t in n], [False] * sum(map(len, needles)))
    )
    return [tokenizer.bos, tokenizer.user, *passage, *turns], [False, False, *flags, *counted]


class SftLoader:
    """Rows of conversations packed to `seq_len`; `batch(step)` depends on (seed, step) alone, as in `shards.Loader`.

    Args:
        filler: what `lookup` hides its facts in; None where that is not among the tasks.
        tasks: task → share, e.g. {"lookup": 0.7, "copy": 0.1}; the key `file` takes conversations from
            `conversations`.
        validation: draw what training never shows: of the made tasks the examples that `is_validation` names, which
            are left out otherwise. `filler` and `conversations` are the caller's to hold out.

    Raises:
        InputError: tasks that cannot be drawn, or a conversation of which nothing would be counted, with its line.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        filler: Shard | None,
        batch_size: int,
        seq_len: int,
        tasks: dict[str, float],
        seed: int = 0,
        conversations: list[Example] | None = None,
        validation: bool = False,
    ) -> None:
        known = {*TASKS, "file"} if conversations else set(TASKS)
        for task in tasks:
            if task not in known:
                raise InputError(f"tasks key {task!r}: not one of {', '.join(sorted(known))}{nearest(task, known)}")
        if not tasks or min(tasks.values()) < 0 or sum(tasks.values()) <= 0:
            raise InputError(
                f"tasks={tasks!r}: shares must be positive numbers; for example {{lookup: 0.7, copy: 0.3}}"
            )
        self.tokenizer, self.passages = tokenizer, None if filler is None else filler.tokens
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        if filler is None and tasks.get("lookup"):
            raise InputError("tasks key 'lookup': hides its facts in text, and there is none; leave it out")
        if tasks.get("lookup") and seq_len + 1 < LOOKUP_LEAST:
            raise InputError(
                f"seq_len={seq_len}: too short for the task 'lookup', of which a row would hold none; use at least "
                f"{LOOKUP_LEAST - 1}, or leave the task out"
            )
        total = sum(tasks.values())
        self.tasks, self.shares = list(tasks), [s / total for s in tasks.values()]
        self.validation, self.cut = validation, 0
        self.conversations = [self._encoded(e) for e in conversations or []] if tasks.get("file") else []

    def _encoded(self, example: Example) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and which count; one longer than a row keeps its end, the answer."""
        ids, counted = encode_chat(self.tokenizer, example.messages)
        room = self.seq_len + 1
        if not any(counted[-room:][1:]):
            raise InputError(
                f"{example.where or example.messages[-1]}: nothing of it would be learnt, as its last {room} tokens "
                f"hold no word of the assistant; end it with the answer, raise seq_len={self.seq_len}, or remove it"
            )
        self.cut += len(ids) > room
        return ids[-room:], counted[-room:]

    def _made(self, rng: np.random.Generator, task: str) -> tuple[list[int], list[bool]]:
        """A made example of this loader's side."""
        while True:
            messages = TASKS[task](rng).messages
            if is_validation(messages) == self.validation:
                return encode_chat(self.tokenizer, messages)

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        return stack(
            [self._row(step * self.batch_size + r) for r in range(self.batch_size)], self.seq_len, self.tokenizer.pad
        )

    def _row(self, row: int) -> list[tuple[list[int], list[bool]]]:
        import numpy as np

        rng = np.random.default_rng([self.seed, 1, row])
        parts: list[tuple[list[int], list[bool]]] = []
        used = 0
        task = self.tasks[int(rng.choice(len(self.tasks), p=self.shares))]
        while True:
            room = self.seq_len + 1 - used
            if task == "lookup":
                if room < LOOKUP_LEAST or self.passages is None:
                    break
                length = int(rng.integers(LOOKUP_LEAST, room + 1)) if used else room
                part = lookup_chat(rng, self.tokenizer, self.passages, length)
            elif task == "file":
                part = self.conversations[int(rng.integers(0, len(self.conversations)))]
            else:
                part = self._made(rng, task)
            if len(part[0]) > room:
                if not parts:  # one example longer than a row keeps its end, the answer
                    parts.append((part[0][-room:], part[1][-room:]))
                break
            parts.append(part)
            used += len(part[0])
        return parts


def stack(rows: list[list[tuple[list[int], list[bool]]]], seq_len: int, pad: int) -> Batch:
    """Rows of packed parts as one batch; each part sees itself alone, padding is never a target."""
    import torch

    tokens = torch.full((len(rows), seq_len + 1), pad, dtype=torch.int64)
    counted = torch.zeros((len(rows), seq_len + 1), dtype=torch.bool)
    start = torch.zeros((len(rows), seq_len + 1), dtype=torch.int64)
    for r, parts in enumerate(rows):
        first = 0
        for ids, flags in parts:
            end = first + len(ids)
            tokens[r, first:end], counted[r, first:end], start[r, first:end] = (
                torch.tensor(ids),
                torch.tensor(flags),
                first,
            )
            first = end
        start[r, first:] = first  # padding sees padding only
    start.clamp_(max=seq_len - 1)
    targets = torch.where(counted[:, 1:], tokens[:, 1:], IGNORE)
    targets = torch.where(start[:, 1:] == start[:, :-1], targets, IGNORE)
    return Batch(tokens[:, :-1].contiguous(), targets, start[:, :-1].contiguous())


class MixedLoader:
    """A corpus loader in which a share of the rows is replaced by lookups (`lookup_chat`);
    same contract as `shards.Loader`.

    In the first `recall_steps` all rows are short lookups with one fact each. Their loss counts the answers alone, so
    the whole gradient is about looking back; mixed in from the start, a few answers among thousands of words of text
    are not noticed for a long time. What is learnt there at 64 tokens carries over to long rows,
    and the mixture keeps it.
    """

    def __init__(
        self, base: Loader, tokenizer: Tokenizer, lookup_share: float, facts: int, seed: int = 0, recall_steps: int = 0
    ) -> None:
        self.base, self.tokenizer, self.share, self.facts, self.seed = base, tokenizer, lookup_share, facts, seed
        self.recall_steps = recall_steps
        self.batch_size, self.seq_len = base.batch_size, base.seq_len

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        import numpy as np
        import torch

        rows = range(step * self.batch_size, (step + 1) * self.batch_size)
        rngs = [np.random.default_rng([self.seed, 2, row]) for row in rows]  # of a row: batches may be cut anywhere
        if step < self.recall_steps:
            return stack([self._short_row(rng) for rng in rngs], self.seq_len, self.tokenizer.pad)
        batch = self.base.batch(step)
        # Spread evenly: the count of replaced rows follows the share exactly over the rows.
        replaced = [int((row + 1) * self.share) > int(row * self.share) for row in rows]
        if not any(replaced):
            return batch
        lookups = stack(
            [[self._lookup(rng, self.seq_len + 1, self.facts)] for rng, new in zip(rngs, replaced, strict=True) if new],
            self.seq_len,
            self.tokenizer.pad,
        )
        for old, new in zip(batch, lookups, strict=True):
            old[torch.tensor(replaced)] = new
        return batch

    def _lookup(self, rng: np.random.Generator, length: int, facts: int) -> tuple[list[int], list[bool]]:
        ids, counted = lookup_chat(rng, self.tokenizer, self.base.shard.tokens, length, facts)
        return ids[-length:], counted[-length:]  # a row too short for it keeps its end, the answer

    def _short_row(self, rng) -> list[tuple[list[int], list[bool]]]:
        parts = max(1, (self.seq_len + 1) // SHORT)
        return [self._lookup(rng, min(SHORT, self.seq_len + 1), 1) for _ in range(parts)]
