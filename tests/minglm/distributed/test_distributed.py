"""Several processes against one: the same losses, gradient norms and weights, whatever is split. gloo, one thread each.

Compared in fp64, where only a mistake can make a difference; fp32 is compared in test_distributed_train.py.
"""

import json
import sys

import pytest

from tests.helpers.processes import start_ranks

torch = pytest.importorskip("torch")

from minglm.config import ModelConfig  # noqa: E402
from minglm.errors import InputError  # noqa: E402
from minglm.model.counts import StepCounts  # noqa: E402
from minglm.training import parallel_dims  # noqa: E402
from minglm.training.parallel_dims import ParallelDims  # noqa: E402
from minglm.training.recipe import Recipe  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        not torch.distributed.is_available() or sys.platform == "win32", reason="torch without gloo here"
    ),
]
STEPS, B, T = 3, 8, 48
PLANS = {
    2: [{"dp": 2}, {"ep": 2}, {"tp": 2}, {"cp": 2}],
    4: [{"dp": 2, "ep": 2}, {"ep": 2, "cp": 2}, {"ep": 2, "tp": 2}, {"tp": 2, "cp": 2}],
}
MODES = ("dense", "warmup", "sparse")
CONFIG = ModelConfig.named("nano", mtp_depth=2, num_hidden_layers=2, mtp_normed_hidden=True)


def batch(step: int):
    """Tokens, targets with gaps that fall unevenly on processes, and documents that begin in the middle of rows."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, CONFIG.vocab_size, (B, T + 1), generator=generator)
    start, targets = torch.zeros(B, T, dtype=torch.int64), tokens[:, 1:].clone()
    start[0, T // 3 :], start[1, T // 2 + 3 :] = T // 3, T // 2 + 3
    targets[0, 5:20], targets[2, :3], targets[3] = -100, -100, -100
    return tokens[:, :-1], targets, start


def curve(mode: str, passes: int, mesh=None, reshard: bool = False) -> list[list[float]]:
    """Losses and gradient norm of each step, and at the end the norm of some weights and the router's bias."""
    from minglm.model.model import Model
    from minglm.training.optim import MuonAdamW

    torch.manual_seed(0)
    model = Model(CONFIG)
    for norm in (model.norm, model.mtp.norm):  # what the module reads goes through them: not 1, or it would not show
        torch.nn.init.uniform_(norm.weight, 0.3, 3.0)
    if mesh is not None:
        from minglm.distributed.model import ShardedModel
        from minglm.distributed.optim import ShardedMuonAdamW

        model = ShardedModel(model, mesh, reshard=reshard)
    for name, p in model.named_parameters():
        p.requires_grad_({"dense": ".indexer." not in name, "warmup": ".indexer." in name, "sparse": True}[mode])
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = (
        MuonAdamW(named, CONFIG, lr=0.01)
        if mesh is None
        else ShardedMuonAdamW(named, model.shapes, mesh, CONFIG, lr=0.01)
    )
    rows = []
    for step in range(STEPS):
        optimizer.zero_grad()
        batches = [tuple(t[part] for t in batch(step)) for part in torch.arange(B).chunk(passes)]
        counts = StepCounts.of(((targets, start) for _, targets, start in batches), CONFIG.mtp_depth)
        row, loads = torch.zeros(4), torch.zeros(())
        for i, (tokens, targets, start) in enumerate(batches):
            if mesh is not None:
                model.accumulate(i == passes - 1)
            out = model(tokens, targets, mode=mode, doc_start=start, counts=counts)
            parts = [out.lm_loss, out.mtp_loss, out.balance_loss, out.indexer_kl]
            loss = out.indexer_kl if mode == "warmup" else sum(x for x in parts if x is not None)
            loss.backward()
            row += torch.tensor([0.0 if x is None else float(x.detach()) for x in parts])
            loads = loads + out.expert_counts
        row = row.tolist() + loads.double().std(1).tolist()
        row.append(float(optimizer.clip_grad_norm(0.5)))
        optimizer.step()
        model.update_router_bias(loads, 0.01)
        rows.append(row)
    return rows


def worker(world: int, path: str) -> None:
    """One process of a group that goes through all plans of `PLANS[world]`."""
    import warnings

    from minglm.distributed.mesh import destroy_process_group, init_process_group

    warnings.simplefilter("ignore")
    torch.set_num_threads(1), torch.set_default_dtype(torch.float64)
    found = {}
    for plan in PLANS[world]:
        mesh = init_process_group(ParallelDims(**plan), "cpu")
        for mode in MODES if world == 2 else ("sparse",):
            found[f"{plan} {mode}"] = curve(mode, 1, mesh)
        if "dp" in plan:
            for mode in ("dense", "sparse"):  # cut into passes besides: the step is that of one pass in one process
                found[f"{plan} passes {mode}"] = curve(mode, 2, mesh, reshard=True)
    if mesh.first:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file)
    destroy_process_group()


@pytest.mark.parametrize("world", PLANS)
def test_every_split_trains_as_one_process_does(world, tmp_path):
    processes = start_ranks(world, [sys.executable, __file__, str(world), str(tmp_path / "found.json")])
    errors = [p.communicate(timeout=240)[1] for p in processes]
    assert not any(p.returncode for p in processes), errors
    found = json.loads((tmp_path / "found.json").read_text())
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1), torch.set_default_dtype(torch.float64)
    try:
        expected = {mode: curve(mode, 1) for mode in MODES}
    finally:
        torch.set_num_threads(threads), torch.set_default_dtype(dtype)
    assert len(found) >= 5
    for name, rows in found.items():
        theirs = expected[name.split()[-1]]
        assert torch.allclose(torch.tensor(rows), torch.tensor(theirs), rtol=0, atol=1e-8), name
    assert expected["sparse"][0] != expected["sparse"][1], "negative control: steps differ from each other"


def test_a_layout_must_multiply_to_the_number_of_processes(monkeypatch):
    assert parallel_dims.choose(None, 4) == ParallelDims(dp=4)
    assert parallel_dims.choose({"ep": 2, "dp": None}, 4) == ParallelDims(dp=2, ep=2)
    monkeypatch.setenv(parallel_dims.VARIABLE, "tp=2, cp=2")
    assert parallel_dims.choose(None, 4) == ParallelDims(tp=2, cp=2)
    assert parallel_dims.choose({"ep": 4}, 4) == ParallelDims(ep=4), "flags come before the variable"
    for asked, world, word in (
        ({"ep": 3}, 4, "--nproc-per-node 3"),
        ({"dp": 2}, 4, "makes 2 processes"),
        ({"tp": 0}, 1, "at least 1"),
        ({"pp": 2}, 2, "not one of"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            parallel_dims.choose(asked, world)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv(parallel_dims.VARIABLE, "tp=two")
    with pytest.raises(InputError, match="kind=number"):
        parallel_dims.choose(None, 2)


@pytest.mark.parametrize(
    "plan, changes, word",
    [
        ({"dp": 3}, {}, "batch_size"),
        ({"ep": 16}, {"batch_size": 16}, "n_routed_experts"),
        ({"tp": 3}, {}, "num_attention_heads"),
        ({"cp": 3}, {}, "seq_len"),
        ({"cp": 32}, {}, "mtp_depth"),
        ({"dp": 2}, {"compile": True}, "compile"),
    ],
)
def test_what_does_not_divide_is_refused(plan, changes, word):
    recipe = Recipe(**{"model": "nano", "seq_len": 32, "batch_size": 4, **changes})
    with pytest.raises(InputError, match=word):
        parallel_dims.check(ParallelDims(**plan), recipe, recipe.config())


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
