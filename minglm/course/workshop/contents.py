"""`minglm workshop contents`: the table of notebooks for the README, so that nobody keeps it in step by hand.

Minutes to compute are those of `timing_full.md`, rounded up; minutes to read are what the notebook's first cell says.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from minglm import atomic, datafiles
from minglm.course.workshop.timing import notebooks
from minglm.errors import InputError

BEGIN, END = "<!-- notebooks -->", "<!-- /notebooks -->"
DEMO = datafiles.hint("`make demo`", "`minglm demo`")
# Notebook → what it shows in one sentence, and what to read before it.
ABOUT = {
    "learn/00_start_here": (
        "one configuration for a toy and for 744B; your first model trains, and you change it",
        "nothing",
    ),
    "learn/01_tokens_and_data": ("bytes to tokens to batches, with document boundaries", "00"),
    "learn/02_mla": ("why a cached latent is 57 times smaller than keys and values", "00"),
    "learn/03_lightning_indexer": ("which keys to read; break causality, then repair it", "02"),
    "learn/04_mixture_of_experts": ("routing, collapse, and the bias that balances", "00"),
    "learn/05_train_it": ("all stages, a real kill and an exact resume", "01–04"),
    "learn/06_mtp_and_speculative_decoding": ("guessing ahead without changing the answer", f"05, {DEMO}"),
    "learn/07_muon": ("an optimiser that gives every direction the same step", "05"),
    "learn/08_long_context_and_the_needle": ("find a fact at every depth, and what fails first", f"05, {DEMO}"),
    "learn/09_sft": ("from text to answers: only the answer's words count", f"05, {DEMO}"),
    "learn/10_evaluation": ("pass@k, needles, a small arena with intervals", f"09, {DEMO}"),
    "learn/11_open_it_elsewhere": ("the same numbers in transformers, and a check that notices a 1% error", "02–04"),
    "learn/12_rl_from_verifiable_rewards": ("from sometimes right to often right, with no answer shown", "09"),
    "learn/13_the_long_tail_and_april": ("why everybody waits for the longest answer, live", "12"),
    "learn/14_staleness": ("what old data costs and what repairs it", "13"),
    "learn/15_hallucination": ("teach a model to say that it does not know, measured twice", "12"),
    "learn/16_agents_and_sandboxes": ("several turns, hidden tests, and programs nobody has read", "12"),
    "learn/17_quantization": ("FP8, INT4 and W4A8: sizes, losses, the same bits in training and inference", "05"),
    "learn/18_past_one_machine": ("four ways to split a step over processes, and the same loss from all", "05"),
    "learn/19_mindspore_side_by_side": ("the same model in the Ascend world's framework", "05"),
    "learn/20_fault_injection": ("kills, a full disk, a cut file: what is lost, and how to find out before", "05"),
    "learn/21_serving": ("continuous batching: why thirty readers do not wait thirty times as long", f"06, {DEMO}"),
    "learn/22_how_a_model_learns_to_look_back": (
        "induction: the step at which it forms, and the heads that do it",
        "02",
    ),
    "learn/23_debug_clinic": ("eight broken runs, four curves each: find the cause", "05"),
    "learn/24_scaling_laws": ("fit a law on real runs, with intervals and shuffled sizes beside it", "05"),
    "learn/25_data_lab": ("copies, junk, mixtures: what cleaning does to a model, with controls", "05"),
    "learn/build_0_tokenizer": ("type byte-pair encoding; the same merges as the library learns", "00"),
    "learn/build_1_layers": ("type the layers and MLA yourself; they run inside the real model", "00"),
    "learn/build_2_model": ("type the indexer, the experts and the whole model: the same logits", "build_1"),
    "learn/build_3_losses": ("type SFT's masked loss and GRPO in full, three averages side by side", "build_2"),
    "learn/build_4_training": (
        "type AdamW, Muon and the loop; your model's curve in the band of five seeds",
        "build_3",
    ),
    "learn/build_5_decoding": ("type cache, sampling and drafts: the same tokens as the model's own", "build_2"),
    "learn/build_6_rollouts": ("type APRIL's queue and GRPO, DAPO, Dr. GRPO in full; your policy learns", "build_5"),
    "scale/00_chips_and_rooflines": ("how fast a chip is, and why rarely as fast as its data sheet", "nothing"),
    "scale/01_the_network": ("links, rings and trees: when the message is small, latency rules", "scale/00"),
    "scale/02_plans_and_memory": ("how 744B fits, and why most plans do not", "scale/01"),
    "scale/03_pipelines": ("the bubble, and what interleaving buys", "scale/02"),
    "scale/04_a_hundred_thousand_chips": ("what the big one costs on 100,000 chips", "scale/03"),
    "scale/05_failures": ("something breaks every hour: checkpoints, spares, goodput", "scale/04"),
    "scale/06_how_wrong_are_we": ("the simulator against runs that others measured", "scale/04"),
    "scale/07_rollouts_at_scale": ("3,000 engines, half a million trajectories, five ways to overlap", "learn/13"),
    "scale/08_your_laptop_as_a_cluster_of_one": ("the simulator against the step you just ran", "scale/00"),
    "plan/capstone": ("a model, its text and a cluster under a budget; and a speedrun", "learn/24, plan/planner"),
    "plan/planner": ("a budget question, answered in controls", "nothing"),
    "plan/compare_two_clusters": ("which cluster is cheaper, and how sure that is", "nothing"),
    "plan/reading_a_launch_article": ("the claims of one article: computed, traced, or marked unknown", "nothing"),
    "plan/write_the_report": ("the answer as a page to hand on", "plan/planner"),
}


def rows() -> list[tuple[str, str, str, str]]:
    """(notebook, minutes, sentence, after) in reading order; one that ABOUT does not know appears with its title."""
    full = datafiles.notebooks("workshop", "timing_full.md")
    seconds = (
        dict(re.findall(r"^\| (\S+)\.ipynb \| ([\d,]+) \|", full.read_text(encoding="utf-8"), flags=re.M))
        if full.is_file()
        else {}
    )
    out = []
    for path in notebooks():
        name = path.relative_to(datafiles.notebooks()).with_suffix("").as_posix()
        minutes = str(max(1, math.ceil(int(seconds[name].replace(",", "")) / 60))) if name in seconds else "?"
        out.append((name, f"{minutes}, {reading(path)}", *(ABOUT.get(name) or (title(path), "?"))))
    return out


def title(path: Path) -> str:
    """The first line of a notebook, without its heading marks."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")


