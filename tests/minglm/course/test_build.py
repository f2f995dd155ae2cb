"""The swap test: every part of the worked solutions inside minglm, alone and all together, and its logits."""

import pytest

torch = pytest.importorskip("torch")
from minglm.course.workshop import build, generator  # noqa: E402
from minglm.errors import InputError  # noqa: E402

SHEETS = [path.stem for path in generator.sources() if path.stem.startswith("build_")]
SOLVED = {name: part for sheet in SHEETS for name, part in build.solved(sheet).items() if name in build.PARTS}


def test_every_part_has_a_worked_solution():
    assert set(SOLVED) == set(build.PARTS)


@pytest.mark.parametrize("name", SOLVED)
def test_each_part_alone_gives_the_models_logits(name):
    assert build.differences({name: SOLVED[name]})[name] < build.CLOSE


@pytest.mark.parametrize("name", SOLVED)
def test_a_part_takes_every_place_of_its_counterpart(name):
    """By hand for nano: 3 layers and the MTP module's, of which the first is dense; a shared expert in each other."""
    places = {"RMSNorm": 4 * 4 + 1 + 3, "SwiGLU": 4, "Indexer": 4, "Router": 3, "MoE": 3}
    assert build.swap(build.subject(), name, SOLVED[name]) == places.get(name, 4)


def test_all_parts_together_give_the_models_logits():
    model, want = build.subject(), build.logits(build.subject())
    for name in SOLVED.keys() - {"MLA", "MoE"}:  # these two take in the others
        build.swap(model, name, SOLVED[name])
    got = build.logits(model)
    assert got.keys() == want.keys() == {"dense", "sparse", "decoded"}
    assert max(float((got[mode] - want[mode]).abs().max()) for mode in want) < build.CLOSE


def test_the_logits_are_of_order_one_so_that_the_bound_says_something():
    assert all(0.3 < float(v.std()) < 30 for v in build.logits(build.subject()).values())


def _scaled(part, factor):
    if isinstance(part, type):

        class Wrong(part):
            def forward(self, *args):
                out = super().forward(*args)
                return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

        return Wrong
    return lambda *args: part(*args) * factor


@pytest.mark.parametrize("name", [n for n in SOLVED if n not in ("Indexer", "Router")])
def test_a_part_that_is_wrong_by_a_thousandth_is_seen(name):
    """Negative control: so each part is really called, in the mode that it is for."""
    assert build.differences({name: _scaled(SOLVED[name], 1.001)})[name] > 10 * build.CLOSE


def test_an_indexer_or_router_that_chooses_otherwise_is_seen():
    class OtherKeys(SOLVED["Indexer"]):
        def forward(self, *args):
            q, k, w = super().forward(*args)
            return q, k, -w

    class OtherExperts(SOLVED["Router"]):
        def forward(self, x):
            chosen, gates, scores = super().forward(x)
            return (chosen + 1) % scores.shape[-1], gates, scores

    for name, part in (("Indexer", OtherKeys), ("Router", OtherExperts)):
        assert build.differences({name: part})[name] > 1000 * build.CLOSE


def test_what_does_not_fit_is_said_in_one_line():
    class Renamed(torch.nn.Module):
        def __init__(self, width, eps):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(width))

    class Wide(torch.nn.Module):
        def __init__(self, width, eps):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(width + 1))

    with pytest.raises(InputError, match="has no parameter `weight`"):
        build.swap(build.subject(), "RMSNorm", Renamed)
    with pytest.raises(InputError, match=r"shape \(65,\); it should have shape \(64,\)"):
        build.swap(build.subject(), "RMSNorm", Wide)
    with pytest.raises(InputError, match="did you mean 'RMSNorm'"):
        build.swap(build.subject(), "RMSNorn", SOLVED["RMSNorm"])
    with pytest.raises(InputError, match="did you mean 'build_1_layers'"):
        build.solved("build_1_layer")


def test_the_learners_whole_model_gives_the_models_logits():
    model = build.subject()
    mine = build.solved("build_2_model")["GLM"](model.config)
    mine.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mtp.")})
    tokens = torch.randint(2, model.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = (mine(tokens) - build.logits(model)["sparse"]).abs().max()
    assert float(apart) < build.CLOSE
