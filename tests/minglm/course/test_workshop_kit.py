"""What an instructor leans on: preflight, checkpoints, timing, kernels, slides, and the commands around them."""

import json
import re

import pytest

torch = pytest.importorskip("torch")
from minglm import datafiles  # noqa: E402
from minglm.cli import main  # noqa: E402
from minglm.course.workshop import checkpoints, contents, generator, kernels, preflight, slides, timing  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.runtime.doctor import Check  # noqa: E402


@pytest.fixture
def tiny(tmp_path, nano_demo):
    """The workshop's checkpoints made from a demo of size nano."""
    rows = checkpoints.make(tmp_path / "kept", "nano", nano_demo)
    return tmp_path / "kept", rows


def test_a_demo_that_is_missing_is_trained_first(tmp_path, monkeypatch):
    def trained(source, size):
        raise InputError(f"the demo of size {size} into {source.name}")

    monkeypatch.setattr("minglm.tools.demo.run_demo", trained)
    with pytest.raises(InputError, match="size nano into nothing_there"):
        checkpoints.make(tmp_path / "kept", "nano", tmp_path / "nothing_there")
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_checkpoints_are_whole_hashed_and_usable(tiny, monkeypatch, tmp_path, capsys):
    from minglm.course import notebook
    from minglm.inference.load import load_model
    from minglm.training.loop import train
    from minglm.training.recipe import load

    folder, rows = tiny
    assert {r["file"].split("/")[0] for r in rows} == set(checkpoints.KEPT) and checkpoints.verify(folder) == rows
    monkeypatch.setattr(checkpoints, "kept", lambda: folder)
    monkeypatch.setattr(checkpoints, "demo", lambda: tmp_path / "no_demo")
    monkeypatch.setattr(notebook, "SMOKE", False)
    run = checkpoints.start_from("sft")
    assert run == folder / "sft" and "workshop's checkpoint" in capsys.readouterr().out
    model, tokenizer, _ = load_model(run)
    assert model.config.vocab_size >= tokenizer.vocab_size
    row = train(load("ci_tiny_sft", {"steps": 1}), tmp_path / "next", init_from=folder / "sparse", progress=False)
    assert row["step"] == 1, "a stage can start from a checkpoint without optimiser state"
    weights = next((folder / "sft").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="altered"):
        checkpoints.verify(folder)


@pytest.mark.slow
def test_start_from_trains_what_is_missing_and_names_an_unknown_stage(tmp_path, monkeypatch):
    from minglm.course import notebook

    monkeypatch.setattr(notebook, "SMOKE", True)
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))
    run = checkpoints.start_from("pretrain")
    assert run.is_relative_to(tmp_path) and (run / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="did you mean 'pretrain'"):
        checkpoints.start_from("pretran")
    with pytest.raises(InputError, match="none made yet"):
        checkpoints.verify(tmp_path / "nothing")


@pytest.mark.slow
def test_preflight_is_green_here_or_says_what_to_do_on_one_screen(monkeypatch):
    checks = preflight.examine()
    text = preflight.report(checks, colour=False)
    assert len(text.splitlines()) <= 30 and all(len(line) <= 160 for line in text.splitlines())
    assert {"notebooks", "kernel", "exercises", "results", "text to train on"} <= {c.name for c in checks}
    assert all(c.state == "ok" for c in checks if c.name in ("notebooks", "kernel", "exercises", "text to train on")), (
        text
    )
    bad = preflight.report([*checks, Check("kernel", "problem", "does not start", "restart")], colour=False)
    assert "NOT READY: mend kernel" in bad and "→ restart" in bad


def test_preflight_notices_a_sheet_that_was_changed_and_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(generator.build, "__defaults__", (tmp_path, False))
    assert preflight._exercises().state == "problem"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINGLM_RESULTS", str(tmp_path / "file" / "results"))
    assert preflight._results().state == "problem"


@pytest.mark.slow
def test_kernels_are_weighed_and_a_failing_lesson_is_counted(monkeypatch):
    pytest.importorskip("psutil")
    result = kernels.measure(1, "nano", steps=1)
    assert (
        result["failed"] == 0
        and 50 < result["proportional_mib"] <= result["resident_mib"] + 1
        and result["lesson_s"] > 0
    )
    monkeypatch.setattr(kernels, "LESSON", "raise ValueError('{model}{steps}')")
    assert kernels.measure(1, "nano")["failed"] == 1
    with pytest.raises(InputError, match="--count 0"):
        kernels.measure(0)


def test_slides_open_offline_and_each_heading_begins_one():
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# One"),
            nbformat.v4.new_code_cell("1 + 1"),
            nbformat.v4.new_markdown_cell("## Two"),
            nbformat.v4.new_markdown_cell("text"),
        ]
    )
    page = slides.page(book)
    assert page.count('<section class="slide">') == 2 and "ArrowRight" in page
    picture = nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": {}, "text/plain": "a picture"})
    book.cells += [
        nbformat.v4.new_markdown_cell("more\n\n## Three\n\ntext"),
        *(nbformat.v4.new_code_cell("show()", outputs=[picture]) for _ in range(2)),
    ]
    assert slides.page(book).count('<section class="slide">') == 4, (
        "headings inside a text and a second picture begin slides too"
    )
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:)?//', page), (
        "nothing may be loaded from elsewhere"
    )
    slider = nbformat.v4.new_output(
        "execute_result", {"application/vnd.jupyter.widget-view+json": {"model_id": "7"}, "text/plain": "VBox()"}
    )
    printed = [nbformat.v4.new_output("stream", name="stdout", text=f"line {i}\n") for i in range(3)]
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"7": {}}}}
    book.cells = [
        nbformat.v4.new_code_cell("twice()", outputs=[slider, *printed, picture, picture]),
        nbformat.v4.new_markdown_cell("word " * 900),
    ]
    page = slides.page(book)
    assert page.count('<section class="slide">') == 3 and page.count("twice") == 1, (
        "a second picture of one cell, and a text too long for its place, begin slides"
    )
    assert "line 0\nline 1\nline 2" in page and "VBox" not in page and "html-manager" not in page
    with pytest.raises(InputError, match="no such notebook"):
        slides.export([datafiles.notebooks("nowhere.ipynb")], execute=False)


