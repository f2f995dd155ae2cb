"""docs/glossary.md, the help texts, the metrics and the configuration keys speak one language."""

import contextlib
import dataclasses
import io
import re

import pytest

from minglm import datafiles
from minglm.cli import main as minglm_main
from minglm.rl import config as rl_config
from minglm.rl import log as rl_log
from minglm.rl import modes
from minglm.training import metrics, recipe
from sim.cli import main as sim_main
from sim.spec import plan

TEXT = (datafiles.root() / "docs" / "glossary.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """Cells of every three-column table: word, meaning, not."""
    return [
        cells
        for line in TEXT.splitlines()
        if line.startswith("|")
        and len(cells := [c.strip() for c in line.strip("|").split("|")]) == 3
        and "---" not in cells[0]
    ]


def terms(section: str) -> set[str]:
    """Words in backticks in the first column of a marked table."""
    body = TEXT.split(f"<!-- {section} -->")[1].split(f"<!-- /{section} -->")[0]
    return {
        w for line in body.splitlines() if line.startswith("| `") for w in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def retired() -> set[str]:
    """The 'not' column."""
    return {w.strip() for cells in rows() if cells[2] and cells[2] != "not" for w in cells[2].split(",")}


def help_texts() -> str:
    """--help of both commands and of every subcommand."""
    out = io.StringIO()
    for main, commands in ((m.main, m.PROGRAM.commands()) for m in (minglm_main, sim_main)):
        for argv in [["--help"], *([c, "--help"] for c in commands)]:
            with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
                main(argv)
    return out.getvalue()


def test_words_are_told_once():
    words = [w for cells in rows() for w in [cells[0].lower()] if w != "word"]
    assert len(words) > 80 and len(words) == len(set(words)), sorted({w for w in words if words.count(w) > 1})


def test_every_metric_is_explained_and_no_other():
    assert terms("training metrics") == set(metrics.COLUMNS)
    assert terms("rl metrics") == set(rl_log.COLUMNS) | set(rl_log.EVAL_COLUMNS)


def test_every_mode_and_schedule_is_told():
    for name in modes.MODES:
        assert f"`{name}`" in TEXT, name
    for name in plan.SCHEDULES:
        assert name in TEXT, name


# Plain English words that are retired only as names of a thing: they may stand in a sentence.
ONLY_AS_NAMES = {
    "answer", "choice", "kept", "play", "room", "beside", "push", "gap", "lag", "ahead", "view", "layout", "habit",
    "exchange", "join", "leave", "fit", "predict", "listed", "leg", "corner", "cached", "users", "accept", "drafts",
    "slice", "invented", "folded", "visible", "tally", "tape", "overload", "inventory", "eta", "clipped", "masked",
    "stranger", "slips", "what to buy", "read in",
}  # fmt: skip


def test_no_retired_word_is_a_flag_a_metric_a_key_or_a_choice():
    names = set(metrics.COLUMNS) | set(rl_log.COLUMNS) | set(modes.MODES)
    names |= {f.name for f in dataclasses.fields(modes.Policy)}
    names |= {f.name for f in dataclasses.fields(recipe.Recipe)} | {
        f.name for f in dataclasses.fields(rl_config.Settings)
    }
    names |= {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z0-9-]+)", help_texts())}
    old = {w.replace(" ", "_") for w in retired()}
    assert len(names) > 150 and not names & old, names & old


def test_no_retired_phrase_stands_in_a_help_text():
    text = help_texts().lower()
    found = [w for w in retired() - ONLY_AS_NAMES if re.search(rf"\b{re.escape(w.lower())}\b", text)]
    assert not found, found


@pytest.mark.parametrize("word", ["eta", "ahead"])
def test_a_retired_word_would_be_seen(word):
    """Negative control: the words are in the column that the tests above read."""
    assert word in retired()
