"""Generated shards and recipes: nothing lost between text and batch, and no recipe that is neither taken nor refused
kindly."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minglm.data import shards
from minglm.data.shards import IGNORE, Loader
from minglm.errors import InputError
from minglm.training import recipe as recipes
from minglm.training.recipe import Recipe

BOUNDED = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
documents = st.lists(st.lists(st.integers(2, 999), min_size=1, max_size=40), min_size=1, max_size=12)


@BOUNDED
@given(documents, st.sampled_from([1000, 70_000]))
def test_shard_round_trip(docs, vocab):
    with tempfile.TemporaryDirectory() as folder:
        shard = shards.write(Path(folder) / "s", [[0, *d, 1] for d in docs], vocab)
        assert shard.tokens.tolist() == [t for d in docs for t in (0, *d, 1)]
        assert shard.doc_offsets.tolist() == [sum(len(d) + 2 for d in docs[:i]) for i in range(len(docs))]


@BOUNDED
@given(documents, st.integers(0, 10**6), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(docs, where, flip):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        shards.write(path, [[0, *d, 1] for d in docs], 1000)
        raw = bytearray(path.with_suffix(".bin").read_bytes())
        raw[where % len(raw)] ^= flip
        path.with_suffix(".bin").write_bytes(raw)
        try:
            shards.open_shard(path)
        except InputError as err:
            assert "s.bin" in str(err)
        else:
            raise AssertionError("damage went unnoticed")


@BOUNDED
@given(documents, st.integers(1, 3), st.integers(1, 16), st.integers(0, 2**31), st.integers(0, 10**6))
def test_batches_are_windows_of_the_stream(docs, batch_size, seq_len, seed, step):
    with tempfile.TemporaryDirectory() as folder:
        shard = shards.write(Path(folder) / "s", [[0, *d, 1] for d in docs], 1000)
        try:
            loader = Loader(shard, batch_size, seq_len, seed)
        except InputError:
            assert len(shard) < seq_len + 1
            return
        tokens, targets, doc_start = (t.numpy() for t in loader.batch(step))
        starts = loader.starts(step)
        stream = shard.tokens.astype(np.int64)
        for r in range(batch_size):
            window = stream[starts[r] : starts[r] + seq_len + 1]
            assert len(window) == seq_len + 1 and (tokens[r] == window[:-1]).all()
            crossing = window[1:] == 0  # 0 is bos and stands only at a document's start
            assert (targets[r] == np.where(crossing, IGNORE, window[1:])).all()
            last = np.maximum.accumulate(np.where(window[:-1] == 0, np.arange(seq_len), 0))
            assert (doc_start[r] == last).all()


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**4),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.lists(st.integers(), max_size=2),
)
keys = st.one_of(st.sampled_from([f.name for f in dataclasses.fields(Recipe)]), st.text(max_size=12))


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(keys, anything, max_size=4))
def test_a_recipe_is_taken_or_refused_in_one_line(values):
    try:
        recipe = recipes.Recipe.from_dict(values)
    except InputError as err:
        assert "\n" not in str(err) and len(str(err)) < 400
    else:
        assert recipes.Recipe.from_dict(recipe.to_dict()) == recipe


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        dict,
        lr=st.floats(1e-6, 1.0),
        steps=st.integers(1, 10**6),
        seq_len=st.integers(2, 1024),
        lookup_share=st.floats(0, 1),
        corpus=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12),
        adam_lr=st.one_of(st.none(), st.floats(0, 1)),
        compile=st.booleans(),
    )
)
def test_render_and_load_are_inverse(values):
    recipe = recipes.Recipe.from_dict(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(recipes.render(recipe), encoding="utf-8")
        assert recipes.load(path) == recipe