def test_the_timing_table_covers_all_notebooks_and_is_committed():
    names = {p.relative_to(datafiles.notebooks()).as_posix() for p in timing.notebooks()}
    assert len(names) >= 18
    written = datafiles.notebooks("workshop", "timing.md")
    rows = re.findall(r"^\| ((?:learn|scale|plan)/\S+\.ipynb) \|", written.read_text(encoding="utf-8"), flags=re.M)
    assert len(rows) >= 17 and "**failed**" not in written.read_text(encoding="utf-8")
    made = timing.table([{"notebook": "a", "seconds": 2.0, "peak_mib": 10, "figures": 1, "error": "x"}])
    assert "| a (**failed**) | 2 | 10 | 1 |" in made
    with pytest.raises(InputError, match="no notebook's path"):
        timing.notebooks("nonsense")
    with pytest.raises(InputError, match="make book"):
        timing.from_book(datafiles.notebooks("nowhere"))


def test_the_table_of_notebooks_is_whole_and_the_readme_is_in_step(tmp_path):
    rows = contents.rows()
    names = {r[0] for r in rows}
    assert names == {p.relative_to(datafiles.notebooks()).with_suffix("").as_posix() for p in timing.notebooks()}
    assert len(set(contents.ABOUT) & names) >= 30 and all(len(v) == 2 for v in contents.ABOUT.values())
    for name, minutes, sentence, _ in rows:
        assert re.fullmatch(r"(\d+|\?), \d+", minutes), (
            f"{name}: its first cell does not say how many minutes it takes to read"
        )
        assert len(sentence.split()) >= 2
        said = re.search(
            r"about (\d+) minutes? of computing", datafiles.notebooks(f"{name}.ipynb").read_text(encoding="utf-8")
        )
        # one minute to spare: run alone, a notebook trains what an earlier one would have left for it
        assert said is None or abs(int(said[1]) - int(minutes.split(",")[0])) <= 1, (
            f"{name}: says {said[1]} minutes, the table {minutes}"
        )
    page = tmp_path / "page.md"
    page.write_text(f"before\n{contents.BEGIN}\nold\n{contents.END}\nafter\n", encoding="utf-8")
    assert contents.write(page) and not contents.write(page)
    assert page.read_text(encoding="utf-8") == f"before\n{contents.BEGIN}\n{contents.table()}\n{contents.END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(InputError, match="not marked"):
        contents.write(page)
    readme = (datafiles.root() / "README.md").read_text(encoding="utf-8")
    if contents.BEGIN not in readme:
        pytest.skip("the README's table is not marked for `minglm workshop contents --write README.md`")
    assert contents.table() in readme, "run `minglm workshop contents --write README.md`"


def test_make_lab_shows_the_whole_project_and_asks_nothing():
    """Started on a notebook, JupyterLab takes that notebook's folder for its root: exercises and links would be out of
    reach."""
    root = datafiles.root()
    lab = next(line for line in (root / "Makefile").read_text(encoding="utf-8").splitlines() if "/jupyter lab " in line)
    assert "--ServerApp.root_dir=." in lab
    settings = re.search(r"--LabApp.app_settings_dir=(\S+)", lab).group(1)
    kept = json.loads((root / settings / "overrides.json").read_text(encoding="utf-8"))
    assert kept["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false", "checkForUpdates": False}


@pytest.mark.parametrize(
    "argv,code,part",
    [
        (["workshop", "build", "--check"], 0, "what their sources give"),
        (["workshop", "collect", "nowhere"], 2, "no results there"),
        (["workshop", "kernels", "--count", "-1"], 2, "--count: -1"),
        (["workshop", "preflite"], 2, "preflight"),
        (["eval", "pass", "--checkpoint", "x", "--samples", "0"], 2, "--samples: 0"),
        (["eval", "arena", "one"], 2, "two or more"),
    ],
)
def test_commands_answer_in_one_line(argv, code, part, capsys):
    assert main.main(argv) == code
    said = capsys.readouterr()
    assert part in said.out + said.err and "Traceback" not in said.err


@pytest.mark.slow
def test_eval_commands_on_a_tiny_model(tiny, capsys):
    folder, _ = tiny
    assert (
        main.main(["eval", "pass", "--checkpoint", str(folder / "sft"), "--problems", "1", "--samples", "2", "--json"])
        == 0
    )
    tasks = {"lookup", "copy", "reverse", "sums, carry", "sums, no carry", "compare", "facts", "refusal", "cards"}
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == tasks
    assert (
        main.main(
            [
                "eval",
                "needle",
                "--checkpoint",
                str(folder / "sft"),
                "--lengths",
                "96",
                "--depths",
                "0.5",
                "--per-cell",
                "1",
            ]
        )
        == 0
    )
    assert "whole sentence right" in capsys.readouterr().out
    assert (
        main.main(["eval", "arena", str(folder / "sft"), str(folder / "sparse"), "--votes", "20", "--problems", "1"])
        == 0
    )
    assert "rating" in capsys.readouterr().out
