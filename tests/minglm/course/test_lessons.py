"""What the notebooks lean on: pictures that carry the config's own numbers, a slider that redraws, experiments that can
fail."""

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
