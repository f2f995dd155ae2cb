"""Token shards: what is written is what is read, damage is noticed, and a batch is a function of (seed, step)."""

import json
import os

import numpy as np
import pytest
import torch

from minglm.data import shards
from minglm.data.shards import IGNORE, Loader
from minglm.errors import InputError


@pytest.fixture
def shard(tmp_path):
    rng = np.random.default_rng(0)
    return shards.write(tmp_path / "train", [[0, *rng.integers(6, 90, int(n)), 1] for n in rng.integers(5, 60, 40)], 90)


def test_round_trip_and_header(shard, tmp_path):
    again = shards.open_shard(tmp_path / "train")
    assert (again.tokens == shard.tokens).all() and len(again) == again.header["tokens"]
    assert (again.tokens[again.doc_offsets] == 0).all(), "every document starts with bos"
    assert not again.tokens.flags.writeable
    assert again.tokens.dtype == np.uint16
    assert shards.write(tmp_path / "wide", [[0, 70_000, 1]], 100_000).tokens.dtype == np.uint32


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda b, h: b.write_bytes(b.read_bytes()[:-7]), "truncated"),
        (lambda b, h: b.write_bytes(b.read_bytes() + b"xx"), "too long"),
        (lambda b, h: b.write_bytes(bytes([b.read_bytes()[0] ^ 1]) + b.read_bytes()[1:]), "altered or damaged"),
        (lambda b, h: b.unlink(), "is missing"),
        (lambda b, h: h.write_text("{"), "not a shard header"),
        (lambda b, h: h.unlink(), "no such shard header"),
        (
            lambda b, h: h.write_text(json.dumps({**json.loads(h.read_text()), "doc_offsets": [0, 10**9]})),
            "document offsets",
        ),
    ],
)
def test_damage_names_the_file_and_the_remedy(shard, tmp_path, damage, says):
    damage(tmp_path / "train.bin", tmp_path / "train.json")
    with pytest.raises(InputError) as caught:
        shards.open_shard(tmp_path / "train")
    assert (
        says in str(caught.value)
        and str(tmp_path / "train") in str(caught.value)
        and "--overwrite" in str(caught.value)
    )


def test_ids_outside_the_vocabulary_and_empty_corpus_are_refused(tmp_path):
    with pytest.raises(InputError, match="token id 90 does not fit vocab_size=90"):
        shards.write(tmp_path / "a", [[0, 90]], 90)
    with pytest.raises(InputError, match="no tokens to write"):
        shards.write(tmp_path / "b", [], 90)
    with pytest.raises(InputError, match="smaller seq_len or a larger corpus"):
        Loader(shards.write(tmp_path / "c", [[0, 5, 1]], 90), 1, 64)


def test_targets_are_the_next_tokens_and_documents_do_not_leak(shard):
    loader = Loader(shard, 4, 32, seed=3)
    masked = 0
    for step in range(20):
        tokens, targets, doc_start = loader.batch(step)
        starts = loader.starts(step)
        for r in range(4):
            for t in range(32):
                at = starts[r] + t
                document = np.searchsorted(shard.doc_offsets, at, side="right") - 1
                assert doc_start[r, t] == max(shard.doc_offsets[document] - starts[r], 0)
                assert tokens[r, t] == shard.tokens[at]
                if at + 1 in shard.doc_offsets:
                    assert targets[r, t] == IGNORE and tokens[r, t] == 1
                    masked += 1
                else:
                    assert targets[r, t] == shard.tokens[at + 1]
    assert masked > 10


def test_batch_is_a_function_of_seed_and_step(shard):
    a, b = Loader(shard, 4, 32, seed=3), Loader(shard, 4, 32, seed=3)
    for step in (0, 1, 17, 40):
        b.batch(step + 5)  # where a loader has been must not matter
        assert all(torch.equal(x, y) for x, y in zip(a.batch(step), b.batch(step), strict=True))
    assert not torch.equal(a.batch(0).tokens, Loader(shard, 4, 32, seed=4).batch(0).tokens)


