"""`minglm serve`: an OpenAI-compatible endpoint on this machine."""

from __future__ import annotations

import argparse
import os

from minglm.runtime.arguments import COUNT, LENGTH, number, whole

TEXT = "serve a trained run over HTTP, as OpenAI's API does: streaming, many clients at once"
EXAMPLES = """minglm serve --checkpoint runs/demo/sft
minglm serve --checkpoint runs/demo/sft --port 0 --num-speculative-tokens 2
MINGLM_API_KEY=... minglm serve --checkpoint runs/demo/sft --host 0.0.0.0
curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
  -d '{"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0}'"""


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="run folder, checkpoint folder, or what `minglm quantize` wrote",
    )
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; beyond this machine a key is needed (default 127.0.0.1)",
    )
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="0 takes a free one (default 8000)")
    p.add_argument(
        "--api-key",
        help="key that clients must send; better: the environment variable MINGLM_API_KEY, which no process list shows",
    )
    p.add_argument("--served-model-name", default="minglm", help="the model's name in answers")
    p.add_argument("--max-batch", type=COUNT, default=32, help="sequences decoded together (default 32)")
    p.add_argument(
        "--max-model-len",
        type=LENGTH,
        help="tokens of a sequence, prompt and answer (default: the model's, at most 1024)",
    )
    p.add_argument("--max-tokens", type=LENGTH, default=256, help="new tokens of an answer at most (default 256)")
    p.add_argument(
        "--max-concurrent",
        type=COUNT,
        default=128,
        help="sequences in work or waiting; more are answered 429 (default 128)",
    )
    p.add_argument("--max-body", type=COUNT, default=1 << 20, help="bytes of a request at most (default 1048576)")
    p.add_argument(
        "--timeout",
        type=number(above=0),
        default=120.0,
        help="seconds after which an answer ends with what it has (default 120)",
    )
    p.add_argument(
        "--drain",
        type=number(minimum=0),
        default=30.0,
        help="seconds that running answers get after SIGTERM (default 30)",
    )
    p.add_argument(
        "--header-timeout",
        type=number(above=0),
        default=10.0,
        help="seconds for a request's headers to come (default 10)",
    )
    p.add_argument(
        "--max-connections-per-address",
        type=COUNT,
        default=256,
        help="open connections of one address; then the one longest silent is closed (default 256)",
    )
    p.add_argument("--num-speculative-tokens", type=whole(0), default=0, help="MTP drafts a step (default 0)")
    p.add_argument("--mode", default="sparse", choices=("sparse", "dense"))
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras
    from minglm.serving.config import ServeSettings

    extras.require("train")
    extras.require("dist", "fastapi", "uvicorn", "prometheus_client")
    from minglm.serving.server import serve

    settings = ServeSettings(
        host=args.host,
        port=args.port,
        api_key=args.api_key or os.environ.get("MINGLM_API_KEY") or None,
        served_model_name=args.served_model_name,
        max_batch=args.max_batch,
        max_model_len=args.max_model_len,
        max_tokens=args.max_tokens,
        max_concurrent=args.max_concurrent,
        max_body=args.max_body,
        timeout_s=args.timeout,
        drain_s=args.drain,
        header_timeout_s=args.header_timeout,
        max_connections_per_address=args.max_connections_per_address,
        num_speculative_tokens=args.num_speculative_tokens,
        mode=args.mode,
    )
    return serve(args.checkpoint, settings, args.device, report=lambda line: print(line, flush=True))
