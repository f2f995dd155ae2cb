"""A question without an answer: one line, exit code 2, and the remedy that it names is accepted when it is followed."""

import re
import shlex

import pytest

from sim.cli.main import main

PLAN = ["plan", "--model", "llama3_8b", "--chip", "h100", "--chips", "16", "--samples", "0"]
LONG = "plan --model llama3_70b --chip h100 --chips 32 --seq 32768 --batch 32 --set pp=1 --samples 0".split()
TOY = ["run", "glm5_mini_smoke", "--no-what-if", "--out", "none"]


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))


def refused(capsys, argv):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    "argv, followed",
    [
        ([*PLAN, "--set", "dp=32"], r"(--chips \d+)"),
        ([*PLAN, "--set", "pp=64"], "leave pp out"),
        ([*PLAN, "--batch", "7", "--set", "dp=4"], r"(--batch \d+)"),
        ([*PLAN, "--batch", "9", "--set", "schedule=zb-v", "--set", "pp=4", "--set", "dp=3"], r"(--batch \d+)"),
        ([*PLAN, "--seq", "8192", "--batch-tokens", "4k"], r"(at least \d+)"),
        ([*PLAN, "--phases", "glm5"], "leave phases out"),
        ([*PLAN[:2], "llama3_70b", *PLAN[3:6], "2", "--samples", "0"], r"(--chips \d+)"),
        # all of a 70B model's activations are more than the hosts have
        (
            [*LONG, *"--set tp=1 --set cp=2 --set dp=16 --set activation_offload=true --set recompute=none".split()],
            "leave recompute out",
        ),
        ([*PLAN, "--budget", "10", "--deadline", "90 days"], r"(--budget \d+)"),
        ([*PLAN, "--budget", "10", "--deadline", "90 days"], r"(--deadline '[^']+')"),
        ([*PLAN, "--deadline", "1 hour"], r"(--deadline '[^']+')"),
        ([*PLAN, "--tokens", "15T", "--ask", "failures", "--deadline", "10 days"], r"(--deadline '[^']+')"),
        ([*TOY, "--set", "plan.tp=2"], r"(lower dp to \d+)"),
        ([*TOY, "--set", "plan.pp=7"], r"(lower dp to \d+)"),
        ([*TOY, "--chips", "5"], r"(lower dp to \d+)"),
        ([*TOY, "--set", "plan.ep=5"], r"(use ep=\d+)"),
        ([*TOY, "--set", "tokens=100B", "--set", "campaign.horizon='1 min'"], r"(campaign.horizon='[^']+')"),
    ],
)
def test_the_remedy_is_accepted(argv, followed, capsys):
    said = refused(capsys, argv)
    remedy = re.search(followed, said)
    assert remedy is not None, said
    words = remedy[0]
    if words.startswith("leave"):
        key = words.split()[1]
        at = next(i for i, word in enumerate(argv) if word in (f"--{key}", f"{key}=64", f"{key}=none"))
        changed = argv[: at - 1] + argv[at + 1 :] if argv[at - 1] == "--set" else argv[:at] + argv[at + 2 :]
    elif words.startswith("lower dp"):
        changed = [*argv, "--set", f"plan.dp={words.split()[-1]}"]
    elif words.startswith("use ep"):
        changed = [*argv, "--set", f"plan.{words.split()[1]}"]
    elif words.startswith("campaign"):
        changed = [*argv, "--set", words]
    else:
        changed = [*argv, *shlex.split(words.replace("at least", "--batch-tokens"))]  # the last of a flag counts
    assert main(changed) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["plan", "--model", "glm5", "--chip", "h100", "--chips", "8192", "--phases", "glm5", "--tokens", "1T"],
            "28.57T",
        ),
        (["run", "glm5_100k_910b", "--set", "tokens=1T"], "leave tokens out"),
        (
            ["run", "llama3_405b_16k_h100", "--set", "phases=glm5", "--set", "plan=auto"],
            "has no indexer; leave phases out",
        ),
        ([*TOY, "--set", "plan.tp=3"], "does not divide the model's 4 attention heads; use tp=2"),
    ],
)
def test_what_contradicts_itself_is_one_line(argv, words, capsys):
    assert words in refused(capsys, argv)


def test_phases_without_tokens_train_their_own(capsys):
    """The default number of tokens does not contradict phases that someone lists."""
    from sim.scenario.defaults import with_defaults

    phase = {"name": "one", "tokens": "3T", "seq": 4096, "batch": "16M"}
    document = {"model": "llama3_8b", "chip": "h100", "phases": [phase, {**phase, "name": "two"}]}
    assert with_defaults(document)["tokens"] == 6e12
