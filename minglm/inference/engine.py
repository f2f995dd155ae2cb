"""Continuous batching: requests join and leave a running batch, may be aborted and resumed,
and weights may change under them.

    >>> import torch; from minglm.config import ModelConfig; from minglm.model.model import Model
    >>> engine = Engine(Model(ModelConfig.named("nano")), max_batch=2, max_len=16)
    >>> for name in "abc":
    ...     engine.submit(Request(name, prompt=[5, 6, 7], max_new_tokens=4))
    >>> engine.step()                                         # two fit; the third waits for a place
    []
    >>> engine.running, engine.waiting
    (2, 1)

One latent cache holds a row for each running request, each at a position of its own. The running ones stand in the
first rows without a gap: when one finishes, the last moves into its place. New ones are prefilled together, at most
`prefill_budget` tokens a step, so that those already running are not held up; a longer prompt is prefilled in pieces in
a spare row. Equal sequences that join together, such as the samples of one prompt, are prefilled once and copied.

A request's draws depend on its seed and its token's index only: it gives the same tokens alone, in any batch, with
drafts and without, and aborted and resumed anywhere, as long as the weights stay (up to rounding: a matrix product over
another number of rows may differ in its last bit, which matters where two choices are that close).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.decoder import Decoder
from minglm.inference.prefill import prefill
from minglm.inference.request import Request
from minglm.inference.sampling import choose
from minglm.inference.speculative import Speculator, check_speculate
from minglm.model.cache import LatentCache
from minglm.model.model import Model
from minglm.model.moe import Router


@dataclass
class Stats:
    """Counts since the engine was made."""

    steps: int = 0
    prefilled: int = 0  # tokens prefilled, re-prefilled ones included; a sequence shared by equal requests counts once
    reprefilled: int = 0  # of these, tokens that had been prefilled before: the waste of aborts and of weight syncs
    decoded: int = 0  # response tokens
    drafted: int = 0
    accepted: int = 0  # drafts that became response tokens
    weight_syncs: int = 0

    @property
    def acceptance(self) -> float:
        """Share of drafts that were right."""
        return self.accepted / max(1, self.drafted)


class _SwappedOut(NamedTuple):
    """What is held of an aborted request: its tokens, its part of the cache, and of the drafts."""

    sequence: list[int]
    cached: tuple[Tensor, Tensor]
    drafts: tuple[Tensor, Tensor, int, int] | None


class Engine:
    """Serves requests with one model.

    Args:
        model: belongs to the engine from now on (`update_weights` writes into it);
            give a copy of one that is being trained.
        max_batch: requests running at a time.
        max_len: positions of each, prompt and response together.
        mode: "sparse" or "dense".
        speculate: drafts per step; 0 for none.
        record_routes: fill `Request.routes`.
        reuse_kv_cache: an aborted request's KV cache is swapped out (for 4·max_batch of them, the oldest dropped
            first), and when it comes back with the same tokens it goes on without another prefill. After a weight sync
            that is an old cache under new weights, as for a request that ran on.
        prefill_budget: tokens prefilled at most in one step.
        recompute_kv_on_weight_sync: prefill running requests again under new weights;
            else they go on with the cache they have.

    Raises:
        InputError: settings that cannot be.
    """

    def __init__(  # noqa: PLR0913  (settings, by keyword)
        self,
        model: Model,
        max_batch: int,
        max_len: int,
        *,
        mode: str = "sparse",
        speculate: int = 0,
        record_routes: bool = False,
        reuse_kv_cache: bool = False,
        prefill_budget: int = 512,
        recompute_kv_on_weight_sync: bool = False,
    ):
        for name, value in (("max_batch", max_batch), ("max_len", max_len), ("prefill_budget", prefill_budget)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: must be a whole number of at least 1")
        if max_len > (limit := model.config.max_position_embeddings):
            raise InputError(f"max_len={max_len}: the model has max_position_embeddings={limit}; use at most that")
        if mode not in ("sparse", "dense"):
            raise InputError(f"mode {mode!r}: an engine runs 'sparse' or 'dense'")
        check_speculate(model, speculate)
        self.model, self.max_batch, self.max_len, self.mode = model, max_batch, max_len, mode
        self.reuse_kv_cache, self.prefill_budget, self.recompute_kv_on_weight_sync = (
            reuse_kv_cache,
            prefill_budget,
            recompute_kv_on_weight_sync,
        )
        weight = model.embed_tokens.weight
        self.cache = LatentCache(
            model.config, max_batch + 1, max_len + speculate, weight.dtype, weight.device, mtp=speculate > 0
        )
        self.decoder = Decoder(model, self.cache, mode, record_routes)
        self.speculator = Speculator(self.decoder, speculate, max_batch + 1) if speculate else None
        self.record_routes = record_routes
        self.version, self.stats = 0, Stats()
        self._queue: deque[Request] = deque()
        self._rows: list[Request] = []  # row i of the cache is _rows[i]'s
        self._chunked: Request | None = None  # being prefilled in pieces, in the spare row
        self._chunked_done = 0
        self._ids: set[str] = set()
        self._seen: dict[str, int] = {}  # waiting request → its tokens that were read before a weight sync
        self._swapped_out: OrderedDict[str, _SwappedOut] = OrderedDict()

    @property
    def running(self) -> int:
        """Requests that have a row of the cache."""
        return len(self._rows) + (self._chunked is not None)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._queue)

    # ------------------------------------------------------------------ what callers do

    def submit(self, request: Request) -> None:
        """Queue a request, new or given back by `abort`.

        Raises:
            InputError: it cannot run; the message says why, and the engine is as before.
        """
        if request.id in self._ids:
            raise InputError(f"request {request.id!r}: one of this id is already here; give every request its own id")
        request.check(self.model.config, self.max_len)
        if self.record_routes and request.routes is None:
            request.routes = []
        request.reason = ""
        self._ids.add(request.id)
        self._queue.append(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Admit what fits, then decode one token (with drafts: at least one) for everything running.

        Returns the requests that finished in this step.
        """
        self.stats.steps += 1
        return self._admit() + self._decode()

    def abort(self, ids: Collection[str] | None = None) -> list[Request]:
        """Stop the requests with these ids, or all: returned unfinished with what they have, to be submitted again or
        not. An id that is not here (it may just have finished) is passed over."""
        aborted = [
            r
            for r in (*self._rows, *([self._chunked] if self._chunked else []), *self._queue)
            if ids is None or r.id in ids
        ]
        aborted_ids = {r.id for r in aborted}
        for row in reversed(range(len(self._rows))):
            if self._rows[row].id in aborted_ids:
                if self.reuse_kv_cache:
                    self._swap_out(row)
                self._free_row(row)
        if self._chunked is not None and self._chunked.id in aborted_ids:
            self._chunked = None
        self._queue = deque(r for r in self._queue if r.id not in aborted_ids)
        self._ids -= aborted_ids
        for request in aborted:
            request.reason = "abort"
        return aborted

    @torch.no_grad()
    def update_weights(self, state: dict[str, Tensor], version: int) -> None:
        """Take new weights between two steps; running requests go on, and their next tokens carry the new version.

        Args:
            state: a whole `Model.state_dict()`.
            version: higher than the present one, or the same (the same weights again).

        Raises:
            InputError: an older version, weights of another shape, or not finite; nothing has changed then.
        """
        if version < self.version:
            raise InputError(
                f"weights of version {version}: the engine has version {self.version} already; give newer ones"
            )
        own = self.model.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise InputError(
                f"weights of version {version}: {missing[0]} is missing ({len(missing)} in all); give the whole "
                f"state_dict"
            )
        if extra := sorted(state.keys() - own.keys()):
            raise InputError(
                f"weights of version {version}: {extra[0]} is no weight of this model; give its own state_dict"
            )
        for name, mine in own.items():
            if state[name].shape != mine.shape:
                raise InputError(
                    f"weights of version {version}: {name} is {tuple(state[name].shape)}, not {tuple(mine.shape)}; "
                    "give weights of the same model size"
                )
            if not bool(state[name].isfinite().all()):
                raise InputError(f"weights of version {version}: {name} is not finite; keep the last good weights")
        for name, mine in own.items():
            mine.copy_(state[name])
        self.version = version
        self.stats.weight_syncs += 1
        self.decoder.refresh()
        if self.recompute_kv_on_weight_sync:
            again = list(self._rows) + ([self._chunked] if self._chunked else [])
            self._queue.extendleft(reversed(again))
            self._seen.update({r.id: len(r.prompt) + len(r.tokens) for r in self._rows})
            if self._chunked is not None:
                self._seen[self._chunked.id] = self._chunked_done
            self._rows, self._chunked = [], None
            self._swapped_out.clear()

    # ------------------------------------------------------------------ joining

    def _admit(self) -> list[Request]:
        if self._chunked is not None:
            return self._prefill_piece(self._chunked)
        batch: list[Request] = []
        longest = 0
        while self._queue and len(self._rows) + len(batch) < self.max_batch:
            request = self._queue[0]
            if self._swap_in(request, len(self._rows)) if not batch else request.id in self._swapped_out:
                if batch:
                    break  # kept ones join by themselves, in the next step
                self._queue.popleft()
                self._rows.append(request)
                continue
            length = len(request.prompt) + len(request.tokens)
            if length > self.prefill_budget:
                if not batch:
                    self._chunked, self._chunked_done = self._queue.popleft(), 0
                    return self._prefill_piece(self._chunked)
                break
            distinct = {(*r.prompt, *r.tokens) for r in (*batch, request)}
            if batch and len(distinct) * max(longest, length) > self.prefill_budget:
                break
            batch.append(self._queue.popleft())
            longest = max(longest, length)
        return self._prefill(batch) if batch else []

    def _prefill(self, batch: list[Request]) -> list[Request]:
        """Prefill short sequences together, each distinct one once."""
        place: dict[tuple[int, ...], int] = {}
        for request in batch:
            place.setdefault((*request.prompt, *request.tokens), len(place))
        first, sequences = len(self._rows), list(place)
        logits, hidden, routes = self._forward(first, sequences, 0)
        places = [place[(*r.prompt, *r.tokens)] for r in batch]
        order, seen = [], set()  # the first of each kind keeps its row; twins follow and copy
        for i, sequence in enumerate(places):
            if sequence not in seen:
                seen.add(sequence)
                order.append(i)
        order += [i for i in range(len(batch)) if i not in order]
        batch, places = [batch[i] for i in order], [places[i] for i in order]
        for row, sequence in enumerate(places[len(sequences) :], len(sequences)):
            self.cache.write(first + row, self.cache.read(first + sequence, len(sequences[sequence])))
        lengths = [len(sequences[s]) for s in places]
        for request, length in zip(batch, lengths, strict=True):
            self._count_reprefill(request, length)
        pick = torch.tensor(places, device=logits.device)
        last = hidden[pick, torch.tensor(lengths, device=logits.device) - 1]
        ends = None if routes is None else [routes[s, n - 1] for s, n in zip(places, lengths, strict=True)]
        return self._start_decoding(batch, logits[pick], last, ends)

    def _prefill_piece(self, request: Request) -> list[Request]:
        """The next piece of a long prompt, in the spare row; the last piece moves it to the running ones."""
        done, spare = self._chunked_done, self.max_batch
        sequence = [*request.prompt, *request.tokens]
        piece = sequence[done : done + self.prefill_budget]
        logits, hidden, routes = self._forward(
            spare, [piece], done, sequence[done + len(piece)] if done + len(piece) < len(sequence) else None
        )
        self._chunked_done += len(piece)
        if self._chunked_done < len(sequence):
            return []
        self._chunked = None
        self._count_reprefill(request, len(sequence))
        self.cache.write(len(self._rows), self.cache.read(spare, len(sequence)))
        return self._start_decoding([request], logits, hidden[:, -1], None if routes is None else [routes[0, -1]])

    def _forward(
        self, row: int, sequences: list, done: int, following: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read sequences into rows row … → logits (B, V) after each, hidden (B, T, C), routes (B, T, MoE layers, K)."""
        chosen: list[Tensor] = []
        hooks = (
            [
                m.register_forward_hook(lambda _, __, out: chosen.append(out[0]))
                for layer in self.model.layers
                for m in layer.modules()
                if isinstance(m, Router)
            ]
            if self.record_routes
            else []
        )
        part = self.cache.rows(row, row + len(sequences), done)
        try:
            logits, hidden = prefill(self.model, part, sequences, self.mode)
        finally:
            for hook in hooks:
                hook.remove()
        self.stats.prefilled += sum(map(len, sequences))
        if self.speculator is not None:
            part.length = done
            self.speculator.prefill(part, sequences, hidden, following, self.mode)
        routes = torch.stack(chosen, 1).view(*hidden.shape[:2], len(chosen), -1).to(torch.int16) if chosen else None
        return logits, hidden, routes

    def _count_reprefill(self, request: Request, length: int) -> None:
        self.stats.reprefilled += self._seen.pop(request.id, length if request.tokens else 0)

    def _start_decoding(
        self, batch: list[Request], logits: Tensor, hidden: Tensor, routes: list[Tensor] | None
    ) -> list[Request]:
        """Sequences just read into the next rows: choose a token for each; those that it ends do not stay."""
        first = len(self._rows)
        chosen, logprobs = choose(logits.float(), *self._settings(batch))
        self._rows += batch
        for i, (request, token, logprob) in enumerate(zip(batch, chosen.tolist(), logprobs.tolist(), strict=True)):
            if self.speculator is not None:
                self.speculator.begin(first + i, len(request.prompt) + len(request.tokens) - 1, hidden[i], token)
            self._append_token(request, token, logprob, None if routes is None else routes[i])
        return self._finished()

    # ------------------------------------------------------------------ running

    def _decode(self) -> list[Request]:
        rows = self._rows
        if not rows:
            return []
        settings = self._settings(rows)
        if self.speculator is None:
            newest = torch.tensor([[r.tokens[-1]] for r in rows], device=self.cache.latent.device)
            logits = self.decoder.step(newest, [len(r.prompt) + len(r.tokens) - 1 for r in rows])[:, 0].float()
            chosen, logprobs = choose(logits, *settings)
            chosen, logprobs, right = chosen[:, None], logprobs[:, None], [0] * len(rows)
        else:
            chosen, logprobs, right = self.speculator.step(*settings)
        routes = None
        if self.record_routes and self.decoder.routes:
            routes = (
                torch.stack(self.decoder.routes, 1).view(*chosen.shape, len(self.decoder.routes), -1).to(torch.int16)
            )
        for i, (request, tokens, logs, a) in enumerate(
            zip(rows, chosen.tolist(), logprobs.tolist(), right, strict=True)
        ):
            before = len(request.tokens)
            for j in range(a + 1):
                self._append_token(request, tokens[j], logs[j], None if routes is None else routes[i, j])
                if request.reason:
                    break
            self.stats.drafted += chosen.shape[1] - 1
            self.stats.accepted += len(request.tokens) - before - 1
        return self._finished()

    @staticmethod
    def _settings(rows: list[Request]) -> tuple[list[float], list[float], list[tuple[int, int]]]:
        return [r.temperature for r in rows], [r.top_p for r in rows], [(r.seed, len(r.tokens)) for r in rows]

    def _append_token(self, request: Request, token: int, logprob: float, route: Tensor | None) -> None:
        request.tokens.append(token)
        request.logprobs.append(logprob)
        request.versions.append(self.version)
        if request.routes is not None and route is not None:
            request.routes.append(route.clone())
        self.stats.decoded += 1
        if token in request.stop:
            request.reason = "stop"
        elif len(request.tokens) >= request.max_new_tokens:
            request.reason = "length"

    def _finished(self) -> list[Request]:
        done = [r for r in self._rows if r.reason]
        for row in reversed(range(len(self._rows))):
            if self._rows[row].reason:
                self._ids.discard(self._rows[row].id)
                self._free_row(row)
        return done

    def _free_row(self, row: int) -> None:
        """The last running row moves into this one's place."""
        last = len(self._rows) - 1
        if row < last:
            moving = self._rows[row] = self._rows[last]
            self.cache.write(row, self.cache.read(last, len(moving.prompt) + len(moving.tokens)))
            if self.speculator is not None:
                self.speculator.write(row, self.speculator.read(last))
        self._rows.pop()

    # ------------------------------------------------------------------ resuming

    def _swap_out(self, row: int) -> None:
        request = self._rows[row]
        sequence = [*request.prompt, *request.tokens]
        cached = self.cache.read(row, len(sequence) - 1)
        drafts = None if self.speculator is None else self.speculator.read(row)
        self._swapped_out[request.id] = _SwappedOut(sequence, cached, drafts)
        while len(self._swapped_out) > 4 * self.max_batch:
            self._swapped_out.popitem(last=False)

    def _swap_in(self, request: Request, row: int) -> bool:
        """Put a cache back into a row if there is one for exactly these tokens."""
        swapped = self._swapped_out.pop(request.id, None)
        if swapped is None or swapped.sequence != [*request.prompt, *request.tokens]:
            return False
        self.cache.write(row, swapped.cached)
        if self.speculator is not None and swapped.drafts is not None:
            self.speculator.write(row, swapped.drafts)
        return True
