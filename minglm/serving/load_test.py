"""Load on a server of this machine, and what it shows: errors, latency, memory.

    python -m minglm.serving.load_test --checkpoint runs/demo/sft --clients 64 --seconds 120

starts a server, lets clients of six kinds use it side by side (whole answers, streams, ones that leave in the middle,
slow readers, senders of broken JSON, senders of prompts that are too long), and writes runs/soak/serving.json. It
only ever talks to the loopback address. Exit code 0: no unexpected answer, memory flat, the slowest hundredth bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minglm import atomic, datafiles
from minglm.errors import InputError, Parser
from minglm.runtime import loopback

if TYPE_CHECKING:
    import httpx


@contextlib.contextmanager
def running(checkpoint: str | Path, *arguments: str, wait_s: float = 90.0) -> Iterator[tuple[subprocess.Popen, str]]:
    """`minglm serve` in a process of its own on a free port: (process, base URL ending in /v1).

    Raises:
        RuntimeError: it did not start within `wait_s` seconds; the message ends with what it printed.
    """
    loopback.bypass_proxy()  # for whatever client the caller asks with
    errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # a pipe that nobody reads would fill and stop the server
    process = subprocess.Popen(
        [sys.executable, "-m", "minglm", "serve", "--checkpoint", str(checkpoint), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
    )

    def printed_errors() -> str:
        errors.seek(0)
        return errors.read()

    try:
        yield process, _wait_until_up(process, printed_errors, wait_s)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        if "Traceback" in (text := printed_errors()):
            sys.stderr.write(f"the server's own errors:\n{text[-3000:]}")
        errors.close()


def _wait_until_up(process: subprocess.Popen, printed_errors: Callable[[], str], wait_s: float) -> str:
    """The base URL, once the server says where it listens and answers there."""
    deadline_s = time.monotonic() + wait_s
    lines: list[str] = []
    stdout = process.stdout
    assert stdout is not None
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()  # it says where it listens, or ends
    reader.join(wait_s)
    line = lines[0] if lines else f"silent for {wait_s:.0f} s "
    if "http://" not in line:
        process.kill()
        raise RuntimeError(f"the server did not start: {line}{printed_errors()}")
    url = line.split(" on ")[1].split()[0]
    while True:
        try:
            get_health(url, timeout_s=5)
            return url
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the server did not come up: {printed_errors() or 'no answer'}") from None
            time.sleep(0.1)


def get_health(url: str, timeout_s: float = 10) -> dict:
    """What /health says of the server whose base URL is `url`."""
    with loopback.urlopen(url.removesuffix("/v1") + "/health", timeout=timeout_s) as answer:
        return json.load(answer)


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where the system does not tell (it is read from /proc)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None


@dataclass
class Tally:
    """What the clients of one load saw."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind of client, status): count
    unexpected: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)  # of whole and streamed answers


@dataclass(frozen=True)
class Sender:
    """How one client reaches the server. `max_tokens`: new tokens of an answer at most."""

    http: httpx.AsyncClient
    url: str
    rng: random.Random
    max_tokens: int

    def chat(self, stream: bool) -> dict:
        """A random request body that the server must accept."""
        words = " ".join(
            self.rng.choice(("amber", "river", "what", "is", "the", "code", "of", "2", "+", "3"))
            for _ in range(self.rng.randint(1, 24))
        )
        return {
            "messages": [{"role": "user", "content": words}],
            "max_tokens": self.rng.randint(1, self.max_tokens),
            "temperature": self.rng.choice((0, 1)),
            "stream": stream,
        }


Status = int | str  # an HTTP status, or in words what went wrong


async def _whole(sender: Sender) -> Status:
    answer = await sender.http.post(sender.url, json=sender.chat(stream=False))
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            return f"finish_reason {choice['finish_reason']}"
    return answer.status_code


async def _stream(sender: Sender, pause_s: float = 0.0, leave_after: int | None = None) -> Status:
    async with sender.http.stream("POST", sender.url, json=sender.chat(stream=True)) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code
        count, last = 0, ""
        async for line in answer.aiter_lines():
            if line:
                count, last = count + 1, line
            if leave_after is not None and count >= leave_after:
                return 200
            if pause_s:
                await asyncio.sleep(pause_s)
    return 200 if last == "data: [DONE]" else f"stream ended with {last[:60]!r}"


async def _slow(sender: Sender) -> Status:
    return await _stream(sender, pause_s=0.05)


async def _leaves(sender: Sender) -> Status:
    return await _stream(sender, leave_after=2)


async def _broken(sender: Sender) -> Status:
    body = sender.rng.choice(
        (
            b'{"messages": [',
            b"\xff\xfe",
            b"[" * 2000,
            b'{"messages": "no list"}',
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
            b"",
        )
    )
    answer = await sender.http.post(sender.url, content=body, headers={"content-type": "application/json"})
    return answer.status_code


async def _too_long(sender: Sender) -> Status:
    messages = [{"role": "user", "content": "word " * sender.rng.randint(3000, 6000)}]
    return (await sender.http.post(sender.url, json={"messages": messages})).status_code


class Kind(NamedTuple):
    """One kind of client: what it does, how often (relative), and the status it should get."""

    send: Callable[[Sender], Awaitable[Status]]
    weight: int
    expected: int = 200


KINDS = {
    "whole": Kind(_whole, 35),
    "stream": Kind(_stream, 35),
    "leaves": Kind(_leaves, 10),
    "slow": Kind(_slow, 10),
    "broken": Kind(_broken, 5, expected=400),
    "too_long": Kind(_too_long, 5, expected=400),
}


