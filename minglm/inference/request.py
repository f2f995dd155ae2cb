"""A prompt to continue, what has come of it so far, and the rules that a request must keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.sampling import check_sampling


@dataclass
class Request:
    """A prompt to continue, and what has come of it so far. One given back in with tokens goes on from there."""

    id: str
    prompt: list[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()  # a stop token ends the response and is part of it: the policy chose it
    tokens: list[int] = field(default_factory=list)  # the response so far
    # Log-probability of each response token under the distribution it was sampled from, temperature and top_p applied;
    # at temperature 0 the model's own, at temperature 1.
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)  # weight version that each response token was sampled with
    # For each response token, the experts chosen at the position that predicted it, int16 (MoE layers, K).
    routes: list[Tensor] | None = None
    reason: str = ""  # "stop" or "length" when done, "abort" when given back

    def check(self, config: ModelConfig, max_len: int) -> None:
        """Whether a model of this config can continue it within `max_len` positions.

        Raises:
            InputError: it cannot; the message says why, and what to do.
        """
        who, V = f"request {self.id!r}", config.vocab_size
        if not self.prompt:
            raise InputError(f"{who}: the prompt is empty; start it with bos_token_id={config.bos_token_id}")
        for token in (*self.prompt, *self.tokens):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < V:
                raise InputError(
                    f"{who} holds token {token!r}: the vocabulary is 0 to {V - 1}; use the tokenizer this model was "
                    f"made with"
                )
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise InputError(f"{who}: max_new_tokens={self.max_new_tokens!r}; must be a whole number of at least 1")
        if (total := len(self.prompt) + self.max_new_tokens) > max_len:
            raise InputError(
                f"{who}: prompt of {len(self.prompt)} and max_new_tokens={self.max_new_tokens} are {total} positions, "
                f"more than max_len={max_len}; shorten one of them or make the engine with max_len={total}"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"{who}: seed={self.seed!r}; must be a whole number")
        try:
            check_sampling(self.temperature, self.top_p)
        except InputError as err:
            raise InputError(f"{who}: {err}") from None
        if not len(self.tokens) == len(self.logprobs) == len(self.versions):
            raise InputError(
                f"{who}: {len(self.tokens)} tokens, {len(self.logprobs)} logprobs and {len(self.versions)} versions; "
                "each response token needs one of both"
            )
        if len(self.tokens) >= self.max_new_tokens or (self.tokens and self.tokens[-1] in self.stop):
            raise InputError(f"{who}: already complete with {len(self.tokens)} tokens; submit unfinished ones only")
