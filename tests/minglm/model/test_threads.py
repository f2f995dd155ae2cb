"""Work shared out to threads: same results, fixed shares, errors and thread counts kept."""

import os
import threading

import pytest
import torch

from minglm.model.indexer import select_topk
from minglm.model.indexer_loss import topk_kl
from minglm.model.sparse_attention import sparse_attention
from minglm.model.threads import parallel_for

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_shares_are_fixed_and_all_items_are_done(threads):
    threads(3)
    assert parallel_for(list, range(8), CPU) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert torch.get_num_threads() == 3
    threads(1)
    assert [list(s) for s in parallel_for(lambda s: s, [1, 2], CPU)] == [[1, 2]]


def test_an_error_in_any_share_arrives_and_the_next_call_works(threads):
    threads(2)
    for bad in (0, 1):
        with pytest.raises(ZeroDivisionError):
            parallel_for(lambda share, bad=bad: [1 // (i - bad) for i in share], [0, 1], CPU)
    assert torch.get_num_threads() == 2 and parallel_for(sum, [1, 2, 3], CPU) == [4, 2]


def test_callers_on_several_threads_do_not_wait_for_each_other(threads):
    threads(2)
    inner = []

    def work(share):
        t = threading.Thread(target=lambda: inner.append(parallel_for(sum, [1, 2, 3], CPU)))
        t.start()
        t.join(20)

    parallel_for(work, [0, 1], CPU)
    assert len(inner) == 2 and all(sum(r) == 6 for r in inner)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_makes_its_own_threads(threads):
    threads(2)
    parallel_for(sum, [1, 2], CPU)
    child = os.fork()
    if not child:
        os._exit(0 if parallel_for(len, [1, 2, 3], CPU) == [2, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("T", [7, 60, 700])
def test_attention_and_its_gradients_are_the_same_on_two_threads(threads, T):
    results = []
    for n in (1, 2, 2):
        threads(n)
        torch.manual_seed(0)
        q, k, w = (torch.randn(2, T, *s, requires_grad=True) for s in ((2, 4), (4,), (2,)))
        leaves = [
            torch.randn(s, requires_grad=True) for s in ((2, T, 3, 5), (2, T, 3, 4), (2, T, 10), (3, 5, 6), (3, 7, 6))
        ]
        topk_indices = select_topk(q.detach(), k.detach(), w.detach(), 6)
        out, p = sparse_attention(*leaves, topk_indices, 0.3, want_p=True)
        kl = topk_kl(q, k, w, topk_indices, p)
        results.append([topk_indices, out, kl, *torch.autograd.grad(out.sum() + kl, [*leaves, q, k, w])])
    for one, two, again in zip(*results, strict=False):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        assert torch.equal(two, again)
