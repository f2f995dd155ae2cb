"""Every option of every command meets odd values, taken from the parsers themselves: exit code 0, 1 or 2, bad input in
one line, never a traceback, and what `--json` prints is JSON.

In this process, for speed. Work of minutes is replaced by a stand-in, named in HEAVY: what is tried there is how the
values are read and checked before it.
"""

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
from minglm.cli.main import PROGRAM as MINGLM
from sim.cli.main import PROGRAM as CLUSTERSIM

PROGRAMS = {p.name: p for p in (MINGLM, CLUSTERSIM)}
NUMBERS = ["0", "-1", "-0.0", "nan", "inf", "1e400", "1e-320", "18446744073709551616", "9" * 30, "9" * 5000, "", "x"]
NUMBERS += ["1.5", "1e1", "0x10", "1_0", "\u0663", " 1", "1,2", "{}"]
TEXTS = [
    "",
    " ",
    "nosuch",
    "nosuch.yaml",
    "no/such/file",
    "x" * 5000,
    "..",
    ".",
    "-",
    "{",
    "[1",
    "a: b: c",
    "#",
    "a=#b",
]
TEXTS += [
    "=",
    "a",
    "a=",
    "\u2028",
    "\x07",
    "\x1b[31m",
    "\u674e \U0001f600",
    "0",
    "-1",
    "nan",
    "null",
    "!!python/x 1",
    "%",
]
TEXTS += ["/dev/null", "file.txt", "empty.yaml", "broken.yaml", "binary.yaml", "list.yaml", "utf16.yaml", "twice.yaml"]
TEXTS += ["folder", "file.txt/x", "&a [*a]", "b.json", "b.csv", "b.html"]

ONE = ["--chips", "8", "--batch", "8", "--set", "tp=1", "--set", "pp=1"]
SMALL = ("engines=4", "prompts_per_batch=8", "samples_per_prompt=2", "train_chips=64", "steps=1", "warmup=0")
# A call that works and takes moments: positional arguments, options. {run} is a small checkpoint.
BASE = {
    "minglm doctor": ([], ["--quick"]),
    "minglm train": (["ci_pretrain"], ["--run", "r", "--set", "steps=1", "--device", "cpu"]),
    "minglm generate": ([], ["--checkpoint", "{run}", "--prompt", "a", "--tokens", "2"]),
    "minglm export-hf": (["{run}", "hf"], []),
    "minglm import-hf": (["hf", "r"], []),
    "minglm bench": ([], ["--only", "model"]),
    "minglm probe": ([], ["--quick", "--device", "cpu", "--out", "probe"]),
    "minglm demo": ([], ["--size", "nano"]),
    "minglm lab": ([[]], []),
    "minglm course": (["c"], []),
    "minglm eval scorecard": ([], ["--checkpoint", "{run}", "--problems", "1", "--length", "128"]),
    "minglm eval pass": ([], ["--checkpoint", "{run}", "--problems", "1", "--samples", "1"]),
    "minglm eval needle": ([], ["--checkpoint", "{run}", "--lengths", "128", "--depths", "0.5", "--per-cell", "1"]),
    "minglm eval arena": ([["{run}", "{run}/"]], ["--problems", "1", "--votes", "4"]),
    "minglm hallucination": ([], ["--smoke"]),
    "minglm quantize": (["{run}"], ["--format", "fp8", "--out", "q"]),
    "minglm rl": (["sum"], ["--init-from", "{run}", "--run", "r", "--updates", "1"]),
    "minglm serve": ([], ["--checkpoint", "{run}"]),
    "minglm exercise list": ([], []),
    "minglm exercise check": (["plan_planner.signed"], []),
    "minglm exercise hint": (["plan_planner.signed"], []),
    "minglm workshop preflight": ([], []),
    "minglm workshop build": ([], ["--check"]),
    "minglm workshop collect": (["folder"], ["--every", "0"]),  # one page, where one is asked for
    "minglm workshop checkpoints": ([], ["--verify"]),
    "minglm workshop timing": ([], ["--only", "00_start_here"]),
    "minglm workshop contents": ([], []),
    "minglm workshop wheelhouse": ([], []),
    "minglm workshop kernels": ([], ["--count", "1"]),
    "minglm workshop slides": ([["nosuch.ipynb"]], []),
    "minglm workshop polls": ([], []),
    "clustersim run": (["glm5_mini_smoke"], ["--no-what-if", "--out", "none"]),
    "clustersim plan": ([], ["--model", "llama2_7b", "--chip", "h100", *ONE]),
    "clustersim compare": ([], ["--model", "llama2_7b", "--chip", "h100,h800", *ONE]),
    "clustersim sweep": (["glm5_mini_smoke"], ["--vary", "seed=[0]", "--workers", "1"]),
    "clustersim campaign": (["glm5_mini_smoke"], ["--seeds", "2"]),
    "clustersim rollouts": (["rollouts_glm5_100k"], [f"--set={pair}" for pair in SMALL]),
    "clustersim serving": ([], ["--requests", "5"]),
    "clustersim validate": ([["nosuch.yaml"]], []),
    "clustersim trace": (["glm5_mini_smoke"], ["--out", "t.json"]),
    "clustersim claims": ([], []),
    "clustersim explain": (["glm5_mini_smoke"], []),
    "clustersim normal": (["glm5_mini_smoke"], ["--measured", "step_s=1"]),
    "clustersim catalogue": ([], []),
    "clustersim import-args": (["launch.sh"], ["--chips", "8"]),
    "clustersim dashboard": ([], ["--port", "18866"]),
    "clustersim report": (["folder"], []),
}
# A base that itself is bad input: a good one would take long, or files that are not here.
REFUSED = {
    "minglm import-hf",
    "minglm eval scorecard",
    "minglm workshop slides",
    "clustersim validate",
    "clustersim report",
}
REFUSED |= {"minglm workshop checkpoints", "minglm workshop collect"}
# Options of whole numbers for which 0 has a meaning; everywhere else it is refused, as a negative number always is.
ZERO = {
    "clustersim plan --samples",
    "--seed",
    "--num-speculative-tokens",
    "--filter-staleness-above",
    "minglm serve --port",
}


