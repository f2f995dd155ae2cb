"""The `minglm` command. Exit code 0: done. 1: it ran and failed. 2: bad input, one line says what and what to do.
130: stopped by Ctrl-C with the state saved. torch is imported only by the commands that compute.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minglm import __version__, datafiles
from minglm.errors import InputError, Parser

COMMANDS: dict[str, tuple[str, str, Callable]] = {}


def command(name: str, text: str, examples: str):
    """Register a function as a subcommand; its `add` attribute declares the arguments."""

    def register(function):
        COMMANDS[name] = (text, examples, function)
        return function

    return register


# ---------------------------------------------------------------------- commands


@command("doctor", "check this machine: versions, memory, measured speed", "minglm doctor\nminglm doctor --json")
def _doctor(args) -> int:
    from minglm.runtime import doctor

    checks = doctor.examine(measure=not args.quick)
    ready = doctor.as_json(checks)["ready"]
    print(json.dumps(doctor.as_json(checks), indent=1) if args.json else doctor.report(checks, sys.stdout.isatty()))
    return 0 if ready else 1


def _doctor_arguments(p) -> None:
    p.add_argument("--quick", action="store_true", help="leave out the measured matmul rates")
    p.add_argument("--json", action="store_true", help="for machines")


@command(
    "train",
    "train one stage from a recipe; the same command resumes it",
    "minglm train pretrain\nminglm train sparse --init-from runs/dsa_warmup\n"
    "minglm train pretrain --run runs/mine --set lr=0.01 --set steps=200\nminglm train ci_pretrain --overwrite --json\n"
    "torchrun --nproc-per-node 2 -m -- minglm train ci_pretrain --run runs/two --dp 2",
)
def _train(args) -> int:
    from minglm.training import parallel_dims, recipe

    changes = dict(recipe.parse_change(text) for text in args.set)
    chosen = recipe.load(args.recipe, changes)
    if args.print_config:
        print(recipe.render(chosen), end="")
        return 0
    run_dir = Path(args.run) if args.run else Path("runs") / Path(args.recipe).stem
    _need_torch()
    parallel = {"dp": args.dp, "ep": args.ep, "tp": args.tp, "cp": args.cp}
    if parallel_dims.launched() or any(parallel.values()):
        from minglm.distributed.run import train

        row = train(chosen, run_dir, args.init_from, not args.overwrite, not args.json, args.device, parallel)
    else:
        from minglm.training.loop import train

        row = train(
            chosen, run_dir, args.init_from, resume=not args.overwrite, progress=not args.json, device=args.device
        )
    if args.json:
        print(json.dumps(row))
    else:
        val = "" if row["val_loss"] is None else f", validation loss {row['val_loss']:.3f}"
        print(f"{run_dir}: {row['step']} steps, {row['tokens']:,} tokens, loss {row['loss']:.3f}{val}")
    return 0


def _train_arguments(p) -> None:
    p.add_argument("recipe", help="name in data/recipes, or a .yaml file")
    p.add_argument("--run", help="folder of the run (default runs/RECIPE)")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe; repeatable"
    )
    p.add_argument("--init-from", metavar="RUN", help="run or checkpoint whose weights the stage starts from")
    p.add_argument(
        "--overwrite", action="store_true", help="start over; the old run is moved to .trash-TIME-NAME beside it"
    )
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "npu", "mps"))
    for kind, text in (("dp", "rows"), ("ep", "experts"), ("tp", "heads"), ("cp", "the sequence")):
        p.add_argument(f"--{kind}", type=int, metavar="N", help=f"with torchrun: split {text} over N processes")
    p.add_argument("--print-config", action="store_true", help="print the recipe, every key explained, and stop")
    p.add_argument("--json", action="store_true", help="print the last row of metrics as JSON, no progress bar")


@command(
    "generate",
    "continue a text, or answer with --chat",
    'minglm generate --checkpoint runs/demo/sft --chat --prompt "What is 2 + 3?"\n'
    'minglm generate --checkpoint runs/pretrain --prompt "def " --temperature 0.8 --seed 1',
)
def _generate(args) -> int:
    _need_torch()
    from minglm.inference.generate import generate
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(args.checkpoint, args.device)
    prompt = [
        tokenizer.bos,
        *([tokenizer.user] if args.chat else []),
        *tokenizer.encode(args.prompt),
        *([tokenizer.assistant] if args.chat else []),
    ]
    out = generate(
        model,
        [prompt],
        args.tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop=(tokenizer.eos,),
        mode=args.mode,
    )
    text = tokenizer.decode(out.tokens[0])
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": text, "tokens": out.tokens[0], "stopped": out.stopped[0]}))
    else:
        print(text if args.chat else args.prompt + text)
    return 0


def _generate_arguments(p) -> None:
    p.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or checkpoint folder")
    p.add_argument("--prompt", required=True)
    p.add_argument("--chat", action="store_true", help="put the prompt as a user's turn (after stage sft)")
    p.add_argument("--tokens", type=int, default=64, help="at most so many new tokens")
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time")
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--mode", default="sparse", choices=("sparse", "dense"), help="how to attend; before dsa_warmup use dense"
    )
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    p.add_argument("--json", action="store_true")


@command(
    "export-hf",
    "write a run's model for transformers (GlmMoeDsaForCausalLM)",
    "minglm export-hf runs/demo/sft exported",
)
def _export_hf(args) -> int:
    _need_torch()
    from minglm.inference.load import load_model
    from minglm.interop.huggingface import export_hf

    model, tokenizer, _ = load_model(args.run)
    folder = export_hf(model, Path(args.folder))
    tokenizer.save(Path(folder) / "tokenizer.json")
    print(f"{folder}: config.json, model.safetensors and tokenizer.json written")
    return 0


def _export_arguments(p) -> None:
    p.add_argument("run", help="run folder or checkpoint folder")
    p.add_argument("folder", help="where to write")


@command(
    "import-hf",
    "make a run of a Hugging Face folder of type glm_moe_dsa, to train on or generate from",
    "minglm import-hf exported runs/imported",
)
def _import_hf(args) -> int:
    _need_torch()
    import shutil

    from minglm.interop.huggingface import import_hf
    from minglm.training import checkpoint

    source, run = Path(args.folder), Path(args.run)
    if checkpoint.find(run):
        raise InputError(f"{run}: holds checkpoints already; give a new folder")
    model = import_hf(source)
    found = checkpoint.save(
        run, 0, model.config, model.state_dict(), {}, {"recipe": None, "imported_from": source.name}
    )
    (run / "config.json").write_text(json.dumps(model.config.to_hf(), indent=1) + "\n", encoding="utf-8")
    if (source / "tokenizer.json").is_file():
        shutil.copy(source / "tokenizer.json", run / "tokenizer.json")
    print(f"{found}: {model.config.num_params():,} parameters")
    return 0


def _import_arguments(p) -> None:
    p.add_argument("folder", help="folder with config.json and safetensors")
    p.add_argument("run", help="run folder to make")


@command(
    "bench",
    "performance ratios, side by side in one run",
    "minglm bench\nminglm bench --list\nminglm bench --only training",
)
def _bench(args) -> int:
    from minglm.tools import bench

    there = bench.discover()
    if args.list:
        print("\n".join(there))
        return 0
    _need_torch()
    rows = bench.run(args.only, Path(args.out), show=not args.json)
    if args.json:
        print(json.dumps(rows, indent=1))
    missed = [row["name"] for row in rows if row.get("met") is False]
    if missed:
        print(f"{len(missed)} of {len(rows)} below target: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _bench_arguments(p) -> None:
    p.add_argument("--only", metavar="NAME", help="one bench")
    p.add_argument("--list", action="store_true", help="names of the benches")
    p.add_argument("--out", default="runs/bench", help="folder for the JSON files")
    p.add_argument("--json", action="store_true")


@command(
    "demo",
    "the whole way in about ten minutes: data, training, needle test; resumes, or says that it is done",
    "minglm demo\nminglm demo --overwrite\nminglm demo --size nano --run runs/tiny",
)
def _demo(args) -> int:
    _need_torch()
    from minglm.tools import demo

    return demo.main(args)


def _demo_arguments(p) -> None:
    p.add_argument("--run", default="runs/demo", help="folder for everything it makes (default runs/demo)")
    p.add_argument("--size", default="mini", help="mini (minutes) or nano (seconds, learns nothing much)")
    p.add_argument(
        "--overwrite", action="store_true", help="start over; the old folder is moved to .trash-TIME-NAME beside it"
    )
    p.add_argument("--quiet", action="store_true", help="no progress bars")


@command("lab", "open the notebooks in JupyterLab", "minglm lab\nminglm lab -- --port 9000")
def _lab(args) -> int:
    import importlib.util
    import subprocess

    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError(
            "jupyterlab is not installed; " + datafiles.hint("call `make lab`", datafiles.install_hint("train,lab"))
        )
    own = datafiles.course()
    if own is None and datafiles.root() is None:  # what is installed is not for writing into
        raise InputError(
            "the notebooks are not in this folder; minglm course my-course copies them, then cd my-course and call minglm lab"
        )
    first = (own or datafiles.notebooks()) / "learn" / "00_start_here.ipynb"
    return subprocess.call([sys.executable, "-m", "jupyterlab", *([str(first)] if first.is_file() else []), *args.rest])


def _lab_arguments(p) -> None:
    p.add_argument("rest", nargs="*", help="further arguments for jupyter lab, after --")


_ARGUMENTS = {
    "doctor": _doctor_arguments,
    "train": _train_arguments,
    "generate": _generate_arguments,
    "export-hf": _export_arguments,
    "import-hf": _import_arguments,
    "bench": _bench_arguments,
    "demo": _demo_arguments,
    "lab": _lab_arguments,
}


# ---------------------------------------------------------------------- the frame


def _need_torch() -> None:
    import importlib.util

    missing = [p for p in ("torch", "numpy", "tokenizers", "safetensors") if importlib.util.find_spec(p) is None]
    if missing:
        raise InputError(
            f"not installed: {', '.join(missing)}; {datafiles.install_hint('train')}"
            + datafiles.hint(" or call `make demo`", "")
        )


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="minglm",
        description="A small GLM-5, trained end to end on your machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='examples:\n  minglm doctor\n  minglm demo\n  minglm train pretrain\n  minglm generate --checkpoint runs/demo/sft --chat --prompt "What is 2 + 3?"',
    )
    top.add_argument("--version", action="version", version=f"minglm {__version__}")
    sub = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, examples, function) in COMMANDS.items():
        p = sub.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        )
        _ARGUMENTS[name](p)
        p.set_defaults(function=function)
    for name in _in_files():
        module = importlib.import_module(f"minglm.cli.{name}")
        p = sub.add_parser(
            name,
            help=module.TEXT,
            description=module.TEXT[0].upper() + module.TEXT[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES.splitlines()),
        )
        module.add(p)
        p.set_defaults(function=module.main)
    return top


def _in_files() -> list[str]:
    """Commands that are a file `minglm/cli/<name>.py` with TEXT, EXAMPLES, `add(parser)` and `main(args) -> int`; they
    import torch inside `main` only."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "main"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parser().parse_args(argv)
        if not args.command:
            parser().print_help()
            return 2
        return args.function(args)
    except InputError as err:
        print(f"{err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        sys.stderr.close()
        return 0
    except (OSError, MemoryError) as err:
        print(f"failed: {type(err).__name__}: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
