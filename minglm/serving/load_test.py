"""Load on a server of this machine, and what it shows: errors, latency, memory.

    python -m minglm.serving.load_test --checkpoint runs/demo/sft --clients 64 --seconds 120

starts a server, lets clients of six kinds use it side by side (whole answers, streams, ones that leave in the middle, slow
readers, senders of broken JSON, senders of prompts that are too long), and writes runs/soak/serving.json. It only ever
talks to the loopback address. Exit code 0: no unexpected answer, memory flat, the slowest hundredth bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minglm.errors import InputError, Parser

KINDS = ("whole", "stream", "leaves", "slow", "broken", "too_long")
WEIGHTS = (35, 35, 10, 10, 5, 5)


@contextlib.contextmanager
def running(checkpoint: str | Path, *arguments: str, wait_s: float = 90.0) -> Iterator[tuple[subprocess.Popen, str]]:
    """`minglm serve` in a process of its own on a free port: (process, base URL ending in /v1)."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # a pipe that nobody reads would fill and stop the server
    process = subprocess.Popen(
        [sys.executable, "-m", "minglm", "serve", "--checkpoint", str(checkpoint), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )

    def said() -> str:
        errors.seek(0)
        return errors.read()

    try:
        deadline, first = time.monotonic() + wait_s, []
        reader = threading.Thread(target=lambda: first.append(process.stdout.readline()), daemon=True)
        reader.start()  # it says where it listens, or ends
        reader.join(wait_s)
        line = first[0] if first else f"silent for {wait_s:.0f} s "
        if "http://" not in line:
            process.kill()
            raise RuntimeError(f"the server did not start: {line}{said()}")
        url = line.split(" on ")[1].split()[0]
        import urllib.request

        while True:
            try:
                with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not come up: {said() or 'no answer'}") from None
                time.sleep(0.1)
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        process.stdout.close()
        if "Traceback" in (text := said()):
            sys.stderr.write(f"the server's own errors:\n{text[-3000:]}")
        errors.close()


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where the system does not tell (it is read from /proc)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None


def _ask(rng: random.Random, tokens: int, stream: bool) -> dict:
    words = " ".join(
        rng.choice(("amber", "river", "what", "is", "the", "code", "of", "2", "+", "3"))
        for _ in range(rng.randint(1, 24))
    )
    return {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": rng.randint(1, tokens),
        "temperature": rng.choice((0, 1)),
        "stream": stream,
    }


async def _client(index: int, url: str, until: float, tokens: int, seen: dict, http) -> None:
    rng = random.Random(index)
    while time.monotonic() < until:
        kind = rng.choices(KINDS, WEIGHTS)[0]
        began = time.monotonic()
        try:
            status = await _KINDS[kind](http, url + "/chat/completions", rng, tokens)
        except Exception as err:  # whatever it is, it is counted and shown
            status = f"{type(err).__name__}: {err}"[:120]
        wanted = {"broken": 400, "too_long": 400}.get(kind, 200)
        seen["answers"][kind, str(status)] += 1
        if status == 429:
            await asyncio.sleep(0.2)  # as the answer's retry-after asks, in short
        elif status != wanted:
            seen["unexpected"][f"{kind}: {status}"] += 1
        elif kind in ("whole", "stream"):
            seen["seconds"].append(time.monotonic() - began)


async def _whole(http, url: str, rng, tokens: int):
    answer = await http.post(url, json=_ask(rng, tokens, False))
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            return f"finish_reason {choice['finish_reason']}"
    return answer.status_code


async def _streamed(http, url: str, rng, tokens: int, pause_s: float = 0.0, leave_after: int | None = None):
    async with http.stream("POST", url, json=_ask(rng, tokens, True)) as answer:
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


async def _broken(http, url: str, rng, tokens: int):
    body = rng.choice(
        (
            b'{"messages": [',
            b"\xff\xfe",
            b"[" * 2000,
            b'{"messages": "no list"}',
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
            b"",
        )
    )
    return (await http.post(url, content=body, headers={"content-type": "application/json"})).status_code


async def _too_long(http, url: str, rng, tokens: int):
    return (
        await http.post(url, json={"messages": [{"role": "user", "content": "word " * rng.randint(3000, 6000)}]})
    ).status_code


_KINDS = {
    "whole": _whole,
    "stream": _streamed,
    "slow": lambda *a: _streamed(*a, pause_s=0.05),
    "leaves": lambda *a: _streamed(*a, leave_after=2),
    "broken": _broken,
    "too_long": _too_long,
}


async def load(url: str, pid: int, clients: int, seconds: float, tokens: int = 48, progress=None) -> dict:
    """Run the clients; the result is JSON-ready."""
    import httpx

    seen = {"answers": Counter(), "unexpected": Counter(), "seconds": []}
    began, memory = time.monotonic(), []

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - began, rss_bytes(pid)))
            if progress:
                progress(min(seconds, memory[-1][0]))
            await asyncio.sleep(min(1.0, seconds / 30))

    async with httpx.AsyncClient(
        timeout=120, limits=httpx.Limits(max_connections=clients * 2, max_keepalive_connections=clients)
    ) as http:
        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(_client(i, url, began + seconds, tokens, seen, http) for i in range(clients)))
        watcher.cancel()
    took = sorted(seen["seconds"])

    def percentile(p: float) -> float | None:
        return took[min(len(took) - 1, int(p * len(took)))] if took else None

    # the first third is warm-up: buffers grow to what the largest batch needs
    flat = [m for t, m in memory if m is not None and t > seconds / 3]
    half = len(flat) // 2
    growth = (sorted(flat[half:])[len(flat[half:]) // 2] / sorted(flat[:half])[half // 2] - 1) if half else None
    return {
        "clients": clients,
        "seconds": time.monotonic() - began,
        "answers": {f"{k} {s}": n for (k, s), n in sorted(seen["answers"].items())},
        "unexpected": dict(seen["unexpected"]),
        "measured": len(took),
        "p50_s": percentile(0.5),
        "p95_s": percentile(0.95),
        "p99_s": percentile(0.99),
        "longest_s": took[-1] if took else None,
        "rss_mib": [round(m / 2**20, 1) for m in (flat[0], flat[-1])] if flat else None,
        "rss_growth": growth,
    }


def judge(result: dict, p99_factor: float = 8.0) -> list[str]:
    """What is wrong with a result; empty when nothing is. Latency is judged against its own median: machines differ."""
    bad = [f"{n} × {what}" for what, n in result["unexpected"].items()]
    if not result["measured"]:
        bad.append("no answer was measured")
    elif result["p99_s"] > p99_factor * max(result["p50_s"], 0.05):
        bad.append(f"p99 {result['p99_s']:.2f} s is more than {p99_factor:g} times the median {result['p50_s']:.2f} s")
    if result["rss_growth"] is not None and result["rss_growth"] > 0.05:
        bad.append(f"memory grew by {result['rss_growth']:.1%} after the warm-up, more than 5%")
    return bad


def main(argv: list[str] | None = None) -> int:
    from tqdm import tqdm

    p = Parser(prog="python -m minglm.serving.load_test", description=__doc__.splitlines()[0])
    p.add_argument("--checkpoint", default="runs/demo/sft")
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=120.0)
    p.add_argument("--out", default="runs/soak/serving.json")
    try:
        args = p.parse_args(argv)
        if not 1 <= args.clients <= 1000:
            raise InputError(f"--clients {args.clients}: 1 to 1,000 clients; the default is 64")
        if not 1 <= args.seconds <= 86_400:
            raise InputError(f"--seconds {args.seconds:g}: 1 to 86,400 seconds; the default is 120")
        if not Path(args.checkpoint).is_dir():
            raise InputError(
                f"--checkpoint {args.checkpoint}: no such run; minglm demo trains runs/demo/sft, or give another run folder"
            )
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with (
            running(args.checkpoint) as (process, url),
            tqdm(
                total=args.seconds,
                unit="s",
                desc=f"{args.clients} clients",
                bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s",
            ) as bar,
        ):
            result = asyncio.run(
                load(url, process.pid, args.clients, args.seconds, progress=lambda t: bar.update(t - bar.n))
            )
            import urllib.request

            with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=10) as answer:
                result["afterwards"] = json.load(answer)
    except (InputError, OSError, RuntimeError) as err:  # a server that does not start says why in its last line
        print((str(err).strip().splitlines() or [type(err).__name__])[-1], file=sys.stderr)
        return 1 if isinstance(err, RuntimeError) else 2
    result["wrong"] = judge(result)
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