def leaves(parser, words):
    """(words, parser) of every command that has no commands of its own."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield " ".join(words), parser
    for action in inner:
        for name, child in action.choices.items():
            yield from leaves(child, [*words, name])


LEAVES = {words: parser for program in PROGRAMS.values() for words, parser in leaves(program.parser(), [program.name])}


def calls(words, run, plain=False):
    """(argv, option, value) for every option of the command and every odd value; or the plain call that works."""
    positional, options = BASE[words]
    json_flag = ["--json"] if any("--json" in a.option_strings for a in LEAVES[words]._actions) else []

    def argv(extra=(), given=positional):
        flat = [v for value in given for v in ([value] if isinstance(value, str) else value)]
        values = [*options, *extra, *json_flag, *(["--", *flat] if flat else [])]
        return [*words.split()[1:], *(v.replace("{run}", str(run)) for v in values)]

    if plain:
        yield argv(), "", None
        return
    place = 0
    for action in LEAVES[words]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        flag = (action.option_strings or [""])[0]
        switch = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
        for value in [None] if switch else NUMBERS if action.type is not None else TEXTS:
            if not flag:
                yield argv(given=[*positional[:place], value, *positional[place + 1 :]]), "", value
            elif switch:
                yield argv([action.option_strings[-1]]), flag, None
            else:
                several = [flag, *[value] * action.nargs] if isinstance(action.nargs, int) else [f"{flag}={value}"]
                yield argv(several), flag, value
        place += not flag


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name, content in {
        "file.txt": b"x",
        "empty.yaml": b"",
        "broken.yaml": b"a: [1",
        "binary.yaml": bytes(range(256)) * 8,
        "list.yaml": b"- 1\n- 2\n",
        "utf16.yaml": "steps: 1".encode("utf-16"),
        "twice.yaml": b"steps: 1\nsteps: 2\n",
        "launch.sh": b"python train.py --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64",
    }.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path / "folder"))
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path / "runs"))  # what is given no place of its own is not the user's
    monkeypatch.delenv("MINGLM_API_KEY", raising=False)
    return tmp_path


@pytest.fixture
def light(monkeypatch):
    """HEAVY work, stood in for; the checks before it are real."""
    row = {"step": 1, "tokens": 1, "loss": 1.0, "val_loss": None}
    rl = {"run_dir": "r", "mode": "sync"}
    kernels = {"failed": 0}
    from minglm.tools.probe import Size
    from sim.study.monte_carlo import draws

    tiny = Size((32, 64), ((64, 4), (64, 8)), 2**12, 0.01, 2, (2**12,))
    heavy = {
        "minglm.training.loop.train": lambda *a, **k: row,
        "minglm.rl.run.rl": lambda *a, **k: rl,
        "minglm.rl.warm_start.for_recipe": lambda *a, **k: "r",
        "minglm.rl.abstention.run": lambda *a, **k: {"reached": True},
        "minglm.rl.abstention_summary.render": lambda out: "",
        "minglm.tools.bench.run": lambda *a, **k: [],
        "minglm.tools.probe.CPU_QUICK": tiny,
        "minglm.tools.probe.CPU": tiny,
        "minglm.tools.probe.Clock.seconds": lambda clock, call: (call(), (1e-3, 0.0))[1],
        "minglm.tools.demo.run_demo": lambda *a, **k: {},
        "minglm.tools.demo.report": lambda *a, **k: "",
        "minglm.course.workshop.timing.measure": lambda *a, **k: [],
        "minglm.course.workshop.timing.write": lambda *a, **k: "timing.md",
        "minglm.course.workshop.checkpoints.make": lambda *a, **k: {},
        "minglm.course.workshop.checkpoints.report": lambda *a, **k: "",
        "minglm.course.workshop.wheelhouse._pip": lambda arguments: subprocess.CompletedProcess([], 0, "", ""),
        "minglm.course.workshop.kernels.measure": lambda *a, **k: kernels,
        "minglm.course.workshop.kernels.report": lambda *a, **k: "",
        "minglm.serving.server.serve": lambda *a, **k: 0,
        "minglm.cli.lab.subprocess.call": lambda *a, **k: 0,
        "minglm.cli.quantize._evaluate": lambda *a, **k: {},
        "sim.planner.planner.answer": lambda *a, **k: {"document": None},
        "sim.cli.plan._explained": lambda document: {},
        "sim.cli.validate._plans": lambda args: print("{}") or 0,
        "sim.cli.validate._left_out": lambda args: print("{}") or 0,
        "sim.report.errors.write": lambda path: path,
        "sim.validation.local_toy.compare": lambda chip: {},
        "sim.validation.serving.validate": lambda: {"rows": 1},
        "sim.study.projection.DRAWS": 2,
        "sim.planner.normal.draws": lambda s, samples, **k: draws(s, 2, **k),
        "sim.report.plan.write": lambda *a, **k: None,
        "sim.planner.compare.compare": lambda *a, **k: {"rows": [{"days": 1}]},
        "sim.validation.rollout.validate": lambda *a, **k: {"rows": []},
        "minglm.course.workshop.generator.build": lambda *a, **k: [],
    }
    for name, stand_in in heavy.items():
        monkeypatch.setattr(name, stand_in)
    from sim.cli import dashboard

    def only_check(args):
        dashboard.check(args.port)
        print("{}")

    monkeypatch.setattr(dashboard, "main", only_check)


def strict(text):
    def constant(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=constant)


def test_every_command_is_tried():
    assert set(BASE) == set(LEAVES)


@pytest.mark.parametrize("words", BASE)
def test_odd_values(words, place, light, small_checkpoint, capsys):
    program, faults, slow = PROGRAMS[words.split()[0]], [], []
    as_json = any("--json" in a.option_strings for a in LEAVES[words]._actions)
    base = next(argv for argv, option, _ in calls(words, small_checkpoint, plain=True))
    works = program.run(base)
    assert (works in (0, 1)) is (words not in REFUSED), capsys.readouterr().err
    capsys.readouterr()
    for argv, option, value in calls(words, small_checkpoint):
        began, fault = time.monotonic(), None
        try:
            code = program.run(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException as err:
            code, fault = 99, f"{type(err).__name__}: {err}"
        out, err = capsys.readouterr()
        said = re.sub(r"[^\n]*\r", "", err).splitlines()
        if fault is None and code not in (0, 1, 2):
            fault = f"exit code {code}"
        elif "Traceback" in out + err:
            fault = "a traceback"
        elif code == 2 and (not said or not said[-1].startswith("error: ") or len(said[-1]) > 1500):
            fault = f"bad input in other words than one line: {err[-200:]!r}"
        elif as_json and code == 0:
            try:
                strict(out)
            except ValueError as wrong:
                fault = f"not JSON: {wrong}"
        if fault is None and option and value is not None:
            kind = next(a.type for a in LEAVES[words]._actions if option in a.option_strings)
            whole = kind is not None and "whole" in kind.__qualname__
            if code == 0 and value in ("nan", "inf", "1e400", "") and kind not in (None, Path):
                fault = "taken for a number"
            if code == 0 and whole and (value == "-1" or (value == "0" and not {option, f"{words} {option}"} & ZERO)):
                fault = "a count below one is taken"
        if fault:
            faults.append(f"{' '.join(argv)[:200]!r}: {fault}"[:400])
        slow.append((time.monotonic() - began, option, str(value)[:20]))
    print(words, f"{sum(s for s, *_ in slow):.1f} s", len(slow), sorted(slow, reverse=True)[:5])
    assert not faults, "\n".join([f"{len(faults)} of {len(slow)}", *faults])
