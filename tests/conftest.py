"""What tests of several folders share."""

import pytest

import minglm  # noqa: F401  sets how threads wait, before any test loads torch


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """Three steps of `ci_pretrain`: a run folder that can be served."""
    torch = pytest.importorskip("torch")
    from minglm.training import recipe
    from minglm.training.loop import train

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small") / "run"
    train(recipe.load("ci_pretrain", {"steps": 3}), folder, None, progress=False, device="cpu")
    return folder