async def _client(sender: Sender, until_s: float, tally: Tally) -> None:
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    while time.monotonic() < until_s:
        name = sender.rng.choices(names, weights)[0]
        began_s = time.monotonic()
        try:
            status = await KINDS[name].send(sender)
        except Exception as err:  # whatever it is, it is counted and shown
            status = f"{type(err).__name__}: {err}"[:120]
        tally.answers[name, str(status)] += 1
        if status == 429:
            await asyncio.sleep(0.2)  # as the answer's retry-after asks, in short
        elif status != KINDS[name].expected:
            tally.unexpected[f"{name}: {status}"] += 1
        elif name in ("whole", "stream"):
            tally.latencies_s.append(time.monotonic() - began_s)


async def load(
    url: str,
    pid: int,
    clients: int,
    seconds: float,
    tokens: int = 48,
    progress: Callable[[float], None] | None = None,
) -> dict:
    """Run `clients` for `seconds` against the server with process id `pid`; the result is JSON-ready.

    tokens: new tokens of an answer at most. progress: called with the seconds passed.
    """
    import httpx

    tally, began_s = Tally(), time.monotonic()
    memory: list[tuple[float, int | None]] = []  # (seconds since the start, resident bytes)

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - began_s, rss_bytes(pid)))
            if progress:
                progress(min(seconds, memory[-1][0]))
            await asyncio.sleep(min(1.0, seconds / 30))

    async with httpx.AsyncClient(
        timeout=120,
        limits=httpx.Limits(max_connections=clients * 2, max_keepalive_connections=clients),
        trust_env=False,  # no proxy
    ) as http:
        watcher = asyncio.create_task(watch())
        senders = [Sender(http, url + "/chat/completions", random.Random(i), tokens) for i in range(clients)]
        await asyncio.gather(*(_client(sender, began_s + seconds, tally) for sender in senders))
        watcher.cancel()
    latencies_s = sorted(tally.latencies_s)

    def percentile(p: float) -> float | None:
        return latencies_s[min(len(latencies_s) - 1, int(p * len(latencies_s)))] if latencies_s else None

    # the first third is warm-up: buffers grow to what the largest batch needs
    settled = [m for t, m in memory if m is not None and t > seconds / 3]
    half = len(settled) // 2
    growth = statistics.median_high(settled[half:]) / statistics.median_high(settled[:half]) - 1 if half else None
    return {
        "clients": clients,
        "seconds": time.monotonic() - began_s,
        "answers": {f"{kind} {status}": n for (kind, status), n in sorted(tally.answers.items())},
        "unexpected": dict(tally.unexpected),
        "measured": len(latencies_s),
        "p50_s": percentile(0.5),
        "p95_s": percentile(0.95),
        "p99_s": percentile(0.99),
        "longest_s": latencies_s[-1] if latencies_s else None,
        "rss_mib": [round(m / 2**20, 1) for m in (settled[0], settled[-1])] if settled else None,
        "rss_growth": growth,
    }


def judge(result: dict, p99_factor: float = 8.0) -> list[str]:
    """What is wrong with a result; empty when nothing is. Latency is judged against its own median: machines differ."""
    faults = [f"{n} × {what}" for what, n in result["unexpected"].items()]
    if not result["measured"]:
        faults.append("no answer was measured")
    elif result["p99_s"] > p99_factor * max(result["p50_s"], 0.05):
        faults.append(
            f"p99 {result['p99_s']:.2f} s is more than {p99_factor:g} times the median {result['p50_s']:.2f} s"
        )
    if result["rss_growth"] is not None and abs(result["rss_growth"]) > 0.05:
        faults.append(f"memory changed by {result['rss_growth']:+.1%} after the warm-up, more than 5%")
    return faults


def main(argv: list[str] | None = None) -> int:
    """The command. Exit code 0: nothing wrong; 1: something is, or the server did not start; 2: bad input."""
    from tqdm import tqdm

    p = Parser(prog="python -m minglm.serving.load_test", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--checkpoint", help="run folder (default runs/demo/sft)")
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=120.0)
    p.add_argument("--out", help="JSON to write (default runs/soak/serving.json)")
    try:
        args = p.parse_args(argv)
        args.checkpoint = args.checkpoint or datafiles.runs("demo", "sft")
        args.out = args.out or datafiles.runs("soak", "serving.json")
        if not 1 <= args.clients <= 1000:
            raise InputError(f"--clients {args.clients}: 1 to 1,000 clients; the default is 64")
        if not 1 <= args.seconds <= 86_400:
            raise InputError(f"--seconds {args.seconds:g}: 1 to 86,400 seconds; the default is 120")
        if not Path(args.checkpoint).is_dir():
            raise InputError(
                f"--checkpoint {args.checkpoint}: no such run; "
                "minglm demo trains runs/demo/sft, or give another run folder"
            )
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with (
            running(args.checkpoint, "--max-connections-per-address", str(2 * args.clients + 16)) as (process, url),
            tqdm(
                total=args.seconds,
                unit="s",
                desc=f"{args.clients} clients",
                bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s",
            ) as bar,
        ):

            def advance(seconds: float) -> None:
                bar.update(seconds - bar.n)

            result = asyncio.run(load(url, process.pid, args.clients, args.seconds, progress=advance))
            result["afterwards"] = get_health(url)
    except (InputError, OSError, RuntimeError) as err:  # a server that does not start says why in its last line
        print((str(err).strip().splitlines() or [type(err).__name__])[-1], file=sys.stderr)
        return 1 if isinstance(err, RuntimeError) else 2
    result["wrong"] = judge(result)
    atomic.write_json(args.out, result)
    print(json.dumps(result, indent=1))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
