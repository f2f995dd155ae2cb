"""What the notebooks lean on: pictures that carry the config's own numbers, a slider that redraws, experiments that can
fail."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from minglm.model import indexer

torch = pytest.importorskip("torch")
from minglm.config import ModelConfig  # noqa: E402
from minglm.course.lessons import diagrams  # noqa: E402


@pytest.mark.parametrize("name", ["glm5", "nano"])
def test_a_diagram_is_well_formed_and_shows_this_config(name):
    config = ModelConfig.named(name)
    for svg in (diagrams.model_diagram(config, name), diagrams.latent_diagram(config)):
        words = " ".join(ElementTree.fromstring(svg).itertext())
        assert str(config.kv_lora_rank) in words and str(config.qk_rope_head_dim) in words
    assert f"{config.index_topk:,}" in diagrams.model_diagram(config)


def test_the_arrow_to_the_shared_expert_does_not_come_from_the_router():
    """The router chooses among the routed experts; the shared one takes every token."""
    svg = diagrams.model_diagram(ModelConfig.named("glm5"))
    boxes = re.findall(
        r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"[^>]*/>\s*(?=<text[^>]*>(router|shared)<)', svg
    )
    (x, y, w, h), (sx, sy, sw, sh) = ([int(v) for v in box[:4]] for box in boxes)
    ends = [re.findall(r"[\d.]+", points) for points in re.findall(r'<polyline points="([^"]+)"', svg)]
    into = [p for p in ends if sx <= float(p[-2]) <= sx + sw and sy + sh <= float(p[-1]) <= sy + sh + 4]
    assert into, "an arrow leads to the shared expert"
    assert not any(x <= float(p[0]) <= x + w and y <= float(p[1]) <= y + h for p in into)


def test_a_pass_over_more_tokens_reads_more_experts():
    """Against drawing the experts, and against the two ends: one token, and so many that all are read."""
    from minglm.course.lessons.speculative import weight_bytes_read

    glm5 = ModelConfig.named("glm5")
    routed = 2.0 * glm5.params_breakdown()["routed_experts"]
    active = 2.0 * glm5.num_active_params()
    K, E = glm5.num_experts_per_tok, glm5.n_routed_experts
    assert weight_bytes_read(glm5, 1) == pytest.approx(active)
    assert weight_bytes_read(glm5, 100_000) == pytest.approx(active + routed * (1 - K / E))
    torch.manual_seed(0)
    drawn = [len(torch.rand(4, E).topk(K).indices.unique()) for _ in range(2000)]
    expected = active + routed * (sum(drawn) / len(drawn) - K) / E
    assert weight_bytes_read(glm5, 4) == pytest.approx(expected, rel=0.005)
    assert weight_bytes_read(glm5, 4) / active == pytest.approx(2.56, abs=0.005)


def test_control_characters_do_not_reach_the_page():
    from minglm.course.lessons.text import printable

    assert printable("a\tb\n\x1b[31m\x00\ufffd\x7f é 中") == "a\tb\n□[31m□□□ é 中"


def test_a_moved_slider_redraws_picture_and_sentence():
    pytest.importorskip("ipywidgets")
    from minglm.course.lessons.interact import slider
    from minglm.plots import bars, figure

    def draw(value):
        return bars(figure(f"at {value}", "", ""), ["a"], [value]), f"the value is {value}"

    box = slider("value", [1, 20, 3000], draw, start=20)
    control, words, picture = box.children
    assert "the value is 20" in words.value
    control.value = 3000
    assert "the value is 3000" in words.value
    drawn = picture.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    assert drawn["layout"]["title"]["text"] == "at 3000"
    assert len(picture.outputs) == 1, "the old picture must go"


def _leaky(q, k, w, topk, offset=0, doc_start=None):
    from minglm.model.indexer import index_scores

    scores = [index_scores(*rows) for rows in zip(q, k, w, strict=False)]
    return torch.stack([s.masked_fill(torch.ones_like(s).triu(1).bool(), -1e9).topk(topk, -1).indices for s in scores])


def test_the_perturbation_test_passes_the_right_choice_and_catches_a_leak():
    from minglm.course.lessons.indexer import change_of_the_past, choosing_with
    from minglm.model import attention
    from minglm.model.model import Model

    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano")).eval()
    tokens = torch.randint(model.config.vocab_size, (1, 40))
    assert change_of_the_past(model, tokens, 10)[:10].max() < 1e-5
    with choosing_with(_leaky):
        assert change_of_the_past(model, tokens, 10)[:10].max() > 1e-3
    assert attention.select_topk is indexer.select_topk, "the right choice must be back"


def test_captured_attention_is_ordered_and_random_is_a_share_of_the_visible():
    from minglm.course.lessons.indexer import captured, with_topk
    from minglm.model.model import Model

    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano")).eval()
    passages = [torch.randint(model.config.vocab_size, (48,)) for _ in range(2)]
    few, many = captured(with_topk(model, 4), passages), captured(model, passages)
    for row in (*few, *many):
        assert 0 < row["random"] < 1 and row["best"] >= max(row["indexer"], row["recent"]) - 1e-6
    assert all(a["best"] < b["best"] for a, b in zip(few, many, strict=False)), "more keys capture more"
    assert few[0]["random"] == pytest.approx(sum(4 / (t + 1) for t in range(4, 48)) / 44, rel=1e-5)


def test_the_bias_balances_and_none_or_too_much_does_not():
    from minglm.course.lessons.balance import balance, max_over_mean

    none, right, wild = (
        float(max_over_mean(balance(ModelConfig.named("nano"), rate)[-50:]).mean()) for rate in (0.0, 0.01, 0.5)
    )
    assert right < 1.3 < min(none, wild)


@pytest.mark.slow
def test_a_training_process_that_cannot_start_is_reported_with_its_words(tmp_path):
    from minglm.course.lessons.killing import train_and_kill
    from minglm.errors import InputError
    from minglm.training.recipe import Recipe

    recipe = Recipe(model="nano", seq_len=32, batch_size=2, steps=3, corpus=str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match="nowhere"):
        train_and_kill(recipe, tmp_path / "run", after_step=1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "metrics.csv").write_text("years")
    with pytest.raises(InputError, match="carries no minglm-run.json"):
        train_and_kill(recipe, tmp_path / "thesis", after_step=1)
    assert (tmp_path / "thesis" / "metrics.csv").read_text() == "years"


def test_progress_before_the_first_row_says_what_is_going_on(tmp_path):
    from minglm.course.lessons.live import _Strip
    from minglm.training.recipe import Recipe

    strip = _Strip(Recipe(model="nano"), tmp_path, 0.0)
    assert "step 0 of" in str(strip) and "getting text and tokens ready" in strip._repr_html_()


def test_lines_of_a_run_become_one_box_with_a_curve(capsys, monkeypatch):
    from minglm.course.lessons import live

    shown = []

    class Handle:
        def update(self, box):
            shown.append(box._repr_html_())

    monkeypatch.setattr(live, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda box, display_id: shown.append(box._repr_html_()) or Handle())
    box = live.Lines("mine", "reward", 4)
    assert "mine: starting" in shown[-1]  # something stands there before the first update ends
    for line in (
        "update 1: reward 0.250, 3.0 trajectories/s",
        "update 1: held-out pass@1 20.0%, greedy <30%>",
        "update 2: reward 0.750, 3.0 trajectories/s",
    ):
        box(line)
    assert box.points == [(1.0, 0.25), (2.0, 0.75)] and len(shown) == 4 and capsys.readouterr().out == ""
    assert "update 2: reward 0.750" in shown[-1] and "update 1: reward" not in shown[-1] and "&lt;30%&gt;" in shown[-1]
    x = [float(p.split(",")[0]) for p in shown[-1].split('points="')[1].split('"')[0].split()]
    assert x == [live.WIDTH / 4, live.WIDTH / 2]

    late = live.Lines("warm", "loss")
    assert len(shown) == 4
    late("warm start: step 50 of 400, loss 2.345, 3 s")
    assert late.end == 400 and late.points == [(50.0, 2.345)] and len(shown) == 5


def test_outside_a_notebook_lines_are_printed(capsys):
    from minglm.course.lessons.live import Lines

    Lines("mine", "reward", 2)("update 1: reward 0.250")
    assert capsys.readouterr().out == "update 1: reward 0.250\n"


def test_a_logarithmic_axis_names_its_ticks_in_full():
    from minglm.plots import figure, label_log_axes, line

    fig = line(figure("", "x", "y", log_x=True, log_y=True), [16, 300], [1e-4, 2e9], "a")
    label_log_axes(fig)
    shown = dict(zip(fig.layout.xaxis.tickvals, fig.layout.xaxis.ticktext, strict=True))
    assert shown[20] == "20" and shown[500] == "500" and min(shown) <= 16 and max(shown) >= 300
    assert "10<sup>8</sup>" in fig.layout.yaxis.ticktext and len(fig.layout.yaxis.ticktext) <= 9
    wide = line(figure("", "x", "y", log_x=True, log_y=True), [1e4, 1e6], [1e4, 1e6], "a")
    label_log_axes(
        wide
    )  # labels that do not fit side by side: powers of ten alone, as many as before on the other axis
    assert wide.layout.xaxis.ticktext == ("10,000", "100,000", "1,000,000") and "20,000" in wide.layout.yaxis.ticktext
    for low, high in ((28_000, 150_000), (3, 7), (1.1e6, 9e6)):  # with one tick an axis could be any axis
        narrow = line(figure("", "x", "y", log_x=True, log_y=True), [low, high], [low, high], "a")
        label_log_axes(narrow)
        for axis in (narrow.layout.xaxis, narrow.layout.yaxis):
            assert sum(low <= v <= high for v in axis.tickvals) >= 2
    tiny = line(figure("", "x", "y", log_y=True), [0, 1], [1e-9, 2], "a")
    label_log_axes(tiny)
    assert {"10<sup>-9</sup>", "10<sup>-1</sup>"} <= set(tiny.layout.yaxis.ticktext)  # not 0.1 among powers
    own = line(figure("", "x", "y", log_x=True), [2, 64], [1, 2], "a").update_xaxes(tickvals=[2, 64])
    label_log_axes(own)
    assert tuple(own.layout.xaxis.tickvals) == (2, 64) and own.layout.yaxis.tickvals is None


def test_only_the_first_training_band_has_words(tmp_path):
    from minglm.rl import figures

    lines = [{"event": "update", "start_s": s, "end_s": s + 1.0} for s in (1.0, 3.0, 5.0)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    row = {"sample": 0, "segments": [[0.0, 1.0, 0]]}
    (tmp_path / "trajectories.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = [a.text for a in figures.timeline(tmp_path, "title").layout.annotations]
    assert words == ["training"]


def test_dollars_in_a_table_are_not_typeset():
    from sim.report.lessons import table

    assert table([["$1", "$2"]], "a $", "b").splitlines()[2] == "| \\$1 | \\$2 |"
