"""The `minglm` command: exit codes, one-line errors, help with examples, machine-readable output."""

import json
import subprocess
import sys

import pytest

from minglm.cli import main


def run(capsys, *argv):
    code = main.main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "argv, says",
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "required"),
        (["train", "pretran"], "did you mean 'pretrain'"),
        (["train", "ci_pretrain", "--set", "lr"], "key=value"),
        (["train", "ci_pretrain", "--set", "lrr=3"], "did you mean 'lr'"),
        (["train", "ci_pretrain", "--set", "steps=none"], "whole number"),
        (["train", "nowhere.yaml"], "no such recipe file"),
        (["generate", "--checkpoint", "no/such/run", "--prompt", "x"], "no checkpoint here"),
        (["generate", "--checkpoint", "r", "--prompt", "x", "--seed", "-1"], "at most 18446744073709551615"),
        (["generate", "--checkpoint", "r", "--prompt", "x", "--seed", str(2**64)], "at most 18446744073709551615"),
        (["eval", "pass", "--checkpoint", "r", "--seed", "1.5"], "must be a whole number"),
        (["train", "ci_pretrain", "--set", "seed=-1"], "at least 0"),
        (["train", "ci_pretrain", "--set", f"seed={2**64}"], "at most 18446744073709551615"),
        (["export-hf", "no/such/run", "out"], "no checkpoint here"),
        (["import-hf", "no/such/folder", "run"], "no"),
        (["bench", "--only", "traning"], "did you mean 'training'"),
        (["train", "ci_sparse", "--run", "{tmp}/r"], "--init-from"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, argv, says):
    code, out, err = run(capsys, *[a.replace("{tmp}", str(tmp_path)) for a in argv])
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and not out, (code, out, err)


def test_help_everywhere_has_examples(capsys):
    for name in main.PROGRAM.commands():
        with pytest.raises(SystemExit) as stop:
            main.main([name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "examples:" in text and f"minglm {name}" in text
    code, out, _ = run(capsys)
    assert code == 0 and "examples:" in out


def test_help_imports_no_room_and_a_command_only_its_own_file():
    code = (
        "import sys, contextlib\nfrom minglm.cli.main import main\nwith contextlib.suppress(SystemExit): main({argv})\n"
        "print('modules:', *sorted(m for m in sys.modules if m.startswith('minglm')))"
    )

    def modules(*argv):
        script = code.replace("{argv}", repr(list(argv)))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        return set(done.stdout.rpartition("modules:")[2].split())

    rooms = {"minglm.rl", "minglm.training", "minglm.tools", "minglm.course", "minglm.model", "minglm.inference"}
    assert not rooms & modules("--help")
    shown = modules("doctor", "--help")
    assert {m for m in shown if m.startswith("minglm.cli.")} == {"minglm.cli.main", "minglm.cli.doctor"}


def test_train_show_explains_every_key(capsys):
    code, out, _ = run(capsys, "train", "ci_pretrain", "--set", "lr=0.5", "--print-config")
    assert code == 0 and "lr: 0.5" in out
    assert all("#" in line and "(default" in line for line in out.splitlines()[1:])


def test_train_generate_export_import(capsys, tmp_path):
    pytest.importorskip("torch")
    first, again = tmp_path / "first", tmp_path / "again"
    code, out, err = run(
        capsys, "train", "ci_pretrain", "--run", str(first), "--set", "steps=3", "--json", "--device", "cpu"
    )
    assert code == 0, err
    assert json.loads(out)["step"] == 3
    code, out, _ = run(
        capsys, "generate", "--checkpoint", str(first), "--prompt", "def ", "--tokens", "4", "--json", "--mode", "dense"
    )
    made = json.loads(out)
    assert code == 0 and 0 < len(made["tokens"]) <= 4
    assert run(capsys, "export-hf", str(first), str(tmp_path / "hf"))[0] == 0
    assert (tmp_path / "hf" / "tokenizer.json").is_file() and json.loads((tmp_path / "hf" / "config.json").read_text())[
        "model_type"
    ] == "glm_moe_dsa"
    assert run(capsys, "import-hf", str(tmp_path / "hf"), str(again))[0] == 0
    code, out, _ = run(
        capsys, "generate", "--checkpoint", str(again), "--prompt", "def ", "--tokens", "4", "--json", "--mode", "dense"
    )
    assert json.loads(out)["tokens"] == made["tokens"], "there and back is the same model"
    code, _, err = run(capsys, "import-hf", str(tmp_path / "hf"), str(again))
    assert code == 2 and "holds checkpoints already" in err
    code, out, _ = run(
        capsys, "generate", "--checkpoint", str(first), "--prompt", "hi", "--chat", "--tokens", "3", "--mode", "dense"
    )
    assert code == 0
    code, _, err = run(
        capsys, "train", "ci_pretrain", "--run", str(first), "--set", "steps=4", "--json", "--device", "cpu"
    )
    assert code == 2 and "made with steps=3" in err
    assert (
        run(
            capsys,
            "train",
            "ci_pretrain",
            "--run",
            str(first),
            "--set",
            "steps=2",
            "--overwrite",
            "--json",
            "--device",
            "cpu",
        )[0]
        == 0
    )


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr("minglm.cli.doctor.main", interrupted)
    assert main.main(["doctor"]) == 130 and "step 3" in capsys.readouterr().err


def test_a_failure_is_1_and_one_line(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minglm.cli.doctor.main", full)
    assert main.main(["doctor"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_python_dash_m_works():
    done = subprocess.run([sys.executable, "-m", "minglm", "bench", "--list"], capture_output=True, text=True)
    assert done.returncode == 0 and "training" in done.stdout.split()


def test_bench_runner(capsys, tmp_path, monkeypatch):
    from minglm.tools import bench

    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "bench_a.py").write_text(
        'NAME = "a"\ndef run():\n    return [dict(name="speed", value=3.0, unit="tokens/s", ratio=1.5, target=2.0, '
        "met=False)]\n"
    )
    (folder / "bench_b.py").write_text(
        'NAME = "b"\ndef run():\n    return [dict(name="size", value=3, unit="B", ratio=None, target=None, met=None)]\n'
    )
    monkeypatch.setattr(bench.discover, "__defaults__", (folder,))
    monkeypatch.setattr(bench.run, "__defaults__", (None, None, folder, True))
    code, out, err = run(capsys, "bench", "--out", str(tmp_path / "out"))
    assert code == 1 and "speed" in out and "NO" in out and "1 of 2 below target" in err
    rows = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (
        set(bench.ROW_KEYS) <= set(rows[0])
        and rows[0]["command"] == "make bench ONLY=a"
        and rows[0]["machine"]["torch"]
    )
    code, out, _ = run(capsys, "bench", "--only", "b", "--out", str(tmp_path / "out"), "--json")
    assert code == 0 and [r["name"] for r in json.loads(out)] == ["size"]
    code, _, err = run(capsys, "bench", "--only", "aa")
    assert code == 2 and "did you mean 'a'" in err
