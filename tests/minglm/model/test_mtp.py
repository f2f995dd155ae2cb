"""Multi-token prediction: what is joined with what, and which labels count."""

import pytest
import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.model.model import Model
from minglm.model.mtp import shift_targets


def test_shift_follows_the_table():
    targets = torch.arange(1, 9).view(1, 8)  # targets[i] = token i+1 for tokens 0…7
    assert shift_targets(targets, 1).tolist() == [[2, 3, 4, 5, 6, 7, 8]]
    assert shift_targets(targets, 3).tolist() == [[4, 5, 6, 7, 8]]


def test_shift_stops_at_documents_and_keeps_ignored_labels():
    targets = torch.tensor([[1, 2, -100, 4, 5, -100]])
    doc_start = torch.tensor([[0, 0, 0, 3, 3, 3]])
    assert shift_targets(targets, 1, doc_start).tolist() == [[2, -100, -100, 5, -100]]
    assert shift_targets(targets, 2, doc_start).tolist() == [[-100, -100, -100, -100]]


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_loss_equals_depth_by_depth_by_hand(mode):
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano", mtp_depth=3, initializer_range=0.1))
    tokens = torch.randint(0, 512, (2, 12))
    targets = torch.cat((tokens[:, 1:], torch.randint(0, 512, (2, 1))), 1)
    out = model(tokens, targets, mode=mode)
    hidden, losses = out.hidden, []
    for d in (1, 2, 3):
        joined = (
            torch.stack(
                [
                    torch.cat(
                        (model.mtp.enorm(model.embed_tokens(tokens[:, i + d])), model.mtp.hnorm(hidden[:, i])), -1
                    )
                    for i in range(12 - d)
                ],
                1,
            )
            @ model.mtp.eh_proj.weight.T
        )
        layer = model.mtp.layer
        # 12 tokens are fewer than index_topk, so dense and sparse read the same keys
        from minglm.model.attention import ForwardContext
        from minglm.model.decoder_layer import AuxLosses

        hidden = layer(joined, ForwardContext("dense", model.rope_slice(0, 12 - d, tokens.device)), AuxLosses())[0]
        logits = model.lm_head(model.mtp.norm(hidden))
        losses.append(
            F.cross_entropy(logits.flatten(0, 1), torch.stack([targets[:, i + d] for i in range(12 - d)], 1).flatten())
        )
    torch.testing.assert_close(out.mtp_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_it_learns_to_see_two_ahead():
    """Tokens that repeat with period 5 are predictable two ahead; a label off by one would not be, for a module whose
    shift is wrong learns the wrong column."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano"))
    period = torch.randint(0, 512, (8, 5))
    tokens = period.repeat(1, 6)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        out = model(tokens[:, :-1], tokens[:, 1:], mode="dense")
        optimiser.zero_grad()
        (out.lm_loss + out.mtp_loss).backward()
        optimiser.step()
    assert out.mtp_loss.item() < 1.0
    hidden = model(tokens[:, :20], mode="dense").hidden
    from minglm.model.attention import ForwardContext
    from minglm.model.decoder_layer import AuxLosses

    deep = model.mtp_step(
        hidden[:, :19], tokens[:, 1:20], ForwardContext("dense", model.rope_slice(0, 19, tokens.device)), AuxLosses()
    )
    guess = model.lm_head(model.mtp.norm(deep)).argmax(-1)

    def right(shift):
        return (guess[:, 6:] == tokens[:, 6 + shift : 19 + shift]).float().mean().item()

    assert right(2) > 0.9 and right(1) < 0.5 and right(3) < 0.5


def test_too_short_for_any_depth_gives_no_mtp_loss():
    model = Model(ModelConfig.named("nano"))
    assert model(torch.tensor([[3]]), torch.tensor([[4]])).mtp_loss is None


def test_counts_have_a_row_for_the_mtp_layer():
    config = ModelConfig.named("nano", mtp_depth=2)
    model = Model(config)
    tokens = torch.randint(0, 512, (2, 10))
    counts = model(tokens, tokens).expert_counts
    assert counts.shape == (config.num_moe_layers + 1, config.n_routed_experts)
    assert counts.sum(-1).tolist() == [20 * 2, 20 * 2, (18 + 16) * 2]
    assert model(tokens, tokens, mtp=False).expert_counts.shape[0] == config.num_moe_layers


def test_a_published_module_reads_normed_states_at_every_depth():
    """By hand: the final norm before depth 1, the norm before the shared head before depth 2. Norm weights are not 1,
    so that a norm that is left out or taken twice is another loss."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano", mtp_depth=2, initializer_range=0.1, mtp_normed_hidden=True))
    for norm in (model.norm, model.mtp.norm):
        torch.nn.init.uniform_(norm.weight, 0.2, 3.0)
    tokens = torch.randint(0, 512, (2, 10))
    out = model(tokens, tokens, mode="dense")

    def normed(x, weight):
        return x * (x.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt() * weight

    from minglm.model.attention import ForwardContext
    from minglm.model.decoder_layer import AuxLosses

    state, losses = normed(out.hidden, model.norm.weight), []
    for d in (1, 2):
        keep = 10 - d
        pair = (normed(model.embed_tokens(tokens[:, d:]), model.mtp.enorm.weight), normed(state[:, :keep], 1.0))
        joined = torch.cat(pair, -1) @ model.mtp.eh_proj.weight.T
        ctx = ForwardContext("dense", model.rope_slice(0, keep, tokens.device))
        state = normed(model.mtp.layer(joined, ctx, AuxLosses())[0], model.mtp.norm.weight)
        losses.append(F.cross_entropy((state @ model.lm_head.weight.T).flatten(0, 1), tokens[:, d:].flatten()))
    torch.testing.assert_close(out.mtp_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
