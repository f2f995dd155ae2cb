"""The long-context stage's control: equal tokens, places by hand, and a record of every way on every seed."""

import pytest

pytest.importorskip("torch")
import torch

from minglm.data.shards import IGNORE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.evals.statistics import mean_interval
from minglm.tools import long_rows
from minglm.training import recipe
from minglm.training.tiny_world import VALIDATION_SEED


def test_short_rows_read_as_many_tokens_with_the_same_rates():
    long, short = recipe.load(long_rows.STAGE), long_rows.short_rows(3)
    tokens = [r.batch_size * r.seq_len * r.steps for r in (long, short)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.01) and short.seq_len == 264 and short.seed == 3
    assert (short.lr, short.adam_lr, short.model_changes, short.documents) == (
        long.lr,
        long.adam_lr,
        long.model_changes,
        long.documents,
    )


class _Even(torch.nn.Module):
    """Every token is equally likely."""

    def forward(self, tokens, mode, doc_start):
        return type("Out", (), {"logits": torch.zeros(*tokens.shape, 800)})


def test_a_place_is_counted_from_the_start_of_its_document():
    rows = long_rows.by_place(_Even(), 1024, 3000)
    loader = TinyWorldLoader(1, 1024, VALIDATION_SEED, long_rows.DOCUMENTS, validation=True)
    floors = {first: [] for first, _ in long_rows.PLACES}
    for step in range(2):
        _, targets, start = loader.batch(step)
        for t in range(1024):
            if targets[0, t] != IGNORE:
                place = t - int(start[0, t])
                first = max(f for f in floors if f <= place)
                floors[first].append((step, t))
    known = [loader.floor(step).nats[0] for step in range(2)]
    for row in rows:
        values = [float(known[step][t]) for step, t in floors[row["first"]]]
        even = torch.log(torch.tensor(800.0)).item()
        assert row["tokens"] == len(values)
        assert row["above_floor"] == pytest.approx(even - sum(values) / len(values), abs=1e-3)


def test_the_record_has_every_way_at_every_place():
    rows = long_rows.read()
    seeds = {r["seed"] for r in rows}
    assert seeds == {0, 1, 2} and len(rows) == 4 * 3 * len(seeds)
    for first, _ in long_rows.PLACES:
        loss = {(r["way"], r["seed"]): r["above_floor"] for r in rows if r["first"] == first}
        found = [loss[long_rows.LONG, s] - loss[long_rows.SHORT, s] for s in sorted(seeds)]
        assert long_rows.difference(rows, first) == pytest.approx(mean_interval(found))
    assert "long less short" in long_rows.table(rows)
