"""What a server is started with, and the limits that keep one client from hurting the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from minglm.errors import InputError

LOCAL = ("127.0.0.1", "localhost", "::1")
_COUNTS = (
    "port",
    "max_batch",
    "max_model_len",
    "max_tokens",
    "max_concurrent",
    "max_body",
    "max_connections_per_address",
)
_SECONDS = ("timeout_s", "drain_s", "header_timeout_s")


@dataclass(frozen=True)
class ServeSettings:
    """Limits of one server. Times in seconds, sizes in bytes. Names follow vLLM's where it has one.

    Raises:
        InputError: a value out of range, or a listener beyond this machine without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None  # clients send it as "Authorization: Bearer KEY"
    served_model_name: str = "minglm"  # the model's name in answers
    max_batch: int = 32  # sequences decoded together
    max_model_len: int | None = None  # positions of one sequence, prompt and answer; None: the model's, at most 1,024
    max_tokens: int = 256  # new tokens of one answer at most, and where a request names none
    max_concurrent: int = 128  # sequences in work or waiting; more are answered 429
    max_body: int = 1 << 20  # bytes of a request's body
    timeout_s: float = 120.0  # an answer that takes longer ends with what it has (finish_reason "length")
    drain_s: float = 30.0  # after SIGTERM: time for running answers to end
    header_timeout_s: float = 10.0  # from a connection's first byte, or its beginning, to the end of its headers
    max_connections_per_address: int = 256  # open ones; then the one that has been silent longest gives way
    num_speculative_tokens: int = 0  # MTP drafts a step
    mode: str = "sparse"

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _COUNTS and not (f.name == "max_model_len" and value is None):
                _check_count(f.name, value, f.default)
            elif f.name in _SECONDS:
                _check_seconds(f.name, value, f.default)
        if self.port > 65535:
            raise InputError(f"port={self.port}: ports end at 65535; 8000 is the default, 0 takes a free one")
        if self.api_key is not None and len(self.api_key) < 8:
            raise InputError(
                f"the key has {len(self.api_key)} characters: at least 8 are needed; "
                'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
            )
        if self.host not in LOCAL and not self.api_key:
            raise InputError(
                f"host {self.host}: other machines could use the server, so a key is needed; "
                "set MINGLM_API_KEY, or keep --host 127.0.0.1"
            )


def _check_count(name: str, value: object, default: object) -> None:
    least = 0 if name == "port" else 1  # port 0 takes a free one
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}: must be a whole number of at least {least}; "
            f"the default is {default or 'what the model has'}"
        )


def _check_seconds(name: str, value: object, default: object) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r}: must be a positive number of seconds; the default is {default:g}")
