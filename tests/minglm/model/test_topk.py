"""The k largest by position: every way that training, prefill and decoding take gives the rows of a stable sort."""

import pytest
import torch

from minglm.model.topk import largest, places_of_largest, topk_lowest


@pytest.mark.parametrize("width", [8, 100, 700, 3000])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_ties_go_to_the_lowest_position(width, levels):
    """Scores from few levels tie everywhere; the answer must be a stable sort's."""
    g = torch.Generator().manual_seed(width + levels)
    scores = torch.randint(0, levels, (30, width), generator=g).float() - levels // 2
    scores[::3, width // 2 :] = -torch.inf
    scores[1] = -torch.inf
    scores[1, 2] = 0.0
    for k in (1, 4, 7):
        order = torch.sort(scores, dim=-1, descending=True, stable=True)
        want = order.indices[:, :k].masked_fill(order.values[:, :k] == -torch.inf, -1).sort(-1).values
        assert torch.equal(topk_lowest(scores.clone(), k).sort(-1).values, want)
        values, index = largest(scores, k)  # decoding's way
        assert torch.equal(index[:, :k].masked_fill(values[:, :k] == -torch.inf, -1).sort(-1).values, want)


@pytest.mark.parametrize("width", [9, 36, 700, 3001, 30_000])
@pytest.mark.parametrize("levels", [2, 1000])
def test_places_of_the_largest_hold_them(width, levels):
    """However often the row is folded: each place once, and the values there are the largest that there are."""
    scores = torch.randint(0, levels, (5, width), generator=torch.Generator().manual_seed(width)).float()
    places = places_of_largest(scores, 9)
    assert all(len(set(row)) == 9 for row in places.tolist())
    torch.testing.assert_close(scores.gather(1, places).sort(-1).values, scores.sort(-1).values[:, -9:], rtol=0, atol=0)


def test_negative_zero_ties_with_zero():
    scores = torch.tensor([[0.0, -0.0, 0.0, -0.0, 1.0]])
    assert sorted(topk_lowest(scores, 3)[0].tolist()) == [0, 1, 4]