def reading(path: Path) -> str:
    """Minutes to read, as the first cell says; "?" where it does not."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    opening = "".join(next(c["source"] for c in cells if c["cell_type"] == "markdown"))
    number = r"(\d+|three|five|ten)(?: to \d+)?"
    phrases = (
        f"{number} minutes (?:of reading|to read)",
        f"{number} of reading",
        f"takes about {number} minutes",
        f"in about {number} minutes",
    )
    match = re.search("|".join(phrases), opening)
    words = {"three": "3", "five": "5", "ten": "10"}
    return next((words.get(g, g) for g in match.groups() if g), "?") if match else "?"


def table() -> str:
    """`rows` as a Markdown table with links."""
    lines = ["| notebook | minutes to compute, to read | in one sentence | after |", "|---|---|---|---|"]
    return "\n".join(
        [
            *lines,
            *(f"| [{n}]({datafiles.hint('notebooks/', '')}{n}.ipynb) | {m} | {s} | {a} |" for n, m, s, a in rows()),
        ]
    )


def write(path: Path) -> bool:
    """Put the table between the two marks of a Markdown file; whether anything changed.

    Raises:
        InputError: no such file, or it lacks the marks.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a Markdown file such as README.md")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a Markdown file such as README.md") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"{path}: the table's place is not marked; put the lines {BEGIN} and {END} where it belongs")
    new = f"{text[: text.index(BEGIN)]}{BEGIN}\n{table()}\n{text[text.index(END) :]}"
    if new != text:
        atomic.write_text(path, new)
    return new != text
