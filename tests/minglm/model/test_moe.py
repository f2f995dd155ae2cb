"""Experts: grouped matmuls against a loop over tokens, the router's rules, the balance loss and the bias rule."""

import pytest
import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.model.moe import Experts, MoE, Router, balance_loss

CONFIG = ModelConfig.named("nano")


def filled(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    return module


def loop_over_tokens(experts, x, chosen, gates):
    """What the grouped computation must equal, one token and one expert at a time."""
    rows = []
    for n in range(x.shape[0]):
        row = 0
        for e, gate in zip(chosen[n].tolist(), gates[n], strict=True):
            g, u = (experts.gate_up_proj[e] @ x[n]).chunk(2)
            row = row + gate * (experts.down_proj[e] @ (F.silu(g) * u))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
@pytest.mark.parametrize("skewed", [False, True])
def test_grouped_experts_equal_the_loop_in_values_and_gradients(tokens, skewed):
    torch.manual_seed(tokens)
    experts = filled(Experts(CONFIG))
    x = torch.randn(tokens, CONFIG.hidden_size, requires_grad=True)
    chosen = torch.stack([torch.randperm(2 if skewed else CONFIG.n_routed_experts)[:2] for _ in range(tokens)])
    gates = torch.rand(tokens, 2, requires_grad=True)
    got, counts = experts(x, chosen, gates)
    want = loop_over_tokens(experts, x, chosen, gates)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(experts(x, chosen, gates)[0], want, rtol=1e-4, atol=1e-4)
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=CONFIG.n_routed_experts).tolist()
    inputs, g = (x, gates, *experts.parameters()), torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(want, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_bias_moves_the_choice_and_never_the_gate():
    router = filled(Router(CONFIG))
    x = torch.randn(50, CONFIG.hidden_size)
    _chosen, gates, scores = router(x)
    torch.testing.assert_close(gates.sum(-1), torch.full((50,), CONFIG.routed_scaling_factor))
    router.e_score_correction_bias[3] = 10.0
    moved, moved_gates, same = router(x)
    assert (moved == 3).any(-1).all() and torch.equal(scores, same)
    raw = scores.gather(-1, moved)
    torch.testing.assert_close(moved_gates, CONFIG.routed_scaling_factor * raw / raw.sum(-1, keepdim=True))


def test_router_learns_through_the_gates():
    moe = filled(MoE(CONFIG))
    moe(torch.randn(1, 6, CONFIG.hidden_size))[0].sum().backward()
    assert moe.gate.weight.grad.abs().max() > 0


def test_balance_loss_is_one_when_even_and_more_when_not():
    E, K, T = 8, 2, 16
    even = torch.arange(T * K).view(1, T, K) % E
    assert balance_loss(torch.full((1, T, E), 0.5), even).item() == pytest.approx(1.0)
    lopsided = torch.full((1, T, E), 0.01)
    lopsided[..., :K] = 0.9
    assert balance_loss(lopsided, torch.arange(K).expand(1, T, K)).item() > 3


def test_balance_loss_is_per_sequence():
    """Two sequences that each use their own experts are unbalanced, although the batch as a whole is even."""
    E, K, T = 4, 2, 8
    scores = torch.full((2, T, E), 0.01)
    scores[0, :, :2] = scores[1, :, 2:] = 0.9
    chosen = torch.stack([torch.tensor([0, 1]).expand(T, K), torch.tensor([2, 3]).expand(T, K)])
    assert balance_loss(scores, chosen).item() > 1.9


def test_balance_loss_gradient_is_the_formula():
    torch.manual_seed(0)
    scores = torch.rand(2, 5, 4, requires_grad=True)
    chosen = scores.topk(2).indices
    f = F.one_hot(chosen, 4).sum(2).float().mean(1) * 4 / 2
    want = (f * (scores / scores.sum(-1, keepdim=True)).mean(1)).sum(-1).mean()
    got = balance_loss(scores, chosen)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(v, scores)[0] for v in (got, want)))


def test_bias_rule_evens_out_a_skewed_stream():
    """Tokens that all look alike crowd a few experts; the sign rule alone spreads them."""
    torch.manual_seed(0)
    router = filled(Router(CONFIG))
    base = torch.randn(CONFIG.hidden_size)
    E, loads = CONFIG.n_routed_experts, []
    for _ in range(300):
        chosen, _, _ = router(base + 0.5 * torch.randn(256, CONFIG.hidden_size))
        counts = torch.bincount(chosen.flatten(), minlength=E)
        loads.append((counts.max() / counts.float().mean()).item())
        router.move_bias(counts, 0.01)
    assert loads[0] > 2.5, "the stream must be skewed to begin with"
    assert sum(loads[-20:]) / 20 < 1.5


def test_bias_rule_is_the_sign_rule():
    router = Router(CONFIG)
    router.move_bias(torch.tensor([10, 0, 4, 4, 4, 4, 4, 2]), 0.5)
    assert router.e_score_correction_bias.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0.5]
