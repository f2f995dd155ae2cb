"""`minglm generate`: what a trained run writes."""

from __future__ import annotations

import argparse

from minglm.runtime.arguments import LENGTH, SEED, number
from minglm.runtime.terminal import json_text

TEXT = "continue a text, or answer with --chat"
EXAMPLES = """minglm generate --checkpoint runs/demo/sft --chat --prompt "What is 2 + 3?"
minglm generate --checkpoint runs/pretrain --prompt "def " --temperature 0.8 --seed 1"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or checkpoint folder")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's turn (after stage sft)")
    parser.add_argument("--tokens", type=LENGTH, default=64, help="at most so many new tokens")
    parser.add_argument(
        "--temperature", type=number(minimum=0), default=0.0, help="0 takes the likeliest token each time"
    )
    parser.add_argument("--top-p", type=number(above=0, maximum=1), default=1.0)
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument(
        "--mode", default="sparse", choices=("sparse", "dense"), help="how to attend; before dsa_warmup use dense"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:
    from minglm.runtime import extras

    extras.require("train")
    from minglm.inference.generate import generate
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(args.checkpoint, args.device)
    prompt = tokenizer.encode(args.prompt)
    if args.chat:
        prompt = [tokenizer.user, *prompt, tokenizer.assistant]
    out = generate(
        model,
        [[tokenizer.bos, *prompt]],
        args.tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop=(tokenizer.eos,),
        mode=args.mode,
    )
    text = tokenizer.decode(out.tokens[0])
    if args.json:
        print(json_text({"prompt": args.prompt, "text": text, "tokens": out.tokens[0], "stopped": out.stopped[0]}))
    else:
        print(text if args.chat else args.prompt + text)
    return 0