def test_an_epoch_visits_every_window_once(shard):
    loader = Loader(shard, 1, 16, seed=1)
    for epoch in range(3):
        starts = [int(loader.starts(epoch * loader.windows + i)[0]) for i in range(loader.windows)]
        assert len(set(starts)) == loader.windows and len({s % 16 for s in starts}) == 1
        assert max(starts) + 17 <= len(shard)


def text_folder(path, word: str = "words", files: int = 30):
    path.mkdir(parents=True)
    for i in range(files):
        (path / f"{i}.txt").write_text(f"document {i} with some {word} in it\n" * 10)
    return path


def test_build_is_reused_and_other_settings_are_another_folder(tmp_path):
    source, parent = f"folder:{text_folder(tmp_path / 'text')}", tmp_path / "data"
    first = shards.build(source, parent, 300)
    written = (first.folder / "train.bin").stat().st_mtime_ns
    again = shards.build(source, parent, 300)
    assert again.folder == first.folder and (first.folder / "train.bin").stat().st_mtime_ns == written
    tokenizer, train, validation = again
    assert tokenizer.sha256 == first.tokenizer.sha256 and len(train) > len(validation) > 0
    manifest = json.loads((first.folder / "corpus.json").read_text())
    assert {f["split"] for f in manifest["files"].values()} <= {"train", "validation", "train, its end validation"}
    assert manifest["validation"] == first.rule
    assert (
        len({first.folder, shards.build(source, parent, 310).folder, shards.build(source, parent, 300, 500).folder})
        == 3
    )


def test_edited_text_is_read_again_even_with_its_size_and_time_kept(tmp_path):
    folder, parent = text_folder(tmp_path / "text"), tmp_path / "data"
    first = shards.build(f"folder:{folder}", parent, 300)
    for path in folder.iterdir():
        stat = path.stat()
        path.write_text(path.read_text().replace("words", "sword"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = shards.build(f"folder:{folder}", parent, 300)
    assert second.folder != first.folder
    assert "sword" in second.tokenizer.decode(second.train.tokens) and "sword" not in first.tokenizer.decode(
        first.train.tokens
    )
    (folder / "7.txt").rename(folder / "seven.txt")  # the name decides which half a file is in
    assert shards.build(f"folder:{folder}", parent, 300).folder != second.folder


def test_one_relative_name_in_two_places_is_two_texts(tmp_path, monkeypatch):
    decoded = []
    for place, word in (("a", "apples"), ("b", "pears")):
        text_folder(tmp_path / place / "text", word)
        monkeypatch.chdir(tmp_path / place)
        built = shards.build("folder:text", tmp_path / "data", 300)
        decoded.append(built.tokenizer.decode(built.train.tokens))
    assert "apples" in decoded[0] and "pears" in decoded[1] and "apples" not in decoded[1]


def test_a_tokenizer_that_is_given_is_used_and_shares_the_folder_it_made(tmp_path):
    source, parent = f"folder:{text_folder(tmp_path / 'text')}", tmp_path / "data"
    first = shards.build(source, parent, 300)
    assert shards.build(source, parent, 300, None, first.folder / "tokenizer.json").folder == first.folder
    other = shards.build(f"folder:{text_folder(tmp_path / 'more', 'others')}", parent, 300)
    own = shards.build(source, parent, 300, None, other.folder)
    assert own.tokenizer.sha256 == other.tokenizer.sha256 and own.folder not in (first.folder, other.folder)


def test_without_unseen_text_there_is_no_validation_shard(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("word")
    for _ in range(2):  # made, and found
        built = shards.build(f"folder:{tmp_path / 'text'}", tmp_path / "data", 300)
        assert built.validation is None and built.rule.startswith("no unseen text") and len(built.train)
