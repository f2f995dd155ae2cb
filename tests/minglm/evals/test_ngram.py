"""n-gram baselines against counts by hand and against brute force."""

import math

import numpy as np
import pytest
import torch

from minglm.data.shards import IGNORE, Batch
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.vocabulary import tokenizer
from minglm.errors import InputError
from minglm.evals.ngram import Trigram, copies


def batch(*rows):
    tokens = torch.tensor(rows)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros_like(tokens[:, :-1]))


def test_back_off_against_hand():
    # words after: 0 1 2 / 0 1 3 / 0 1 2; vocabulary 4
    table = Trigram([batch([0, 1, 2], [0, 1, 3], [0, 1, 2])], 4)
    one = [(0 + 3 / 4) / 9, (3 + 3 / 4) / 9, (2 + 3 / 4) / 9, (1 + 3 / 4) / 9]  # 6 words, 3 kinds
    two = [(c + 2 * p) / 5 for c, p in zip([0, 0, 2, 1], one, strict=True)]  # after 1: 3 words, 2 kinds
    three = [(c + 2 * p) / 5 for c, p in zip([0, 0, 2, 1], two, strict=True)]
    assert table.distribution(0, 1) == pytest.approx(three)
    assert table.distribution(3, 1) == pytest.approx(two)  # a pair never seen backs off
    assert table.distribution(3, 3) == pytest.approx(one)
    quality = table.quality([batch([0, 1, 2])])["trigram"]
    begin = table.distribution(0, 0)[1]
    assert quality.loss == pytest.approx(-(math.log(begin) + math.log(three[2])) / 2) and quality.accuracy == 1


def brute(tokens, start, t):
    for n in range(4, 0, -1):
        if t - n + 1 < start[t]:
            continue
        suffix = list(tokens[t - n + 1 : t + 1])
        for e in range(t - 1, start[t] + n - 2, -1):
            if list(tokens[e - n + 1 : e + 1]) == suffix:
                return int(tokens[e + 1]), n
    return -1, 0


def test_copies_against_brute_force():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 80)
    start = np.where(np.arange(80) < 30, 0, 30)
    assert copies(tokens, start) == [brute(tokens, start, t) for t in range(80)]


def test_every_distribution_sums_to_one_and_copying_helps_text_that_repeats():
    train, valid = TinyWorldLoader(4, 128, 0), TinyWorldLoader(4, 128, 0, validation=True)
    table = Trigram([train.batch(i) for i in range(30)], tokenizer().vocab_size)
    assert table.distribution(7, 9).sum() == pytest.approx(1) and table.trust.max() < 1
    quality = table.quality([valid.batch(0)])
    floor = valid.floor(0)
    best = float(floor.nats[floor.kinds >= 0].mean())
    assert best < quality["trigram + copy"].loss < quality["trigram"].loss < math.log(tokenizer().vocab_size)
    assert quality["trigram"].tokens == int((valid.batch(0).targets != IGNORE).sum())


def test_nothing_to_count_is_refused():
    with pytest.raises(InputError, match="at least one batch"):
        Trigram([], 10)
