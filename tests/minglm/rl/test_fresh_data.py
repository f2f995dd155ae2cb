"""On fresh data the trainer's policy is the one that sampled: every ratio is 1, or the setting is refused."""

import pytest

torch = pytest.importorskip("torch")

from minglm.config import ModelConfig  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.inference.engine import Engine  # noqa: E402
from minglm.inference.request import Request  # noqa: E402
from minglm.model.model import Model  # noqa: E402
from minglm.rl.config import Settings  # noqa: E402
from minglm.rl.messages import RolloutRequest  # noqa: E402
from minglm.rl.trainer import Row, Trainer  # noqa: E402
from minglm.rl.worker import request_from  # noqa: E402


def ratios(settings: Settings, **sampling) -> "torch.Tensor":
    """π_old/μ of every token of eight responses of a peaked model; `sampling` changes the engine's requests."""
    torch.manual_seed(0)
    model = Model(ModelConfig.named("nano")).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    engine, requests = Engine(model, 8, 64), []
    for i in range(8):
        asked = RolloutRequest(str(i), [0, 4, 30 + i, 5], seed=i, tokens=[], logprobs=[], versions=[])
        request: Request = request_from(asked, settings, stop=[])
        for name, value in sampling.items():
            setattr(request, name, value)
        engine.submit(request)
        requests.append(request)
    while engine.running or engine.waiting:
        engine.step()
    trainer = object.__new__(Trainer)
    trainer.settings, trainer.model, trainer.config = settings, model, model.config
    rows = [Row(r.prompt + r.tokens, len(r.prompt), r.logprobs, [False] * len(r.tokens), 1.0, None) for r in requests]
    out = []
    for micro in trainer._micro(rows):
        with torch.no_grad():
            out.append((trainer.logprobs(micro)[0] - micro.behaviour)[micro.mask].exp())
    return torch.cat(out)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_every_ratio_is_one(temperature):
    found = ratios(Settings(temperature=temperature, max_new_tokens=40, micro_tokens=128))
    assert len(found) == 8 * 40 and (found - 1).abs().max() < 1e-3
    truncated = ratios(Settings(temperature=temperature, max_new_tokens=40), top_p=0.8)
    assert (truncated - 1).abs().mean() > 0.05, "negative control: what a truncated distribution would do"


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.999, 2])
def test_a_truncated_distribution_is_refused_in_one_line(top_p):
    with pytest.raises(InputError, match="top_p=.*must be 1: .*lower temperature instead") as caught:
        Settings(top_p=top_p)
    assert "\n" not in str(caught.value) and Settings(temperature=0.7).top_p == 1
