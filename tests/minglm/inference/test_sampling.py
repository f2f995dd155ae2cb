"""Choosing tokens: the distribution sampled from, draws by seed and index, and log-probabilities that belong to
them."""

import pytest
import torch

from minglm.errors import InputError
from minglm.inference.sampling import arrivals, check_sampling, choose, key_of, probabilities

SHARES = torch.tensor([0.5, 0.2, 0.2, 0.1])


def draw(n, temperature=1.0, top_p=1.0, index=0):
    logits = SHARES.log().expand(n, 4)
    return choose(logits, [temperature] * n, [top_p] * n, [(seed, index) for seed in range(n)])


def test_sampling_follows_the_probabilities():
    tokens, logprobs = draw(8000)
    share = torch.bincount(tokens, minlength=4) / 8000
    chi_square = (8000 * (share - SHARES).square() / SHARES).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, one in a thousand
    torch.testing.assert_close(logprobs, SHARES.log()[tokens])


def test_draws_of_neighbouring_tokens_are_independent():
    """Index 0 and index 1 of the same seeds: the joint table of pairs is the product of the shares."""
    first, second = draw(8000)[0], draw(8000, index=1)[0]
    table = torch.bincount(first * 4 + second, minlength=16).view(4, 4)
    want = 8000 * SHARES[:, None] * SHARES
    assert ((table - want).square() / want).sum() < 37.7  # 15 degrees of freedom, one in a thousand


def test_top_p_cuts_the_tail_and_temperature_sharpens():
    tokens, logprobs = draw(4000, top_p=0.6)
    share = torch.bincount(tokens, minlength=4) / 4000
    torch.testing.assert_close(share, torch.tensor([5 / 7, 2 / 7, 0, 0]), rtol=0, atol=0.03)
    torch.testing.assert_close(logprobs, torch.tensor([5 / 7, 2 / 7, 0, 0]).log()[tokens])
    assert (draw(100, top_p=0.01)[0] == 0).all() and (draw(100, temperature=0.01)[0] == 0).all()
    hot = probabilities(SHARES.log()[None], [2.0], [1.0])
    torch.testing.assert_close(hot, (SHARES.sqrt() / SHARES.sqrt().sum())[None])


@pytest.mark.parametrize("temperature", [1e-6, 1e-12, 1e-37, 1e-38, 1e-40, 1e-45, 1e-320])
def test_temperatures_that_fp32_cannot_divide_by_are_greedy(temperature):
    """Also beside a warm row: the quotients of the cold one are never formed."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)) * 30
    tokens, logprobs = choose(logits, [temperature, 1.0], [0.9, 1.0], [(1, 0), (2, 0)])
    assert tokens[0] == logits[0].argmax() and logprobs.isfinite().all()
    torch.testing.assert_close(logprobs[0], logits[0].log_softmax(-1).max())
    assert torch.equal(choose(logits[:1], [temperature], [1.0], [(1, 0)])[0], tokens[:1])


@pytest.mark.parametrize("temperature", [1e-5, 1e-4, 1e-3])
def test_cold_temperatures_above_that_are_sampled_and_finite(temperature):
    """The distribution in double precision; 1e-5 is where the quotients of usual logits still lie far inside fp32."""
    logits = torch.tensor([[30.0, 30.0 - temperature, -40.0]])
    want = (logits.double() / temperature).softmax(-1)
    torch.testing.assert_close(probabilities(logits, [temperature], [1.0]).double(), want, rtol=0.3, atol=1e-6)
    assert choose(logits, [temperature], [1.0], [(1, 0)])[1].isfinite().all()


@pytest.mark.parametrize("top_p", [1e-9, 1e-40, 1e-320])
def test_a_top_p_close_to_nothing_keeps_the_likeliest(top_p):
    assert probabilities(SHARES.log()[None], [1.0], [top_p]).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_the_fewest_tokens_that_hold_top_p_and_not_one_more():
    """Four equal ones: exactly half of the probability is held by two."""
    even = torch.zeros(1, 4)
    for top_p, kept in [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4)]:
        want = torch.tensor([1 / kept] * kept + [0.0] * (4 - kept))
        torch.testing.assert_close(probabilities(even, [1.0], [top_p])[0], want)


def test_a_row_without_a_cut_keeps_its_farthest_tail_beside_one_with():
    """fp32 sums to 1 long before the tail: there top_p = 1 must cut nothing."""
    logits = torch.tensor([20.0] + [0.0] * 50).expand(2, 51)
    both = probabilities(logits, [1.0, 1.0], [1.0, 0.5])
    torch.testing.assert_close(both[0], logits[0].softmax(-1), rtol=1e-5, atol=0)
    assert both[0].min() > 0 and both[1].tolist() == [1.0] + [0.0] * 50


def test_keys_are_mixed_by_splitmix64():
    """Its first output for state 0 is published (Vigna, splitmix64.c): e220a8397b1dcdaf, the finaliser of the golden
    gamma. The seed that leads there at index 0 is found by inverting the multiplication, which is odd."""
    gamma, word = 0x9E3779B97F4A7C15, 1 << 64
    seed = (gamma - 0x632BE59BD9B4E019) * pow(gamma, -1, word) % word
    assert key_of(seed, 0) == 0xE220A8397B1DCDAF >> 1
    assert len({key_of(s, i) for s in range(-20, 20) for i in range(40)}) == 1600


def test_rows_keep_their_own_settings():
    """A greedy row, a cut row and a plain one side by side give what each gives alone."""
    logits, generator = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 2, [(7, 3), (8, 0), (9, 5)]
    settings = [0.0, 0.7, 1.3], [0.5, 0.5, 1.0]
    tokens, logprobs = choose(logits, *settings, generator)
    for i in range(3):
        token, logprob = choose(logits[i : i + 1], settings[0][i : i + 1], settings[1][i : i + 1], generator[i : i + 1])
        assert token == tokens[i]
        torch.testing.assert_close(logprob, logprobs[i : i + 1])
    assert tokens[0] == logits[0].argmax() and logprobs[0] == pytest.approx(
        logits[0].log_softmax(-1).max().item(), abs=1e-5
    )


def test_arrivals_depend_on_seed_and_index_only():
    together = arrivals([(3, 0), None, (3, 1), (4, 0)], 100)
    assert torch.equal(together[0], arrivals([(3, 0)], 100)[0]) and torch.equal(together[2], arrivals([(3, 1)], 100)[0])
    assert (
        (together[1] == 1).all()
        and not torch.equal(together[0], together[2])
        and not torch.equal(together[0], together[3])
    )
    assert (arrivals([(-5, 2)], 100) > 0).all()


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, 1.1)]
)
def test_settings_out_of_range_are_refused(temperature, top_p):
    with pytest.raises(InputError, match="temperature|top_p"):
        check_sampling(temperature, top_p)


@pytest.mark.parametrize("top_p", [1.0, 1e-6])
def test_the_borders_of_top_p(top_p):
    check_sampling(0.0, top_p)
    for bad in (0.0, 1.0 + 1e-6, -top_p, float("nan")):
        with pytest.raises(InputError):
            check_sampling(1.0, bad)
